//! KVM_SET_NESTED_STATE: what the kernel refuses, rule by rule in its order, and what it does with
//! what it accepts (`kvm_arch_vcpu_ioctl` in `arch/x86/kvm/x86.c` and `vmx_set_nested_state` in
//! `arch/x86/kvm/vmx/nested.c`; Linux 6.1.192, the same text in 6.12). Both kernels were asked: for
//! every state of [`super::specimen::breaking_blob`] they answered what the table says, and left
//! behind what [`SetRefusal::left_behind`] says (`tests/data/set-nested-state/answers.txt`).
//!
//! The kernel is not transactional. Behind the rules of [`Stage::Ioctl`] and [`Stage::Header`] it
//! leaves nested operation (`vmx_leave_nested`), and what fails after that leaves a vCPU whose old
//! nested state is gone. [`check`] is a pure function, so that a backend can ask first and change
//! nothing if the answer is no.

use super::convert::{has_preemption_timer, needs_shadow};
use super::{FORMAT_VMX, Flags, HEADER_SIZE, NestedState, SmmFlags, VMCS12_STATE_SIZE, VmxFlags};
use crate::addr::L1Phys;
use crate::vcpu::BackendError;
use crate::vmx::entry::checks::{Class, Rule};
use crate::vmx::vmcs12::{Layout, VMCS12_REVISION, VMCS12_SIZE, VMCS12_USED};
use crate::vmx::{Field, Vmcs12, VmxState};
use std::fmt;

/// Smallest `size` with which the kernel reads a vmcs12.
pub const SIZE_WITH_VMCS12: usize = HEADER_SIZE + VMCS12_USED;
/// Smallest `size` with which the kernel reads a shadow vmcs12.
pub const SIZE_WITH_SHADOW: usize = VMCS12_STATE_SIZE + VMCS12_USED;

/// TSC ticks of one tick of the preemption timer that KVM emulates, as a power of two.
const PREEMPTION_TIMER_RATE: u32 = 5;

/// `errno` of most refusals.
const EINVAL: i32 = 22;
/// `errno` where the bytes end before what the header promises.
const EFAULT: i32 = 14;
/// `errno` where the kernel has no memory.
const ENOMEM: i32 = 12;

/// Where in the kernel a rule is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The ioctl's own checks, in `x86.c`.
    Ioctl,
    /// Checks of the header: the vCPU is as it was.
    Header,
    /// Behind the point of no return: the vCPU has left nested operation, and whatever the steps
    /// before the refusal set (VMXON pointer, current VMCS, SMM flags) stays set.
    AfterLeavingNested,
}

/// What the ioctl answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// -1, with this `errno`.
    Errno(i32),
    /// A positive number and no `errno`: the kernel hands out `enum nvmx_vmentry_status` by mistake.
    /// Callers that test for a negative result take it as success.
    Positive(i32),
}

/// What a refusal leaves of a vCPU's nested state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftBehind {
    /// All that there was.
    Unchanged,
    /// Outside VMX operation.
    Nothing,
    /// VMX root operation at the new `vmxon_pa`, no current VMCS.
    Vmxon,
    /// VMX root operation with the new current VMCS. Its cached vmcs12 holds what was copied.
    VmxonWithVmcs12,
}

impl Answer {
    /// The number that the ioctl hands out, `errno` made negative.
    #[must_use]
    pub const fn returned(self) -> i32 {
        match self {
            Self::Errno(errno) => -errno,
            Self::Positive(number) => number,
        }
    }
}

macro_rules! rules {
    ($($step:literal $stage:ident $answer:ident($number:expr) $variant:ident $id:literal $text:literal;)*) => {
        /// A rule of KVM_SET_NESTED_STATE that a state breaks, in the kernel's order.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum SetRefusal {
            $(#[doc = concat!("What must hold: ", $text, ".")] $variant,)*
        }

        impl SetRefusal {
            /// Every rule, in the kernel's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The rule's name, unique.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)* }
            }

            /// What must hold.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The step of the kernel's code, counted from the ioctl's first check; steps that refuse
            /// nothing are counted too.
            #[must_use]
            pub const fn step(self) -> u32 {
                match self { $(Self::$variant => $step,)* }
            }

            /// Where in the kernel the rule is.
            #[must_use]
            pub const fn stage(self) -> Stage {
                match self { $(Self::$variant => Stage::$stage,)* }
            }

            /// What the ioctl answers.
            #[must_use]
            pub const fn answer(self) -> Answer {
                match self { $(Self::$variant => Answer::$answer($number),)* }
            }
        }
    };
}

