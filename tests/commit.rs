//! The committer over real ports: order, visibility, durability, and what a crash may cost.

#[path = "commit/format.rs"]
mod format;
#[path = "commit/journal.rs"]
mod journal;
#[path = "commit/local.rs"]
mod local;
#[path = "commit/support.rs"]
mod support;
