//! What the kernel refuses of a structure by its content alone (Linux `arch/x86/kvm/x86.c`, `regs.c`).

use kvm_bindings::{KVM_MAX_XCRS, kvm_debugregs, kvm_xcrs};
use nvmx_core::x86::xsave;

/// EINVAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

/// `Err` unless it holds.
pub(crate) fn require(holds: bool) -> Result<(), Invalid> {
    holds.then_some(()).ok_or(Invalid)
}

/// KVM_SET_DEBUGREGS: no flags, and 32 bits.
pub fn check_debugregs(kernel: &kvm_debugregs) -> Result<(), Invalid> {
    require(kernel.flags == 0 && kernel.dr6 >> 32 == 0 && kernel.dr7 >> 32 == 0)
}

/// XCR0 of KVM_SET_XCRS, if it is among them; `supported` are the components of the guest's CPUID.
pub fn xcr0(kernel: &kvm_xcrs, supported: u64) -> Result<Option<u64>, Invalid> {
    require(kernel.nr_xcrs <= KVM_MAX_XCRS && kernel.flags == 0)?;
    let count = kernel.nr_xcrs as usize;
    let Some(entry) = kernel.xcrs.iter().take(count).find(|entry| entry.xcr == 0) else {
        return Ok(None);
    };
    require(xcr0_is_valid(entry.value, supported)).map(|()| Some(entry.value))
}

/// `__kvm_set_xcr`: x87 always, nothing that is not offered, and what belongs together together.
fn xcr0_is_valid(value: u64, supported: u64) -> bool {
    const AVX: u64 = 1 << 2;
    const BNDREGS: u64 = 1 << 3;
    const BNDCSR: u64 = 1 << 4;
    const AVX512: u64 = 0b111 << 5;
    const TILE: u64 = 0b11 << 17;
    let has = |bits: u64| value & bits != 0;
    let whole = |bits: u64| !has(bits) || value & bits == bits;
    has(xsave::X87)
        && (!has(AVX) || has(xsave::SSE))
        && value & !(supported | xsave::X87) == 0
        && has(BNDREGS) == has(BNDCSR)
        && (!has(AVX512) || has(AVX))
        && whole(AVX512)
        && whole(TILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_follows_the_kernels_rules() {
        let rows = [
            (1, 0, true),
            (0, 3, false),
            (3, 0, false),
            (3, 3, true),
            (5, 7, false),
            (7, 7, true),
            (0b1001, 0xff, false),
            (0b1_1001, 0xff, true),
            (0b111 << 5 | 3, 0xff, false),
            (0b011 << 5 | 7, 0xff, false),
            (0b111 << 5 | 7, 0xff, true),
            (1 << 17 | 1, u64::MAX, false),
        ];
        for (value, supported, valid) in rows {
            let mut kernel = kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            };
            kernel.xcrs[0].value = value;
            let expected = if valid { Ok(Some(value)) } else { Err(Invalid) };
            assert_eq!(xcr0(&kernel, supported), expected, "{value:#x}");
            kernel.xcrs[0].xcr = 1;
            assert_eq!(xcr0(&kernel, supported), Ok(None));
            kernel.nr_xcrs = KVM_MAX_XCRS + 1;
            assert_eq!(xcr0(&kernel, supported), Err(Invalid));
        }
    }

    #[test]
    fn debug_registers_have_32_bits() {
        let mut kernel = kvm_debugregs::default();
        assert_eq!(check_debugregs(&kernel), Ok(()));
        kernel.dr7 = 1 << 32;
        assert_eq!(check_debugregs(&kernel), Err(Invalid));
        kernel.dr7 = 0;
        kernel.flags = 1;
        assert_eq!(check_debugregs(&kernel), Err(Invalid));
    }
}
