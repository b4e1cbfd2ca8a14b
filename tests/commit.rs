//! The committer over real ports: order, visibility, durability, and what a crash may cost.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

#[path = "commit/branches.rs"]
mod branches;
#[path = "commit/format.rs"]
mod format;
#[path = "commit/journal.rs"]
mod journal;
#[path = "commit/local.rs"]
mod local;
#[path = "commit/support.rs"]
mod support;
