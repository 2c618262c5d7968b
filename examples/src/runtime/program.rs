//! The vocabulary that a guest is written in: L1 as a script of entries and expected exits.
//!
//! L1's registers: R15 is the iteration, RBX, RBP and R12 to R14 are the guest's own; every other
//! register may change with each word. Values that depend on time never stay in a register or in
//! memory, so that two machines can be compared at each [`Program::checkpoint`].

use super::routines::{self, Routines, Strings, exit_code};
use super::vmcs::{capability, entry_control, exit_control, field, primary, reason};
use super::{BuildError, Params, entry, handlers, map, standard, tables};
use crate::image::Image;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_machine::ports;

/// The control fields, as wanted; what the processor does not allow or insists on is adjusted when
/// the guest runs.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
}

/// L2's general-purpose registers, by number in [`map::L2_REGISTERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
#[allow(missing_docs)]
pub enum L2Register {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    R13 = 13,
}

impl L2Register {
    /// Where its value is kept while L1 runs.
    #[must_use]
    pub const fn address(self) -> u64 {
        map::L2_REGISTERS + 8 * self as u64
    }
}

/// A guest under construction.
pub struct Program {
    /// The assembler of L1's code, for what the words below do not say.
    pub a: CodeAssembler,
    params: Params,
    name: &'static str,
    routines: Routines,
    chunks: Vec<(u64, Vec<u8>)>,
    strings: Strings,
    tables: Vec<(CodeLabel, Vec<u8>)>,
    next_l2: u64,
    iteration: CodeLabel,
}

type Built<T = ()> = Result<T, BuildError>;

impl Program {
    /// Starts a guest: 64-bit mode, VMXON done, at the head of the loop over iterations.
    pub fn new(name: &'static str, params: Params) -> Built<Self> {
        Self::bare(name, params, |program| {
            program.enable_vmx()?;
            Ok(())
        })
    }

    /// As [`Program::new`], but with `prologue` instead of VMXON before the loop.
    pub fn bare(
        name: &'static str,
        params: Params,
        prologue: impl FnOnce(&mut Self) -> Built,
    ) -> Built<Self> {
        if !(1..=0x1_0000).contains(&params.iterations) {
            return Err(BuildError::Parameter {
                name: "iterations",
                value: params.iterations.into(),
                rule: "1 to 65536, since a checkpoint id has 16 bits for it",
            });
        }
        let (routine_bytes, routines) = routines::assemble()?;
        let mut l1_stubs = tables::stubs();
        l1_stubs.extend(handlers::l1(routines.exception)?);
        let mut l2_stubs = tables::stubs();
        l2_stubs.extend(handlers::l2()?);
        let mut a = CodeAssembler::new(64)?;
        let iteration = a.create_label();
        entry::long_mode(&mut a)?;
        let mut program = Self {
            a,
            params,
            name,
            routines,
            chunks: vec![
                (map::ENTRY, entry::page()?),
                (map::GDT, tables::descriptor_page()),
                (map::IDT_L1, tables::idt(map::STUBS_L1, &[2, 8])),
                (map::IDT_L2, tables::idt(map::STUBS_L2, &[])),
                (map::PAGING_L1, tables::paging(map::PAGING_L1)),
                (map::PAGING_L2, tables::paging(map::PAGING_L2)),
                (map::PAGING_PAE, tables::paging_pae(map::PAGING_PAE)),
                (map::STUBS_L1, l1_stubs),
                (map::STUBS_L2, l2_stubs),
                (map::ROUTINES, routine_bytes),
                (map::EPT, tables::ept()),
            ],
            strings: Strings::default(),
            tables: Vec::new(),
            next_l2: map::L2_CODE,
            iteration,
        };
        if params.mirror_reports {
            program.a.mov(dword_ptr(map::MIRROR), 1)?;
        }
        program.print(&format!("guest {name}: "))?;
        prologue(&mut program)?;
        program.a.xor(r15d, r15d)?;
        program.a.set_label(&mut program.iteration)?;
        program.a.zero_bytes()?;
        Ok(program)
    }

