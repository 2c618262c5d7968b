//! What comes first of all that waits at one boundary between instructions of L2 (SDM Vol. 3A "Priority
//! Among Concurrent Events", Vol. 3C "Other Causes of VM Exits" and the sections of each), as rows. The
//! software backend's boundary follows them; its tests arrange every row with all that follow it.

use super::ExitReason;

/// One thing that may wait.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name, unique.
    pub id: &'static str,
    /// Title of the SDM section that gives its place.
    pub section: &'static str,
    /// What happens.
    pub text: &'static str,
    /// The exit that it leads to; `None` if it is delivered instead.
    pub reason: Option<ExitReason>,
}

macro_rules! rows {
    ($($id:literal $section:literal $reason:expr, $text:literal;)*) => {
        /// The rows, first what comes first.
        pub const BOUNDARY: &[Row] = &[$(Row {
            id: $id,
            section: $section,
            text: $text,
            reason: $reason,
        }),*];
    };
}

rows! {
    "injected" "Event Injection" None,
        "the event that VM entry injects is delivered";
    "tpr-threshold" "VM Exits Induced by the TPR Threshold" Some(ExitReason::TPR_BELOW_THRESHOLD),
        "with VTPR below the TPR threshold at VM entry, L2 exits";
    "monitor-trap" "Monitor Trap Flag" Some(ExitReason::MONITOR_TRAP_FLAG),
        "a pending MTF VM exit comes";
    "debug" "Delivery of Pending Debug Exceptions after VM Entry" Some(ExitReason::EXCEPTION_OR_NMI),
        "a pending debug exception is raised, unless MOV SS blocks it";
    "preemption-timer" "VMX-Preemption Timer" Some(ExitReason::PREEMPTION_TIMER),
        "an expired preemption timer exits";
    "nmi-window" "NMI-Window Exiting" Some(ExitReason::NMI_WINDOW),
        "with \"NMI-window exiting\" and no virtual-NMI blocking, L2 exits";
    "nmi" "Priority Among Concurrent Events" Some(ExitReason::EXCEPTION_OR_NMI),
        "an NMI exits with \"NMI exiting\", else it is delivered";
    "interrupt-window" "Interrupt-Window Exiting and Virtual-Interrupt Delivery" Some(ExitReason::INTERRUPT_WINDOW),
        "with \"interrupt-window exiting\" and the window open, L2 exits";
    "virtual-interrupt" "Interrupt-Window Exiting and Virtual-Interrupt Delivery" None,
        "a virtual interrupt that was recognised is delivered";
    "external-interrupt" "Priority Among Concurrent Events" Some(ExitReason::EXTERNAL_INTERRUPT),
        "an external interrupt exits with \"external-interrupt exiting\", else it is delivered";
}

/// The place of a row: smaller comes first.
#[must_use]
pub fn place(id: &str) -> Option<usize> {
    BOUNDARY.iter().position(|row| row.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_found() {
        for (at, row) in BOUNDARY.iter().enumerate() {
            assert_eq!(place(row.id), Some(at), "{} twice", row.id);
            assert!(!row.section.is_empty() && !row.text.is_empty());
        }
        assert_eq!(place("smi"), None);
    }
}
