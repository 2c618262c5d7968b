//! Loading host state (SDM Vol. 3C "Loading Host State").

use super::{Flush, MsrEffects, VmxAbort, load_msrs};
use crate::addr::L1Phys;
use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::controls::{ExitControls, Secondary};
use crate::vmx::entry::{active_secondary, exit_controls, reload_pdptes};
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::{AccessRights, DescriptorTable, Gpr, Segment};

/// DR7 after a VM exit.
const DR7: u64 = 0x400;
/// CR0 bits that a VM exit leaves alone: NW, CD (and ET and reserved ones, which are fixed).
const CR0_KEPT: u64 = cr0::NW | cr0::CD;
/// Present, S, execute/read, accessed, 4-KiB granularity.
const CODE: AccessRights = AccessRights::from_bits_retain(0x809b);
/// Present, S, read/write, accessed, 32 bits, 4-KiB granularity.
const DATA: AccessRights = AccessRights::from_bits_retain(0xc093);
/// Present, busy 32-bit (or 64-bit) TSS.
const TASK: AccessRights = AccessRights::from_bits_retain(0x8b);
/// Limit of the host's TSS.
const TASK_LIMIT: u32 = 0x67;

/// What loading host state leaves to the caller.
pub(super) struct Loaded {
    pub(super) flush: Flush,
    pub(super) abort: Option<VmxAbort>,
    pub(super) msrs: MsrEffects,
}

/// Loads host state from the cached vmcs12. The processor is in root operation already.
pub(super) fn load(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Loaded {
    let controls = exit_controls(&cpu.vmx.vmcs12);
    let mut abort = None;
    load_control_registers(cpu, controls);
    if !reload_pdptes(cpu, memory) {
        abort = Some(VmxAbort::HostPdptes);
    }
    load_registers(cpu, controls);
    load_segments(cpu, controls);
    load_non_register_state(cpu);

    let vmcs12 = &cpu.vmx.vmcs12;
    let address = L1Phys(vmcs12.get(Field::VM_EXIT_MSR_LOAD_ADDR));
    let count = vmcs12.get32(Field::VM_EXIT_MSR_LOAD_COUNT);
    // "Operations that Invalidate Cached Mappings": without VPID both transitions drop VPID 0's.
    let flush = if active_secondary(vmcs12).contains(Secondary::ENABLE_VPID) {
        Flush::None
    } else {
        Flush::Vpid(0)
    };
    let mut msrs = MsrEffects::default();
    if load_msrs(cpu, memory, address, count, &mut msrs).is_err() {
        abort = Some(VmxAbort::LoadHostMsrs);
    }
    Loaded { flush, abort, msrs }
}

/// "Loading Host Control Registers, Debug Registers, MSRs": CR0, CR3, CR4, EFER.
fn load_control_registers(cpu: &mut Cpu, controls: ExitControls) {
    const LONG_MODE: u64 = efer::LMA | efer::LME;
    let vmcs12 = &cpu.vmx.vmcs12;
    let sregs = &mut cpu.sregs;
    let is_64_bit = controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE);
    sregs.efer = if controls.contains(ExitControls::LOAD_EFER) {
        vmcs12.get(Field::HOST_IA32_EFER)
    } else if is_64_bit {
        sregs.efer | LONG_MODE
    } else {
        sregs.efer & !LONG_MODE
    };
    sregs.cr3 = vmcs12.get(Field::HOST_CR3);
    let old_cr0 = sregs.cr0;
    sregs.cr0 = vmcs12.get(Field::HOST_CR0);
    sregs.cr4 = vmcs12.get(Field::HOST_CR4);
    if !cpu.model.as_kvm(Difference::ExitCr) {
        sregs.cr0 = sregs.cr0 & !CR0_KEPT | old_cr0 & CR0_KEPT | cr0::ET;
        if is_64_bit {
            sregs.cr4 |= cr4::PAE;
        } else {
            sregs.cr4 &= !cr4::PCIDE;
        }
    }
}

