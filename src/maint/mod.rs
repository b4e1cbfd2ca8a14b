//! What works on whole volumes: making one, recovery from what is left of one, checking one.

mod branches;
mod catch_up;
pub mod check;
pub mod format;
pub mod recovery;
