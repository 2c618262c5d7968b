//! Writes of control registers by instructions (SDM Vol. 3A "Control Registers" and "Initializing
//! IA-32e Mode", Vol. 2 "MOV -- Move to/from Control Registers", Vol. 3C "Restrictions on VMX
//! Operation").
//!
//! Privilege and exits of L2 are the caller's to check first. In L2 the bits that L1 owns by its
//! guest/host masks keep their value. Where silicon ignores a bit, it is dropped; where KVM and the
//! SDM differ, a comment says so.

use crate::addr::L2Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::vmx::Field;
use crate::vmx::controls::{Primary, Secondary};
use crate::vmx::ept::{self, Ept, EptAccess, EptFault};
use crate::x86::control::{cr0, cr4, efer};
use crate::x86::cpuid::CpuidEntry;
use crate::x86::{Exception, cpuid, msr};

/// What a write of a control register asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CrEffect {
    /// Translations that are not global are stale.
    pub flush: bool,
    /// Global translations are stale too.
    pub flush_global: bool,
    /// Bits changed that paging or the execution mode depends on: rebuild what is derived from them.
    pub mode_changed: bool,
}

impl CrEffect {
    const ALL: Self = Self {
        flush: true,
        flush_global: true,
        mode_changed: true,
    };
}

/// Why a write of a control register failed. The processor is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrFault {
    /// #GP(0).
    Exception(Exception),
    /// The load of PDPTEs met L1's EPT.
    Ept(EptFault),
}

impl From<EptFault> for CrFault {
    fn from(fault: EptFault) -> Self {
        Self::Ept(fault)
    }
}

const GP: CrFault = CrFault::Exception(Exception::GENERAL_PROTECTION);

const fn require(condition: bool) -> Result<(), CrFault> {
    if condition { Ok(()) } else { Err(GP) }
}

/// Bits of CR0 that exist; the others of the low half are ignored.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// MOV to CR0. `ept` is L2's second stage, if L2 runs with one: PDPTEs are read through it.
pub fn write_cr0<M: GuestMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &M,
    ept: Option<&Ept>,
    value: u64,
) -> Result<CrEffect, CrFault> {
    let old = cpu.sregs.cr0;
    require(value >> 32 == 0)?;
    let mut value = value & CR0_BITS | cr0::ET;
    if cpu.vmx.guest_mode {
        value = merge(cpu, Field::CR0_GUEST_HOST_MASK, old, value);
    }
    let sregs = &cpu.sregs;
    require(value & cr0::NW == 0 || value & cr0::CD != 0)?;
    require(value & cr0::PG == 0 || value & cr0::PE != 0)?;
    require(value & cr0::WP != 0 || sregs.cr4 & cr4::CET == 0)?;
    require(cr0_is_fixed(cpu, value))?;

    let pages = value & cr0::PG != 0;
    let paged = old & cr0::PG != 0;
    let mut new_efer = sregs.efer;
    if pages && !paged && sregs.efer & efer::LME != 0 {
        // SDM Vol. 3A "Initializing IA-32e Mode": PAE first, and not from a 64-bit code segment.
        require(sregs.cr4 & cr4::PAE != 0)?;
        require(!sregs.cs.ar.contains(crate::x86::AccessRights::LONG))?;
        new_efer |= efer::LMA;
    }
    if !pages {
        require(sregs.cr4 & cr4::PCIDE == 0)?;
        // From 64-bit mode there is no way straight out of paging.
        require(!cpu.in_64_bit_mode() || !paged)?;
        new_efer &= !efer::LMA;
    }

    let pae = pages && sregs.cr4 & cr4::PAE != 0 && new_efer & efer::LMA == 0;
    let pdptrs = if pae && (old ^ value) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
        Some(load_pdptrs(cpu, memory, ept, sregs.cr3)?)
    } else {
        None
    };
    let sregs = &mut cpu.sregs;
    sregs.cr0 = value;
    sregs.efer = new_efer;
    sregs.pdptrs_valid = pae;
    if let Some(pdptrs) = pdptrs {
        sregs.pdptrs = pdptrs;
    }
    let changed = old ^ value;
    Ok(if changed & (cr0::PG | cr0::PE) != 0 {
        CrEffect::ALL
    } else if changed & cr0::WP != 0 {
        CrEffect {
            flush: true,
            flush_global: true,
            mode_changed: true,
        }
    } else {
        CrEffect::default()
    })
}

