//! Audit of a vmcs12 offline: every rule of VM entry that it breaks, with the values read, on whichever
//! processor and by whichever personality is asked for; what a VM entry and a restore would come to
//! (SDM Vol. 3C "VM Entries"). No engine, no backend.

mod memory;
#[cfg(test)]
mod tests;
mod text;

pub use text::comparison;

use crate::model::{Snapshot, VcpuSnapshot};
use crate::pages::PageStore;
use memory::Memory;
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Model;
use nvmx_core::nested::NestedState;
use nvmx_core::nested::set_rules::{self, EntryCheck, EntryClass, SetContext};
use nvmx_core::personality::{Difference, Personality};
use nvmx_core::profiles::{self, Profile};
use nvmx_core::vmx::capability::MSR_COUNT;
use nvmx_core::vmx::entry::checks::{self, Class, Context, Enforcement, Phase, Rule};
use nvmx_core::vmx::vmcs12::{Layout, VMCS12_REVISION, VMCS12_SIZE};
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_core::x86::control::efer;
use nvmx_core::x86::{cpuid, msr};
use serde::Serialize;
use std::path::Path;

/// The processor that a snapshot without one is checked for.
const FALLBACK: &str = "kvm-6.1";

/// What to check.
#[derive(Debug)]
pub enum Subject {
    /// The vCPUs of a snapshot.
    Snapshot(Box<Snapshot>),
    /// A VMCS region alone, in KVM's layout.
    Region(Vmcs12),
}

/// Reads a snapshot of ours, the kernel's raw nested state (.bin), or a bare VMCS region: 4096 bytes that
/// begin with KVM's revision.
pub fn load(path: &Path) -> crate::Result<Subject> {
    if std::fs::metadata(path).is_ok_and(|file| file.len() == VMCS12_SIZE as u64)
        && let Ok(bytes) = std::fs::read(path)
        && let Some(region) = region(&bytes)
    {
        return Ok(Subject::Region(region));
    }
    crate::load(path).map(|snapshot| Subject::Snapshot(Box::new(snapshot)))
}

/// A VMCS region, if that is what the bytes are.
#[must_use]
pub fn region(bytes: &[u8]) -> Option<Vmcs12> {
    let bytes: &[u8; VMCS12_SIZE] = bytes.try_into().ok()?;
    let vmcs12 = Vmcs12::from_bytes(bytes);
    (vmcs12.revision() == VMCS12_REVISION).then_some(vmcs12)
}

/// On which processor, and by whose behaviour; `None` is the snapshot's own, and what goes with the
/// processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The processor.
    pub profile: Option<&'static Profile>,
    /// Whose behaviour.
    pub personality: Option<Personality>,
}

/// A rule that does not hold.
#[derive(Debug, Clone, Serialize)]
pub struct Broken {
    /// Its name.
    pub rule: &'static str,
    /// What must hold.
    pub text: &'static str,
    /// Title of the SDM section.
    pub section: &'static str,
    /// What VM entry does about it.
    pub consequence: &'static str,
    /// Who enforces it when L1 runs on KVM.
    pub enforcement: &'static str,
    /// The fields that it reads.
    pub values: Vec<(String, String)>,
}

/// What a VM entry or a restore comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// It goes through.
    pub passes: bool,
    /// How it ends, in words.
    pub text: String,
    /// The rule that decides, where there is one.
    pub rule: Option<String>,
}

/// The audit of one vCPU.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Number of the vCPU.
    pub vcpu: usize,
    /// The processor.
    pub profile: String,
    /// Whose behaviour.
    pub personality: &'static str,
    /// Rules looked at.
    pub rules: usize,
    /// Rules that fail, in the SDM's order.
    pub broken: Vec<Broken>,
    /// What VMLAUNCH or VMRESUME comes to.
    pub entry: Verdict,
    /// What `KVM_SET_NESTED_STATE` comes to; `None` for the SDM's personality, and for a bare region.
    pub restore: Option<Verdict>,
}

