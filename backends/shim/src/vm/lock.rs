//! A lock that is given in the order of asking: a vCPU that runs slice after slice must not starve the others.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A value behind a fair lock.
pub(crate) struct FairLock<T> {
    /// The ticket that the next to ask gets.
    next: AtomicU64,
    /// The ticket whose turn it is.
    turn: Mutex<u64>,
    called: Condvar,
    value: Mutex<T>,
}

/// The lock, held.
pub(crate) struct Guard<'a, T> {
    lock: &'a FairLock<T>,
    /// Always there until it is dropped.
    value: Option<MutexGuard<'a, T>>,
}

impl<T> FairLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            next: AtomicU64::new(0),
            turn: Mutex::new(0),
            called: Condvar::new(),
            value: Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while *turn != ticket {
            turn = self
                .called
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(turn);
        Guard {
            lock: self,
            value: Some(self.value.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Whether somebody waits while one holds it.
    pub(crate) fn is_wanted(&self) -> bool {
        let turn = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.next.load(Ordering::Relaxed) > turn + 1
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        let mut turn = self
            .lock
            .turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *turn += 1;
        drop(turn);
        self.lock.called.notify_all();
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("held until it is dropped")
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held until it is dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn whoever_asks_is_served_before_the_holder_comes_again() {
        let lock = Arc::new(FairLock::new(Vec::new()));
        let held = lock.lock();
        assert!(!lock.is_wanted());
        let other = Arc::clone(&lock);
        let thread = thread::spawn(move || other.lock().push("other"));
        while !lock.is_wanted() {
            thread::yield_now();
        }
        drop(held);
        lock.lock().push("holder");
        thread.join().expect("no panic");
        assert_eq!(*lock.lock(), ["other", "holder"]);
    }
}
