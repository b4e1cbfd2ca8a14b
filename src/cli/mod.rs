//! Parse, wire, run: the only place that names concrete backends.

pub mod args;
pub mod daemon;
pub mod environment;
pub mod exit;
pub mod lock;
pub mod mount_table;
pub mod mountpoint;
mod nearest;
pub mod options;
pub mod volume;
