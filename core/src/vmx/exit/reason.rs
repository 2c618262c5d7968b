//! Basic exit reasons (SDM Vol. 3D, appendix "VMX Basic Exit Reasons").

use serde::{Deserialize, Serialize};
use std::fmt;

/// The exit-reason field, all 32 bits. An unknown basic reason is data, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExitReason(pub u32);

/// When the VM-exit instruction length and the VM-exit instruction information of a reason mean something
/// (SDM Vol. 3C "Information for VM Exits Due to Instruction Execution").
#[derive(Clone, Copy, PartialEq, Eq)]
enum Instruction {
    /// The length, always: an instruction was about to be executed.
    Length,
    /// Both, always.
    Both,
    /// The length always, the information for INS and OUTS.
    Port,
    /// The length for software exceptions, and during the delivery of an event that software raised.
    Exception,
    /// The length for CALL, JMP and IRET, and during the delivery of an event that software raised.
    TaskSwitch,
    /// The length during the delivery of an event that software raised.
    Delivery,
    /// Neither.
    None,
}

macro_rules! exit_reasons {
    ($($number:literal $name:ident $instruction:ident $text:literal;)*) => {
        impl ExitReason {
            $(#[doc = concat!($text, ".")] pub const $name: Self = Self($number);)*

            /// Every basic reason of the table, in its order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The SDM's words for the basic reason, if the table has it.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.basic() {
                    $($number => Some($text),)*
                    _ => None,
                }
            }

            const fn instruction(self) -> Instruction {
                match self.basic() {
                    $($number => Instruction::$instruction,)*
                    _ => Instruction::None,
                }
            }
        }
    };
}

