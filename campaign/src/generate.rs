//! Cases at the boundary of validity: a base with one to four mutations, values drawn from what the
//! rules of VM entry make interesting.
//!
//! L1 must live through every case: host state is changed only to what L1 survives or what must fail,
//! L2's RIP only to where no code of L1's is, and L2 is not put to sleep without its alarm clock.

mod values;

use crate::base::{BASES, Base};
use crate::case::{Case, Code, Hex, Mutation, Named};
use crate::layout;
use crate::random::Random;
use crate::session::Cases;
use nvmx_core::cpu::Model;
use nvmx_core::vmx::controls::PinBased;
use nvmx_core::vmx::{Field, Vmcs12};

/// A generator for one processor: the bases' controls follow its capabilities.
pub struct Generator {
    bases: Vec<Vmcs12>,
    width: u8,
    seed: u64,
}

impl Generator {
    /// For a processor and a seed.
    #[must_use]
    pub fn new(model: &Model, vm_exit: u64, seed: u64) -> Self {
        let page = |base: &Base| {
            let mut vmcs12 = Vmcs12::new();
            for (field, value) in base.fields(model, vm_exit) {
                vmcs12.set(field, value);
            }
            vmcs12
        };
        Self {
            bases: crate::base::all().map(page).collect(),
            width: model.physical_address_width,
            seed,
        }
    }

    /// Case number `number`, always the same. The first are the bases themselves.
    #[must_use]
    pub fn case(&self, number: u64) -> Case {
        if let Some(base) = BASES.get(number as usize) {
            return Case {
                base: base.name.into(),
                resume: false,
                mutations: Vec::new(),
                code: Code::default(),
            };
        }
        let mut random = Random::new(self.seed, number);
        loop {
            let case = self.draw(&mut random);
            if self.is_survivable(&case) {
                return case;
            }
        }
    }

    fn draw(&self, random: &mut Random) -> Case {
        let index = random.below(BASES.len() as u64) as usize;
        let vmcs12 = &self.bases[index];
        // Two in three cases have one or two: what several do at once is mostly what the first does.
        let count = *random.pick(&[1, 1, 1, 2, 2, 3, 4]);
        let mut mutations: Vec<Mutation> = Vec::new();
        while mutations.len() < count {
            let mutation = match random.below(40) {
                0 => values::memory(random, self.width),
                1 if mutations.is_empty() => Mutation::Header(
                    Hex(*random.pick(&[0, 8, 8])),
                    Hex(*random.pick(&[0, 1, 2, 0x8000_0000 | 0x11e5_7ed0])),
                ),
                _ => {
                    let (field, value) = values::field(random, vmcs12, self.width);
                    Mutation::Field(Named(field), Hex(value))
                }
            };
            let place = |mutation: &Mutation| match *mutation {
                Mutation::Field(Named(field), _) => (0, u64::from(field.0)),
                Mutation::Memory(Hex(address), _) => (1, address),
                Mutation::Header(Hex(offset), _) => (2, offset),
                Mutation::Register(register, _) => (3, register.0.into()),
            };
            if mutations
                .iter()
                .all(|other| place(other) != place(&mutation))
            {
                mutations.push(mutation);
            }
        }
        Case {
            base: BASES[index].name.into(),
            resume: random.one_in(50),
            mutations,
            code: Code::default(),
        }
    }

    /// A base's VMCS.
    pub(crate) fn base(&self, name: &str) -> Vmcs12 {
        let index = crate::base::find(name).unwrap_or_default();
        self.bases[index].clone()
    }

    /// The VMCS of a case, as far as it is in the VMCS.
    #[must_use]
    pub fn vmcs12(&self, case: &Case) -> Vmcs12 {
        let base = crate::base::find(&case.base).unwrap_or_default();
        let mut vmcs12 = self.bases[base].clone();
        for mutation in &case.mutations {
            if let Mutation::Field(Named(field), Hex(value)) = *mutation {
                vmcs12.set(field, value);
            }
        }
        vmcs12
    }

    /// Whether something ends L2 for certain, and no store of the processor's hits what L1 needs.
    fn is_survivable(&self, case: &Case) -> bool {
        let vmcs12 = self.vmcs12(case);
        let timer = vmcs12.get32(Field::PIN_BASED_VM_EXEC_CONTROL)
            & PinBased::ACTIVATE_PREEMPTION_TIMER.bits()
            != 0;
        let activity = vmcs12.get(Field::GUEST_ACTIVITY_STATE);
        let sleeps = activity == 1 && !timer;
        // Wait-for-SIPI ends with a SIPI, which one vCPU has nobody to send.
        if sleeps || activity == 3 || activity == 2 && !timer {
            return false;
        }
        // A list without end, or one that leads over L1's memory.
        let stores = vmcs12.get(Field::VM_EXIT_MSR_STORE_COUNT);
        let loads = vmcs12.get(Field::VM_EXIT_MSR_LOAD_COUNT);
        let is_list = |field| {
            let address: u64 = vmcs12.get(field);
            address >> 12 == layout::ENTRY_LOAD >> 12 || address >= 16 << 20
        };
        // An exit that cannot load its list ends in a VMX abort, and L1 with it.
        (stores == 0 || stores <= 3 && is_list(Field::VM_EXIT_MSR_STORE_ADDR))
            && (loads == 0
                || loads <= 2 && vmcs12.get(Field::VM_EXIT_MSR_LOAD_ADDR) == layout::EXIT_LOAD)
    }
}

impl Cases for Generator {
    fn case(&self, number: u64) -> Case {
        Self::case(self, number)
    }

    fn vmcs12(&self, case: &Case) -> Vmcs12 {
        Self::vmcs12(self, case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn generator() -> Generator {
        Generator::new(&crate::lab_model(), 0x11_4100, 7)
    }

    #[test]
    fn every_field_is_reached_and_every_case_fits() {
        let generator = generator();
        let mut seen = BTreeSet::new();
        for number in 0..20_000 {
            let case = generator.case(number);
            assert_eq!(case.check(), Ok(()));
            for mutation in case.mutations {
                if let Mutation::Field(Named(field), _) = mutation {
                    seen.insert(field);
                }
            }
        }
        // HOST_RSP is the one field that L1 cannot do without.
        let missing: Vec<_> = crate::wire::writable()
            .filter(|field| !seen.contains(field))
            .collect();
        assert_eq!(missing, [Field::HOST_RSP]);
    }

    #[test]
    fn a_case_depends_on_its_number_alone() {
        let generator = generator();
        assert_eq!(generator.case(12_345), generator.case(12_345));
        assert_ne!(generator.case(12_345), generator.case(12_346));
    }
}
