//! An L2 whose APIC is virtual: pages and controls, and what is looked at afterwards.

use super::bare::*;
use super::nest::*;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::{CpuState, Gpr};

/// The virtual-APIC page.
pub(crate) const VIRTUAL_APIC: u64 = 0x6_2000;
/// The APIC-access page.
pub(crate) const ACCESS: u64 = 0x6_3000;
/// The posted-interrupt descriptor.
pub(crate) const DESCRIPTOR: u64 = 0x6_4040;
/// MSR bitmaps.
pub(crate) const BITMAPS: u64 = 0x6_5000;
/// EPT structures: a root, a table of 1-GiB entries, one of 2 MiB, one of 4 KiB.
pub(crate) const EPT: u64 = 0x6_6000;

/// Basic exit reasons.
pub(crate) mod reason {
    pub(crate) const EXCEPTION: u32 = 0;
    pub(crate) const EXTERNAL_INTERRUPT: u32 = 1;
    pub(crate) const INTERRUPT_WINDOW: u32 = 7;
    pub(crate) const NMI_WINDOW: u32 = 8;
    pub(crate) const VMCALL: u32 = 18;
    pub(crate) const MONITOR_TRAP_FLAG: u32 = 37;
    pub(crate) const TPR_BELOW_THRESHOLD: u32 = 43;
    pub(crate) const APIC_ACCESS: u32 = 44;
    pub(crate) const VIRTUALIZED_EOI: u32 = 45;
    pub(crate) const EPT_VIOLATION: u32 = 48;
    pub(crate) const PREEMPTION_TIMER: u32 = 52;
    pub(crate) const APIC_WRITE: u32 = 56;
}

/// Machine code at `address`.
pub(crate) fn assemble(
    address: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 bits");
    build(&mut a).expect("assembles");
    a.assemble(address).expect("assembles")
}

/// L2 of `code` with "use TPR shadow" and these secondary controls.
pub(crate) fn nest(code: &[u8], secondary: Secondary) -> Nest {
    with_virtual_apic(Nest::new(code), secondary)
}

/// Any L2 with them.
pub(crate) fn with_virtual_apic(mut nest: Nest, secondary: Secondary) -> Nest {
    nest.set(Field::VIRTUAL_APIC_PAGE_ADDR, VIRTUAL_APIC);
    nest.set(Field::APIC_ACCESS_ADDR, ACCESS);
    nest.set(Field::MSR_BITMAP, BITMAPS);
    let primary =
        Primary::USE_TPR_SHADOW | Primary::ACTIVATE_SECONDARY_CONTROLS | Primary::USE_MSR_BITMAPS;
    nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, primary.bits());
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        (Primary::CR8_LOAD_EXITING | Primary::CR8_STORE_EXITING).bits(),
    );
    nest.set(Field::SECONDARY_VM_EXEC_CONTROL, secondary.bits().into());
    nest
}

impl Nest {
    pub(crate) fn word(&mut self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.vm
            .read_memory(L1Phys(address), &mut bytes)
            .expect("RAM");
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        put(&mut self.vm, address, bytes);
    }

    /// A register of the virtual APIC.
    pub(crate) fn apic(&mut self, offset: u64) -> u32 {
        self.word(VIRTUAL_APIC + offset)
    }

    pub(crate) fn set_apic(&mut self, offset: u64, value: u32) {
        self.put(VIRTUAL_APIC + offset, &value.to_le_bytes());
    }

    /// A vector's bit in the 256-bit register at `register`.
    pub(crate) fn vector(&mut self, register: u64, vector: u8) -> bool {
        let word = self.apic(register + u64::from(vector / 32) * 16);
        word >> (vector % 32) & 1 != 0
    }

    pub(crate) fn set_vector(&mut self, register: u64, vector: u8) {
        let offset = register + u64::from(vector / 32) * 16;
        let word = self.apic(offset);
        self.set_apic(offset, word | 1 << (vector % 32));
    }

    /// (RVI, SVI).
    pub(crate) fn status(&self) -> (u8, u8) {
        let status = self.get(Field::GUEST_INTR_STATUS);
        (status as u8, (status >> 8) as u8)
    }

    pub(crate) fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        let mut regs = self.regs();
        regs.set(gpr, value);
        self.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
    }

    pub(crate) fn gpr(&mut self, gpr: Gpr) -> u64 {
        self.regs().get(gpr)
    }

    /// L1's local APIC is enabled by software.
    pub(crate) fn enable_apic(&mut self) {
        let mut page = self.state().lapic.expect("a local APIC");
        page[0xf0..0xf4].copy_from_slice(&0x1ff_u32.to_le_bytes());
        self.set_state(CpuState {
            lapic: Some(page),
            ..CpuState::default()
        });
    }

    /// A register of L1's local APIC.
    pub(crate) fn l1_apic(&mut self, offset: usize) -> u32 {
        let page = self.state().lapic.expect("a local APIC");
        u32::from_le_bytes(page[offset..offset + 4].try_into().expect("4 bytes"))
    }

    /// EPT: all of memory where it is. `leaf` is the entry of the page at `ACCESS` where it is mapped by
    /// 4 KiB; `None` maps 2 MiB at once.
    pub(crate) fn enable_ept(&mut self, leaf: Option<u64>) {
        let mut entry = |address: u64, value: u64| self.put(address, &value.to_le_bytes());
        entry(EPT, (EPT + 0x1000) | 7);
        entry(EPT + 0x1000, (EPT + 0x2000) | 7);
        match leaf {
            None => entry(EPT + 0x2000, 0xb7),
            Some(leaf) => {
                entry(EPT + 0x2000, (EPT + 0x3000) | 7);
                for page in 0..512 {
                    entry(EPT + 0x3000 + page * 8, page << 12 | 0x37);
                }
                entry(EPT + 0x3000 + ACCESS / 0x1000 * 8, leaf);
            }
        }
        self.on(
            Field::SECONDARY_VM_EXEC_CONTROL,
            Secondary::ENABLE_EPT.bits(),
        );
        self.set(Field::EPT_POINTER, EPT | 3 << 3 | 6);
    }
}
