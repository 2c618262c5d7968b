//! Rules on VM-execution control fields (SDM Vol. 3C "VM-Execution Control Fields" under "Checks on
//! VMX Controls").

use super::Class::InvalidControl;
use super::context::{Context, implies};
use super::rules;
use crate::addr::L1Phys;
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::capability::ControlField;
use crate::vmx::controls::{ExitControls, PinBased, Primary, Secondary, Tertiary};
use crate::vmx::ept::eptp_is_valid;

/// Offset of VTPR in the virtual-APIC page.
const VTPR: u64 = 0x80;
/// VM-function 0: EPTP switching.
const EPTP_SWITCHING: u64 = 1 << 0;

rules! { RULES, "VM-Execution Control Fields" => InvalidControl;
    Software "control.pin.reserved"
        "reserved bits of the pin-based controls are as IA32_VMX_(TRUE_)PINBASED_CTLS says"
        [PIN_BASED_VM_EXEC_CONTROL]
        |c| c.control_allowed(Field::PIN_BASED_VM_EXEC_CONTROL, ControlField::PinBased);
    Software "control.primary.reserved"
        "reserved bits of the primary controls are as IA32_VMX_(TRUE_)PROCBASED_CTLS says"
        [CPU_BASED_VM_EXEC_CONTROL]
        |c| c.control_allowed(Field::CPU_BASED_VM_EXEC_CONTROL, ControlField::Primary);
    Software "control.secondary.reserved"
        "with \"activate secondary controls\", their reserved bits are as IA32_VMX_PROCBASED_CTLS2 says"
        [CPU_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.primary(Primary::ACTIVATE_SECONDARY_CONTROLS),
            c.control_allowed(Field::SECONDARY_VM_EXEC_CONTROL, ControlField::Secondary));
    Software "control.tertiary.reserved"
        "with \"activate tertiary controls\", their reserved bits are as IA32_VMX_PROCBASED_CTLS3 says"
        [CPU_BASED_VM_EXEC_CONTROL TERTIARY_VM_EXEC_CONTROL]
        |c| implies!(c.primary(Primary::ACTIVATE_TERTIARY_CONTROLS),
            c.control_allowed(Field::TERTIARY_VM_EXEC_CONTROL, ControlField::Tertiary));
    Software "control.ipi_virtualization_needs_tpr_shadow"
        "with \"IPI virtualization\", \"use TPR shadow\" is 1"
        [CPU_BASED_VM_EXEC_CONTROL TERTIARY_VM_EXEC_CONTROL]
        |c| implies!(c.tertiary(Tertiary::IPI_VIRTUALIZATION), c.primary(Primary::USE_TPR_SHADOW));
    Software "control.pid_pointer_table"
        "with \"IPI virtualization\", the PID-pointer table is 8-byte aligned, in the physical-address width to its last entry"
        [TERTIARY_VM_EXEC_CONTROL PID_POINTER_TABLE LAST_PID_POINTER_INDEX]
        |c| implies!(c.tertiary(Tertiary::IPI_VIRTUALIZATION), {
            let table = c.get(Field::PID_POINTER_TABLE);
            let last = table.wrapping_add(8 * c.get(Field::LAST_PID_POINTER_INDEX));
            table & 7 == 0 && c.in_width(table) && c.in_width(last)
        });
    Software "control.hlat_needs_ept"
        "with \"enable HLAT\", \"EPT paging-write control\" or \"guest-paging verification\", \"enable EPT\" is 1"
        [TERTIARY_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.tertiary(Tertiary::ENABLE_HLAT.union(Tertiary::EPT_PAGING_WRITE_CONTROL)
                .union(Tertiary::GUEST_PAGING_VERIFICATION)),
            c.secondary(Secondary::ENABLE_EPT));
    Software "control.cr3_target_count"
        "the CR3-target count is not greater than IA32_VMX_MISC[24:16]"
        [CR3_TARGET_COUNT]
        |c| c.get(Field::CR3_TARGET_COUNT) <= u64::from(c.capability().cr3_targets());
    Software "control.io_bitmap_a"
        "with \"use I/O bitmaps\", the address of bitmap A is a page in the physical-address width"
        [CPU_BASED_VM_EXEC_CONTROL IO_BITMAP_A]
        |c| implies!(c.primary(Primary::USE_IO_BITMAPS), c.page(Field::IO_BITMAP_A));
    Software "control.io_bitmap_b"
        "with \"use I/O bitmaps\", the address of bitmap B is a page in the physical-address width"
        [CPU_BASED_VM_EXEC_CONTROL IO_BITMAP_B]
        |c| implies!(c.primary(Primary::USE_IO_BITMAPS), c.page(Field::IO_BITMAP_B));
    Software "control.msr_bitmap"
        "with \"use MSR bitmaps\", the address is a page in the physical-address width"
        [CPU_BASED_VM_EXEC_CONTROL MSR_BITMAP]
        |c| implies!(c.primary(Primary::USE_MSR_BITMAPS), c.page(Field::MSR_BITMAP));
    Software "control.virtual_apic_page"
        "with \"use TPR shadow\", the virtual-APIC address is a page in the physical-address width"
        [CPU_BASED_VM_EXEC_CONTROL VIRTUAL_APIC_PAGE_ADDR]
        |c| implies!(c.primary(Primary::USE_TPR_SHADOW), c.page(Field::VIRTUAL_APIC_PAGE_ADDR));
    Software "control.apic_access_page"
        "with \"virtualize APIC accesses\", the address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL APIC_ACCESS_ADDR]
        |c| implies!(c.secondary(Secondary::VIRTUALIZE_APIC_ACCESSES), c.page(Field::APIC_ACCESS_ADDR));
    Software "control.x2apic_excludes_apic_accesses"
        "with \"virtualize x2APIC mode\", \"virtualize APIC accesses\" is 0"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::VIRTUALIZE_X2APIC_MODE),
            !c.secondary(Secondary::VIRTUALIZE_APIC_ACCESSES));
    Software "control.vid_needs_interrupt_exiting"
        "with \"virtual-interrupt delivery\", \"external-interrupt exiting\" is 1"
        [SECONDARY_VM_EXEC_CONTROL PIN_BASED_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY),
            c.pin(PinBased::EXTERNAL_INTERRUPT_EXITING));
    Software "control.posted_interrupts.need_vid"
        "with \"process posted interrupts\", \"virtual-interrupt delivery\" is 1"
        [PIN_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(posted(c), c.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY));
    Software "control.posted_interrupts.need_acknowledge"
        "with \"process posted interrupts\", \"acknowledge interrupt on exit\" is 1"
        [PIN_BASED_VM_EXEC_CONTROL VM_EXIT_CONTROLS]
        |c| implies!(posted(c), c.exit(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT));
    Software "control.posted_interrupts.vector"
        "with \"process posted interrupts\", the notification vector is below 256"
        [PIN_BASED_VM_EXEC_CONTROL POSTED_INTR_NV]
        |c| implies!(posted(c), c.get(Field::POSTED_INTR_NV) < 256);
    Software "control.posted_interrupts.descriptor"
        "with \"process posted interrupts\", the descriptor is 64-byte aligned in the physical-address width"
        [PIN_BASED_VM_EXEC_CONTROL POSTED_INTR_DESC_ADDR]
        |c| {
            let address = c.get(Field::POSTED_INTR_DESC_ADDR);
            implies!(posted(c), address & 63 == 0 && c.in_width(address))
        };
    Software "control.apic_virtualization_needs_tpr_shadow"
        "without \"use TPR shadow\", \"virtualize x2APIC mode\", \"APIC-register virtualization\", \"virtual-interrupt delivery\" and posted interrupts are 0"
        [CPU_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::VIRTUALIZE_X2APIC_MODE)
                || c.secondary(Secondary::APIC_REGISTER_VIRTUALIZATION)
                || c.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY)
                || posted(c),
            c.primary(Primary::USE_TPR_SHADOW));
    Software "control.virtual_nmis_need_nmi_exiting"
        "without \"NMI exiting\", \"virtual NMIs\" is 0"
        [PIN_BASED_VM_EXEC_CONTROL]
        |c| implies!(c.pin(PinBased::VIRTUAL_NMIS), c.pin(PinBased::NMI_EXITING));
    Software "control.nmi_window_needs_virtual_nmis"
        "without \"virtual NMIs\", \"NMI-window exiting\" is 0"
        [PIN_BASED_VM_EXEC_CONTROL CPU_BASED_VM_EXEC_CONTROL]
        |c| implies!(c.primary(Primary::NMI_WINDOW_EXITING), c.pin(PinBased::VIRTUAL_NMIS));
    Software "control.pml.needs_ept"
        "with \"enable PML\", \"enable EPT\" is 1"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::ENABLE_PML), c.secondary(Secondary::ENABLE_EPT));
    Software "control.pml.address"
        "with \"enable PML\", the PML address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL PML_ADDRESS]
        |c| implies!(c.secondary(Secondary::ENABLE_PML), c.page(Field::PML_ADDRESS));
    Software "control.unrestricted_needs_ept"
        "with \"unrestricted guest\", \"enable EPT\" is 1"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.unrestricted(), c.secondary(Secondary::ENABLE_EPT));
    Software "control.mode_based_execute_needs_ept"
        "with \"mode-based execute control for EPT\", \"enable EPT\" is 1"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::MODE_BASED_EXECUTE_CONTROL),
            c.secondary(Secondary::ENABLE_EPT));
    Software "control.vmread_bitmap"
        "with \"VMCS shadowing\", the VMREAD-bitmap address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL VMREAD_BITMAP]
        |c| implies!(c.secondary(Secondary::VMCS_SHADOWING), c.page(Field::VMREAD_BITMAP));
    Software "control.vmwrite_bitmap"
        "with \"VMCS shadowing\", the VMWRITE-bitmap address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL VMWRITE_BITMAP]
        |c| implies!(c.secondary(Secondary::VMCS_SHADOWING), c.page(Field::VMWRITE_BITMAP));
    Software "control.vpid"
        "with \"enable VPID\", the VPID is not 0"
        [SECONDARY_VM_EXEC_CONTROL VIRTUAL_PROCESSOR_ID]
        |c| implies!(c.secondary(Secondary::ENABLE_VPID), c.get(Field::VIRTUAL_PROCESSOR_ID) != 0);
    Software "control.save_timer_needs_timer"
        "without \"activate VMX-preemption timer\", \"save VMX-preemption timer value\" is 0"
        [PIN_BASED_VM_EXEC_CONTROL VM_EXIT_CONTROLS]
        |c| implies!(c.exit(ExitControls::SAVE_PREEMPTION_TIMER_VALUE),
            c.pin(PinBased::ACTIVATE_PREEMPTION_TIMER));
    Software "control.eptp"
        "with \"enable EPT\", the EPTP has a supported memory type, walk length and flags, and no reserved bits"
        [SECONDARY_VM_EXEC_CONTROL EPT_POINTER]
        |c| implies!(c.secondary(Secondary::ENABLE_EPT),
            eptp_is_valid(c.get(Field::EPT_POINTER), c.capability().ept_vpid().bits(),
                c.model.physical_address_width));
    Software "control.vm_functions.reserved"
        "with \"enable VM functions\", only functions of IA32_VMX_VMFUNC are enabled"
        [SECONDARY_VM_EXEC_CONTROL VM_FUNCTION_CONTROL]
        |c| implies!(c.secondary(Secondary::ENABLE_VM_FUNCTIONS),
            c.get(Field::VM_FUNCTION_CONTROL) & !c.capability().vm_functions() == 0);
    Software "control.eptp_switching.needs_ept"
        "with EPTP switching, \"enable EPT\" is 1"
        [SECONDARY_VM_EXEC_CONTROL VM_FUNCTION_CONTROL]
        |c| implies!(eptp_switching(c), c.secondary(Secondary::ENABLE_EPT));
    Software "control.eptp_switching.list"
        "with EPTP switching, the EPTP-list address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL VM_FUNCTION_CONTROL EPTP_LIST_ADDRESS]
        |c| implies!(eptp_switching(c), c.page(Field::EPTP_LIST_ADDRESS));
    Processor "control.virtual_apic_page.mapped"
        "on KVM, with \"use TPR shadow\", the virtual-APIC page is RAM, unless CR8 is intercepted whole and \"virtualize APIC accesses\" is 0"
        [CPU_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL VIRTUAL_APIC_PAGE_ADDR]
        |c| implies!(c.model.as_kvm(Difference::VirtualApicPage) && c.primary(Primary::USE_TPR_SHADOW),
            can_do_without_virtual_apic_page(c)
                || c.memory.read_u32(L1Phys(c.get(Field::VIRTUAL_APIC_PAGE_ADDR))).is_ok());
    Processor "control.tpr_threshold.reserved"
        "with \"use TPR shadow\" and without \"virtual-interrupt delivery\", bits 31:4 of the TPR threshold are 0"
        [CPU_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL TPR_THRESHOLD]
        |c| implies!(uses_threshold(c), c.get(Field::TPR_THRESHOLD) >> 4 == 0);
    Processor "control.tpr_threshold.vtpr"
        "with \"use TPR shadow\" and without \"virtualize APIC accesses\" and \"virtual-interrupt delivery\", the TPR threshold is not above VTPR[7:4]"
        [CPU_BASED_VM_EXEC_CONTROL SECONDARY_VM_EXEC_CONTROL TPR_THRESHOLD VIRTUAL_APIC_PAGE_ADDR]
        |c| implies!(uses_threshold(c) && !c.secondary(Secondary::VIRTUALIZE_APIC_ACCESSES),
            c.get(Field::TPR_THRESHOLD) & 15 <= vtpr_class(c));
    Processor "control.virtualization_exception.address"
        "with \"EPT-violation #VE\", the information address is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL VE_INFORMATION_ADDRESS]
        |c| implies!(c.secondary(Secondary::EPT_VIOLATION_VE), c.page(Field::VE_INFORMATION_ADDRESS));
    Processor "control.sub_page.needs_ept"
        "with \"sub-page write permissions for EPT\", \"enable EPT\" is 1"
        [SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(c.secondary(Secondary::SUB_PAGE_WRITE_PERMISSIONS),
            c.secondary(Secondary::ENABLE_EPT));
    Processor "control.sub_page.pointer"
        "with \"sub-page write permissions for EPT\", the SPPTP is a page in the physical-address width"
        [SECONDARY_VM_EXEC_CONTROL SPP_TABLE_POINTER]
        |c| implies!(c.secondary(Secondary::SUB_PAGE_WRITE_PERMISSIONS), c.page(Field::SPP_TABLE_POINTER));
}

