//! Every ioctl of the API as a row: its name, number and level, the capability that announces it, and who
//! answers it, or why nobody does. What is not a row here does not exist.

mod system;
mod vcpu;
mod vm;

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::shim::Shim;
use crate::vcpu::{Vcpu, VcpuContext};
use crate::vm::{Vm, VmContext};
use std::sync::Arc;

/// Whose descriptor the ioctl goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// `/dev/kvm`.
    System,
    /// A virtual machine.
    Vm,
    /// A virtual CPU.
    Vcpu,
}

impl Level {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Vm => "VM",
            Self::Vcpu => "vCPU",
        }
    }

    /// What the kernel answers to a number that it does not know (arch/x86/kvm/x86.c: the defaults of
    /// kvm_arch_dev_ioctl, kvm_arch_vm_ioctl, kvm_arch_vcpu_ioctl).
    #[must_use]
    pub const fn unknown(self) -> Errno {
        match self {
            Self::Vm => Errno::ENOTTY,
            Self::System | Self::Vcpu => Errno::EINVAL,
        }
    }
}

/// Who answers. The `u64` is the argument as the caller gave it: a number, or an address of his.
#[derive(Debug, Clone, Copy)]
pub enum Handler {
    /// On `/dev/kvm`.
    System(fn(&Shim, User, u64) -> Answer),
    /// On a VM that is locked.
    Vm(fn(&mut VmContext<'_>, User, u64) -> Answer),
    /// On a VM, without its lock: what makes descriptors.
    VmObject(fn(&Shim, &Arc<Vm>, User, u64) -> Answer),
    /// On a vCPU that is idle, of a VM that is locked.
    Vcpu(fn(&mut VcpuContext<'_>, User, u64) -> Answer),
    /// On a vCPU that is idle, without the lock of its VM.
    VcpuObject(fn(&Shim, &Arc<Vcpu>, User, u64) -> Answer),
    /// Nobody: what the kernel answers where it is built without, and why we are.
    Absent(Errno, &'static str),
}

/// An ioctl.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// `KVM_RUN`.
    pub name: &'static str,
    /// Whose it is.
    pub level: Level,
    /// The number as ioctl(2) takes it, direction and size included.
    pub request: u32,
    /// The capability that announces it; empty for those that always were there.
    pub capability: &'static str,
    /// Who answers.
    pub handler: Handler,
}

/// The letter of KVM's ioctls.
pub const KVMIO: u32 = 0xae;

/// `_IO`.
pub(crate) const fn io(number: u32) -> u32 {
    KVMIO << 8 | number
}

const fn sized<T>(direction: u32, number: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32) << 16 | io(number)
}

/// `_IOW`: the caller gives a `T`.
pub(crate) const fn iow<T>(number: u32) -> u32 {
    sized::<T>(1, number)
}

/// `_IOR`: the caller gets a `T`.
pub(crate) const fn ior<T>(number: u32) -> u32 {
    sized::<T>(2, number)
}

/// `_IOWR`: both.
pub(crate) const fn iowr<T>(number: u32) -> u32 {
    sized::<T>(3, number)
}

/// Makes a table of a level.
macro_rules! rows {
    ($level:ident; $($name:ident $request:expr, $capability:literal, $kind:ident($($handler:expr),*);)*) => {
        /// The rows of this level.
        pub(super) const ROWS: &[$crate::table::Row] = &[$($crate::table::Row {
            name: stringify!($name),
            level: $crate::table::Level::$level,
            request: $request,
            capability: $capability,
            handler: $crate::table::Handler::$kind($($handler),*),
        }),*];
    };
}
use rows;

/// Every row, level by level.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [system::ROWS, vm::ROWS, vcpu::ROWS].into_iter().flatten()
}

/// The row of a number on a descriptor of this level.
#[must_use]
pub fn find(level: Level, request: u32) -> Option<&'static Row> {
    let rows = match level {
        Level::System => system::ROWS,
        Level::Vm => vm::ROWS,
        Level::Vcpu => vcpu::ROWS,
    };
    rows.iter().find(|row| row.request == request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_the_kernels() {
        let request = |level, name| {
            let is_it = |row: &&Row| row.level == level && row.name == name;
            all().find(is_it).map(|row| row.request)
        };
        // As strace(1) prints them.
        let known = [
            (Level::System, "KVM_GET_API_VERSION", 0xae00),
            (Level::System, "KVM_GET_SUPPORTED_CPUID", 0xc008_ae05),
            (Level::System, "KVM_GET_MSR_INDEX_LIST", 0xc004_ae02),
            (Level::Vm, "KVM_CREATE_VCPU", 0xae41),
            (Level::Vm, "KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
            (Level::Vm, "KVM_GET_DIRTY_LOG", 0x4010_ae42),
            (Level::Vm, "KVM_SET_GSI_ROUTING", 0x4008_ae6a),
            (Level::Vm, "KVM_GET_IRQCHIP", 0xc208_ae62),
            (Level::Vcpu, "KVM_RUN", 0xae80),
            (Level::Vcpu, "KVM_GET_REGS", 0x8090_ae81),
            (Level::Vcpu, "KVM_SET_SREGS", 0x4138_ae84),
            (Level::Vcpu, "KVM_GET_MSRS", 0xc008_ae88),
            (Level::Vcpu, "KVM_SET_CPUID2", 0x4008_ae90),
            (Level::Vcpu, "KVM_GET_XSAVE", 0x9000_aea4),
            (Level::Vcpu, "KVM_GET_NESTED_STATE", 0xc080_aebe),
            (Level::Vcpu, "KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
        ];
        for (level, name, number) in known {
            assert_eq!(request(level, name), Some(number), "{name}");
        }
    }

    #[test]
    fn each_row_is_one_and_its_handler_is_of_its_level() {
        let mut seen = HashSet::new();
        for row in all() {
            assert!(seen.insert((row.level, row.request)), "{}", row.name);
            let fits = match row.handler {
                Handler::System(_) => row.level == Level::System,
                Handler::Vm(_) | Handler::VmObject(_) => row.level == Level::Vm,
                Handler::Vcpu(_) | Handler::VcpuObject(_) => row.level == Level::Vcpu,
                Handler::Absent(_, reason) => !reason.is_empty(),
            };
            assert!(fits, "{}", row.name);
            let capability = row.capability;
            assert!(
                capability.is_empty() || crate::capabilities::named(capability).is_some(),
                "{}: no row {capability}",
                row.name
            );
        }
    }
}
