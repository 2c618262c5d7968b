//! The ioctls that kvm-ioctls lacks, or maps in a way that loses something
//! (Linux `include/uapi/linux/kvm.h`).
//!
//! `KVM_GET_NESTED_STATE`: kvm-ioctls turns a header-only state into nothing and so loses
//! `vmxon_pa`. `KVM_SET_NESTED_STATE`: a positive return is no success (the kernel hands out an
//! internal status when loading L2's state fails), so the raw number is kept.

use crate::error;
use crate::guarded::GuardedBuffer;
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_interrupt, kvm_run, kvm_sregs2,
};
use nvmx_core::vcpu::{BackendError, Result};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

const KVMIO: u64 = 0xae;

/// `_IOC` of `asm-generic/ioctl.h`: direction (1 write, 2 read), number, size.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | KVMIO << 8 | number
}

const KVM_RUN: u64 = request(0, 0x80, 0);
const KVM_INTERRUPT: u64 = request(1, 0x86, 4);
const KVM_SET_SIGNAL_MASK: u64 = request(1, 0x8b, 4);
const KVM_GET_NESTED_STATE: u64 = request(3, 0xbe, 128);
const KVM_SET_NESTED_STATE: u64 = request(1, 0xbf, 128);
const KVM_SET_DEVICE_ATTR: u64 = request(1, 0xe1, size_of::<kvm_device_attr>());
const KVM_GET_DEVICE_ATTR: u64 = request(1, 0xe2, size_of::<kvm_device_attr>());
const KVM_GET_SREGS2: u64 = request(2, 0xcc, size_of::<kvm_sregs2>());
const KVM_SET_SREGS2: u64 = request(1, 0xcd, size_of::<kvm_sregs2>());

const _: () = assert!(KVM_GET_NESTED_STATE == 0xc080_aebe);
const _: () = assert!(KVM_SET_NESTED_STATE == 0x4080_aebf);

/// One ioctl with a pointer argument; the kernel's return value, or errno made negative.
///
/// # Safety
/// `argument` must be valid for what `request` reads and writes.
unsafe fn ioctl<T>(fd: RawFd, request: u64, argument: *mut T) -> i32 {
    // The type of the request differs between C libraries.
    // SAFETY: the caller vouches for the argument.
    match unsafe { libc::ioctl(fd, request as _, argument) } {
        -1 => -error::last_errno(),
        value => value,
    }
}

fn check(call: &'static str, value: i32) -> Result<()> {
    match value {
        0.. => Ok(()),
        _ => Err(error::kernel(call, -value)),
    }
}

/// The vCPU attribute that holds the offset of L1's TSC, at `offset`.
fn tsc_attribute(offset: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(offset) as u64,
    }
}

/// The offset of L1's TSC from the host's.
pub(crate) fn tsc_offset(vcpu: RawFd) -> Result<u64> {
    let mut offset = 0;
    let mut attribute = tsc_attribute(&mut offset);
    // SAFETY: the attribute names 8 bytes that live until the call returns, which writes them.
    let value = unsafe { ioctl(vcpu, KVM_GET_DEVICE_ATTR, &raw mut attribute) };
    check("KVM_GET_DEVICE_ATTR", value)?;
    Ok(offset)
}

/// Sets the offset of L1's TSC.
pub(crate) fn set_tsc_offset(vcpu: RawFd, mut offset: u64) -> Result<()> {
    let mut attribute = tsc_attribute(&mut offset);
    // SAFETY: as above; the call reads them.
    let value = unsafe { ioctl(vcpu, KVM_SET_DEVICE_ATTR, &raw mut attribute) };
    check("KVM_SET_DEVICE_ATTR", value)
}

/// KVM_RUN: 0, or a negative errno (`EINTR` for a signal or `immediate_exit`).
pub(crate) fn run(vcpu: RawFd) -> i32 {
    // SAFETY: KVM_RUN takes no argument; what it writes is the kvm_run area, whose owner calls us
    // with exclusive access.
    unsafe { ioctl(vcpu, KVM_RUN, std::ptr::null_mut::<u8>()) }
}

/// KVM_INTERRUPT: queues an external interrupt by vector. 0 or a negative errno.
pub(crate) fn interrupt(vcpu: RawFd, vector: u8) -> i32 {
    let mut argument = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the structure lives across the call and has the size that the request says.
    unsafe { ioctl(vcpu, KVM_INTERRUPT, &raw mut argument) }
}

/// KVM_SET_SIGNAL_MASK: the signals blocked while the guest runs, one bit each (bit 0: signal 1).
pub(crate) fn set_signal_mask(vcpu: RawFd, blocked: u64) -> Result<()> {
    #[repr(C)]
    struct Mask {
        length: u32,
        // Not a u64: the kernel's structure has no padding before it.
        set: [u32; 2],
    }
    let mut mask = Mask {
        length: 8,
        set: [blocked as u32, (blocked >> 32) as u32],
    };
    // SAFETY: the kernel reads the length and that many bytes behind it, which `Mask` holds.
    check("KVM_SET_SIGNAL_MASK", unsafe {
        ioctl(vcpu, KVM_SET_SIGNAL_MASK, &raw mut mask)
    })
}

