//! The kvm backend: the vCPU trait over \/dev\/kvm.