exit_reasons! {
    0 EXCEPTION_OR_NMI Exception "Exception or non-maskable interrupt (NMI)";
    1 EXTERNAL_INTERRUPT None "External interrupt";
    2 TRIPLE_FAULT None "Triple fault";
    3 INIT_SIGNAL None "INIT signal";
    4 STARTUP_IPI None "Start-up IPI (SIPI)";
    5 IO_SMI None "I/O system-management interrupt (SMI)";
    6 OTHER_SMI None "Other SMI";
    7 INTERRUPT_WINDOW None "Interrupt window";
    8 NMI_WINDOW None "NMI window";
    9 TASK_SWITCH TaskSwitch "Task switch";
    10 CPUID Length "CPUID";
    11 GETSEC Length "GETSEC";
    12 HLT Length "HLT";
    13 INVD Length "INVD";
    14 INVLPG Length "INVLPG";
    15 RDPMC Length "RDPMC";
    16 RDTSC Length "RDTSC";
    17 RSM Length "RSM";
    18 VMCALL Length "VMCALL";
    19 VMCLEAR Both "VMCLEAR";
    20 VMLAUNCH Length "VMLAUNCH";
    21 VMPTRLD Both "VMPTRLD";
    22 VMPTRST Both "VMPTRST";
    23 VMREAD Both "VMREAD";
    24 VMRESUME Length "VMRESUME";
    25 VMWRITE Both "VMWRITE";
    26 VMXOFF Length "VMXOFF";
    27 VMXON Both "VMXON";
    28 CR_ACCESS Length "Control-register accesses";
    29 MOV_DR Length "MOV DR";
    30 IO_INSTRUCTION Port "I/O instruction";
    31 RDMSR Length "RDMSR";
    32 WRMSR Length "WRMSR";
    33 INVALID_GUEST_STATE None "VM-entry failure due to invalid guest state";
    34 MSR_LOADING None "VM-entry failure due to MSR loading";
    36 MWAIT Length "MWAIT";
    37 MONITOR_TRAP_FLAG None "Monitor trap flag";
    39 MONITOR Length "MONITOR";
    40 PAUSE Length "PAUSE";
    41 MACHINE_CHECK None "VM-entry failure due to machine-check event";
    43 TPR_BELOW_THRESHOLD None "TPR below threshold";
    44 APIC_ACCESS Delivery "APIC access";
    45 VIRTUALIZED_EOI None "Virtualized EOI";
    46 GDTR_OR_IDTR_ACCESS Both "Access to GDTR or IDTR";
    47 LDTR_OR_TR_ACCESS Both "Access to LDTR or TR";
    48 EPT_VIOLATION Delivery "EPT violation";
    49 EPT_MISCONFIGURATION Delivery "EPT misconfiguration";
    50 INVEPT Both "INVEPT";
    51 RDTSCP Length "RDTSCP";
    52 PREEMPTION_TIMER None "VMX-preemption timer expired";
    53 INVVPID Both "INVVPID";
    54 WBINVD Length "WBINVD or WBNOINVD";
    55 XSETBV Length "XSETBV";
    56 APIC_WRITE None "APIC write";
    57 RDRAND Both "RDRAND";
    58 INVPCID Both "INVPCID";
    59 VMFUNC Length "VMFUNC";
    60 ENCLS Length "ENCLS";
    61 RDSEED Both "RDSEED";
    62 PAGE_MODIFICATION_LOG_FULL Delivery "Page-modification log full";
    63 XSAVES Both "XSAVES";
    64 XRSTORS Both "XRSTORS";
    65 PCONFIG Length "PCONFIG";
    66 SPP_RELATED_EVENT Delivery "SPP-related event";
    67 UMWAIT Both "UMWAIT";
    68 TPAUSE Both "TPAUSE";
    69 LOADIWKEY Both "LOADIWKEY";
    70 ENCLV Length "ENCLV";
    72 ENQCMD_PASID_FAILURE Length "ENQCMD PASID translation failure";
    73 ENQCMDS_PASID_FAILURE Length "ENQCMDS PASID translation failure";
    74 BUS_LOCK None "Bus lock";
    75 INSTRUCTION_TIMEOUT None "Instruction timeout";
    76 SEAMCALL Length "SEAMCALL";
    77 TDCALL Length "TDCALL";
    78 RDMSRLIST Length "RDMSRLIST";
    79 WRMSRLIST Length "WRMSRLIST";
    80 URDMSR Both "URDMSR";
    81 UWRMSR Both "UWRMSR";
    84 RDMSR_IMMEDIATE Both "RDMSR with immediate operand";
    85 WRMSRNS_IMMEDIATE Both "WRMSRNS with immediate operand";
}

impl ExitReason {
    /// Bit 31: the exit is a VM-entry failure.
    pub const ENTRY_FAILURE: u32 = 1 << 31;

    /// The basic reason, bits 15:0.
    #[must_use]
    pub const fn basic(self) -> u16 {
        self.0 as u16
    }

    /// Whether the exit is a failed VM entry (bit 31).
    #[must_use]
    pub const fn is_entry_failure(self) -> bool {
        self.0 & Self::ENTRY_FAILURE != 0
    }

    /// Whether the exit defines the VM-exit instruction length, by its qualification, its interruption
    /// information and its IDT-vectoring information.
    #[must_use]
    pub const fn defines_instruction_length(
        self,
        qualification: u64,
        interruption: u32,
        vectoring: u32,
    ) -> bool {
        /// Bits 31:30 of a task switch's qualification: a task gate in the IDT.
        const TASK_GATE: u64 = 3;
        // Software interrupts, privileged software exceptions, software exceptions.
        const fn is_software(information: u32) -> bool {
            information >> 31 != 0 && matches!(information >> 8 & 7, 4..=6)
        }
        if self.is_entry_failure() {
            return false;
        }
        match self.instruction() {
            Instruction::Length | Instruction::Both | Instruction::Port => true,
            Instruction::Exception => is_software(interruption) || is_software(vectoring),
            Instruction::TaskSwitch => {
                qualification >> 30 & 3 != TASK_GATE || is_software(vectoring)
            }
            Instruction::Delivery => is_software(vectoring),
            Instruction::None => false,
        }
    }

