//! System-management mode with the default treatment of SMIs and RSM (SDM Vol. 3C "System Management Mode",
//! "Default Treatment of SMI Delivery", "Default Treatment of RSM").
//!
//! SMRAM is ordinary RAM here. The dual-monitor treatment is not offered.

pub mod map;
#[cfg(test)]
mod tests;

use crate::addr::L1Phys;
use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::memory::{GuestMemory, NotRam};
use crate::nested::SmmFlags;
use crate::personality::Difference;
use crate::vmx::capability::Capability;
use crate::vmx::entry;
use crate::vmx::exit::{self, Left};
use crate::x86::control::{cr0, cr4, rflags};
use crate::x86::cr_write::{is_legal, is_unrestricted};
use crate::x86::{AccessRights, DescriptorTable, Segment};
use map::{Image, Item, Map, settle_long_mode};

/// RIP of the first instruction, in a segment whose base is SMBASE.
const ENTRY: u64 = 0x8000;
/// DR7 in SMM.
const DR7: u64 = 0x400;
/// Access rights of every segment in SMM: present, accessed, writable, 4-KiB granularity (SDM Vol. 3C
/// "Initial SMM Execution Environment").
const SEGMENT: AccessRights = AccessRights::from_bits_retain(0x8093);

/// Whether an SMI that waits has to go on waiting (SDM Vol. 3C "System Management Interrupt (SMI)", "SMIs
/// and the wait-for-SIPI state": in SMM and in wait-for-SIPI they are blocked).
#[must_use]
pub fn blocks_smi(cpu: &Cpu) -> bool {
    cpu.smm || cpu.activity == Activity::WaitForSipi
}

/// Takes an SMI: saves the state in SMRAM, leaves VMX operation, enters SMM. `Some` is what is left to do
/// after L2 was left the way KVM does it.
///
/// "Default Treatment of SMI Delivery": VMX operation is saved inside the processor. Here that is
/// [`crate::vmx::VmxState`] with the flags that `KVM_GET_NESTED_STATE` has for it, so a capture holds it; L2's
/// state goes into the cached vmcs12, where no guest can see it before the next VM exit.
pub fn enter(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Option<Left> {
    cpu.smi_pending = false;
    let base = cpu.msrs.smbase;
    let image = Map::of(&cpu.model).save(cpu);
    // A page that is gone swallows the write.
    let _ = image.write(memory, L1Phys(base));
    let left = suspend_vmx(cpu, memory);
    cpu.smm_inside_nmi = cpu.interruptibility.contains(Interruptibility::NMI);
    cpu.smm = true;
    cpu.interruptibility = Interruptibility::NMI;
    cpu.activity = Activity::Active;
    cpu.pending_debug = 0;
    cpu.regs.rflags = rflags::FIXED;
    cpu.regs.rip = ENTRY;
    cpu.debug.dr7 = DR7;
    let sregs = &mut cpu.sregs;
    sregs.cr0 &= !(cr0::PE | cr0::EM | cr0::TS | cr0::PG);
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs.pdptrs_valid = false;
    // Not in the SDM's table; KVM and Bochs have it so.
    sregs.idtr = DescriptorTable::default();
    let segment = |selector, base| Segment {
        selector,
        base,
        limit: u32::MAX,
        ar: SEGMENT,
    };
    sregs.cs = segment((base >> 4) as u16, base);
    for data in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *data = segment(0, 0);
    }
    left
}

/// Leaves VMX operation and notes what it was.
fn suspend_vmx(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Option<Left> {
    if !cpu.vmx.is_on() {
        return None;
    }
    let mut flags = SmmFlags::VMXON;
    let mut left = None;
    if cpu.vmx.guest_mode {
        flags |= SmmFlags::GUEST_MODE;
        exit::save_guest_state(cpu);
        // The VMX-preemption timer counts on (SDM Vol. 3C "VMX-Preemption Timer").
        let deadline = cpu.vmx.preemption_timer_deadline;
        if cpu.model.as_kvm(Difference::SmiInL2) {
            left = Some(exit::leave_nested(cpu, memory));
            exit::restore_nmi_blocking(cpu);
        }
        cpu.vmx.preemption_timer_deadline = deadline;
        cpu.vmx.guest_mode = false;
        cpu.vmx.run_pending = false;
    }
    cpu.vmx.smm_flags = flags.bits();
    left
}

/// Why RSM ends in the shutdown state (SDM Vol. 3C "Exiting from SMM").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown;

impl From<NotRam> for Shutdown {
    fn from(_: NotRam) -> Self {
        Self
    }
}

/// RSM in SMM. The PDPTEs of PAE paging are to be read before the next instruction.
pub fn resume(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Result<(), Shutdown> {
    let map = Map::of(&cpu.model);
    let mut image = Image::read(memory, L1Phys(cpu.msrs.smbase))?;
    let flags = SmmFlags::from_bits_retain(std::mem::take(&mut cpu.vmx.smm_flags));
    cpu.smm = false;
    let inside_nmi = std::mem::take(&mut cpu.smm_inside_nmi);
    cpu.interruptibility.set(Interruptibility::NMI, inside_nmi);
    cpu.activity = Activity::Active;
    let as_kvm = cpu.model.as_kvm(Difference::SmiInL2);
    if flags.contains(SmmFlags::GUEST_MODE) {
        cpu.vmx.guest_mode = true;
        if as_kvm {
            // KVM enters L2 from its vmcs12, and what SMRAM holds goes on top.
            entry::resume_from_nested_state(cpu).map_err(|_| Shutdown)?;
            cpu.vmx.run_pending = true;
            cpu.vmx.l1_nmi_blocked = inside_nmi;
        }
    }
    map.load(cpu, &mut image);
    if !as_kvm {
        // Software cannot turn VMX on through SMRAM.
        if cpu.sregs.cr4 & cr4::VMXE != 0 {
            return Err(Shutdown);
        }
        if map.value(&mut image, Item::Vmxe) != 0 {
            cpu.sregs.cr4 |= cr4::VMXE;
        }
        if cpu.vmx.is_on() {
            fix_for_vmx(cpu);
        }
    }
    settle_long_mode(cpu);
    if is_legal(cpu) { Ok(()) } else { Err(Shutdown) }
}

/// "Default Treatment of RSM": bits of CR0 and CR4 that VMX operation fixes, and the privilege level.
fn fix_for_vmx(cpu: &mut Cpu) {
    let is_unrestricted = cpu.vmx.guest_mode && is_unrestricted(cpu);
    let capability = Capability::from(&*cpu.model);
    let mut fixed = capability.cr0().adjust(cpu.sregs.cr0);
    if is_unrestricted {
        const FREE: u64 = cr0::PE | cr0::PG;
        fixed = fixed & !FREE | cpu.sregs.cr0 & FREE;
    }
    cpu.sregs.cr0 = fixed;
    cpu.sregs.cr4 = capability.cr4().adjust(cpu.sregs.cr4);
    if cpu.regs.rflags & rflags::VM == 0 && !is_unrestricted {
        let privilege = u16::from(cpu.cpl());
        for segment in [&mut cpu.sregs.cs, &mut cpu.sregs.ss] {
            segment.selector = segment.selector & !3 | privilege;
        }
    }
}
