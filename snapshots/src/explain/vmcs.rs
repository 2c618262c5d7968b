//! A vmcs12 in sections: last exit, controls by name, pointers, event injection, guest and host state.

use super::{Section, qualification};
use nvmx_core::nested::{Flags, NestedState};
use nvmx_core::vmx::controls::{
    EntryControls, ExitControls, PinBased, Primary, Secondary, Tertiary,
};
use nvmx_core::vmx::exit::ExitReason;
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_core::x86::ownership::Owner;

/// All sections of the current vmcs12.
pub(super) fn sections(vmcs: &Vmcs12, nested: &NestedState) -> Vec<Section> {
    vec![
        last_exit(vmcs),
        entry(vmcs, nested),
        controls(vmcs),
        pointers(vmcs),
        guest(vmcs, nested.guest_mode()),
        host(vmcs),
    ]
}

/// The shadow vmcs12 in short: it is L2's own, as a hypervisor.
pub(super) fn shadow(vmcs: &Vmcs12) -> Section {
    let mut section = Section::new("Shadow vmcs12 (at the VMCS link pointer)");
    section.owner = Some(Owner::L2);
    section.hex("revision", vmcs.revision().into());
    section.add(
        "shadow-VMCS indicator",
        if vmcs.is_shadow() { "1" } else { "0" },
    );
    section.hex("launch_state", vmcs.launch_state_raw().into());
    for (field, value) in vmcs.iter().filter(|(_, value)| *value != 0) {
        section.hex(field.to_string(), value);
    }
    section
}

fn last_exit(vmcs: &Vmcs12) -> Section {
    let mut section = Section::new("Last VM exit from L2 to L1");
    section.owner = Some(Owner::L1);
    let reason = ExitReason(vmcs.get32(Field::VM_EXIT_REASON));
    let qualification = vmcs.get(Field::EXIT_QUALIFICATION);
    let error = vmcs.get32(Field::VM_INSTRUCTION_ERROR);
    if reason.0 == 0 && vmcs.get(Field::VM_EXIT_INTR_INFO) == 0 {
        section.add("exit reason", "none recorded yet");
    } else {
        let failed = if reason.is_entry_failure() {
            " (VM-entry failure)"
        } else {
            ""
        };
        section.note(
            "exit reason",
            format!("{:#x}", reason.0),
            format!("{reason}{failed}"),
        );
        let words = qualification::decode(reason, qualification).unwrap_or_default();
        section.note("exit qualification", format!("{qualification:#x}"), words);
    }
    if let Some(words) = qualification::interruption(
        vmcs.get(Field::VM_EXIT_INTR_INFO),
        vmcs.get(Field::VM_EXIT_INTR_ERROR_CODE),
    ) {
        let value = vmcs.get(Field::VM_EXIT_INTR_INFO);
        section.note("interruption information", format!("{value:#x}"), words);
    }
    if let Some(words) = qualification::interruption(
        vmcs.get(Field::IDT_VECTORING_INFO_FIELD),
        vmcs.get(Field::IDT_VECTORING_ERROR_CODE),
    ) {
        let value = vmcs.get(Field::IDT_VECTORING_INFO_FIELD);
        section.note("IDT-vectoring information", format!("{value:#x}"), words);
    }
    for (name, field) in [
        ("instruction length", Field::VM_EXIT_INSTRUCTION_LEN),
        ("instruction information", Field::VMX_INSTRUCTION_INFO),
        ("guest-physical address", Field::GUEST_PHYSICAL_ADDRESS),
        ("guest-linear address", Field::GUEST_LINEAR_ADDRESS),
    ] {
        let value = vmcs.get(field);
        if value != 0 {
            section.hex(name, value);
        }
    }
    if error != 0 {
        section.add("VM-instruction error", error.to_string());
    }
    section
}

