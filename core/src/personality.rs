//! Where KVM's answer to L1 is another than the SDM's: a table, and the only place that knows of it. Code
//! that has two answers asks [`Model::as_kvm`] with the row's name.
//!
//! What KVM does without contradicting the SDM (checks in an order of its own, fields in memory that the
//! SDM leaves to the processor) is no row: both personalities do it KVM's way.

use crate::cpu::Model;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Whose behaviour the model shows where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Personality {
    /// The SDM's: what silicon does.
    Sdm,
    /// That of KVM's L0, as L1 sees it.
    #[default]
    Kvm,
}

impl Personality {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sdm, Self::Kvm];

    /// `sdm` or `kvm`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sdm => "sdm",
            Self::Kvm => "kvm",
        }
    }
}

impl fmt::Display for Personality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Personality {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|personality| personality.name() == text)
            .ok_or_else(|| format!("{text:?} is no personality; known are sdm and kvm"))
    }
}

impl Model {
    /// Whether the model behaves as KVM does in this respect.
    #[inline(always)]
    #[must_use]
    pub const fn as_kvm(&self, _respect: Difference) -> bool {
        matches!(self.personality, Personality::Kvm)
    }
}

/// A respect in which KVM differs.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The respect.
    pub difference: Difference,
    /// Its name: `sysenter-address`.
    pub id: &'static str,
    /// Title of the SDM section.
    pub section: &'static str,
    /// What the SDM has.
    pub sdm: &'static str,
    /// What KVM does.
    pub kvm: &'static str,
    /// The function of Linux that does it.
    pub function: &'static str,
    /// Why KVM does so, as far as its source says.
    pub reason: &'static str,
}

macro_rules! differences {
    ($($name:ident $id:literal $section:literal
        sdm: $sdm:literal
        kvm: $kvm:literal in $function:literal
        why: $reason:literal;)*) => {
        /// The respects in which KVM differs, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Difference {
            $(#[doc = concat!($section, ": ", $sdm, ".")] $name,)*
        }

        /// Every respect in which KVM differs.
        pub static ROWS: &[Row] = &[$(Row {
            difference: Difference::$name,
            id: $id,
            section: $section,
            sdm: $sdm,
            kvm: $kvm,
            function: $function,
            reason: $reason,
        },)*];
    };
}

