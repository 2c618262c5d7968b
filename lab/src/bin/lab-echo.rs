//! The smallest agent: sends back what it gets. For the lab's own tests and for measuring the channel.
//!
//! Protocol: one command byte, a little-endian u32 length; `e` echoes that many bytes, `s` swallows that many bytes
//! and answers with their checksum, `g` sends that many bytes, `x` panics, `k` makes the kernel panic, `q` ends with status `length`.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

use nvmx_lab::GuestChannel;
use nvmx_lab::mailbox::checksum;

fn main() -> io::Result<()> {
    let nested =
        std::fs::read_to_string("/sys/module/kvm_intel/parameters/nested").unwrap_or_default();
    eprintln!(
        "lab-echo: kvm_intel nested={}, /dev/kvm {}",
        nested.trim(),
        std::path::Path::new("/dev/kvm").exists()
    );
    let mut channel = GuestChannel::open()?;
    loop {
        let mut head = [0; 5];
        channel.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; length as usize];
        match head[0] {
            b'e' => {
                channel.read_exact(&mut body)?;
                channel.write_all(&body)?;
            }
            b's' => {
                channel.read_exact(&mut body)?;
                channel.write_all(&checksum(&body).to_le_bytes())?;
            }
            b'g' => {
                for (at, byte) in body.iter_mut().enumerate() {
                    *byte = (at % 251) as u8;
                }
                channel.write_all(&body)?;
            }
            b'x' => panic!("asked to panic"),
            b'k' => std::fs::write("/proc/sysrq-trigger", "c")?,
            b'q' => std::process::exit(length as i32),
            other => eprintln!("lab-echo: unknown command {other:#x}"),
        }
    }
}
