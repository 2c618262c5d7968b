//! What the model's native code does otherwise than a processor (README "What it does not do").

use super::faults::{reason, touches_memory};
use super::*;
use crate::code::met;
use iced_x86::{FlowControl, Mnemonic};
use nvmx_core::x86::control::cr0;
use nvmx_core::x86::cr_write::is_canonical;

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "model-segment-checks",
        against: BOTH,
        reason: "the model's native code checks neither limits nor types of segments outside 64-bit mode (README \"What it does not do\"); the processor answers #GP or #SS",
        holds: |p, d| {
            const REFUSED: &[u64] = &[12, 13];
            let vectoring: u64 = p.right.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
            // A real mode's vector that EPT hides.
            let delivering = vectoring & 0x8000_0700 == 0x8000_0300
                && REFUSED.contains(&(vectoring & 0xff))
                && p.left.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD) != vectoring;
            let triple = reason(p.right) == Some(2)
                && (reason(p.left) != Some(2) || d.what == "CR2" && d.right == 0);
            let refused = |record| matches!(met(record), Some(12 | 13));
            let other = refused(p.right) && !refused(p.left);
            let is_64_bit = p.begins_in_64_bit() && p.before.get(Field::GUEST_CR0) & cr0::PE != 0;
            (!is_64_bit || !p.is_64_bit())
                && p.case.instructions().iter().any(touches_memory)
                && (p.right_alone(REFUSED).is_some_and(|i| touches_memory(&i))
                    || other
                    || delivering
                    || triple)
        },
    },
    Row {
        id: "model-sse-alignment",
        against: BOTH,
        reason: "the model's native code does not check the alignment of SSE operands (README \"What it does not do\"); the processor answers #GP",
        holds: |p, _| {
            let is_aligned = |m| matches!(m, Mnemonic::Movaps | Mnemonic::Movdqa);
            let on_the_way = code::met_on_the_way(p.right, 13) && !code::met_on_the_way(p.left, 13);
            p.case.has(is_aligned)
                && (on_the_way
                    || p.right_alone(&[13])
                        .is_some_and(|i| is_aligned(i.mnemonic())))
        },
    },
    Row {
        id: "model-branch-target",
        against: BOTH,
        reason: "a near branch to an address that is not canonical is #GP of the branch (SDM Vol. 2A \"CALL\", \"JMP\", \"RET\"); in the model's native code of the target (README \"What it does not do\")",
        holds: |p, _| {
            let rip: u64 = p.left.vmcs12.get(Field::GUEST_RIP);
            p.right_alone(&[13]).is_some_and(|i| {
                matches!(
                    i.flow_control(),
                    FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return
                )
            }) && met(p.left) == Some(13)
                && (reason(p.left) != Some(0) || !is_canonical(rip, 48))
        },
    },
];
