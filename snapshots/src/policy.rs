//! Which differences between two backends are known, of which kind, and why: a table.
//!
//! A difference that no row explains is architectural, and makes `diff` and `compare` fail. A row is
//! as narrow as its reason: a path pattern and, where the value matters, a condition on both sides.

use crate::rows::{Rows, Value};
use nvmx_core::vmx::exit::ExitReason;
use serde::Serialize;

/// Kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The guest could tell, and nothing explains it.
    Architectural,
    /// It counts time, which passes differently on each backend.
    Time,
    /// Book-keeping of the implementation that no guest reads.
    Implementation,
    /// A known divergence with a reason.
    Explained,
    /// One side did not capture it.
    NotCaptured,
}

impl Class {
    /// Whether the difference counts against equality.
    #[must_use]
    pub fn is_unexplained(self) -> bool {
        self == Self::Architectural
    }

    /// A word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Architectural => "architectural",
            Self::Time => "time",
            Self::Implementation => "implementation",
            Self::Explained => "explained",
            Self::NotCaptured => "not captured",
        }
    }
}

/// Two values under the same path, and all that stands around them.
pub struct Situation<'a> {
    /// Path inside the vCPU: `sregs.cs.ar`.
    pub name: &'a str,
    /// `vcpu0`.
    pub vcpu: &'a str,
    /// Value on the left; `None` if there is none.
    pub left: Option<&'a Value>,
    /// Value on the right.
    pub right: Option<&'a Value>,
    /// All rows on the left.
    pub left_rows: &'a Rows,
    /// All rows on the right.
    pub right_rows: &'a Rows,
}

impl Situation<'_> {
    fn numbers(&self) -> Option<(u64, u64)> {
        match (self.left, self.right) {
            (Some(Value::Number(a)), Some(Value::Number(b))) => Some((*a, *b)),
            _ => None,
        }
    }

    /// Bits that differ.
    fn changed_bits(&self) -> Option<u64> {
        self.numbers().map(|(a, b)| a ^ b)
    }

    /// A number elsewhere in the same vCPU, on both sides.
    fn both(&self, name: &str) -> Option<(u64, u64)> {
        let path = format!("{}.{name}", self.vcpu);
        Some((
            self.left_rows.number(&path)?,
            self.right_rows.number(&path)?,
        ))
    }

    /// The vmcs12 that a row belongs to: `nested.vmcs12` or `nested.shadow_vmcs12`.
    fn vmcs12(&self) -> Option<&str> {
        let end = self.name.find("vmcs12.")? + "vmcs12".len();
        Some(&self.name[..end])
    }

    /// Basic exit reasons of the vmcs12 that a row belongs to, on both sides.
    fn both_exit_reasons(&self) -> Option<(u64, u64)> {
        let (a, b) = self.both(&format!("{}.VM_EXIT_REASON", self.vmcs12()?))?;
        Some((a & 0xffff, b & 0xffff))
    }

    /// Exit qualifications of the vmcs12 that a row belongs to, on both sides.
    fn both_qualifications(&self) -> Option<(u64, u64)> {
        self.both(&format!("{}.EXIT_QUALIFICATION", self.vmcs12()?))
    }

    /// Interruption and IDT-vectoring information of both sides' exit, as the left one has it; zero where
    /// they are not captured.
    fn exit_events(&self) -> [u32; 2] {
        let event = |field: &str| {
            let path = format!("{}.{field}", self.vmcs12()?);
            self.both(&path).map(|(information, _)| information as u32)
        };
        ["VM_EXIT_INTR_INFO", "IDT_VECTORING_INFO_FIELD"].map(|field| event(field).unwrap_or(0))
    }

    /// Whether the state that a row belongs to is that of real-address mode, on both sides.
    fn both_in_real_mode(&self) -> bool {
        let cr0 = match self.vmcs12() {
            Some(vmcs12) => self.both(&format!("{vmcs12}.GUEST_CR0")),
            None => self.both("sregs.cr0"),
        };
        cr0.is_some_and(|(a, b)| (a | b) & 1 == 0)
    }

    /// The access rights of the segment that a row belongs to, on both sides.
    fn access_rights(&self) -> Option<(u64, u64)> {
        let mut parts = self.name.split('.');
        let (part, first, second) = (parts.next()?, parts.next()?, parts.next());
        match (part, second) {
            ("sregs", Some(_)) => self.both(&format!("sregs.{first}.ar")),
            ("nested", Some(field)) => {
                let segment = field.strip_prefix("GUEST_")?.split('_').next()?;
                self.both(&format!("nested.{first}.GUEST_{segment}_AR_BYTES"))
            }
            _ => None,
        }
    }

    fn is_segment_row(&self, suffixes: &[&str]) -> bool {
        let in_segments = self.name.starts_with("sregs.") || self.name.contains("vmcs12.GUEST_");
        in_segments && suffixes.iter().any(|suffix| self.name.ends_with(suffix))
    }
}

