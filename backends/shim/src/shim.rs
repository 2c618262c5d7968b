//! [`Shim`]: descriptors and what is behind them, and the way of a call to its row.

use crate::errno::{Answer, Errno};
use crate::log::{self, Detail};
use crate::os::{self, User};
use crate::settings::Settings;
use crate::table::{self, Handler, Level};
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What is behind a descriptor.
#[derive(Debug, Clone)]
pub enum Object {
    /// `/dev/kvm`.
    System,
    /// A virtual machine.
    Vm(Arc<Vm>),
    /// A virtual CPU.
    Vcpu(Arc<Vcpu>),
}

impl Object {
    /// Which ioctls it takes.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::System => Level::System,
            Self::Vm(_) => Level::Vm,
            Self::Vcpu(_) => Level::Vcpu,
        }
    }

    /// Whether the process that calls made it. KVM refuses every other, which a fork makes (kvm_vm_ioctl:
    /// `kvm->mm != current->mm`).
    fn is_ours(&self) -> bool {
        match self {
            Self::System => true,
            Self::Vm(vm) => vm.is_ours(),
            Self::Vcpu(vcpu) => vcpu.vm().is_ours(),
        }
    }
}

/// The API of one process.
#[derive(Debug)]
pub struct Shim {
    settings: Settings,
    objects: RwLock<HashMap<i32, Object>>,
}

impl Shim {
    /// With no descriptor open.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: RwLock::default(),
        }
    }

    /// What the environment says.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens `/dev/kvm`.
    pub fn open_system(&self, close_on_exec: bool) -> Answer {
        let fd = os::descriptor("kvm", 0, close_on_exec)?;
        self.enter(fd, Object::System);
        Ok(fd)
    }

    /// A new descriptor for an object that has no pages to show.
    pub fn open(&self, name: &str, object: Object) -> Answer {
        let fd = os::descriptor(name, 0, true)?;
        self.enter(fd, object);
        Ok(fd)
    }

    /// Puts an object behind a descriptor that is open.
    pub fn enter(&self, fd: i32, object: Object) {
        // What was there before is dropped outside the lock: dropping a VM takes time.
        let old = self.write().insert(fd, object);
        drop(old);
    }

    /// What is behind a descriptor.
    #[must_use]
    pub fn object(&self, fd: i32) -> Option<Object> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&fd).cloned()
    }

    /// A descriptor is about to be closed. The object is the caller's to drop, once that is done: whoever
    /// runs there has it too, and goes on until it comes back.
    pub fn forget(&self, fd: i32) -> Option<Object> {
        self.write().remove(&fd)
    }

    /// Descriptors that are about to be closed, both ends included.
    pub fn forget_range(&self, first: u32, last: u32) {
        let is_in = |fd: i32| u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd));
        let mut gone = Vec::new();
        self.write().retain(|fd, object| {
            let keep = !is_in(*fd);
            if !keep {
                gone.push(object.clone());
            }
            keep
        });
        drop(gone);
    }

    /// `new` is a copy of `old` now.
    pub fn duplicated(&self, old: i32, new: i32) {
        if old == new {
            return;
        }
        match self.object(old) {
            Some(object) => self.enter(new, object),
            None => drop(self.forget(new)),
        }
    }

    /// ioctl(2); `None` if the descriptor is none of ours, or the request none of KVM's.
    pub fn ioctl(&self, fd: i32, request: u32, argument: u64) -> Option<Answer> {
        if request >> 8 & 0xff != table::KVMIO {
            return None;
        }
        let object = self.object(fd)?;
        let answer = self.call(&object, request, argument);
        self.tell(&object, request, argument, answer);
        Some(answer)
    }

    /// A call on an object.
    pub fn call(&self, object: &Object, request: u32, argument: u64) -> Answer {
        if !object.is_ours() {
            return Err(Errno::EIO);
        }
        let level = object.level();
        let Some(row) = table::find(level, request) else {
            return Err(level.unknown());
        };
        match (row.handler, object) {
            (Handler::System(handler), _) => handler(self, User, argument),
            (Handler::Vm(handler), Object::Vm(vm)) => {
                let answer = handler(&mut vm.lock().context(), User, argument);
                vm.tell();
                answer
            }
            (Handler::VmObject(handler), Object::Vm(vm)) => handler(self, vm, User, argument),
            (Handler::Vcpu(handler), Object::Vcpu(vcpu)) => {
                let _busy = vcpu.busy();
                let mut state = vcpu.vm().lock();
                handler(&mut state.vcpu_context(vcpu), User, argument)
            }
            (Handler::VcpuObject(handler), Object::Vcpu(vcpu)) => {
                let _busy = vcpu.busy();
                handler(self, vcpu, User, argument)
            }
            (Handler::Absent(errno, _), _) => Err(errno),
            // A row is of its table's level.
            _ => Err(level.unknown()),
        }
    }

    fn tell(&self, object: &Object, request: u32, argument: u64, answer: Answer) {
        let detail = self.settings.detail;
        if detail < Detail::Warn || detail < Detail::Trace && answer.is_ok() {
            return;
        }
        let level = object.level();
        let row = table::find(level, request);
        let name = row.map_or("an unknown ioctl", |row| row.name);
        let level = level.name();
        match answer {
            Ok(value) => log::line(format_args!("{level} {name}({argument:#x}) = {value}")),
            Err(errno) => {
                let errno = errno.name();
                log::line(format_args!(
                    "{level} {name} ({request:#x}, {argument:#x}): {errno}"
                ));
            }
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<i32, Object>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}
