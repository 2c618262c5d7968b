//! The exact count of executed instructions, at the cost of one call a block.
//!
//! Translated code calls [`super::hooks`] at the start of every block. The call's return address
//! names the translated block, whose instruction count unicorn keeps, so that a small cache answers
//! nearly all calls. At an event inside a block the instructions before RIP are counted from the
//! block's own table of instruction addresses. One iteration of a repeated string instruction counts
//! as one, and so does the last look at RCX = 0.

use super::ffi::{Field, tb};

const CACHE_SIZE: usize = 8192;
/// Marks a block that was translated with a limit on its length; makes its count miss the fast path.
const LIMITED: u64 = 1 << 48;
/// How many instructions may pass before a stop request from another thread is looked for.
pub(super) const POLL: u64 = 1 << 17;

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: usize,
    block: *const u8,
    count: u64,
}

const EMPTY: Entry = Entry {
    key: 0,
    block: core::ptr::null(),
    count: u64::MAX / 4,
};

/// A translated block (`TranslationBlock`), valid until unicorn throws its code away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block(*const u8);

impl Block {
    /// # Safety
    /// `block` is a live `TranslationBlock`.
    pub(super) unsafe fn new(block: *const u8) -> Option<Self> {
        (!block.is_null()).then_some(Self(block))
    }

    fn get<T: Copy>(self, field: Field<T>) -> T {
        // SAFETY: by construction this is a live block, and `field` is one of `ffi::tb`.
        unsafe { field.read(self.0) }
    }

    pub(super) fn instructions(self) -> u64 {
        u64::from(self.get(tb::ICOUNT))
    }

    pub(super) fn is_limited(self) -> bool {
        self.get(tb::CFLAGS) & tb::COUNT_MASK != 0
    }

    /// Linear addresses of the block's instructions, in order.
    ///
    /// Unicorn keeps them behind the code as signed LEB128 differences, three numbers an instruction:
    /// guest address, lazy-flags state, host address.
    pub(super) fn addresses(self) -> impl Iterator<Item = u64> {
        let mut cursor = (self.get(tb::CODE) + self.get(tb::CODE_SIZE)) as *const u8;
        let mut address = self.get(tb::PC);
        (0..self.get(tb::ICOUNT)).map(move |_| {
            // SAFETY: the table holds three numbers for each of the block's instructions.
            address = address.wrapping_add(unsafe { leb128(&mut cursor) } as u64);
            for _ in 0..2 {
                // SAFETY: as above.
                unsafe { leb128(&mut cursor) };
            }
            address
        })
    }

    /// How many instructions of the block lie before the one at this linear address.
    pub(super) fn index_of(self, address: u64) -> Option<u64> {
        self.addresses()
            .position(|a| a == address)
            .map(|index| index as u64)
    }
}

/// # Safety
/// A complete signed LEB128 number lies at `cursor`.
unsafe fn leb128(cursor: &mut *const u8) -> i64 {
    let (mut value, mut shift) = (0i64, 0);
    loop {
        // SAFETY: by contract the number has not ended yet.
        let byte = unsafe { cursor.read() };
        *cursor = cursor.wrapping_add(1);
        value |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let sign_extend = byte & 0x40 != 0 && shift < 64;
            return if sign_extend {
                value | -1 << shift
            } else {
                value
            };
        }
    }
}

/// Counts instructions and says when to leave translated code.
#[derive(Debug)]
pub(super) struct Clock {
    /// Instructions executed before the current block.
    pub(super) done: u64,
    /// Instructions of the current block, if one runs; else 0.
    current: u64,
    block: *const u8,
    /// A block that would bring the count beyond this takes the slow path.
    pub(super) slow_at: u64,
    /// Where `run` must stop.
    pub(super) limit: u64,
    /// The next block was translated with a limit because we asked for it.
    pub(super) cut: bool,
    flushes: u32,
    flush_counter: *const u32,
    cache: Box<[Entry; CACHE_SIZE]>,
}

impl Clock {
    /// `flush_counter` is unicorn's counter of code flushes and outlives the clock.
    pub(super) fn new(flush_counter: *const u32) -> Self {
        Self {
            done: 0,
            current: 0,
            block: core::ptr::null(),
            slow_at: 0,
            limit: 0,
            cut: false,
            flushes: 0,
            flush_counter,
            cache: Box::new([EMPTY; CACHE_SIZE]),
        }
    }

    fn flush_count(&self) -> u32 {
        // SAFETY: the counter outlives the clock; the engine owns both.
        unsafe { self.flush_counter.read() }
    }

    const fn slot(host_pc: usize) -> usize {
        ((host_pc >> 4) ^ (host_pc >> 17)) % CACHE_SIZE
    }

    /// Enters a block on the fast path; `false` if the slow path must look at it first.
    #[inline(always)]
    pub(super) fn enter_known(&mut self, host_pc: usize) -> bool {
        let entry = self.cache[Self::slot(host_pc)];
        let done = self.done + self.current;
        if entry.key != host_pc
            || done + entry.count > self.slow_at
            || self.flush_count() != self.flushes
        {
            return false;
        }
        self.done = done;
        self.current = entry.count;
        self.block = entry.block;
        true
    }

    /// Remembers which block calls from `host_pc`.
    pub(super) fn learn(&mut self, host_pc: usize, block: Block) {
        let flushes = self.flush_count();
        if flushes != self.flushes {
            self.cache.fill(EMPTY);
            self.flushes = flushes;
        }
        let limited = if block.is_limited() { LIMITED } else { 0 };
        self.cache[Self::slot(host_pc)] = Entry {
            key: host_pc,
            block: block.0,
            count: block.instructions() | limited,
        };
    }

    /// The block that the cache holds for `host_pc`.
    pub(super) fn known(&self, host_pc: usize) -> Option<Block> {
        let entry = self.cache[Self::slot(host_pc)];
        (entry.key == host_pc && self.flush_count() == self.flushes).then_some(Block(entry.block))
    }

    /// Enters a block.
    pub(super) fn enter(&mut self, block: Block) {
        self.current = block.instructions();
        self.block = block.0;
    }

    /// The block that runs or has just ended.
    pub(super) fn block(&self) -> Option<Block> {
        (!self.block.is_null()).then_some(Block(self.block))
    }

    /// The current block ran to its end.
    pub(super) fn complete(&mut self) {
        self.done += self.current;
        self.current = 0;
        self.block = core::ptr::null();
    }

    /// The current block was left before the instruction at this linear address.
    pub(super) fn leave_at(&mut self, address: u64) {
        let index = self.block().and_then(|block| block.index_of(address));
        if let Some(index) = index {
            self.current = index;
        }
        self.complete();
    }

    /// Instructions that may still run.
    pub(super) fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.done)
    }

    /// Sets the next point where the slow path looks at the world.
    pub(super) fn rearm(&mut self) {
        self.slow_at = self.limit.min(self.done.saturating_add(POLL));
    }
}
