//! Order and durability of metadata changes: batches are ordered, logged and visible at once, applied to the key-value
//! store and sent to the bucket behind the caller's back. Knows rows, not what they mean.
//!
//! The way of a batch: [`Committer::submit`] -> local log (not synced) and [`memtable`] -> visible ->
//! [`apply`] to the key-value store, in groups | [`journal`] record in the bucket, in groups.
//! [`Committer::sync_local`] and [`Committer::flush`] wait for the two tiers of durability.

mod apply;
pub mod batch;
mod committer;
mod latch;
mod local;
mod log;
mod memtable;
mod rows;
mod sync;
pub mod system;
mod view;

pub use batch::{Batch, Expect, Op, Ticket};
pub use committer::{Committer, CommitterParts, Limits, Pending};
pub use sync::Staging;
pub use view::View;
