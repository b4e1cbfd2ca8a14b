//! The conformance suites of the ports, run on every backend, and on broken ones to prove that they can fail.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

#[path = "conformance/blob_store.rs"]
mod blob_store;
#[path = "conformance/block_store.rs"]
mod block_store;
#[path = "conformance/device.rs"]
mod device;
#[path = "conformance/kv.rs"]
mod kv;
#[path = "conformance/object_store.rs"]
mod object_store;
#[path = "conformance/range_tracker.rs"]
mod range_tracker;

// The volume of the vfs tests, whose blobs are a backend like any other.
#[allow(dead_code, clippy::unwrap_used, reason = "written for the vfs tests, which need more of it")]
#[path = "vfs/faults.rs"]
mod faults;
#[allow(dead_code, clippy::unwrap_used, reason = "written for the vfs tests, which need more of it")]
#[path = "vfs/simulation.rs"]
mod simulation;
#[allow(dead_code, clippy::unwrap_used, reason = "written for the vfs tests, which need more of it")]
#[path = "vfs/world.rs"]
mod world;

#[path = "common/s3/mod.rs"]
mod s3;
