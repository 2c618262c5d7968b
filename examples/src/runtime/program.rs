//! The vocabulary that a guest is written in: L1 as a script of entries and expected exits.
//!
//! L1's registers: R15 is the iteration, RBX, RBP and R12 to R14 are the guest's own; every other
//! register may change with each word. Values that depend on time never stay in a register or in
//! memory, so that two machines can be compared at each [`Program::checkpoint`].

use super::routines::{self, Routines, Strings, exit_code};
use super::vmcs::{capability, pin};
use super::{BuildError, Params, entry, handlers, map, tables};
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
    pub(super) routines: Routines,
    pub(super) chunks: Vec<(u64, Vec<u8>)>,
    pub(super) zeroed: Vec<(u64, u64)>,
    strings: Strings,
    pub(super) tables: Vec<(CodeLabel, Vec<u8>)>,
    next_l2: u64,
    iteration: CodeLabel,
}

pub(super) type Built<T = ()> = Result<T, BuildError>;

impl Program {
    /// Starts a guest: 64-bit mode, VMXON done, at the head of the loop over iterations.
    pub fn new(name: &'static str, params: Params) -> Built<Self> {
        Self::bare(name, params, |program| {
            program.enable_vmx()?;
            Ok(())
        })
    }

    /// As [`Program::new`], for an L1 that has its x2APIC and wants to hear of L2's interrupts and NMIs.
    pub fn with_x2apic(name: &'static str, params: Params) -> Built<Self> {
        Self::bare(name, params, |p| {
            p.require(
                capability::PIN,
                pin::EXTERNAL_INTERRUPT | pin::NMI,
                "external-interrupt exiting",
            )?;
            p.enable_x2apic()?;
            p.enable_vmx()
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
            zeroed: vec![
                (map::ZEROED, map::EPT),
                (map::VARS, map::ZEROED_END),
                (map::SCRATCH, map::SCRATCH + 0x1_0000),
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
        // Bochs 2.7 keeps NMIs blocked from one guest to the next, until an IRET: start from the same.
        program.unblock_nmis()?;
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
        fits(
            "L2 code",
            self.next_l2 - map::L2_CODE,
            map::L2_OTHER_CODE - map::L2_CODE,
        )?;
        self.chunks.push((map::L1_CODE, code));
        self.chunks.sort_by_key(|(address, _)| *address);
        for pair in self.chunks.windows(2) {
            fits(
                "a part of the image",
                pair[0].1.len() as u64,
                pair[1].0 - pair[0].0,
            )?;
        }
        Ok(Image {
            entry: entry::ENTRY_POINT as u32,
            chunks: self
                .chunks
                .into_iter()
                .map(|(address, bytes)| (address as u32, bytes))
                .collect(),
            zeroed: self
                .zeroed
                .into_iter()
                .map(|(start, end)| (start as u32, (end - start) as u32))
                .collect(),
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
    /// to be 1 (its high half).
    pub fn require(&mut self, msr: u32, bits: u32, what: &str) -> Built {
        self.a.mov(ecx, msr)?;
        self.a.rdmsr()?;
        self.require_bits(bits, what)
    }

    /// Jumps to `without` unless capability MSR `msr` allows every bit of `bits` to be 1.
    pub fn jump_unless(&mut self, msr: u32, bits: u32, without: CodeLabel) -> Built {
        self.a.mov(ecx, msr)?;
        self.a.rdmsr()?;
        self.a.and(edx, bits as i32)?;
        self.a.cmp(edx, bits as i32)?;
        self.a.jne(without)?;
        Ok(())
    }

    /// Ends the run with success: there is no `what`.
    pub(super) fn skip(&mut self, what: &str) -> Built {
        self.print(&format!("skipped: no {what}\n"))?;
        self.end(exit_code::SUCCESS)
    }

    fn require_bits(&mut self, bits: u32, what: &str) -> Built {
        let mut present = self.a.create_label();
        self.a.and(edx, bits as i32)?;
        self.a.cmp(edx, bits as i32)?;
        self.a.je(present)?;
        self.skip(what)?;
        self.a.set_label(&mut present)?;
        self.a.xor(eax, eax)?;
        self.a.xor(edx, edx)?;
        Ok(())
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

    /// Executes an IRET to the next instruction, which ends blocking by NMI (SDM Vol. 3A "Handling
    /// Multiple NMIs"). Bochs 2.7 also needs it where VM entry alone should do: its mask of virtual NMIs
    /// outlives the guest that set it.
    pub fn unblock_nmis(&mut self) -> Built {
        let mut after = self.a.create_label();
        self.a.mov(rcx, rsp)?;
        self.a.push(i32::from(map::selector::DATA))?;
        self.a.push(rcx)?;
        self.a.pushfq()?;
        self.a.push(i32::from(map::selector::CODE))?;
        self.a.lea(rax, ptr(after))?;
        self.a.push(rax)?;
        self.a.iretq()?;
        self.a.set_label(&mut after)?;
        self.a.xor(eax, eax)?;
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
