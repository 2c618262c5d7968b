//! Instructions that the translator must not see, found by their bytes before it sees them.
//!
//! While a block is translated the engine is asked about every instruction's address; for those that
//! [`classify`] names it has an intercepted HLT translated instead, so that they arrive un-executed
//! with RIP exact at no cost to other code. The list is what unicorn 2.1.5 gets wrong: IN and OUT
//! without permission checks, INS writing memory before it is checked, SYSCALL and SYSENTER as
//! no-operation, RDRAND from the host's randomness, LOCK BTS with a register operand as an abort of
//! the process, VEX.128 as legacy SSE, what AMD's processors have and Intel's lack, illegal LOCK forms as legal ones (SDM Vol. 2A "LOCK"), and
//! SETcc, RCL and RCR of memory computing RFLAGS in place before the access, so that a fault leaves
//! wrong flags behind and the repeated instruction a wrong result; and BMI2, CRC32, MOVBE and INVEPT
//! refused with SSE where CR0.EM, CR0.TS or CR4.OSFXSR refuse that, so that [`unit`] tells them apart.

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

/// An instruction that the layer above must emulate or refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// IN, OUT, INS or OUTS (one iteration of a repeated one).
    Io,
    /// SYSCALL.
    Syscall,
    /// SYSENTER.
    Sysenter,
    /// RDPMC.
    Rdpmc,
    /// INT1.
    Int1,
    /// RDRAND.
    Rdrand,
    /// RDSEED or RDPID.
    Rdseed,
    /// Far JMP or CALL, IRET, outside 64-bit mode: each may be a task switch; and IRETD in it, which the translator
    /// has go to virtual-8086 mode. One that is none of these runs natively ([`super::Env::run_natively_once`]).
    FarTransfer,
    /// XGETBV.
    Xgetbv,
    /// XSETBV.
    Xsetbv,
    /// UMONITOR, UMWAIT or TPAUSE.
    UserWait,
    /// SETcc, RCL or RCR of memory, LOCK NEG, CMPXCHG8B and CMPXCHG16B.
    FlagsFirst,
    /// MOV to SS and LSS in 64-bit mode, LTR, LAR, LSL: what the translator has right of them runs natively.
    Selector,
    /// Any other, at CPL 3 with RFLAGS.AC set: the translator knows no alignment checks. Not found by
    /// `classify`; [`super::Env::run_natively_once`] has it executed.
    AlignmentCheck,
    /// Undefined on this processor: an illegal LOCK prefix, VEX without AVX, VMREAD and VMWRITE with
    /// an operand-size or repeat prefix, SSE without CR4.OSFXSR, MMX and SSE with CR0.EM.
    Undefined,
    /// x87, WAIT, MMX or SSE that CR0.TS, CR0.EM or both have raise #NM.
    NoDevice,
}

impl Special {
    /// Undefined on this processor.
    #[must_use]
    pub const fn is_undefined(self) -> bool {
        matches!(self, Self::Undefined)
    }
}

/// Operand and address size that the code segment gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// 16-bit code, real mode included.
    Bits16,
    /// 32-bit code.
    Bits32,
    /// 64-bit code.
    Bits64,
}

impl CodeSize {
    /// 16, 32 or 64, as a decoder takes it.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// The longest instruction (SDM Vol. 2A "Instruction Format").
pub const MAX_INSTRUCTION_LENGTH: usize = 15;

/// Whether IRET or far RET starts at `bytes`.
pub(super) fn is_far_return(bytes: &[u8], size: CodeSize) -> bool {
    let is_prefix = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3)
            || size == CodeSize::Bits64 && byte & 0xf0 == 0x40
    };
    let opcode = bytes.iter().find(|&&byte| !is_prefix(byte));
    matches!(opcode, Some(0xca | 0xcb | 0xcf))
}