/// MOV to CR3.
pub fn write_cr3<M: GuestMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &M,
    ept: Option<&Ept>,
    value: u64,
) -> Result<CrEffect, CrFault> {
    let sregs = &cpu.sregs;
    let mut value = value;
    let mut keep = false;
    if sregs.cr4 & cr4::PCIDE != 0 {
        // Bit 63 asks to keep cached translations; it is not stored.
        keep = value >> 63 != 0;
        value &= !(1 << 63);
    }
    require(value >> width(cpu) == 0)?;
    let pae = sregs.cr0 & cr0::PG != 0 && sregs.cr4 & cr4::PAE != 0 && sregs.efer & efer::LMA == 0;
    if pae {
        let pdptrs = load_pdptrs(cpu, memory, ept, value)?;
        cpu.sregs.pdptrs = pdptrs;
        cpu.sregs.pdptrs_valid = true;
    }
    cpu.sregs.cr3 = value;
    Ok(CrEffect {
        flush: !keep,
        flush_global: false,
        mode_changed: false,
    })
}

/// MOV to CR4.
pub fn write_cr4<M: GuestMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &M,
    ept: Option<&Ept>,
    value: u64,
) -> Result<CrEffect, CrFault> {
    let old = cpu.sregs.cr4;
    let mut value = value;
    if cpu.vmx.guest_mode {
        value = merge(cpu, Field::CR4_GUEST_HOST_MASK, old, value);
    }
    let sregs = &cpu.sregs;
    let changed = old ^ value;
    require(value & !allowed_cr4(&cpu.model.cpuid) == 0)?;
    require(cr4_is_fixed(cpu, value))?;
    // SDM Vol. 3C "SMM and VMX": VMXE cannot be set in SMM.
    require(value & cr4::VMXE == 0 || !cpu.smm)?;
    require(value & cr4::CET == 0 || sregs.cr0 & cr0::WP != 0)?;
    if sregs.efer & efer::LMA != 0 {
        require(value & cr4::PAE != 0)?;
        require(changed & cr4::LA57 == 0)?;
    }
    if value & cr4::PCIDE != 0 && old & cr4::PCIDE == 0 {
        require(sregs.efer & efer::LMA != 0)?;
        require(sregs.cr3 & 0xfff == 0)?;
    }
    let pae = sregs.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && sregs.efer & efer::LMA == 0;
    let reload = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    let pdptrs = if pae && changed & reload != 0 {
        Some(load_pdptrs(cpu, memory, ept, sregs.cr3)?)
    } else {
        None
    };
    let sregs = &mut cpu.sregs;
    sregs.cr4 = value;
    sregs.pdptrs_valid = pae;
    if let Some(pdptrs) = pdptrs {
        sregs.pdptrs = pdptrs;
    }
    let paging = cr4::PSE
        | cr4::PAE
        | cr4::PGE
        | cr4::PCIDE
        | cr4::LA57
        | cr4::SMEP
        | cr4::SMAP
        | cr4::PKE
        | cr4::CET;
    Ok(if changed & paging != 0 {
        CrEffect::ALL
    } else {
        CrEffect {
            mode_changed: changed != 0,
            ..CrEffect::default()
        }
    })
}

