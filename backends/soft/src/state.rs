//! The processor's state as user space reads and writes it: [`CpuState`] part by part.

use crate::engine::Env;
use crate::model;
use crate::processor::{MONITOR_ENABLED, Processor};
use nvmx_core::cpu::{Activity, Cpu, Interruptibility};
use nvmx_core::msr::{self as msr_access, MsrEffect, MsrRead};
use nvmx_core::pmu;
use nvmx_core::vcpu::{BackendError, Parts, Result};
use nvmx_core::vmx::exit;
use nvmx_core::x86::{CpuState, Event, EventKind, Exception, MpState, VcpuEvents, cpuid, msr};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of the XSAVE area that KVM gives: the size of `struct kvm_xsave`.
const XSAVE_SIZE: usize = 4096;
/// CPUID.1:ECX.MONITOR.
const CPUID_MONITOR: u32 = 1 << 3;
/// CPUID.1:ECX.XSAVE.
const CPUID_XSAVE: u32 = 1 << 26;
/// `KVM_X86_SHADOW_INT_MOV_SS`, `KVM_X86_SHADOW_INT_STI`.
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;

/// MSRs that a snapshot holds: those of the table that can be read.
fn snapshot_msrs(cpu: &Cpu) -> impl Iterator<Item = u32> {
    let all = msr::ALL.iter().copied();
    all.chain(pmu::registers(&cpu.model))
        .chain(cpu.machine_checks.told())
}

/// Reads the state. The processor is in step with the engine.
pub(crate) fn read(processor: &Processor, env: &Env, parts: Parts) -> CpuState {
    let cpu = &processor.cpu;
    let mut sregs = cpu.sregs;
    sregs.cr8 = processor.apic.cr8();
    sregs.apic_base = processor.apic.base();
    let mut state = CpuState {
        regs: Some(cpu.regs),
        sregs: Some(sregs),
        ..CpuState::default()
    };
    if parts == Parts::Registers {
        return state;
    }
    state.cpuid = Some(cpu.model.cpuid.clone());
    state.tsc_khz = Some(processor.tsc_khz);
    state.msrs = Some(read_msrs(processor));
    // A processor without XSAVE has no XCR0 (SDM Vol. 1 "Detection of XSAVE Feature Set").
    let has_xsave = cpuid::lookup(&cpu.model.cpuid, 1, 0)[2] & CPUID_XSAVE != 0;
    state.xcr0 = has_xsave.then_some(cpu.xcr0);
    state.xsave = Some(xsave(env));
    state.events = Some(events(processor));
    state.mp_state = Some(mp_state(processor));
    state.debug = Some(cpu.debug);
    state.lapic = Some(processor.apic.to_kvm_page(cpu.tsc.l1()).to_vec());
    state
}

pub(crate) fn mp_state(processor: &Processor) -> MpState {
    match processor.cpu.activity {
        // Nothing says that a store ends it, and anything may.
        _ if processor.waits_for_store() => MpState::Runnable,
        Activity::Hlt => MpState::Halted,
        Activity::WaitForSipi if processor.outside.sipi.is_some() => MpState::SipiReceived,
        Activity::WaitForSipi => MpState::InitReceived,
        Activity::Active | Activity::Shutdown => MpState::Runnable,
    }
}

fn read_msrs(processor: &Processor) -> BTreeMap<u32, u64> {
    let cpu = &processor.cpu;
    let mut msrs = BTreeMap::new();
    for number in snapshot_msrs(cpu) {
        // KVM reads L1's TSC for user space, whatever level runs.
        if number == msr::IA32_TIME_STAMP_COUNTER {
            msrs.insert(number, cpu.tsc.l1());
            continue;
        }
        // User space sees it in and out of SMM.
        if number == msr::IA32_SMBASE {
            msrs.insert(number, cpu.msrs.smbase);
            continue;
        }
        match msr_access::read(cpu, number) {
            Ok(MsrRead::Value(value)) => {
                msrs.insert(number, value);
            }
            Ok(MsrRead::Apic) => {
                if let Ok(value) = processor.apic.msr_read(number, cpu.tsc.l1()) {
                    msrs.insert(number, value);
                }
            }
            Err(_) => {}
        }
    }
    msrs
}

