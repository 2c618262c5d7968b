//! How much a file may ask of us. A snapshot is read as hostile: sizes in it are claims.

/// Caps on what reading a snapshot may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a `.ron` file.
    pub text: u64,
    /// Bytes of a `.bin` file (the kernel's nested state is at most 8320 today).
    pub raw: u64,
    /// Bytes of guest memory that a snapshot may claim.
    pub memory: u64,
    /// Bytes of distinct pages that a `.pages` file may unpack to.
    pub contents: u64,
    /// How many `.pages` files may stand on each other as deltas.
    pub bases: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            text: 16 << 20,
            raw: 1 << 20,
            memory: 64 << 30,
            contents: 4 << 30,
            bases: 16,
        }
    }
}

/// Bytes of an XSAVE area or a local-APIC page that a snapshot may claim: AMX needs about 11 KiB.
pub(crate) const MAX_AREA: u64 = 64 << 10;