fn entry(vmcs: &Vmcs12, nested: &NestedState) -> Section {
    let mut section = Section::new("VM entry");
    section.owner = Some(Owner::L1);
    let pending = nested.flags().contains(Flags::RUN_PENDING);
    section.add("entry pending", if pending { "yes" } else { "no" });
    let launched = if vmcs.launch_state_raw() == 0 {
        "clear"
    } else {
        "launched"
    };
    let meaning = match (nested.guest_mode(), vmcs.launch_state_raw()) {
        (true, 0) => "KVM marks it launched at the VM exit",
        (true, _) => "",
        (false, 0) => "VMLAUNCH may enter",
        (false, _) => "VMRESUME may enter",
    };
    section.note("launch state", launched, meaning);
    let information = vmcs.get(Field::VM_ENTRY_INTR_INFO_FIELD);
    let code = vmcs.get(Field::VM_ENTRY_EXCEPTION_ERROR_CODE);
    match qualification::interruption(information, code) {
        Some(words) => section.note("event injection", format!("{information:#x}"), words),
        None => section.add("event injection", "none"),
    }
    if vmcs.abort() != 0 {
        section.add("VMX abort", vmcs.abort().to_string());
    }
    section
}

fn controls(vmcs: &Vmcs12) -> Section {
    fn names(names: impl Iterator<Item = &'static str>, unnamed: u64) -> String {
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        if unnamed != 0 {
            names.push(format!("others {unnamed:#x}"));
        }
        names.join(", ")
    }
    let mut section = Section::new("Controls");
    section.owner = Some(Owner::L1);
    // The bits without a row are the default1 ones, for the most part: said once, in hexadecimal.
    macro_rules! control {
        ($title:literal, $type:ident, $field:ident) => {{
            let value = vmcs.get(Field::$field);
            let set = $type::from_bits_retain(value as _);
            let text = names(set.names(), u64::from(set.unnamed()));
            section.note($title, format!("{value:#x}"), text);
            set
        }};
    }
    control!("pin-based", PinBased, PIN_BASED_VM_EXEC_CONTROL);
    let primary = control!("primary", Primary, CPU_BASED_VM_EXEC_CONTROL);
    if primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
        control!("secondary", Secondary, SECONDARY_VM_EXEC_CONTROL);
    }
    if primary.contains(Primary::ACTIVATE_TERTIARY_CONTROLS) {
        control!("tertiary", Tertiary, TERTIARY_VM_EXEC_CONTROL);
    }
    control!("exit", ExitControls, VM_EXIT_CONTROLS);
    control!("entry", EntryControls, VM_ENTRY_CONTROLS);
    section.hex("exception bitmap", vmcs.get(Field::EXCEPTION_BITMAP));
    for (name, mask, shadow) in [
        (
            "CR0 mask/shadow",
            Field::CR0_GUEST_HOST_MASK,
            Field::CR0_READ_SHADOW,
        ),
        (
            "CR4 mask/shadow",
            Field::CR4_GUEST_HOST_MASK,
            Field::CR4_READ_SHADOW,
        ),
    ] {
        section.add(
            name,
            format!("{:#x} / {:#x}", vmcs.get(mask), vmcs.get(shadow)),
        );
    }
    if primary.contains(Primary::USE_TSC_OFFSETTING) {
        let offset = vmcs.get(Field::TSC_OFFSET);
        section.note(
            "TSC offset",
            format!("{offset:#x}"),
            format!("L2's TSC is L1's {:+}", offset as i64),
        );
    }
    section
}

