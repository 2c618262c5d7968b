//! Nested states built by hand: valid ones that KVM accepts, and for every rule of
//! KVM_SET_NESTED_STATE one that breaks just that rule.
//!
//! They are tried on a real kernel too, so they come with what the vCPU and the guest's memory must
//! be like: see [`BreakingBlob`].

use super::set_rules::{SIZE_WITH_SHADOW, SIZE_WITH_VMCS12, SetRefusal};
use super::{Flags, HEADER_SIZE, NestedState, SmmFlags, VMCS12_STATE_SIZE, VmxFlags};
use crate::addr::L1Phys;
use crate::vmx::capability::{Capability, ControlField, KVM_6_1_ICELAKE};
use crate::vmx::controls::{EntryControls, ExitControls, Primary, Secondary};
use crate::vmx::vmcs12::SHADOW_VMCS;
use crate::vmx::{Field, Vmcs12};
use crate::x86::control::{cr0, cr4, efer};

/// VMXON region of every state here.
pub const VMXON: L1Phys = L1Phys(0x1000);
/// Current VMCS of every state here that has one.
pub const VMCS12: L1Phys = L1Phys(0x2000);
/// Link pointer of the states with VMCS shadowing.
pub const SHADOW: L1Phys = L1Phys(0x3000);
/// VMREAD and VMWRITE bitmaps of the states with VMCS shadowing.
pub const BITMAPS: [L1Phys; 2] = [L1Phys(0x4000), L1Phys(0x5000)];

/// A state that breaks one rule, with what else the rule depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakingBlob {
    /// The rule that it breaks.
    pub rule: SetRefusal,
    /// The bytes. For rules that end in EFAULT they must end where the caller's memory ends.
    pub bytes: Vec<u8>,
    /// The vCPU must be in SMM.
    pub in_smm: bool,
    /// The guest's CPUID must have VMX.
    pub guest_has_vmx: bool,
    /// What L1's memory must hold: the kernel reads the first word behind the link pointer.
    pub memory: Vec<(L1Phys, Vec<u8>)>,
}

/// In VMX operation, no current VMCS.
#[must_use]
pub fn vmxon() -> NestedState {
    let mut state = NestedState::default();
    state.header_mut().set_vmxon_pa(Some(VMXON));
    state
}

/// In VMX root operation with a current VMCS; its fields make a VM entry that KVM accepts.
#[must_use]
pub fn with_vmcs12(capability: Capability<'_>) -> NestedState {
    let mut state = vmxon();
    state.header_mut().set_vmcs12_pa(Some(VMCS12));
    state.set_regions(Some(vmcs12(capability)), None);
    state
}

/// L2 runs.
#[must_use]
pub fn guest_mode(capability: Capability<'_>) -> NestedState {
    let mut state = with_vmcs12(capability);
    state.header_mut().set_flags(Flags::GUEST_MODE);
    state
}

/// L2 runs with VMCS shadowing. L1's memory must hold a shadow VMCS: see [`shadow_memory`].
#[must_use]
pub fn guest_mode_with_shadow(capability: Capability<'_>) -> NestedState {
    let mut state = guest_mode(capability);
    let mut vmcs12 = vmcs12(capability);
    let primary = vmcs12.get32(Field::CPU_BASED_VM_EXEC_CONTROL)
        | Primary::ACTIVATE_SECONDARY_CONTROLS.bits();
    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, primary.into());
    let secondary = Secondary::VMCS_SHADOWING.bits();
    vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, secondary.into());
    vmcs12.set(Field::VMCS_LINK_POINTER, SHADOW.0);
    vmcs12.set(Field::VMREAD_BITMAP, BITMAPS[0].0);
    vmcs12.set(Field::VMWRITE_BITMAP, BITMAPS[1].0);
    let mut shadow = Vmcs12::new();
    shadow.set_shadow(true);
    state.set_regions(Some(vmcs12), Some(shadow));
    state
}

/// What L1's memory must hold for [`guest_mode_with_shadow`]: the first word of a shadow VMCS.
#[must_use]
pub fn shadow_memory() -> Vec<(L1Phys, Vec<u8>)> {
    let word = crate::vmx::vmcs12::VMCS12_REVISION | SHADOW_VMCS;
    vec![(SHADOW, word.to_le_bytes().to_vec())]
}

