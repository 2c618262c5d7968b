//! The room of what only the system can do: memory of the caller, shared pages, signals. All `unsafe`
//! of the crate is here.

mod event;
mod memory;
mod pages;
mod plain;
mod sent;
mod signals;
mod user;

pub use event::EventFile;
pub(crate) use memory::add_memory;
pub use pages::{RunPages, SIZE as PAGES_SIZE};
pub(crate) use pages::{descriptor, text};
pub use plain::Plain;
pub use sent::Sent;
pub use signals::HeldSignals;
pub use user::User;