pub(crate) fn xsave(env: &Env) -> Vec<u8> {
    let mut area = vec![0; XSAVE_SIZE];
    area[..512].copy_from_slice(&env.fxsave());
    // XSTATE_BV: x87 and SSE are there (SDM Vol. 1 "XSAVE Header").
    area[512] = 3;
    area
}

pub(crate) fn events(processor: &Processor) -> VcpuEvents {
    let cpu = &processor.cpu;
    let mut events = VcpuEvents {
        nmi_pending: cpu.nmi_pending,
        nmi_masked: cpu.interruptibility.contains(Interruptibility::NMI),
        smm: cpu.smm,
        smi_pending: cpu.smi_pending,
        smm_inside_nmi: cpu.smm_inside_nmi,
        latched_init: processor.outside.init,
        // It means something in wait-for-SIPI alone, with its own MP state.
        sipi_vector: processor.outside.sipi.unwrap_or(0).into(),
        triple_fault_pending: cpu.triple_fault_pending,
        ..VcpuEvents::default()
    };
    if cpu.interruptibility.contains(Interruptibility::MOV_SS) {
        events.interrupt_shadow |= SHADOW_MOV_SS;
    }
    if cpu.interruptibility.contains(Interruptibility::STI) {
        events.interrupt_shadow |= SHADOW_STI;
    }
    match cpu.injected {
        Some(event) if event.kind == EventKind::Nmi => events.nmi_injected = true,
        Some(event)
            if matches!(
                event.kind,
                EventKind::ExternalInterrupt | EventKind::SoftwareInterrupt
            ) =>
        {
            events.interrupt_injected = true;
            events.interrupt_vector = event.vector;
            events.interrupt_soft = event.kind == EventKind::SoftwareInterrupt;
        }
        Some(event) => {
            events.exception_injected = true;
            events.exception_vector = event.vector;
            events.exception_error_code = event.error_code;
        }
        None => {}
    }
    let pending = cpu
        .pending_exception
        .or_else(|| pending_debug_exception(processor));
    if let Some(exception) = pending {
        events.exception_pending = true;
        events.exception_vector = exception.vector;
        events.exception_error_code = exception.error_code;
        events.exception_payload = Some(exception.payload);
    }
    events
}

/// L1's debug trap that waits for the boundary behind an instruction that left to user space. (L2's is
/// in its vmcs12.)
fn pending_debug_exception(processor: &Processor) -> Option<Exception> {
    const TRAPS: u64 = 1 << 14 | 0xf;
    let payload = processor.cpu.pending_debug & TRAPS;
    let is_pending = payload != 0 && !processor.in_l2();
    is_pending.then_some(Exception {
        vector: Exception::DB,
        error_code: None,
        payload,
    })
}

