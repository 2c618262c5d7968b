//! I/O instructions (SDM Vol. 3C "I/O-Bitmap Addresses", "Instructions That Cause VM Exits
//! Conditionally").

use super::Intercepts;
use crate::addr::L1Phys;
use crate::memory::GuestMemory;
use crate::vmx::controls::Primary;
use crate::vmx::exit::VmExit;
use crate::vmx::exit::qualification::IoAccess;
use bitvec::order::Lsb0;
use bitvec::view::BitView;

/// One bit of a bitmap in guest memory; `None` where it is not RAM.
pub(super) fn bit<M: GuestMemory + ?Sized>(memory: &M, bitmap: L1Phys, bit: u32) -> Option<bool> {
    let mut byte = [0u8];
    let address = L1Phys(bitmap.page().0 + u64::from(bit / 8));
    memory.read(address, &mut byte).ok()?;
    Some(byte.view_bits::<Lsb0>()[(bit % 8) as usize])
}

impl Intercepts {
    /// IN, OUT, INS, OUTS. For INS and OUTS, `string` is the linear address of the memory operand
    /// and the instruction information of [`super::string_io_information`].
    #[must_use]
    pub fn io<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        access: IoAccess,
        string: Option<(u64, u32)>,
        length: u32,
    ) -> Option<VmExit> {
        if !self.wants_port(memory, access.port, access.size) {
            return None;
        }
        let exit = VmExit::io(access, length, string.map(|(address, _)| address));
        Some(match string {
            Some((_, information)) => exit.with_instruction_information(information),
            None => exit,
        })
    }

    /// Whether an access to `size` ports from `port` on exits.
    #[must_use]
    pub fn wants_port<M: GuestMemory + ?Sized>(&self, memory: &M, port: u16, size: u8) -> bool {
        if !self.primary(Primary::USE_IO_BITMAPS) {
            return self.primary(Primary::UNCONDITIONAL_IO_EXITING);
        }
        (0..u32::from(size)).any(|i| {
            let port = u32::from(port) + i;
            let [a, b] = self.io_bitmaps;
            let wanted = match port {
                0..=0x7fff => bit(memory, a, port),
                0x8000..=0xffff => bit(memory, b, port - 0x8000),
                // An access that wraps around the 16-bit port space exits.
                _ => Some(true),
            };
            // A bitmap outside RAM: exit, as KVM has it.
            wanted.unwrap_or(true)
        })
    }
}
