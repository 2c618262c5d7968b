//! What uses, copies and closes descriptors.

use crate::real::real;
use crate::{SHIM, answer};
use std::ffi::{c_int, c_uint, c_ulong, c_void};

/// ioctl(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel takes 32 bits of the request.
    if let Some(shim) = SHIM.get()
        && let Some(ours) = shim.ioctl(fd, request as u32, argument as u64)
    {
        return answer(ours);
    }
    let real = real!(c"ioctl" as unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int);
    // SAFETY: the caller's own call.
    unsafe { real(fd, request, argument) }
}

/// close(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    let gone = SHIM.get().and_then(|shim| shim.forget(fd));
    let real = real!(c"close" as unsafe extern "C" fn(c_int) -> c_int);
    // SAFETY: the caller's own call.
    let answer = unsafe { real(fd) };
    drop(gone);
    answer
}

/// close_range(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const CLOSE_RANGE_CLOEXEC: c_int = 4;
    if let Some(shim) = SHIM.get()
        && flags & CLOSE_RANGE_CLOEXEC == 0
    {
        shim.forget_range(first, last);
    }
    let real = real!(c"close_range" as unsafe extern "C" fn(c_uint, c_uint, c_int) -> c_int);
    // SAFETY: the caller's own call.
    unsafe { real(first, last, flags) }
}

/// `new` is a copy of `old`, if the call did not fail.
fn copied(old: c_int, new: c_int) -> c_int {
    if let Some(shim) = SHIM.get()
        && new >= 0
    {
        shim.duplicated(old, new);
    }
    new
}

/// dup(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup(old: c_int) -> c_int {
    let real = real!(c"dup" as unsafe extern "C" fn(c_int) -> c_int);
    // SAFETY: the caller's own call.
    copied(old, unsafe { real(old) })
}

/// dup2(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(old: c_int, new: c_int) -> c_int {
    let real = real!(c"dup2" as unsafe extern "C" fn(c_int, c_int) -> c_int);
    // SAFETY: the caller's own call.
    copied(old, unsafe { real(old, new) })
}

/// dup3(2).
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    let real = real!(c"dup3" as unsafe extern "C" fn(c_int, c_int, c_int) -> c_int);
    // SAFETY: the caller's own call.
    copied(old, unsafe { real(old, new, flags) })
}

/// Functions like fcntl(2), which can copy, too.
macro_rules! controls {
    ($($name:ident, $c_name:literal;)*) => {$(
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, command: c_int, argument: *mut c_void) -> c_int {
            let real = real!($c_name as unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int);
            // SAFETY: the caller's own call.
            let result = unsafe { real(fd, command, argument) };
            match command {
                libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => copied(fd, result),
                _ => result,
            }
        }
    )*};
}

controls! {
    fcntl, c"fcntl";
    fcntl64, c"fcntl64";
}
