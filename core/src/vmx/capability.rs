//! The VMX capability MSRs (SDM Vol. 3, appendix A "VMX Capability Reporting Facility"): what a
//! processor, or KVM as the processor of L1, lets the fields of a VMCS be.

pub use crate::profiles::KVM_6_1_ICELAKE;

use crate::cpu::Model;
use crate::x86::msr;

/// Number of capability MSRs, from IA32_VMX_BASIC (0x480) to IA32_VMX_EXIT_CTLS2 (0x493).
pub const MSR_COUNT: usize = 20;

/// A field of controls that the capability MSRs restrict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlField {
    /// Pin-based VM-execution controls.
    PinBased,
    /// Primary processor-based VM-execution controls.
    Primary,
    /// Secondary processor-based VM-execution controls.
    Secondary,
    /// Tertiary processor-based VM-execution controls.
    Tertiary,
    /// Primary VM-exit controls.
    Exit,
    /// Secondary VM-exit controls.
    SecondaryExit,
    /// VM-entry controls.
    Entry,
}

impl ControlField {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PinBased,
        Self::Primary,
        Self::Secondary,
        Self::Tertiary,
        Self::Exit,
        Self::SecondaryExit,
        Self::Entry,
    ];
}

/// What a control field may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Allowed 0-settings: a bit set here must be 1 in the field.
    pub must_be_one: u64,
    /// Allowed 1-settings: a bit clear here must be 0 in the field.
    pub may_be_one: u64,
}

impl Allowed {
    /// Whether a value keeps both rules.
    #[must_use]
    pub const fn permits(self, value: u64) -> bool {
        self.violations(value) == 0
    }

    /// The bits that break a rule.
    #[must_use]
    pub const fn violations(self, value: u64) -> u64 {
        (self.must_be_one & !value) | (value & !self.may_be_one)
    }

    /// The wanted bits with what must be one added and what may not be one taken away.
    #[must_use]
    pub const fn adjust(self, wanted: u64) -> u64 {
        (wanted | self.must_be_one) & self.may_be_one
    }
}

bitflags::bitflags! {
    /// IA32_VMX_EPT_VPID_CAP (SDM appendix A.10 "VPID and EPT Capabilities").
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct EptVpid: u64 {
        /// Execute-only translations.
        const EXECUTE_ONLY = 1 << 0;
        /// Page-walk length 4.
        const WALK_LENGTH_4 = 1 << 6;
        /// Page-walk length 5.
        const WALK_LENGTH_5 = 1 << 7;
        /// EPT paging structures may be uncacheable.
        const MEMORY_TYPE_UC = 1 << 8;
        /// EPT paging structures may be write-back.
        const MEMORY_TYPE_WB = 1 << 14;
        /// 2-MiB pages.
        const PAGES_2M = 1 << 16;
        /// 1-GiB pages.
        const PAGES_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags.
        const ACCESSED_DIRTY = 1 << 21;
        /// Advanced VM-exit information for EPT violations.
        const ADVANCED_EXIT_INFORMATION = 1 << 22;
        /// Supervisor shadow-stack control.
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT type 1: single context.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT type 2: all contexts.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID type 0: individual address.
        const INVVPID_ADDRESS = 1 << 40;
        /// INVVPID type 1: single context.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID type 2: all contexts.
        const INVVPID_ALL = 1 << 42;
        /// INVVPID type 3: single context, retaining globals.
        const INVVPID_SINGLE_RETAINING_GLOBALS = 1 << 43;
        const _ = !0;
    }
}

/// Typed view of the capability MSRs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability<'a> {
    msrs: &'a [u64; MSR_COUNT],
}

impl<'a> From<&'a [u64; MSR_COUNT]> for Capability<'a> {
    fn from(msrs: &'a [u64; MSR_COUNT]) -> Self {
        Self::new(msrs)
    }
}

impl<'a> From<&'a Model> for Capability<'a> {
    fn from(model: &'a Model) -> Self {
        Self::new(&model.vmx_msrs)
    }
}

impl<'a> Capability<'a> {
    /// A view of MSRs 0x480 to 0x493, by `number - 0x480`.
    #[must_use]
    pub const fn new(msrs: &'a [u64; MSR_COUNT]) -> Self {
        Self { msrs }
    }

