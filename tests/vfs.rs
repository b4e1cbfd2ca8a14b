//! The filesystem without a kernel: operations on the vfs against models, over stores in memory.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "vfs/attributes.rs"]
mod attributes;
#[path = "vfs/blobs.rs"]
mod blobs;
#[path = "vfs/content.rs"]
mod content;
#[path = "vfs/namespace.rs"]
mod namespace;
#[path = "vfs/world.rs"]
mod world;