rules! {
    2 Ioctl Errno(EFAULT) HeaderFault "set.header_readable" "the 128 bytes of the header can be read";
    3 Ioctl Errno(EINVAL) SizeBelowHeader "set.size_holds_header" "size is 128 or more";
    4 Ioctl Errno(EINVAL) UnknownFlags "set.flags_known" "flags has no bit but GUEST_MODE, RUN_PENDING, EVMCS, MTF_PENDING and GIF_SET";
    5 Ioctl Errno(EINVAL) RunPendingOutsideGuestMode "set.run_pending_needs_guest_mode" "RUN_PENDING comes with GUEST_MODE";
    6 Header Errno(EINVAL) NotVmxFormat "set.format_is_vmx" "format is 0 (VMX)";
    7 Header Errno(EINVAL) SmmFlagsWithoutVmxon "set.smm_flags_need_vmxon" "without vmxon_pa, smm.flags is 0";
    7 Header Errno(EINVAL) Vmcs12WithoutVmxon "set.vmcs12_needs_vmxon" "without vmxon_pa, there is no vmcs12_pa";
    7 Header Errno(EINVAL) FlagsWithoutVmxon "set.flags_need_vmxon" "without vmxon_pa, flags has no bit but EVMCS";
    7 Header Errno(EINVAL) GuestLacksVmx "set.vmxon_needs_cpuid" "with vmxon_pa, the guest's CPUID has VMX";
    7 Header Errno(EINVAL) VmxonPointer "set.vmxon_pointer" "vmxon_pa is aligned to 4096 and within MAXPHYADDR";
    8 Header Errno(EINVAL) SmmGuestModeInGuestMode "set.one_guest_mode" "smm.flags.GUEST_MODE and flags.GUEST_MODE are not both set";
    9 Header Errno(EINVAL) UnknownSmmFlags "set.smm_flags_known" "smm.flags has no bit but GUEST_MODE and VMXON";
    10 Header Errno(EINVAL) UnknownVmxFlags "set.vmx_flags_known" "hdr.vmx.flags has no bit but PREEMPTION_TIMER_DEADLINE";
    11 Header Errno(EINVAL) GuestModeInSmm "set.no_guest_mode_in_smm" "in SMM, neither GUEST_MODE nor RUN_PENDING is set";
    11 Header Errno(EINVAL) SmmFlagsOutsideSmm "set.smm_flags_need_smm" "outside SMM, smm.flags is 0";
    12 Header Errno(EINVAL) SmmGuestModeWithoutSmmVmxon "set.smm_guest_mode_needs_vmxon" "smm.flags.GUEST_MODE comes with smm.flags.VMXON";
    13 Header Errno(EINVAL) EvmcsNotEnabled "set.evmcs_enabled" "with EVMCS, the guest has VMX and enlightened VMCS is enabled";
    15 AfterLeavingNested Errno(ENOMEM) OutOfMemory "set.memory" "the kernel can allocate what VMX operation needs";
    16 AfterLeavingNested Errno(EINVAL) SizeBelowVmcs12 "set.size_holds_vmcs12" "with GUEST_MODE, EVMCS or vmcs12_pa, size is 1126 or more";
    17 AfterLeavingNested Errno(EINVAL) Vmcs12IsVmxon "set.vmcs12_is_not_vmxon" "vmcs12_pa differs from vmxon_pa";
    17 AfterLeavingNested Errno(EINVAL) Vmcs12Pointer "set.vmcs12_pointer" "vmcs12_pa is aligned to 4096 and within MAXPHYADDR";
    17 AfterLeavingNested Errno(EINVAL) Vmcs12Absent "set.vmcs12_present" "with a size of 1126 or more there is a vmcs12_pa, or EVMCS";
    19 AfterLeavingNested Errno(EFAULT) Vmcs12Fault "set.vmcs12_readable" "998 bytes of vmcs12 can be read";
    20 AfterLeavingNested Errno(EINVAL) Vmcs12Revision "set.vmcs12_revision" "bits 30:0 of the vmcs12's first word are 0x11e57ed0";
    23 AfterLeavingNested Errno(EINVAL) SizeBelowShadow "set.size_holds_shadow" "in guest mode with VMCS shadowing and a link pointer, size is 5222 or more";
    23 AfterLeavingNested Errno(EFAULT) ShadowFault "set.shadow_readable" "998 bytes of shadow vmcs12 can be read";
    23 AfterLeavingNested Errno(EINVAL) ShadowRevision "set.shadow_revision" "bits 30:0 of the shadow vmcs12's first word are 0x11e57ed0";
    23 AfterLeavingNested Errno(EINVAL) ShadowIndicator "set.shadow_indicator" "bit 31 of the shadow vmcs12's first word is 1";
    25 AfterLeavingNested Errno(EINVAL) EntryControls "set.entry_controls" "in guest mode, the vmcs12 passes KVM's checks of the VMX controls";
    25 AfterLeavingNested Errno(EINVAL) EntryHostState "set.entry_host_state" "in guest mode, the vmcs12 passes KVM's checks of the host-state area";
    25 AfterLeavingNested Errno(EINVAL) EntryGuestState "set.entry_guest_state" "in guest mode, the vmcs12 passes KVM's checks of the guest-state area";
    26 AfterLeavingNested Positive(2) EntryFailed "set.guest_state_loads" "in guest mode, guest CR3 is within MAXPHYADDR";
}