/// Audits every vCPU that has a vmcs12.
#[must_use]
pub fn audit(subject: &Subject, options: Options) -> Vec<Audit> {
    match subject {
        Subject::Snapshot(snapshot) => {
            let vcpus = snapshot.vcpus.iter().enumerate();
            vcpus
                .filter_map(|(index, vcpu)| {
                    audit_vcpu(index, vcpu, snapshot.memory.as_ref(), options)
                })
                .collect()
        }
        Subject::Region(vmcs12) => {
            let (model, profile) = model(&VcpuSnapshot::default(), options);
            let context = Context {
                vmcs12,
                model: &model,
                memory: &Memory::default(),
                current: None,
                l1_long_mode: returns_to_long_mode(vmcs12),
                smm: false,
            };
            vec![audit_context(0, &context, profile)]
        }
    }
}

/// Without registers: what the host-state area says of L1 when it comes back.
fn returns_to_long_mode(vmcs12: &Vmcs12) -> bool {
    vmcs12.get(Field::VM_EXIT_CONTROLS) & 1 << 9 != 0
}

fn audit_vcpu(
    index: usize,
    vcpu: &VcpuSnapshot,
    pages: Option<&PageStore>,
    options: Options,
) -> Option<Audit> {
    let nested = vcpu.nested.as_ref()?;
    let vmcs12 = nested.vmcs12()?;
    let (model, profile) = model(vcpu, options);
    let link = L1Phys(vmcs12.get(Field::VMCS_LINK_POINTER));
    let memory = Memory {
        pages,
        shadow: nested.shadow_vmcs12().map(|shadow| (link, shadow)),
    };
    let context = Context {
        vmcs12,
        model: &model,
        memory: &memory,
        current: nested.vmcs12_pa(),
        l1_long_mode: match &vcpu.cpu.sregs {
            Some(sregs) if !nested.guest_mode() => sregs.efer & efer::LMA != 0,
            _ => returns_to_long_mode(vmcs12),
        },
        smm: vcpu.cpu.events.is_some_and(|events| events.smm),
    };
    let mut audit = audit_context(index, &context, profile);
    if is_kvm(&model) {
        audit.restore = Some(restore(nested, &context));
    }
    Some(audit)
}

fn is_kvm(model: &Model) -> bool {
    model.as_kvm(Difference::EntryRounds)
}

fn audit_context(vcpu: usize, context: &Context<'_>, profile: String) -> Audit {
    let broken = checks::audit(context).into_iter().map(|failed| Broken {
        rule: failed.rule.id,
        text: failed.rule.text,
        section: failed.rule.section,
        consequence: consequence(failed.rule.class),
        enforcement: enforcement(failed.rule.enforcement),
        values: values(context, failed.rule),
    });
    Audit {
        vcpu,
        profile,
        personality: context.model.personality.name(),
        rules: checks::all().count(),
        broken: broken.collect(),
        entry: entry(context),
        restore: None,
    }
}

fn values(context: &Context<'_>, rule: &Rule) -> Vec<(String, String)> {
    let value = |&field: &Field| {
        (
            field.to_string(),
            format!("{:#x}", context.vmcs12.get(field)),
        )
    };
    rule.fields.iter().map(value).collect()
}

/// What the checks of a VM entry come to: all at once by the SDM, in three rounds by KVM.
fn entry(context: &Context<'_>) -> Verdict {
    let rounds: &[Phase] = if is_kvm(context.model) {
        &[
            Phase::KvmSoftware,
            Phase::KvmProcessorControls,
            Phase::KvmProcessorGuest,
        ]
    } else {
        &[Phase::All]
    };
    let failure = rounds
        .iter()
        .find_map(|&round| checks::first_failure_in(context, round, true));
    match failure {
        None => Verdict {
            passes: true,
            text: "L2 is entered".into(),
            rule: None,
        },
        Some(rule) => Verdict {
            passes: false,
            text: consequence(rule.class).into(),
            rule: Some(rule.id.into()),
        },
    }
}

