//! Between the kernel's structures (Linux `arch/x86/include/uapi/asm/kvm.h`) and nvmx-core's, both ways:
//! `kvm` asks a kernel with them, `shim` answers as one.
//!
//! What one side has no place for is said, never dropped in silence.
#![forbid(unsafe_code)]

pub mod areas;
pub mod cpuid;
pub mod events;
pub mod refusal;
pub mod registers;

pub use events::EventFeatures;
pub use refusal::Invalid;
