//! PCI configuration mechanism 1 (PCI Local Bus Specification "Configuration Space Access Mechanism"),
//! with the functions that QEMU's `pc` always has: i440FX host bridge, PIIX3 ISA bridge, PIIX4 power
//! management. They are there to be enumerated; what they would route is wired.

/// Writable bits of a configuration byte.
type Writable = (u8, u8);

struct Function {
    /// Device and function.
    number: u8,
    config: [u8; 256],
    writable: [u8; 256],
}

/// What tells a function from another.
struct Identity {
    number: u8,
    device: u16,
    class: [u8; 3],
    revision: u8,
    multifunction: bool,
}

const INTEL: u16 = 0x8086;
/// Subsystem that QEMU gives its devices.
const SUBSYSTEM: [u8; 4] = [0xf4, 0x1a, 0x00, 0x11];

impl Function {
    fn new(identity: &Identity, values: &[(u8, u8)], writable: &[Writable]) -> Self {
        let mut config = [0; 256];
        config[..2].copy_from_slice(&INTEL.to_le_bytes());
        config[2..4].copy_from_slice(&identity.device.to_le_bytes());
        config[4] = 0x07; // I/O, memory, bus master
        config[8] = identity.revision;
        config[9..12].copy_from_slice(&identity.class);
        config[14] = if identity.multifunction { 0x80 } else { 0 };
        config[0x2c..0x30].copy_from_slice(&SUBSYSTEM);
        for (at, value) in values {
            config[usize::from(*at)] = *value;
        }
        let mut mask = [0; 256];
        // Command, interrupt line.
        for (at, bits) in [(4, 0x47), (5, 0x05), (0x3c, 0xff)].iter().chain(writable) {
            mask[usize::from(*at)] = *bits;
        }
        Self {
            number: identity.number,
            config,
            writable: mask,
        }
    }
}

/// Bus 0 and its address register.
pub struct Pci {
    address: u32,
    functions: [Function; 3],
}

impl Default for Pci {
    fn default() -> Self {
        Self::new()
    }
}

impl Pci {
    /// As firmware leaves it.
    #[must_use]
    pub fn new() -> Self {
        let host = Identity {
            number: 0,
            device: 0x1237,
            class: [0, 0, 6],
            revision: 2,
            multifunction: false,
        };
        let isa = Identity {
            number: 1 << 3,
            device: 0x7000,
            class: [0, 1, 6],
            revision: 0,
            multifunction: true,
        };
        let power = Identity {
            number: 1 << 3 | 3,
            device: 0x7113,
            class: [0, 0x80, 6],
            revision: 3,
            multifunction: false,
        };
        // The programmable attribute map: all of 0xc0000 to 0xfffff is RAM.
        let attributes: Vec<Writable> = (0x59..=0x5f).map(|at| (at, 0x33)).collect();
        let ram: Vec<(u8, u8)> = attributes.clone();
        // Interrupt routing: pins A to D to lines 10, 10, 11, 11.
        let routes = [(0x60, 10), (0x61, 10), (0x62, 11), (0x63, 11)];
        let routes_writable = routes.map(|(at, _)| (at, 0x8f));
        let base = [
            (0x40, 0x01),
            (0x41, 0x06),
            (0x80, 0x01),
            (0x3c, 9),
            (0x3d, 1),
        ];
        Self {
            address: 0,
            functions: [
                Function::new(&host, &ram, &attributes),
                Function::new(&isa, &routes, &routes_writable),
                Function::new(&power, &base, &[]),
            ],
        }
    }

    /// Reads 0xcf8, all four bytes.
    #[must_use]
    pub const fn address(&self) -> u32 {
        self.address
    }

    /// Writes 0xcf8, all four bytes.
    pub const fn set_address(&mut self, value: u32) {
        self.address = value & 0x80ff_fffc;
    }

    /// The function and register that 0xcf8 names, with byte `lane` of 0xcfc.
    fn selected(&self, lane: u16) -> Option<(usize, usize)> {
        let [register, number, bus, enabled] = self.address.to_le_bytes();
        if enabled & 0x80 == 0 || bus != 0 {
            return None;
        }
        let index = self.functions.iter().position(|f| f.number == number)?;
        Some((index, usize::from(register & 0xfc) + usize::from(lane & 3)))
    }

    /// Reads a byte of 0xcfc to 0xcff; all ones where there is no function.
    #[must_use]
    pub fn read(&self, lane: u16) -> u8 {
        self.selected(lane)
            .map_or(0xff, |(function, at)| self.functions[function].config[at])
    }

    /// Writes a byte of 0xcfc to 0xcff.
    pub fn write(&mut self, lane: u16, value: u8) {
        if let Some((function, at)) = self.selected(lane) {
            let function = &mut self.functions[function];
            let mask = function.writable[at];
            function.config[at] = function.config[at] & !mask | value & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pci: &mut Pci, number: u8, register: u8) -> u32 {
        pci.set_address(1 << 31 | u32::from(number) << 8 | u32::from(register));
        u32::from_le_bytes([0, 1, 2, 3].map(|lane| pci.read(lane)))
    }

    #[test]
    fn the_bus_has_three_functions() {
        let mut pci = Pci::new();
        let found: Vec<_> = (0..=255_u8)
            .filter_map(|number| {
                let id = read(&mut pci, number, 0);
                (id != u32::MAX).then(|| (number, id, read(&mut pci, number, 8)))
            })
            .collect();
        assert_eq!(
            found,
            [
                (0, 0x1237_8086, 0x0600_0002),
                (8, 0x7000_8086, 0x0601_0000),
                (11, 0x7113_8086, 0x0680_0003),
            ]
        );
        assert_eq!(read(&mut pci, 11, 0x40), 0x601);
        assert_eq!(read(&mut pci, 8, 0xc) >> 16, 0x80);
    }

    #[test]
    fn only_enabled_and_on_bus_0() {
        let mut pci = Pci::new();
        for address in [0, 1 << 31 | 1 << 16] {
            pci.set_address(address);
            assert_eq!(pci.read(0), 0xff);
            pci.write(0, 0);
        }
        pci.set_address(u32::MAX);
        assert_eq!(pci.address(), 0x80ff_fffc);
    }

    #[test]
    fn bits_that_can_be_written() {
        let mut pci = Pci::new();
        assert_eq!(read(&mut pci, 0, 0), 0x1237_8086);
        for lane in 0..4 {
            pci.write(lane, 0);
        }
        assert_eq!(read(&mut pci, 0, 0), 0x1237_8086, "the identity stays");
        read(&mut pci, 0, 0x3c);
        pci.write(0, 5);
        assert_eq!(read(&mut pci, 0, 0x3c), 5);
        // No base address registers, so sizing them finds none.
        read(&mut pci, 8, 0x10);
        for lane in 0..4 {
            pci.write(lane, 0xff);
        }
        assert_eq!(read(&mut pci, 8, 0x10), 0);
    }
}