/// A vmcs12 that passes KVM's checks: 64-bit host and guest, no feature beyond what must be on.
#[must_use]
pub fn vmcs12(capability: Capability<'_>) -> Vmcs12 {
    let control = |field, wanted: u32| capability.allowed(field).adjust(wanted.into());
    let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE.bits();
    let entry = EntryControls::IA32E_MODE_GUEST.bits();
    let long_mode_cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    let long_mode_cr4 = cr4::PAE | cr4::VMXE;
    let mut vmcs12 = Vmcs12::new();
    for (field, value) in [
        (
            Field::PIN_BASED_VM_EXEC_CONTROL,
            control(ControlField::PinBased, 0),
        ),
        (
            Field::CPU_BASED_VM_EXEC_CONTROL,
            control(ControlField::Primary, 0),
        ),
        (Field::VM_EXIT_CONTROLS, control(ControlField::Exit, exit)),
        (
            Field::VM_ENTRY_CONTROLS,
            control(ControlField::Entry, entry),
        ),
        (Field::VMCS_LINK_POINTER, u64::MAX),
        // Host state: where L1 goes on after an exit.
        (Field::HOST_CR0, long_mode_cr0),
        (Field::HOST_CR3, 0x6000),
        (Field::HOST_CR4, long_mode_cr4),
        (Field::HOST_CS_SELECTOR, 0x08),
        (Field::HOST_SS_SELECTOR, 0x10),
        (Field::HOST_DS_SELECTOR, 0x10),
        (Field::HOST_ES_SELECTOR, 0x10),
        (Field::HOST_TR_SELECTOR, 0x18),
        (Field::HOST_RSP, 0x9000),
        (Field::HOST_RIP, 0xa000),
        (Field::HOST_IA32_EFER, efer::LME | efer::LMA),
        // Guest state.
        (Field::GUEST_CR0, long_mode_cr0),
        (Field::GUEST_CR3, 0x6000),
        (Field::GUEST_CR4, long_mode_cr4),
        (Field::GUEST_IA32_EFER, efer::LME | efer::LMA),
        (Field::GUEST_DR7, 0x400),
        (Field::GUEST_RFLAGS, 2),
        (Field::GUEST_RSP, 0xb000),
        (Field::GUEST_RIP, 0xc000),
        (Field::GUEST_CS_SELECTOR, 0x08),
        (Field::GUEST_CS_AR_BYTES, 0xa09b),
        (Field::GUEST_TR_SELECTOR, 0x18),
        (Field::GUEST_TR_AR_BYTES, 0x8b),
        (Field::GUEST_TR_LIMIT, 0x67),
        (Field::GUEST_LDTR_AR_BYTES, 0x1_0000),
    ] {
        vmcs12.set(field, value);
    }
    for (selector, limit, access_rights) in [
        (
            Field::GUEST_SS_SELECTOR,
            Field::GUEST_SS_LIMIT,
            Field::GUEST_SS_AR_BYTES,
        ),
        (
            Field::GUEST_DS_SELECTOR,
            Field::GUEST_DS_LIMIT,
            Field::GUEST_DS_AR_BYTES,
        ),
        (
            Field::GUEST_ES_SELECTOR,
            Field::GUEST_ES_LIMIT,
            Field::GUEST_ES_AR_BYTES,
        ),
        (
            Field::GUEST_FS_SELECTOR,
            Field::GUEST_FS_LIMIT,
            Field::GUEST_FS_AR_BYTES,
        ),
        (
            Field::GUEST_GS_SELECTOR,
            Field::GUEST_GS_LIMIT,
            Field::GUEST_GS_AR_BYTES,
        ),
    ] {
        vmcs12.set(selector, 0x10);
        vmcs12.set(limit, 0xffff_ffff);
        vmcs12.set(access_rights, 0xc093);
    }
    vmcs12.set(Field::GUEST_CS_LIMIT, 0xffff_ffff);
    vmcs12
}

