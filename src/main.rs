//! Entry point of `gravitonfs`.

fn main() {}