    /// The parameters that the guest is built with.
    #[must_use]
    pub const fn params(&self) -> Params {
        self.params
    }

    /// Closes the loop over iterations, says success and gives the image.
    pub fn finish(mut self) -> Built<Image> {
        self.a.inc(r15d)?;
        self.a.cmp(r15d, self.params.iterations as i32)?;
        self.a.jb(self.iteration)?;
        self.print("ok\n")?;
        self.end(exit_code::SUCCESS)?;
        self.strings.emit(&mut self.a)?;
        for (mut label, bytes) in std::mem::take(&mut self.tables) {
            self.a.set_label(&mut label)?;
            self.a.db(&bytes)?;
        }
        let code = self.a.assemble(map::L1_CODE)?;
        fits("L1 code", code.len() as u64, map::L2_CODE - map::L1_CODE)?;
        fits("L2 code", self.next_l2 - map::L2_CODE, map::L2_OTHER_CODE - map::L2_CODE)?;
        self.chunks.push((map::L1_CODE, code));
        self.chunks.sort_by_key(|(address, _)| *address);
        for pair in self.chunks.windows(2) {
            fits("a part of the image", pair[0].1.len() as u64, pair[1].0 - pair[0].0)?;
        }
        let zeroed = [
            (map::ZEROED, map::EPT),
            (map::VARS, map::ZEROED_END),
            (map::SCRATCH, map::SCRATCH + 0x1_0000),
        ];
        Ok(Image {
            entry: entry::ENTRY_POINT as u32,
            chunks: self
                .chunks
                .into_iter()
                .map(|(address, bytes)| (address as u32, bytes))
                .collect(),
            zeroed: zeroed.map(|(start, end)| (start as u32, (end - start) as u32)).to_vec(),
        })
    }

    // What a run says.

    /// Prints on the serial port.
    pub fn print(&mut self, text: &str) -> Built {
        self.strings.load(&mut self.a, text)?;
        self.call(self.routines.print)
    }

    /// Writes EAX to the report port.
    pub fn report_eax(&mut self) -> Built {
        self.call(self.routines.report)
    }

    /// Reports the low 32 bits of a VMCS field.
    pub fn report_field(&mut self, field: u32) -> Built {
        self.a.mov(ecx, field)?;
        self.call(self.routines.report_field)
    }

    /// Reports 32 bits of memory.
    pub fn report_memory(&mut self, address: u64) -> Built {
        self.a.mov(eax, dword_ptr(address))?;
        self.report_eax()
    }

    /// A place to compare: writes `scenario << 16 | iteration` to the checkpoint port.
    pub fn checkpoint(&mut self, scenario: u16) -> Built {
        for register in [rcx, rsi, rdi, r8, r9, r10, r11] {
            self.a.xor(register, register)?;
        }
        self.a.mov(eax, r15d)?;
        self.a.or(eax, (u32::from(scenario) << 16) as i32)?;
        self.a.mov(edx, u32::from(ports::CHECKPOINT))?;
        self.a.out(dx, eax)?;
        Ok(())
    }

    /// Ends the run with this debug-exit value.
    pub fn end(&mut self, value: u32) -> Built {
        self.a.mov(eax, value)?;
        self.a.jmp(self.routines.exit)?;
        Ok(())
    }

    /// Goes on only if EAX is `value`; reports it.
    pub fn expect_eax(&mut self, value: u32) -> Built {
        self.a.mov(ecx, value)?;
        self.call(self.routines.expect_value)
    }

    /// Goes on only if the 32 bits at `address` are `value`; reports them.
    pub fn expect_memory(&mut self, address: u64, value: u32) -> Built {
        self.a.mov(eax, dword_ptr(address))?;
        self.expect_eax(value)
    }

