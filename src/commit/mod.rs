//! Order and durability of metadata changes: batches are ordered, logged and visible at once, applied to the key-value
//! store and sent to the bucket behind the caller's back. Knows rows, not what they mean.
//!
//! The way of a batch: [`Committer::submit`] -> local log (not synced) and memory -> visible ->
//! applied to the key-value store, in groups | sent as a journal record, in groups.
//! [`Committer::sync_local`] and [`Committer::flush`] wait for the two tiers of durability.

mod apply;
pub mod batch;
mod checkpoint;
pub(crate) mod checkpoint_format;
mod committer;
pub(crate) mod journal;
mod latch;
pub(crate) mod local;
mod log;
mod memtable;
pub(crate) mod record;
mod rows;
mod sync;
pub mod system;
mod view;

pub use batch::{Batch, Expect, Op, Ticket};
pub(crate) use committer::RecoveredParts;
pub use committer::{Committer, CommitterParts, Limits, Pending};
pub use sync::Staging;
pub use view::View;