fn posted(c: &Context<'_>) -> bool {
    c.pin(PinBased::PROCESS_POSTED_INTERRUPTS)
}

fn eptp_switching(c: &Context<'_>) -> bool {
    c.secondary(Secondary::ENABLE_VM_FUNCTIONS)
        && c.get(Field::VM_FUNCTION_CONTROL) & EPTP_SWITCHING != 0
}

/// KVM maps the page to point the processor at it, and makes the entry fail where it cannot
/// (`nested_get_vmcs12_pages`).
fn can_do_without_virtual_apic_page(c: &Context<'_>) -> bool {
    c.primary(Primary::CR8_LOAD_EXITING)
        && c.primary(Primary::CR8_STORE_EXITING)
        && !c.secondary(Secondary::VIRTUALIZE_APIC_ACCESSES)
}

fn uses_threshold(c: &Context<'_>) -> bool {
    c.primary(Primary::USE_TPR_SHADOW) && !c.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY)
}

/// Bits 7:4 of VTPR. A page outside RAM reads as all ones.
fn vtpr_class(c: &Context<'_>) -> u64 {
    let address = c.get(Field::VIRTUAL_APIC_PAGE_ADDR).wrapping_add(VTPR);
    let vtpr = c.memory.read_u32(L1Phys(address)).unwrap_or(u32::MAX);
    u64::from(vtpr >> 4 & 15)
}
