//! Time and guest RAM's marks: what handlers do to the engine itself.

use super::StopReason;
use super::env::Env;
use super::memory::PAGE_SIZE;
use super::watch::drop_code;

impl Env {
    // ---- Time ----

    /// Instructions executed since the engine was made: exact in every handler but
    /// [`super::Machine::tlb_fill`], where it is the count at the start of the block.
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.clock.done
    }

    /// Sets the count (restoring a snapshot). Only between runs or in a handler.
    pub fn set_executed(&mut self, count: u64) {
        let remaining = self.clock.remaining();
        if self.resume_held == Some(self.clock.done) {
            self.resume_held = Some(count);
        }
        self.clock.done = count;
        self.clock.limit = count.saturating_add(remaining);
        self.clock.slow_at = 0;
    }

    /// Counts instructions that a handler executed itself; they use up the budget too.
    pub fn retired(&mut self, instructions: u64) {
        self.clock.done += instructions;
    }

    /// Makes `run` return before the next block, with [`StopReason::Requested`].
    pub fn request_stop(&mut self) {
        self.stop.get_or_insert(StopReason::Requested);
        self.clock.slow_at = 0;
    }

    /// Shrinks or extends the current run: it stops when [`Self::executed`] reaches `count`.
    pub fn set_deadline(&mut self, count: u64) {
        self.clock.limit = count;
        self.clock.slow_at = 0;
    }

    // ---- Code and marks ----

    /// Must follow every write to guest RAM that did not come from guest code: marks the pages dirty
    /// and discards code translated from them. Addresses outside RAM are ignored.
    pub fn host_wrote(&mut self, gpa: u64, length: u64) {
        let mut address = gpa;
        let end = gpa.saturating_add(length);
        while address < end {
            let next = (address & !(PAGE_SIZE - 1))
                .saturating_add(PAGE_SIZE)
                .min(end);
            if let Some(page) = self.ram.page(address) {
                let region = &mut self.ram.regions[page.region];
                region.dirty.set(page.page);
                if region.code.get(page.page) {
                    drop_code(self.uc, region, address - region.start, next - address);
                    self.store_to_code(page);
                }
            }
            if next == address {
                break;
            }
            address = next;
        }
    }

    /// Guest-physical addresses of the pages written since [`Self::clear_dirty`], ascending in each
    /// range of RAM.
    pub fn dirty_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.ram
            .regions
            .iter()
            .flat_map(|r| r.dirty.iter().map(|page| r.start + page as u64 * PAGE_SIZE))
    }

    /// Whether a page was written since [`Self::clear_dirty`].
    #[must_use]
    pub fn is_dirty(&self, gpa: u64) -> bool {
        self.ram
            .page(gpa)
            .is_some_and(|p| self.ram.regions[p.region].dirty.get(p.page))
    }

    /// Clears the marks and flushes the TLB, so that the next store to each page marks it again.
    pub fn clear_dirty(&mut self) {
        self.ram.clear_dirty();
        self.flush_tlb();
    }

    /// Whether RAM lies at this guest-physical address.
    #[must_use]
    pub fn is_ram(&self, gpa: u64) -> bool {
        self.ram.page(gpa).is_some()
    }
}
