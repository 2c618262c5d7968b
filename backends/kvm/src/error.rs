//! The kernel's errno as a [`BackendError`], in words, with a hint where there is one.

use nvmx_core::vcpu::BackendError;

/// The error of a call that failed with `errno`.
#[must_use]
pub fn kernel(call: &'static str, errno: i32) -> BackendError {
    let words = std::io::Error::from_raw_os_error(errno).to_string();
    // The standard library appends "(os error N)", which our own message says already.
    let words = words.split(" (os error").next().unwrap_or("").to_owned();
    let message = match hint(call, errno) {
        Some(hint) => format!("{words}; {hint}"),
        None => words,
    };
    BackendError::Kernel {
        call,
        errno,
        message,
    }
}

/// The error of a call that has just failed and left its errno in the thread.
#[must_use]
pub fn last(call: &'static str) -> BackendError {
    kernel(call, last_errno())
}

/// errno of this thread.
#[must_use]
pub fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// For `map_err` after a call of kvm-ioctls.
pub(crate) fn ioctl(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> BackendError {
    move |error| kernel(call, error.errno())
}

fn hint(call: &str, errno: i32) -> Option<&'static str> {
    Some(match (call, errno) {
        ("open /dev/kvm", libc::ENOENT) => {
            "load kvm_intel, or run where the machine offers hardware virtualization"
        }
        ("open /dev/kvm", libc::EACCES | libc::EPERM) => {
            "add the user to the group kvm, or run as root"
        }
        ("KVM_CREATE_VM", libc::EBUSY) => "another hypervisor holds the processor's virtualization",
        ("KVM_SET_CPUID2", libc::EINVAL) => {
            "after its first run a vCPU takes only the CPUID that it has"
        }
        ("KVM_SET_TSC_KHZ", libc::EINVAL) => {
            "this host cannot scale the TSC to that frequency: leave tsc_khz out of the state"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_keeps_its_number_and_gets_words_once() {
        let text = kernel("KVM_SET_CPUID2", libc::EINVAL).to_string();
        assert_eq!(
            text,
            "KVM_SET_CPUID2: Invalid argument; after its first run a vCPU takes only the CPUID \
             that it has (errno 22)"
        );
    }
}