impl SetRefusal {
    /// What the kernel leaves of the vCPU's nested state. (The model leaves it unchanged.)
    #[must_use]
    pub const fn left_behind(self) -> LeftBehind {
        match (self.stage(), self.step()) {
            (Stage::Ioctl | Stage::Header, _) => LeftBehind::Unchanged,
            (Stage::AfterLeavingNested, ..=15) => LeftBehind::Nothing,
            (Stage::AfterLeavingNested, 16 | 17) => LeftBehind::Vmxon,
            (Stage::AfterLeavingNested, _) => LeftBehind::VmxonWithVmcs12,
        }
    }
}

impl fmt::Display for SetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id(), self.text())
    }
}

/// A state refused: the rule, and what about the state breaks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The rule.
    pub rule: SetRefusal,
    /// Values, or the entry check that failed.
    pub detail: String,
}

impl Refused {
    /// `errno` as user space sees it: 0 where the kernel answers a positive number.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self.rule.answer() {
            Answer::Errno(errno) => errno,
            Answer::Positive(_) => 0,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for BackendError {
    fn from(refused: Refused) -> Self {
        Self::NestedRefused {
            rule: refused.to_string(),
            errno: refused.errno(),
        }
    }
}

/// An entry check that KVM makes on SET and that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryCheck {
    /// Which of the three groups.
    pub class: EntryClass,
    /// The check, by its name, and what it read.
    pub detail: String,
}

/// The three functions of step 25.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryClass {
    /// `nested_vmx_check_controls`.
    Controls,
    /// `nested_vmx_check_host_state`.
    HostState,
    /// `nested_vmx_check_guest_state`.
    GuestState,
}

impl From<&'static Rule> for EntryCheck {
    fn from(rule: &'static Rule) -> Self {
        Self {
            class: match rule.class {
                Class::InvalidControl => EntryClass::Controls,
                Class::InvalidHostState => EntryClass::HostState,
                Class::InvalidGuestState(_) => EntryClass::GuestState,
            },
            detail: format!("{}: {}", rule.id, rule.text),
        }
    }
}

/// KVM's entry checks of a vmcs12; the second argument is RUN_PENDING (guest EFER is checked only
/// with it).
pub type EntryChecks<'a> = &'a dyn Fn(&Vmcs12, bool) -> Result<(), EntryCheck>;