/// Writes the parts that are there, in the order of `RESTORE_ORDER`. On an error nothing that a
/// guest could see has changed but what came before the part in question.
pub(crate) fn write(processor: &mut Processor, env: &mut Env, state: &CpuState) -> Result<()> {
    if state.cpuid.is_some() || state.msrs.is_some() {
        write_model(processor, state)?;
    }
    if let Some(khz) = state.tsc_khz {
        if khz == 0 {
            return Err(refused("tsc_khz", "a frequency of zero"));
        }
        processor.tsc_khz = khz;
        processor.apic.set_tsc_khz(khz);
    }
    if let Some(sregs) = &state.sregs {
        processor.cpu.sregs = *sregs;
        processor.apic.set_base(sregs.apic_base);
        processor.apic.set_cr8(sregs.cr8);
        processor.level_changed();
    }
    if let Some(msrs) = &state.msrs {
        write_msrs(processor, msrs)?;
    }
    if let Some(xcr0) = state.xcr0 {
        // Components beyond x87 and SSE have no state in the engine; the guest that enabled them may
        // still never use them, and is told so when it does.
        processor.cpu.xcr0 = xcr0;
    }
    if let Some(area) = &state.xsave {
        let image: &[u8; 512] = area.first_chunk().ok_or_else(|| {
            refused(
                "xsave",
                format!(
                    "{} bytes, fewer than the 512 of the legacy area",
                    area.len()
                ),
            )
        })?;
        env.set_fxsave(image);
    }
    if let Some(page) = &state.lapic {
        let page: &[u8; 1024] = page
            .as_slice()
            .try_into()
            .map_err(|_| refused("lapic", format!("{} bytes instead of 1024", page.len())))?;
        processor.apic.from_kvm_page(page, processor.cpu.tsc.l1());
        // The deadline is no part of the page; the MSR holds it.
        if let Some(deadline) = state
            .msrs
            .as_ref()
            .and_then(|m| m.get(&msr::IA32_TSC_DEADLINE))
        {
            let now = processor.cpu.tsc.l1();
            let _ = processor
                .apic
                .msr_write(msr::IA32_TSC_DEADLINE, *deadline, now);
        }
    }
    if let Some(events) = &state.events {
        write_events(processor, events);
    }
    if let Some(mp_state) = state.mp_state {
        // As `KVM_SET_MP_STATE` does; the vector came with the events.
        processor.outside.sipi = (mp_state == MpState::SipiReceived).then(|| {
            state
                .events
                .as_ref()
                .map_or(0, |events| events.sipi_vector as u8)
        });
        processor.cpu.activity = match mp_state {
            MpState::Halted => Activity::Hlt,
            MpState::Runnable => Activity::Active,
            MpState::Uninitialized | MpState::InitReceived | MpState::SipiReceived => {
                Activity::WaitForSipi
            }
        };
    }
    if let Some(debug) = state.debug {
        processor.cpu.debug = debug;
    }
    if let Some(regs) = state.regs {
        processor.cpu.regs = regs;
    }
    // Without the flag the entries are not part of the state: KVM reads them from memory, too.
    processor.pdptes_stale = !processor.cpu.sregs.pdptrs_valid;
    processor.level_changed();
    Ok(())
}

fn write_model(processor: &mut Processor, state: &CpuState) -> Result<()> {
    let old = &processor.cpu.model;
    let mut msrs = old.vmx_msrs;
    for (number, value) in state.msrs.iter().flatten() {
        if let Some(slot) = number
            .checked_sub(msr::IA32_VMX_BASIC)
            .and_then(|i| msrs.get_mut(i as usize))
        {
            *slot = *value;
        }
    }
    if msrs != old.vmx_msrs && processor.cpu.vmx.is_on() {
        return Err(BackendError::Kernel {
            call: "set VMX capability MSRs",
            errno: 16,
            message: "the vCPU is in VMX operation: set them before nested state".into(),
        });
    }
    let cpuid = state.cpuid.clone().unwrap_or_else(|| old.cpuid.clone());
    let personality = old.personality;
    let had_counters = pmu::counters(old);
    let mut model = model::model(cpuid, msrs);
    model.personality = personality;
    if cpuid::lookup(&model.cpuid, 1, 0)[2] & CPUID_MONITOR != 0
        && cpuid::lookup(&processor.cpu.model.cpuid, 1, 0)[2] & CPUID_MONITOR == 0
    {
        processor.cpu.msrs.misc_enable |= MONITOR_ENABLED;
    }
    if pmu::counters(&model) != had_counters {
        // Another processor, as after RESET.
        let cpu = &mut processor.cpu;
        cpu.set_perf_global_ctrl(pmu::reset_value(&model));
        cpu.msrs.misc_enable &= !pmu::MISC_ENABLE;
        if pmu::counters(&model).is_some() {
            cpu.msrs.misc_enable |= pmu::MISC_ENABLE;
        }
    }
    processor.cpu.model = Arc::new(model);
    Ok(())
}

