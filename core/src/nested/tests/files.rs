//! States that a real kernel returned: `tests/data/nested-state/README.md`.

use super::*;
use std::fs;
use std::path::Path;

pub(super) fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nested-state");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the folder of samples")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| {
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read(path).expect("a sample"))
        })
        .collect();
    files.sort();
    assert_eq!(files.len(), 38);
    files
}

#[test]
fn the_kernels_own_states_round_trip() {
    for (name, bytes) in files() {
        let state = NestedState::from_bytes(&bytes).expect("a state");
        assert_eq!(state.to_bytes(), bytes, "{name}");
        assert_eq!(state.header().size() as usize, bytes.len(), "{name}");
        assert_eq!(
            state.vmcs12().is_some(),
            bytes.len() > HEADER_SIZE,
            "{name}"
        );
        assert_eq!(
            state.shadow_vmcs12().is_some(),
            bytes.len() == MAX_STATE_SIZE,
            "{name}"
        );
        assert_eq!(state.header().padding().max(), Some(0), "{name}");
    }
}

/// The offsets read sense out of what the kernel wrote: controls that its own capability MSRs allow,
/// and the values that the selftests' L1 gives to these fields.
#[test]
fn the_fields_of_the_kernels_own_states_make_sense() {
    let mut running = 0;
    for (name, bytes) in files() {
        let state = NestedState::from_bytes(&bytes).expect("a state");
        let Some(vmcs12) = state.vmcs12().filter(|_| state.guest_mode()) else {
            continue;
        };
        running += 1;
        for (control, field) in [
            (ControlField::PinBased, Field::PIN_BASED_VM_EXEC_CONTROL),
            (ControlField::Primary, Field::CPU_BASED_VM_EXEC_CONTROL),
            (ControlField::Secondary, Field::SECONDARY_VM_EXEC_CONTROL),
            (ControlField::Exit, Field::VM_EXIT_CONTROLS),
            (ControlField::Entry, Field::VM_ENTRY_CONTROLS),
        ] {
            let value = vmcs12.get(field);
            assert!(
                KVM.allowed(control).permits(value),
                "{name}: {field} {value:#x}"
            );
        }
        for field in [Field::GUEST_CR0, Field::HOST_CR0] {
            assert!(KVM.cr0().permits(vmcs12.get(field)), "{name}: {field}");
        }
        for field in [Field::GUEST_CR4, Field::HOST_CR4] {
            assert!(KVM.cr4().permits(vmcs12.get(field)), "{name}: {field}");
        }
        assert_eq!(
            vmcs12.get(Field::GUEST_CR3),
            vmcs12.get(Field::HOST_CR3),
            "{name}"
        );
        assert_eq!(vmcs12.get(Field::GUEST_RFLAGS) & 2, 2, "{name}");
        assert_eq!(vmcs12.get(Field::GUEST_DR7), 0x400, "{name}");
        // Present, code, 64-bit; present, busy TSS.
        assert_eq!(
            vmcs12.get(Field::GUEST_CS_AR_BYTES) & 0xa098,
            0xa098,
            "{name}"
        );
        assert_eq!(vmcs12.get(Field::GUEST_TR_AR_BYTES), 0x8b, "{name}");
        for (guest, host) in [
            (Field::GUEST_CS_SELECTOR, Field::HOST_CS_SELECTOR),
            (Field::GUEST_SS_SELECTOR, Field::HOST_SS_SELECTOR),
            (Field::GUEST_TR_SELECTOR, Field::HOST_TR_SELECTOR),
            (Field::GUEST_TR_BASE, Field::HOST_TR_BASE),
            (Field::GUEST_GDTR_BASE, Field::HOST_GDTR_BASE),
            (Field::GUEST_IDTR_BASE, Field::HOST_IDTR_BASE),
        ] {
            assert_eq!(vmcs12.get(guest), vmcs12.get(host), "{name}: {guest}");
        }
        assert_ne!(
            vmcs12.get(Field::GUEST_RIP),
            vmcs12.get(Field::HOST_RIP),
            "{name}"
        );
        // Nothing lies where KVM has no field.
        assert!(
            vmcs12.bytes()[VMCS12_USED..].iter().all(|byte| *byte == 0),
            "{name}"
        );
    }
    assert_eq!(running, 10);
}

/// What the kernel wrote, the model yields: through [`VmxState`] and back, to the byte.
#[test]
fn the_model_yields_what_the_kernel_yielded() {
    let mut compared = 0;
    for (name, bytes) in files() {
        let state = NestedState::from_bytes(&bytes).expect("a state");
        let mut vmx = VmxState::default();
        match state.apply(&mut vmx) {
            Ok(()) => {}
            Err(NotRepresentable::EnlightenedVmcs) => continue,
            Err(error) => panic!("{name}: {error}"),
        }
        assert_eq!(required_size(&vmx), bytes.len(), "{name}");
        assert_eq!(NestedState::capture(&vmx).to_bytes(), bytes, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 32);
}

/// The kernel takes back what it gave; SET followed by GET is the identity on these states.
#[test]
fn the_kernels_own_states_are_accepted() {
    let checks = |_: &Vmcs12, _: bool| Ok(());
    for (name, bytes) in files() {
        let state = NestedState::from_bytes(&bytes).expect("a state");
        let context = SetContext {
            in_smm: !state.smm().is_empty(),
            enlightened_vmcs_enabled: true,
            entry_checks: &checks,
            ..context()
        };
        let plan = match check(&state, &context) {
            Ok(plan) => plan,
            Err(refused) => panic!("{name}: {refused}"),
        };
        let evmcs = state.flags().contains(Flags::EVMCS);
        assert_eq!(plan.map_enlightened_vmcs, evmcs, "{name}");
        if !evmcs {
            assert_eq!(NestedState::capture(&plan.vmx).to_bytes(), bytes, "{name}");
        }
    }
}

proptest! {
    #[test]
    fn mutated_states_round_trip(
        file in 0_usize..38,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        length in any::<prop::sample::Index>(),
    ) {
        let (_, mut bytes) = files().swap_remove(file);
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(HEADER_SIZE + length.index(bytes.len() - HEADER_SIZE + 1));
        let state = NestedState::from_bytes(&bytes).expect("a header");
        prop_assert_eq!(state.to_bytes(), bytes);
    }
}

/// Real kernels answered to the breaking blobs what the table of rules says.
#[test]
fn the_rules_answer_as_the_kernel_did() {
    let path = "tests/data/set-nested-state/answers.txt";
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let text = text.expect("the recorded answers");
    let mut recorded = text.lines().filter(|line| !line.starts_with('#'));
    for &rule in SetRefusal::ALL {
        if specimen::breaking_blob(rule).is_none() {
            continue;
        }
        let answer = match rule.answer() {
            Answer::Errno(errno) => format!("-1 {errno}"),
            Answer::Positive(number) => format!("{number} 0"),
        };
        let none = u64::MAX;
        let left = match rule.left_behind() {
            LeftBehind::Unchanged | LeftBehind::Nothing => format!("128 {none:x} {none:x}"),
            LeftBehind::Vmxon => format!("128 {:x} {none:x}", specimen::VMXON.0),
            LeftBehind::VmxonWithVmcs12 => {
                format!("4224 {:x} {:x}", specimen::VMXON.0, specimen::VMCS12.0)
            }
        };
        let expected = format!("{} {answer} {left}", rule.id());
        assert_eq!(recorded.next(), Some(expected.as_str()));
    }
    assert_eq!(recorded.next(), None);
}