/// Names the instruction that starts at `bytes`, if it is one that must not be translated.
///
/// Too few bytes to tell answer `None`: the fetch of the rest faults.
#[must_use]
pub(super) fn classify(bytes: &[u8], size: CodeSize) -> Option<Special> {
    let (mut lock, mut operand_size, mut repeat) = (false, false, false);
    let (mut wide, mut high_register) = (false, false);
    let mut rest = bytes.iter().copied().take(MAX_INSTRUCTION_LENGTH);
    let opcode = loop {
        match rest.next()? {
            0xf0 => lock = true,
            0x66 => operand_size = true,
            0xf2 | 0xf3 => repeat = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
            rex @ 0x40..=0x4f if size == CodeSize::Bits64 => {
                (wide, high_register) = (rex & 8 != 0, rex & 4 != 0);
            }
            opcode => break opcode,
        }
    };
    if opcode == 0x0f
        && rest
            .clone()
            .next()
            .is_some_and(|next| matches!(next, 0x20..=0x23))
    {
        return no_such_register(&mut rest, lock, high_register);
    }
    let special = match opcode {
        0x0f => return two_byte(&mut rest, lock, operand_size, repeat, size),
        0x6c..=0x6f | 0xe4..=0xe7 | 0xec..=0xef => Special::Io,
        0xf1 => Special::Int1,
        0x9a | 0xcf | 0xea if size != CodeSize::Bits64 => Special::FarTransfer,
        0xcf if !wide && !operand_size => Special::FarTransfer,
        0x8e if size == CodeSize::Bits64 && rest.clone().next()? >> 3 & 7 == 2 => Special::Selector,
        0xc4 | 0xc5 => return vex(opcode, &mut rest, size),
        _ if lock => {
            let modrm = rest.next()?;
            // Of a locked NEG the translator makes other flags.
            let is_neg = matches!(opcode, 0xf6 | 0xf7) && modrm >> 3 & 7 == 3 && modrm < 0xc0;
            return if is_neg {
                Some(Special::FlagsFirst)
            } else {
                illegal_lock(one_byte_lock(opcode, modrm, size))
            };
        }
        0xff if size != CodeSize::Bits64 => {
            let modrm = rest.next()?;
            let is_far = matches!(modrm >> 3 & 7, 3 | 5);
            return (modrm < 0xc0 && is_far).then_some(Special::FarTransfer);
        }
        0xc0 | 0xc1 | 0xd0..=0xd3 => {
            let modrm = rest.next()?;
            let rotates_carry = matches!(modrm >> 3 & 7, 2 | 3);
            return (modrm < 0xc0 && rotates_carry).then_some(Special::FlagsFirst);
        }
        _ => return None,
    };
    Some(if lock { Special::Undefined } else { special })
}

/// MOV to and from control registers that there are not, and debug registers above DR7: #UD whatever the
/// privilege (SDM Vol. 2B "MOV-Move to/from Control Registers"); the translator looks at that first. LOCK
/// is an AMD way to CR8.
fn no_such_register(
    rest: &mut impl Iterator<Item = u8>,
    lock: bool,
    high: bool,
) -> Option<Special> {
    let is_control = rest.next()? & 1 == 0;
    let number = rest.next()? >> 3 & 7;
    let exists = match (is_control, high) {
        (true, false) => matches!(number, 0 | 2 | 3 | 4),
        (true, true) => number == 0,
        (false, high) => !high,
    };
    (lock || !exists).then_some(Special::Undefined)
}

fn two_byte(
    rest: &mut impl Iterator<Item = u8>,
    lock: bool,
    operand_size: bool,
    repeat: bool,
    size: CodeSize,
) -> Option<Special> {
    let prefixed = operand_size || repeat;
    let opcode = rest.next()?;
    let special = match opcode {
        0x05 => Special::Syscall,
        0x34 => Special::Sysenter,
        // The translator has the sense of CR4.PCE turned round.
        0x33 => Special::Rdpmc,
        0x00 if !lock => {
            return (rest.next()? >> 3 & 7 == 3).then_some(Special::Selector);
        }
        0x02 | 0x03 => Special::Selector,
        0xb2 if size == CodeSize::Bits64 => Special::Selector,
        0x01 if !lock => match rest.next()? {
            0xd0 => Special::Xgetbv,
            0xd1 => Special::Xsetbv,
            // AMD-V.
            0xd8..=0xdf => Special::Undefined,
            _ => return None,
        },
        0x78 | 0x79 if prefixed => Special::Undefined,
        // AMD's: 3DNow!, MOVNTSS and MOVNTSD, SYSRET outside 64-bit mode.
        0x0e | 0x0f => Special::Undefined,
        0x2b if repeat => Special::Undefined,
        0x07 if size != CodeSize::Bits64 => Special::Undefined,
        0xae if prefixed && !lock => match rest.next()? {
            // Memory forms are CLFLUSHOPT and CLWB.
            0xf0..=0xf7 => Special::UserWait,
            _ => return None,
        },
        0xc7 => match rest.next()? {
            0xf0..=0xf7 if !lock => Special::Rdrand,
            0xf8..=0xff if !lock => Special::Rdseed,
            modrm if modrm < 0xc0 && modrm >> 3 & 7 == 1 => return Some(Special::FlagsFirst),
            _ if lock => Special::Undefined,
            _ => return None,
        },
        _ if lock => return illegal_lock(two_byte_lock(opcode, rest.next()?)),
        0x90..=0x9f if rest.next()? < 0xc0 => Special::FlagsFirst,
        _ => return None,
    };
    Some(if lock { Special::Undefined } else { special })
}

