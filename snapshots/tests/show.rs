//! What `show` and `diff` print, for states that a kernel wrote: read the goldens as a reader would.

use nvmx_snapshots::{Diff, Explanation, Snapshot};
use std::path::Path;

fn state(name: &str) -> Snapshot {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/nested-state");
    nvmx_snapshots::load(&folder.join(name)).unwrap()
}

#[test]
fn states_are_explained() {
    for name in ["state-03", "state-06", "state-10", "preemption-timer-01"] {
        let text = Explanation::of(&state(&format!("{name}.bin"))).to_string();
        insta::assert_snapshot!(format!("show_{name}"), text);
    }
}

#[test]
fn differences_are_listed_with_their_kinds() {
    insta::assert_snapshot!(
        "diff_state-05_state-06",
        Diff::of(&state("state-05.bin"), &state("state-06.bin")).to_string()
    );
    insta::assert_snapshot!(
        "diff_preemption-timer",
        Diff::of(
            &state("preemption-timer-01.bin"),
            &state("preemption-timer-02.bin")
        )
        .to_string()
    );
}

#[test]
fn the_text_form_reads_well() {
    let text = nvmx_snapshots::file::to_text(&state("state-06.bin")).unwrap();
    insta::assert_snapshot!("text_state-06", text);
}
