//! Does this action of L2 exit to L1? (SDM Vol. 3C, chapter "VMX Non-Root Operation".)
//!
//! [`Intercepts`] is what the vmcs12's controls say, read once at VM entry; each method answers for
//! one instruction or event with the [`VmExit`](super::exit::VmExit) to take, or `None`. Faults that go before the exit
//! ("Relative Priority of Faults and VM Exits": #UD, CPL, I/O permission) are the caller's to check
//! first; where a control decides between #UD and the instruction, the method returns the #UD.

mod control_registers;
mod events;
mod information;
mod instructions;
mod io;
mod msr;
mod pause;
pub mod priority;

#[cfg(test)]
mod tests;

pub use control_registers::{Clts, Cr8};
pub use information::{
    DescriptorTableInstruction, IndirectSize, MemoryOperand, OperandSize, SegmentRegister,
    SystemSegmentInstruction, descriptor_table_information, invalidate_information,
    random_information, string_io_information, system_segment_information, user_wait_information,
    vmcs_access_information, vmcs_pointer_information,
};
pub use pause::PauseLoop;

use super::controls::{ExitControls, PinBased, Primary, Secondary};
use super::{Field, Vmcs12};
use crate::addr::L1Phys;

/// What L1 wants to see of L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Intercepts {
    /// Pin-based controls.
    pub pin: PinBased,
    /// Primary processor-based controls.
    pub primary: Primary,
    /// Secondary processor-based controls; none if the primary do not activate them.
    pub secondary: Secondary,
    /// Primary VM-exit controls.
    pub exit: ExitControls,
    /// Exception bitmap.
    pub exceptions: u32,
    /// Page-fault error-code mask.
    pub page_fault_mask: u32,
    /// Page-fault error-code match.
    pub page_fault_match: u32,
    /// I/O bitmaps A and B.
    pub io_bitmaps: [L1Phys; 2],
    /// MSR bitmaps.
    pub msr_bitmap: L1Phys,
    /// CR0 guest/host mask.
    pub cr0_mask: u64,
    /// CR0 read shadow.
    pub cr0_shadow: u64,
    /// CR4 guest/host mask.
    pub cr4_mask: u64,
    /// CR4 read shadow.
    pub cr4_shadow: u64,
    /// CR3-target values; the first `cr3_target_count` count.
    pub cr3_targets: [u64; 4],
    /// CR3-target count.
    pub cr3_target_count: u8,
    /// XSS-exiting bitmap.
    pub xss_bitmap: u64,
    /// ENCLS-exiting bitmap.
    pub encls_bitmap: u64,
    /// PLE_Gap and PLE_Window, in ticks of the TSC.
    pub pause_gap_and_window: [u32; 2],
}

impl Intercepts {
    /// From the vmcs12.
    #[must_use]
    pub fn new(vmcs12: &Vmcs12) -> Self {
        let word = |field| vmcs12.get(field) as u32;
        let primary = Primary::from_bits_retain(word(Field::CPU_BASED_VM_EXEC_CONTROL));
        Self {
            pin: PinBased::from_bits_retain(word(Field::PIN_BASED_VM_EXEC_CONTROL)),
            primary,
            secondary: if primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
                Secondary::from_bits_retain(word(Field::SECONDARY_VM_EXEC_CONTROL))
            } else {
                Secondary::empty()
            },
            exit: ExitControls::from_bits_retain(word(Field::VM_EXIT_CONTROLS)),
            exceptions: word(Field::EXCEPTION_BITMAP),
            page_fault_mask: word(Field::PAGE_FAULT_ERROR_CODE_MASK),
            page_fault_match: word(Field::PAGE_FAULT_ERROR_CODE_MATCH),
            io_bitmaps: [
                L1Phys(vmcs12.get(Field::IO_BITMAP_A)),
                L1Phys(vmcs12.get(Field::IO_BITMAP_B)),
            ],
            msr_bitmap: L1Phys(vmcs12.get(Field::MSR_BITMAP)),
            cr0_mask: vmcs12.get(Field::CR0_GUEST_HOST_MASK),
            cr0_shadow: vmcs12.get(Field::CR0_READ_SHADOW),
            cr4_mask: vmcs12.get(Field::CR4_GUEST_HOST_MASK),
            cr4_shadow: vmcs12.get(Field::CR4_READ_SHADOW),
            cr3_targets: [
                vmcs12.get(Field::CR3_TARGET_VALUE0),
                vmcs12.get(Field::CR3_TARGET_VALUE1),
                vmcs12.get(Field::CR3_TARGET_VALUE2),
                vmcs12.get(Field::CR3_TARGET_VALUE3),
            ],
            cr3_target_count: word(Field::CR3_TARGET_COUNT).min(4) as u8,
            xss_bitmap: vmcs12.get(Field::XSS_EXIT_BITMAP),
            encls_bitmap: vmcs12.get(Field::ENCLS_EXITING_BITMAP),
            pause_gap_and_window: [word(Field::PLE_GAP), word(Field::PLE_WINDOW)],
        }
    }

    const fn pin(&self, control: PinBased) -> bool {
        self.pin.contains(control)
    }

    const fn primary(&self, control: Primary) -> bool {
        self.primary.contains(control)
    }

    const fn secondary(&self, control: Secondary) -> bool {
        self.secondary.contains(control)
    }
}