/// A state that breaks just this rule, starting from a valid one. `None`: no state breaks it (the
/// kernel ran out of memory).
#[must_use]
pub fn breaking_blob(rule: SetRefusal) -> Option<BreakingBlob> {
    use SetRefusal as R;
    let capability = Capability::new(&KVM_6_1_ICELAKE);
    let base = match rule {
        R::OutOfMemory => return None,
        R::SmmFlagsWithoutVmxon | R::Vmcs12WithoutVmxon | R::FlagsWithoutVmxon => {
            NestedState::default()
        }
        R::UnknownFlags
        | R::GuestLacksVmx
        | R::VmxonPointer
        | R::UnknownSmmFlags
        | R::UnknownVmxFlags
        | R::SmmFlagsOutsideSmm
        | R::SmmGuestModeWithoutSmmVmxon
        | R::HeaderFault
        | R::SizeBelowHeader
        | R::RunPendingOutsideGuestMode
        | R::NotVmxFormat => vmxon(),
        R::EvmcsNotEnabled
        | R::SizeBelowVmcs12
        | R::Vmcs12IsVmxon
        | R::Vmcs12Pointer
        | R::Vmcs12Absent
        | R::Vmcs12Fault
        | R::Vmcs12Revision => with_vmcs12(capability),
        R::SizeBelowShadow | R::ShadowFault | R::ShadowRevision | R::ShadowIndicator => {
            guest_mode_with_shadow(capability)
        }
        R::SmmGuestModeInGuestMode
        | R::GuestModeInSmm
        | R::EntryControls
        | R::EntryHostState
        | R::EntryGuestState
        | R::EntryFailed => guest_mode(capability),
    };
    let shadowing = base.shadow_vmcs12().is_some();
    Some(BreakingBlob {
        rule,
        bytes: break_rule(rule, base),
        in_smm: matches!(rule, R::GuestModeInSmm | R::SmmGuestModeWithoutSmmVmxon),
        guest_has_vmx: rule != R::GuestLacksVmx,
        memory: if shadowing {
            shadow_memory()
        } else {
            Vec::new()
        },
    })
}

/// Changes the one thing that breaks the rule.
fn break_rule(rule: SetRefusal, mut state: NestedState) -> Vec<u8> {
    use SetRefusal as R;
    let header = state.header_mut();
    let flags = header.flags();
    match rule {
        R::SizeBelowHeader => header.set_size(HEADER_SIZE as u32 - 1),
        R::UnknownFlags => header.set_flags(flags | Flags::from_bits_retain(0x10)),
        R::RunPendingOutsideGuestMode => header.set_flags(flags | Flags::RUN_PENDING),
        R::NotVmxFormat => header.set_format(super::FORMAT_SVM),
        R::SmmFlagsWithoutVmxon | R::SmmFlagsOutsideSmm => header.set_smm_flags(SmmFlags::VMXON),
        R::Vmcs12WithoutVmxon => header.set_vmcs12_pa(Some(VMCS12)),
        R::FlagsWithoutVmxon => header.set_flags(flags | Flags::MTF_PENDING),
        R::VmxonPointer => header.set_vmxon_pa(Some(L1Phys(VMXON.0 + 1))),
        R::SmmGuestModeInGuestMode | R::SmmGuestModeWithoutSmmVmxon => {
            header.set_smm_flags(SmmFlags::GUEST_MODE);
        }
        R::UnknownSmmFlags => header.set_smm_flags(SmmFlags::from_bits_retain(4)),
        R::UnknownVmxFlags => header.set_vmx_flags(VmxFlags::from_bits_retain(2)),
        R::EvmcsNotEnabled => header.set_flags(flags | Flags::EVMCS),
        R::SizeBelowVmcs12 => header.set_size(SIZE_WITH_VMCS12 as u32 - 1),
        R::Vmcs12IsVmxon => header.set_vmcs12_pa(Some(VMXON)),
        R::Vmcs12Pointer => header.set_vmcs12_pa(Some(L1Phys(VMCS12.0 + 1))),
        R::Vmcs12Absent => header.set_vmcs12_pa(None),
        R::SizeBelowShadow => header.set_size(SIZE_WITH_SHADOW as u32 - 1),
        _ => {}
    }
    if let Some(vmcs12) = state.vmcs12_mut() {
        match rule {
            R::Vmcs12Revision => vmcs12.set_revision(1),
            R::EntryControls => vmcs12.set(Field::PIN_BASED_VM_EXEC_CONTROL, 0),
            R::EntryHostState => vmcs12.set(Field::HOST_CS_SELECTOR, 0),
            R::EntryGuestState => vmcs12.set(Field::GUEST_CR0, 0),
            // Above every MAXPHYADDR.
            R::EntryFailed => vmcs12.set(Field::GUEST_CR3, 1 << 52),
            _ => {}
        }
    }
    if let Some(shadow) = state.shadow_vmcs12_mut() {
        match rule {
            R::ShadowRevision => shadow.set_revision(1),
            R::ShadowIndicator => shadow.set_shadow(false),
            _ => {}
        }
    }
    let mut bytes = state.to_bytes();
    match rule {
        R::HeaderFault => bytes.truncate(HEADER_SIZE - 1),
        R::Vmcs12Fault => bytes.truncate(SIZE_WITH_VMCS12 - 1),
        R::ShadowFault => bytes.truncate(VMCS12_STATE_SIZE + 1),
        _ => {}
    }
    bytes
}
