//! Which MSR accesses of a guest its user space wants to hear of, as KVM has it: `KVM_X86_SET_MSR_FILTER` and
//! `KVM_CAP_X86_USER_SPACE_MSR` (Linux arch/x86/kvm/x86.c, `kvm_msr_allowed` and `kvm_msr_user_space`).

/// Why an access reaches user space; the discriminants are `KVM_MSR_EXIT_REASON_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum MsrExitReason {
    /// The access is #GP: the value, or the state of the processor, does not allow it.
    Invalid = 1,
    /// There is no such MSR.
    Unknown = 2,
    /// The filter denies it.
    Filter = 4,
}

/// MSRs from one number on, and which of them may be accessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsrRange {
    /// It is about reads.
    pub reads: bool,
    /// It is about writes.
    pub writes: bool,
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// A bit for each, lowest first: set where it may be accessed.
    pub bitmap: Vec<u8>,
}

impl MsrRange {
    /// Whether the access is allowed; `None` if the range is not about it.
    fn allows(&self, number: u32, write: bool) -> Option<bool> {
        let at = number
            .checked_sub(self.first)
            .filter(|at| *at < self.count)?;
        let concerned = if write { self.writes } else { self.reads };
        concerned.then(|| {
            let byte = self.bitmap.get((at / 8) as usize);
            byte.is_some_and(|byte| byte >> (at % 8) & 1 != 0)
        })
    }
}

/// What user space wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsrFilter {
    /// Whether what no range is about is allowed.
    pub allow: bool,
    /// The first one that is about an access decides.
    pub ranges: Vec<MsrRange>,
    /// A bit for each [`MsrExitReason`]: user space answers, instead of a #GP.
    pub exits: u8,
}

impl Default for MsrFilter {
    fn default() -> Self {
        Self {
            allow: true,
            ranges: Vec::new(),
            exits: 0,
        }
    }
}

impl MsrFilter {
    /// Whether the guest may access it as far as the filter goes. The registers of x2APIC mode are never
    /// filtered.
    #[must_use]
    pub fn allows(&self, number: u32, write: bool) -> bool {
        if (0x800..=0x8ff).contains(&number) {
            return true;
        }
        let mut decisions = self
            .ranges
            .iter()
            .filter_map(|range| range.allows(number, write));
        decisions.next().unwrap_or(self.allow)
    }

    /// Whether such an access is user space's to answer.
    #[must_use]
    pub const fn exits(&self, reason: MsrExitReason) -> bool {
        self.exits & reason as u8 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_that_is_about_an_access_decides() {
        let range = |first, reads, writes, bitmap: &[u8]| MsrRange {
            reads,
            writes,
            first,
            count: 10,
            bitmap: bitmap.to_vec(),
        };
        let filter = MsrFilter {
            allow: false,
            ranges: vec![
                range(0x100, true, false, &[0b101, 0b10]),
                range(0x102, true, true, &[0xff, 0xff]),
            ],
            exits: 4,
        };
        for (number, write, allowed) in [
            (0x100, false, true),
            (0x101, false, false),
            (0x102, false, true),
            (0x103, false, false),
            (0x109, false, true),
            (0x10a, false, true),
            (0x10c, false, false),
            // The first is about reads alone.
            (0x101, true, false),
            (0x103, true, true),
            (0xff, false, false),
            (0x830, true, true),
        ] {
            assert_eq!(filter.allows(number, write), allowed, "{number:#x} {write}");
        }
        assert!(MsrFilter::default().allows(0x10, true));
        assert!(filter.exits(MsrExitReason::Filter) && !filter.exits(MsrExitReason::Unknown));
        // A bitmap that is shorter than it claims denies.
        let short = MsrFilter {
            ranges: vec![range(0, true, true, &[])],
            ..MsrFilter::default()
        };
        assert!(!short.allows(3, false));
    }
}
