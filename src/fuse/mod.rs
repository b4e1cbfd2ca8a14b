//! Kernel protocol to vfs calls and back; the only user of `fuser`.
