//! Files as an attacker would write them: every one is either read or refused with a reason, none
//! makes us panic. More than 100,000 of them, from a fixed seed.

use nvmx_snapshots::pages::PAGE;
use nvmx_snapshots::{Diff, Explanation, Limits, PageStore, Snapshot, file, pages_file};
use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// xorshift64*: reproducible, and no dependency.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Flips, overwrites, cuts, doubles or inserts.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random, words: &[&str]) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 => {
                let value = *random.pick(&[0, 1, 0x7f, 0x80, 0xff]);
                let end = bytes.len().min(at + 1 + random.below(8));
                bytes[at..end].fill(value);
            }
            2 => bytes.truncate(at),
            3 => {
                let end = bytes.len().min(at + random.below(64));
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            4 if !words.is_empty() => {
                let word = random.pick(words).as_bytes().to_vec();
                bytes.splice(at..at, word);
            }
            _ => {
                let end = bytes.len().min(at + random.below(32));
                bytes.drain(at..end);
            }
        }
    }
}

fn originals() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/nested-state");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| file::is_raw(path))
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 38);
    files
}

/// Runs `count` cases; answers how many were accepted. A panic names its case.
fn run(count: u64, case: impl Fn(&mut Random) -> bool + Sync) -> usize {
    let accepted = (0..count)
        .into_par_iter()
        .map(|seed| {
            let mut random = Random::new(seed + 1);
            match catch_unwind(AssertUnwindSafe(|| case(&mut random))) {
                Ok(accepted) => Ok(usize::from(accepted)),
                Err(_) => Err(seed),
            }
        })
        .collect::<Result<Vec<usize>, u64>>();
    match accepted {
        Ok(accepted) => accepted.into_iter().sum(),
        Err(seed) => panic!("case {seed} panics"),
    }
}

/// Everything that a command would do with a snapshot.
fn use_it(snapshot: &Snapshot, other: &Snapshot) {
    assert!(!Explanation::of(snapshot).to_string().is_empty());
    let _ = Diff::of(snapshot, other).to_string();
}

#[test]
fn fifty_thousand_raw_states() {
    let originals = originals();
    let accepted = run(50_000, |random| {
        let (path, bytes) = random.pick(&originals);
        let mut bytes = bytes.clone();
        mutate(&mut bytes, random, &[]);
        match file::from_raw(path, &bytes) {
            Ok(snapshot) => {
                if random.below(8) == 0 {
                    let original = file::from_raw(path, &originals[0].1).unwrap();
                    use_it(&snapshot, &original);
                }
                let nested = snapshot.vcpus[0].nested.as_ref().unwrap();
                assert_eq!(nested.to_bytes(), bytes);
                true
            }
            Err(error) => {
                assert!(error.to_string().contains(&path.display().to_string()));
                false
            }
        }
    });
    assert!(
        (1000..50_000).contains(&accepted),
        "{accepted} accepted: not a useful mix"
    );
}

#[test]
fn fifty_thousand_texts() {
    let path = Path::new("hostile.ron");
    let mut texts: Vec<String> = Vec::new();
    for (path, bytes) in originals()
        .iter()
        .filter(|(_, bytes)| bytes.len() > 128)
        .step_by(6)
    {
        texts.push(file::to_text(&file::from_raw(path, bytes).unwrap()).unwrap());
    }
    texts.push(file::to_text(&full()).unwrap());
    let words = [
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "-1",
        "0x",
        "0xffffffffffffffffff",
        "1e999",
        "\"",
        "'",
        "Some(",
        "None",
        "//",
        "/*",
        "r#",
        "\u{1F600}",
        "\0",
        "GUEST_RIP: 0x1, ",
        "format: 2, ",
        "vcpus: [",
        "hex: \"zz\"",
        "true",
        "length: 9999999999",
        "((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((",
    ];
    let accepted = run(50_000, |random| {
        let mut bytes = random.pick(&texts).clone().into_bytes();
        if random.below(2) == 0 {
            // Another digit: most of these are snapshots still.
            let digits: Vec<usize> = (0..bytes.len())
                .filter(|at| bytes[*at].is_ascii_hexdigit())
                .collect();
            bytes[*random.pick(&digits)] = *random.pick(b"0123456789abcdefF-");
        } else {
            mutate(&mut bytes, random, &words);
        }
        let Ok(text) = String::from_utf8(bytes) else {
            return false;
        };
        match file::from_text(path, &text) {
            Ok(snapshot) => {
                if random.below(8) == 0 {
                    use_it(&snapshot, &Snapshot::default());
                }
                true
            }
            Err(error) => {
                assert!(error.to_string().starts_with("hostile.ron: "), "{error}");
                false
            }
        }
    });
    assert!(
        (1000..50_000).contains(&accepted),
        "{accepted} accepted: not a useful mix"
    );
}