    /// The value of a capability MSR by its number; `None` for other MSRs.
    #[must_use]
    pub const fn msr(self, number: u32) -> Option<u64> {
        let index = number.wrapping_sub(msr::IA32_VMX_BASIC) as usize;
        if index < MSR_COUNT {
            Some(self.msrs[index])
        } else {
            None
        }
    }

    #[inline]
    const fn at(self, number: u32) -> u64 {
        self.msrs[(number - msr::IA32_VMX_BASIC) as usize]
    }

    // A.1 "Basic VMX Information"

    /// VMCS revision identifier, 31 bits.
    #[inline]
    #[must_use]
    pub const fn revision(self) -> u32 {
        self.at(msr::IA32_VMX_BASIC) as u32 & 0x7fff_ffff
    }

    /// Bytes of a VMXON or VMCS region.
    #[must_use]
    pub const fn region_size(self) -> u32 {
        (self.at(msr::IA32_VMX_BASIC) >> 32) as u32 & 0x1fff
    }

    /// Physical addresses of VMX structures are limited to 32 bits.
    #[must_use]
    pub const fn addresses_are_32_bit(self) -> bool {
        self.basic_bit(48)
    }

    /// Dual-monitor treatment of SMIs and SMM.
    #[must_use]
    pub const fn dual_monitor(self) -> bool {
        self.basic_bit(49)
    }

    /// Memory type of VMX structures: 0 uncacheable, 6 write-back.
    #[must_use]
    pub const fn memory_type(self) -> u8 {
        (self.at(msr::IA32_VMX_BASIC) >> 50) as u8 & 0xf
    }

    /// VM exits of INS and OUTS report the instruction information.
    #[must_use]
    pub const fn ins_outs_information(self) -> bool {
        self.basic_bit(54)
    }

    /// The TRUE capability MSRs exist.
    #[inline]
    #[must_use]
    pub const fn has_true_controls(self) -> bool {
        self.basic_bit(55)
    }

    /// VM entry may inject a hardware exception with or without error code, whatever its vector.
    #[must_use]
    pub const fn any_error_code(self) -> bool {
        self.basic_bit(56)
    }

    const fn basic_bit(self, bit: u32) -> bool {
        self.at(msr::IA32_VMX_BASIC) >> bit & 1 != 0
    }

    // A.3 to A.5 "VM-Execution Controls", "VM-Exit Controls", "VM-Entry Controls"

    /// What a control field may be. Fields that only some processors have (secondary, tertiary,
    /// secondary VM-exit) allow nothing where the bit that activates them is not allowed.
    #[must_use]
    pub const fn allowed(self, field: ControlField) -> Allowed {
        let true_controls = self.has_true_controls();
        let number = match field {
            ControlField::PinBased if true_controls => msr::IA32_VMX_TRUE_PINBASED_CTLS,
            ControlField::PinBased => msr::IA32_VMX_PINBASED_CTLS,
            ControlField::Primary if true_controls => msr::IA32_VMX_TRUE_PROCBASED_CTLS,
            ControlField::Primary => msr::IA32_VMX_PROCBASED_CTLS,
            ControlField::Exit if true_controls => msr::IA32_VMX_TRUE_EXIT_CTLS,
            ControlField::Exit => msr::IA32_VMX_EXIT_CTLS,
            ControlField::Entry if true_controls => msr::IA32_VMX_TRUE_ENTRY_CTLS,
            ControlField::Entry => msr::IA32_VMX_ENTRY_CTLS,
            ControlField::Secondary => msr::IA32_VMX_PROCBASED_CTLS2,
            ControlField::Tertiary => msr::IA32_VMX_PROCBASED_CTLS3,
            ControlField::SecondaryExit => msr::IA32_VMX_EXIT_CTLS2,
        };
        let activated = match field {
            ControlField::Secondary => self.allowed(ControlField::Primary).may_be_one >> 31,
            ControlField::Tertiary => self.allowed(ControlField::Primary).may_be_one >> 17,
            ControlField::SecondaryExit => self.allowed(ControlField::Exit).may_be_one >> 31,
            _ => 1,
        };
        let value = self.at(number);
        match field {
            _ if activated & 1 == 0 => Allowed {
                must_be_one: 0,
                may_be_one: 0,
            },
            // These two are 64 bits of allowed 1-settings; every bit may be 0.
            ControlField::Tertiary | ControlField::SecondaryExit => Allowed {
                must_be_one: 0,
                may_be_one: value,
            },
            _ => Allowed {
                must_be_one: value & 0xffff_ffff,
                may_be_one: value >> 32,
            },
        }
    }

