//! The vocabulary of the product: ids, ranges, names, attributes, hashes, time. No I/O, no async.

pub mod acl;
pub mod attr;
pub mod codec;
pub mod hash;
pub mod ids;
pub mod limits;
pub mod name;
pub mod page_buffer;
pub mod range;
pub mod range_set;
pub mod size;
pub mod sync;
pub mod time;
