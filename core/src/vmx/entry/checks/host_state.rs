//! Rules on the host-state area (SDM Vol. 3C "Checks on Host Control Registers, MSRs, and SSP",
//! "Checks on Host Segment and Descriptor-Table Registers", "Checks Related to Address-Space Size").

use super::Class::InvalidHostState;
use super::context::{Context, implies, pat_is_valid, s_cet_is_valid};
use super::rules;
use crate::vmx::Field;
use crate::vmx::controls::{EntryControls, ExitControls};
use crate::x86::control::{cr0, cr4, efer};

/// RPL and TI of a selector.
const RPL_AND_TI: u64 = 7;

rules! { ADDRESS_SPACE, "Checks Related to Address-Space Size" => InvalidHostState;
    SoftwareAtEntry "host.address_space.is_l1s"
        "\"host address-space size\" equals IA32_EFER.LMA at the time of VM entry"
        [VM_EXIT_CONTROLS]
        |c| is_64_bit(c) == c.l1_long_mode;
    Software "host.address_space.ia32e_guest"
        "without \"host address-space size\", \"IA-32e mode guest\" is 0"
        [VM_EXIT_CONTROLS VM_ENTRY_CONTROLS]
        |c| implies!(!is_64_bit(c), !c.entry(EntryControls::IA32E_MODE_GUEST));
    Software "host.address_space.pcide"
        "without \"host address-space size\", CR4.PCIDE is 0"
        [VM_EXIT_CONTROLS HOST_CR4]
        |c| implies!(!is_64_bit(c), c.get(Field::HOST_CR4) & cr4::PCIDE == 0);
    Software "host.address_space.rip_32"
        "without \"host address-space size\", bits 63:32 of RIP are 0"
        [VM_EXIT_CONTROLS HOST_RIP]
        |c| implies!(!is_64_bit(c), c.get(Field::HOST_RIP) >> 32 == 0);
    Software "host.address_space.pae"
        "with \"host address-space size\", CR4.PAE is 1"
        [VM_EXIT_CONTROLS HOST_CR4]
        |c| implies!(is_64_bit(c), c.get(Field::HOST_CR4) & cr4::PAE != 0);
    Software "host.address_space.rip"
        "with \"host address-space size\", RIP is canonical"
        [VM_EXIT_CONTROLS HOST_RIP]
        |c| implies!(is_64_bit(c), c.canonical(Field::HOST_RIP));
}

rules! { REGISTERS, "Checks on Host Control Registers, MSRs, and SSP" => InvalidHostState;
    Software "host.cr0"
        "CR0 has no value that VMX operation does not support"
        [HOST_CR0]
        |c| c.capability().cr0().permits(c.get(Field::HOST_CR0));
    Software "host.cr4"
        "CR4 has no value that VMX operation does not support"
        [HOST_CR4]
        |c| c.capability().cr4().permits(c.get(Field::HOST_CR4));
    Software "host.cr3"
        "CR3 has no bits beyond the physical-address width"
        [HOST_CR3]
        |c| c.in_width(c.get(Field::HOST_CR3));
    Software "host.sysenter_esp"
        "IA32_SYSENTER_ESP is canonical"
        [HOST_IA32_SYSENTER_ESP]
        |c| c.canonical(Field::HOST_IA32_SYSENTER_ESP);
    Software "host.sysenter_eip"
        "IA32_SYSENTER_EIP is canonical"
        [HOST_IA32_SYSENTER_EIP]
        |c| c.canonical(Field::HOST_IA32_SYSENTER_EIP);
    Software "host.perf_global_ctrl"
        "with \"load IA32_PERF_GLOBAL_CTRL\", reserved bits of it are 0"
        [VM_EXIT_CONTROLS HOST_IA32_PERF_GLOBAL_CTRL]
        |c| implies!(c.exit(ExitControls::LOAD_PERF_GLOBAL_CTRL),
            c.get(Field::HOST_IA32_PERF_GLOBAL_CTRL) & c.perf_global_ctrl_reserved() == 0);
    Software "host.pat"
        "with \"load IA32_PAT\", each byte of it is a memory type"
        [VM_EXIT_CONTROLS HOST_IA32_PAT]
        |c| implies!(c.exit(ExitControls::LOAD_PAT), pat_is_valid(c.get(Field::HOST_IA32_PAT)));
    Software "host.efer.reserved"
        "with \"load IA32_EFER\", reserved bits of it are 0"
        [VM_EXIT_CONTROLS HOST_IA32_EFER]
        |c| implies!(loads_efer(c), c.get(Field::HOST_IA32_EFER) & c.efer_reserved() == 0);
    Software "host.efer.lma"
        "with \"load IA32_EFER\", LMA of it equals \"host address-space size\""
        [VM_EXIT_CONTROLS HOST_IA32_EFER]
        |c| implies!(loads_efer(c),
            (c.get(Field::HOST_IA32_EFER) & efer::LMA != 0) == is_64_bit(c));
    Software "host.efer.lme"
        "with \"load IA32_EFER\", LME of it equals \"host address-space size\""
        [VM_EXIT_CONTROLS HOST_IA32_EFER]
        |c| implies!(loads_efer(c),
            (c.get(Field::HOST_IA32_EFER) & efer::LME != 0) == is_64_bit(c));
    Processor "host.cr4.cet_needs_wp"
        "if CR4.CET is 1, CR0.WP is 1"
        [HOST_CR4 HOST_CR0]
        |c| implies!(c.get(Field::HOST_CR4) & cr4::CET != 0, c.get(Field::HOST_CR0) & cr0::WP != 0);
    Processor "host.s_cet"
        "with \"load CET state\", IA32_S_CET is canonical, its reserved bits are 0, and SUPPRESS and TRACKER are not both 1"
        [VM_EXIT_CONTROLS HOST_S_CET]
        |c| implies!(loads_cet(c), c.canonical(Field::HOST_S_CET) && s_cet_is_valid(c.get(Field::HOST_S_CET)));
    Processor "host.ssp"
        "with \"load CET state\", SSP is canonical and its bits 1:0 are 0"
        [VM_EXIT_CONTROLS HOST_SSP]
        |c| implies!(loads_cet(c), c.canonical(Field::HOST_SSP) && c.get(Field::HOST_SSP) & 3 == 0);
    Processor "host.interrupt_ssp_table"
        "with \"load CET state\", IA32_INTERRUPT_SSP_TABLE_ADDR is canonical"
        [VM_EXIT_CONTROLS HOST_INTR_SSP_TABLE]
        |c| implies!(loads_cet(c), c.canonical(Field::HOST_INTR_SSP_TABLE));
    Processor "host.pkrs"
        "with \"load PKRS\", bits 63:32 of IA32_PKRS are 0"
        [VM_EXIT_CONTROLS HOST_IA32_PKRS]
        |c| implies!(c.exit(ExitControls::LOAD_PKRS), c.get(Field::HOST_IA32_PKRS) >> 32 == 0);
}

