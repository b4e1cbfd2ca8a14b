//! Parse, wire, run: the only place that names concrete backends.

#![expect(clippy::disallowed_methods, reason = "here the machine is handed to the engine as parameters")]

pub mod args;
pub mod control;
pub mod daemon;
pub mod environment;
pub mod exit;
pub mod lock;
pub mod mount_table;
pub mod mountpoint;
mod nearest;
pub mod options;
pub mod registry;
pub mod report;
pub mod volume;
