//! The layout against the numbers that Linux freezes, and access by field.

use super::*;

/// Offsets of `vmx_check_vmcs12_offsets()` (Linux 6.1; the CET rows 6.18), at each corner of each run
/// of fields, so that a shifted row cannot hide.
const FROZEN: &[(Field, usize, usize)] = &[
    (Field::IO_BITMAP_A, 40, 8),
    (Field::MSR_BITMAP, 56, 8),
    (Field::TSC_OFFSET, 88, 8),
    (Field::POSTED_INTR_DESC_ADDR, 112, 8),
    (Field::EPT_POINTER, 120, 8),
    (Field::XSS_EXIT_BITMAP, 160, 8),
    (Field::GUEST_PHYSICAL_ADDRESS, 168, 8),
    (Field::VMCS_LINK_POINTER, 176, 8),
    (Field::GUEST_IA32_DEBUGCTL, 184, 8),
    (Field::GUEST_PDPTR0, 216, 8),
    (Field::GUEST_BNDCFGS, 248, 8),
    (Field::HOST_IA32_PERF_GLOBAL_CTRL, 272, 8),
    (Field::VMREAD_BITMAP, 280, 8),
    (Field::VM_FUNCTION_CONTROL, 296, 8),
    (Field::EPTP_LIST_ADDRESS, 304, 8),
    (Field::PML_ADDRESS, 312, 8),
    (Field::ENCLS_EXITING_BITMAP, 320, 8),
    (Field::TSC_MULTIPLIER, 328, 8),
    (Field::CR0_GUEST_HOST_MASK, 344, 8),
    (Field::CR4_READ_SHADOW, 368, 8),
    (Field::EXIT_QUALIFICATION, 408, 8),
    (Field::GUEST_LINEAR_ADDRESS, 416, 8),
    (Field::GUEST_CR0, 424, 8),
    (Field::GUEST_RSP, 536, 8),
    (Field::GUEST_RIP, 544, 8),
    (Field::GUEST_RFLAGS, 552, 8),
    (Field::HOST_CR0, 584, 8),
    (Field::HOST_RIP, 672, 8),
    (Field::HOST_S_CET, 680, 8),
    (Field::HOST_SSP, 688, 8),
    (Field::HOST_INTR_SSP_TABLE, 696, 8),
    (Field::GUEST_S_CET, 704, 8),
    (Field::GUEST_SSP, 712, 8),
    (Field::GUEST_INTR_SSP_TABLE, 720, 8),
    (Field::PIN_BASED_VM_EXEC_CONTROL, 744, 4),
    (Field::CPU_BASED_VM_EXEC_CONTROL, 748, 4),
    (Field::EXCEPTION_BITMAP, 752, 4),
    (Field::VM_EXIT_CONTROLS, 768, 4),
    (Field::VM_ENTRY_CONTROLS, 780, 4),
    (Field::VM_ENTRY_INTR_INFO_FIELD, 788, 4),
    (Field::SECONDARY_VM_EXEC_CONTROL, 804, 4),
    (Field::VM_INSTRUCTION_ERROR, 808, 4),
    (Field::VM_EXIT_REASON, 812, 4),
    (Field::VMX_INSTRUCTION_INFO, 836, 4),
    (Field::GUEST_ES_LIMIT, 840, 4),
    (Field::GUEST_ES_AR_BYTES, 880, 4),
    (Field::GUEST_ACTIVITY_STATE, 916, 4),
    (Field::VMX_PREEMPTION_TIMER_VALUE, 928, 4),
    (Field::VIRTUAL_PROCESSOR_ID, 960, 2),
    (Field::POSTED_INTR_NV, 962, 2),
    (Field::GUEST_ES_SELECTOR, 964, 2),
    (Field::GUEST_TR_SELECTOR, 978, 2),
    (Field::GUEST_INTR_STATUS, 980, 2),
    (Field::HOST_ES_SELECTOR, 982, 2),
    (Field::HOST_TR_SELECTOR, 994, 2),
    (Field::GUEST_PML_INDEX, 996, 2),
];

#[test]
fn offsets_are_the_frozen_ones() {
    for &(field, offset, bytes) in FROZEN {
        let location = layout::locate(field).expect("a row");
        assert_eq!(
            (location.offset, location.bytes),
            (offset, bytes),
            "{field}"
        );
    }
    // `sizeof(struct vmcs12)`: the last row ends where Linux stops copying.
    let last = Layout::Linux6_1.fields().last().expect("rows");
    let end = layout::locate(last).expect("a row");
    assert_eq!(end.offset + end.bytes, VMCS12_USED);
    assert_eq!(Layout::Linux6_1.fields().count(), 141);
    assert_eq!(Layout::Linux6_18.fields().count(), 147);
    // Every field of the appendix has a place.
    assert_eq!(Layout::Extended.fields().count(), Field::all().count());
}

