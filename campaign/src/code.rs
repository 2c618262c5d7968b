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
use crate::layout::{self, arena};
use crate::random::Random;
use crate::session::Cases;
use crate::wire::Record;
use classes::{CLASSES, Class, Modes};
use emit::Emit;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter};
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

impl Case {
    /// Whether L2 has the arena.
    pub(crate) fn is_code(&self) -> bool {
        base::find_code(&self.base).is_some()
    }

    /// The instructions of its code.
    pub(crate) fn instructions(&self) -> Vec<Instruction> {
        let bits = base::find_code(&self.base).map_or(64, |code| code.bits);
        let options = DecoderOptions::NONE;
        let mut decoder = Decoder::with_ip(bits, &self.code.0, self.code_address(), options);
        decoder.iter().collect()
    }

    /// Whether such an instruction is among them.
    pub(crate) fn has(&self, is: impl Fn(Mnemonic) -> bool) -> bool {
        self.instructions()
            .iter()
            .any(|instruction| is(instruction.mnemonic()))
    }

    pub(crate) fn has_iret(&self) -> bool {
        self.has(|mnemonic| matches!(mnemonic, Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq))
    }
}

/// The vector whose stub L2 got to.
pub(crate) fn arrived(record: &Record) -> Option<u64> {
    let rip: u64 = record.vmcs12.get(Field::GUEST_RIP);
    let base: u64 = record.vmcs12.get(Field::GUEST_CS_BASE);
    let stubs = match base {
        layout::REAL => layout::REAL + 0x1000,
        _ => arena::STUBS,
    };
    let offset = base.wrapping_add(rip).wrapping_sub(stubs);
    (offset < 0x1000).then_some(offset / 16)
}

/// The vector whose stub L2 got to, or that made it exit.
pub(crate) fn met(record: &Record) -> Option<u64> {
    let information: u64 = record.vmcs12.get(Field::VM_EXIT_INTR_INFO);
    if record.vmcs12.get(Field::VM_EXIT_REASON) == 0 {
        Some(information & 0xff)
    } else {
        arrived(record)
    }
}

/// What a case's code says.
#[must_use]
pub fn disassemble(case: &Case) -> String {
    let mut formatter = NasmFormatter::new();
    let text = case.instructions().into_iter().map(|instruction| {
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        line
    });
    text.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn generator() -> Generator {
        Generator::new(&crate::lab_model(), 0x11_4100, 7)
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
