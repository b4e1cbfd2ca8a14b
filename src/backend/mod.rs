//! The stores themselves, and wrappers of the ports. Only `cli` names anything in here.

#![expect(clippy::disallowed_methods, reason = "backends are where the machine is reached")]

pub mod dir;
mod dir_list;
mod direct_io;
pub mod local;
pub mod memory_blob;
pub mod memory_block;
pub mod memory_device;
pub mod memory_kv;
pub mod memory_object;
pub mod range_tracker;
pub mod redb;
pub mod s3;
pub mod wrap;
