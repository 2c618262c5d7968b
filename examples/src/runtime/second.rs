//! A second processor: how it starts, and how the two wait for each other (SDM Vol. 3A
//! "Multiple-Processor (MP) Initialization").
//!
//! Both run code of one program with the same linear addresses. Variables, stacks and the page of the
//! GDT are pages of its own for each, by page tables of its own, so the words of [`Program`] serve both.

use super::program::{Built, Program};
use super::vmcs::field;
use super::{entry, map, map::selector, tables};
use iced_x86::code_asm::*;

/// Interrupt command: delivery modes, asserted.
pub mod command {
    /// An interrupt with the vector in the low bits.
    pub const FIXED: u32 = 1 << 14;
    /// Non-maskable interrupt.
    pub const NMI: u32 = 1 << 14 | 4 << 8;
    /// INIT.
    pub const INIT: u32 = 1 << 14 | 5 << 8;
    /// Start-up, with the vector in the low bits.
    pub const STARTUP: u32 = 1 << 14 | 6 << 8;
}

/// Start-up IPIs that are sent before the other processor counts as absent.
const TRIES: u32 = 10_000;

/// From real mode at [`map::TRAMPOLINE`] to [`map::SECOND_32`].
fn trampoline() -> Vec<u8> {
    let mut code = vec![
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x66, 0x0f, 0x01, 0x16, // lgdt of 32 bits, its operand behind the code
    ];
    const LENGTH: u16 = 27;
    code.extend((map::TRAMPOLINE as u16 + LENGTH).to_le_bytes());
    code.extend([
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0c, 0x01, // or al, 1: PE
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0x66, 0xea, // jmp far
    ]);
    code.extend((map::SECOND_32 as u32).to_le_bytes());
    code.extend(selector::CODE_32.to_le_bytes());
    debug_assert_eq!(code.len(), usize::from(LENGTH));
    code.extend(tables::table_pointer(tables::GDT_LIMIT, map::GDT));
    code
}

impl Program {
    /// Adds `script` as what the second processor does each time it starts.
    pub fn second_processor(&mut self, script: impl FnOnce(&mut Self) -> Built) -> Built {
        let trampoline = trampoline();
        let length = trampoline.len() as u32;
        self.chunks.extend([
            (map::TRAMPOLINE_CODE, trampoline),
            (map::GDT_SECOND, tables::descriptor_page()),
            (map::PAGING_SECOND, tables::paging_second()),
        ]);
        self.zeroed.extend([
            (map::VMXON_SECOND, map::GDT_SECOND),
            (map::OWN_SECOND, map::SECOND_END),
        ]);
        self.code(32, map::SECOND_32, map::SECOND_32, |a| {
            a.mov(eax, u32::from(selector::DATA))?;
            a.mov(ds, eax)?;
            a.mov(ss, eax)?;
            // Nothing is pushed before paging leads to this processor's own stack.
            a.mov(esp, map::STACK_L1 as u32)?;
            Ok(())
        })?;
        let mut a = CodeAssembler::new(32)?;
        entry::turn_on_paging(&mut a, map::PAGING_SECOND)?;
        // The start before this one left its TSS busy: available.
        let rights = map::GDT + u64::from(selector::TSS_L1) + 5;
        a.mov(byte_ptr(rights as u32), 0x89)?;
        a.push(u32::from(selector::CODE))?;
        a.push(dword_ptr(map::SECOND_ENTRY as u32))?;
        a.retf()?;
        if let Some((address, bytes)) = self.chunks.last_mut() {
            let rest = a.assemble(*address + bytes.len() as u64)?;
            bytes.extend(rest);
        }

        let [mut start, mut over] = [self.a.create_label(), self.a.create_label()];
        self.a.lea(rax, ptr(start))?;
        self.a.mov(qword_ptr(map::SECOND_ENTRY), rax)?;
        self.a.mov(esi, map::TRAMPOLINE_CODE as u32)?;
        self.a.mov(edi, map::TRAMPOLINE as u32)?;
        self.a.mov(ecx, length)?;
        self.a.rep().movsb()?;
        self.a.jmp(over)?;
        self.a.set_label(&mut start)?;
        entry::long_mode(&mut self.a)?;
        script(self)?;
        self.a.set_label(&mut over)?;
        self.a.zero_bytes()?;
        Ok(())
    }

    /// A VMCS of the second processor, as [`Program::fresh_vmcs`].
    pub fn fresh_vmcs_of_second(&mut self, l2: u64, controls: super::program::Controls) -> Built {
        self.fresh_vmcs_at(map::VMCS_SECOND, l2, controls)?;
        self.vmwrites(&[
            (field::HOST_CR3, map::PAGING_SECOND),
            (field::GUEST_CR3, map::PAGING_SECOND),
        ])
    }

    /// Sends an interrupt command to a processor.
    pub fn send(&mut self, processor: u32, command: u32) -> Built {
        self.wrmsr(0x830, u64::from(processor) << 32 | u64::from(command))
    }

    /// Says that this processor has come to `step`; steps go up.
    pub fn tell(&mut self, step: u32) -> Built {
        self.a.mov(dword_ptr(map::STEP), step as i32)?;
        Ok(())
    }

    /// Waits until the other processor, or its L2, has come to `step` or further.
    pub fn wait_for(&mut self, step: u32) -> Built {
        let mut wait = self.a.create_label();
        self.a.set_label(&mut wait)?;
        self.a.pause()?;
        self.a.cmp(dword_ptr(map::STEP), step as i32)?;
        self.a.jb(wait)?;
        Ok(())
    }

    /// Sends start-up IPIs with `vector` to the second processor until the 32 bits at `address` are `value`
    /// or more: one that comes too early is lost. Skips the guest if nobody answers.
    pub fn start_up_until(&mut self, vector: u32, address: u64, value: u32) -> Built {
        let [mut again, mut answered] = [self.a.create_label(), self.a.create_label()];
        self.a.mov(ebx, TRIES)?;
        self.a.set_label(&mut again)?;
        self.a.zero_bytes()?;
        self.send(1, command::STARTUP | vector)?;
        self.a.pause()?;
        self.a.cmp(dword_ptr(address), value as i32)?;
        self.a.jae(answered)?;
        self.a.dec(ebx)?;
        self.a.jne(again)?;
        self.skip("second processor: --smp 2 gives one")?;
        self.a.set_label(&mut answered)?;
        self.a.xor(ebx, ebx)?;
        Ok(())
    }
}
