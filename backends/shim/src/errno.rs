//! The kernel's error numbers, as a type.

/// What an ioctl fails with: a positive number of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What an ioctl answers: a value that is not negative, or an error.
pub type Answer = Result<i32, Errno>;

/// Each number that we use, by its name.
macro_rules! numbers {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Self = Self(libc::$name);
            )*
            /// `EINVAL` and so on, where we know it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "?",
                }
            }
        }
    };
}

numbers!(EPERM ENOENT EINTR EIO ENXIO E2BIG ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV EINVAL EMFILE ENOTTY ENOSPC
    EROFS ERANGE ENOSYS EAGAIN EOPNOTSUPP EBADF);

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

impl From<nvmx_abi::Invalid> for Errno {
    fn from(_: nvmx_abi::Invalid) -> Self {
        Self::EINVAL
    }
}
