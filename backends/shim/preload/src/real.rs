//! The functions of the C library behind ours.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function by its name, looked up at its first use.
pub(crate) struct Real {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Real {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Its address; the process ends if the C library lacks it, as it would have without us.
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: a name that ends in a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        if found.is_null() {
            std::process::abort();
        }
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// The C library's function of this name, as a function of this type.
macro_rules! real {
    ($name:literal as $type:ty) => {{
        static REAL: $crate::real::Real = $crate::real::Real::new($name);
        // SAFETY: the type is that of the function in the C library's headers; what is variable there is
        // passed in the same registers.
        unsafe { std::mem::transmute::<*mut std::ffi::c_void, $type>(REAL.address()) }
    }};
}
pub(crate) use real;