    // A.6 "Miscellaneous Data"

    #[inline]
    const fn misc(self) -> u64 {
        self.at(msr::IA32_VMX_MISC)
    }

    /// The preemption timer counts down by one every time this bit of the TSC changes.
    #[inline]
    #[must_use]
    pub const fn preemption_timer_rate(self) -> u32 {
        (self.misc() & 0x1f) as u32
    }

    /// VM exits store EFER.LMA into the control "IA-32e mode guest".
    #[must_use]
    pub const fn stores_efer_lma(self) -> bool {
        self.misc() >> 5 & 1 != 0
    }

    /// Whether VM entry may set an activity state: 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI.
    #[must_use]
    pub const fn allows_activity(self, state: u32) -> bool {
        match state {
            0 => true,
            1..=3 => self.misc() >> (5 + state) & 1 != 0,
            _ => false,
        }
    }

    /// Intel PT may be used in VMX operation.
    #[must_use]
    pub const fn allows_intel_pt(self) -> bool {
        self.misc() >> 14 & 1 != 0
    }

    /// Number of CR3-target values: 0 to 256, KVM has none.
    #[must_use]
    pub const fn cr3_targets(self) -> u32 {
        (self.misc() >> 16) as u32 & 0x1ff
    }

    /// Number of MSRs that a list for VM entry or VM exit may hold.
    #[must_use]
    pub const fn msr_list_limit(self) -> u32 {
        512 * (((self.misc() >> 25) as u32 & 7) + 1)
    }

    /// RDMSR in SMM reads IA32_SMBASE.
    #[must_use]
    pub const fn rdmsr_smbase(self) -> bool {
        self.misc() >> 15 & 1 != 0
    }

    /// VMXOFF can leave SMIs blocked.
    #[must_use]
    pub const fn vmxoff_can_block_smi(self) -> bool {
        self.misc() >> 28 & 1 != 0
    }

    /// VMWRITE can write VM-exit information fields.
    #[inline]
    #[must_use]
    pub const fn vmwrite_any(self) -> bool {
        self.misc() >> 29 & 1 != 0
    }

    /// VM entry can inject software events with instruction length 0.
    #[must_use]
    pub const fn zero_length_injection(self) -> bool {
        self.misc() >> 30 & 1 != 0
    }

    /// MSEG revision identifier.
    #[must_use]
    pub const fn mseg_revision(self) -> u32 {
        (self.misc() >> 32) as u32
    }

    // A.7, A.8 "VMX-Fixed Bits in CR0", "VMX-Fixed Bits in CR4"

    /// What CR0 may be in VMX operation. (With "unrestricted guest", PE and PG of L2 are free.)
    #[must_use]
    pub const fn cr0(self) -> Allowed {
        Allowed {
            must_be_one: self.at(msr::IA32_VMX_CR0_FIXED0),
            may_be_one: self.at(msr::IA32_VMX_CR0_FIXED1),
        }
    }

    /// What CR4 may be in VMX operation.
    #[must_use]
    pub const fn cr4(self) -> Allowed {
        Allowed {
            must_be_one: self.at(msr::IA32_VMX_CR4_FIXED0),
            may_be_one: self.at(msr::IA32_VMX_CR4_FIXED1),
        }
    }

    // A.9 to A.11

    /// Highest index of any VMCS field.
    #[must_use]
    pub const fn highest_field_index(self) -> u32 {
        (self.at(msr::IA32_VMX_VMCS_ENUM) >> 1) as u32 & 0x1ff
    }

    /// EPT and VPID capabilities.
    #[inline]
    #[must_use]
    pub const fn ept_vpid(self) -> EptVpid {
        EptVpid::from_bits_retain(self.at(msr::IA32_VMX_EPT_VPID_CAP))
    }

    /// VM functions: allowed 1-settings of the VM-function controls.
    #[must_use]
    pub const fn vm_functions(self) -> u64 {
        self.at(msr::IA32_VMX_VMFUNC)
    }
}

#[cfg(test)]
mod tests;
