//! What a BIOS leaves in low memory, as far as hypervisors' trampolines look there: the interrupt vectors,
//! the BIOS data area and its extension (Ralf Brown's Interrupt and Memory Lists, segments 0 and 40h).
//!
//! There are no BIOS services: each call answers "function not supported".

use crate::memory_map::LOW_END;
use crate::ports;

/// Where the data area is.
const AREA: u64 = 0x400;
/// Where old BIOSes have the IRET of vectors that nobody serves.
const NO_SERVICE: u64 = 0xf_ff53;
/// PUSH BP; MOV BP, SP; OR byte [BP + 6], CF; POP BP; MOV AH, 86h; IRET.
const NO_SERVICE_CODE: [u8; 11] = [
    0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xb4, 0x86, 0xcf,
];
/// An IRET: hardware's vectors, which are no calls, change no register.
const NO_INTERRUPT: u64 = NO_SERVICE + NO_SERVICE_CODE.len() as u64 - 1;

/// Vectors of real mode: exceptions and the PIC's below 0x10 and from 0x70 to 0x77, calls elsewhere.
fn vectors() -> Vec<u8> {
    (0..=0xff_u8)
        .flat_map(|vector| {
            let handler = match vector {
                0..=0xf | 0x70..=0x77 => NO_INTERRUPT,
                _ => NO_SERVICE,
            };
            let offset = (handler - 0xf_0000) as u16;
            [offset.to_le_bytes(), 0xf000_u16.to_le_bytes()].concat()
        })
        .collect()
}

/// What firmware leaves, each with its address.
#[must_use]
pub fn tables() -> Vec<(u64, Vec<u8>)> {
    vec![
        (0, vectors()),
        (NO_SERVICE, NO_SERVICE_CODE.to_vec()),
        // 40:00, the first serial port.
        (AREA, ports::SERIAL.to_le_bytes().to_vec()),
        // 40:0E, the segment of the extended area; 40:13, conventional memory in KiB.
        (AREA + 0xe, ((LOW_END >> 4) as u16).to_le_bytes().to_vec()),
        (AREA + 0x13, ((LOW_END >> 10) as u16).to_le_bytes().to_vec()),
        // The extended area begins with its own size in KiB.
        (LOW_END, vec![1]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_areas_agree_about_the_end_of_conventional_memory() {
        let tables = tables();
        let word = |at: u64| {
            let bytes = &tables.iter().find(|(address, _)| *address == at).unwrap().1;
            u64::from(u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        assert_eq!(word(0x40e) << 4, LOW_END);
        assert_eq!(word(0x413) << 10, LOW_END);
        assert_eq!(LOW_END + 0x400, 0xa_0000);
        assert_eq!(word(0x400), 0x3f8);
    }

    #[test]
    fn every_vector_leads_to_code() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 0x400);
        for vector in vectors.chunks_exact(4) {
            let half = |at: usize| u64::from(u16::from_le_bytes([vector[at], vector[at + 1]]));
            let at = half(0) + (half(2) << 4);
            let code = &NO_SERVICE_CODE[(at - NO_SERVICE) as usize..];
            assert!([0x55, 0xcf].contains(&code[0]));
        }
    }
}
