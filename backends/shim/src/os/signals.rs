//! Signals around a run: held back while the guest runs, looked at between slices, delivered when the call
//! comes back, as the kernel does.

use std::ptr;

/// Signals that tell of a fault of the thread itself, which cannot be held back, and the two that the C library
/// keeps for its threads.
const NEVER_HELD: [i32; 9] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
    32,
    33,
];

/// Signals whose default is to be ignored.
const IGNORED: [i32; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals are held back while this lives.
#[derive(Debug)]
pub struct HeldSignals {
    /// The thread's own mask.
    own: u64,
}

impl HeldSignals {
    /// Holds back what can be.
    #[must_use]
    pub fn new() -> Self {
        let held = NEVER_HELD
            .iter()
            .fold(u64::MAX, |mask, signal| mask & !bit(*signal));
        let mut own = 0;
        set_mask(libc::SIG_BLOCK, &held, &mut own);
        Self { own }
    }

    /// Whether a signal waits that ends a run under this mask, or under the thread's own.
    #[must_use]
    pub fn wait(&self, mask: Option<u64>) -> bool {
        let mut pending = 0_u64;
        // SAFETY: a set of the kernel's size.
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, size_of::<u64>()) };
        let mut left = pending & !mask.unwrap_or(self.own);
        while left != 0 {
            let signal = left.trailing_zeros() as i32 + 1;
            if !is_ignored(signal) {
                return true;
            }
            left &= left - 1;
        }
        false
    }
}

impl Default for HeldSignals {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        set_mask(libc::SIG_SETMASK, &self.own, ptr::null_mut());
    }
}

fn set_mask(how: i32, new: *const u64, old: *mut u64) {
    // SAFETY: sets of the kernel's size; `old` may be null.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, old, size_of::<u64>()) };
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: plain data, which the call fills.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks alone.
    if unsafe { libc::sigaction(signal, ptr::null(), &mut action) } != 0 {
        return false;
    }
    action.sa_sigaction == libc::SIG_IGN
        || action.sa_sigaction == libc::SIG_DFL && IGNORED.contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_waits_and_is_delivered_in_the_end() {
        static CALLS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        extern "C" fn handler(_: i32) {
            CALLS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let calls = || CALLS.load(std::sync::atomic::Ordering::Relaxed);
        // SAFETY: a handler that is sound at any time, and a signal to this thread alone.
        unsafe { libc::signal(libc::SIGUSR2, handler as *const () as usize) };
        let send = |signal| {
            // SAFETY: to this thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
        };
        let held = HeldSignals::new();
        assert!(!held.wait(None));
        send(libc::SIGWINCH);
        assert!(!held.wait(None), "ignored");
        send(libc::SIGUSR2);
        assert!(held.wait(None));
        assert!(!held.wait(Some(bit(libc::SIGUSR2))));
        assert_eq!(calls(), 0);
        drop(held);
        assert_eq!(calls(), 1);
    }
}
