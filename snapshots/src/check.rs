//! Audit of a snapshot's vmcs12: every rule of VM entry that it breaks, with the values read
//! (SDM Vol. 3C "VM Entries"). No engine, no backend.

use crate::model::{Snapshot, VcpuSnapshot};
use crate::pages::PageStore;
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Model;
use nvmx_core::memory::{GuestMemory, NotRam};
use nvmx_core::vmx::capability::{KVM_6_1_ICELAKE, MSR_COUNT};
use nvmx_core::vmx::entry::checks::{self, Class, Context, Enforcement};
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_core::x86::control::efer;
use nvmx_core::x86::{cpuid, msr};
use serde::Serialize;
use std::fmt;

/// What a rule that fails leads to, in words.
const fn consequence(class: Class) -> &'static str {
    match class {
        Class::InvalidControl => "VMfailValid 7, invalid control field",
        Class::InvalidHostState => "VMfailValid 8, invalid host-state field",
        Class::InvalidGuestState(_) => "VM exit 33, invalid guest state",
    }
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
    pub enforcement: String,
    /// The fields that it reads.
    pub values: Vec<(String, String)>,
}

/// The audit of one vCPU.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Number of the vCPU.
    pub vcpu: usize,
    /// Where the capability MSRs come from.
    pub profile: &'static str,
    /// Rules looked at.
    pub rules: usize,
    /// Rules that fail, in the SDM's order.
    pub broken: Vec<Broken>,
}

/// Audits every vCPU that has a vmcs12.
#[must_use]
pub fn audit(snapshot: &Snapshot) -> Vec<Audit> {
    let vcpus = snapshot.vcpus.iter().enumerate();
    vcpus
        .filter_map(|(index, vcpu)| audit_vcpu(index, vcpu, snapshot.memory.as_ref()))
        .collect()
}

fn audit_vcpu(index: usize, vcpu: &VcpuSnapshot, pages: Option<&PageStore>) -> Option<Audit> {
    let nested = vcpu.nested.as_ref()?;
    let vmcs12 = nested.vmcs12()?;
    let (model, profile) = model(vcpu);
    let memory = Memory {
        pages,
        shadow: nested
            .shadow_vmcs12()
            .map(|shadow| (L1Phys(vmcs12.get(Field::VMCS_LINK_POINTER)), shadow)),
    };
    let context = Context {
        vmcs12,
        model: &model,
        memory: &memory,
        current: nested.vmcs12_pa(),
        // Without registers: what the host-state area says of L1 when it comes back.
        l1_long_mode: match &vcpu.cpu.sregs {
            Some(sregs) if !nested.guest_mode() => sregs.efer & efer::LMA != 0,
            _ => vmcs12.get(Field::VM_EXIT_CONTROLS) & 1 << 9 != 0,
        },
        smm: vcpu.cpu.events.is_some_and(|events| events.smm),
    };
    let broken = checks::audit(&context).into_iter().map(|failed| Broken {
        rule: failed.rule.id,
        text: failed.rule.text,
        section: failed.rule.section,
        consequence: consequence(failed.rule.class),
        enforcement: enforcement(failed.rule.enforcement).into(),
        values: failed
            .values
            .iter()
            .map(|(field, value)| (field.to_string(), format!("{value:#x}")))
            .collect(),
    });
    Some(Audit {
        vcpu: index,
        profile,
        rules: checks::all().count(),
        broken: broken.collect(),
    })
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

/// The processor of the snapshot; of the lab's where it holds none.
fn model(vcpu: &VcpuSnapshot) -> (Model, &'static str) {
    let msrs = vcpu.cpu.msrs.as_ref();
    let mut vmx_msrs: [u64; MSR_COUNT] = [0; MSR_COUNT];
    for (slot, number) in vmx_msrs.iter_mut().zip(msr::IA32_VMX_BASIC..) {
        *slot = msrs
            .and_then(|msrs| msrs.get(&number))
            .copied()
            .unwrap_or(0);
    }
    let captured = vmx_msrs[0] != 0;
    let cpuid = vcpu.cpu.cpuid.clone().unwrap_or_default();
    let model = Model {
        physical_address_width: if cpuid.is_empty() {
            39
        } else {
            cpuid::physical_address_width(&cpuid)
        },
        linear_address_width: 48,
        cpuid,
        vmx_msrs: if captured { vmx_msrs } else { KVM_6_1_ICELAKE },
        ..Model::default()
    };
    let profile = if captured {
        "the snapshot's own VMX capability MSRs"
    } else {
        "KVM 6.1 on Bochs' Ice Lake, since the snapshot holds no VMX capability MSRs"
    };
    (model, profile)
}

/// Guest memory of a snapshot, read-only.
struct Memory<'a> {
    pages: Option<&'a PageStore>,
    /// The link pointer and what it leads to, for where guest memory was not captured.
    shadow: Option<(L1Phys, &'a Vmcs12)>,
}

impl GuestMemory for Memory<'_> {
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let length = buffer.len();
        if let Some(pages) = self.pages {
            return pages
                .read(address.0, buffer)
                .ok_or(NotRam { address, length });
        }
        // Of the regions that rules look into, the shadow vmcs12 alone is part of nested state; the
        // rest reads as zeroes.
        buffer.fill(0);
        if let Some((link, shadow)) = self.shadow
            && address.page() == link
            && let Some(bytes) = shadow.bytes()[address.page_offset() as usize..].get(..length)
        {
            buffer.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        Err(NotRam {
            address,
            length: bytes.len(),
        })
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "vCPU {}: {} of {} rules of VM entry fail, for {}",
            self.vcpu,
            self.broken.len(),
            self.rules,
            self.profile
        )?;
        for broken in &self.broken {
            writeln!(f, "  {}: must hold: {}", broken.rule, broken.text)?;
            writeln!(
                f,
                "    SDM Vol. 3C \"{}\": {}",
                broken.section, broken.consequence
            )?;
            writeln!(f, "    {}", broken.enforcement)?;
            for (field, value) in &broken.values {
                writeln!(f, "    {field} {value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::nested::{NestedState, specimen};
    use nvmx_core::vmx::capability::Capability;

    fn guest() -> NestedState {
        let bytes = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE)).to_bytes();
        NestedState::from_bytes(&bytes).expect("a specimen")
    }

    #[test]
    fn a_valid_vmcs12_breaks_no_rule_and_a_spoiled_one_the_rule_in_question() {
        let valid = audit(&Snapshot::of_nested(guest()));
        assert!(valid[0].broken.is_empty(), "{}", valid[0]);

        let mut nested = guest();
        nested
            .vmcs12_mut()
            .expect("guest mode has one")
            .set(Field::GUEST_RFLAGS, 0);
        let spoiled = audit(&Snapshot::of_nested(nested));
        assert_eq!(spoiled[0].broken.len(), 1, "{}", spoiled[0]);
        assert_eq!(
            spoiled[0].broken[0].values,
            [("GUEST_RFLAGS".to_owned(), "0x0".to_owned())]
        );
    }

    #[test]
    fn without_a_vmcs12_there_is_nothing_to_audit() {
        assert!(audit(&Snapshot::of_nested(NestedState::default())).is_empty());
    }
}