fn pointers(vmcs: &Vmcs12) -> Section {
    let mut section = Section::new("Pointers");
    section.owner = Some(Owner::L1);
    let primary = Primary::from_bits_retain(vmcs.get32(Field::CPU_BASED_VM_EXEC_CONTROL));
    let secondary = if primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
        Secondary::from_bits_retain(vmcs.get32(Field::SECONDARY_VM_EXEC_CONTROL))
    } else {
        Secondary::empty()
    };
    let pin = PinBased::from_bits_retain(vmcs.get32(Field::PIN_BASED_VM_EXEC_CONTROL));
    let link = vmcs.get(Field::VMCS_LINK_POINTER);
    section.add(
        "VMCS link",
        if link == u64::MAX {
            "none".into()
        } else {
            format!("{link:#x}")
        },
    );
    let apic = secondary.contains(Secondary::VIRTUALIZE_APIC_ACCESSES);
    let shadowing = secondary.contains(Secondary::VMCS_SHADOWING);
    let io = primary.contains(Primary::USE_IO_BITMAPS);
    for (name, field, used) in [
        ("I/O bitmap A", Field::IO_BITMAP_A, io),
        ("I/O bitmap B", Field::IO_BITMAP_B, io),
        (
            "MSR bitmap",
            Field::MSR_BITMAP,
            primary.contains(Primary::USE_MSR_BITMAPS),
        ),
        (
            "EPTP",
            Field::EPT_POINTER,
            secondary.contains(Secondary::ENABLE_EPT),
        ),
        (
            "virtual-APIC page",
            Field::VIRTUAL_APIC_PAGE_ADDR,
            primary.contains(Primary::USE_TPR_SHADOW),
        ),
        ("APIC-access page", Field::APIC_ACCESS_ADDR, apic),
        (
            "posted-interrupt descriptor",
            Field::POSTED_INTR_DESC_ADDR,
            pin.contains(PinBased::PROCESS_POSTED_INTERRUPTS),
        ),
        ("VMREAD bitmap", Field::VMREAD_BITMAP, shadowing),
        ("VMWRITE bitmap", Field::VMWRITE_BITMAP, shadowing),
    ] {
        if used {
            section.hex(name, vmcs.get(field));
        }
    }
    if secondary.contains(Secondary::ENABLE_VPID) {
        section.hex("VPID", vmcs.get(Field::VIRTUAL_PROCESSOR_ID));
    }
    for (name, count, address) in [
        (
            "MSR store on exit",
            Field::VM_EXIT_MSR_STORE_COUNT,
            Field::VM_EXIT_MSR_STORE_ADDR,
        ),
        (
            "MSR load on exit",
            Field::VM_EXIT_MSR_LOAD_COUNT,
            Field::VM_EXIT_MSR_LOAD_ADDR,
        ),
        (
            "MSR load on entry",
            Field::VM_ENTRY_MSR_LOAD_COUNT,
            Field::VM_ENTRY_MSR_LOAD_ADDR,
        ),
    ] {
        if vmcs.get(count) != 0 {
            section.add(
                name,
                format!("{} entries at {:#x}", vmcs.get(count), vmcs.get(address)),
            );
        }
    }
    section
}

