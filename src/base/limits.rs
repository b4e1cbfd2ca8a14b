//! Every compile-time limit with its unit and reason.

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Longest name in bytes, as on every Linux filesystem (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Longest symlink target in bytes (`PATH_MAX` less the NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;

/// Largest file in bytes: offsets stay below 2^63 for `off_t`, less one page so that the kernel's
/// own rounding up never overflows.
pub const FILE_BYTES_MAX: u64 = (1 << 63) - 4096;

/// Largest block in bytes. A reader reserves this much before it knows what it gets.
pub const BLOCK_BYTES_MAX: u32 = 16 << 20;

/// Longest extended attribute name and value in bytes, as the kernel limits them.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;

/// Longest list of the names of one inode's extended attributes in bytes (`XATTR_LIST_MAX`): with more the kernel lists
/// none. It also bounds how many rows an inode has here, to what one batch can remove.
pub const XATTR_LIST_BYTES_MAX: usize = 65_536;

/// Largest number of links to one file, as ext4 has it.
pub const LINKS_MAX: u32 = 65_000;

/// Size a pack is sealed at, in bytes: large enough that requests cost nothing beside the bytes,
/// small enough to send again whole after a lost connection.
pub const PACK_BYTES_TARGET: u64 = 16 * MIB;

/// Files up to this size in bytes live in the metadata, and travel with it.
pub const INLINE_BYTES_MAX: u64 = 2 * KIB;

/// Most bytes of rows one batch may carry (rule R17), and the size a journal record is cut at.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Entries in one manifest segment at most: a small overwrite rewrites one segment.
pub const SEGMENT_ENTRIES_MAX: usize = 256;
