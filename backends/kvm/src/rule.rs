//! The name of the rule that a refused nested state breaks, by nvmx-core's table of what
//! KVM_SET_NESTED_STATE checks. The kernel only says EINVAL; whether it refuses is its word alone.

use crate::vcpu::KvmVcpu;
use nvmx_core::cpu::{Model, Personality};
use nvmx_core::nested::set_rules::{
    Answer, EntryCheck, EntryClass, Refused, SetContext, check_bytes,
};
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::vmx::Vmcs12;
use nvmx_core::vmx::entry::checks::{Class, Context, kvm_restore_checks};
use nvmx_core::vmx::vmcs12::Layout;
use nvmx_core::x86::CpuState;
use nvmx_core::x86::cpuid::{lookup, physical_address_width};
use nvmx_core::x86::msr::IA32_VMX_BASIC;

impl KvmVcpu {
    /// The error for a state that the kernel refused with `value`: a negative errno, or a positive
    /// number. `before` is the vCPU as it was.
    pub(crate) fn refusal(&self, bytes: &[u8], value: i32, before: &CpuState) -> BackendError {
        let named = self.rule(bytes, before).unwrap_or(None);
        let agrees = named
            .as_ref()
            .is_some_and(|refused| match (refused.rule.answer(), value) {
                (Answer::Errno(errno), _) => errno == -value,
                (Answer::Positive(_), value) => value > 0,
            });
        let rule = match named {
            Some(refused) if agrees => refused.to_string(),
            // Found nothing, or not what the kernel found: say only what is certain.
            _ => in_words(bytes.len(), value),
        };
        BackendError::NestedRefused {
            rule,
            // As nvmx-core has it: no errno where the kernel answers a positive number.
            errno: (-value).max(0),
        }
    }

    fn rule(&self, bytes: &[u8], before: &CpuState) -> Result<Option<Refused>> {
        let cpuid = self
            .fd
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(crate::error::ioctl("KVM_GET_CPUID2"))?;
        let cpuid = nvmx_abi::cpuid::cpuid(&cpuid);
        let mut model = Model {
            physical_address_width: physical_address_width(&cpuid),
            // CPUID leaf 7, ECX bit 16: 57-bit linear addresses.
            linear_address_width: if lookup(&cpuid, 7, 0)[2] & 1 << 16 != 0 {
                57
            } else {
                48
            },
            personality: Personality::Kvm,
            cpuid,
            ..Model::default()
        };
        let numbers: Vec<u32> = (0..model.vmx_msrs.len() as u32)
            .map(|offset| IA32_VMX_BASIC + offset)
            .collect();
        for (number, value) in self.read_msrs(&numbers)? {
            model.vmx_msrs[(number - IA32_VMX_BASIC) as usize] = value;
        }
        let in_smm = before.events.is_some_and(|events| events.smm);
        let l1_long_mode = before.sregs.is_some_and(|sregs| sregs.efer & 1 << 10 != 0);
        let entry_checks = |vmcs12: &Vmcs12, run_pending: bool| {
            let context = Context {
                vmcs12,
                model: &model,
                memory: &self.shared.memory,
                l1_long_mode,
                smm: in_smm,
                current: None,
            };
            kvm_restore_checks(&context, run_pending).map_err(|rule| EntryCheck {
                class: match rule.class {
                    Class::InvalidControl => EntryClass::Controls,
                    Class::InvalidHostState => EntryClass::HostState,
                    Class::InvalidGuestState(_) => EntryClass::GuestState,
                },
                detail: rule.id.into(),
            })
        };
        let context = SetContext {
            // CPUID leaf 1, ECX bit 5.
            guest_has_vmx: lookup(&model.cpuid, 1, 0)[2] & 1 << 5 != 0,
            in_smm,
            in_guest_mode: false,
            physical_address_width: model.physical_address_width,
            enlightened_vmcs_enabled: false,
            layout: layout(),
            entry_checks: &entry_checks,
        };
        Ok(check_bytes(bytes, &context).err())
    }
}

/// The fields that this kernel's vmcs12 has.
fn layout() -> Layout {
    let release = crate::sys::read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default();
    if version(&release) >= (6, 18) {
        Layout::Linux6_18
    } else {
        Layout::Linux6_1
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn in_words(size: usize, value: i32) -> String {
    match -value {
        ..=-1 => format!(
            "the kernel answered {value}, an internal status and no errno: loading L2's state \
             failed after the checks had passed"
        ),
        libc::EFAULT => format!("the header claims more than the {size} bytes there are"),
        libc::ENOMEM => "the kernel has no memory for VMX operation".into(),
        _ => format!("the kernel does not take this state of {size} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        for (release, expected) in [
            ("6.1.0-49-cloud-amd64", (6, 1)),
            ("6.12.117+deb12-amd64", (6, 12)),
            ("6.18.44", (6, 18)),
            ("7.0-rc1", (7, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn a_positive_answer_is_told_apart_from_an_errno() {
        assert!(in_words(0, 2).contains("internal status"));
        assert!(in_words(130, -libc::EFAULT).contains("130 bytes"));
    }
}
