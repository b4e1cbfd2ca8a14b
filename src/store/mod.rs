//! The ports: small object-safe traits, the values they exchange, their error. Words used in their contracts:
//! *atomic*: all or nothing, also to a concurrent observer; *durable*: survives power loss once the call has returned;
//! *idempotent*: repeating the call, also after an unknown outcome, changes nothing more.

pub mod blob;
pub mod block;
pub mod device;
pub mod error;
pub mod keys;
pub mod kv;
pub mod merge;
pub mod object;
pub mod probe;
pub mod range_tracker;
pub mod schema;
pub mod superblock;

pub use error::{Error, Kind, Result};