/// One known divergence.
pub struct Policy {
    /// Stable short name.
    pub id: &'static str,
    /// What kind of difference it is.
    pub class: Class,
    /// Paths inside a vCPU that it may apply to; `*` stands for any characters.
    pub paths: &'static [&'static str],
    /// Whether it applies to these values.
    pub when: fn(&Situation<'_>) -> bool,
    /// Why.
    pub reason: &'static str,
}

const ALWAYS: fn(&Situation<'_>) -> bool = |_| true;
const UNUSABLE: u64 = 1 << 16;
const PRESENT: u64 = 1 << 7;

/// Whether an exit with this basic reason and qualification defines the guest-linear address: LMSW
/// with a memory operand, INS and OUTS, EPT violations that say so, SPP.
const fn defines_guest_linear_address(reason: u64, qualification: u64) -> bool {
    match reason {
        28 => qualification >> 4 & 7 == 7,
        30 => qualification & 1 << 4 != 0,
        48 => qualification & 1 << 7 != 0,
        66 => true,
        _ => false,
    }
}

/// The table. The first row that applies counts.
pub const POLICIES: &[Policy] = &[
    Policy {
        id: "tsc",
        class: Class::Time,
        paths: &[
            "msrs.IA32_TIME_STAMP_COUNTER",
            "msrs.IA32_TSC_DEADLINE",
            "msrs.IA32_TSC_ADJUST",
            "tsc_khz.tsc_khz",
        ],
        when: ALWAYS,
        reason: "the time-stamp counter and what is computed from it go on with each backend's own clock",
    },
    Policy {
        id: "hyperv-clock",
        class: Class::Time,
        // HV_X64_MSR_VP_RUNTIME and HV_X64_MSR_TIME_REF_COUNT.
        paths: &["msrs.0x40000010", "msrs.0x40000020"],
        when: ALWAYS,
        reason: "KVM's Hyper-V clocks count the host's time, also while the guest does not run",
    },
    Policy {
        id: "apic-timer-count",
        class: Class::Time,
        paths: &["lapic.TIMER_CURRENT_COUNT"],
        when: ALWAYS,
        reason: "the APIC timer's current count runs down with time",
    },
    Policy {
        id: "preemption-deadline",
        class: Class::Time,
        paths: &["nested.preemption_timer_deadline"],
        when: ALWAYS,
        reason: "the deadline is a value of L1's TSC",
    },
    Policy {
        id: "preemption-timer-value",
        class: Class::Time,
        paths: &["nested.*vmcs12.VMX_PREEMPTION_TIMER_VALUE"],
        // "Activate VMX-preemption timer": bit 6 of the pin-based controls.
        when: |s| {
            s.both("nested.vmcs12.PIN_BASED_VM_EXEC_CONTROL")
                .is_some_and(|(a, b)| a & b & 1 << 6 != 0)
        },
        reason: "an active VMX-preemption timer counts down with the TSC; a VM exit may save what is left",
    },
    Policy {
        id: "abort-word",
        class: Class::Implementation,
        paths: &["nested.*vmcs12.abort"],
        when: ALWAYS,
        reason: "the VMX-abort indicator is written only when a VMX abort shuts the processor down",
    },
    Policy {
        id: "launch-state",
        class: Class::Implementation,
        paths: &["nested.*vmcs12.launch_state"],
        when: ALWAYS,
        reason: "the SDM keeps the launch state out of software's sight; the next VMLAUNCH or VMRESUME shows it as a nested event",
    },
    Policy {
        id: "vmcs12-padding",
        class: Class::Implementation,
        paths: &[
            "nested.*vmcs12.padding+*",
            "nested.header_padding",
            "nested.rest",
        ],
        when: ALWAYS,
        reason: "no field lies there; KVM_SET_NESTED_STATE copies only the first 998 bytes of a vmcs12",
    },
    Policy {
        id: "gif-set",
        class: Class::Implementation,
        paths: &["nested.flags"],
        when: |s| s.changed_bits() == Some(1 << 8),
        reason: "KVM_STATE_NESTED_GIF_SET belongs to SVM; with VMX it is accepted and ignored",
    },
    Policy {
        id: "unusable-segment",
        class: Class::Explained,
        paths: &["sregs.*", "nested.*vmcs12.GUEST_*"],
        when: |s| {
            // The bases of FS and GS count in 64-bit mode even when unusable.
            let suffixes = [".limit", ".ar", ".base", "_LIMIT", "_AR_BYTES", "_BASE"];
            let fs_gs_base = [".fs.base", ".gs.base", "_FS_BASE", "_GS_BASE"];
            s.is_segment_row(&suffixes)
                && !fs_gs_base.iter().any(|base| s.name.ends_with(base))
                && s.access_rights()
                    .is_some_and(|(a, b)| a & b & UNUSABLE != 0)
        },
        reason: "KVM normalises the hidden part of an unusable segment; the SDM gives it no meaning beyond the bit itself",
    },
    Policy {
        id: "accessed-not-present",
        class: Class::Explained,
        paths: &["sregs.*.ar", "nested.*vmcs12.GUEST_*"],
        when: |s| {
            s.is_segment_row(&[".ar", "_AR_BYTES"])
                && s.changed_bits() == Some(1)
                && s.numbers().is_some_and(|(a, b)| (a | b) & PRESENT == 0)
        },
        reason: "KVM sets the accessed bit of segments that are not present when it writes access rights (vmx_segment_access_rights)",
    },
    Policy {
        id: "stale-guest-linear-address",
        class: Class::Explained,
        paths: &["nested.*vmcs12.GUEST_LINEAR_ADDRESS"],
        when: |s| {
            s.both_exit_reasons()
                .zip(s.both_qualifications())
                .is_some_and(|((a, b), (p, q))| {
                    !defines_guest_linear_address(a, p) && !defines_guest_linear_address(b, q)
                })
        },
        reason: "undefined for this exit reason (SDM Vol. 3C \"Basic VM-Exit Information\"): KVM copies what the processor's last exit left, one that L0 handled itself included",
    },
    Policy {
        id: "stale-instruction-length",
        class: Class::Explained,
        paths: &["nested.*vmcs12.VM_EXIT_INSTRUCTION_LEN"],
        when: |s| {
            let (Some((a, b)), Some((q, r))) = (s.both_exit_reasons(), s.both_qualifications())
            else {
                return false;
            };
            let [interruption, vectoring] = s.exit_events();
            a == b
                && !ExitReason(a as u32).defines_instruction_length(q | r, interruption, vectoring)
        },
        reason: "undefined for this exit (SDM Vol. 3C \"Information for VM Exits Due to Instruction Execution\"): KVM copies what the processor's last exit left",
    },
    Policy {
        id: "stale-instruction-information",
        class: Class::Explained,
        paths: &["nested.*vmcs12.VMX_INSTRUCTION_INFO"],
        when: |s| {
            let (Some((a, b)), Some((q, r))) = (s.both_exit_reasons(), s.both_qualifications())
            else {
                return false;
            };
            a == b && !ExitReason(a as u32).defines_instruction_information(q | r)
        },
        reason: "undefined for this exit (SDM Vol. 3C \"Information for VM Exits Due to Instruction Execution\"): KVM copies what the processor's last exit left",
    },
    Policy {
        id: "misconfiguration-qualification",
        class: Class::Explained,
        paths: &["nested.*vmcs12.EXIT_QUALIFICATION"],
        when: |s| s.both_exit_reasons() == Some((49, 49)),
        reason: "EPT misconfigurations define no qualification (SDM Vol. 3C \"Basic VM-Exit Information\"); KVM hands L1 that of the EPT violation which it handled itself",
    },
    Policy {
        id: "resume-flag",
        class: Class::Explained,
        paths: &["nested.*vmcs12.GUEST_RFLAGS"],
        when: |s| s.changed_bits() == Some(1 << 16),
        reason: "RF is saved as it was before the exit, or set for a fault (SDM Vol. 3C \"Saving RIP, RSP, RFLAGS, and SSP\"); Bochs clears it when an instruction begins",
    },
    Policy {
        id: "real-mode-code-type",
        class: Class::Explained,
        paths: &["sregs.cs.ar", "nested.*vmcs12.GUEST_CS_AR_BYTES"],
        when: |s| s.changed_bits().is_some_and(|bits| bits & !8 == 0) && s.both_in_real_mode(),
        reason: "a far transfer in real-address mode loads CS with the type of a data segment on Bochs and leaves it alone in unicorn; the SDM (Vol. 3A \"Real-Address Mode\") gives it no meaning there",
    },
    Policy {
        id: "stale-pdptes",
        class: Class::Explained,
        paths: &["sregs.pdptr?"],
        when: |s| {
            s.both("sregs.pdptrs_valid")
                .is_some_and(|(a, b)| a | b == 0)
        },
        reason: "the PDPTE registers have no meaning without PAE paging",
    },
    Policy {
        id: "pdptes-valid-flag",
        class: Class::Implementation,
        paths: &["sregs.pdptrs_valid"],
        when: ALWAYS,
        reason: "KVM_SREGS2_FLAGS_PDPTRS_VALID says whether KVM has the PDPTEs cached; their values are compared when both have them",
    },
    Policy {
        id: "dynamic-cpuid",
        class: Class::Explained,
        paths: &["cpuid.0x1.ecx", "cpuid.0x7.0x0.ecx", "cpuid.0xd.0x?.ebx"],
        when: |s| match (s.name, s.changed_bits()) {
            ("cpuid.0x1.ecx", Some(bits)) => bits == 1 << 27,
            ("cpuid.0x7.0x0.ecx", Some(bits)) => bits == 1 << 4,
            (_, bits) => bits.is_some(),
        },
        reason: "OSXSAVE, OSPKE and the XSAVE size follow CR4 and XCR0, which are compared themselves",
    },
    Policy {
        id: "xsave-header",
        class: Class::Implementation,
        paths: &[
            "xsave.xstate_bv",
            "xsave.xcomp_bv",
            "xsave.software_available*",
        ],
        when: ALWAYS,
        reason: "XSAVE may or may not track a component as in its initial state (SDM Vol. 1 \"XSAVE-Managed State\"); the components are compared",
    },
    Policy {
        id: "mxcsr-mask",
        class: Class::Implementation,
        paths: &["xsave.mxcsr_mask"],
        when: ALWAYS,
        reason: "a constant of the processor model, not state",
    },
    Policy {
        id: "x87-pointers",
        class: Class::Explained,
        paths: &["xsave.fop", "xsave.fip", "xsave.fdp"],
        when: ALWAYS,
        reason: "processors differ in when they update the last x87 opcode and pointers (SDM Vol. 1 \"x87 FPU Instruction and Data (Operand) Pointers\")",
    },
    Policy {
        id: "processor-model",
        class: Class::Implementation,
        paths: &[
            "msrs.IA32_BIOS_SIGN_ID",
            "msrs.IA32_ARCH_CAPABILITIES",
            "msrs.IA32_PERF_CAPABILITIES",
            "msrs.IA32_MCG_CAP",
            "msrs.IA32_MTRRCAP",
        ],
        when: ALWAYS,
        reason: "says which processor it is, not what the guest did",
    },
    Policy {
        id: "msr-absent",
        class: Class::NotCaptured,
        paths: &["msrs.*"],
        when: |s| s.left.is_none() || s.right.is_none(),
        reason: "only one backend has this MSR in its list",
    },
];

/// The row of the table that explains a difference.
#[must_use]
pub fn explain(situation: &Situation<'_>) -> Option<&'static Policy> {
    POLICIES.iter().find(|policy| {
        policy
            .paths
            .iter()
            .any(|path| matches(path, situation.name))
            && (policy.when)(situation)
    })
}

/// Whether a path fits a pattern: `*` any characters, `?` any one character.
#[must_use]
pub fn matches(pattern: &str, path: &str) -> bool {
    fn fits(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=path.len()).any(|skip| fits(rest, &path[skip..])),
            (Some((b'?', rest)), Some((_, path))) => fits(rest, path),
            (Some((a, rest)), Some((b, path))) if a == b => fits(rest, path),
            _ => false,
        }
    }
    fits(pattern.as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_they_say() {
        assert!(matches("nested.*vmcs12.abort", "nested.vmcs12.abort"));
        assert!(matches(
            "nested.*vmcs12.abort",
            "nested.shadow_vmcs12.abort"
        ));
        assert!(!matches("sregs.pdptr?", "sregs.pdptrs_valid"));
        assert!(matches("msrs.*", "msrs.0x10"));
    }

    #[test]
    fn ids_are_unique_and_reasons_are_given() {
        for (i, policy) in POLICIES.iter().enumerate() {
            assert!(policy.reason.len() > 20, "{}", policy.id);
            assert!(
                POLICIES[..i].iter().all(|other| other.id != policy.id),
                "{} twice",
                policy.id
            );
        }
    }
}
