//! The pack format (docs/format.md, "Pack"): frames back to back, a directory of them, a footer that finds it.
//! `pack_writer` writes it, `pack_reader` reads it.

use super::frame::{Codec, FRAME_HEADER_BYTES, FrameHeader};
use crate::base::codec::DecodeError;
use crate::base::hash::BlockId;
use crate::base::ids::PackId;
use crate::base::limits::BLOCK_BYTES_MAX;
use crate::store::block::BlockLocation;

pub const PACK_FOOTER_BYTES: u32 = 64;
pub(super) const DIRECTORY_ENTRY_BYTES: u32 = 48;
pub(super) const MAGIC: [u8; 4] = *b"GPAK";
pub(super) const VERSION: u8 = 1;
/// Bytes of the directory's BLAKE3 kept in the footer.
pub(super) const DIRECTORY_HASH_BYTES: usize = 16;
/// What the checksum of the footer covers: all before it.
pub(super) const FOOTER_CHECKED_BYTES: usize = 60;

/// Longest part of a pack before its directory, in bytes. Offsets are 32 bits wide; the rest is room for the directory
/// of that many bytes of smallest frames.
pub const PACK_FRAMES_BYTES_MAX: u64 = 1 << 31;

/// Where one frame of a pack is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackEntry {
    pub id: BlockId,
    /// Of the frame's header, in bytes from the start of the pack.
    pub offset: u32,
    /// Bytes of header and payload.
    pub len: u32,
    pub codec: Codec,
}

impl PackEntry {
    #[must_use]
    pub fn new(header: &FrameHeader, offset: u32) -> Self {
        Self { id: header.id, offset, len: header.frame_len(), codec: header.codec }
    }

    #[must_use]
    pub fn location(&self, pack: PackId) -> BlockLocation {
        BlockLocation::Frame { pack, offset: self.offset, len: self.len }
    }

    /// The first byte behind the frame.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }

    pub(super) fn has_valid_lengths(&self) -> bool {
        let plain_valid = (1..=BLOCK_BYTES_MAX).contains(&self.id.len);
        let raw_len = FRAME_HEADER_BYTES + self.id.len.min(BLOCK_BYTES_MAX);
        let frame_valid = match self.codec {
            Codec::Raw => self.len == raw_len,
            Codec::Zstd => FRAME_HEADER_BYTES < self.len && self.len < raw_len,
        };
        plain_valid && frame_valid
    }
}

/// Why bytes are not a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error("pack footer fails its checksum")]
    FooterChecksum,
    #[error("pack version {0} is newer than this program")]
    Version(u8),
    #[error("pack footer places the directory out of bounds")]
    Bounds,
    #[error("pack directory is not the one its footer was written for")]
    DirectoryHash,
    #[error("pack directory entry {0} is not valid")]
    Entry(usize),
}
