//! The vCPU trait over a byte stream, and the agent that serves a local backend.
