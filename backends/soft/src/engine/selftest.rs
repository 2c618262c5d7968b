//! Refuses to run if unicorn is not the one that the offsets were written for.
//!
//! Two parts: the pointers between unicorn's structures, looked at for every engine before anything
//! is written through them; and, once a process, every field written through the public interface and
//! read by offset, then a few instructions that must arrive as the code they should.

use super::env::{Env, NativeMsr};
use super::ffi;
use super::state::SegmentRegister;
use super::{
    Action, Engine, EngineError, Fault, Fill, FillRequest, Intercept, Machine, Mmio, Special,
    StopReason, TlbEntry,
};
use core::ffi::{c_int, c_void};
use nvmx_core::x86::regs::Gpr;
use std::sync::OnceLock;
use unicorn_engine_sys::{RegisterX86, uc_engine, uc_error, uc_reg_write, uc_version};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What the self-test found wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelfTestError {
    /// Another version of unicorn.
    #[error("unicorn {0}.{1}, but the offsets hold for 2.1")]
    Version(u32, u32),
    /// A pointer is not where it should be.
    #[error("{0} does not point where it should")]
    Pointer(&'static str),
    /// A field does not hold what the public interface wrote.
    #[error("field {name} holds {found:#x}, not {expected:#x}")]
    Field {
        /// Its name.
        name: &'static str,
        /// What was written.
        expected: u64,
        /// What the offset reads.
        found: u64,
    },
    /// An instruction did not arrive as it should.
    #[error("{0}")]
    Behaviour(String),
}

/// Follows the pointers between unicorn's structures: CPU object, env, TCG context.
pub(super) fn pointers(uc: *mut uc_engine) -> Result<(*mut u8, *mut u8, *mut u8), SelfTestError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: out-pointers to locals.
    unsafe { uc_version(&mut major, &mut minor) };
    if (major, minor) != (2, 1) {
        return Err(SelfTestError::Version(major, minor));
    }
    let ensure = |ok: bool, name| ok.then_some(()).ok_or(SelfTestError::Pointer(name));
    // SAFETY: the crate's version is pinned and the library's was just compared; each pointer is
    // compared with one already known before it is used.
    unsafe {
        let base = uc.cast::<u8>();
        let cpu = ffi::uc::CPU.read(base) as *mut u8;
        ensure(!cpu.is_null() && cpu.addr().is_multiple_of(8), "uc.cpu")?;
        ensure(ffi::cpu::UC.read(cpu) == uc.addr(), "cpu.uc")?;
        let env = cpu.wrapping_add(ffi::cpu::ENV_DISTANCE);
        ensure(ffi::cpu::ENV_PTR.read(cpu) == env.addr(), "cpu.env_ptr")?;
        ensure(ffi::env::UC.read(env) == uc.addr(), "env.uc")?;
        let class = ffi::cpu::CLASS.read(cpu) as *const u8;
        ensure(!class.is_null() && class.addr().is_multiple_of(8), "cpu.cc")?;
        let fill = ffi::unicorn_fill_tlb as ffi::TlbFill as usize;
        ensure(ffi::CLASS_TLB_FILL.read(class) == fill, "cpu.cc.tlb_fill")?;
        ensure(
            ffi::cpu::CFLAGS_NEXT_TB.read(cpu) == -1,
            "cpu.cflags_next_tb",
        )?;
        ensure(
            ffi::cpu::INTERRUPT_REQUEST.read(cpu) == 0,
            "cpu.interrupt_request",
        )?;
        ensure(ffi::uc::USE_EXITS.read(base) == 1, "uc.use_exits")?;
        ensure(ffi::uc::NESTED_LEVEL.read(base) == 0, "uc.nested_level")?;
        let end = cpu.wrapping_add(ffi::tlb::END).addr();
        ensure(
            ffi::cpu::ICOUNT_DECR_PTR.read(cpu) == end,
            "cpu.icount_decr_ptr",
        )?;
        for index in 0..ffi::tlb::MMU_INDEXES {
            let mask = ffi::tlb::MASK.index(index).read(cpu);
            let entries = (mask + ffi::tlb::ENTRY_SIZE) / ffi::tlb::ENTRY_SIZE;
            let table = ffi::tlb::TABLE.index(index).read(cpu);
            let plausible = entries.is_power_of_two() && entries >= 64;
            ensure(plausible && table != 0 && table.is_multiple_of(8), "tlb.f")?;
            let large = ffi::tlb::large_page(index).read(cpu) == u64::MAX;
            let used = ffi::tlb::used(index).read(cpu);
            ensure(large && used <= entries, "tlb.d")?;
        }
        let exits = ffi::uc::CTL_EXITS.read(base) as *const u8;
        ensure(
            !exits.is_null() && exits.addr().is_multiple_of(8),
            "uc.ctl_exits",
        )?;
        ensure(ffi::tree::NODES.read(exits) == 1, "uc.ctl_exits.nnodes")?;
        let tcg = ffi::uc::TCG_CTX.read(base) as *mut u8;
        ensure(!tcg.is_null() && tcg.addr().is_multiple_of(8), "uc.tcg_ctx")?;
        ensure(ffi::TB_FLUSH_COUNT.read(tcg) < 16, "tcg_ctx.tb_flush_count")?;
        Ok((cpu, env, tcg))
    }
}

