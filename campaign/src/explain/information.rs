//! Which bits of the VM-exit instruction information mean something (SDM Vol. 3C, tables "Format of the
//! VM-Exit Instruction-Information Field as Used for ...").

const SCALE: u32 = 3;
const FIRST_REGISTER: u32 = 0xf << 3;
const ADDRESS_SIZE: u32 = 7 << 7;
const IS_REGISTER: u32 = 1 << 10;
const OPERAND_SIZE: u32 = 1 << 11;
const SEGMENT: u32 = 7 << 15;
const INDEX: u32 = 0xf << 18;
const NO_INDEX: u32 = 1 << 22;
const BASE: u32 = 0xf << 23;
const NO_BASE: u32 = 1 << 27;
const SECOND_REGISTER: u32 = 0xf << 28;
const IDENTITY: u32 = 3 << 28;

/// The bits that mean something, given the exit reason, whether that bit 4 of the qualification is set,
/// and what the field holds.
pub(super) fn defined(reason: u64, is_string: bool, information: u32) -> u32 {
    let memory = ADDRESS_SIZE | IS_REGISTER | SEGMENT | NO_INDEX | NO_BASE;
    let index = if information & NO_INDEX == 0 {
        SCALE | INDEX
    } else {
        0
    };
    let base = if information & NO_BASE == 0 { BASE } else { 0 };
    let memory = memory | index | base;
    let either = if information & IS_REGISTER != 0 {
        FIRST_REGISTER | IS_REGISTER
    } else {
        memory
    };
    match reason {
        19 | 21 | 22 | 27 | 63 | 64 => memory,
        23 | 25 => either | SECOND_REGISTER,
        30 if is_string => ADDRESS_SIZE | SEGMENT,
        46 => memory | OPERAND_SIZE | IDENTITY,
        47 => either | IDENTITY,
        50 | 53 | 58 => memory | SECOND_REGISTER,
        57 | 61 | 67 | 68 => FIRST_REGISTER | 3 << 11,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operand_lacks_means_nothing() {
        assert_eq!(defined(30, false, 0), 0);
        assert_eq!(defined(30, true, 0) & SEGMENT, SEGMENT);
        assert_eq!(defined(57, false, u32::MAX), 0x1878);
        assert_eq!(
            defined(47, false, IS_REGISTER),
            FIRST_REGISTER | IS_REGISTER | IDENTITY
        );
        assert_eq!(defined(46, false, NO_INDEX) & INDEX, 0);
        assert_eq!(defined(46, false, NO_INDEX) & BASE, BASE);
        assert_eq!(defined(10, false, 0), 0);
    }
}
