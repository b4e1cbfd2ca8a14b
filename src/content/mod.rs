//! The bytes of one file: cutting, packing, uploading, fetching, caching.

pub mod block_cache;
pub mod chunker;
pub mod extent_map;
mod fetch;
pub mod frame;
pub mod framed;
pub mod manifest;
pub mod overlay;
pub mod pack;
pub mod pack_cache;
pub(crate) mod pack_listing;
pub mod pack_reader;
pub mod pack_writer;
pub mod seal;
pub mod seal_row;
pub mod single;
pub mod spill;
pub mod staged_files;
mod staging;
mod upload;
