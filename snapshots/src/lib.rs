//! Snapshots of a machine with its nested state: capture, files, diff, replay, compare.
#![forbid(unsafe_code)]

pub mod atomic;
pub mod capture;
pub mod check;
pub mod compare;
pub mod diff;
pub mod document;
pub mod error;
pub mod explain;
pub mod file;
pub mod hex;
pub mod limits;
pub mod model;
pub mod pages;
pub mod pages_file;
pub mod policy;
pub mod replay;
pub mod rows;

pub use capture::{MemoryScope, Target, capture, restore};
pub use diff::Diff;
pub use error::{Error, Result};
pub use explain::Explanation;
pub use file::{load, save};
pub use limits::Limits;
pub use model::{Meta, Snapshot, VcpuSnapshot};
pub use pages::PageStore;
