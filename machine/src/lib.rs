//! What stands around a vCPU: guest images, the state they start in, and the few devices that
//! every backend shares.
//!
//! [`image`] reads bzImages, multiboot and ELF files as hostile bytes and says what to put where;
//! [`driver`] runs a [`nvmx_core::vcpu::Vm`] and answers its port accesses, so that a guest meets
//! the same serial port, debug exit and checkpoint port on every backend. [`pc`] is the larger machine
//! that images for QEMU's `pc` expect.
#![forbid(unsafe_code)]

pub mod driver;
pub mod image;
pub mod memory_map;
pub mod pc;
pub mod ports;
pub mod start;

pub use driver::{Driver, Stop};
pub use image::{ImageError, LoadOptions, LoadedImage, Module, boot, load};
