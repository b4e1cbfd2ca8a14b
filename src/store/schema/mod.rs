//! The metadata schema: which tables there are, how their keys and rows are spelled, how shared rows merge.
//! docs/format.md, "Metadata tables", has the byte tables.

pub mod inode;
pub mod manifest;
pub mod merge;
pub mod pack;

use super::kv::Table;
use crate::base::hash::Hash;
use crate::base::ids::{Ino, PackId, SegmentId, WriterId};
use crate::base::name::Name;

/// Attributes of every inode: `ino` to [`inode::InodeRow`].
pub const INODE: Table = Table(1);
/// Directory entries: `parent, cookie` to [`inode::DentryRow`]. One row serves lookup and readdir.
pub const DENTRY: Table = Table(2);
/// Content of small files and targets of symlinks: `ino` to bytes.
pub const INLINE: Table = Table(3);
/// Which segments make up a file: `ino, end offset` to [`manifest::ManifestRow`]. Keyed by the end so that one
/// forward scan finds the row that covers an offset.
pub const MANIFEST: Table = Table(4);
/// Immutable runs of block references: `segment` to [`manifest::Segment`].
pub const SEGMENT: Table = Table(5);
/// How many manifest rows name a segment: `segment` to a count. Shared: changed by deltas only (rule R4).
pub const SEGMENT_REFS: Table = Table(6);
/// Where a block is and how many segments name it: block key to [`pack::BlockRow`]. Shared.
pub const BLOCK: Table = Table(7);
/// What is known of a pack: pack key to [`pack::PackRow`]. Shared.
pub const PACK: Table = Table(8);
/// Extended attributes: `ino, name` to value.
pub const XATTR: Table = Table(9);
/// Inodes without a link that may still be open: `ino` to nothing.
pub const ORPHAN: Table = Table(10);
/// Totals and number ranges: counter id to `i64`. Shared.
pub const COUNTER: Table = Table(11);
/// Blobs put by command: key to the inode that holds the content.
pub const BLOB: Table = Table(12);
/// Segments no row names any more, waiting to release their blocks: `segment` to nothing. Shared.
pub const DEAD_SEGMENT: Table = Table(13);

/// Tables from here on stay on this machine: neither journal nor checkpoint carries them.
pub const LOCAL_FIRST: u8 = 0x80;
/// Staged content that no committed manifest names yet: `ino, seal` to an encoded seal.
pub const OVERLAY: Table = Table(0x90);

/// Counters, by the key of their row in [`COUNTER`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Counter {
    /// Inodes with a row, the root included.
    Inodes = 1,
    /// Bytes of all files as `st_blocks` counts them.
    AllocatedBytes = 2,
    /// Bytes of frames that some segment names.
    StoredBytes = 3,
    /// First inode number that no range has been taken from (rule R13).
    NextIno = 4,
    /// First segment number that no range has been taken from.
    NextSegment = 5,
    /// Regular files, the unit of `status`' `files`.
    Files = 6,
    /// Bytes of all regular files by their committed size.
    LogicalBytes = 7,
}

impl Counter {
    #[must_use]
    pub fn key(self) -> Vec<u8> {
        vec![self as u8]
    }
}

/// Key of a row that belongs to one inode.
#[must_use]
pub fn ino_key(ino: Ino) -> Vec<u8> {
    ino.0.to_be_bytes().to_vec()
}

/// The inode of [`ino_key`].
#[must_use]
pub fn parse_ino_key(key: &[u8]) -> Option<Ino> {
    key.try_into().ok().map(u64::from_be_bytes).map(Ino)
}

/// Key made of two numbers, ordered by the first, then the second.
#[must_use]
pub fn pair_key(first: u64, second: u64) -> Vec<u8> {
    let mut key = first.to_be_bytes().to_vec();
    key.extend_from_slice(&second.to_be_bytes());
    key
}

/// The numbers of [`pair_key`].
#[must_use]
pub fn parse_pair_key(key: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = key.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*first), u64::from_be_bytes(second.try_into().ok()?)))
}

/// First key above all that begin with `ino`'s number.
#[must_use]
pub fn ino_key_end(ino: Ino) -> Vec<u8> {
    (ino.0 + 1).to_be_bytes().to_vec()
}

#[must_use]
pub fn segment_key(id: SegmentId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

#[must_use]
pub fn pack_key(id: PackId) -> Vec<u8> {
    let mut key = id.writer.0.to_be_bytes().to_vec();
    key.extend_from_slice(&id.number.to_be_bytes());
    key
}

/// The pack of [`pack_key`].
#[must_use]
pub fn parse_pack_key(key: &[u8]) -> Option<PackId> {
    let (writer, number) = key.split_first_chunk::<16>()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some(PackId { writer: WriterId(u128::from_be_bytes(*writer)), number })
}

#[must_use]
pub fn xattr_key(ino: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = ino_key(ino);
    key.extend_from_slice(name);
    key
}

/// Position of a directory entry: the upper 56 bits hash the name, the lower 7 tell apart names with one hash.
/// Never 0, 1 or 2 (start, `.` and `..`), and positive as an `off_t`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cookie(pub u64);

/// Entries of one directory whose names may share a hash. Beyond, a create fails with ENOSPC: with 56 bits that
/// needs 128 chosen collisions.
pub const COOKIES_PER_HASH: u64 = 1 << 7;

impl Cookie {
    /// The first of the [`COOKIES_PER_HASH`] places where `name` may be.
    #[must_use]
    pub fn first_of(name: &Name) -> Self {
        let hash = Hash::of(name.as_bytes());
        let (head, _) = hash.0.split_first_chunk::<8>().expect("a hash has 32 bytes");
        Self((u64::from_be_bytes(*head) >> 8).max(1) * COOKIES_PER_HASH)
    }

    /// Key of the entry at this place in `parent`.
    #[must_use]
    pub fn key(self, parent: Ino) -> Vec<u8> {
        pair_key(parent.0, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_sort_by_number() {
        assert_eq!(parse_pair_key(&pair_key(3, u64::MAX)), Some((3, u64::MAX)));
        assert!(pair_key(1, u64::MAX) < ino_key_end(Ino(1)));
        let pack = PackId { writer: WriterId(5 << 80), number: 9 };
        assert_eq!(parse_pack_key(&pack_key(pack)), Some(pack));
    }

    #[test]
    fn cookies_leave_room_for_dot_and_dotdot_and_fit_an_off_t() {
        for text in ["a", "b", "some longer name"] {
            let cookie = Cookie::first_of(&Name::new(text.as_bytes()).expect("valid"));
            assert!(cookie.0 > 2 && i64::try_from(cookie.0 + COOKIES_PER_HASH).is_ok(), "{text}");
        }
    }
}
