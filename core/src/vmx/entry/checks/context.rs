//! What the rules look at, and the questions that many of them ask.

use crate::addr::L1Phys;
use crate::cpu::Model;
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::pmu;
use crate::vmx::capability::{Capability, ControlField};
use crate::vmx::controls::{EntryControls, ExitControls, PinBased, Primary, Secondary, Tertiary};
use crate::vmx::entry::{
    active_secondary, active_tertiary, entry_controls, exit_controls, pin_based, primary,
};
use crate::vmx::instructions::{
    page_address_is_valid, physical_address_is_valid, structure_address_is_valid,
};
use crate::vmx::{Field, Vmcs12};
use crate::x86::control::{cr4, efer};
use crate::x86::cpuid;
use crate::x86::cr_write::is_canonical;

/// What the checks look at beside the vmcs12.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The vmcs12.
    pub vmcs12: &'a Vmcs12,
    /// Capabilities, widths and CPUID of L1's processor.
    pub model: &'a Model,
    /// L1's memory.
    pub memory: &'a dyn GuestMemory,
    /// Where the vmcs12 is; `None` if that is not known.
    pub current: Option<L1Phys>,
    /// IA32_EFER.LMA of L1 when it executes the instruction.
    pub l1_long_mode: bool,
    /// In SMM.
    pub smm: bool,
}

impl Context<'_> {
    #[inline(always)]
    pub(super) fn get(&self, field: Field) -> u64 {
        self.vmcs12.get(field)
    }

    #[inline(always)]
    pub(super) fn pin(&self, control: PinBased) -> bool {
        pin_based(self.vmcs12).contains(control)
    }

    #[inline(always)]
    pub(super) fn primary(&self, control: Primary) -> bool {
        primary(self.vmcs12).contains(control)
    }

    #[inline(always)]
    pub(super) fn secondary(&self, control: Secondary) -> bool {
        active_secondary(self.vmcs12).contains(control)
    }

    #[inline(always)]
    pub(super) fn tertiary(&self, control: Tertiary) -> bool {
        active_tertiary(self.vmcs12).intersects(control)
    }

    #[inline(always)]
    pub(super) fn exit(&self, control: ExitControls) -> bool {
        exit_controls(self.vmcs12).contains(control)
    }

    #[inline(always)]
    pub(super) fn entry(&self, control: EntryControls) -> bool {
        entry_controls(self.vmcs12).contains(control)
    }

    /// "IA-32e mode guest".
    #[inline(always)]
    pub(super) fn ia32e_guest(&self) -> bool {
        self.entry(EntryControls::IA32E_MODE_GUEST)
    }

    #[inline(always)]
    pub(super) fn unrestricted(&self) -> bool {
        self.secondary(Secondary::UNRESTRICTED_GUEST)
    }

    pub(super) fn capability(&self) -> Capability<'_> {
        Capability::from(self.model)
    }

    /// A control field against its capability MSR.
    pub(super) fn control_allowed(&self, field: Field, control: ControlField) -> bool {
        let allowed = self.capability().allowed(control);
        allowed.permits(self.get(field))
    }

    /// Whether the field holds the address of a 4-KiB structure.
    pub(super) fn page(&self, field: Field) -> bool {
        page_address_is_valid(self.model, L1Phys(self.get(field)))
    }

    /// Whether the address has no bits beyond the physical-address width.
    #[inline(always)]
    pub(super) fn in_width(&self, address: u64) -> bool {
        physical_address_is_valid(self.model, L1Phys(address))
    }

    #[inline(always)]
    pub(super) fn canonical(&self, field: Field) -> bool {
        self.canonical_value(self.get(field))
    }

    #[inline(always)]
    pub(super) fn canonical_value(&self, address: u64) -> bool {
        is_canonical(address, self.linear_width())
    }

    /// Bits of a linear address. (L1's CR4.LA57 is repeated in the host state.)
    #[inline(always)]
    fn linear_width(&self) -> u8 {
        let width = self.model.linear_width();
        let has_la57 = self.get(Field::HOST_CR4) & cr4::LA57 != 0;
        if self.model.as_kvm(Difference::CanonicalWidth) && !has_la57 {
            width.min(48)
        } else {
            width
        }
    }

    /// An MSR list of `count` 16-byte entries: aligned, in the physical-address width to its end.
    pub(super) fn msr_list(&self, address: Field, count: Field) -> bool {
        let (address, count) = (self.get(address), self.get(count));
        let last = address.wrapping_add(count * 16).wrapping_sub(1);
        let fits = |address| structure_address_is_valid(self.model, L1Phys(address));
        count == 0 || address & 15 == 0 && fits(address) && fits(last)
    }

    /// Bits reserved in IA32_EFER.
    pub(super) fn efer_reserved(&self) -> u64 {
        let edx = cpuid::lookup(&self.model.cpuid, 0x8000_0001, 0)[3];
        let mut known = efer::SCE;
        if edx & 1 << 20 != 0 {
            known |= efer::NXE;
        }
        if edx & 1 << 29 != 0 {
            known |= efer::LME | efer::LMA;
        }
        !known
    }

    /// Bits reserved in IA32_PERF_GLOBAL_CTRL, from CPUID leaf 0AH.
    pub(super) fn perf_global_ctrl_reserved(&self) -> u64 {
        pmu::counters(self.model).map_or(u64::MAX, |counters| !counters)
    }

    /// Bits reserved in IA32_DEBUGCTL.
    pub(super) fn debugctl_reserved(&self) -> u64 {
        const LBR_AND_BTF: u64 = 0b11;
        if self.model.as_kvm(Difference::DebugctlReserved) {
            return !LBR_AND_BTF;
        }
        // LBR, BTF, TR, BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR, FREEZE_LBRS_ON_PMI,
        // FREEZE_PERFMON_ON_PMI, UNCORE_PMI_EN, FREEZE_WHILE_SMM, RTM_DEBUG.
        !0xffc3
    }
}

/// Whether each byte of an IA32_PAT value is a memory type: UC, WC, WT, WP, WB, UC-.
pub(super) fn pat_is_valid(pat: u64) -> bool {
    pat.to_le_bytes()
        .iter()
        .all(|memory_type| matches!(memory_type, 0 | 1 | 4..=7))
}

/// Whether an IA32_S_CET value keeps reserved bits clear and not both SUPPRESS and TRACKER set (SDM Vol. 1
/// "CET MSRs").
pub(super) const fn s_cet_is_valid(value: u64) -> bool {
    const RESERVED: u64 = 0xf << 6;
    const SUPPRESS_AND_TRACKER: u64 = 3 << 10;
    value & RESERVED == 0 && value & SUPPRESS_AND_TRACKER != SUPPRESS_AND_TRACKER
}

/// `a` implies `b`, which is evaluated only if `a` holds.
macro_rules! implies {
    ($a:expr, $b:expr $(,)?) => {
        !$a || $b
    };
}
pub(super) use implies;
