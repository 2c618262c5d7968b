//! Arithmetic of interpreted instructions: result and RFLAGS (SDM Vol. 1 "Instruction Set Summary",
//! Vol. 2 of each instruction). Flags that the SDM leaves undefined are left as they are.

use super::io::mask;
use iced_x86::Mnemonic;
use nvmx_core::x86::control::rflags;

/// What an operation leaves: its result, if it has one to write, and RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Result {
    /// The value for the destination; `None` for CMP, TEST, BT and their kin.
    pub(super) value: Option<u64>,
    /// RFLAGS behind it.
    pub(super) flags: u64,
}

const fn sign(size: u8) -> u64 {
    1 << (size as u32 * 8 - 1)
}

/// SF, ZF and PF of a result.
const fn of_result(value: u64, size: u8) -> u64 {
    let mut flags = 0;
    if value == 0 {
        flags |= rflags::ZF;
    }
    if value & sign(size) != 0 {
        flags |= rflags::SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= rflags::PF;
    }
    flags
}

const ZSP: u64 = rflags::ZF | rflags::SF | rflags::PF;
const ALL: u64 = ZSP | rflags::CF | rflags::AF | rflags::OF;

const fn bit(on: bool, flag: u64) -> u64 {
    if on { flag } else { 0 }
}

fn add(a: u64, b: u64, carry: u64, size: u8, flags: u64) -> (u64, u64) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let value = mask(wide as u64, size);
    let new = of_result(value, size)
        | bit(wide >> (u32::from(size) * 8) != 0, rflags::CF)
        | bit((a ^ b ^ value) & 0x10 != 0, rflags::AF)
        | bit((a ^ value) & (b ^ value) & sign(size) != 0, rflags::OF);
    (value, flags & !ALL | new)
}

fn subtract(a: u64, b: u64, borrow: u64, size: u8, flags: u64) -> (u64, u64) {
    let value = mask(a.wrapping_sub(b).wrapping_sub(borrow), size);
    let new = of_result(value, size)
        | bit(
            u128::from(a) < u128::from(b) + u128::from(borrow),
            rflags::CF,
        )
        | bit((a ^ b ^ value) & 0x10 != 0, rflags::AF)
        | bit((a ^ b) & (a ^ value) & sign(size) != 0, rflags::OF);
    (value, flags & !ALL | new)
}

/// An operation on destination `a` and source `b`, both of `size` bytes; `None` if it is none of these.
pub(super) fn binary(mnemonic: Mnemonic, a: u64, b: u64, size: u8, flags: u64) -> Option<Result> {
    let (a, b) = (mask(a, size), mask(b, size));
    let carry = flags & rflags::CF;
    let logic = |value: u64| (value, flags & !(ALL & !rflags::AF) | of_result(value, size));
    let (value, flags) = match mnemonic {
        Mnemonic::Add | Mnemonic::Xadd => add(a, b, 0, size, flags),
        Mnemonic::Adc => add(a, b, carry, size, flags),
        Mnemonic::Sub | Mnemonic::Cmp | Mnemonic::Cmpxchg => subtract(a, b, 0, size, flags),
        Mnemonic::Sbb => subtract(a, b, carry, size, flags),
        Mnemonic::And | Mnemonic::Test => logic(a & b),
        Mnemonic::Or => logic(a | b),
        Mnemonic::Xor => logic(a ^ b),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            let one = 1_u64 << (b % (u64::from(size) * 8));
            let value = match mnemonic {
                Mnemonic::Bts => a | one,
                Mnemonic::Btr => a & !one,
                _ => a ^ one,
            };
            (value, flags & !rflags::CF | bit(a & one != 0, rflags::CF))
        }
        _ => return shift(mnemonic, a, b as u32, size, flags),
    };
    let writes = !matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
    Some(Result {
        value: writes.then_some(value),
        flags,
    })
}

fn shift(mnemonic: Mnemonic, a: u64, count: u32, size: u8, flags: u64) -> Option<Result> {
    let bits = u32::from(size) * 8;
    let count = count & if size == 8 { 0x3f } else { 0x1f };
    let unchanged = Result {
        value: Some(a),
        flags,
    };
    let top = |value: u64| value & sign(size) != 0;
    // OF is defined for a count of one; for others it is computed alike, as processors do.
    let (value, carry, overflow, sets_result) = match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => {
            let wide = u128::from(a) << count;
            let value = mask(wide as u64, size);
            let carry = wide >> bits & 1 != 0;
            (value, carry, top(value) != carry, true)
        }
        Mnemonic::Shr => {
            let value = a.checked_shr(count).unwrap_or(0);
            let carry = count > 0 && a.checked_shr(count - 1).unwrap_or(0) & 1 != 0;
            (value, carry, top(a), true)
        }
        Mnemonic::Sar => {
            let unused = 64 - bits;
            let wide = ((a << unused) as i64) >> unused;
            let value = mask((wide >> count.min(63)) as u64, size);
            let carry = count > 0 && wide >> (count - 1).min(63) & 1 != 0;
            (value, carry, false, true)
        }
        Mnemonic::Rol | Mnemonic::Ror => {
            let turn = count % bits;
            let left = if mnemonic == Mnemonic::Rol {
                turn
            } else {
                (bits - turn) % bits
            };
            let value = mask(
                a << left | if left == 0 { 0 } else { a >> (bits - left) },
                size,
            );
            if mnemonic == Mnemonic::Rol {
                let carry = value & 1 != 0;
                (value, carry, top(value) != carry, false)
            } else {
                let carry = top(value);
                (value, carry, carry != (value << 1 & sign(size) != 0), false)
            }
        }
        _ => return None,
    };
    if count == 0 {
        return Some(unchanged);
    }
    let mut new =
        flags & !(rflags::CF | rflags::OF) | bit(carry, rflags::CF) | bit(overflow, rflags::OF);
    if sets_result {
        new = new & !ZSP | of_result(value, size);
    }
    Some(Result {
        value: Some(value),
        flags: new,
    })
}

