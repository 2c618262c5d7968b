//! Whole groups of registers between [`Env`] and the plain structures of `nvmx_core::x86`.
//!
//! Segments change format here and nowhere else: unicorn keeps the second doubleword of the
//! descriptor, the project the VMCS's access rights (SDM Vol. 3C "Guest Register State").

use super::env::Env;
use super::ffi::{self, SegmentCache, X87Register};
use nvmx_core::x86::control::efer;
use nvmx_core::x86::{AccessRights, DebugRegs, DescriptorTable, Regs, Segment, Sregs};

/// A segment register, LDTR and TR included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentRegister {
    /// All eight, in the order of the VMCS.
    pub const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];
}

const PRESENT: u32 = 1 << 15;

/// Access rights of a descriptor's second doubleword; one that is not present is unusable.
fn rights_of_flags(flags: u32) -> AccessRights {
    let rights = AccessRights::from_descriptor_high(flags);
    if flags & PRESENT == 0 {
        rights | AccessRights::UNUSABLE
    } else {
        rights
    }
}

/// The second doubleword of a descriptor with these access rights.
fn flags_of_rights(rights: AccessRights) -> u32 {
    let flags = (rights.bits() & 0xf0ff) << 8;
    if rights.contains(AccessRights::UNUSABLE) {
        flags & !PRESENT
    } else {
        flags
    }
}

fn table_of(cache: SegmentCache) -> DescriptorTable {
    DescriptorTable {
        base: cache.base,
        limit: cache.limit as u16,
    }
}

fn cache_of(table: DescriptorTable) -> SegmentCache {
    SegmentCache {
        selector: 0,
        base: table.base,
        limit: u32::from(table.limit),
        flags: 0,
    }
}