/// What the rules look at beside the state.
#[derive(Clone, Copy)]
pub struct SetContext<'a> {
    /// The guest's CPUID has VMX.
    pub guest_has_vmx: bool,
    /// The vCPU is in SMM.
    pub in_smm: bool,
    /// L2 runs now: SET leaves it first.
    pub in_guest_mode: bool,
    /// The guest's physical-address width (CPUID 80000008H).
    pub physical_address_width: u8,
    /// KVM_CAP_HYPERV_ENLIGHTENED_VMCS is enabled on the vCPU.
    pub enlightened_vmcs_enabled: bool,
    /// Which fields a vmcs12 has: beyond Linux's, all of its 4096 bytes are taken over.
    pub layout: Layout,
    /// Step 25.
    pub entry_checks: EntryChecks<'a>,
}

impl fmt::Debug for SetContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetContext")
            .field("guest_has_vmx", &self.guest_has_vmx)
            .field("in_smm", &self.in_smm)
            .field("in_guest_mode", &self.in_guest_mode)
            .field("physical_address_width", &self.physical_address_width)
            .field("enlightened_vmcs_enabled", &self.enlightened_vmcs_enabled)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

impl SetContext<'_> {
    /// KVM: `page_address_valid`.
    fn is_page(&self, address: L1Phys) -> bool {
        address.is_aligned(4096) && self.is_physical(address.0)
    }

    fn is_physical(&self, address: u64) -> bool {
        address
            .checked_shr(self.physical_address_width.into())
            .unwrap_or(0)
            == 0
    }
}

/// What SET does with a state that it accepts, in this order.
#[derive(Clone)]
pub struct SetPlan {
    /// L2 runs now: load L1's host state from the vmcs12 that is current now, with no exit
    /// information written, and drop that vmcs12 without writing it to memory
    /// (`vmx_leave_nested`: `nested_vmx_vmexit(vcpu, -1, 0, 0)`, `free_nested`).
    pub leave_guest_first: bool,
    /// VMX operation afterwards. `guest_mode` here means: load L2's state from the vmcs12 (its
    /// control registers, segments, RIP, RSP, RFLAGS), without the MSR-load list, and map the pages
    /// that it names before the next run.
    pub vmx: VmxState,
    /// The vmcs12 is an enlightened one that lies in the guest's memory: map it before the next run.
    pub map_enlightened_vmcs: bool,
    /// Look at pending events before the next run (an MTF VM exit waits).
    pub evaluate_events: bool,
}

impl SetPlan {
    /// What entering L2 adds to the state (`vmx_calc_preemption_timer_value`): where its preemption
    /// timer is on and the state had no deadline, the timer starts in full at `l1_tsc`, L1's TSC now.
    pub fn start_preemption_timer(&mut self, l1_tsc: u64) {
        let vmx = &mut self.vmx;
        if vmx.guest_mode && has_preemption_timer(&vmx.vmcs12) {
            let timer = vmx.vmcs12.get(Field::VMX_PREEMPTION_TIMER_VALUE);
            let now = l1_tsc >> PREEMPTION_TIMER_RATE;
            vmx.preemption_timer_deadline
                .get_or_insert(timer.wrapping_add(now));
        }
    }
}

/// [`check`] for bytes: too few of them are a rule of their own.
pub fn check_bytes(bytes: &[u8], context: &SetContext<'_>) -> Result<SetPlan, Refused> {
    let state = NestedState::from_bytes(bytes).map_err(|error| Refused {
        rule: SetRefusal::HeaderFault,
        detail: error.to_string(),
    })?;
    check(&state, context)
}

