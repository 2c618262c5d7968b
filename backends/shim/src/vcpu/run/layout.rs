//! `struct kvm_run` field by field, in the pages that are shared with the caller.

use crate::os::{Plain, RunPages};
use kvm_bindings::{kvm_run, kvm_run__bindgen_ty_1, kvm_sync_regs};
use std::mem::offset_of;

/// Where the data of port I/O is: the second page.
pub const IO_DATA: usize = 4096;
/// Where the union of exits begins.
pub const EXIT: usize = offset_of!(kvm_run, __bindgen_anon_1);
const SYNC: usize = offset_of!(kvm_run, s);

/// A field of the structure, outside the unions.
macro_rules! field {
    ($get:ident, $set:ident, $type:ty, $field:ident, $what:literal) => {
        #[doc = $what]
        #[must_use]
        pub fn $get(&self) -> $type {
            self.load(offset_of!(kvm_run, $field))
        }

        #[doc = $what]
        pub fn $set(&self, value: $type) {
            self.store(offset_of!(kvm_run, $field), value);
        }
    };
}

impl RunPages {
    /// Whether the caller wants to hear when an interrupt can be given.
    #[must_use]
    pub fn wants_interrupt_window(&self) -> bool {
        self.load_byte(offset_of!(kvm_run, request_interrupt_window)) != 0
    }

    /// Whether the run must end at once; another thread may say so.
    #[must_use]
    pub fn immediate_exit(&self) -> bool {
        self.load_byte(offset_of!(kvm_run, immediate_exit)) != 0
    }

    field!(
        exit_reason,
        set_exit_reason,
        u32,
        exit_reason,
        "Why the run ended."
    );
    field!(
        ready,
        set_ready,
        u8,
        ready_for_interrupt_injection,
        "Whether KVM_INTERRUPT may be called."
    );
    field!(if_flag, set_if_flag, u8, if_flag, "RFLAGS.IF.");
    field!(flags, set_flags, u16, flags, "`KVM_RUN_X86_*`.");
    field!(
        cr8,
        set_cr8,
        u64,
        cr8,
        "CR8; an input, too, without a local APIC of ours."
    );
    field!(apic_base, set_apic_base, u64, apic_base, "IA32_APIC_BASE.");
    field!(
        valid_regs,
        set_valid_regs,
        u64,
        kvm_valid_regs,
        "What the caller wants in `sync_regs`."
    );
    field!(
        dirty_regs,
        set_dirty_regs,
        u64,
        kvm_dirty_regs,
        "What the caller changed in `sync_regs`."
    );

    /// Writes what is particular to an exit.
    pub fn set_exit<T: Plain>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= size_of::<kvm_run__bindgen_ty_1>());
        self.store(EXIT + at, value);
    }

    /// Reads what the caller answered to an exit.
    #[must_use]
    pub fn exit<T: Plain>(&self, at: usize) -> T {
        self.load(EXIT + at)
    }

    /// The registers that go with a run.
    #[must_use]
    pub fn sync_regs(&self) -> kvm_sync_regs {
        self.load(SYNC)
    }

    /// The registers that go with a run.
    pub fn set_sync_regs(&self, registers: kvm_sync_regs) {
        self.store(SYNC, registers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_programs_look() {
        // As in include/uapi/linux/kvm.h for x86-64.
        assert_eq!((EXIT, SYNC), (32, 304));
        assert_eq!(offset_of!(kvm_run, immediate_exit), 1);
        assert_eq!(offset_of!(kvm_run, exit_reason), 8);
        assert_eq!(offset_of!(kvm_run, kvm_valid_regs), 288);
        assert!(size_of::<kvm_run>() <= IO_DATA);
    }
}