/// The rest of "Loading Host Control Registers, Debug Registers, MSRs", and RIP, RSP, RFLAGS.
fn load_registers(cpu: &mut Cpu, controls: ExitControls) {
    let vmcs12 = &cpu.vmx.vmcs12;
    cpu.regs.set(Gpr::Rsp, vmcs12.get(Field::HOST_RSP));
    cpu.regs.rip = vmcs12.get(Field::HOST_RIP);
    cpu.regs.rflags = rflags::FIXED;
    cpu.debug.dr7 = DR7;
    let msrs = &mut cpu.msrs;
    msrs.debugctl = 0;
    msrs.sysenter_cs = vmcs12.get(Field::HOST_IA32_SYSENTER_CS);
    msrs.sysenter_esp = vmcs12.get(Field::HOST_IA32_SYSENTER_ESP);
    msrs.sysenter_eip = vmcs12.get(Field::HOST_IA32_SYSENTER_EIP);
    if controls.contains(ExitControls::LOAD_PAT) {
        msrs.pat = vmcs12.get(Field::HOST_IA32_PAT);
    }
    if controls.contains(ExitControls::LOAD_PERF_GLOBAL_CTRL) {
        let value = vmcs12.get(Field::HOST_IA32_PERF_GLOBAL_CTRL);
        cpu.set_perf_global_ctrl(value);
    }
    if controls.contains(ExitControls::CLEAR_BNDCFGS) {
        cpu.msrs.bndcfgs = 0;
    }
}

/// "Loading Host Segment and Descriptor-Table Registers".
fn load_segments(cpu: &mut Cpu, controls: ExitControls) {
    let vmcs12 = &cpu.vmx.vmcs12;
    let null_is_unusable = !cpu.model.as_kvm(Difference::ExitNullSelectors);
    let data = |selector: Field, base: u64| {
        let selector = vmcs12.get(selector) as u16;
        let unusable = if null_is_unusable && selector == 0 {
            AccessRights::UNUSABLE
        } else {
            AccessRights::empty()
        };
        Segment {
            selector,
            base,
            limit: u32::MAX,
            ar: DATA | unusable,
        }
    };
    let sregs = &mut cpu.sregs;
    let size = if controls.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE) {
        AccessRights::LONG
    } else {
        AccessRights::DEFAULT_BIG
    };
    sregs.cs = Segment {
        selector: vmcs12.get(Field::HOST_CS_SELECTOR) as u16,
        base: 0,
        limit: u32::MAX,
        ar: CODE | size,
    };
    sregs.ss = data(Field::HOST_SS_SELECTOR, 0);
    sregs.ds = data(Field::HOST_DS_SELECTOR, 0);
    sregs.es = data(Field::HOST_ES_SELECTOR, 0);
    sregs.fs = data(Field::HOST_FS_SELECTOR, vmcs12.get(Field::HOST_FS_BASE));
    sregs.gs = data(Field::HOST_GS_SELECTOR, vmcs12.get(Field::HOST_GS_BASE));
    sregs.tr = Segment {
        selector: vmcs12.get(Field::HOST_TR_SELECTOR) as u16,
        base: vmcs12.get(Field::HOST_TR_BASE),
        limit: TASK_LIMIT,
        ar: TASK,
    };
    sregs.ldtr = Segment {
        ar: AccessRights::UNUSABLE,
        ..Segment::default()
    };
    let table = |base: Field| DescriptorTable {
        base: vmcs12.get(base),
        limit: u16::MAX,
    };
    sregs.gdtr = table(Field::HOST_GDTR_BASE);
    sregs.idtr = table(Field::HOST_IDTR_BASE);
}

/// "Updating Non-Register State": always active, no blocking by STI or MOV SS, nothing pending.
fn load_non_register_state(cpu: &mut Cpu) {
    cpu.activity = Activity::Active;
    cpu.interruptibility
        .remove(Interruptibility::STI | Interruptibility::MOV_SS);
    cpu.pending_debug = 0;
    cpu.injected = None;
    cpu.pending_exception = None;
}
