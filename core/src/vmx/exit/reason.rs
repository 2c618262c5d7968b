//! Basic exit reasons (SDM Vol. 3D, appendix "VMX Basic Exit Reasons").

use serde::{Deserialize, Serialize};
use std::fmt;

/// The exit-reason field, all 32 bits. An unknown basic reason is data, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExitReason(pub u32);

macro_rules! exit_reasons {
    ($($number:literal $name:ident $text:literal;)*) => {
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
        }
    };
}

exit_reasons! {
    0 EXCEPTION_OR_NMI "Exception or non-maskable interrupt (NMI)";
    1 EXTERNAL_INTERRUPT "External interrupt";
    2 TRIPLE_FAULT "Triple fault";
    3 INIT_SIGNAL "INIT signal";
    4 STARTUP_IPI "Start-up IPI (SIPI)";
    5 IO_SMI "I/O system-management interrupt (SMI)";
    6 OTHER_SMI "Other SMI";
    7 INTERRUPT_WINDOW "Interrupt window";
    8 NMI_WINDOW "NMI window";
    9 TASK_SWITCH "Task switch";
    10 CPUID "CPUID";
    11 GETSEC "GETSEC";
    12 HLT "HLT";
    13 INVD "INVD";
    14 INVLPG "INVLPG";
    15 RDPMC "RDPMC";
    16 RDTSC "RDTSC";
    17 RSM "RSM";
    18 VMCALL "VMCALL";
    19 VMCLEAR "VMCLEAR";
    20 VMLAUNCH "VMLAUNCH";
    21 VMPTRLD "VMPTRLD";
    22 VMPTRST "VMPTRST";
    23 VMREAD "VMREAD";
    24 VMRESUME "VMRESUME";
    25 VMWRITE "VMWRITE";
    26 VMXOFF "VMXOFF";
    27 VMXON "VMXON";
    28 CR_ACCESS "Control-register accesses";
    29 MOV_DR "MOV DR";
    30 IO_INSTRUCTION "I/O instruction";
    31 RDMSR "RDMSR";
    32 WRMSR "WRMSR";
    33 INVALID_GUEST_STATE "VM-entry failure due to invalid guest state";
    34 MSR_LOADING "VM-entry failure due to MSR loading";
    36 MWAIT "MWAIT";
    37 MONITOR_TRAP_FLAG "Monitor trap flag";
    39 MONITOR "MONITOR";
    40 PAUSE "PAUSE";
    41 MACHINE_CHECK "VM-entry failure due to machine-check event";
    43 TPR_BELOW_THRESHOLD "TPR below threshold";
    44 APIC_ACCESS "APIC access";
    45 VIRTUALIZED_EOI "Virtualized EOI";
    46 GDTR_OR_IDTR_ACCESS "Access to GDTR or IDTR";
    47 LDTR_OR_TR_ACCESS "Access to LDTR or TR";
    48 EPT_VIOLATION "EPT violation";
    49 EPT_MISCONFIGURATION "EPT misconfiguration";
    50 INVEPT "INVEPT";
    51 RDTSCP "RDTSCP";
    52 PREEMPTION_TIMER "VMX-preemption timer expired";
    53 INVVPID "INVVPID";
    54 WBINVD "WBINVD or WBNOINVD";
    55 XSETBV "XSETBV";
    56 APIC_WRITE "APIC write";
    57 RDRAND "RDRAND";
    58 INVPCID "INVPCID";
    59 VMFUNC "VMFUNC";
    60 ENCLS "ENCLS";
    61 RDSEED "RDSEED";
    62 PAGE_MODIFICATION_LOG_FULL "Page-modification log full";
    63 XSAVES "XSAVES";
    64 XRSTORS "XRSTORS";
    65 PCONFIG "PCONFIG";
    66 SPP_RELATED_EVENT "SPP-related event";
    67 UMWAIT "UMWAIT";
    68 TPAUSE "TPAUSE";
    69 LOADIWKEY "LOADIWKEY";
    70 ENCLV "ENCLV";
    72 ENQCMD_PASID_FAILURE "ENQCMD PASID translation failure";
    73 ENQCMDS_PASID_FAILURE "ENQCMDS PASID translation failure";
    74 BUS_LOCK "Bus lock";
    75 INSTRUCTION_TIMEOUT "Instruction timeout";
    76 SEAMCALL "SEAMCALL";
    77 TDCALL "TDCALL";
    78 RDMSRLIST "RDMSRLIST";
    79 WRMSRLIST "WRMSRLIST";
    80 URDMSR "URDMSR";
    81 UWRMSR "UWRMSR";
    84 RDMSR_IMMEDIATE "RDMSR with immediate operand";
    85 WRMSRNS_IMMEDIATE "WRMSRNS with immediate operand";
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
}
