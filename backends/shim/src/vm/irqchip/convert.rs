//! Between the devices' states and `struct kvm_pic_state`, `kvm_ioapic_state`, `kvm_pit_state2`.

use super::chips::Chips;
use kvm_bindings::{kvm_pic_state, kvm_pit_channel_state};
use nvmx_machine::pc::ioapic;
use nvmx_machine::pc::pic::{Chip, Expects, TRIGGER_MODES};
use nvmx_machine::pc::pit::{Channel, Pit};

const LEVEL: u64 = 1 << 15;

/// One PIC, 0 the master.
#[must_use]
pub fn pic(chips: &Chips, index: usize) -> kvm_pic_state {
    let chip = &chips.pic.state()[index];
    kvm_pic_state {
        last_irr: chip.lines,
        irr: chip.irr,
        imr: chip.imr,
        isr: chip.isr,
        priority_add: chip.first,
        irq_base: chip.base,
        read_reg_select: chip.reads_isr.into(),
        poll: chip.polled.into(),
        special_mask: chip.special_mask.into(),
        init_state: match chip.expects {
            Expects::Mask => 0,
            Expects::Icw2 => 1,
            Expects::Icw3 => 2,
            Expects::Icw4 => 3,
        },
        auto_eoi: chip.auto_eoi.into(),
        rotate_on_auto_eoi: chip.rotates_on_auto_eoi.into(),
        special_fully_nested_mode: chip.special_fully_nested.into(),
        init4: chip.needs_icw4.into(),
        elcr: chip.elcr,
        elcr_mask: TRIGGER_MODES[index],
    }
}

/// Puts one PIC back.
pub fn set_pic(chips: &mut Chips, index: usize, kernel: &kvm_pic_state) {
    let mut state = chips.pic.state().clone();
    state[index] = Chip {
        lines: kernel.last_irr,
        irr: kernel.irr,
        isr: kernel.isr,
        imr: kernel.imr,
        elcr: kernel.elcr,
        base: kernel.irq_base,
        expects: match kernel.init_state {
            1 => Expects::Icw2,
            2 => Expects::Icw3,
            3 => Expects::Icw4,
            _ => Expects::Mask,
        },
        needs_icw4: kernel.init4 != 0,
        single: false,
        auto_eoi: kernel.auto_eoi != 0,
        rotates_on_auto_eoi: kernel.rotate_on_auto_eoi != 0,
        special_mask: kernel.special_mask != 0,
        special_fully_nested: kernel.special_fully_nested_mode != 0,
        first: kernel.priority_add,
        reads_isr: kernel.read_reg_select != 0,
        polled: kernel.poll != 0,
    };
    chips.pic.set_state(state);
}

/// `struct kvm_ioapic_state`: the address, select and id, requests, the redirection table.
pub type IoApicState = [u64; 3 + ioapic::PINS as usize];

/// The I/O APIC. A request is an edge that waits, or a level that is high.
#[must_use]
pub fn ioapic(chips: &Chips) -> IoApicState {
    let state = chips.ioapic.state();
    let mut kernel = [0; 3 + ioapic::PINS as usize];
    kernel[0] = ioapic::ADDRESS;
    kernel[1] = u64::from(state.selected) | u64::from(state.id) << 32;
    kernel[2] = (state.edges | state.lines & levels(&state.entries)).into();
    kernel[3..].copy_from_slice(&state.entries);
    kernel
}

fn levels(entries: &[u64]) -> u32 {
    (0..)
        .zip(entries)
        .filter(|(_, entry)| **entry & LEVEL != 0)
        .fold(0, |levels, (pin, _)| levels | 1_u32 << pin)
}

/// Puts it back.
pub fn set_ioapic(chips: &mut Chips, kernel: &IoApicState) {
    let [_, select_and_id, requests, entries @ ..] = *kernel;
    let before = chips.ioapic.state();
    let levels = levels(&entries);
    let requests = requests as u32;
    chips.ioapic.set_state(&ioapic::State {
        id: (select_and_id >> 32) as u32,
        selected: select_and_id as u8,
        entries,
        lines: before.lines & !levels | requests & levels,
        edges: requests & !levels,
    });
}

/// The PIT's channels.
#[must_use]
pub fn pit(pit: &Pit) -> [kvm_pit_channel_state; 3] {
    let (channels, _) = pit.state();
    std::array::from_fn(|index| {
        let channel = &channels[index];
        kvm_pit_channel_state {
            count: channel.reload as u32,
            latched_count: channel.latched.unwrap_or(0),
            // Which bytes of the latched count are to come, as `rw_mode`.
            count_latched: channel.latched.map_or(0, |_| channel.access),
            status_latched: channel.latched_status.is_some().into(),
            status: channel.latched_status.unwrap_or(0),
            read_state: if channel.high_next { 4 } else { channel.access },
            write_state: if channel.low_written.is_some() {
                4
            } else {
                channel.access
            },
            write_latch: channel.low_written.unwrap_or(0),
            rw_mode: channel.access,
            mode: if channel.mode == 0 && channel.start.is_none() {
                UNUSED
            } else {
                channel.mode
            },
            bcd: channel.bcd.into(),
            gate: channel.gate.into(),
            count_load_time: pit.started(index).unwrap_or(0) as i64,
        }
    })
}

/// Puts them back; each count is loaded anew, as KVM does (`kvm_pit_load_count`).
pub fn set_pit(pit: &mut Pit, now: u64, kernel: &[kvm_pit_channel_state; 3], speaker: bool) {
    /// `RW_STATE_WORD1`: the high byte is next.
    const HIGH_NEXT: u8 = 4;
    let channels = kernel.map(|channel| Channel {
        mode: if channel.mode == UNUSED {
            0
        } else {
            channel.mode
        },
        bcd: channel.bcd != 0,
        access: channel.rw_mode & 3,
        reload: match channel.count {
            0 => 0x10000,
            count => u64::from(count),
        },
        start: None,
        frozen: None,
        gate: channel.gate != 0,
        null_count: false,
        low_written: (channel.write_state == HIGH_NEXT).then_some(channel.write_latch),
        high_next: channel.read_state == HIGH_NEXT,
        latched: (channel.count_latched != 0).then_some(channel.latched_count),
        latched_status: (channel.status_latched != 0).then_some(channel.status),
    });
    let waits = kernel.map(|channel| channel.mode == UNUSED);
    pit.set_state(now, channels, speaker);
    for (index, waits) in waits.into_iter().enumerate() {
        if !waits {
            pit.restart(now, index);
        }
    }
}

/// Mode of a channel that nobody has set (`kvm_pit_reset_reinject`).
pub const UNUSED: u8 = 0xff;
