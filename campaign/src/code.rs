//! Cases with code: a few instructions of L2 of every class that can exit, under random controls, EPT
//! and paging permissions, bitmaps, pending events and interruptibility.
//!
//! L2 has its arena and nothing else: its page tables, and EPT where there is one, map no more, so
//! that no store of its code reaches L1. Behind the code comes CPUID, and so do all handlers.

mod classes;
mod emit;
mod memory;
mod state;
mod system;

use crate::base::{self, CODE_BASES, CodeBase};
use crate::case::{Case, Code, Hex, Mutation, Named};
use crate::layout::arena;
use crate::random::Random;
use crate::session::Cases;
use classes::{CLASSES, Class, Modes};
use emit::Emit;
use nvmx_core::cpu::Model;
use nvmx_core::vmx::capability::Capability;
use nvmx_core::vmx::{Field, Vmcs12};

/// A generator for one processor.
pub struct Generator {
    entries: crate::generate::Generator,
    model: Model,
    seed: u64,
}

impl Generator {
    /// For a processor and a seed.
    #[must_use]
    pub fn new(model: &Model, vm_exit: u64, seed: u64) -> Self {
        Self {
            entries: crate::generate::Generator::new(model, vm_exit, seed),
            model: model.clone(),
            seed,
        }
    }

    fn draw(&self, random: &mut Random) -> Case {
        let code = random.pick(CODE_BASES);
        let base = code.base.name;
        let vmcs12 = self.entries.base(base);
        let mut e = Emit::new(random, code.bits, code.is_real);
        let mut classes = Vec::new();
        // The code may run over its page's end.
        if !code.is_real && e.random.one_in(16) {
            e.start = 0x1000 - e.random.below(16);
        }
        let count = *e.random.pick(&[1, 1, 1, 2, 2, 2, 3, 3, 4]);
        for _ in 0..count {
            let class = pick(&mut e, code);
            (class.emit)(&mut e);
            classes.push(class);
        }
        let mut fields = state::fields(&mut e, &vmcs12, &classes, Capability::from(&self.model));
        if e.start != 0 {
            fields.push((Field::GUEST_RIP, arena::CODE + e.start));
        }
        let mut memory = state::memory(&mut e, &vmcs12, code, self.model.physical_address_width);
        memory.extend(e.memory.iter().copied());
        e.memory = distinct(memory);
        let mutations = fields
            .iter()
            .map(|(field, value)| Mutation::Field(Named(*field), Hex(*value)))
            .chain(e.mutations())
            .collect();
        Case {
            base: base.into(),
            resume: false,
            mutations,
            code: Code(e.bytes),
        }
    }
}

impl Cases for Generator {
    fn case(&self, number: u64) -> Case {
        if let Some(code) = CODE_BASES.get(number as usize) {
            return Case {
                base: code.base.name.into(),
                resume: false,
                mutations: Vec::new(),
                code: Code::default(),
            };
        }
        let mut random = Random::new(self.seed, number);
        loop {
            let case = self.draw(&mut random);
            if case.check().is_ok()
                && !state::is_pointless(&self.entries.vmcs12(&case), Capability::from(&self.model))
            {
                return case;
            }
        }
    }

    fn vmcs12(&self, case: &Case) -> Vmcs12 {
        self.entries.vmcs12(case)
    }
}

/// The classes of instructions that a case draws from.
pub fn classes() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().map(|class| class.name)
}

/// A class that this code can have, by weight.
fn pick(e: &mut Emit<'_>, code: &CodeBase) -> &'static Class {
    let fits = |class: &&Class| match class.modes {
        Modes::All => true,
        Modes::Only64 => code.bits == 64,
        Modes::Not64 => code.bits != 64,
    };
    let all = CLASSES.iter().filter(fits);
    let total = all.clone().map(|class| class.weight).sum();
    let mut left = e.random.below(total);
    for class in all {
        if left < class.weight {
            return class;
        }
        left -= class.weight;
    }
    &CLASSES[0]
}

/// Words of memory by address, none twice and none over another.
fn distinct(words: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut kept: Vec<(u64, u64)> = Vec::new();
    for (address, value) in words {
        if kept.iter().all(|(other, _)| address.abs_diff(*other) >= 8) {
            kept.push((address, value));
        }
    }
    kept
}

/// What a case's code says, an instruction a line.
#[must_use]
pub fn disassemble(case: &Case) -> String {
    use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
    let bits = base::find_code(&case.base).map_or(64, |code| code.bits);
    let mut decoder = Decoder::with_ip(
        bits,
        &case.code.0,
        case.code_address(),
        DecoderOptions::NONE,
    );
    let mut formatter = NasmFormatter::new();
    let mut text = Vec::new();
    while decoder.can_decode() {
        let mut line = String::new();
        formatter.format(&decoder.decode(), &mut line);
        text.push(line);
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::vmx::capability::KVM_6_1_ICELAKE;
    use std::collections::BTreeSet;

    fn generator() -> Generator {
        let model = Model {
            vmx_msrs: KVM_6_1_ICELAKE,
            physical_address_width: 39,
            linear_address_width: 48,
            ..Model::default()
        };
        Generator::new(&model, 0x11_4100, 7)
    }

    #[test]
    fn every_case_fits_and_depends_on_its_number_alone() {
        let generator = generator();
        let mut code = BTreeSet::new();
        for number in 0..5_000 {
            let case = generator.case(number);
            assert_eq!(case.check(), Ok(()));
            code.insert(case.code.0);
        }
        assert!(code.len() > 3_000, "{}", code.len());
        assert_eq!(generator.case(1_234), generator.case(1_234));
    }

    #[test]
    fn classes_have_names_of_their_own_and_write_code_in_every_mode() {
        let mut names = BTreeSet::new();
        for class in CLASSES {
            assert!(names.insert(class.name), "{} twice", class.name);
            for code in CODE_BASES {
                let mut random = Random::new(1, 2);
                for _ in 0..20 {
                    let mut e = Emit::new(&mut random, code.bits, code.is_real);
                    (class.emit)(&mut e);
                    let length = e.bytes.len();
                    assert!(length > 0 && length < 48, "{}: {length}", class.name);
                }
            }
        }
    }
}