/// What KVM answers to the state on a fresh vCPU of this processor.
fn restore(nested: &NestedState, context: &Context<'_>) -> Verdict {
    let model = context.model;
    let entry_checks = |vmcs12: &Vmcs12, run_pending: bool| {
        let context = Context { vmcs12, ..*context };
        checks::kvm_restore_checks(&context, run_pending).map_err(|rule| EntryCheck {
            class: match rule.class {
                Class::InvalidControl => EntryClass::Controls,
                Class::InvalidHostState => EntryClass::HostState,
                Class::InvalidGuestState(_) => EntryClass::GuestState,
            },
            detail: rule.id.into(),
        })
    };
    let set = SetContext {
        guest_has_vmx: true,
        in_smm: context.smm,
        in_guest_mode: false,
        physical_address_width: model.physical_address_width,
        enlightened_vmcs_enabled: false,
        layout: Layout::Linux6_1,
        entry_checks: &entry_checks,
    };
    match set_rules::check(nested, &set) {
        Ok(_) => Verdict {
            passes: true,
            text: "KVM_SET_NESTED_STATE takes it".into(),
            rule: None,
        },
        Err(refused) => Verdict {
            passes: false,
            text: format!("KVM_SET_NESTED_STATE refuses it: {}", refused.rule.text()),
            rule: Some(if checks::find(&refused.detail).is_some() {
                refused.detail
            } else {
                refused.rule.id().into()
            }),
        },
    }
}

/// What a rule that fails leads to, in words.
const fn consequence(class: Class) -> &'static str {
    match class {
        Class::InvalidControl => "VMfailValid 7, invalid control field",
        Class::InvalidHostState => "VMfailValid 8, invalid host-state field",
        Class::InvalidGuestState(_) => "VM exit 33, invalid guest state",
    }
}

const fn enforcement(who: Enforcement) -> &'static str {
    match who {
        Enforcement::Software => "KVM refuses it at VM entry and at KVM_SET_NESTED_STATE",
        Enforcement::SoftwareAtEntry => "KVM refuses it at VM entry, not at KVM_SET_NESTED_STATE",
        Enforcement::SoftwareIfPending => {
            "KVM refuses it at VM entry, and on restore with RUN_PENDING"
        }
        Enforcement::Processor => {
            "KVM leaves it to the processor: it restores, and fails when L2 runs"
        }
        Enforcement::Nobody => "on KVM nobody enforces it",
    }
}

/// The processor asked for, or that of the snapshot, or the lab's where it holds none.
fn model(vcpu: &VcpuSnapshot, options: Options) -> (Model, String) {
    let (mut model, name) = match (options.profile, own(vcpu)) {
        (Some(profile), _) => (profile.model(), profile.name.to_owned()),
        (None, Some(model)) => (model, "the snapshot's own processor".to_owned()),
        (None, None) => (
            profiles::find(FALLBACK)
                .map(Profile::model)
                .unwrap_or_default(),
            format!("{FALLBACK}, since there are no VMX capability MSRs in it"),
        ),
    };
    if let Some(personality) = options.personality {
        model.personality = personality;
    }
    // Whatever the processor's own format is, the regions here have KVM's.
    let basic = &mut model.vmx_msrs[0];
    *basic = *basic & !0x7fff_ffff | u64::from(VMCS12_REVISION);
    (model, name)
}

/// The processor that a snapshot holds.
fn own(vcpu: &VcpuSnapshot) -> Option<Model> {
    let msrs = vcpu.cpu.msrs.as_ref()?;
    let mut vmx_msrs: [u64; MSR_COUNT] = [0; MSR_COUNT];
    for (slot, number) in vmx_msrs.iter_mut().zip(msr::IA32_VMX_BASIC..) {
        *slot = msrs.get(&number).copied().unwrap_or(0);
    }
    if vmx_msrs[0] == 0 {
        return None;
    }
    let cpuid = vcpu.cpu.cpuid.clone().unwrap_or_default();
    let has_cpuid = !cpuid.is_empty();
    let mut model = profiles::model(cpuid, vmx_msrs, Personality::Kvm);
    // Without CPUID nothing is known to be beyond the width.
    model.physical_address_width = if has_cpuid {
        cpuid::physical_address_width(&model.cpuid)
    } else {
        0
    };
    Some(model)
}
