//! Interprocessor interrupts (SDM Vol. 3A "Issuing Interprocessor Interrupts", "Determining IPI
//! Destination").

use super::errors::{FIRST_VECTOR, SEND_ILLEGAL_VECTOR};
use super::registers::{DFR, ICR, ICR_HIGH, ID, LDR};
use super::{Apic, ApicEffect};

/// What an interrupt command does to a processor beside its APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Nothing, or a fixed interrupt, which the APIC has taken.
    Nothing,
    /// SMI.
    Smi,
    /// NMI.
    Nmi,
    /// INIT.
    Init,
    /// Start-up at `vector << 12`.
    Startup(u8),
}

/// Destination shorthand: bits 19:18 of the ICR.
const SHORTHAND_SELF: u64 = 1;
const SHORTHAND_ALL: u64 = 2;
const SHORTHAND_OTHERS: u64 = 3;
/// Delivery modes: bits 10:8.
const LOWEST_PRIORITY: u64 = 1;
const INIT: u64 = 5;
const LEVEL_TRIGGERED: u64 = 1 << 15;

/// Whether the command goes to one of its destinations, the one with the lowest priority.
#[must_use]
pub const fn is_lowest_priority(command: u64) -> bool {
    command >> 8 & 7 == LOWEST_PRIORITY
}

/// The interrupt command that a message on the bus is (SDM Vol. 3A "Message Address Register Format",
/// "Message Data Register Format"), for [`Apic::receive`]; `None` if it is no interrupt message.
#[must_use]
pub const fn message_command(address: u64, data: u32) -> Option<u64> {
    if address >> 20 != 0xfee {
        return None;
    }
    let destination = address >> 12 & 0xff;
    // A broadcast reaches APICs in x2APIC mode too.
    let destination = if destination == 0xff {
        u32::MAX as u64
    } else {
        destination
    };
    let logical = address >> 2 & 1;
    let redirect = address >> 3 & 1;
    // Vector, delivery mode, level and trigger mode stand where the ICR has them.
    let mut command = data as u64 & 0xc7ff | logical << 11 | destination << 32;
    if redirect & logical == 1 && command >> 8 & 7 == 0 {
        command |= LOWEST_PRIORITY << 8;
    }
    Some(command)
}

impl Apic {
    /// A write of the ICR's low half; the high half is in its register.
    pub(super) fn send(&mut self) -> ApicEffect {
        let low = u64::from(self.get(ICR));
        let high = self.get(ICR_HIGH);
        if matches!(low >> 8 & 7, 0 | LOWEST_PRIORITY) && (low as u8) < FIRST_VECTOR {
            self.found(SEND_ILLEGAL_VECTOR);
        }
        let logical = low & 1 << 11 != 0;
        let destination = if self.is_x2apic() {
            high
        } else if high >> 24 == 0xff && !logical {
            u32::MAX
        } else {
            high >> 24
        };
        let mut command = low | u64::from(destination) << 32;
        if command >> 8 & 7 != INIT {
            // The trigger mode means something for INIT alone.
            command &= !LEVEL_TRIGGERED;
        }
        if low >> 18 & 3 == SHORTHAND_SELF && low >> 8 & 7 == 0 {
            // Only fixed delivery is architectural; KVM's APIC delivers the others as well.
            self.accept(low as u8, false);
            return ApicEffect::None;
        }
        ApicEffect::Ipi(command)
    }

    /// Whether `command` (see [`ApicEffect::Ipi`]) addresses this APIC. For lowest-priority delivery the
    /// caller picks one of those that it does.
    #[must_use]
    pub fn is_destination(&self, command: u64, is_sender: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match command >> 18 & 3 {
            SHORTHAND_SELF => return is_sender,
            SHORTHAND_ALL => return true,
            SHORTHAND_OTHERS => return !is_sender,
            _ => {}
        }
        let destination = (command >> 32) as u32;
        let logical = command & 1 << 11 != 0;
        let own = self.get(LDR);
        match (logical, self.is_x2apic()) {
            (false, true) => destination == self.initial_id || destination == u32::MAX,
            (false, false) => destination == self.get(ID) >> 24 || destination == u32::MAX,
            (true, true) => {
                destination == u32::MAX
                    || own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            (true, false) => {
                let own = own >> 24;
                match self.get(DFR) >> 28 {
                    0xf => own & destination & 0xff != 0,
                    _ => {
                        let cluster = destination >> 4 & 15;
                        (cluster == own >> 4 || cluster == 15) && own & destination & 15 != 0
                    }
                }
            }
        }
    }

    /// Takes an interrupt command, if it [`Apic::is_destination`].
    pub fn receive(&mut self, command: u64, is_sender: bool) -> Received {
        if !self.is_destination(command, is_sender) {
            return Received::Nothing;
        }
        let vector = command as u8;
        let asserted = command & 1 << 14 != 0;
        let level_triggered = command & LEVEL_TRIGGERED != 0;
        match command >> 8 & 7 {
            0 | LOWEST_PRIORITY => {
                // The end of a level is no interrupt.
                if asserted || !level_triggered {
                    self.accept(vector, level_triggered);
                }
                Received::Nothing
            }
            2 => Received::Smi,
            4 => Received::Nmi,
            // INIT level de-assert does nothing on processors with a local x2APIC or xAPIC.
            INIT if asserted || !level_triggered => Received::Init,
            6 => Received::Startup(vector),
            _ => Received::Nothing,
        }
    }
}