/// An operation on one operand; `None` if it is none of these.
pub(super) fn unary(mnemonic: Mnemonic, a: u64, size: u8, flags: u64) -> Option<Result> {
    let a = mask(a, size);
    let carry = flags & rflags::CF;
    let (value, flags) = match mnemonic {
        Mnemonic::Not => (mask(!a, size), flags),
        Mnemonic::Neg => subtract(0, a, 0, size, flags),
        // CF stays.
        Mnemonic::Inc => {
            let (value, flags) = add(a, 1, 0, size, flags);
            (value, flags & !rflags::CF | carry)
        }
        Mnemonic::Dec => {
            let (value, flags) = subtract(a, 1, 0, size, flags);
            (value, flags & !rflags::CF | carry)
        }
        _ => return None,
    };
    Some(Result {
        value: Some(value),
        flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rflags::{AF, CF, OF, PF, SF, ZF};

    /// Operation, operands, size, RFLAGS; result and RFLAGS behind it.
    type Binary = (Mnemonic, u64, u64, u8, u64, Option<u64>, u64);

    #[test]
    fn results_and_flags_follow_the_manual() {
        use Mnemonic::*;
        let cases: &[Binary] = &[
            (Add, 0xff, 1, 1, 0, Some(0), CF | AF | ZF | PF),
            (
                Add,
                0x7fff_ffff,
                1,
                4,
                0,
                Some(0x8000_0000),
                OF | SF | AF | PF,
            ),
            (Add, u64::MAX, 1, 8, 0, Some(0), CF | AF | ZF | PF),
            (Adc, 1, 1, 4, CF, Some(3), PF),
            (
                Adc,
                u64::MAX,
                u64::MAX,
                8,
                CF,
                Some(u64::MAX),
                CF | AF | SF | PF,
            ),
            (Sub, 0, 1, 2, 0, Some(0xffff), CF | AF | SF | PF),
            (Sbb, 5, 5, 4, CF, Some(0xffff_ffff), CF | AF | SF | PF),
            (Sbb, 0, u64::MAX, 8, CF, Some(0), CF | AF | ZF | PF),
            (Cmp, 3, 3, 4, CF, None, ZF | PF),
            (Cmp, 0x80, 1, 1, 0, None, OF | AF),
            (Test, 0xf0, 0x0f, 1, CF | OF, None, ZF | PF),
            (Or, 0x8000, 1, 2, CF | AF, Some(0x8001), AF | SF),
            (Xor, 3, 1, 4, 0, Some(2), 0),
            (Bts, 1, 33, 4, 0, Some(3), 0),
            (Btr, 3, 1, 8, 0, Some(1), CF),
            (Btc, 1, 0, 4, ZF, Some(0), CF | ZF),
            (Bt, 4, 2, 4, 0, None, CF),
            (Shl, 0x81, 1, 1, 0, Some(2), CF | OF),
            (Shl, 1, 0, 4, CF, Some(1), CF),
            (Shr, 0x81, 1, 1, 0, Some(0x40), CF | OF),
            (Sar, 0x80, 7, 1, 0, Some(0xff), SF | PF),
            (Rol, 0x81, 1, 1, ZF, Some(3), CF | OF | ZF),
            (Ror, 1, 1, 4, 0, Some(0x8000_0000), CF | OF),
            (Rol, 0x1234, 16, 2, 0, Some(0x1234), 0),
        ];
        for (mnemonic, a, b, size, flags, value, after) in cases {
            assert_eq!(
                binary(*mnemonic, *a, *b, *size, *flags),
                Some(Result {
                    value: *value,
                    flags: *after
                }),
                "{mnemonic:?} {a:#x} {b:#x}"
            );
        }
        let cases: &[(Mnemonic, u64, u8, u64, u64, u64)] = &[
            (Inc, 0xff, 1, CF, 0, CF | AF | ZF | PF),
            (Dec, 0, 4, 0, 0xffff_ffff, AF | SF | PF),
            (Neg, 1, 2, 0, 0xffff, CF | AF | SF | PF),
            (Neg, 0, 2, CF, 0, ZF | PF),
            (Not, 0xf0, 1, CF, 0x0f, CF),
        ];
        for (mnemonic, a, size, flags, value, after) in cases {
            assert_eq!(
                unary(*mnemonic, *a, *size, *flags),
                Some(Result {
                    value: Some(*value),
                    flags: *after
                }),
                "{mnemonic:?} {a:#x}"
            );
        }
        assert_eq!(binary(Imul, 1, 1, 4, 0), None);
        assert_eq!(unary(Imul, 1, 4, 0), None);
    }
}
