//! The bytes of one file: cutting, packing, uploading, fetching, caching.