/// Whether KVM_SET_NESTED_STATE takes the state: the first rule that it breaks, or what is to be done.
/// Changes nothing.
pub fn check(state: &NestedState, context: &SetContext<'_>) -> Result<SetPlan, Refused> {
    check_header(state, context)?;
    // The kernel's point of no return: `vmx_leave_nested`.
    let mut plan = SetPlan {
        leave_guest_first: context.in_guest_mode,
        vmx: VmxState::default(),
        map_enlightened_vmcs: false,
        evaluate_events: false,
    };
    let Some(vmxon) = state.vmxon_pa() else {
        return Ok(plan);
    };
    plan.vmx.vmxon = Some(vmxon);
    let flags = state.flags();
    let size = state.header().size() as usize;
    let current = state.vmcs12_pa();
    if size < SIZE_WITH_VMCS12 {
        let wants_vmcs12 = flags.intersects(Flags::GUEST_MODE | Flags::EVMCS) || current.is_some();
        holds(!wants_vmcs12, SetRefusal::SizeBelowVmcs12, || {
            format!("size {size}")
        })?;
        // VMX operation without a VMCS. The kernel returns before it looks at the SMM flags: a vCPU
        // in SMM is in VMX operation afterwards, although the state said that it is suspended.
        return Ok(plan);
    }
    match current {
        Some(address) => {
            let pointer = || format!("{address}");
            holds(address != vmxon, SetRefusal::Vmcs12IsVmxon, pointer)?;
            holds(context.is_page(address), SetRefusal::Vmcs12Pointer, pointer)?;
        }
        None => {
            let evmcs = flags.contains(Flags::EVMCS);
            holds(evmcs, SetRefusal::Vmcs12Absent, || format!("size {size}"))?;
            plan.map_enlightened_vmcs = true;
        }
    }
    plan.vmx.current = current;
    if state.smm().contains(SmmFlags::VMXON) {
        plan.vmx.smm_flags = state.smm().bits();
    }
    plan.vmx.vmcs12 = region(state, 0, SetRefusal::Vmcs12Fault, context.layout)?;
    let revision = plan.vmx.vmcs12.revision();
    let same = revision == VMCS12_REVISION;
    holds(same, SetRefusal::Vmcs12Revision, || {
        format!("{revision:#x}")
    })?;
    if !flags.contains(Flags::GUEST_MODE) {
        // Whatever else is in the vmcs12 is L1's business: it is checked when L1 enters.
        return Ok(plan);
    }
    check_guest_mode(state, context, plan)
}

/// Steps 3 to 13: nothing is changed yet.
fn check_header(state: &NestedState, context: &SetContext<'_>) -> Result<(), Refused> {
    use SetRefusal as R;
    let header = state.header();
    let (flags, smm, vmx_flags) = (header.flags(), header.smm_flags(), header.vmx_flags());
    let hex = |bits: u64| move || format!("{bits:#x}");
    let flag_bits = hex(flags.bits().into());
    let smm_bits = hex(smm.bits().into());

    let size = header.size();
    holds(size as usize >= HEADER_SIZE, R::SizeBelowHeader, || {
        format!("size {size}")
    })?;
    let known =
        Flags::GUEST_MODE | Flags::RUN_PENDING | Flags::EVMCS | Flags::MTF_PENDING | Flags::GIF_SET;
    holds((flags - known).is_empty(), R::UnknownFlags, flag_bits)?;
    let run_pending = flags.contains(Flags::RUN_PENDING);
    let guest_mode = flags.contains(Flags::GUEST_MODE);
    holds(
        !run_pending || guest_mode,
        R::RunPendingOutsideGuestMode,
        flag_bits,
    )?;

    let format = header.format();
    holds(format == FORMAT_VMX, R::NotVmxFormat, || {
        format!("format {format}")
    })?;
    match header.vmxon_pa() {
        None => {
            holds(smm.is_empty(), R::SmmFlagsWithoutVmxon, smm_bits)?;
            let vmcs12 = header.vmcs12_pa();
            holds(vmcs12.is_none(), R::Vmcs12WithoutVmxon, || {
                format!("{vmcs12:?}")
            })?;
            holds(
                (flags - Flags::EVMCS).is_empty(),
                R::FlagsWithoutVmxon,
                flag_bits,
            )?;
        }
        Some(vmxon) => {
            holds(context.guest_has_vmx, R::GuestLacksVmx, String::new)?;
            holds(context.is_page(vmxon), R::VmxonPointer, || {
                format!("{vmxon}")
            })?;
        }
    }
    let smm_guest_mode = smm.contains(SmmFlags::GUEST_MODE);
    holds(
        !(smm_guest_mode && guest_mode),
        R::SmmGuestModeInGuestMode,
        String::new,
    )?;
    let known = SmmFlags::GUEST_MODE | SmmFlags::VMXON;
    holds((smm - known).is_empty(), R::UnknownSmmFlags, smm_bits)?;
    let known = VmxFlags::PREEMPTION_TIMER_DEADLINE;
    holds(
        (vmx_flags - known).is_empty(),
        R::UnknownVmxFlags,
        hex(vmx_flags.bits().into()),
    )?;
    if context.in_smm {
        holds(!guest_mode && !run_pending, R::GuestModeInSmm, flag_bits)?;
    } else {
        holds(smm.is_empty(), R::SmmFlagsOutsideSmm, smm_bits)?;
    }
    let smm_vmxon = smm.contains(SmmFlags::VMXON);
    holds(
        !smm_guest_mode || smm_vmxon,
        R::SmmGuestModeWithoutSmmVmxon,
        smm_bits,
    )?;
    let evmcs_allowed = context.guest_has_vmx && context.enlightened_vmcs_enabled;
    holds(
        !flags.contains(Flags::EVMCS) || evmcs_allowed,
        R::EvmcsNotEnabled,
        String::new,
    )
}