rules! { SEGMENTS, "Checks on Host Segment and Descriptor-Table Registers" => InvalidHostState;
    Software "host.cs.selector" "RPL and TI of CS are 0" [HOST_CS_SELECTOR]
        |c| c.get(Field::HOST_CS_SELECTOR) & RPL_AND_TI == 0;
    Software "host.ss.selector" "RPL and TI of SS are 0" [HOST_SS_SELECTOR]
        |c| c.get(Field::HOST_SS_SELECTOR) & RPL_AND_TI == 0;
    Software "host.ds.selector" "RPL and TI of DS are 0" [HOST_DS_SELECTOR]
        |c| c.get(Field::HOST_DS_SELECTOR) & RPL_AND_TI == 0;
    Software "host.es.selector" "RPL and TI of ES are 0" [HOST_ES_SELECTOR]
        |c| c.get(Field::HOST_ES_SELECTOR) & RPL_AND_TI == 0;
    Software "host.fs.selector" "RPL and TI of FS are 0" [HOST_FS_SELECTOR]
        |c| c.get(Field::HOST_FS_SELECTOR) & RPL_AND_TI == 0;
    Software "host.gs.selector" "RPL and TI of GS are 0" [HOST_GS_SELECTOR]
        |c| c.get(Field::HOST_GS_SELECTOR) & RPL_AND_TI == 0;
    Software "host.tr.selector" "RPL and TI of TR are 0" [HOST_TR_SELECTOR]
        |c| c.get(Field::HOST_TR_SELECTOR) & RPL_AND_TI == 0;
    Software "host.cs.null" "CS is not null" [HOST_CS_SELECTOR]
        |c| c.get(Field::HOST_CS_SELECTOR) != 0;
    Software "host.tr.null" "TR is not null" [HOST_TR_SELECTOR]
        |c| c.get(Field::HOST_TR_SELECTOR) != 0;
    Software "host.ss.null"
        "without \"host address-space size\", SS is not null"
        [VM_EXIT_CONTROLS HOST_SS_SELECTOR]
        |c| implies!(!is_64_bit(c), c.get(Field::HOST_SS_SELECTOR) != 0);
    Software "host.fs.base" "the base of FS is canonical" [HOST_FS_BASE]
        |c| c.canonical(Field::HOST_FS_BASE);
    Software "host.gs.base" "the base of GS is canonical" [HOST_GS_BASE]
        |c| c.canonical(Field::HOST_GS_BASE);
    Software "host.gdtr.base" "the base of GDTR is canonical" [HOST_GDTR_BASE]
        |c| c.canonical(Field::HOST_GDTR_BASE);
    Software "host.idtr.base" "the base of IDTR is canonical" [HOST_IDTR_BASE]
        |c| c.canonical(Field::HOST_IDTR_BASE);
    Software "host.tr.base" "the base of TR is canonical" [HOST_TR_BASE]
        |c| c.canonical(Field::HOST_TR_BASE);
}

fn is_64_bit(c: &Context<'_>) -> bool {
    c.exit(ExitControls::HOST_ADDRESS_SPACE_SIZE)
}

fn loads_cet(c: &Context<'_>) -> bool {
    c.exit(ExitControls::LOAD_CET_STATE)
}

fn loads_efer(c: &Context<'_>) -> bool {
    c.exit(ExitControls::LOAD_EFER)
}