/// Runs the whole test the first time it is called; later calls get its result.
pub(super) fn once() -> Result<(), EngineError> {
    static RESULT: OnceLock<Result<(), SelfTestError>> = OnceLock::new();
    if let Some(result) = RESULT.get() {
        return Ok(result.clone()?);
    }
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])
        .map_err(|_| EngineError::Memory)?;
    let mut engine = Engine::unchecked(&memory)?;
    let result = fields(&mut engine).and_then(|()| behaviour(&memory));
    Ok(RESULT.get_or_init(|| result).clone()?)
}

#[repr(C)]
struct TableRegister {
    selector: u16,
    base: u64,
    limit: u32,
    flags: u32,
}

fn write(
    engine: &Engine,
    register: RegisterX86,
    value: *const c_void,
) -> Result<(), SelfTestError> {
    // SAFETY: the value has the type that this register takes; unicorn does not run.
    match unsafe { uc_reg_write(engine.uc, register as c_int, value) } {
        uc_error::OK => Ok(()),
        error => Err(SelfTestError::Behaviour(format!(
            "writing {register:?}: {error}"
        ))),
    }
}

/// Writes each register through the public interface and reads it by offset.
fn fields(engine: &mut Engine) -> Result<(), SelfTestError> {
    type Read = fn(&Env) -> u64;
    let plain: &[(RegisterX86, &'static str, u64, Read)] = &[
        (RegisterX86::RAX, "rax", 0x1101, |e| e.gpr(Gpr::Rax)),
        (RegisterX86::RCX, "rcx", 0x1102, |e| e.gpr(Gpr::Rcx)),
        (RegisterX86::RDX, "rdx", 0x1103, |e| e.gpr(Gpr::Rdx)),
        (RegisterX86::RBX, "rbx", 0x1104, |e| e.gpr(Gpr::Rbx)),
        (RegisterX86::RSP, "rsp", 0x1105, |e| e.gpr(Gpr::Rsp)),
        (RegisterX86::RBP, "rbp", 0x1106, |e| e.gpr(Gpr::Rbp)),
        (RegisterX86::RSI, "rsi", 0x1107, |e| e.gpr(Gpr::Rsi)),
        (RegisterX86::RDI, "rdi", 0x1108, |e| e.gpr(Gpr::Rdi)),
        (RegisterX86::R8, "r8", 0x1109, |e| e.gpr(Gpr::R8)),
        (RegisterX86::R9, "r9", 0x110a, |e| e.gpr(Gpr::R9)),
        (RegisterX86::R10, "r10", 0x110b, |e| e.gpr(Gpr::R10)),
        (RegisterX86::R11, "r11", 0x110c, |e| e.gpr(Gpr::R11)),
        (RegisterX86::R12, "r12", 0x110d, |e| e.gpr(Gpr::R12)),
        (RegisterX86::R13, "r13", 0x110e, |e| e.gpr(Gpr::R13)),
        (RegisterX86::R14, "r14", 0x110f, |e| e.gpr(Gpr::R14)),
        (RegisterX86::R15, "r15", 0x1110, |e| e.gpr(Gpr::R15)),
        (RegisterX86::RIP, "eip", 0x1111_2222_3333, Env::rip),
        (RegisterX86::CR2, "cr2", 0x1213, Env::cr2),
        (RegisterX86::CR3, "cr3", 0x5000, Env::cr3),
        (RegisterX86::CR4, "cr4", 0x620, Env::cr4),
        (RegisterX86::DR0, "dr0", 0x1301, |e| e.dr(0)),
        (RegisterX86::DR3, "dr3", 0x1304, |e| e.dr(3)),
        (RegisterX86::DR7, "dr7", 0x400, |e| e.dr(7)),
        (RegisterX86::FS_BASE, "fs.base", 0x1401, |e| {
            e.msr(NativeMsr::FsBase)
        }),
        (RegisterX86::GS_BASE, "gs.base", 0x1402, |e| {
            e.msr(NativeMsr::GsBase)
        }),
        (RegisterX86::CS, "cs", 0x18, |e| {
            u64::from(e.segment(SegmentRegister::Cs).selector)
        }),
        (RegisterX86::ES, "es", 0x20, |e| {
            u64::from(e.segment(SegmentRegister::Es).selector)
        }),
    ];
    let verify = |name, expected, found| {
        if found == expected {
            Ok(())
        } else {
            Err(SelfTestError::Field {
                name,
                expected,
                found,
            })
        }
    };
    // The public interface runs the instruction's helper for MSRs, which would be intercepted.
    // This engine never runs, so that its flags need not be put back.
    engine.env_mut().put(ffi::env::HFLAGS, 0);
    for &(register, name, value, read) in plain {
        write(engine, register, (&raw const value).cast())?;
        verify(name, value, read(engine.env()))?;
    }
    let msrs: &[(u32, &'static str, u64, Read)] = &[
        // LMA is set in this mode and WRMSR keeps it.
        (0xc000_0080, "efer", 0xc01, Env::efer),
        (0xc000_0081, "star", 0x2301, |e| e.msr(NativeMsr::Star)),
        (0xc000_0082, "lstar", 0x2302, |e| e.msr(NativeMsr::Lstar)),
        (0xc000_0083, "cstar", 0x2303, |e| e.msr(NativeMsr::Cstar)),
        (0xc000_0084, "fmask", 0x2304, |e| e.msr(NativeMsr::Fmask)),
        (0xc000_0102, "kernelgsbase", 0x2305, |e| {
            e.msr(NativeMsr::KernelGsBase)
        }),
        (0xc000_0103, "tsc_aux", 0x2306, |e| e.msr(NativeMsr::TscAux)),
        (0x174, "sysenter_cs", 0x28, |e| e.msr(NativeMsr::SysenterCs)),
        (0x175, "sysenter_esp", 0x2307, |e| {
            e.msr(NativeMsr::SysenterEsp)
        }),
        (0x176, "sysenter_eip", 0x2308, |e| {
            e.msr(NativeMsr::SysenterEip)
        }),
        (0x277, "pat", 0x0007_0406_0007_0406, |e| {
            e.msr(NativeMsr::Pat)
        }),
    ];
    for &(number, name, value, read) in msrs {
        #[repr(C)]
        struct Msr(u32, u64);
        let pair = Msr(number, value);
        write(engine, RegisterX86::MSR, (&raw const pair).cast())?;
        verify(name, value, read(engine.env()))?;
    }
    let table = TableRegister {
        selector: 0x30,
        base: 0x3102,
        limit: 0x103,
        flags: 0x8b00,
    };
    let pointer = (&raw const table).cast();
    write(engine, RegisterX86::GDTR, pointer)?;
    verify("gdt.base", table.base, engine.env().gdtr().base)?;
    verify("gdt.limit", 0x103, u64::from(engine.env().gdtr().limit))?;
    write(engine, RegisterX86::IDTR, pointer)?;
    verify("idt.base", table.base, engine.env().idtr().base)?;
    for (register, name, segment) in [
        (RegisterX86::LDTR, "ldt", SegmentRegister::Ldtr),
        (RegisterX86::TR, "tr", SegmentRegister::Tr),
    ] {
        write(engine, register, pointer)?;
        let found = engine.env().segment(segment);
        verify(name, table.base, found.base)?;
        verify(name, 0x30, u64::from(found.selector))?;
        verify(name, 0x103, u64::from(found.limit))?;
        verify(name, 0x8b, u64::from(found.ar.bits()))?;
    }
    let xmm: [u64; 2] = [0x4101, 0x4102];
    write(engine, RegisterX86::XMM9, (&raw const xmm).cast())?;
    let mxcsr = 0x1fa0u32;
    write(engine, RegisterX86::MXCSR, (&raw const mxcsr).cast())?;
    let control = 0x27fu16;
    write(engine, RegisterX86::FPCW, (&raw const control).cast())?;
    let image = engine.env().fxsave();
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&image[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    verify("xmm9.low", xmm[0], word(160 + 9 * 16))?;
    verify("xmm9.high", xmm[1], word(168 + 9 * 16))?;
    verify("mxcsr", u64::from(mxcsr), word(24) & 0xffff_ffff)?;
    verify("fpuc", u64::from(control), word(0) & 0xffff)
}

/// Notes what arrives; memory is mapped one to one below 64 KiB.
struct Recorder(Vec<(u64, Intercept)>);

impl Machine for Recorder {
    fn intercept(&mut self, env: &mut Env, intercept: Intercept, _error_code: u32) -> Action {
        let rip = env.rip();
        self.0.push((rip, intercept));
        let length = match intercept {
            Intercept::Cpuid | Intercept::Rdmsr | Intercept::SoftwareInterrupt => 2,
            Intercept::Special(Special::Syscall) => 2,
            Intercept::Special(Special::Undefined) => 4,
            Intercept::CrWrite(3) | Intercept::Exception(6) => 3,
            Intercept::Special(Special::Io) => 1,
            _ => return Action::Stop,
        };
        env.set_rip(rip + length);
        env.retired(1);
        Action::Continue
    }

    fn tlb_fill(&mut self, _env: &mut Env, request: &FillRequest) -> Fill {
        if request.vaddr >= 0x10000 {
            return Fill::Fault;
        }
        Fill::Map(TlbEntry {
            gpa: request.vaddr,
            readable: true,
            writable: true,
            executable: true,
        })
    }

    fn fault(&mut self, env: &mut Env, _fault: &Fault) -> Action {
        self.0.push((env.rip(), Intercept::Exception(14)));
        Action::Stop
    }

    fn mmio(&mut self, _env: &mut Env, _access: &Mmio) -> Action {
        Action::Stop
    }
}

/// A state in which code runs in 64-bit mode at ring 0, flat.
pub(super) fn long_mode(env: &mut Env) {
    use nvmx_core::x86::{AccessRights, Segment, Sregs};
    let flat = |selector, ar| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    let data = flat(0x10, 0xc093);
    let mut sregs = Sregs::default();
    env.read_sregs(&mut sregs);
    sregs.cs = flat(0x8, 0xa09b);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.ss,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *segment = data;
    }
    sregs.cr0 = 0x8000_0031;
    sregs.cr4 = 0x620;
    sregs.efer = 0xd01;
    env.write_sregs(&sregs);
    env.set_rflags(2);
}

fn behaviour(memory: &GuestMemoryMmap<()>) -> Result<(), SelfTestError> {
    const CODE: &[u8] = &[
        0x90, // 1000 nop
        0x0f, 0xa2, // 1001 cpuid
        0x0f, 0x22, 0xd8, // 1003 mov cr3, rax
        0x0f, 0x32, // 1006 rdmsr
        0xcd, 0x80, // 1008 int 0x80
        0x0f, 0x05, // 100a syscall
        0xf0, 0x0f, 0xab, 0xc8, // 100c lock bts eax, ecx
        0xee, // 1010 out dx, al
        0x0f, 0x01, 0xc1, // 1011 vmcall
        0x48, 0x8b, 0x04, 0x25, 0, 0, 0x10, 0, // 1014 mov rax, [0x100000]
    ];
    let expected = [
        (0x1001, Intercept::Cpuid),
        (0x1003, Intercept::CrWrite(3)),
        (0x1006, Intercept::Rdmsr),
        (0x1008, Intercept::SoftwareInterrupt),
        (0x100a, Intercept::Special(Special::Syscall)),
        (0x100c, Intercept::Special(Special::Undefined)),
        (0x1010, Intercept::Special(Special::Io)),
        (0x1011, Intercept::Exception(6)),
        (0x1014, Intercept::Exception(14)),
    ];
    let fail = |what: String| Err(SelfTestError::Behaviour(what));
    if memory.write_slice(CODE, GuestAddress(0x1000)).is_err() {
        return fail("no memory".into());
    }
    let mut engine = match Engine::unchecked(memory) {
        Ok(engine) => engine,
        Err(EngineError::SelfTest(error)) => return Err(error),
        Err(error) => return fail(error.to_string()),
    };
    long_mode(engine.env_mut());
    engine.env_mut().set_rip(0x1000);
    let mut recorder = Recorder(Vec::new());
    let stop = engine.run(&mut recorder, 100);
    if !matches!(stop, Ok(StopReason::Machine)) {
        return fail(format!(
            "the run ended with {stop:?} after {:x?}",
            recorder.0
        ));
    }
    if recorder.0 != expected {
        return fail(format!("{:x?} came, not {expected:x?}", recorder.0));
    }
    let count = engine.env().executed();
    if count != 9 {
        return fail(format!("{count} instructions counted, not 9"));
    }
    if engine.env().holds_no_translation() {
        return fail("no translation is where the TLB should be".into());
    }
    engine.env_mut().flush_tlb();
    if !engine.env().holds_no_translation() {
        return fail("a flush left a translation".into());
    }
    Ok(())
}
