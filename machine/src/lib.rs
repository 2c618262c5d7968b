//! What stands around a vCPU: guest images, the state they start in, and the few devices that every backend shares.
