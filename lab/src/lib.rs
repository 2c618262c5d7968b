//! Real Linux KVM with nested VMX on machines without VMX: Debian's kernel inside Debian's Bochs.
//!
//! [`Lab::start`] boots Debian's stock cloud kernel with `kvm_intel nested=1` in Debian's stock Bochs, which emulates
//! an Intel CPU with VMX, runs one static program (the agent) in it, and hands out a byte stream to that program.
//! Inside, the agent opens the other end with [`GuestChannel::open`].
//!
//! | module | what it is |
//! |---|---|
//! | [`config`] | what a lab is made of: kernel, agent, CPU model, limits |
//! | [`error`] | why a lab failed, at which stage, and what to do |
//! | [`agent`] | the program inside, found or built |
//! | [`cache`] | the unpacked kernels, and the script that makes them |
//! | [`cpio`], [`initramfs`] | the guest's root file system |
//! | [`vmlinux`], [`boot_code`], [`boot_disk`] | the disk that starts the kernel without a boot loader |
//! | [`bare`] | a guest image on that emulator alone, whose own VMX then serves L1 |
//! | [`bochs`], [`console`] | the emulator as a child process, and what the guest prints |
//! | [`programs`] | a program run to its end, here or inside, with a time limit |
//! | [`mailbox`], [`stream`], [`guest`] | the byte stream: layout on a shared disk, host's end, guest's end |
#![forbid(unsafe_code)]

pub mod agent;
pub mod bare;
pub mod bochs;
pub mod boot_code;
pub mod boot_disk;
pub mod cache;
pub mod config;
pub mod console;
pub mod cpio;
pub mod error;
pub mod guest;
pub mod initramfs;
pub mod mailbox;
pub mod programs;
pub mod stream;
pub mod vmlinux;

mod lab;

pub use config::{Kernel, LabConfig, Stage};
pub use error::LabError;
pub use guest::GuestChannel;
pub use lab::Lab;
pub use stream::LabStream;
