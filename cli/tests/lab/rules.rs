//! For each rule of KVM_SET_NESTED_STATE, the state that breaks just it: the codec's answer, the
//! software model's and the kernel's.

use crate::machine::{self, OpenLab};
use crate::{Check, Checked, Outcome};
use anyhow::bail;
use nvmx_core::cpu::Model;
use nvmx_core::memory::{GuestMemory, VecMemory};
use nvmx_core::nested::NestedState;
use nvmx_core::nested::set_rules::{self, EntryCheck, SetContext, SetRefusal};
use nvmx_core::nested::specimen::{self, BreakingBlob};
use nvmx_core::vcpu::{Parts, Vm};
use nvmx_core::vmx::Vmcs12;
use nvmx_core::vmx::capability::KVM_6_1_ICELAKE;
use nvmx_core::vmx::entry::checks::{Context, kvm_restore_checks};
use nvmx_core::vmx::vmcs12::Layout;
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{AccessRights, Segment};

/// CPUID.1:ECX.VMX.
const VMX: u32 = 1 << 5;
const EFAULT: i32 = 14;

pub(crate) fn checks() -> Vec<Check> {
    let all = SetRefusal::ALL.iter();
    all.map(|&rule| Check {
        name: format!("rules {}", rule.id()),
        run: Box::new(move |lab| one(lab, rule)),
    })
    .collect()
}

fn one(lab: &OpenLab, rule: SetRefusal) -> Checked {
    let Some(blob) = specimen::breaking_blob(rule) else {
        return Ok(Outcome::Skipped(
            "no state breaks it: the kernel's own allocation fails there".into(),
        ));
    };
    let mut kvm = lab.machine()?;
    let mut soft = machine::soft()?;
    let answers = [codec(&blob), ask(&mut soft, &blob)?, ask(&mut kvm, &blob)?];
    if answers.iter().any(|answer| *answer != answers[0]) || answers[0] == 0 {
        bail!(
            "the codec says {}, soft {}, KVM {}",
            answers[0],
            answers[1],
            answers[2]
        );
    }
    Ok(Outcome::Passed(format!("{} from all three", answers[0]), 0))
}

/// The rules as data, without a machine.
fn codec(blob: &BreakingBlob) -> i32 {
    let Ok(state) = NestedState::from_bytes(&blob.bytes) else {
        return -EFAULT;
    };
    let model = Model {
        vmx_msrs: KVM_6_1_ICELAKE,
        physical_address_width: 39,
        linear_address_width: 48,
        ..Model::default()
    };
    let memory = VecMemory::new(0x1_0000);
    for (address, bytes) in &blob.memory {
        if memory.write(*address, bytes).is_err() {
            return 0;
        }
    }
    let checks = |vmcs12: &Vmcs12, run_pending: bool| {
        let context = Context {
            vmcs12,
            model: &model,
            memory: &memory,
            l1_long_mode: true,
            smm: false,
            current: state.vmcs12_pa(),
        };
        kvm_restore_checks(&context, run_pending).map_err(EntryCheck::from)
    };
    let context = SetContext {
        guest_has_vmx: blob.guest_has_vmx,
        in_smm: blob.in_smm,
        in_guest_mode: false,
        physical_address_width: model.physical_address_width,
        enlightened_vmcs_enabled: false,
        layout: Layout::Linux6_1,
        entry_checks: &checks,
    };
    set_rules::check(&state, &context)
        .map_or_else(|refused| refused.rule.answer().returned(), |_| 0)
}

/// What a machine answers, in 64-bit mode outside VMX operation and as the rule wants it. It must be
/// as it was afterwards.
fn ask(vm: &mut dyn Vm, blob: &BreakingBlob) -> anyhow::Result<i32> {
    for (address, bytes) in &blob.memory {
        vm.write_memory(*address, bytes)?;
    }
    let mut state = vm.vcpu(0).state(Parts::All)?;
    let segment = |selector, ar| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    if let Some(sregs) = &mut state.sregs {
        sregs.cs = segment(8, 0xa09b);
        let data = segment(0x10, 0xc093);
        (sregs.ss, sregs.ds, sregs.es) = (data, data, data);
        sregs.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
        sregs.cr3 = 0x6000;
        // KVM takes no CR4.VMXE in SMM (default treatment of SMIs), nor without VMX in CPUID.
        let vmxe = blob.guest_has_vmx && !blob.in_smm;
        sregs.cr4 = cr4::PAE | if vmxe { cr4::VMXE } else { 0 };
        sregs.efer = efer::LME | efer::LMA;
    }
    if let Some(events) = &mut state.events {
        events.smm = blob.in_smm;
    }
    for entry in state
        .cpuid
        .iter_mut()
        .flatten()
        .filter(|entry| entry.leaf == 1)
    {
        entry.ecx = if blob.guest_has_vmx {
            entry.ecx | VMX
        } else {
            entry.ecx & !VMX
        };
    }
    if !blob.guest_has_vmx {
        // Without VMX in CPUID its capability MSRs are not there.
        let msrs = state.msrs.iter_mut();
        msrs.for_each(|msrs| msrs.retain(|number, _| !(0x480..=0x493).contains(number)));
    }
    let vcpu = vm.vcpu(0);
    vcpu.set_state(&state)?;
    let before = (vcpu.state(Parts::Registers)?, vcpu.nested_state()?);
    let answer = vcpu.try_nested_bytes(&blob.bytes)?;
    if (vcpu.state(Parts::Registers)?, vcpu.nested_state()?) != before {
        bail!("the refused state left its mark");
    }
    Ok(answer)
}
