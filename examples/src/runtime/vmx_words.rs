//! The words of [`Program`] that are about VMX: operation, the VMCS, entries and expected exits.

use super::program::{Built, Controls, L2Register, Program};
use super::vmcs::{capability, entry_control, exit_control, field, primary, reason};
use super::{map, standard, tables};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

impl Program {
    /// VMXON.
    pub fn enable_vmx(&mut self) -> Built {
        self.enable_vmx_at(map::VMXON)
    }

    /// VMXON with another region.
    pub fn enable_vmx_at(&mut self, region: u64) -> Built {
        self.write_revision(region, 0)?;
        self.point_to(region)?;
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
}

/// The exit-information fields that the SDM defines for a reason (Vol. 3C "Recording VM-Exit
/// Information and Updating VM-entry Control Fields"), with L2's RIP and, where nothing else says what
/// was blocked, its interruptibility.
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
        reason::VMREAD | reason::VMWRITE | reason::VMXON | reason::GDTR_IDTR | reason::LDTR_TR => {
            &[
                EXIT_QUALIFICATION,
                GUEST_RIP,
                EXIT_INSTRUCTION_LENGTH,
                EXIT_INSTRUCTION_INFORMATION,
            ]
        }
        _ => &[
            EXIT_QUALIFICATION,
            GUEST_RIP,
            EXIT_INSTRUCTION_LENGTH,
            GUEST_INTERRUPTIBILITY,
        ],
    }
}
