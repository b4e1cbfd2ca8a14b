//! GravitonFS: an S3 bucket as an ordinary POSIX directory.
//!
//! Modules in reading order, lowest layer first; `docs/architecture.md` has the picture, `tests/tidy.rs` keeps the
//! arrows pointing down.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")
)]

pub mod base;
pub mod rt;
pub mod telemetry;

pub mod store;

pub mod backend;

pub mod commit;
pub mod content;

pub mod vfs;

pub mod maint;

pub mod fuse;

pub mod cli;
