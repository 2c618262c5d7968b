//! The library that LD_PRELOAD puts before the C library. It exports the functions that a program of KVM
//! calls, and nothing else: what is ours goes to `nvmx-shim`, all else to the C library's own.
//!
//! All of it is `unsafe`: C calls in, with what C has.

mod descriptors;
mod host_cpu;
mod open;
mod real;

use nvmx_shim::errno::Answer;
use nvmx_shim::{Settings, Shim, log};
use std::ffi::c_int;
use std::sync::OnceLock;

static SHIM: OnceLock<Shim> = OnceLock::new();

/// The API of this process.
fn shim() -> &'static Shim {
    SHIM.get_or_init(|| {
        Shim::new(Settings::from_environment().unwrap_or_else(|complaint| {
            log::line(format_args!("{complaint}; the default counts"));
            Settings::default()
        }))
    })
}

/// As C has it: -1 and errno.
fn answer(answer: Answer) -> c_int {
    match answer {
        Ok(value) => value,
        Err(errno) => {
            // SAFETY: the thread's own errno.
            unsafe { *libc::__errno_location() = errno.0 };
            -1
        }
    }
}
