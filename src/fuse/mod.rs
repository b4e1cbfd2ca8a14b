//! Kernel protocol to vfs calls and back; the only user of `fuser`.
//!
//! Requests arrive on one or two plain threads. What touches only memory and local metadata is answered there; what may
//! wait hands its reply over to the runtime (`handoff.rs`), so that a reader thread never waits for the network.

mod adapter;
mod asker;
mod convert;
mod directory;
mod errno;
mod handoff;
mod negotiate;
mod notice;
mod reply;
mod selftest;
mod session;

pub use adapter::{Adapter, AdapterParts};
pub use convert::Presentation;
pub use selftest::{PROBE_BYTES, SelfTest};
pub use session::Session;