    /// Goes on only if the low 32 bits of a VMCS field are `value`; reports them.
    pub fn expect_field(&mut self, field: u32, value: u32) -> Built {
        self.a.mov(ecx, field)?;
        self.a.vmread(rax, rcx)?;
        self.expect_eax(value)
    }

    /// Ends the run with success and says why, unless capability MSR `msr` allows every bit of `bits`
    /// to be 1.
    pub fn require(&mut self, msr: u32, bits: u32, what: &str) -> Built {
        self.require_edx(msr, bits, what)
    }

    /// Likewise for the plain bits of an MSR's low half (IA32_VMX_EPT_VPID_CAP).
    pub fn require_low(&mut self, msr: u32, bits: u32, what: &str) -> Built {
        self.a.mov(ecx, msr)?;
        self.a.rdmsr()?;
        self.a.mov(edx, eax)?;
        self.require_bits(bits, what)
    }

    fn require_edx(&mut self, msr: u32, bits: u32, what: &str) -> Built {
        self.a.mov(ecx, msr)?;
        self.a.rdmsr()?;
        self.require_bits(bits, what)
    }

    fn require_bits(&mut self, bits: u32, what: &str) -> Built {
        let mut present = self.a.create_label();
        self.a.and(edx, bits as i32)?;
        self.a.cmp(edx, bits as i32)?;
        self.a.je(present)?;
        self.print(&format!("skipped: no {what}\n"))?;
        self.end(exit_code::SUCCESS)?;
        self.a.set_label(&mut present)?;
        self.a.xor(eax, eax)?;
        self.a.xor(edx, edx)?;
        Ok(())
    }

    // VMX operation.

    /// VMXON.
    pub fn enable_vmx(&mut self) -> Built {
        self.write_revision(map::VMXON, 0)?;
        self.point_to(map::VMXON)?;
        self.vmx(0, |a| a.vmxon(qword_ptr(map::POINTER)))
    }

    /// Sets [`map::POINTER`], the operand of VMXON, VMCLEAR and VMPTRLD.
    pub fn point_to(&mut self, address: u64) -> Built {
        self.a.mov(rax, address)?;
        self.a.mov(qword_ptr(map::POINTER), rax)?;
        Ok(())
    }

    /// Writes the VMCS revision identifier, with `flags` (bit 31: shadow VMCS), to a region.
    pub fn write_revision(&mut self, region: u64, flags: u32) -> Built {
        self.a.mov(ecx, 0x480)?;
        self.a.rdmsr()?;
        self.a.or(eax, flags as i32)?;
        self.a.mov(dword_ptr(region), eax)?;
        self.a.xor(edx, edx)?;
        Ok(())
    }