differences! {
    EntryRounds "entry-rounds" "VM Entries"
        sdm: "every check of a control or of host state comes before guest state is loaded, and every check of guest state before the MSR-load list"
        kvm: "some checks are made in software, the others by the processor behind the MSR-load list; rules that nobody enforces there hold"
            in "nested_vmx_run, nested_vmx_enter_non_root_mode"
        why: "L0 leaves to the processor what it passes on in vmcs02 unchanged";
    EntryActivity "entry-activity" "Checks on Guest Non-Register State"
        sdm: "the activity state has to fit privilege, interruptibility, pending debug exceptions and the event injected"
        kvm: "the activity state has to exist, and nothing else"
            in "nested_vmx_run, nested_check_guest_non_reg_state"
        why: "the processor is entered active, and L0 halts the vCPU itself";
    VirtualApicPage "virtual-apic-page" "VM-Execution Control Fields"
        sdm: "the virtual-APIC page may be any page in the physical-address width"
        kvm: "the virtual-APIC page has to be RAM, unless CR8 is intercepted whole and APIC accesses are not virtualised; the entry fails with error 7 else"
            in "nested_get_vmcs12_pages"
        why: "L0 maps the page to point the processor at it";
    WindowInHlt "window-in-hlt" "VM Entries and Advanced Debugging Features"
        sdm: "an entry to HLT with an open window is in HLT when the window's exit comes"
        kvm: "the vCPU is not halted at all, and the exit saves the active state"
            in "nested_vmx_run"
        why: "a halted vCPU would not be run, and so would never see the window";
    CanonicalWidth "canonical-width" "Canonicality Checking"
        sdm: "addresses are checked against the linear-address width of the processor"
        kvm: "addresses are checked against the width that L1's CR4.LA57 selects"
            in "is_noncanonical_address"
        why: "one test serves all canonicality checks up to Linux 6.12";
    DebugctlReserved "debugctl-reserved" "Checks on Guest Control Registers, Debug Registers, and MSRs"
        sdm: "the bits of IA32_DEBUGCTL that the SDM defines may be set"
        kvm: "only LBR and BTF pass"
            in "vmx_is_valid_debugctl"
        why: "KVM offers what it virtualises; LBR and BTF are let through for old guests";
    EntryDebugctl "entry-debugctl" "Loading Guest Control Registers, Debug Registers, and MSRs"
        sdm: "IA32_DEBUGCTL is loaded from the guest-state area"
        kvm: "LBR and BTF are dropped, so that it is loaded with 0"
            in "vmx_set_msr, vmx_get_supported_debugctl"
        why: "neither is virtualised without LBRs";
    WrittenDebugctl "written-debugctl" "IA32_DEBUGCTL MSR"
        sdm: "WRMSR sets LBR and BTF"
        kvm: "WRMSR drops LBR and BTF silently"
            in "vmx_set_msr"
        why: "Windows sets them without a look at what is there";
    EntryCr0 "entry-cr0" "Loading Guest Control Registers, Debug Registers, and MSRs"
        sdm: "ET, CD, NW and the reserved bits of CR0 keep the value that they had"
        kvm: "CR0 is loaded whole"
            in "prepare_vmcs02, vmx_set_cr0"
        why: "L0 does not use those bits of a guest";
    EntryEfer "entry-efer" "Loading Guest Control Registers, Debug Registers, and MSRs"
        sdm: "without \"load IA32_EFER\", LME changes only if CR0.PG is being set"
        kvm: "LME and LMA follow \"IA-32e mode guest\" always"
            in "nested_vmx_calc_efer"
        why: "one expression for both";
    ExitCr "exit-cr" "Loading Host Control Registers, Debug Registers, and MSRs"
        sdm: "ET, CD, NW and the reserved bits of CR0 keep their value, CR4.PAE and CR4.PCIDE follow \"host address-space size\""
        kvm: "CR0 and CR4 are loaded whole"
            in "load_vmcs12_host_state"
        why: "the checks of the entry have settled it";
    ExitNullSelectors "exit-null-selectors" "Loading Host Segment and Descriptor-Table Registers"
        sdm: "a segment whose selector is null becomes unusable"
        kvm: "segments of data are usable whatever their selector"
            in "load_vmcs12_host_state"
        why: "the access rights are constants there";
    ExitMsrs "exit-msrs" "Saving Control Registers, Debug Registers, and MSRs"
        sdm: "the exit saves IA32_DEBUGCTL, IA32_PAT and IA32_PERF_GLOBAL_CTRL"
        kvm: "L2's own writes go to the field at once, and the exit saves nothing"
            in "vmx_set_msr"
        why: "the register that L1 gets back is loaded over it otherwise";
    ExitShutdown "exit-shutdown" "Saving Non-Register State"
        sdm: "an exit from the shutdown state saves it as the activity state"
        kvm: "the active state is saved"
            in "sync_vmcs02_to_vmcs12_rare"
        why: "a vCPU of KVM's is halted, waits for a SIPI or runs";
    ExitNmiBlocking "exit-nmi-blocking" "Updating Non-Register State"
        sdm: "NMIs are blocked after an exit as they were in L2"
        kvm: "NMIs are blocked after an exit as they were in L1 before it entered"
            in "load_vmcs12_host_state, vmx_set_nmi_mask"
        why: "the host's blocking is kept apart in software";
    VectoringInt1 "vectoring-int1" "Information for VM Exits During Event Delivery"
        sdm: "an exit during the delivery of INT1's #DB has IDT-vectoring information"
        kvm: "it has none"
            in "vmcs12_save_pending_event"
        why: "the type is not among those that L0 injects";
    VectoringLength "vectoring-length" "Information for VM Exits Due to Instruction Execution"
        sdm: "the length of an INT n whose delivery exits is the VM-exit instruction length alone"
        kvm: "it goes to the VM-entry instruction length too"
            in "vmcs12_save_pending_event"
        why: "the wrong one of two fields is written";
    VectoringNmiBlocking "vectoring-nmi-blocking" "Architectural State Before a VM Exit"
        sdm: "an exit during the delivery of an NMI saves blocking by NMI, which that delivery has begun"
        kvm: "no blocking by NMI is saved if the exit has IDT-vectoring information of an NMI"
            in "__vmx_complete_interrupts"
        why: "L0 is to inject the NMI again, which the processor refuses while NMIs are blocked";
    IretNmiBlocking "iret-nmi-blocking" "Interruptibility State"
        sdm: "with NMI exiting and without virtual NMIs blocking by NMI stays as long as L2 runs, whatever IRET it executes"
        kvm: "an IRET of L2 ends it"
            in "prepare_vmcs02_early"
        why: "L0 itself runs L2 with virtual NMIs, and their blocking is what the VMCS of L1 shows";
    InitInWaitForSipi "init-in-wait-for-sipi" "Other Causes of VM Exits"
        sdm: "an INIT signal that comes in the wait-for-SIPI state of L2 is blocked and waits"
        kvm: "it is dropped, and a pending MTF VM exit with it"
            in "vmx_check_nested_events"
        why: "the INIT is taken from the APIC before the state is looked at";
    McgStatus "mcg-status" "IA32_MCG_STATUS MSR"
        sdm: "WRMSR of IA32_MCG_STATUS with anything but 0 is #GP"
        kvm: "it takes any value"
            in "set_msr_mce"
        why: "user space restores it by the same path";
    SmmSaveMap "smm-save-map" "SMRAM State Save Map"
        sdm: "the state save area is that of the SDM's table for Intel 64; HLT is noted in it and gone back to"
        kvm: "it is AMD's, and RSM never goes back to HLT"
            in "enter_smm_save_state_64, rsm_load_state_64"
        why: "one map serves both vendors, and firmware for guests knows it";
    SmiInL2 "smi-in-l2" "Default Treatment of SMI Delivery"
        sdm: "an SMI leaves VMX operation, with MSRs as they are and a pending MTF VM exit kept, and before debug traps; RSM goes back, and fixes what VMX operation fixes"
        kvm: "an SMI in L2 goes by L1: host state is loaded without a VM exit, a pending MTF VM exit goes first, CR4.VMXE is in SMRAM; RSM enters L2 from the vmcs12"
            in "vmx_enter_smm, vmx_leave_smm"
        why: "the paths of VM exit and entry are there already (a TODO there)";
    ApicReset "apic-reset" "Enabling or Disabling the Local APIC"
        sdm: "a local APIC that IA32_APIC_BASE enables again is in its state after power-up"
        kvm: "its registers are what they were, but for the id"
            in "kvm_lapic_set_base"
        why: "disabling it in software is what guests do";
    ApicErrors "apic-errors" "Error Handling"
        sdm: "a write of the error status register shows the errors since the last one: illegal vectors sent and received, illegal register addresses; the first signals the error interrupt"
        kvm: "the error status register is zero"
            in "kvm_lapic_reg_write"
        why: "its source gives none";
    X2ApicReserved "x2apic-reserved" "Reserved Bit Checking"
        sdm: "a write of a reserved bit of an x2APIC register is #GP, EOI's every bit among them"
        kvm: "reserved bits in the low half are dropped"
            in "kvm_lapic_reg_write"
        why: "the registers are those of xAPIC mode, where reserved bits are ignored";
    Abort "abort" "VMX Aborts"
        sdm: "a VMX abort writes its indicator into the VMCS and shuts down"
        kvm: "no indicator is written; L1 gets a triple fault"
            in "nested_vmx_abort"
        why: "the indicator is left for later (a TODO there)";
    VmcsFields "vmcs-fields" "VMREAD, VMWRITE"
        sdm: "a field is there if the processor supports a control that brings it"
        kvm: "the fields of struct vmcs12 are there, whatever controls are offered"
            in "get_vmcs12_field_offset"
        why: "one table serves every configuration";
    CpuidFaulting "cpuid-faulting" "Relative Priority of Faults and VM Exits"
        sdm: "CPUID of L2 outside privilege level 0 is #GP while L1 has CPUID faulting on"
        kvm: "it exits to L1"
            in "nested_vmx_l1_wants_exit"
        why: "the register is L1's alone: the processor that runs L2 has L0's";
    UnbackedApicPage "unbacked-apic-page" "VM Entries"
        sdm: "an entry whose APIC-access page lies outside RAM is like any other"
        kvm: "L0 cannot carry it out: an internal error for user space, and the instruction is not done"
            in "nested_get_vmcs12_pages"
        why: "the processor that runs L2 needs a page of the host there, and there is none";
    AccessRights "access-rights" "VMWRITE"
        sdm: "VMWRITE of an access-rights field keeps all bits"
        kvm: "reserved bits of access rights are dropped"
            in "handle_vmwrite"
        why: "some processors drop them, and a VMREAD shall not depend on shadowing";
    Vmcall "vmcall" "VMCALL"
        sdm: "VMCALL outside VMX operation is #UD, in root operation VMfail"
        kvm: "VMCALL of L1 is a hypercall of L0's guest, at any privilege, flags untouched"
            in "kvm_emulate_hypercall"
        why: "L1 is a guest of KVM's before it is a hypervisor";
    MonitorMwait "monitor-mwait" "MONITOR, MWAIT"
        sdm: "MONITOR and MWAIT are #UD where CPUID lacks them"
        kvm: "they exit to L1 if it asked for that, and do nothing else"
            in "kvm_emulate_monitor_mwait (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)"
        why: "old guests of KVM ran them without a look at CPUID";
    SysenterAddress "sysenter-address" "WRMSR"
        sdm: "a non-canonical IA32_SYSENTER_ESP or IA32_SYSENTER_EIP is #GP"
        kvm: "the address is sign-extended"
            in "__kvm_set_msr"
        why: "AMD's processors take any value, and guests may have come from one";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_complete_and_unique() {
        let mut seen = HashSet::new();
        for row in ROWS {
            assert!(seen.insert(row.id), "{} twice", row.id);
            for text in [row.section, row.sdm, row.kvm, row.function, row.reason] {
                assert!(!text.is_empty(), "{}", row.id);
            }
        }
        let model = |personality| Model {
            personality,
            ..Model::default()
        };
        for row in ROWS {
            assert!(model(Personality::Kvm).as_kvm(row.difference));
            assert!(!model(Personality::Sdm).as_kvm(row.difference));
        }
    }

    #[test]
    fn names_read_back() {
        for personality in Personality::ALL {
            assert_eq!(personality.to_string().parse(), Ok(personality));
        }
        assert!("bochs".parse::<Personality>().is_err());
    }
}
