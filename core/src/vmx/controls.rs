//! The VM-execution, VM-exit and VM-entry controls, bit by bit (SDM Vol. 3C "VM-Execution Control
//! Fields", "VM-Exit Control Fields" and "VM-Entry Control Fields").
//!
//! Each table reads like the SDM's: bit, constant, the SDM's name. Bits without a row are kept (what
//! they must be, the capability MSRs say: [`super::capability`]).

/// One control of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Bit position.
    pub bit: u32,
    /// The constant's name.
    pub constant: &'static str,
    /// The SDM's name.
    pub name: &'static str,
}

macro_rules! controls {
    ($(#[$doc:meta])* $type:ident($bits:ty) { $($bit:literal $constant:ident $name:literal;)* }) => {
        bitflags::bitflags! {
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
            pub struct $type: $bits {
                $(#[doc = concat!("Bit ", stringify!($bit), ": ", $name, ".")] const $constant = 1 << $bit;)*
                const _ = !0;
            }
        }

        impl $type {
            /// The table.
            pub const ROWS: &'static [Row] = &[$(Row {
                bit: $bit,
                constant: stringify!($constant),
                name: $name,
            },)*];

            /// The SDM's names of the bits that are set; bits without a name are left out.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                let set = Self::ROWS.iter().filter(move |row| self.bits() >> row.bit & 1 != 0);
                set.map(|row| row.name)
            }

            /// The bits that have no row.
            #[must_use]
            pub fn unnamed(self) -> $bits {
                Self::ROWS.iter().fold(self.bits(), |bits, row| bits & !(1 << row.bit))
            }
        }
    };
}

controls! {
    /// Pin-based VM-execution controls.
    PinBased(u32) {
        0 EXTERNAL_INTERRUPT_EXITING "External-interrupt exiting";
        3 NMI_EXITING "NMI exiting";
        5 VIRTUAL_NMIS "Virtual NMIs";
        6 ACTIVATE_PREEMPTION_TIMER "Activate VMX-preemption timer";
        7 PROCESS_POSTED_INTERRUPTS "Process posted interrupts";
    }
}

controls! {
    /// Primary processor-based VM-execution controls.
    Primary(u32) {
        2 INTERRUPT_WINDOW_EXITING "Interrupt-window exiting";
        3 USE_TSC_OFFSETTING "Use TSC offsetting";
        7 HLT_EXITING "HLT exiting";
        9 INVLPG_EXITING "INVLPG exiting";
        10 MWAIT_EXITING "MWAIT exiting";
        11 RDPMC_EXITING "RDPMC exiting";
        12 RDTSC_EXITING "RDTSC exiting";
        15 CR3_LOAD_EXITING "CR3-load exiting";
        16 CR3_STORE_EXITING "CR3-store exiting";
        17 ACTIVATE_TERTIARY_CONTROLS "Activate tertiary controls";
        19 CR8_LOAD_EXITING "CR8-load exiting";
        20 CR8_STORE_EXITING "CR8-store exiting";
        21 USE_TPR_SHADOW "Use TPR shadow";
        22 NMI_WINDOW_EXITING "NMI-window exiting";
        23 MOV_DR_EXITING "MOV-DR exiting";
        24 UNCONDITIONAL_IO_EXITING "Unconditional I/O exiting";
        25 USE_IO_BITMAPS "Use I/O bitmaps";
        27 MONITOR_TRAP_FLAG "Monitor trap flag";
        28 USE_MSR_BITMAPS "Use MSR bitmaps";
        29 MONITOR_EXITING "MONITOR exiting";
        30 PAUSE_EXITING "PAUSE exiting";
        31 ACTIVATE_SECONDARY_CONTROLS "Activate secondary controls";
    }
}

controls! {
    /// Secondary processor-based VM-execution controls.
    Secondary(u32) {
        0 VIRTUALIZE_APIC_ACCESSES "Virtualize APIC accesses";
        1 ENABLE_EPT "Enable EPT";
        2 DESCRIPTOR_TABLE_EXITING "Descriptor-table exiting";
        3 ENABLE_RDTSCP "Enable RDTSCP";
        4 VIRTUALIZE_X2APIC_MODE "Virtualize x2APIC mode";
        5 ENABLE_VPID "Enable VPID";
        6 WBINVD_EXITING "WBINVD exiting";
        7 UNRESTRICTED_GUEST "Unrestricted guest";
        8 APIC_REGISTER_VIRTUALIZATION "APIC-register virtualization";
        9 VIRTUAL_INTERRUPT_DELIVERY "Virtual-interrupt delivery";
        10 PAUSE_LOOP_EXITING "PAUSE-loop exiting";
        11 RDRAND_EXITING "RDRAND exiting";
        12 ENABLE_INVPCID "Enable INVPCID";
        13 ENABLE_VM_FUNCTIONS "Enable VM functions";
        14 VMCS_SHADOWING "VMCS shadowing";
        15 ENABLE_ENCLS_EXITING "Enable ENCLS exiting";
        16 RDSEED_EXITING "RDSEED exiting";
        17 ENABLE_PML "Enable PML";
        18 EPT_VIOLATION_VE "EPT-violation #VE";
        19 CONCEAL_VMX_FROM_PT "Conceal VMX from PT";
        20 ENABLE_XSAVES "Enable XSAVES/XRSTORS";
        21 PASID_TRANSLATION "PASID translation";
        22 MODE_BASED_EXECUTE_CONTROL "Mode-based execute control for EPT";
        23 SUB_PAGE_WRITE_PERMISSIONS "Sub-page write permissions for EPT";
        24 PT_USES_GUEST_PHYSICAL "Intel PT uses guest physical addresses";
        25 USE_TSC_SCALING "Use TSC scaling";
        26 ENABLE_USER_WAIT_AND_PAUSE "Enable user wait and pause";
        27 ENABLE_PCONFIG "Enable PCONFIG";
        28 ENABLE_ENCLV_EXITING "Enable ENCLV exiting";
        30 BUS_LOCK_DETECTION "VMM bus-lock detection";
        31 INSTRUCTION_TIMEOUT "Instruction timeout";
    }
}