/// MOV to CR8: the task priority. The caller tells the APIC ([`crate::apic::Apic::set_cr8`]), or, for
/// L2 with a TPR shadow, the virtual-APIC page instead.
pub fn write_cr8(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    if value > 15 {
        return Err(Exception::GENERAL_PROTECTION);
    }
    cpu.sregs.cr8 = value;
    Ok(())
}

/// LMSW: writes MP, EM and TS, and can set PE but not clear it.
pub fn lmsw<M: GuestMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &M,
    ept: Option<&Ept>,
    source: u16,
) -> Result<CrEffect, CrFault> {
    let loaded = cr0::MP | cr0::EM | cr0::TS;
    let source = u64::from(source);
    let value = cpu.sregs.cr0 & !loaded | source & (loaded | cr0::PE);
    write_cr0(cpu, memory, ept, value)
}

/// CLTS, where L1 does not own CR0.TS (see [`crate::vmx::intercepts::Clts`]).
pub fn clts(cpu: &mut Cpu) {
    cpu.sregs.cr0 &= !cr0::TS;
}

/// Whether bits 63 to `width - 1` are all equal.
#[must_use]
pub const fn is_canonical(linear: u64, width: u8) -> bool {
    let width = if width == 0 { 1 } else { width as u32 };
    let unused = 64u32.saturating_sub(width);
    ((linear << unused) as i64 >> unused) as u64 == linear
}

/// SDM Vol. 3A "PAE Paging": reads four PDPTEs; a present one with a reserved bit set is #GP.
fn load_pdptrs<M: GuestMemory + ?Sized>(
    cpu: &Cpu,
    memory: &M,
    ept: Option<&Ept>,
    cr3: u64,
) -> Result<[u64; 4], CrFault> {
    let table = cr3 & 0xffff_ffe0;
    let mut bytes = [0; 32];
    // The table is 32-byte aligned: it does not cross a page.
    let physical = match ept {
        Some(ept) => ept::translate(memory, ept, L2Phys(table), EptAccess::PDPTES)?.physical,
        None => crate::addr::L1Phys(table),
    };
    memory.read(physical, &mut bytes).map_err(|_| GP)?;
    let (entries, _) = bytes.as_chunks::<8>();
    let reserved = !((1u64 << width(cpu)) - 1) | 0x1e6;
    let mut pdptrs = [0; 4];
    for (pdptr, entry) in pdptrs.iter_mut().zip(entries) {
        *pdptr = u64::from_le_bytes(*entry);
        require(*pdptr & 1 == 0 || *pdptr & reserved == 0)?;
    }
    Ok(pdptrs)
}

fn width(cpu: &Cpu) -> u8 {
    match cpu.model.physical_address_width {
        0 => 36,
        width => width.min(52),
    }
}

/// SDM Vol. 3C "Guest/Host Masks and Read Shadows for CR0 and CR4".
fn merge(cpu: &Cpu, mask: Field, old: u64, value: u64) -> u64 {
    let owned = cpu.vmx.vmcs12.get(mask);
    value & !owned | old & owned
}

/// SDM Vol. 3C "Restrictions on VMX Operation": bits of CR0 that VMX operation fixes.
pub(super) fn cr0_is_fixed(cpu: &Cpu, value: u64) -> bool {
    if !cpu.vmx.is_on() {
        return true;
    }
    let mut fixed0 = vmx_msr(cpu, msr::IA32_VMX_CR0_FIXED0);
    if cpu.vmx.guest_mode && is_unrestricted(cpu) {
        fixed0 &= !(cr0::PE | cr0::PG);
    }
    is_fixed(value, fixed0, vmx_msr(cpu, msr::IA32_VMX_CR0_FIXED1))
}

/// The same for CR4.
pub(super) fn cr4_is_fixed(cpu: &Cpu, value: u64) -> bool {
    !cpu.vmx.is_on()
        || is_fixed(
            value,
            vmx_msr(cpu, msr::IA32_VMX_CR4_FIXED0),
            vmx_msr(cpu, msr::IA32_VMX_CR4_FIXED1),
        )
}

