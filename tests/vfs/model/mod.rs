//! The reference: a filesystem as a tree of plain values, too simple to be wrong. It does what ext4 does and knows
//! nothing of how the product goes about it.

pub(crate) mod content;
pub(crate) mod tree;
