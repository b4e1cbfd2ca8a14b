//! The bytes of one file: cutting, packing, uploading, fetching, caching.

pub mod chunker;
pub mod frame;
pub mod pack;
pub mod pack_reader;
pub mod pack_writer;
