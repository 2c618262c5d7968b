//! L1 hypervisors with their L2s, assembled in Rust, a page each.
