//! What works on whole volumes: making one, recovery from what is left of one.

pub mod format;
