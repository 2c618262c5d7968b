//! The XSAVE area for x87 and SSE state, the components that the models have (SDM Vol. 1 "Managing State
//! Using the XSAVE Feature Set"). Registers come and go as the 512 bytes that FXSAVE64 writes.

use super::Exception;

/// State component 0: x87.
pub const X87: u64 = 1 << 0;
/// State component 1: SSE.
pub const SSE: u64 = 1 << 1;
/// Bytes of the area: the legacy region and the header.
pub const AREA: usize = 576;
/// Bit 63 of XCOMP_BV: the area is in compacted form.
const COMPACTED: u64 = 1 << 63;
const STATE_BV: usize = 512;
const COMPONENT_BV: usize = 520;
const MXCSR: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
/// Bits of MXCSR that exist: MXCSR_MASK.
const MXCSR_BITS: u32 = 0xffff;

/// What the instruction's encoding and the mode make of the area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// XSAVEC, XSAVES: write the compacted form.
    pub compacted: bool,
    /// REX.W: pointers of 64 bits.
    pub wide: bool,
    /// XMM registers that there are: 8, or 16 in 64-bit mode.
    pub xmm: usize,
}

/// How XRSTOR or XRSTORS takes an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore {
    /// Components that are enabled: XCR0, and IA32_XSS for XRSTORS.
    pub enabled: u64,
    /// The compacted form is known.
    pub may_be_compacted: bool,
    /// XRSTORS: it is asked for.
    pub must_be_compacted: bool,
}

