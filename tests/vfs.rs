//! The filesystem without a kernel: operations on the vfs against models, over stores in memory.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "vfs/acl.rs"]
mod acl;
#[path = "vfs/attributes.rs"]
mod attributes;
#[path = "vfs/backlog.rs"]
mod backlog;
#[path = "vfs/blobs.rs"]
mod blobs;
#[path = "vfs/content.rs"]
mod content;
#[path = "vfs/faults.rs"]
mod faults;
#[path = "vfs/linear.rs"]
mod linear;
#[path = "vfs/model/mod.rs"]
mod model;
#[path = "vfs/namespace.rs"]
mod namespace;
#[path = "vfs/random_tree/mod.rs"]
mod random_tree;
#[path = "vfs/regressions.rs"]
mod regressions;
#[path = "vfs/simulation.rs"]
mod simulation;
#[path = "vfs/world.rs"]
mod world;