/// A snapshot with every part.
fn full() -> Snapshot {
    use nvmx_core::x86::{
        CpuState, DebugRegs, MpState, Regs, Sregs, VcpuEvents, cpuid::CpuidEntry,
    };
    let mut snapshot = Snapshot::default();
    let mut xsave = vec![0; 4096];
    xsave[0] = 0x7f;
    xsave[600] = 9;
    snapshot.vcpus.push(nvmx_snapshots::VcpuSnapshot {
        cpu: CpuState {
            cpuid: Some(vec![CpuidEntry {
                leaf: 1,
                eax: 0x706e5,
                ..CpuidEntry::default()
            }]),
            tsc_khz: Some(2_000_000),
            sregs: Some(Sregs::default()),
            msrs: Some([(0x10, 1), (0xc000_0080, 0x500), (0x123, 4)].into()),
            xcr0: Some(7),
            xsave: Some(xsave),
            events: Some(VcpuEvents {
                exception_error_code: Some(2),
                ..VcpuEvents::default()
            }),
            mp_state: Some(MpState::Halted),
            debug: Some(DebugRegs::default()),
            regs: Some(Regs {
                rip: 0x1000,
                ..Regs::default()
            }),
            lapic: Some(vec![0xff; 1024]),
        },
        nested: None,
    });
    snapshot
}

#[test]
fn every_part_survives_the_text() {
    let snapshot = full();
    let text = file::to_text(&snapshot).unwrap();
    assert_eq!(file::from_text(Path::new("x"), &text).unwrap(), snapshot);
}

#[test]
fn twenty_thousand_page_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pages");
    let mut store = PageStore::new(1 << 20);
    for page in 0..40 {
        store.set(page * 3, &[page as u8; PAGE]);
    }
    pages_file::write(&path, &store, None).unwrap();
    let original = std::fs::read(&path).unwrap();
    let limits = Limits {
        memory: 1 << 30,
        ..Limits::default()
    };
    run(20_000, |random| {
        let mut bytes = original.clone();
        mutate(&mut bytes, random, &[]);
        // Past the header's checksum in half of the cases, to reach what lies behind.
        if random.below(2) == 0 && bytes.len() >= 72 {
            let crc = pages_file::checksum(&bytes[..68]);
            bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        }
        pages_file::decode(&path, &mut &bytes[..], &limits).is_ok()
    });
}

#[test]
fn what_a_text_may_not_claim() {
    let head = "(format: 1, vcpus: [(cpu: (";
    for (text, reason) in [
        ("", "line 1"),
        ("(format: 2, vcpus: [])", "version 2"),
        ("(format: 1)", "vcpus"),
        ("(format: 1, vcpus: [], extra: 1)", "extra"),
        (&format!("{head}xcr0: 0x1ffffffffffffffff))])"), "line 1"),
        (&format!("{head}msrs: {{\"NO_MSR\": 1}}))])"), "NO_MSR"),
        (
            &format!("{head}msrs: {{\"IA32_EFER\": 1, \"0xc0000080\": 2}}))])"),
            "twice",
        ),
        (
            &format!("{head}lapic: (length: 18446744073709551615, bytes: [])))])"),
            "length",
        ),
        (
            &format!("{head}lapic: (length: 16, bytes: [(at: 15, hex: \"0000\")])))])"),
            "reach beyond",
        ),
    ] {
        let error = file::from_text(Path::new("x.ron"), text)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("x.ron: ") && error.contains(reason),
            "{text}: {error}"
        );
    }
    let nested = |inner: &str| {
        format!(
            "(format: 1, vcpus: [(nested: (flags: 0, format: 0, size: 0, vmxon_pa: 0, vmcs12_pa: 0, {inner}))])"
        )
    };
    let vmcs = |inner: &str| {
        nested(&format!(
            "vmcs12: (revision: 0, abort: 0, launch_state: 0, fields: ({inner}))"
        ))
    };
    for (text, reason) in [
        (nested("smm_flags: 0x10000"), "smm_flags"),
        (vmcs("NO_FIELD: 1"), "NO_FIELD"),
        (vmcs("GUEST_CS_SELECTOR: 0x10000"), "16 bits"),
        (vmcs("GUEST_RIP: 1, GUEST_RIP: 2"), "twice"),
    ] {
        let error = file::from_text(Path::new("x.ron"), &text)
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    assert!(file::from_text(Path::new("x.ron"), &vmcs("GUEST_RIP: 1")).is_ok());
}

#[test]
fn memory_files_are_found_beside_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut snapshot = full();
    let mut memory = PageStore::new(1 << 20);
    memory.set(7, &[7; PAGE]);
    snapshot.memory = Some(memory.clone());
    nvmx_snapshots::save(&at("a.ron"), &snapshot).unwrap();
    assert_eq!(nvmx_snapshots::load(&at("a.ron")).unwrap(), snapshot);

    let mut later = snapshot.clone();
    memory.set(8, &[8; PAGE]);
    later.memory = Some(memory);
    file::save_onto(&at("b.ron"), &later, Some((&at("a.ron"), &snapshot))).unwrap();
    assert_eq!(nvmx_snapshots::load(&at("b.ron")).unwrap(), later);

    let text = std::fs::read_to_string(at("a.ron")).unwrap();
    for (from, to, reason) in [
        ("\"a.pages\"", "\"../a.pages\"", "plain name"),
        ("\"a.pages\"", "\"none.pages\"", "none.pages"),
        ("\"a.pages\"", "\"b.pages\"", "another file"),
    ] {
        std::fs::write(at("c.ron"), text.replace(from, to)).unwrap();
        let error = nvmx_snapshots::load(&at("c.ron")).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // A snapshot that is its own base would never end.
    let looped = std::fs::read_to_string(at("b.ron"))
        .unwrap()
        .replace("\"a.ron\"", "\"b.ron\"");
    std::fs::write(at("b.ron"), looped).unwrap();
    let error = nvmx_snapshots::load(&at("b.ron")).unwrap_err().to_string();
    assert!(error.contains("stand on each other"), "{error}");
}
