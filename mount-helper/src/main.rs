//! Entry point of `mount.gravitonfs`.

fn main() {}
