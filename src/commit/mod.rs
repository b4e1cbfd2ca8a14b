//! Order and durability of metadata changes.