#[test]
fn vmcs_enum_is_what_kvm_reports() {
    // 0x32 was read from IA32_VMX_VMCS_ENUM under Linux 6.1: TSC_MULTIPLIER has index 0x19.
    assert_eq!(Layout::Linux6_1.vmcs_enum(), 0x32);
    assert_eq!(Layout::Linux6_18.vmcs_enum(), 0x32);
}

#[test]
fn vmread_finds_what_the_layout_has() {
    let rows = [
        (Field::GUEST_CR0, true, true),
        (Field::GUEST_BNDCFGS_HIGH, true, true),
        (Field::GUEST_S_CET, false, true),
        (Field::TERTIARY_VM_EXEC_CONTROL, false, false),
        (Field::CR3_TARGET_VALUE0, false, false),
        (Field::PLE_GAP, false, false),
        (Field(0x6801), false, false),
        (Field(0x4801), false, false),
        (Field(0x1800), false, false),
        (Field(0x0001_6800), false, false),
        (Field(0x0000_e800), false, false),
        (Field(u32::MAX), false, false),
    ];
    let mut vmcs12 = Vmcs12::new();
    for (field, linux6_1, linux6_18) in rows {
        assert_eq!(Layout::Linux6_1.has(field), linux6_1, "{field}");
        assert_eq!(Layout::Linux6_18.has(field), linux6_18, "{field}");
        assert_eq!(vmcs12.try_get(field, Layout::Linux6_1).is_some(), linux6_1);
        assert_eq!(vmcs12.try_set(field, Layout::Linux6_1, 0), linux6_1);
    }
}

#[test]
fn every_field_is_written_alone() {
    for field in Layout::Extended.fields() {
        let mut vmcs12 = Vmcs12::new();
        vmcs12.set(field, u64::MAX);
        assert_eq!(vmcs12.get(field), field.mask(), "{field}");
        let others = vmcs12
            .iter()
            .filter(|(other, value)| *other != field && *value != 0);
        assert_eq!(others.count(), 0, "{field} touches another field");
        assert_eq!(vmcs12.revision(), VMCS12_REVISION);
        vmcs12.set(field, 0);
        assert_eq!(vmcs12, Vmcs12::new());
        if let Some(high) = field.high() {
            vmcs12.set(field, 0x1122_3344_5566_7788);
            assert_eq!(vmcs12.get(high), 0x1122_3344, "{field}");
            vmcs12.set(high, 0xffff_ffff_aabb_ccdd);
            assert_eq!(vmcs12.get(field), 0xaabb_ccdd_5566_7788, "{field}");
        }
    }
}

#[test]
fn the_header_is_revision_shadow_abort_and_launch_state() {
    let mut vmcs12 = Vmcs12::new();
    vmcs12.set_shadow(true);
    vmcs12.set_abort(4);
    vmcs12.set_launch_state(LaunchState::Launched);
    assert_eq!(
        vmcs12.bytes()[..12],
        [0xd0, 0x7e, 0xe5, 0x91, 4, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(vmcs12.revision(), VMCS12_REVISION);
    assert!(vmcs12.is_shadow());
    vmcs12.set_revision(1);
    assert_eq!((vmcs12.revision(), vmcs12.is_shadow()), (1, true));
    vmcs12.set_shadow(false);
    vmcs12.bytes_mut()[LAUNCH_STATE_OFFSET] = 2;
    assert_eq!(vmcs12.launch_state(), LaunchState::Launched);
    assert_eq!((vmcs12.revision(), vmcs12.is_shadow()), (1, false));
}

#[test]
fn debug_prints_what_is_set() {
    let mut vmcs12 = Vmcs12::new();
    vmcs12.set_launch_state(LaunchState::Launched);
    vmcs12.set(Field::GUEST_CR0, 0x8000_0031);
    vmcs12.set(Field::VM_EXIT_REASON, 10);
    vmcs12.bytes_mut()[4000] = 7;
    insta::assert_snapshot!(format!("{vmcs12:#?}"), @r"
    Vmcs12 {
        revision: 0x11e57ed0,
        launch_state: 0x1,
        GUEST_CR0: 0x80000031,
        VM_EXIT_REASON: 0xa,
        nonzero_padding_bytes: 1,
    }
    ");
}