    /// Whether the exit defines the VM-exit instruction information.
    #[must_use]
    pub const fn defines_instruction_information(self, qualification: u64) -> bool {
        /// Bit 4 of a port access's qualification.
        const STRING: u64 = 1 << 4;
        match self.instruction() {
            Instruction::Both => true,
            Instruction::Port => qualification & STRING != 0,
            _ => false,
        }
    }

    /// The same reason with bit 31 set.
    #[must_use]
    pub const fn as_entry_failure(self) -> Self {
        Self(self.0 | Self::ENTRY_FAILURE)
    }
}

impl fmt::Debug for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitReason({:#x}: {self})", self.0)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "exit reason {}", self.basic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_ascend_and_are_unique() {
        assert!(ExitReason::ALL.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(
            ExitReason(0x8000_0021).name(),
            ExitReason::INVALID_GUEST_STATE.name()
        );
        assert_eq!(ExitReason(35).name(), None);
        assert_eq!(ExitReason(35).to_string(), "exit reason 35");
    }
    /// SDM Vol. 3C "Information for VM Exits Due to Instruction Execution".
    #[test]
    fn the_instruction_length_is_defined_where_the_sdm_says() {
        const INT: u32 = 0x8000_0480;
        const INT3: u32 = 0x8000_0603;
        const FAULT: u32 = 0x8000_0b0d;
        for (reason, qualification, interruption, vectoring, expected) in [
            (ExitReason::EXCEPTION_OR_NMI, 0, FAULT, 0, false),
            (ExitReason::EXCEPTION_OR_NMI, 0, INT3, 0, true),
            (ExitReason::EXCEPTION_OR_NMI, 0, FAULT, INT, true),
            (ExitReason::EXTERNAL_INTERRUPT, 0, 0, 0, false),
            (ExitReason::TASK_SWITCH, 0x8000_0000, 0, 0, true),
            (ExitReason::TASK_SWITCH, 0xc000_0000, 0, FAULT, false),
            (ExitReason::TASK_SWITCH, 0xc000_0000, 0, INT, true),
            (ExitReason::RSM, 0, 0, 0, true),
            (ExitReason::APIC_ACCESS, 0, 0, 0, false),
            (ExitReason::EPT_VIOLATION, 0, 0, INT3, true),
            (ExitReason::APIC_WRITE, 0, 0, INT3, false),
            (ExitReason::VMFUNC, 0, 0, 0, true),
            (ExitReason::ENCLS, 0, 0, 0, true),
            (ExitReason::ENCLV, 0, 0, 0, true),
            (ExitReason::LOADIWKEY, 0, 0, 0, true),
            (ExitReason::BUS_LOCK, 0, 0, 0, false),
            (ExitReason(33).as_entry_failure(), 0, 0, INT, false),
            (ExitReason(71), 0, 0, 0, false),
        ] {
            assert_eq!(
                reason.defines_instruction_length(qualification, interruption, vectoring),
                expected,
                "{reason} {interruption:#x} {vectoring:#x}"
            );
        }
    }

    #[test]
    fn instruction_information_is_that_of_operands() {
        for (reason, qualification, expected) in [
            (ExitReason::VMREAD, 0, true),
            (ExitReason::VMLAUNCH, 0, false),
            (ExitReason::VMXOFF, 0, false),
            (ExitReason::IO_INSTRUCTION, 0, false),
            (ExitReason::IO_INSTRUCTION, 1 << 4, true),
            (ExitReason::XSAVES, 0, true),
            (ExitReason::CPUID, 0, false),
            (ExitReason::TASK_SWITCH, 0, false),
        ] {
            let defined = reason.defines_instruction_information(qualification);
            assert_eq!(defined, expected, "{reason}");
        }
    }
}
