//! What can go wrong with a snapshot, always with the file, the place in it, the reason and what to do.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a snapshot could not be read, written, taken or restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system said no.
    #[error("{}: cannot {doing}: {source}{}", path.display(), hint(source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried: "read", "write", ...
        doing: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// The content is not what it must be.
    #[error("{}: {place}: {reason}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where: field, line and column, or byte offset.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// The file is larger than we are willing to read.
    #[error("{}: {size} bytes, the limit is {limit}; if the file is what you think it is, raise the limit in `Limits`", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size, or the size it claims to unpack to, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A backend refused something.
    #[error("{doing}: {source}")]
    Backend {
        /// What was tried.
        doing: String,
        /// The backend's word.
        source: nvmx_core::vcpu::BackendError,
    },
    /// The snapshot does not fit what it is used for.
    #[error("{0}")]
    Unfit(String),
}

/// A word of help for the errors that people meet.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (check the path)",
        io::ErrorKind::StorageFull => {
            " (free some space and try again; nothing was left half-written)"
        }
        io::ErrorKind::PermissionDenied => " (check the permissions of the file and its folder)",
        _ => "",
    }
}

/// Result of a snapshot operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            doing,
            source,
        }
    }

    pub(crate) fn content(
        path: &Path,
        place: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Content {
            path: path.to_owned(),
            place: place.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn backend(
        doing: impl Into<String>,
    ) -> impl FnOnce(nvmx_core::vcpu::BackendError) -> Self {
        let doing = doing.into();
        move |source| Self::Backend { doing, source }
    }
}