/// KVM_GET_SREGS2.
pub(crate) fn sregs2(vcpu: RawFd) -> Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: the kernel writes one kvm_sregs2.
    let value = unsafe { ioctl(vcpu, KVM_GET_SREGS2, &raw mut sregs) };
    check("KVM_GET_SREGS2", value).map(|()| sregs)
}

/// KVM_SET_SREGS2.
pub(crate) fn set_sregs2(vcpu: RawFd, sregs: &kvm_sregs2) -> Result<()> {
    let mut sregs = *sregs;
    // SAFETY: the kernel reads one kvm_sregs2.
    check("KVM_SET_SREGS2", unsafe {
        ioctl(vcpu, KVM_SET_SREGS2, &raw mut sregs)
    })
}

/// KVM_GET_NESTED_STATE into `buffer`, whose length is what we tell the kernel: 0 or a negative
/// errno.
///
/// The buffer is zeroed first. It must be the size that KVM_CHECK_EXTENSION names: to a smaller one
/// the kernel can write past the size it was told (L1 in root mode, VMCS shadowing on).
pub(crate) fn nested_state(vcpu: RawFd, buffer: &mut [u8]) -> i32 {
    assert!(
        buffer.len() >= 8320,
        "the kernel may write past a short buffer"
    );
    let size = (buffer.len() as u32).to_le_bytes();
    buffer.fill(0);
    buffer[4..8].copy_from_slice(&size);
    // SAFETY: the kernel writes at most 128 + 2 * 4096 bytes, checked above.
    unsafe { ioctl(vcpu, KVM_GET_NESTED_STATE, buffer.as_mut_ptr()) }
}

/// KVM_SET_NESTED_STATE with exactly these bytes: what lies behind them does not exist, so a state
/// that claims more gets EFAULT. The kernel's return value, errno made negative.
pub(crate) fn set_nested_state(vcpu: RawFd, bytes: &[u8]) -> Result<i32> {
    let buffer = GuardedBuffer::ending_with(bytes)?;
    // SAFETY: the kernel copies with fault handling from where the bytes lie; reading beyond them
    // hits an inaccessible page of the same mapping, never other memory of this process.
    Ok(unsafe { ioctl(vcpu, KVM_SET_NESTED_STATE, buffer.as_ptr().cast_mut()) })
}

/// The shared `kvm_run` area of a vCPU, with the data pages behind the structure.
#[derive(Debug)]
pub(crate) struct RunArea {
    start: NonNull<kvm_run>,
    length: usize,
}

// SAFETY: the mapping is owned, and is reached through `&self` and `&mut self` only.
unsafe impl Send for RunArea {}

impl RunArea {
    /// Maps the area of `vcpu`, `length` bytes (KVM_GET_VCPU_MMAP_SIZE).
    pub(crate) fn map(vcpu: &impl AsRawFd, length: usize) -> Result<Self> {
        if length < size_of::<kvm_run>() {
            return Err(BackendError::Other(format!(
                "KVM_GET_VCPU_MMAP_SIZE says {length}, less than struct kvm_run"
            )));
        }
        // SAFETY: a new mapping where the kernel likes; nothing of ours is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(error::last("mmap of the vCPU"));
        }
        let start = NonNull::new(address.cast()).ok_or_else(|| error::last("mmap of the vCPU"))?;
        Ok(Self { start, length })
    }

    /// The structure. The kernel writes it only inside KVM_RUN of this vCPU.
    pub(crate) fn get(&self) -> &kvm_run {
        // SAFETY: mapped, aligned to a page, large enough (checked in `map`), every bit pattern is
        // valid, and KVM_RUN is called by the owner of `self`, who holds no such reference then.
        unsafe { self.start.as_ref() }
    }

    /// The structure, to be written.
    pub(crate) fn get_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as in `get`, and the access is exclusive.
        unsafe { self.start.as_mut() }
    }

    /// Bytes of the area, by offset from the start of the structure; `None` if out of the area.
    pub(crate) fn data(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(length)?;
        if end > self.length {
            return None;
        }
        // SAFETY: inside the mapping, exclusive access, bytes have no alignment or validity.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>().add(offset), length)
        })
    }
}

impl Drop for RunArea {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A whole small file of sysfs or procfs, trimmed.
pub(crate) fn read_trimmed(path: &str) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        for (ours, kernels) in [
            (KVM_RUN, 0xae80),
            (KVM_INTERRUPT, 0x4004_ae86),
            (KVM_SET_SIGNAL_MASK, 0x4004_ae8b),
            (KVM_GET_SREGS2, 0x8140_aecc),
            (KVM_SET_SREGS2, 0x4140_aecd),
        ] {
            assert_eq!(ours, kernels, "{kernels:#x}");
        }
    }
}