fn write_msrs(processor: &mut Processor, msrs: &BTreeMap<u32, u64>) -> Result<()> {
    for (&number, &value) in msrs {
        match number {
            msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2 => continue,
            msr::IA32_TIME_STAMP_COUNTER => {
                processor.cpu.tsc.l1_offset = value.wrapping_sub(processor.cpu.tsc.ticks);
                continue;
            }
            // Set with sregs, and by the deadline's own rule after the LAPIC.
            msr::IA32_EFER | msr::IA32_APIC_BASE | msr::IA32_FS_BASE | msr::IA32_GS_BASE => {
                continue;
            }
            msr::IA32_FEATURE_CONTROL => {
                // User space may unlock what the guest has locked.
                processor.cpu.msrs.feature_control = value;
                continue;
            }
            msr::IA32_MCG_CAP => {
                // What cannot be had stays as it is, as other MSRs do. The banks come behind it.
                let _ = processor.cpu.machine_checks.set_up(value);
                processor.cpu.machine_checks.clear_banks();
                continue;
            }
            msr::IA32_MCG_STATUS => {
                processor.cpu.machine_checks.set_status(value);
                continue;
            }
            msr::IA32_SMBASE => {
                processor.cpu.msrs.smbase = value & 0xffff_ffff;
                continue;
            }
            // What a guest may set of it is a subset of what a processor can have.
            msr::IA32_MISC_ENABLE => {
                processor.cpu.msrs.misc_enable = value;
                continue;
            }
            // Writing it as the guest does would move the TSC.
            msr::IA32_TSC_ADJUST => {
                processor.cpu.msrs.tsc_adjust = value;
                continue;
            }
            _ if processor
                .cpu
                .machine_checks
                .restore(number, value)
                .is_some() =>
            {
                continue;
            }
            _ if pmu::is_register(&processor.cpu.model, number) => {
                pmu::restore(&mut processor.cpu, number, value);
                continue;
            }
            _ => {}
        }
        if let Ok(MsrEffect::Apic) = msr_access::write(&mut processor.cpu, number, value) {
            let now = processor.cpu.tsc.l1();
            let _ = processor.apic.msr_write(number, value, now);
        }
        // An MSR that this model lacks is left out: the guest would get #GP for it, and a snapshot of
        // another backend may hold many that no guest here touches.
    }
    Ok(())
}

fn write_events(processor: &mut Processor, events: &VcpuEvents) {
    // As KVM does (`kvm_vcpu_ioctl_x86_set_vcpu_events`): nested state comes behind.
    if processor.cpu.smm != events.smm && processor.in_l2() {
        let left = exit::leave_nested(&mut processor.cpu, &processor.ram);
        processor.left(&left);
    }
    processor.outside.init = events.latched_init;
    let cpu = &mut processor.cpu;
    cpu.nmi_pending = events.nmi_pending;
    cpu.interruptibility
        .set(Interruptibility::NMI, events.nmi_masked);
    cpu.interruptibility.set(
        Interruptibility::MOV_SS,
        events.interrupt_shadow & SHADOW_MOV_SS != 0,
    );
    cpu.interruptibility.set(
        Interruptibility::STI,
        events.interrupt_shadow & SHADOW_STI != 0,
    );
    cpu.smm = events.smm;
    processor.ram.set_smm(events.smm);
    cpu.smi_pending = events.smi_pending;
    cpu.smm_inside_nmi = events.smm_inside_nmi;
    cpu.triple_fault_pending = events.triple_fault_pending;
    let event = |kind, vector, error_code| Event {
        kind,
        vector,
        error_code,
        instruction_length: 0,
        payload: 0,
    };
    cpu.injected = if events.exception_injected {
        let soft = matches!(events.exception_vector, Exception::BP | Exception::OF);
        let kind = if soft {
            EventKind::SoftwareException
        } else {
            EventKind::HardwareException
        };
        Some(event(
            kind,
            events.exception_vector,
            events.exception_error_code,
        ))
    } else if events.nmi_injected {
        Some(Event::NMI)
    } else if events.interrupt_injected {
        let kind = if events.interrupt_soft {
            EventKind::SoftwareInterrupt
        } else {
            EventKind::ExternalInterrupt
        };
        Some(event(kind, events.interrupt_vector, None))
    } else {
        None
    };
    if !cpu.vmx.guest_mode {
        cpu.pending_debug = 0;
    }
    cpu.pending_exception = events.exception_pending.then_some(Exception {
        vector: events.exception_vector,
        error_code: events.exception_error_code,
        payload: events.exception_payload.unwrap_or(0),
    });
}

pub(crate) fn refused(part: impl Into<String>, reason: impl Into<String>) -> BackendError {
    BackendError::StateRefused {
        part: part.into(),
        reason: reason.into(),
    }
}