controls! {
    /// Tertiary processor-based VM-execution controls (64 bits).
    Tertiary(u64) {
        0 LOADIWKEY_EXITING "LOADIWKEY exiting";
        1 ENABLE_HLAT "Enable HLAT";
        2 EPT_PAGING_WRITE_CONTROL "EPT paging-write control";
        3 GUEST_PAGING_VERIFICATION "Guest-paging verification";
        4 IPI_VIRTUALIZATION "IPI virtualization";
        6 ENABLE_MSR_LIST_INSTRUCTIONS "Enable MSR-list instructions";
        7 VIRTUALIZE_SPEC_CTRL "Virtualize IA32_SPEC_CTRL";
        8 VIRTUALIZE_APIC_TIMER "APIC-timer virtualization";
    }
}

controls! {
    /// Primary VM-exit controls.
    ExitControls(u32) {
        2 SAVE_DEBUG_CONTROLS "Save debug controls";
        9 HOST_ADDRESS_SPACE_SIZE "Host address-space size";
        12 LOAD_PERF_GLOBAL_CTRL "Load IA32_PERF_GLOBAL_CTRL";
        15 ACKNOWLEDGE_INTERRUPT_ON_EXIT "Acknowledge interrupt on exit";
        18 SAVE_PAT "Save IA32_PAT";
        19 LOAD_PAT "Load IA32_PAT";
        20 SAVE_EFER "Save IA32_EFER";
        21 LOAD_EFER "Load IA32_EFER";
        22 SAVE_PREEMPTION_TIMER_VALUE "Save VMX-preemption timer value";
        23 CLEAR_BNDCFGS "Clear IA32_BNDCFGS";
        24 CONCEAL_VMX_FROM_PT "Conceal VMX from PT";
        25 CLEAR_RTIT_CTL "Clear IA32_RTIT_CTL";
        26 CLEAR_LBR_CTL "Clear IA32_LBR_CTL";
        27 CLEAR_UINV "Clear UINV";
        28 LOAD_CET_STATE "Load CET state";
        29 LOAD_PKRS "Load PKRS";
        30 SAVE_PERF_GLOBAL_CTRL "Save IA32_PERF_GLOBAL_CTL";
        31 ACTIVATE_SECONDARY_CONTROLS "Activate secondary controls";
    }
}

controls! {
    /// Secondary VM-exit controls (64 bits).
    SecondaryExit(u64) {
        0 SAVE_FRED "Save IA32 FRED MSRs";
        1 LOAD_FRED "Load IA32 FRED MSRs";
        2 LOAD_SPEC_CTRL "Load IA32_SPEC_CTRL";
        3 PREMATURELY_BUSY_SHADOW_STACK "Prematurely busy shadow stack";
    }
}

controls! {
    /// VM-entry controls.
    EntryControls(u32) {
        2 LOAD_DEBUG_CONTROLS "Load debug controls";
        9 IA32E_MODE_GUEST "IA-32e mode guest";
        10 ENTRY_TO_SMM "Entry to SMM";
        11 DEACTIVATE_DUAL_MONITOR_TREATMENT "Deactivate dual-monitor treatment";
        13 LOAD_PERF_GLOBAL_CTRL "Load IA32_PERF_GLOBAL_CTRL";
        14 LOAD_PAT "Load IA32_PAT";
        15 LOAD_EFER "Load IA32_EFER";
        16 LOAD_BNDCFGS "Load IA32_BNDCFGS";
        17 CONCEAL_VMX_FROM_PT "Conceal VMX from PT";
        18 LOAD_RTIT_CTL "Load IA32_RTIT_CTL";
        19 LOAD_UINV "Load UINV";
        20 LOAD_CET_STATE "Load CET state";
        21 LOAD_LBR_CTL "Load guest IA32_LBR_CTL";
        22 LOAD_PKRS "Load PKRS";
        23 LOAD_FRED "Load IA32 FRED MSRs";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_names_unique() {
        let tables = [
            PinBased::ROWS,
            Primary::ROWS,
            Secondary::ROWS,
            Tertiary::ROWS,
            ExitControls::ROWS,
            SecondaryExit::ROWS,
            EntryControls::ROWS,
        ];
        for rows in tables {
            assert!(rows.is_sorted_by(|a, b| a.bit < b.bit && a.name != b.name));
        }
    }

    #[test]
    fn bits_are_kept_and_named() {
        let primary = Primary::from_bits_retain(0xb5a0_65fa);
        assert_eq!(primary.bits(), 0xb5a0_65fa);
        assert!(primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS));
        let names: Vec<_> = PinBased::from_bits_retain(0x56).names().collect();
        assert_eq!(names, ["Activate VMX-preemption timer"]);
        // The bits that default to 1 have no name: SDM appendix A.3.1.
        assert_eq!(PinBased::from_bits_retain(0x56).unnamed(), 0x16);
    }
}
