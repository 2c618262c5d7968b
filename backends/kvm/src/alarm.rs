//! An alarm that ends KVM_RUN after a time, without races and without a handler.
//!
//! The signal stays blocked in the thread and is open only inside KVM_RUN
//! (`KVM_SET_SIGNAL_MASK`). An alarm that goes off before KVM_RUN is entered stays pending and ends
//! it at once; one that goes off inside ends it with EINTR; either way it is taken back with
//! sigtimedwait, and nothing else of the process ever sees it.

use crate::{error, sys};
use nvmx_core::vcpu::Result;
use std::os::fd::RawFd;
use std::time::Duration;

/// The signal: a real-time one that neither C library nor Rust uses.
fn signal() -> i32 {
    libc::SIGRTMIN() + 4
}

/// One POSIX timer that signals the thread which made it.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: i32,
    thread: i32,
}

/// `struct sigevent` as the kernel has it: 64 bytes, the thread behind the notification kind.
#[repr(C)]
struct SignalEvent {
    value: usize,
    signal: i32,
    notify: i32,
    thread: i32,
    padding: [i32; 11],
}

const _: () = assert!(size_of::<SignalEvent>() == 64);

/// The calling thread's id.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: gettid has no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

impl Alarm {
    /// An alarm for the calling thread, and the signal mask that `vcpu` needs for it.
    pub(crate) fn new(vcpu: RawFd) -> Result<Self> {
        let set = only_ours();
        let mut before = empty_set();
        // SAFETY: both sets live across the call.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
        if result != 0 {
            return Err(error::kernel("pthread_sigmask", result));
        }
        let mut blocked = 0;
        for number in 1..=64 {
            // SAFETY: the set was written above.
            if number != signal() && unsafe { libc::sigismember(&raw const before, number) } == 1 {
                blocked |= 1 << (number - 1);
            }
        }
        sys::set_signal_mask(vcpu, blocked)?;
        let thread = thread_id();
        let mut event = SignalEvent {
            value: 0,
            signal: signal(),
            // SIGEV_THREAD_ID
            notify: 4,
            thread,
            padding: [0; 11],
        };
        let mut timer = 0_i32;
        // SAFETY: the kernel reads one sigevent and writes one timer id.
        let result = unsafe {
            libc::syscall(
                libc::SYS_timer_create,
                libc::CLOCK_MONOTONIC,
                &raw mut event,
                &raw mut timer,
            )
        };
        if result != 0 {
            return Err(error::last("timer_create"));
        }
        Ok(Self { timer, thread })
    }

    /// Whether it belongs to the calling thread.
    pub(crate) fn is_mine(&self) -> bool {
        self.thread == thread_id()
    }

    /// Goes off once, after `delay` (at least a nanosecond).
    pub(crate) fn arm(&self, delay: Duration) -> Result<()> {
        self.set(delay.max(Duration::from_nanos(1)))
    }

    /// Takes it back, whether it went off or not.
    pub(crate) fn disarm(&self) -> Result<()> {
        self.set(Duration::ZERO)?;
        let set = only_ours();
        let now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: set and time live across the call; no information is asked for.
        while unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const now) }
            > 0
        {}
        Ok(())
    }

    fn set(&self, delay: Duration) -> Result<()> {
        // The kernel's struct itimerspec on 64-bit: interval, then value, each seconds and
        // nanoseconds.
        let value: [i64; 4] = [
            0,
            0,
            delay.as_secs().min(1 << 40) as i64,
            delay.subsec_nanos().into(),
        ];
        // SAFETY: the kernel reads one itimerspec; the old one is not asked for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_timer_settime,
                self.timer,
                0,
                value.as_ptr(),
                std::ptr::null_mut::<i64>(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(error::last("timer_settime"))
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // A signal that is still pending stays blocked: harmless, and the next alarm takes it back.
        // SAFETY: our own timer, deleted once.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.timer) };
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn only_ours() -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY: an initialised set and a valid signal number.
    unsafe { libc::sigaddset(&raw mut set, signal()) };
    set
}
