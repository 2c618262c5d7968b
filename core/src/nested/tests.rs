//! Round trips, what GET yields, and every rule of SET.

use super::get::{BufferTooSmall, get, required_size};
use super::set_rules::{
    Answer, EntryCheck, EntryClass, LeftBehind, Refused, SetContext, SetPlan, SetRefusal, Stage,
    check, check_bytes,
};
use super::{
    Flags, HEADER_SIZE, MAX_STATE_SIZE, NestedState, NotRepresentable, ParseError, SmmFlags,
    VMCS12_STATE_SIZE, specimen,
};
use crate::addr::L1Phys;
use crate::vmx::capability::{Capability, ControlField, KVM_6_1_ICELAKE};
use crate::vmx::vmcs12::{Layout, VMCS12_USED};
use crate::vmx::{Field, Vmcs12, VmxState};
use proptest::prelude::*;

mod entry;
mod files;

const KVM: Capability<'static> = Capability::new(&KVM_6_1_ICELAKE);

/// The three checks that the breaking blobs break; the real ones are tested where they are.
fn entry_checks(vmcs12: &Vmcs12, _run_pending: bool) -> Result<(), EntryCheck> {
    let pin = vmcs12.get(Field::PIN_BASED_VM_EXEC_CONTROL);
    let (class, detail) = if !KVM.allowed(ControlField::PinBased).permits(pin) {
        (EntryClass::Controls, format!("pin-based controls {pin:#x}"))
    } else if vmcs12.get(Field::HOST_CS_SELECTOR) == 0 {
        (EntryClass::HostState, "host CS is null".into())
    } else if !KVM.cr0().permits(vmcs12.get(Field::GUEST_CR0)) {
        (EntryClass::GuestState, "guest CR0".into())
    } else {
        return Ok(());
    };
    Err(EntryCheck { class, detail })
}

fn context() -> SetContext<'static> {
    SetContext {
        guest_has_vmx: true,
        in_smm: false,
        in_guest_mode: false,
        physical_address_width: 39,
        enlightened_vmcs_enabled: false,
        layout: Layout::Linux6_1,
        entry_checks: &entry_checks,
    }
}

fn set(state: &NestedState) -> Result<SetPlan, Refused> {
    check(state, &context())
}

#[test]
fn the_header_is_where_the_uapi_puts_it() {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes[0..2].copy_from_slice(&0x8009_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&1_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&4224_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&0x1000_u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    bytes[24..26].copy_from_slice(&0x4003_u16.to_le_bytes());
    bytes[28..32].copy_from_slice(&0x8000_0001_u32.to_le_bytes());
    bytes[32..40].copy_from_slice(&77_u64.to_le_bytes());
    let state = NestedState::from_bytes(&bytes).expect("a header");
    let header = state.header();
    assert_eq!(header.flags().bits(), 0x8009);
    assert!(
        header
            .flags()
            .contains(Flags::GUEST_MODE | Flags::MTF_PENDING)
    );
    assert_eq!((header.format(), header.size()), (1, 4224));
    assert_eq!(
        (state.vmxon_pa(), state.vmcs12_pa()),
        (Some(L1Phys(0x1000)), None)
    );
    assert_eq!(state.smm().bits(), 0x4003);
    assert_eq!(header.vmx_flags().bits(), 0x8000_0001);
    assert_eq!(state.preemption_timer_deadline(), Some(77));
    assert_eq!(state.to_bytes(), bytes);
}

#[test]
fn a_header_cut_short_is_refused_by_offset() {
    let bytes = NestedState::default().to_bytes();
    assert_eq!(bytes.len(), HEADER_SIZE);
    for length in 0..HEADER_SIZE {
        let refused = NestedState::from_bytes(&bytes[..length]);
        assert_eq!(refused, Err(ParseError::HeaderTruncated { length }));
    }
}

proptest! {
    #[test]
    fn any_bytes_round_trip(bytes in prop::collection::vec(any::<u8>(), HEADER_SIZE..9000)) {
        let state = NestedState::from_bytes(&bytes).expect("long enough");
        prop_assert_eq!(state.len(), bytes.len());
        prop_assert_eq!(state.to_bytes(), bytes);
    }

    #[test]
    fn set_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..5400),
        header in prop::collection::vec((0_usize..48, any::<u8>()), 0..6),
        in_smm: bool,
    ) {
        // Near-valid headers get past the first rules, arbitrary bytes hardly ever do.
        let context = SetContext { in_smm, ..context() };
        let _ = check_bytes(&bytes, &context);
        let mut near = specimen::guest_mode_with_shadow(KVM).to_bytes();
        for (offset, byte) in header {
            near[offset] = byte;
        }
        near.truncate(near.len().min(128 + bytes.len()));
        let _ = check_bytes(&near, &context);
    }
}