    /// Emits a VMX instruction and goes on only if it ends like `expected`: 0 success, -1
    /// VMfailInvalid, else VMfailValid with this VM-instruction error. Reports the outcome.
    pub fn vmx(
        &mut self,
        expected: i32,
        instruction: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Built {
        instruction(&mut self.a)?;
        self.a.pushfq()?;
        self.a.pop(rax)?;
        self.a.mov(ecx, expected)?;
        self.call(self.routines.expect_vmx)
    }

    /// Emits code that must raise exception `vector` in L1, and reports vector and error code.
    pub fn faults(
        &mut self,
        vector: u32,
        instruction: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Built {
        let mut after = self.a.create_label();
        self.a.mov(dword_ptr(map::EXCEPTION_VECTOR), -1)?;
        self.a.lea(rax, ptr(after))?;
        self.a.mov(qword_ptr(map::FIXUP), rax)?;
        instruction(&mut self.a)?;
        self.a.set_label(&mut after)?;
        self.a.mov(qword_ptr(map::FIXUP), 0)?;
        self.expect_memory(map::EXCEPTION_VECTOR, vector)?;
        self.report_memory(map::EXCEPTION_ERROR)
    }

    /// Clears the region at [`map::VMCS`], makes it current and writes the standard fields for a
    /// 64-bit L2 at `l2`, with `controls` on top of what 64-bit mode needs.
    pub fn fresh_vmcs(&mut self, l2: u64, controls: Controls) -> Built {
        self.fresh_vmcs_at(map::VMCS, l2, controls)
    }

    /// As [`Program::fresh_vmcs`], in another region.
    pub fn fresh_vmcs_at(&mut self, region: u64, l2: u64, controls: Controls) -> Built {
        self.point_to(region)?;
        self.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))?;
        // VMCLEAR wrote out what it cached: now the region is ours to clear.
        self.a.mov(edi, region as u32)?;
        self.a.mov(ecx, 512)?;
        self.a.xor(eax, eax)?;
        self.a.rep().stosq()?;
        self.write_revision(region, 0)?;
        self.vmx(0, |a| a.vmptrld(qword_ptr(map::POINTER)))?;
        self.a.mov(dword_ptr(map::LAUNCHED), 0)?;
        let mut fields = standard::host(self.routines.vm_exit);
        fields.extend(standard::guest(l2));
        self.vmwrites(&fields)?;
        self.controls(Controls {
            exit: controls.exit | exit_control::HOST_64_BIT,
            entry: controls.entry | entry_control::IA32E,
            ..controls
        })
    }

    /// Writes the five control fields, adjusted to what the processor allows. With EPT, bitmaps or
    /// VPID among them the fields that these need are written too.
    pub fn controls(&mut self, wanted: Controls) -> Built {
        let secondary = if wanted.secondary == 0 {
            0
        } else {
            primary::SECONDARY
        };
        for (field, value, msr) in [
            (field::PIN_CONTROLS, wanted.pin, capability::PIN),
            (
                field::PRIMARY_CONTROLS,
                wanted.primary | secondary,
                capability::PRIMARY,
            ),
            (
                field::SECONDARY_CONTROLS,
                wanted.secondary,
                capability::SECONDARY,
            ),
            (field::EXIT_CONTROLS, wanted.exit, capability::EXIT),
            (field::ENTRY_CONTROLS, wanted.entry, capability::ENTRY),
        ] {
            self.a.mov(edi, field)?;
            self.a.mov(esi, value)?;
            self.a.mov(ecx, msr)?;
            self.call(self.routines.control)?;
        }
        self.vmwrites(&[
            (field::EPT_POINTER, tables::EPT_POINTER),
            (field::VPID, 1),
            (field::IO_BITMAP_A, map::IO_BITMAP_A),
            (field::IO_BITMAP_B, map::IO_BITMAP_B),
            (field::MSR_BITMAP, map::MSR_BITMAP),
        ])
    }

    /// Writes constants to VMCS fields.
    pub fn vmwrites(&mut self, fields: &[(u32, u64)]) -> Built {
        let label = self.a.create_label();
        self.a.lea(rsi, ptr(label))?;
        self.a.mov(ecx, fields.len() as u32)?;
        let bytes = fields
            .iter()
            .flat_map(|(field, value)| [u64::from(*field), *value])
            .flat_map(u64::to_le_bytes)
            .collect();
        self.tables.push((label, bytes));
        self.call(self.routines.vmwrite_table)
    }

    /// Writes a constant to one VMCS field.
    pub fn vmwrite(&mut self, field: u32, value: u64) -> Built {
        self.vmwrites(&[(field, value)])
    }

    /// Enters L2; the outcome is in [`map::RESULT`].
    pub fn run(&mut self) -> Built {
        self.call(self.routines.run)
    }

    /// Enters L2 and goes on only if it comes back with exit reason `expected`. Reports the reason and
    /// the exit-information fields that mean something for it.
    pub fn run_until(&mut self, expected: u32) -> Built {
        self.run()?;
        self.a.mov(ecx, expected)?;
        self.call(self.routines.expect)?;
        for field in exit_information(expected) {
            self.report_field(*field)?;
        }
        Ok(())
    }