/// Steps 22 to 27: L2 runs afterwards.
fn check_guest_mode(
    state: &NestedState,
    context: &SetContext<'_>,
    mut plan: SetPlan,
) -> Result<SetPlan, Refused> {
    let flags = state.flags();
    plan.vmx.guest_mode = true;
    plan.vmx.run_pending = flags.contains(Flags::RUN_PENDING);
    plan.vmx.mtf_pending = flags.contains(Flags::MTF_PENDING);
    plan.evaluate_events = plan.vmx.mtf_pending;
    if needs_shadow(&plan.vmx.vmcs12) {
        let size = state.header().size() as usize;
        let fits = size >= SIZE_WITH_SHADOW;
        holds(fits, SetRefusal::SizeBelowShadow, || format!("size {size}"))?;
        let shadow = region(state, 1, SetRefusal::ShadowFault, context.layout)?;
        let revision = shadow.revision();
        let same = revision == VMCS12_REVISION;
        holds(same, SetRefusal::ShadowRevision, || {
            format!("{revision:#x}")
        })?;
        holds(shadow.is_shadow(), SetRefusal::ShadowIndicator, String::new)?;
        plan.vmx.shadow_vmcs12 = shadow;
    }
    plan.vmx.preemption_timer_deadline = state.preemption_timer_deadline();
    let checks = (context.entry_checks)(&plan.vmx.vmcs12, plan.vmx.run_pending);
    checks.map_err(|failed| Refused {
        rule: match failed.class {
            EntryClass::Controls => SetRefusal::EntryControls,
            EntryClass::HostState => SetRefusal::EntryHostState,
            EntryClass::GuestState => SetRefusal::EntryGuestState,
        },
        detail: failed.detail,
    })?;
    // `prepare_vmcs02` fails here: guest CR3 is not among the checks of step 25.
    let cr3 = plan.vmx.vmcs12.get(Field::GUEST_CR3);
    holds(context.is_physical(cr3), SetRefusal::EntryFailed, || {
        format!("guest CR3 {cr3:#x}")
    })?;
    Ok(plan)
}

/// What the kernel copies of a region: the bytes that `struct vmcs12` uses, into a zeroed one.
fn region(
    state: &NestedState,
    number: usize,
    fault: SetRefusal,
    layout: Layout,
) -> Result<Vmcs12, Refused> {
    let length = if layout == Layout::Extended {
        VMCS12_SIZE
    } else {
        VMCS12_USED
    };
    let Some(bytes) = state.region_prefix(number, length) else {
        let start = HEADER_SIZE + number * VMCS12_SIZE;
        let detail = format!(
            "{length} bytes at offset {start}, the state ends at {}",
            state.len()
        );
        return Err(Refused {
            rule: fault,
            detail,
        });
    };
    let mut vmcs12 = Vmcs12::default();
    vmcs12.bytes_mut()[..length].copy_from_slice(bytes);
    Ok(vmcs12)
}

fn holds(holds: bool, rule: SetRefusal, detail: impl FnOnce() -> String) -> Result<(), Refused> {
    if holds {
        Ok(())
    } else {
        Err(Refused {
            rule,
            detail: detail(),
        })
    }
}
