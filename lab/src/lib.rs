//! Real Linux KVM with nested VMX on machines without VMX: Debian's kernel inside Debian's Bochs.
