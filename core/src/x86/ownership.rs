//! Whose each part of a vCPU's state is, and in which order the parts are restored.
//!
//! The review of the seed patch names the hang that mixing levels causes: L1's TSC deadline read
//! against L2's TSC. So no part is captured without its owner.

use serde::{Deserialize, Serialize};

/// The level that a vCPU runs at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// The hypervisor that runs on our VM.
    L1,
    /// A guest of that hypervisor.
    L2,
}

/// Whose state it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// L1's, whatever runs.
    L1,
    /// L2's.
    L2,
    /// One copy that both levels read and write.
    Shared,
}

/// A part of the state, as KVM's ioctls cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// CPUID.
    Cpuid,
    /// TSC frequency.
    TscKhz,
    /// Segment, control and table registers.
    Sregs,
    /// MSRs.
    Msrs,
    /// XCR0.
    Xcr0,
    /// x87, SSE and extended state.
    Xsave,
    /// Pending and injected events.
    Events,
    /// Running, waiting, halted.
    MpState,
    /// Debug registers.
    Debug,
    /// General-purpose registers.
    Regs,
    /// Nested state.
    Nested,
    /// Local APIC.
    Lapic,
}

/// How a part behaves.
#[derive(Debug, Clone, Copy)]
pub struct PartRule {
    /// The part.
    pub part: Part,
    /// Whether the level that runs owns it (`None`), or always the same owner.
    pub fixed_owner: Option<Owner>,
    /// Why it stands at this place of the restore order.
    pub why_here: &'static str,
}

/// Every part, in the order in which a vCPU must be restored so that KVM accepts nested state.
pub const RESTORE_ORDER: &[PartRule] = &[
    PartRule {
        part: Part::Cpuid,
        fixed_owner: Some(Owner::L1),
        why_here: "decides VMX, the physical-address width and legal CR4 and EFER bits; refused after the first KVM_RUN",
    },
    PartRule {
        part: Part::TscKhz,
        fixed_owner: Some(Owner::L1),
        why_here: "the preemption-timer deadline counts L1's TSC",
    },
    PartRule {
        part: Part::Sregs,
        fixed_owner: None,
        why_here: "before Nested: with L2 loaded KVM checks CR4 against VMX operation, and nested state needs CR4.VMXE",
    },
    PartRule {
        part: Part::Lapic,
        fixed_owner: Some(Owner::L1),
        why_here: "after Sregs, whose APIC base sets its mode; before Msrs: KVM drops a TSC deadline unless the timer is in deadline mode",
    },
    PartRule {
        part: Part::Msrs,
        fixed_owner: None,
        why_here: "before Nested: VMX capability MSRs answer EBUSY once VMXON is set, the deadline needs the TSC, and entry reloads EFER, PAT and DEBUGCTL",
    },
    PartRule {
        part: Part::Xcr0,
        fixed_owner: Some(Owner::Shared),
        why_here: "before Xsave, which it gates",
    },
    PartRule {
        part: Part::Xsave,
        fixed_owner: Some(Owner::Shared),
        why_here: "after Xcr0",
    },
    PartRule {
        part: Part::Events,
        fixed_owner: None,
        why_here: "before Nested: the SMM bit gates what nested state may hold, and a change of it afterwards drops L2",
    },
    PartRule {
        part: Part::MpState,
        fixed_owner: None,
        why_here: "anywhere after Lapic",
    },
    PartRule {
        part: Part::Debug,
        fixed_owner: None,
        why_here: "before Nested, which loads DR7",
    },
    PartRule {
        part: Part::Regs,
        fixed_owner: None,
        why_here: "before Nested: entering guest mode overwrites RIP, RSP and RFLAGS with vmcs12's, equal at capture",
    },
    PartRule {
        part: Part::Nested,
        fixed_owner: Some(Owner::L1),
        why_here: "last: it needs all of the above, and what it refuses must leave nothing half done",
    },
];

/// Whose `part` is while `level` runs.
#[must_use]
pub fn owner(part: Part, level: Level) -> Owner {
    let fixed = RESTORE_ORDER
        .iter()
        .find(|rule| rule.part == part)
        .and_then(|rule| rule.fixed_owner);
    fixed.unwrap_or(match level {
        Level::L1 => Owner::L1,
        Level::L2 => Owner::L2,
    })
}

/// Whose an MSR is while `level` runs.
///
/// User space reads L1's IA32_TIME_STAMP_COUNTER whatever runs (`kvm_get_msr_common`,
/// `host_initiated`); L2's RDTSC reads another, with vmcs12's scaling and offset. The APIC's MSRs
/// never switch.
#[must_use]
pub fn msr_owner(number: u32, level: Level) -> Owner {
    use super::msr::*;
    match number {
        // Switched by VM entry and exit through guest and host fields.
        IA32_EFER
        | IA32_PAT
        | IA32_DEBUGCTL
        | IA32_SYSENTER_CS
        | IA32_SYSENTER_ESP
        | IA32_SYSENTER_EIP
        | IA32_FS_BASE
        | IA32_GS_BASE
        | IA32_BNDCFGS
        | IA32_PERF_GLOBAL_CTRL
        | IA32_S_CET => match level {
            Level::L1 => Owner::L1,
            Level::L2 => Owner::L2,
        },
        IA32_TIME_STAMP_COUNTER
        | IA32_TSC_ADJUST
        | IA32_TSC_DEADLINE
        | IA32_APIC_BASE
        | IA32_FEATURE_CONTROL => Owner::L1,
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2 | X2APIC_FIRST..=X2APIC_LAST => Owner::L1,
        // STAR, LSTAR, KERNEL_GS_BASE, TSC_AUX and the rest: one register; L1 may swap it by its
        // MSR-load lists, which entry and exit apply at once.
        _ => Owner::Shared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_state_is_restored_last_and_each_part_once() {
        assert_eq!(
            RESTORE_ORDER.last().map(|rule| rule.part),
            Some(Part::Nested)
        );
        let mut parts: Vec<_> = RESTORE_ORDER.iter().map(|rule| rule.part).collect();
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts.len(), RESTORE_ORDER.len());
    }

    #[test]
    fn the_apic_is_in_deadline_mode_before_the_deadline_comes() {
        let place = |part| RESTORE_ORDER.iter().position(|rule| rule.part == part);
        assert!(place(Part::Sregs) < place(Part::Lapic));
        assert!(place(Part::Lapic) < place(Part::Msrs));
    }

    #[test]
    fn the_apic_and_its_deadline_are_l1s_while_l2_runs() {
        assert_eq!(owner(Part::Lapic, Level::L2), Owner::L1);
        assert_eq!(
            msr_owner(crate::x86::msr::IA32_TSC_DEADLINE, Level::L2),
            Owner::L1
        );
        assert_eq!(owner(Part::Regs, Level::L2), Owner::L2);
    }
}
