//! Parse, wire, run: the only place that names concrete backends.

pub mod args;
pub mod environment;
pub mod exit;
mod nearest;
pub mod options;
pub mod volume;