fn illegal_lock(legal: bool) -> Option<Special> {
    (!legal).then_some(Special::Undefined)
}

fn one_byte_lock(opcode: u8, modrm: u8, size: CodeSize) -> bool {
    let extension = modrm >> 3 & 7;
    let lockable = match opcode {
        // ADD, OR, ADC, SBB, AND, SUB, XOR to r/m; CMP (38, 39) not.
        0x00..=0x37 => opcode & 7 < 2,
        0x80 | 0x81 | 0x83 => extension != 7,
        0x82 => extension != 7 && size != CodeSize::Bits64,
        0x86 | 0x87 => true,
        // NOT and NEG; INC and DEC.
        0xf6 | 0xf7 => extension == 2 || extension == 3,
        0xfe | 0xff => extension < 2,
        _ => false,
    };
    lockable && modrm < 0xc0
}

fn two_byte_lock(opcode: u8, modrm: u8) -> bool {
    let lockable = match opcode {
        // BTS, BTR, BTC; CMPXCHG; XADD.
        0xab | 0xb3 | 0xbb | 0xb0 | 0xb1 | 0xc0 | 0xc1 => true,
        0xba => modrm >> 3 & 7 >= 5,
        _ => false,
    };
    lockable && modrm < 0xc0
}

/// VEX encodings: BMI stays with the translator, the rest (AVX) does not exist here.
fn vex(opcode: u8, rest: &mut impl Iterator<Item = u8>, size: CodeSize) -> Option<Special> {
    let first = rest.next()?;
    if size != CodeSize::Bits64 && first < 0xc0 {
        // LES or LDS.
        return None;
    }
    if opcode == 0xc5 {
        return Some(Special::Undefined);
    }
    let _ = rest.next()?;
    match (first & 31, rest.next()?) {
        (2, 0xf2 | 0xf3 | 0xf5..=0xf7) | (3, 0xf0) => None,
        _ => Some(Special::Undefined),
    }
}

/// Which of the units that CR0 and CR4 can switch off an instruction uses (SDM Vol. 3A "Processing of
/// x87 Instructions with CR0 and CR4 Controls", "Providing Operating System Support for SSE Instructions").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// x87, or its state with FXSAVE and FXRSTOR.
    X87,
    /// WAIT, which has a switch of its own.
    Wait,
    /// An MMX register, or their end.
    Mmx,
    /// An XMM register or MXCSR.
    Sse,
}

/// The unit that an instruction uses. What came with SSE and uses no register of it (fences, prefetches,
/// MOVNTI, CRC32) uses none.
pub(super) fn unit(bytes: &[u8], size: CodeSize) -> Option<Unit> {
    let instruction = Decoder::new(size.bits(), bytes, DecoderOptions::NONE).decode();
    let has = |is: fn(iced_x86::Register) -> bool| {
        (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register && is(instruction.op_register(operand))
        })
    };
    match instruction.mnemonic() {
        Mnemonic::Wait => Some(Unit::Wait),
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            Some(Unit::X87)
        }
        Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr => Some(Unit::Sse),
        Mnemonic::Emms => Some(Unit::Mmx),
        _ if has(|register| register.is_xmm()) => Some(Unit::Sse),
        _ if has(|register| register.is_mm()) => Some(Unit::Mmx),
        _ => is_x87(&instruction).then_some(Unit::X87),
    }
}

fn is_x87(instruction: &Instruction) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387};
    instruction
        .cpuid_features()
        .iter()
        .any(|feature| [FPU, FPU287, FPU387].contains(feature))
}

/// Unicorn reports RDTSCP (0F 01 F9) as RDTSC (0F 31).
pub(super) fn is_rdtscp(bytes: &[u8]) -> bool {
    let mut opcode = bytes.iter().skip_while(|&&byte| byte != 0x0f);
    opcode.nth(1) == Some(&0x01)
}

