//! Every guest assembles, loads, and says what it is about.

use nvmx_examples::{Params, guests};
use nvmx_machine::{LoadOptions, load};

fn every_guest() -> impl Iterator<Item = &'static guests::Guest> {
    guests::all().iter().chain(guests::several())
}

#[test]
fn every_guest_is_an_image_that_the_loader_takes() {
    for guest in every_guest() {
        for params in [
            Params::default(),
            Params {
                iterations: 0x1_0000,
                work: u32::MAX,
                mirror_reports: true,
            },
        ] {
            let image =
                (guest.build)(params).unwrap_or_else(|error| panic!("{}: {error}", guest.name));
            let file = image.to_elf();
            let loaded = load(&file, LoadOptions::default())
                .unwrap_or_else(|error| panic!("{}: {error}", guest.name));
            let rip = loaded.state.regs.map(|regs| regs.rip);
            assert_eq!(rip, Some(u64::from(image.entry)), "{}", guest.name);
            for (address, bytes) in &image.chunks {
                let found = loaded
                    .chunks
                    .iter()
                    .any(|(at, data)| *at == u64::from(*address) && data == bytes);
                assert!(found, "{}: {address:#x}", guest.name);
            }
        }
    }
}

#[test]
fn names_are_unique_and_each_guest_says_what_it_meets() {
    let mut names: Vec<_> = every_guest().map(|guest| guest.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), every_guest().count());
    assert!(every_guest().all(|guest| guest.about.len() > 20));
    assert!(guests::find("no such guest").is_none());
}

#[test]
fn the_same_parameters_give_the_same_bytes() {
    for guest in every_guest() {
        let build = || {
            (guest.build)(Params::default())
                .map(|image| image.to_elf())
                .unwrap()
        };
        assert!(build() == build(), "{}", guest.name);
    }
}

#[test]
fn iterations_outside_the_checkpoint_id_are_refused() {
    for iterations in [0, 0x1_0001] {
        for guest in every_guest() {
            let params = Params {
                iterations,
                ..Params::default()
            };
            assert!((guest.build)(params).is_err(), "{}", guest.name);
        }
    }
}
