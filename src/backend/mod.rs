//! The stores themselves, and wrappers of the ports. Only `cli` names anything in here.

pub mod local;
pub mod memory_device;
pub mod memory_kv;
pub mod redb;
