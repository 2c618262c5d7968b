//! The driver on a machine that plays back exits.

use super::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Capabilities, Parts, Vcpu};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Default)]
struct Script {
    exits: VecDeque<Exit>,
    reads: Vec<u64>,
    events_a_run: usize,
    pending_events: usize,
    capabilities: Capabilities,
}

impl Script {
    fn new(exits: impl IntoIterator<Item = Exit>) -> Self {
        Self {
            exits: exits.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl Vm for Script {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    fn memory_size(&self) -> u64 {
        0
    }
    fn read_memory(&mut self, _: L1Phys, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn write_memory(&mut self, _: L1Phys, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn dirty_pages(&mut self) -> Result<Vec<u64>> {
        Ok(Vec::new())
    }
    fn vcpu_count(&self) -> usize {
        1
    }
    fn vcpu(&mut self, _: usize) -> &mut dyn Vcpu {
        self
    }
}

impl Vcpu for Script {
    fn state(&mut self, _: Parts) -> Result<CpuState> {
        Ok(CpuState::default())
    }
    fn set_state(&mut self, _: &CpuState) -> Result<()> {
        Ok(())
    }
    fn nested_state(&mut self) -> Result<NestedState> {
        Err(BackendError::Unsupported("nested state".into()))
    }
    fn set_nested_state(&mut self, _: &NestedState) -> Result<()> {
        Err(BackendError::Unsupported("nested state".into()))
    }
    fn level(&mut self) -> Result<Level> {
        Ok(Level::L1)
    }
    fn run(&mut self, _: Budget) -> Result<Exit> {
        self.pending_events = self.events_a_run;
        Ok(self.exits.pop_front().unwrap_or(Exit::Hlt))
    }
    fn step(&mut self) -> Result<Exit> {
        Vcpu::run(self, Budget::UNLIMITED)
    }
    fn complete_read(&mut self, value: u64) -> Result<()> {
        self.reads.push(value);
        Ok(())
    }
    fn inject(&mut self, _: Event) -> Result<()> {
        Ok(())
    }
    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        for _ in 0..std::mem::take(&mut self.pending_events) {
            events.push(NestedEvent::EntryFailure { error: Some(7) });
        }
        Ok(())
    }
}

fn out(port: u16, size: u8, value: u32) -> Exit {
    Exit::IoOut { port, size, value }
}

#[test]
fn each_port_does_what_it_says() {
    let mut vm = Script::new([
        out(ports::SERIAL, 1, b'h'.into()),
        out(ports::SERIAL, 1, b'i'.into()),
        out(ports::REPORT, 4, 0xdead_beef),
        Exit::IoIn {
            port: ports::SERIAL + 5,
            size: 1,
        },
        Exit::IoIn {
            port: 0x71,
            size: 4,
        },
        out(0x80, 1, 0),
        out(ports::CHECKPOINT, 4, 0x1_0002),
        out(ports::DEBUG_EXIT, 4, 0x10),
    ]);
    let mut driver = Driver::default();
    let budget = Budget::UNLIMITED;
    assert_eq!(
        driver.run(&mut vm, budget).unwrap(),
        Stop::Checkpoint(0x1_0002)
    );
    let stop = driver.run(&mut vm, budget).unwrap();
    assert_eq!((stop.status(), stop), (Some(0x21), Stop::DebugExit(0x10)));
    assert_eq!(driver.serial(), b"hi");
    assert_eq!(driver.reports(), [0xdead_beef]);
    // The line status says empty; a port without a device reads all ones, as wide as it was read.
    assert_eq!(vm.reads, [0x60, 0xffff_ffff]);
}

#[test]
fn the_shutdown_word_powers_off_even_after_a_false_start() {
    let word = b"ShutShutdown".map(|byte| out(ports::SHUTDOWN, 1, byte.into()));
    let mut vm = Script::new(word);
    let stop = Driver::default().run(&mut vm, Budget::UNLIMITED).unwrap();
    assert_eq!(stop, Stop::PowerOff);
    assert!(vm.exits.is_empty());
}

#[test]
fn exits_that_no_device_answers_stop_the_run() {
    let cases = [
        (Exit::Hlt, Stop::Halted),
        (Exit::Shutdown, Stop::Shutdown),
        (Exit::FailEntry { reason: 7 }, Stop::FailEntry(7)),
        (
            Exit::Unsupported { what: "x".into() },
            Stop::Unsupported("x".into()),
        ),
        (
            Exit::MmioRead {
                address: L1Phys(0xfee0_0000),
                size: 4,
            },
            Stop::Mmio {
                address: 0xfee0_0000,
                size: 4,
                written: None,
            },
        ),
    ];
    for (exit, expected) in cases {
        let stop = Driver::default().run(&mut Script::new([exit]), Budget::UNLIMITED);
        assert_eq!(stop.unwrap(), expected);
    }
}

#[test]
fn the_budget_counts_over_all_exits() {
    let endless = || Script {
        events_a_run: 2,
        ..Script::new(std::iter::repeat_n(out(0x80, 1, 0), 100))
    };
    let mut driver = Driver::default();
    let mut vm = endless();
    assert_eq!(
        driver.run(&mut vm, Budget::nested_events(6)).unwrap(),
        Stop::Budget
    );
    assert_eq!(driver.take_events().len(), 6);
    assert_eq!(vm.exits.len(), 97);
    let nothing = Budget::time(Duration::ZERO);
    assert_eq!(driver.run(&mut vm, nothing).unwrap(), Stop::Budget);
    // An instruction count does not survive an exit, so the first one ends the run.
    assert_eq!(
        driver.run(&mut vm, Budget::instructions(5)).unwrap(),
        Stop::Budget
    );
    assert_eq!(vm.exits.len(), 96);
}

#[test]
fn a_pc_needs_a_backend_with_a_time_of_its_own() {
    let config = crate::pc::Config::default();
    let refused = Driver::pc(Vec::new(), &config, &mut Script::default());
    assert!(matches!(refused, Err(BackendError::Unsupported(_))));
}
