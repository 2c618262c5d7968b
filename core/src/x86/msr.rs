//! Model-specific registers by number and name (SDM Vol. 4).

macro_rules! msrs {
    ($($number:literal $name:ident;)*) => {
        $(#[doc = concat!("MSR ", stringify!($number), ".")] pub const $name: u32 = $number;)*

        /// The architectural name of an MSR, if this table knows it.
        #[must_use]
        pub const fn name(number: u32) -> Option<&'static str> {
            match number {
                $($number => Some(stringify!($name)),)*
                _ => None,
            }
        }

        /// Every MSR of the table, in its order.
        pub const ALL: &[u32] = &[$($number),*];
    };
}

msrs! {
    0x0000_0010 IA32_TIME_STAMP_COUNTER;
    0x0000_001b IA32_APIC_BASE;
    0x0000_003a IA32_FEATURE_CONTROL;
    0x0000_003b IA32_TSC_ADJUST;
    0x0000_0048 IA32_SPEC_CTRL;
    0x0000_0049 IA32_PRED_CMD;
    0x0000_008b IA32_BIOS_SIGN_ID;
    0x0000_009e IA32_SMBASE;
    0x0000_00e1 IA32_UMWAIT_CONTROL;
    0x0000_00fe IA32_MTRRCAP;
    0x0000_010a IA32_ARCH_CAPABILITIES;
    0x0000_0140 MISC_FEATURE_ENABLES;
    0x0000_0174 IA32_SYSENTER_CS;
    0x0000_0175 IA32_SYSENTER_ESP;
    0x0000_0176 IA32_SYSENTER_EIP;
    0x0000_0179 IA32_MCG_CAP;
    0x0000_017a IA32_MCG_STATUS;
    0x0000_017b IA32_MCG_CTL;
    0x0000_01a0 IA32_MISC_ENABLE;
    0x0000_01d9 IA32_DEBUGCTL;
    0x0000_0277 IA32_PAT;
    0x0000_02ff IA32_MTRR_DEF_TYPE;
    0x0000_0345 IA32_PERF_CAPABILITIES;
    0x0000_038f IA32_PERF_GLOBAL_CTRL;
    0x0000_0480 IA32_VMX_BASIC;
    0x0000_0481 IA32_VMX_PINBASED_CTLS;
    0x0000_0482 IA32_VMX_PROCBASED_CTLS;
    0x0000_0483 IA32_VMX_EXIT_CTLS;
    0x0000_0484 IA32_VMX_ENTRY_CTLS;
    0x0000_0485 IA32_VMX_MISC;
    0x0000_0486 IA32_VMX_CR0_FIXED0;
    0x0000_0487 IA32_VMX_CR0_FIXED1;
    0x0000_0488 IA32_VMX_CR4_FIXED0;
    0x0000_0489 IA32_VMX_CR4_FIXED1;
    0x0000_048a IA32_VMX_VMCS_ENUM;
    0x0000_048b IA32_VMX_PROCBASED_CTLS2;
    0x0000_048c IA32_VMX_EPT_VPID_CAP;
    0x0000_048d IA32_VMX_TRUE_PINBASED_CTLS;
    0x0000_048e IA32_VMX_TRUE_PROCBASED_CTLS;
    0x0000_048f IA32_VMX_TRUE_EXIT_CTLS;
    0x0000_0490 IA32_VMX_TRUE_ENTRY_CTLS;
    0x0000_0491 IA32_VMX_VMFUNC;
    0x0000_0492 IA32_VMX_PROCBASED_CTLS3;
    0x0000_0493 IA32_VMX_EXIT_CTLS2;
    0x0000_06a0 IA32_U_CET;
    0x0000_06a2 IA32_S_CET;
    0x0000_06e0 IA32_TSC_DEADLINE;
    0x0000_0d90 IA32_BNDCFGS;
    0x0000_0da0 IA32_XSS;
    0x4b56_4d00 KVM_WALL_CLOCK_NEW;
    0x4b56_4d01 KVM_SYSTEM_TIME_NEW;
    0xc000_0080 IA32_EFER;
    0xc000_0081 IA32_STAR;
    0xc000_0082 IA32_LSTAR;
    0xc000_0083 IA32_CSTAR;
    0xc000_0084 IA32_FMASK;
    0xc000_0100 IA32_FS_BASE;
    0xc000_0101 IA32_GS_BASE;
    0xc000_0102 IA32_KERNEL_GS_BASE;
    0xc000_0103 IA32_TSC_AUX;
}

/// SMIs since RESET (SDM Vol. 4, "MSR_SMI_COUNT"). This and the three below are in no capture.
pub const SMI_COUNT: u32 = 0x34;
/// Ratios of the clock, and whether CPUID can be made to fault ("MSR_PLATFORM_INFO").
pub const PLATFORM_INFO: u32 = 0xce;
/// "MSR_POWER_CTL".
pub const POWER_CTL: u32 = 0x1fc;
/// AMD's HWCR.
pub const HWCR: u32 = 0xc001_0015;
/// First x2APIC register MSR.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC register MSR.
pub const X2APIC_LAST: u32 = 0x8ff;
