//! How fast the execution engine runs, with every intercept and the instruction count on.
//!
//! `cargo run --release -p nvmx-soft --example engine_speed`

use nvmx_core::x86::regs::Gpr;
use nvmx_core::x86::{AccessRights, Segment, Sregs};
use nvmx_soft::engine::{
    Action, Engine, Env, Fault, Fill, FillRequest, Intercept, Machine, Mmio, TlbEntry,
};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Arithmetic, loads, stores, calls, branches: 9 instructions and 3 blocks a turn.
const MIXED: &[u8] = &[
    0x01, 0xc8, // add eax, ecx
    0x48, 0x89, 0x04, 0x25, 0, 0, 0x20, 0, // mov [0x200000], rax
    0x48, 0x33, 0x1c, 0x25, 0, 0, 0x20, 0, // xor rbx, [0x200000]
    0xe8, 0x07, 0, 0, 0, // call +7
    0xff, 0xc9, // dec ecx
    0x75, 0xe5, // jnz start
    0xeb, 0xe3, // jmp start
    0x90, // nop
    0x48, 0xff, 0xc2, // inc rdx
    0xc3, // ret
];

/// Eight plain instructions and a CPUID.
const EXITS: &[u8] = &[
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x0f, 0xa2, 0xeb, 0xf5,
];

/// Memory one to one, CPUID does nothing.
struct Flat {
    exits: u64,
    flush: bool,
}

impl Machine for Flat {
    fn intercept(&mut self, env: &mut Env, intercept: Intercept, _: u32) -> Action {
        if intercept != Intercept::Cpuid {
            return Action::Stop;
        }
        self.exits += 1;
        if self.flush {
            env.flush_tlb();
        }
        env.set_rip(env.rip() + 2);
        env.retired(1);
        Action::Continue
    }

    fn tlb_fill(&mut self, _: &mut Env, request: &FillRequest) -> Fill {
        Fill::Map(TlbEntry {
            gpa: request.vaddr,
            readable: true,
            writable: true,
            executable: true,
        })
    }

    fn fault(&mut self, _: &mut Env, _: &Fault) -> Action {
        Action::Stop
    }

    fn mmio(&mut self, _: &mut Env, _: &Mmio) -> Action {
        Action::Stop
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)])?;
    memory.write_slice(MIXED, GuestAddress(0x1000))?;
    memory.write_slice(EXITS, GuestAddress(0x2000))?;
    let start = Instant::now();
    let mut engine = Engine::new(&memory)?;
    println!("first engine, self-test included: {:?}", start.elapsed());
    let start = Instant::now();
    drop(Engine::new(&memory)?);
    println!("second engine: {:?}", start.elapsed());

    let env = engine.env_mut();
    let mut sregs = Sregs::default();
    env.read_sregs(&mut sregs);
    let flat = |ar| Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    sregs.cs = flat(0xa09b);
    (sregs.ss, sregs.ds, sregs.es) = (flat(0xc093), flat(0xc093), flat(0xc093));
    (sregs.cr0, sregs.cr4, sregs.efer) = (0x8000_0031, 0x620, 0xd01);
    env.write_sregs(&sregs);
    env.set_gpr(Gpr::Rsp, 0x8000);

    let mut machine = Flat {
        exits: 0,
        flush: false,
    };
    engine.env_mut().set_rip(0x1000);
    for budget in [1_000_000, 1_000_000_000u64] {
        let start = Instant::now();
        let stop = engine.run(&mut machine, budget)?;
        let rate = budget as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("mixed loop, {budget} instructions: {rate:.0} MIPS ({stop:?})");
    }
    for (name, flush) in [("", false), (" with a TLB flush each", true)] {
        machine = Flat { exits: 0, flush };
        engine.env_mut().set_rip(0x2000);
        let start = Instant::now();
        engine.run(&mut machine, 20_000_000)?;
        let each = start.elapsed().as_nanos() / u128::from(machine.exits.max(1));
        println!("CPUID every 9 instructions{name}: {each} ns each");
    }
    let start = Instant::now();
    for _ in 0..200_000 {
        engine.step(&mut machine)?;
    }
    println!("step: {} ns", start.elapsed().as_nanos() / 200_000);
    Ok(())
}
