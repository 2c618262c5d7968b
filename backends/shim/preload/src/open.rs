//! What opens a path: the device and the modules' parameters are ours.

use crate::real::real;
use crate::{answer, shim};
use nvmx_shim::files::{self, File};
use std::ffi::{CStr, c_char, c_int, c_uint};

/// # Safety
/// `path` is null or ends in a zero.
unsafe fn ours(path: *const c_char) -> Option<File> {
    if path.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    files::find(unsafe { CStr::from_ptr(path) })
}

fn open_ours(file: File, flags: c_int) -> c_int {
    answer(shim().open_file(file, flags & libc::O_CLOEXEC != 0))
}

/// Functions like open(2), with the mode where C has it variable.
macro_rules! openers {
    ($($name:ident, $c_name:literal ($($before:ident: $type:ty),*) $(, $mode:ident)?;)*) => {$(
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($before: $type,)* path: *const c_char, flags: c_int $(, $mode: c_uint)?) -> c_int {
            // SAFETY: the C library asks the same of the path.
            if let Some(file) = unsafe { ours(path) } {
                return open_ours(file, flags);
            }
            let real = real!($c_name as unsafe extern "C" fn($($type,)* *const c_char, c_int $(, openers!(@ $mode))?) -> c_int);
            // SAFETY: the caller's own call.
            unsafe { real($($before,)* path, flags $(, $mode)?) }
        }
    )*};
    (@ $mode:ident) => { c_uint };
}

openers! {
    open, c"open" (), mode;
    open64, c"open64" (), mode;
    __open_2, c"__open_2" ();
    __open64_2, c"__open64_2" ();
    openat, c"openat" (folder: c_int), mode;
    openat64, c"openat64" (folder: c_int), mode;
    __openat_2, c"__openat_2" (folder: c_int);
    __openat64_2, c"__openat64_2" (folder: c_int);
}

/// Functions like fopen(3).
macro_rules! streams {
    ($($name:ident, $c_name:literal;)*) => {$(
        /// As in the C library.
        ///
        /// # Safety
        /// As in the C library.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
            // SAFETY: the C library asks the same of the path.
            if let Some(file) = unsafe { ours(path) } {
                let fd = open_ours(file, libc::O_CLOEXEC);
                if fd < 0 {
                    return std::ptr::null_mut();
                }
                // SAFETY: a descriptor that was just opened; the mode is the caller's.
                return unsafe { libc::fdopen(fd, mode) };
            }
            let real = real!($c_name as unsafe extern "C" fn(*const c_char, *const c_char) -> *mut libc::FILE);
            // SAFETY: the caller's own call.
            unsafe { real(path, mode) }
        }
    )*};
}

streams! {
    fopen, c"fopen";
    fopen64, c"fopen64";
}

/// access(2), by which programs look for the device.
///
/// # Safety
/// As in the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the C library asks the same of the path.
    match unsafe { ours(path) } {
        Some(File::Missing) => answer(Err(nvmx_shim::errno::Errno::ENOENT)),
        Some(_) => 0,
        None => {
            let real = real!(c"access" as unsafe extern "C" fn(*const c_char, c_int) -> c_int);
            // SAFETY: the caller's own call.
            unsafe { real(path, mode) }
        }
    }
}