/// Whether CR0, CR3, CR4 and EFER are a state that RSM may load (SDM Vol. 3C "Exiting from SMM"); with VMX
/// operation, that it allows.
pub(crate) fn is_legal(cpu: &Cpu) -> bool {
    let sregs = &cpu.sregs;
    let has = |bits| sregs.cr0 & bits == bits;
    let paging = has(cr0::PG);
    let long = paging && sregs.efer & efer::LME != 0;
    (!paging || has(cr0::PE))
        && (!has(cr0::NW) || has(cr0::CD))
        && sregs.cr0 >> 32 == 0
        && sregs.cr4 & !allowed_cr4(&cpu.model.cpuid) == 0
        && (!long || sregs.cr4 & cr4::PAE != 0)
        && (!long || sregs.cr3 >> width(cpu) == 0)
        && (long || sregs.cr4 & cr4::PCIDE == 0)
        && cr0_is_fixed(cpu, sregs.cr0)
        && cr4_is_fixed(cpu, sregs.cr4)
}

const fn is_fixed(value: u64, fixed0: u64, fixed1: u64) -> bool {
    value & fixed0 == fixed0 && value & !fixed1 == 0
}

fn vmx_msr(cpu: &Cpu, number: u32) -> u64 {
    cpu.model.vmx_msrs[(number - msr::IA32_VMX_BASIC) as usize]
}

/// Whether L1 lets L2 run without paging and protection.
#[must_use]
pub fn is_unrestricted(cpu: &Cpu) -> bool {
    let get = |field| cpu.vmx.vmcs12.get(field) as u32;
    Primary::from_bits_retain(get(Field::CPU_BASED_VM_EXEC_CONTROL))
        .contains(Primary::ACTIVATE_SECONDARY_CONTROLS)
        && Secondary::from_bits_retain(get(Field::SECONDARY_VM_EXEC_CONTROL))
            .contains(Secondary::UNRESTRICTED_GUEST)
}

/// Bits of CR4 that the processor's CPUID allows. As KVM does, bits that every 64-bit processor has
/// are not looked up.
#[must_use]
pub fn allowed_cr4(entries: &[CpuidEntry]) -> u64 {
    const ALWAYS: u64 = cr4::VME
        | cr4::PVI
        | cr4::TSD
        | cr4::DE
        | cr4::PSE
        | cr4::PAE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT;
    // Leaf, register (EAX 0 to EDX 3), bit, what it allows.
    const BY_FEATURE: &[(u32, usize, u32, u64)] = &[
        (1, 2, 5, cr4::VMXE),
        (1, 2, 6, cr4::SMXE),
        (1, 2, 17, cr4::PCIDE),
        (1, 2, 26, cr4::OSXSAVE),
        (7, 1, 0, cr4::FSGSBASE),
        (7, 1, 7, cr4::SMEP),
        (7, 1, 20, cr4::SMAP),
        (7, 2, 2, cr4::UMIP),
        (7, 2, 3, cr4::PKE),
        (7, 2, 7, cr4::CET),
        (7, 2, 16, cr4::LA57),
        (7, 2, 23, cr4::KL),
        (7, 2, 31, cr4::PKS),
        (7, 3, 5, cr4::UINTR),
        (7, 3, 20, cr4::CET),
    ];
    let basic = cpuid::lookup(entries, 1, 0);
    let extended = cpuid::lookup(entries, 7, 0);
    BY_FEATURE
        .iter()
        .fold(ALWAYS, |allowed, &(leaf, register, bit, control)| {
            let registers = if leaf == 1 { &basic } else { &extended };
            if registers[register] & 1 << bit != 0 {
                allowed | control
            } else {
                allowed
            }
        })
}

#[cfg(test)]
#[path = "cr_write_tests.rs"]
mod tests;
