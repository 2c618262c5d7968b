//! Translations of addresses: a flush leaves nothing, and code that changed is seen under every alias.

use super::*;

/// Code that reads, then writes `pages` pages from `first` on, `stride` bytes apart, over and over for so
/// many instructions.
fn touch(pages: u32, stride: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, pages
    code.extend(pages.to_le_bytes());
    code.push(0xbf); // mov edi, first
    code.extend(0x10_0000u32.to_le_bytes());
    code.extend([0x8b, 0x07]); // again: mov eax, [rdi]
    code.extend([0x89, 0x07]); // mov [rdi], eax
    code.extend([0x81, 0xc7]); // add edi, stride
    code.extend(stride.to_le_bytes());
    code.extend([0xff, 0xc9]); // dec ecx
    code.extend([0x75, 0xf2]); // jnz again
    code.push(0xf4); // hlt
    code
}

#[test]
fn a_flush_forgets_few_and_many() {
    // Few; as many as are noted, and more; so far apart that they evict one another.
    for (pages, stride) in [
        (1, 0x1000),
        (20, 0x1000),
        (24, 0x1000),
        (60, 0x1000),
        (2, 0x10_0000),
        (3, 0x10_0000),
        (20, 0x2_0000),
        (400, 0x1000),
    ] {
        let (_memory, mut engine) = machine(&[(0x1000, &touch(pages, stride))]);
        let mut test = Test::default();
        for round in 0..3u64 {
            engine.env_mut().set_rip(0x1000);
            engine.run(&mut test, 1_000_000).unwrap();
            let expected = 2 + 5 * u64::from(pages);
            assert_eq!(engine.env().executed(), (round + 1) * expected);
            assert!(!engine.env().holds_no_translation());
            engine.env_mut().flush_tlb();
            assert!(
                engine.env().holds_no_translation(),
                "{pages} of {stride:#x}"
            );
            engine.env_mut().flush_tlb();
            assert!(engine.env().holds_no_translation(), "twice");
        }
    }
}

#[test]
fn code_behind_a_flush_is_that_of_the_new_page() {
    // mov eax, 1 or 2; hlt: in two pages, one linear address.
    let code = |value| [0xb8, value, 0, 0, 0, 0xf4];
    let (_memory, mut engine) = machine(&[(0x1000, &code(1)), (0x2000, &code(2))]);
    let mut test = Test::default();
    for (gpa, value) in [(0x1000, 1), (0x2000, 2), (0x1000, 1), (0x2000, 2)] {
        test.map.insert(0x30_0000, Some(gpa));
        engine.env_mut().flush_tlb();
        engine.env_mut().set_rip(0x30_0000);
        engine.run(&mut test, 10).unwrap();
        assert_eq!(engine.env().gpr(Gpr::Rax), value);
    }
}

#[test]
fn changed_code_runs_changed_through_an_alias() {
    // Loop at 0x1000: call 0x3000 twice, patching it in between through 0x30_0000 (same page).
    // mov ecx,2; L: call 0x3000; mov byte [0x300001], 7; dec ecx; jnz L; hlt
    let code = [
        0xb9, 2, 0, 0, 0, // 1000
        0xe8, 0xf6, 0x1f, 0, 0, // 1005 call 0x3000
        0xc6, 0x04, 0x25, 1, 0, 0x30, 0, 7, // 100a
        0xff, 0xc9, 0x75, 0xef, 0xf4,
    ];
    // add rax, 1; ret
    let function = [0x04, 0x01, 0xc3];
    let (_memory, mut engine) = machine(&[(0x1000, &code), (0x3000, &function)]);
    engine.env_mut().set_gpr(Gpr::Rax, 0);
    let mut test = Test::default();
    test.map.insert(0x30_0000, Some(0x3000));
    engine.run(&mut test, 100).unwrap();
    assert_eq!(engine.env().gpr(Gpr::Rax), 8);
    // Written by the host.
    let (memory, mut engine) = machine(&[(0x1000, &[0x04, 0x01, 0xf4])]);
    for (value, sum) in [(1u8, 1), (5, 6)] {
        memory.write_obj(value, GuestAddress(0x1001)).unwrap();
        engine.env_mut().host_wrote(0x1001, 1);
        engine.env_mut().set_rip(0x1000);
        engine.run(&mut Test::default(), 100).unwrap();
        assert_eq!(engine.env().gpr(Gpr::Rax), sum);
    }
}