#[test]
fn every_rule_has_a_state_that_breaks_just_it() {
    for &rule in SetRefusal::ALL {
        let Some(blob) = specimen::breaking_blob(rule) else {
            assert_eq!(rule, SetRefusal::OutOfMemory);
            continue;
        };
        let context = SetContext {
            guest_has_vmx: blob.guest_has_vmx,
            in_smm: blob.in_smm,
            ..context()
        };
        let refused = check_bytes(&blob.bytes, &context)
            .err()
            .map(|refused| refused.rule);
        assert_eq!(refused, Some(rule));
    }
}

#[test]
fn the_states_that_break_nothing_are_accepted() {
    for state in [
        NestedState::default(),
        specimen::vmxon(),
        specimen::with_vmcs12(KVM),
        specimen::guest_mode(KVM),
        specimen::guest_mode_with_shadow(KVM),
    ] {
        let plan = set(&state).expect("valid");
        assert_eq!(NestedState::capture(&plan.vmx).to_bytes(), state.to_bytes());
    }
}

#[test]
fn rules_are_in_the_kernels_order_and_unique() {
    let all = SetRefusal::ALL;
    assert!(all.is_sorted_by(|a, b| a.step() <= b.step() && a.stage() <= b.stage()));
    let ids: std::collections::HashSet<_> = all.iter().map(|rule| rule.id()).collect();
    assert_eq!(ids.len(), all.len());
    let leaves = all
        .iter()
        .filter(|rule| rule.stage() == Stage::AfterLeavingNested);
    assert_eq!(leaves.map(|rule| rule.step()).min(), Some(15));
    let errno = |rule: SetRefusal| {
        Refused {
            rule,
            detail: String::new(),
        }
        .errno()
    };
    assert_eq!(errno(SetRefusal::UnknownFlags), 22);
    assert_eq!(errno(SetRefusal::Vmcs12Fault), 14);
    assert_eq!(SetRefusal::EntryFailed.answer(), Answer::Positive(2));
}

#[test]
fn set_takes_only_the_bytes_that_linux_uses() {
    let mut state = specimen::with_vmcs12(KVM);
    let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
    vmcs12.bytes_mut()[VMCS12_USED - 1] = 1;
    vmcs12.bytes_mut()[VMCS12_USED] = 2;
    let plan = set(&state).expect("valid");
    assert_eq!(plan.vmx.vmcs12.bytes()[VMCS12_USED - 1], 1);
    assert_eq!(plan.vmx.vmcs12.bytes()[VMCS12_USED], 0);
    let extended = SetContext {
        layout: Layout::Extended,
        ..context()
    };
    let plan = check(&state, &extended).expect("valid");
    assert_eq!(plan.vmx.vmcs12.bytes()[VMCS12_USED], 2);
}

#[test]
fn smaller_sizes_than_get_reports_are_accepted() {
    // The kernel asks for 1126 bytes with a vmcs12, and for 5222 with a shadow vmcs12.
    for (state, smallest) in [
        (specimen::guest_mode(KVM), 1126),
        (specimen::guest_mode_with_shadow(KVM), 5222),
    ] {
        let mut bytes = state.to_bytes();
        bytes.truncate(smallest);
        bytes[4..8].copy_from_slice(&(smallest as u32).to_le_bytes());
        assert!(check_bytes(&bytes, &context()).is_ok(), "{smallest}");
        bytes[4..8].copy_from_slice(&(smallest as u32 - 1).to_le_bytes());
        assert!(check_bytes(&bytes, &context()).is_err(), "{smallest}");
    }
}

#[test]
fn outside_guest_mode_the_vmcs12_is_not_checked() {
    let mut state = specimen::with_vmcs12(KVM);
    let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
    vmcs12.set(Field::PIN_BASED_VM_EXEC_CONTROL, 0);
    vmcs12.set(Field::GUEST_CR0, 0);
    assert!(set(&state).is_ok());
    state.header_mut().set_flags(Flags::GUEST_MODE);
    let refused = set(&state).map(|_| ()).expect_err("checked");
    assert_eq!(refused.rule, SetRefusal::EntryControls);
    assert!(
        refused.to_string().starts_with("set.entry_controls: "),
        "{refused}"
    );
}