fn guest(vmcs: &Vmcs12, running: bool) -> Section {
    let mut section = Section::new(if running {
        "Guest state in vmcs12 (as KVM last synchronised it)"
    } else {
        "Guest state in vmcs12 (for the next entry)"
    });
    section.owner = Some(Owner::L2);
    for (name, field) in [
        ("RIP", Field::GUEST_RIP),
        ("RSP", Field::GUEST_RSP),
        ("RFLAGS", Field::GUEST_RFLAGS),
        ("CR0", Field::GUEST_CR0),
        ("CR3", Field::GUEST_CR3),
        ("CR4", Field::GUEST_CR4),
        ("EFER", Field::GUEST_IA32_EFER),
        ("DR7", Field::GUEST_DR7),
    ] {
        section.hex(name, vmcs.get(field));
    }
    macro_rules! segment {
        ($name:literal, $selector:ident, $base:ident, $limit:ident, $ar:ident) => {
            section.add(
                $name,
                format!(
                    "{:#06x} base {:#x} limit {:#x} access {:#x}",
                    vmcs.get(Field::$selector),
                    vmcs.get(Field::$base),
                    vmcs.get(Field::$limit),
                    vmcs.get(Field::$ar)
                ),
            );
        };
    }
    segment!(
        "CS",
        GUEST_CS_SELECTOR,
        GUEST_CS_BASE,
        GUEST_CS_LIMIT,
        GUEST_CS_AR_BYTES
    );
    segment!(
        "SS",
        GUEST_SS_SELECTOR,
        GUEST_SS_BASE,
        GUEST_SS_LIMIT,
        GUEST_SS_AR_BYTES
    );
    segment!(
        "DS",
        GUEST_DS_SELECTOR,
        GUEST_DS_BASE,
        GUEST_DS_LIMIT,
        GUEST_DS_AR_BYTES
    );
    segment!(
        "ES",
        GUEST_ES_SELECTOR,
        GUEST_ES_BASE,
        GUEST_ES_LIMIT,
        GUEST_ES_AR_BYTES
    );
    segment!(
        "FS",
        GUEST_FS_SELECTOR,
        GUEST_FS_BASE,
        GUEST_FS_LIMIT,
        GUEST_FS_AR_BYTES
    );
    segment!(
        "GS",
        GUEST_GS_SELECTOR,
        GUEST_GS_BASE,
        GUEST_GS_LIMIT,
        GUEST_GS_AR_BYTES
    );
    segment!(
        "LDTR",
        GUEST_LDTR_SELECTOR,
        GUEST_LDTR_BASE,
        GUEST_LDTR_LIMIT,
        GUEST_LDTR_AR_BYTES
    );
    segment!(
        "TR",
        GUEST_TR_SELECTOR,
        GUEST_TR_BASE,
        GUEST_TR_LIMIT,
        GUEST_TR_AR_BYTES
    );
    for (name, base, limit) in [
        ("GDTR", Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
        ("IDTR", Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
    ] {
        section.add(
            name,
            format!("base {:#x} limit {:#x}", vmcs.get(base), vmcs.get(limit)),
        );
    }
    let activity = vmcs.get(Field::GUEST_ACTIVITY_STATE);
    section.note(
        "activity",
        activity.to_string(),
        qualification::activity(activity),
    );
    let blocked = vmcs.get(Field::GUEST_INTERRUPTIBILITY_INFO);
    section.note(
        "interruptibility",
        format!("{blocked:#x}"),
        qualification::interruptibility(blocked),
    );
    let pending = vmcs.get(Field::GUEST_PENDING_DBG_EXCEPTIONS);
    if pending != 0 {
        section.hex("pending debug exceptions", pending);
    }
    let pin = PinBased::from_bits_retain(vmcs.get32(Field::PIN_BASED_VM_EXEC_CONTROL));
    if pin.contains(PinBased::ACTIVATE_PREEMPTION_TIMER) {
        section.hex(
            "preemption timer",
            vmcs.get(Field::VMX_PREEMPTION_TIMER_VALUE),
        );
    }
    section
}

fn host(vmcs: &Vmcs12) -> Section {
    let mut section = Section::new("Host state in vmcs12 (where an exit takes L1)");
    section.owner = Some(Owner::L1);
    for (name, field) in [
        ("RIP", Field::HOST_RIP),
        ("RSP", Field::HOST_RSP),
        ("CR0", Field::HOST_CR0),
        ("CR3", Field::HOST_CR3),
        ("CR4", Field::HOST_CR4),
        ("EFER", Field::HOST_IA32_EFER),
        ("CS", Field::HOST_CS_SELECTOR),
        ("SS", Field::HOST_SS_SELECTOR),
        ("TR", Field::HOST_TR_SELECTOR),
        ("FS base", Field::HOST_FS_BASE),
        ("GS base", Field::HOST_GS_BASE),
        ("TR base", Field::HOST_TR_BASE),
        ("GDTR base", Field::HOST_GDTR_BASE),
        ("IDTR base", Field::HOST_IDTR_BASE),
    ] {
        section.hex(name, vmcs.get(field));
    }
    section
}
