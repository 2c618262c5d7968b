//! Raw kernel bytes -> text -> raw kernel bytes is the identity, for what kernels wrote and for
//! everything else that is accepted.

use nvmx_core::nested::NestedState;
use nvmx_snapshots::{Snapshot, file};
use proptest::prelude::*;
use std::path::Path;

fn through_text(bytes: &[u8]) -> Vec<u8> {
    let snapshot = file::from_raw(Path::new("x.bin"), bytes).unwrap();
    let text = file::to_text(&snapshot).unwrap();
    let back = file::from_text(Path::new("x.ron"), &text).unwrap();
    assert_eq!(back, snapshot);
    back.vcpus[0].nested.as_ref().unwrap().to_bytes()
}

#[test]
fn every_state_that_a_kernel_wrote_comes_back() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/nested-state");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !file::is_raw(&path) {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(through_text(&bytes), bytes, "{}", path.display());
        count += 1;
    }
    assert!(count >= 38, "only {count} files");
}

#[test]
fn files_of_both_kinds_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, text) = (folder.path().join("y.bin"), folder.path().join("x.ron"));
    let bytes = vec![0x5a; 128 + 2 * 4096 + 3];
    let snapshot = Snapshot::of_nested(NestedState::from_bytes(&bytes).unwrap());
    file::save(&text, &snapshot).unwrap();
    file::save(&raw, &file::load(&text).unwrap()).unwrap();
    assert_eq!(std::fs::read(raw).unwrap(), bytes);
}

#[test]
fn a_state_that_is_too_short_names_file_and_reason() {
    let error = file::from_raw(Path::new("dir/short.bin"), &[0; 127]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("dir/short.bin: kvm_nested_state: "),
        "{text}"
    );
    assert!(text.contains("127"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_accepted_bytes_come_back(
        length in prop_oneof![Just(128_usize), Just(4224), Just(8320), 128..9000_usize],
        seed in any::<u64>(),
        sparse in any::<bool>(),
    ) {
        let mut state = seed;
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let byte = (state >> 33) as u8;
                if sparse && state >> 60 != 0 { 0 } else { byte }
            })
            .collect();
        prop_assert_eq!(through_text(&bytes), bytes);
    }
}