#[test]
fn flags_that_mean_nothing_are_accepted() {
    let mut state = specimen::vmxon();
    state
        .header_mut()
        .set_flags(Flags::GIF_SET | Flags::MTF_PENDING);
    let plan = set(&state).expect("the kernel takes it");
    assert!(!plan.vmx.mtf_pending && !plan.evaluate_events);
    let mut state = NestedState::default();
    state.header_mut().set_flags(Flags::GIF_SET);
    let refused = set(&state).map(|_| ()).expect_err("only with VMXON");
    assert_eq!(refused.rule, SetRefusal::FlagsWithoutVmxon);
    // An old meaning of the flag: allowed without VMXON where the capability is enabled.
    state.header_mut().set_flags(Flags::EVMCS);
    let enabled = SetContext {
        enlightened_vmcs_enabled: true,
        ..context()
    };
    assert!(check(&state, &enabled).is_ok());
}

#[test]
fn run_pending_and_mtf_are_taken_over_in_guest_mode() {
    let mut state = specimen::guest_mode(KVM);
    let flags = Flags::GUEST_MODE | Flags::RUN_PENDING | Flags::MTF_PENDING;
    state.header_mut().set_flags(flags);
    let context = SetContext {
        in_guest_mode: true,
        ..context()
    };
    let plan = check(&state, &context).expect("valid");
    assert!(plan.leave_guest_first && plan.evaluate_events);
    assert!(plan.vmx.guest_mode && plan.vmx.run_pending && plan.vmx.mtf_pending);
    assert_eq!(NestedState::capture(&plan.vmx).flags(), flags);
}

#[test]
fn smm_flags_are_lost_without_a_current_vmcs() {
    // VMXON, no VMPTRLD, then an SMI: GET reports the flag, SET returns before it would apply it.
    let mut state = specimen::vmxon();
    state.header_mut().set_smm_flags(SmmFlags::VMXON);
    let context = SetContext {
        in_smm: true,
        ..context()
    };
    let plan = check(&state, &context).expect("valid");
    assert_eq!(plan.vmx.smm_flags, 0);
    let mut state = specimen::with_vmcs12(KVM);
    state
        .header_mut()
        .set_smm_flags(SmmFlags::VMXON | SmmFlags::GUEST_MODE);
    let plan = check(&state, &context).expect("valid");
    assert_eq!(plan.vmx.smm_flags, 3);
    assert_eq!(NestedState::capture(&plan.vmx).to_bytes(), state.to_bytes());
}

#[test]
fn get_sizes_the_state_and_refuses_small_buffers() {
    let vmx = |state: &NestedState| set(state).expect("valid").vmx;
    for (state, size) in [
        (NestedState::default(), HEADER_SIZE),
        (specimen::vmxon(), HEADER_SIZE),
        (specimen::with_vmcs12(KVM), VMCS12_STATE_SIZE),
        (specimen::guest_mode(KVM), VMCS12_STATE_SIZE),
        (specimen::guest_mode_with_shadow(KVM), MAX_STATE_SIZE),
    ] {
        let vmx = vmx(&state);
        assert_eq!(required_size(&vmx), size);
        let (required, given) = (size as u32, size as u32 - 1);
        assert_eq!(get(&vmx, given), Err(BufferTooSmall { required, given }));
        let written = get(&vmx, required).expect("large enough");
        assert_eq!((written.state, written.overrun), (state, None));
    }
}

#[test]
fn get_writes_past_its_own_size_after_an_exit_with_a_shadow_vmcs() {
    let mut vmx = set(&specimen::guest_mode_with_shadow(KVM))
        .expect("valid")
        .vmx;
    vmx.guest_mode = false;
    assert_eq!(required_size(&vmx), VMCS12_STATE_SIZE);
    let written = get(&vmx, VMCS12_STATE_SIZE as u32).expect("large enough");
    assert_eq!(written.state.len(), VMCS12_STATE_SIZE);
    assert_eq!(written.overrun.map(|bytes| bytes.len()), Some(4096));
}