fn word(area: &[u8; AREA], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Writes the components of `mask` into the area and marks them in its header: none counts as being in
/// its initial configuration.
pub fn save(state: &[u8; 512], area: &mut [u8; AREA], mask: u64, format: Format) {
    if mask & X87 != 0 {
        area[..MXCSR].copy_from_slice(&state[..MXCSR]);
        area[32..160].copy_from_slice(&state[32..160]);
        if !format.wide {
            // FCS and FDS, which processors of today store as zero.
            area[12..16].fill(0);
            area[20..24].fill(0);
        }
    }
    if mask & SSE != 0 {
        area[MXCSR..32].copy_from_slice(&state[MXCSR..32]);
        let end = 160 + 16 * format.xmm;
        area[160..end].copy_from_slice(&state[160..end]);
    }
    let kept = if format.compacted {
        0
    } else {
        word(area, STATE_BV) & !mask
    };
    area[STATE_BV..COMPONENT_BV].copy_from_slice(&(kept | mask).to_le_bytes());
    if format.compacted {
        let components = mask | COMPACTED;
        area[COMPONENT_BV..COMPONENT_BV + 8].copy_from_slice(&components.to_le_bytes());
    }
}

/// Loads the components of `mask` from the area; those that its header does not mark are initialized.
/// #GP(0) leaves `state` alone.
pub fn restore(
    area: &[u8; AREA],
    state: &mut [u8; 512],
    mask: u64,
    format: Format,
    how: Restore,
) -> Result<(), Exception> {
    let (present, components) = (word(area, STATE_BV), word(area, COMPONENT_BV));
    let compacted = components & COMPACTED != 0;
    let zero = |from: usize, to: usize| area[from..to].iter().all(|byte| *byte == 0);
    let header_is_good = if compacted {
        how.may_be_compacted
            && components & !(how.enabled | COMPACTED) == 0
            && present & !components == 0
            && zero(COMPONENT_BV + 8, AREA)
    } else {
        !how.must_be_compacted
            && present & !how.enabled == 0
            && zero(COMPONENT_BV, COMPONENT_BV + 16)
    };
    if !header_is_good {
        return Err(Exception::GENERAL_PROTECTION);
    }
    // The standard form loads MXCSR whatever the header says of SSE.
    let mxcsr = if mask & SSE == 0 {
        None
    } else if !compacted || present & SSE != 0 {
        Some(word(area, MXCSR) as u32)
    } else {
        Some(MXCSR_INITIAL)
    };
    if mxcsr.is_some_and(|value| value & !MXCSR_BITS != 0) {
        return Err(Exception::GENERAL_PROTECTION);
    }
    if mask & X87 != 0 {
        state[..MXCSR].fill(0);
        state[32..160].fill(0);
        if present & X87 != 0 {
            state[..MXCSR].copy_from_slice(&area[..MXCSR]);
            state[32..160].copy_from_slice(&area[32..160]);
            if !format.wide {
                state[12..16].fill(0);
                state[20..24].fill(0);
            }
        } else {
            state[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        }
    }
    if mask & SSE != 0 {
        let end = 160 + 16 * format.xmm;
        if present & SSE != 0 {
            state[160..end].copy_from_slice(&area[160..end]);
        } else {
            state[160..end].fill(0);
        }
    }
    if let Some(value) = mxcsr {
        state[MXCSR..MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format {
        compacted: false,
        wide: true,
        xmm: 16,
    };
    const XRSTOR: Restore = Restore {
        enabled: X87 | SSE,
        may_be_compacted: true,
        must_be_compacted: false,
    };

    fn state() -> [u8; 512] {
        let mut state: [u8; 512] = std::array::from_fn(|i| (i * 7 + 1) as u8);
        state[MXCSR..32].copy_from_slice(&[0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
        state
    }

    fn put(area: &mut [u8; AREA], at: usize, value: u64) {
        area[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn what_was_saved_comes_back() {
        for compacted in [false, true] {
            let mut area = [0; AREA];
            let format = Format {
                compacted,
                ..FORMAT
            };
            save(&state(), &mut area, X87 | SSE, format);
            let mut back = state();
            // MXCSR_MASK is stored, never loaded.
            back[..28].fill(0xee);
            back[32..416].fill(0xee);
            restore(&area, &mut back, X87 | SSE, FORMAT, XRSTOR).expect("taken");
            assert_eq!(back[..416], state()[..416], "compacted {compacted}");
        }
    }

    #[test]
    fn a_component_that_is_not_asked_for_stays() {
        let mut area = [0x55; AREA];
        put(&mut area, STATE_BV, X87);
        save(&state(), &mut area, SSE, FORMAT);
        assert_eq!(area[..MXCSR], [0x55; MXCSR]);
        assert_eq!(word(&area, STATE_BV), X87 | SSE, "merged");
        assert_eq!(area[COMPONENT_BV], 0x55);
        save(
            &state(),
            &mut area,
            X87,
            Format {
                compacted: true,
                ..FORMAT
            },
        );
        assert_eq!(word(&area, STATE_BV), X87, "not merged");
        assert_eq!(word(&area, COMPONENT_BV), X87 | COMPACTED);
        let narrow = Format {
            wide: false,
            xmm: 8,
            ..FORMAT
        };
        let mut area = [0x55; AREA];
        save(&state(), &mut area, X87 | SSE, narrow);
        assert_eq!([area[11], area[12], area[288]], [state()[11], 0, 0x55]);
    }

    #[test]
    fn an_unmarked_component_is_initialized() {
        let mut area = [0; AREA];
        area[MXCSR] = 0x3f;
        for (compacted, mxcsr) in [(false, 0x3f), (true, MXCSR_INITIAL)] {
            let components = if compacted { COMPACTED | X87 | SSE } else { 0 };
            put(&mut area, COMPONENT_BV, components);
            let mut loaded = state();
            restore(&area, &mut loaded, X87 | SSE, FORMAT, XRSTOR).expect("taken");
            assert_eq!(loaded[..8], [0x7f, 3, 0, 0, 0, 0, 0, 0]);
            assert!(loaded[32..416].iter().all(|byte| *byte == 0));
            assert_eq!(loaded[MXCSR..MXCSR + 4], u32::to_le_bytes(mxcsr));
        }
    }

    #[test]
    fn headers_that_are_refused() {
        let strict = Restore {
            must_be_compacted: true,
            ..XRSTOR
        };
        let old = Restore {
            may_be_compacted: false,
            ..XRSTOR
        };
        let all = COMPACTED | X87 | SSE;
        // XSTATE_BV, XCOMP_BV, the word behind, how, whether it is taken.
        let rows = [
            (3, 0, 0, XRSTOR, true),
            (7, 0, 0, XRSTOR, false),
            (3, 1, 0, XRSTOR, false),
            (3, 0, 1, XRSTOR, false),
            (3, all, 0, XRSTOR, true),
            (3, all, 0, old, false),
            (3, COMPACTED | X87, 0, XRSTOR, false),
            (1, all | 4, 0, XRSTOR, false),
            (3, all, 1, XRSTOR, false),
            (3, all, 0, strict, true),
            (3, 0, 0, strict, false),
        ];
        for (present, components, behind, how, taken) in rows {
            let mut area = [0; AREA];
            put(&mut area, STATE_BV, present);
            put(&mut area, COMPONENT_BV, components);
            put(&mut area, COMPONENT_BV + 8, behind);
            let mut loaded = state();
            let result = restore(&area, &mut loaded, 3, FORMAT, how);
            assert_eq!(
                result.is_ok(),
                taken,
                "{present:#x} {components:#x} {behind}"
            );
            assert!(taken || loaded == state());
        }
        let mut area = [0; AREA];
        area[MXCSR + 2] = 1;
        let result = restore(&area, &mut state(), SSE, FORMAT, XRSTOR);
        assert_eq!(result, Err(Exception::GENERAL_PROTECTION));
        assert_eq!(restore(&area, &mut state(), X87, FORMAT, XRSTOR), Ok(()));
    }
}