    /// Enters L2, which must fail before L2's state is loaded: VMfailInvalid (0) or VMfailValid with
    /// this VM-instruction error.
    pub fn run_fails(&mut self, error: u32) -> Built {
        self.run()?;
        self.a.mov(ecx, error)?;
        self.call(self.routines.expect_entry_failure)
    }

    /// Moves L2's RIP behind the instruction that exited.
    pub fn skip_instruction(&mut self) -> Built {
        self.a.mov(ecx, field::EXIT_INSTRUCTION_LENGTH)?;
        self.a.vmread(rax, rcx)?;
        self.a.mov(ecx, field::GUEST_RIP)?;
        self.a.vmread(rdx, rcx)?;
        self.a.add(rax, rdx)?;
        self.a.vmwrite(rcx, rax)?;
        Ok(())
    }

    /// Sets a register of L2.
    pub fn set_l2(&mut self, register: L2Register, value: u64) -> Built {
        self.a.mov(rax, value)?;
        self.a.mov(qword_ptr(register.address()), rax)?;
        Ok(())
    }

    /// Goes on only if a register of L2 has this value (low 32 bits); reports it.
    pub fn expect_l2(&mut self, register: L2Register, value: u32) -> Built {
        self.expect_memory(register.address(), value)
    }

    /// Adds 64-bit code of L2 and gives its address.
    pub fn l2(
        &mut self,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Built<u64> {
        let mut a = CodeAssembler::new(64)?;
        code(&mut a)?;
        let address = self.next_l2;
        let bytes = a.assemble(address)?;
        self.next_l2 = (address + bytes.len() as u64).next_multiple_of(16);
        self.chunks.push((address, bytes));
        Ok(address)
    }

    /// Adds code for another mode: `bits` 16 or 32, assembled for `ip`, at physical `address`.
    pub fn code(
        &mut self,
        bits: u32,
        address: u64,
        ip: u64,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Built {
        let mut a = CodeAssembler::new(bits)?;
        code(&mut a)?;
        self.chunks.push((address, a.assemble(ip)?));
        Ok(())
    }

    /// Sets the EPT entry of page `page` of [`map::SCRATCH`].
    pub fn ept_entry(&mut self, page: u64, entry: u64) -> Built {
        self.a.mov(rax, entry)?;
        self.a
            .mov(qword_ptr(map::EPT_SCRATCH_TABLE + 8 * page), rax)?;
        Ok(())
    }

    /// INVEPT of one context (type 1) or all (type 2), for EPT pointer `pointer`; ends like
    /// `expected`, as in [`Program::vmx`].
    pub fn invept(&mut self, kind: u64, pointer: u64, expected: i32) -> Built {
        self.descriptor(pointer, 0)?;
        self.a.mov(rax, kind)?;
        self.vmx(expected, |a| a.invept(rax, xmmword_ptr(map::DESCRIPTOR)))
    }

    /// INVVPID of type `kind` for `vpid` and `linear`; ends like `expected`.
    pub fn invvpid(&mut self, kind: u64, vpid: u64, linear: u64, expected: i32) -> Built {
        self.descriptor(vpid, linear)?;
        self.a.mov(rax, kind)?;
        self.vmx(expected, |a| a.invvpid(rax, xmmword_ptr(map::DESCRIPTOR)))
    }

    fn descriptor(&mut self, low: u64, high: u64) -> Built {
        for (offset, value) in [(0, low), (8, high)] {
            self.a.mov(rax, value)?;
            self.a.mov(qword_ptr(map::DESCRIPTOR + offset), rax)?;
        }
        Ok(())
    }

    /// Writes 64 bits of memory.
    pub fn store(&mut self, address: u64, value: u64) -> Built {
        self.a.mov(rax, value)?;
        self.a.mov(qword_ptr(address), rax)?;
        Ok(())
    }

    /// Writes an MSR of L1.
    pub fn wrmsr(&mut self, msr: u32, value: u64) -> Built {
        self.a.mov(ecx, msr)?;
        self.a.mov(eax, value as u32)?;
        self.a.mov(edx, (value >> 32) as u32)?;
        self.a.wrmsr()?;
        Ok(())
    }

    /// Lets L1 take one waiting interrupt: IF is 1 for the length of a NOP.
    pub fn take_interrupt(&mut self) -> Built {
        self.a.sti()?;
        self.a.nop()?;
        self.a.cli()?;
        Ok(())
    }

    /// Puts L1's local APIC into x2APIC mode and enables it; skips the guest if there is none.
    pub fn enable_x2apic(&mut self) -> Built {
        self.a.mov(eax, 1)?;
        self.a.cpuid()?;
        self.a.mov(edx, ecx)?;
        // ECX bit 21: x2APIC; bit 24: TSC deadline. RBX was changed by CPUID.
        self.a.xor(ebx, ebx)?;
        self.require_bits(1 << 21 | 1 << 24, "x2APIC with TSC deadline")?;
        self.a.mov(ecx, 0x1b)?;
        self.a.rdmsr()?;
        self.a.or(eax, 0xc00)?;
        self.a.wrmsr()?;
        self.wrmsr(0x80f, 0x1ff)?;
        self.a.mov(dword_ptr(map::HAS_X2APIC), 1)?;
        Ok(())
    }

    /// Calls an address.
    pub fn call(&mut self, address: u64) -> Built {
        self.a.call(address)?;
        Ok(())
    }

    /// The name of the guest.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

fn fits(part: &'static str, size: u64, room: u64) -> Built {
    if size > room {
        return Err(BuildError::TooBig { part, size, room });
    }
    Ok(())
}

/// The exit-information fields that the SDM defines for a reason (Vol. 3C "Recording VM-Exit
/// Information and Updating VM-entry Control Fields"), beside the RIP.
fn exit_information(exit_reason: u32) -> &'static [u32] {
    use field::*;
    match exit_reason {
        reason::EXCEPTION_OR_NMI => &[
            EXIT_QUALIFICATION,
            GUEST_RIP,
            EXIT_INTERRUPTION,
            EXIT_ERROR_CODE,
            IDT_VECTORING,
        ],
        // Reported as it is only with "acknowledge interrupt on exit".
        reason::EXTERNAL_INTERRUPT => &[GUEST_RIP, EXIT_INTERRUPTION, IDT_VECTORING],
        reason::EPT_VIOLATION => &[
            EXIT_QUALIFICATION,
            GUEST_RIP,
            GUEST_PHYSICAL,
            GUEST_LINEAR,
            IDT_VECTORING,
        ],
        reason::EPT_MISCONFIGURATION => &[GUEST_RIP, GUEST_PHYSICAL],
        reason::FAILED_GUEST_STATE | reason::FAILED_MSR_LOAD => &[EXIT_QUALIFICATION],
        reason::TRIPLE_FAULT
        | reason::INTERRUPT_WINDOW
        | reason::NMI_WINDOW
        | reason::MTF
        | reason::PREEMPTION_TIMER => &[GUEST_RIP, GUEST_INTERRUPTIBILITY],
        reason::VMREAD | reason::VMWRITE | reason::VMXON | reason::GDTR_IDTR | reason::LDTR_TR => &[
            EXIT_QUALIFICATION,
            GUEST_RIP,
            EXIT_INSTRUCTION_LENGTH,
            EXIT_INSTRUCTION_INFORMATION,
        ],
        _ => &[EXIT_QUALIFICATION, GUEST_RIP, EXIT_INSTRUCTION_LENGTH],
    }
}
