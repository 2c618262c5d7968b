//! nvmx: the command.
fn main() {}