impl Env {
    /// A segment register with its hidden part. SS of an unusable stack segment reads the current
    /// privilege level as its DPL, as VMX has it.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        let cache = match register {
            SegmentRegister::Ldtr => self.get(ffi::env::LDT),
            SegmentRegister::Tr => self.get(ffi::env::TR),
            other => self.segment_cache(other as usize),
        };
        let mut ar = rights_of_flags(cache.flags);
        if register == SegmentRegister::Tr && !ar.contains(AccessRights::UNUSABLE) {
            // LTR marks the TSS busy (SDM Vol. 2A "LTR"); unicorn does so in memory alone.
            ar |= AccessRights::WRITABLE_READABLE;
        }
        if register == SegmentRegister::Ss && ar.contains(AccessRights::UNUSABLE) {
            let dpl = AccessRights::DPL_LOW | AccessRights::DPL_HIGH;
            let level = AccessRights::from_bits_retain(u32::from(self.cpl()) << 5);
            ar = ar.difference(dpl) | level;
        }
        Segment {
            selector: cache.selector as u16,
            base: cache.base,
            limit: cache.limit,
            ar,
        }
    }

    /// Sets a segment register; CS and SS change the mode and the privilege level with it.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: &Segment) {
        self.store_segment(register, segment);
        self.refresh_hidden();
    }

    fn store_segment(&mut self, register: SegmentRegister, segment: &Segment) {
        let mut rights = segment.ar;
        if register == SegmentRegister::Tr {
            // Unicorn ends the process at a call gate if the TSS is busy; `segment` puts the bit back.
            rights.remove(AccessRights::WRITABLE_READABLE);
        }
        let cache = SegmentCache {
            selector: u32::from(segment.selector),
            base: segment.base,
            limit: segment.limit,
            flags: flags_of_rights(rights),
        };
        match register {
            SegmentRegister::Ldtr => self.put(ffi::env::LDT, cache),
            SegmentRegister::Tr => self.put(ffi::env::TR, cache),
            other => self.put_segment_cache(other as usize, cache),
        }
    }

    /// GDTR.
    #[must_use]
    pub fn gdtr(&self) -> DescriptorTable {
        table_of(self.get(ffi::env::GDT))
    }

    /// Sets GDTR.
    pub fn set_gdtr(&mut self, table: DescriptorTable) {
        self.put(ffi::env::GDT, cache_of(table));
    }

    /// IDTR.
    #[must_use]
    pub fn idtr(&self) -> DescriptorTable {
        table_of(self.get(ffi::env::IDT))
    }

    /// Sets IDTR.
    pub fn set_idtr(&mut self, table: DescriptorTable) {
        self.put(ffi::env::IDT, cache_of(table));
    }

    /// General-purpose registers, RIP, RFLAGS.
    #[must_use]
    pub fn regs(&self) -> Regs {
        Regs {
            gpr: self.gprs(),
            rip: self.rip(),
            rflags: self.rflags(),
        }
    }

    /// Sets general-purpose registers, RIP, RFLAGS.
    pub fn set_regs(&mut self, regs: &Regs) {
        self.set_gprs(&regs.gpr);
        self.set_rip(regs.rip);
        self.set_rflags(regs.rflags);
        self.refresh_hidden();
    }

    /// Fills in what the engine holds of the system registers: segments, tables, CR0, CR2, CR3, CR4
    /// and EFER. CR8, the APIC base and the PDPTEs stay as they are: they are not unicorn's.
    pub fn read_sregs(&self, sregs: &mut Sregs) {
        sregs.es = self.segment(SegmentRegister::Es);
        // The base of 64-bit code that is kept from the engine: see `write_sregs`.
        let (kept, cs) = (sregs.cs, self.segment(SegmentRegister::Cs));
        sregs.cs = cs;
        if cs.base == 0 && self.is_64_bit_code(&cs) && kept.selector == cs.selector {
            sregs.cs.base = kept.base;
        }
        sregs.ss = self.segment(SegmentRegister::Ss);
        sregs.ds = self.segment(SegmentRegister::Ds);
        sregs.fs = self.segment(SegmentRegister::Fs);
        sregs.gs = self.segment(SegmentRegister::Gs);
        sregs.ldtr = self.segment(SegmentRegister::Ldtr);
        sregs.tr = self.segment(SegmentRegister::Tr);
        sregs.gdtr = self.gdtr();
        sregs.idtr = self.idtr();
        sregs.cr0 = self.cr0();
        sregs.cr2 = self.cr2();
        sregs.cr3 = self.cr3();
        sregs.cr4 = self.cr4();
        sregs.efer = self.efer();
    }

    fn is_64_bit_code(&self, cs: &Segment) -> bool {
        self.efer() & efer::LMA != 0 && cs.ar.contains(AccessRights::LONG)
    }

    /// Sets what [`Self::read_sregs`] reads. Does not flush the TLB.
    ///
    /// RFLAGS.VM takes part in the privilege level: set [`Self::set_regs`] in any order, both
    /// refresh the mode.
    pub fn write_sregs(&mut self, sregs: &Sregs) {
        for (register, segment) in [
            (SegmentRegister::Es, &sregs.es),
            (SegmentRegister::Cs, &sregs.cs),
            (SegmentRegister::Ss, &sregs.ss),
            (SegmentRegister::Ds, &sregs.ds),
            (SegmentRegister::Fs, &sregs.fs),
            (SegmentRegister::Gs, &sregs.gs),
            (SegmentRegister::Ldtr, &sregs.ldtr),
            (SegmentRegister::Tr, &sregs.tr),
        ] {
            self.store_segment(register, segment);
        }
        // In 64-bit mode the base of CS counts as zero (SDM Vol. 3A "Segmentation in IA-32e Mode"). A VM
        // entry may bring another; unicorn would add it to RIP.
        if sregs.efer & efer::LMA != 0 && sregs.cs.ar.contains(AccessRights::LONG) {
            let flat = Segment {
                base: 0,
                ..sregs.cs
            };
            self.store_segment(SegmentRegister::Cs, &flat);
        }
        self.set_gdtr(sregs.gdtr);
        self.set_idtr(sregs.idtr);
        self.put(ffi::env::CR.index(0), sregs.cr0);
        self.put(ffi::env::CR.index(2), sregs.cr2);
        self.put(ffi::env::CR.index(3), sregs.cr3);
        self.put(ffi::env::CR.index(4), sregs.cr4);
        self.put(ffi::env::EFER, sregs.efer);
        self.refresh_hidden();
    }

    /// DR0 to DR3, DR6, DR7.
    #[must_use]
    pub fn debug_regs(&self) -> DebugRegs {
        DebugRegs {
            db: [self.dr(0), self.dr(1), self.dr(2), self.dr(3)],
            dr6: self.dr(6),
            dr7: self.dr(7),
        }
    }

    /// Sets the debug registers.
    pub fn set_debug_regs(&mut self, debug: &DebugRegs) {
        for (number, value) in (0..).zip(debug.db) {
            self.set_dr(number, value);
        }
        self.set_dr(6, debug.dr6);
        self.set_dr(7, debug.dr7);
    }

    /// x87, MMX and SSE state as the 512 bytes that FXSAVE64 writes (SDM Vol. 1 "FXSAVE Area").
    ///
    /// The last instruction and operand pointers are those that were set: translated code does not
    /// track them.
    #[must_use]
    pub fn fxsave(&self) -> [u8; 512] {
        let mut image = [0; 512];
        let top = self.get(ffi::env::FPSTT) as usize & 7;
        let status = self.get(ffi::env::FPUS) & !0x3800 | (top as u16) << 11;
        let tags = self.get(ffi::env::FPTAGS);
        let full = (0..8).fold(0u8, |bits, i| bits | u8::from(tags[i] == 0) << i);
        image[0..2].copy_from_slice(&self.get(ffi::env::FPUC).to_le_bytes());
        image[2..4].copy_from_slice(&status.to_le_bytes());
        image[4] = full;
        image[6..8].copy_from_slice(&self.get(ffi::env::FPOP).to_le_bytes());
        image[8..16].copy_from_slice(&self.get(ffi::env::FPIP).to_le_bytes());
        image[16..24].copy_from_slice(&self.get(ffi::env::FPDP).to_le_bytes());
        image[24..28].copy_from_slice(&self.get(ffi::env::MXCSR).to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for i in 0..8 {
            let register = self.get(ffi::env::FPREGS.index(top + i));
            let slot = &mut image[32 + 16 * i..][..10];
            slot[..8].copy_from_slice(&register.mantissa.to_le_bytes());
            slot[8..].copy_from_slice(&register.exponent.to_le_bytes());
        }
        for i in 0..16 {
            let value = self.get(ffi::env::XMM.index(i));
            let slot = &mut image[160 + 16 * i..][..16];
            slot[..8].copy_from_slice(&value[0].to_le_bytes());
            slot[8..].copy_from_slice(&value[1].to_le_bytes());
        }
        image
    }

    /// Sets x87, MMX and SSE state from a 512-byte FXSAVE64 image. Reserved bits of MXCSR are
    /// dropped: refusing them is FXRSTOR's, not this function's.
    pub fn set_fxsave(&mut self, image: &[u8; 512]) {
        let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let quad = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&image[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let status = half(2);
        let top = usize::from(status >> 11 & 7);
        self.put(ffi::env::FPUC, half(0));
        self.put(ffi::env::FPUS, status & !0x3800);
        self.put(ffi::env::FPSTT, top as u32);
        for i in 0..8 {
            let empty = u8::from(image[4] >> i & 1 == 0);
            self.put(ffi::env::FPTAGS.index(i), empty);
        }
        self.put(ffi::env::FPOP, half(6));
        self.put(ffi::env::FPIP, quad(8));
        self.put(ffi::env::FPDP, quad(16));
        self.put(ffi::env::MXCSR, quad(24) as u32 & MXCSR_MASK);
        for i in 0..8 {
            let register = X87Register {
                mantissa: quad(32 + 16 * i),
                exponent: half(40 + 16 * i),
            };
            self.put(ffi::env::FPREGS.index(top + i), register);
        }
        for i in 0..16 {
            let mut value = self.get(ffi::env::XMM.index(i));
            value[0] = quad(160 + 16 * i);
            value[1] = quad(168 + 16 * i);
            self.put(ffi::env::XMM.index(i), value);
        }
        // SAFETY: env is live; both derive the softfloat modes from the words just written.
        unsafe {
            ffi::update_fp_status(self.env);
            ffi::update_mxcsr_status(self.env);
        }
    }
}

/// Bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_rights_survive_the_descriptor_format() {
        for bits in [0xa09b, 0xc093, 0x008b, 0x0082, 0xf3, 0x1_0000, 0x1_c060] {
            let rights = AccessRights::from_bits_retain(bits);
            assert_eq!(
                rights_of_flags(flags_of_rights(rights)),
                rights,
                "{bits:#x}"
            );
        }
    }
}
