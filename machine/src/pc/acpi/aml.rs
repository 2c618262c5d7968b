//! The few terms of ACPI Machine Language that our DSDT needs (ACPI Specification "ACPI Machine Language
//! (AML) Specification").

const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const STRING: u8 = 0x0d;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const PACKAGE: u8 = 0x12;
const EXTENDED: u8 = 0x5b;
const DEVICE: u8 = 0x82;

/// `PkgLength` and what it counts: itself and the body.
fn with_length(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = if length + 1 < 1 << 6 {
        vec![(length + 1) as u8]
    } else if length + 2 < 1 << 12 {
        let all = length + 2;
        vec![0x40 | (all & 0xf) as u8, (all >> 4) as u8]
    } else {
        let all = length + 3;
        vec![
            0x80 | (all & 0xf) as u8,
            (all >> 4) as u8,
            (all >> 12) as u8,
        ]
    };
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn integer(value: u32) -> Vec<u8> {
    match value {
        0 => vec![ZERO],
        1 => vec![ONE],
        2..=0xff => vec![BYTE, value as u8],
        0x100..=0xffff => {
            let [low, high] = (value as u16).to_le_bytes();
            vec![WORD, low, high]
        }
        _ => [&[DWORD][..], &value.to_le_bytes()].concat(),
    }
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&[STRING], text.as_bytes(), &[0]].concat()
}

/// An EISA identifier such as `PNP0303`: three letters of five bits, four hexadecimal digits, and the
/// bytes of all swapped.
pub(super) fn eisa_id(id: &str) -> Vec<u8> {
    let (letters, digits) = id.split_at(3);
    let letters = letters
        .bytes()
        .fold(0, |value, letter| value << 5 | u32::from(letter & 0x1f));
    let digits = u32::from_str_radix(digits, 16).unwrap_or(0);
    integer((letters << 16 | digits).swap_bytes())
}

pub(super) fn name(name: &str, value: &[u8]) -> Vec<u8> {
    [&[NAME], name.as_bytes(), value].concat()
}

pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let body = [&[elements.len() as u8][..], &elements.concat()].concat();
    [&[PACKAGE][..], &with_length(&body)].concat()
}

pub(super) fn buffer(bytes: &[u8]) -> Vec<u8> {
    let body = [&integer(bytes.len() as u32)[..], bytes].concat();
    [&[BUFFER][..], &with_length(&body)].concat()
}

/// `path` is a name of four characters, or one at the root.
pub(super) fn scope(path: &str, terms: &[Vec<u8>]) -> Vec<u8> {
    let body = [path.as_bytes(), &terms.concat()].concat();
    [&[SCOPE][..], &with_length(&body)].concat()
}

pub(super) fn device(name: &str, terms: &[Vec<u8>]) -> Vec<u8> {
    let body = [name.as_bytes(), &terms.concat()].concat();
    [&[EXTENDED, DEVICE][..], &with_length(&body)].concat()
}

/// `_CRS`: resource descriptors, with their end tag.
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let bytes = [&descriptors.concat()[..], &[0x79, 0]].concat();
    name("_CRS", &buffer(&bytes))
}

/// So many ports at a fixed place (ACPI Specification "I/O Port Descriptor").
pub(super) fn ports(first: u16, count: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, count]
}

/// An edge-triggered line ("IRQ Descriptor").
pub(super) fn line(irq: u8) -> Vec<u8> {
    let [low, high] = (1_u16 << (irq & 15)).to_le_bytes();
    vec![0x22, low, high]
}

/// What an address space descriptor describes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Space {
    Memory = 0,
    Ports = 1,
    Buses = 2,
}

/// A window that a bridge passes on, fixed at both ends ("DWord Address Space Descriptor").
pub(super) fn window(space: Space, first: u32, last: u32) -> Vec<u8> {
    let flags = match space {
        Space::Memory => 1, // writable, not cacheable
        Space::Ports => 3,  // the whole range
        Space::Buses => 0,
    };
    let mut bytes = vec![0x87, 23, 0, space as u8, 0x0c, flags];
    for value in [0, first, last, 0, (last - first).wrapping_add(1)] {
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings() {
        for (value, bytes) in [
            (0, vec![0]),
            (1, vec![1]),
            (2, vec![0x0a, 2]),
            (0x1234, vec![0x0b, 0x34, 0x12]),
            (0x1234_5678, vec![0x0c, 0x78, 0x56, 0x34, 0x12]),
        ] {
            assert_eq!(integer(value), bytes);
        }
        // From the specification's example of EISAID("PNP0303").
        assert_eq!(eisa_id("PNP0303"), [0x0c, 0x41, 0xd0, 0x03, 0x03]);
        assert_eq!(string("ab"), [0x0d, b'a', b'b', 0]);
        assert_eq!(
            name("_S5_", &package(&[integer(0), integer(5)])),
            b"\x08_S5_\x12\x05\x02\x00\x0a\x05"
        );
        assert_eq!(scope("\\_SB_", &[]), b"\x10\x06\\_SB_");
        assert_eq!(device("COM1", &[]), b"\x5b\x82\x05COM1");
        assert_eq!(
            resources(&[line(4)]),
            b"\x08_CRS\x11\x08\x0a\x05\x22\x10\x00\x79\x00"
        );
        assert_eq!(window(Space::Ports, 0, 0xcf7).len(), 26);
    }

    #[test]
    fn lengths_grow() {
        for (body, head) in [
            (62, vec![63]),
            (63, vec![0x41, 0x04]),
            (4093, vec![0x4f, 0xff]),
            (4094, vec![0x81, 0x00, 0x01]),
        ] {
            let bytes = with_length(&vec![0; body]);
            assert_eq!(bytes[..head.len()], head, "{body}");
            assert_eq!(bytes.len(), body + head.len());
        }
    }
}