#[test]
fn the_deadline_is_reported_only_with_the_timer_on() {
    let mut vmx = set(&specimen::guest_mode(KVM)).expect("valid").vmx;
    vmx.preemption_timer_deadline = Some(99);
    assert_eq!(NestedState::capture(&vmx).preemption_timer_deadline(), None);
    let pin = vmx.vmcs12.get(Field::PIN_BASED_VM_EXEC_CONTROL) | 1 << 6;
    vmx.vmcs12.set(Field::PIN_BASED_VM_EXEC_CONTROL, pin);
    assert_eq!(
        NestedState::capture(&vmx).preemption_timer_deadline(),
        Some(99)
    );
    vmx.guest_mode = false;
    assert_eq!(NestedState::capture(&vmx).preemption_timer_deadline(), None);
}

#[test]
fn apply_refuses_what_the_model_cannot_hold() {
    let mut vmx = VmxState::default();
    let mut state = specimen::guest_mode(KVM);
    state.apply(&mut vmx).expect("representable");
    assert_eq!(NestedState::capture(&vmx), state);
    state
        .header_mut()
        .set_flags(Flags::GUEST_MODE | Flags::EVMCS);
    assert_eq!(
        state.apply(&mut vmx),
        Err(NotRepresentable::EnlightenedVmcs)
    );
    let mut state = specimen::vmxon();
    state.header_mut().set_vmcs12_pa(Some(specimen::VMCS12));
    assert_eq!(state.apply(&mut vmx), Err(NotRepresentable::Vmcs12Missing));
    state.header_mut().set_format(super::FORMAT_SVM);
    assert_eq!(state.apply(&mut vmx), Err(NotRepresentable::Format(1)));
    assert!(vmx.guest_mode, "a refusal changes nothing");
}

#[test]
fn the_wire_carries_bytes_and_refuses_short_ones() {
    use serde::de::value::{BytesDeserializer, Error, SeqDeserializer};
    use serde::{Deserialize, de::IntoDeserializer};
    let state = specimen::guest_mode_with_shadow(KVM);
    let bytes = state.to_bytes();
    let read = NestedState::deserialize(BytesDeserializer::<Error>::new(&bytes));
    assert_eq!(read.as_ref(), Ok(&state));
    let sequence: SeqDeserializer<_, Error> = bytes.clone().into_deserializer();
    assert_eq!(NestedState::deserialize(sequence), Ok(state));
    let short = BytesDeserializer::<Error>::new(&bytes[..100]);
    let error = NestedState::deserialize(short).expect_err("no header");
    assert!(error.to_string().contains("ends at offset 100"), "{error}");
}

#[test]
fn errors_reach_the_callers_of_a_backend() {
    use crate::vcpu::BackendError;
    let refused = Refused {
        rule: SetRefusal::NotVmxFormat,
        detail: "format 1".into(),
    };
    let error = BackendError::from(refused).to_string();
    let expected =
        "nested state refused: set.format_is_vmx: format is 0 (VMX) (format 1) (errno 22)";
    assert_eq!(error, expected);
    let error = BackendError::from(NotRepresentable::EnlightenedVmcs);
    assert!(
        error
            .to_string()
            .starts_with("unsupported: enlightened VMCS"),
        "{error}"
    );
    let error = BackendError::from(ParseError::HeaderTruncated { length: 3 });
    assert!(
        error.to_string().starts_with("state refused: nested state"),
        "{error}"
    );
}

#[test]
fn entering_starts_the_preemption_timer_in_full() {
    let mut state = specimen::guest_mode(KVM);
    let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
    vmcs12.set(Field::VMX_PREEMPTION_TIMER_VALUE, 0x1000_0000);
    let mut plan = set(&state).expect("valid");
    plan.start_preemption_timer(0x504 << 5);
    assert_eq!(plan.vmx.preemption_timer_deadline, None, "the timer is off");
    let pin = plan.vmx.vmcs12.get(Field::PIN_BASED_VM_EXEC_CONTROL) | 1 << 6;
    plan.vmx.vmcs12.set(Field::PIN_BASED_VM_EXEC_CONTROL, pin);
    plan.start_preemption_timer(0x504 << 5);
    assert_eq!(plan.vmx.preemption_timer_deadline, Some(0x1000_0504));
    plan.start_preemption_timer(0);
    assert_eq!(
        plan.vmx.preemption_timer_deadline,
        Some(0x1000_0504),
        "it runs on"
    );
}
