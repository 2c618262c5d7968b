//! Snapshots of a machine with its nested state: capture, files, diff, replay, compare.
