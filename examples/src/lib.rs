//! L1 hypervisors with their L2s, assembled in Rust, a page each.
//!
//! [`guests::all`] lists them; each builds an [`Image`] that `nvmx run`, GRUB and syslinux'
//! `mboot.c32` start (multiboot 1). [`runtime`] is what they share: the way from a boot loader into
//! 64-bit mode, exception handlers, and the few routines of a hypervisor that every one needs.
#![forbid(unsafe_code)]

pub mod guests;
pub mod image;
pub mod runtime;

pub use guests::{Guest, all};
pub use image::Image;
pub use runtime::{BuildError, Params};