/// Whether an intercepted HLT is one of the guest's.
pub(super) fn is_hlt(bytes: &[u8]) -> bool {
    Decoder::new(64, bytes, DecoderOptions::NONE)
        .decode()
        .code()
        == Code::Hlt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_unit_that_an_instruction_uses() {
        let cases: &[(&[u8], Option<Unit>)] = &[
            // MOVUPS, PXOR xmm, LDMXCSR, CVTSI2SD, MOVQ2DQ.
            (&[0x0f, 0x10, 0x00], Some(Unit::Sse)),
            (&[0x66, 0x0f, 0xef, 0xc0], Some(Unit::Sse)),
            (&[0x0f, 0xae, 0x10], Some(Unit::Sse)),
            (&[0xf2, 0x0f, 0x2a, 0xc0], Some(Unit::Sse)),
            (&[0xf3, 0x0f, 0xd6, 0xc0], Some(Unit::Sse)),
            // PXOR mm, EMMS.
            (&[0x0f, 0xef, 0xc0], Some(Unit::Mmx)),
            (&[0x0f, 0x77], Some(Unit::Mmx)),
            // FLD, FNSTSW AX, FNINIT, FCOMI, FISTTP, FXSAVE; WAIT.
            (&[0xdd, 0x00], Some(Unit::X87)),
            (&[0xdf, 0xe0], Some(Unit::X87)),
            (&[0xdb, 0xe3], Some(Unit::X87)),
            (&[0xdb, 0xf1], Some(Unit::X87)),
            (&[0xdd, 0x08], Some(Unit::X87)),
            (&[0x48, 0x0f, 0xae, 0x00], Some(Unit::X87)),
            (&[0x9b], Some(Unit::Wait)),
            // MOVNTI, PREFETCHT0, LFENCE, SHLX, CRC32, POPCNT, MOVBE, INVEPT, INVPCID, ADCX.
            (&[0x0f, 0xc3, 0x00], None),
            (&[0x0f, 0x18, 0x08], None),
            (&[0x0f, 0xae, 0xe8], None),
            (&[0xc4, 0x42, 0x69, 0xf7, 0xc0], None),
            (&[0xf2, 0x0f, 0x38, 0xf0, 0xc0], None),
            (&[0xf3, 0x0f, 0xb8, 0xc0], None),
            (&[0x0f, 0x38, 0xf0, 0x00], None),
            (&[0x66, 0x0f, 0x38, 0x80, 0x00], None),
            (&[0x66, 0x0f, 0x38, 0x82, 0x00], None),
            (&[0x66, 0x0f, 0x38, 0xf6, 0xc0], None),
            (&[], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(unit(bytes, CodeSize::Bits64), *expected, "{bytes:x?}");
        }
    }

    #[test]
    fn names_what_must_not_be_translated() {
        use CodeSize::{Bits16, Bits32, Bits64};
        let cases: &[(&[u8], CodeSize, Option<Special>)] = &[
            (&[0xe4, 0x10], Bits32, Some(Special::Io)),
            (&[0xf3, 0x66, 0x6f], Bits64, Some(Special::Io)),
            (&[0xf3, 0x48, 0x6d], Bits64, Some(Special::Io)),
            (&[0x48], Bits32, None),
            (&[0x0f, 0x05], Bits64, Some(Special::Syscall)),
            (&[0x0f, 0x34], Bits32, Some(Special::Sysenter)),
            (&[0x0f, 0x33], Bits64, Some(Special::Rdpmc)),
            (&[0xf1], Bits16, Some(Special::Int1)),
            (&[0x0f, 0x07], Bits32, Some(Special::Undefined)),
            (&[0x0f, 0x22, 0xcf], Bits32, Some(Special::Undefined)),
            (&[0x0f, 0x20, 0xe0], Bits16, None),
            (&[0x44, 0x0f, 0x20, 0xc0], Bits64, None),
            (&[0x44, 0x0f, 0x22, 0xc8], Bits64, Some(Special::Undefined)),
            (&[0x45, 0x0f, 0x23, 0xc0], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0xf7, 0x18], Bits32, Some(Special::FlagsFirst)),
            (&[0xf7, 0x18], Bits32, None),
            (&[0x0f, 0x07], Bits64, None),
            (&[0x0f, 0x01, 0xd9], Bits64, Some(Special::Undefined)),
            (&[0x0f, 0x0f, 0xc0, 0xb4], Bits32, Some(Special::Undefined)),
            (&[0xf3, 0x0f, 0x2b, 0x00], Bits64, Some(Special::Undefined)),
            (&[0x0f, 0x2b, 0x00], Bits64, None),
            (&[0x0f, 0x9f, 0x03], Bits64, Some(Special::FlagsFirst)),
            (&[0x0f, 0x9f, 0xc3], Bits64, None),
            (&[0x48, 0xd1, 0x13], Bits64, Some(Special::FlagsFirst)),
            (&[0xc0, 0x1b, 0x05], Bits32, Some(Special::FlagsFirst)),
            (&[0xd3, 0xd3], Bits32, None),
            (&[0xd3, 0x23], Bits32, None),
            (&[0xf0, 0x0f, 0x9f, 0x03], Bits64, Some(Special::Undefined)),
            (&[0x48, 0x0f, 0xc7, 0xf0], Bits64, Some(Special::Rdrand)),
            (&[0x0f, 0xc7, 0xf9], Bits64, Some(Special::Rdseed)),
            (&[0xf3, 0x0f, 0xc7, 0xf9], Bits64, Some(Special::Rdseed)),
            (
                &[0xea, 0, 0, 0, 0, 8, 0],
                Bits32,
                Some(Special::FarTransfer),
            ),
            (&[0x9a, 0, 0, 8, 0], Bits16, Some(Special::FarTransfer)),
            (&[0x66, 0xcf], Bits16, Some(Special::FarTransfer)),
            (&[0x48, 0xcf], Bits64, None),
            (&[0xcf], Bits64, Some(Special::FarTransfer)),
            (&[0x8e, 0xd0], Bits64, Some(Special::Selector)),
            (&[0x8e, 0xd0], Bits32, None),
            (&[0x8e, 0xd8], Bits64, None),
            (&[0x0f, 0xb2, 0x00], Bits64, Some(Special::Selector)),
            (&[0x0f, 0x00, 0xd8], Bits32, Some(Special::Selector)),
            (&[0x0f, 0x00, 0xd0], Bits32, None),
            (&[0xf0, 0x0f, 0x00, 0xd8], Bits32, Some(Special::Undefined)),
            (&[0x0f, 0x02, 0xc1], Bits64, Some(Special::Selector)),
            (&[0x0f, 0x03, 0x01], Bits32, Some(Special::Selector)),
            (
                &[0xff, 0x2d, 0, 0, 0, 0],
                Bits32,
                Some(Special::FarTransfer),
            ),
            (&[0xff, 0x1e, 0, 0], Bits16, Some(Special::FarTransfer)),
            (&[0xff, 0x28], Bits64, None),
            (&[0xff, 0xd0], Bits32, None),
            (&[0xff, 0x10], Bits32, None),
            (&[0x0f, 0xc7, 0x30], Bits64, None),
            (&[0x0f, 0x01, 0xd1], Bits64, Some(Special::Xsetbv)),
            (&[0x0f, 0x01, 0xc1], Bits64, None),
            (&[0x66, 0x0f, 0xae, 0xf1], Bits64, Some(Special::UserWait)),
            (&[0x0f, 0xae, 0xf0], Bits64, None),
            (&[0x0f, 0x78, 0xc0], Bits64, None),
            (&[0x66, 0x0f, 0x78, 0xc0], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0x0f, 0xab, 0xc8], Bits64, Some(Special::Undefined)),
            (
                &[0xf0, 0x48, 0x0f, 0xab, 0xc8],
                Bits64,
                Some(Special::Undefined),
            ),
            (&[0xf0, 0x0f, 0xab, 0x08], Bits64, None),
            (
                &[0xf0, 0x0f, 0xba, 0xe8, 3],
                Bits64,
                Some(Special::Undefined),
            ),
            (
                &[0xf0, 0x0f, 0xba, 0x20, 3],
                Bits64,
                Some(Special::Undefined),
            ),
            (&[0xf0, 0x0f, 0xba, 0x28, 3], Bits64, None),
            (&[0xf0, 0x0f, 0xc7, 0x08], Bits64, Some(Special::FlagsFirst)),
            (&[0x48, 0x0f, 0xc7, 0x08], Bits64, Some(Special::FlagsFirst)),
            (&[0xf0, 0x0f, 0xc7, 0xc8], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0x0f, 0xc7, 0x30], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0x01, 0x08], Bits64, None),
            (&[0xf0, 0x39, 0x08], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0x90], Bits64, None),
            (&[0xf0, 0x90, 0x90], Bits64, Some(Special::Undefined)),
            (&[0xf0, 0x87, 0x08], Bits64, None),
            (&[0xc5, 0xf8, 0x28, 0xc1], Bits64, Some(Special::Undefined)),
            (&[0xc5, 0x06], Bits32, None),
            (&[0xc4, 0xe2, 0x78, 0xf2, 0xc1], Bits64, None),
            (
                &[0xc4, 0xe2, 0x79, 0x18, 0xc1],
                Bits64,
                Some(Special::Undefined),
            ),
        ];
        for (bytes, size, expected) in cases {
            assert_eq!(classify(bytes, *size), *expected, "{bytes:x?} {size:?}");
        }
    }
}
