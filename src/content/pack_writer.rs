//! Writes what ends a pack: its directory and footer.

use super::pack::{DIRECTORY_HASH_BYTES, MAGIC, PACK_FOOTER_BYTES, PackEntry, VERSION};
use crate::base::codec::Writer;
use crate::base::hash::{Hash, crc32c};
use crate::base::ids::PackId;
use crate::store::block::Receipt;

/// What follows the frames of a sealed pack.
pub struct PackTail {
    /// Directory and footer.
    pub bytes: Vec<u8>,
    /// What the pack's acknowledgement will say.
    pub receipt: Receipt,
}

/// The tail of the pack `id` with these frames, which follow each other from offset 0 without gaps.
#[must_use]
pub fn tail(id: PackId, entries: &[PackEntry]) -> PackTail {
    let mut writer = Writer::new();
    for entry in entries {
        writer.bytes(&entry.id.hash.0).u32(entry.id.len).u32(entry.offset).u32(entry.len);
        writer.u8(entry.codec as u8).bytes(&[0; 3]);
    }
    let directory_hash = Hash::of(&writer.buf);
    let directory_len = u32::try_from(writer.buf.len()).expect("bounded by PACK_FRAMES_BYTES_MAX");
    let directory_at = entries.last().map_or(0, PackEntry::end);
    let offset = u32::try_from(directory_at).expect("bounded by PACK_FRAMES_BYTES_MAX");
    let count = u32::try_from(entries.len()).expect("fewer than bytes");

    let mut footer = Writer::new();
    footer.bytes(&MAGIC).u8(VERSION).u8(0).u16(0).u32(count).u32(offset).u32(directory_len);
    footer.u128(id.writer.0).u64(id.number);
    footer.bytes(directory_hash.0.split_at(DIRECTORY_HASH_BYTES).0);
    let sum = crc32c(&footer.buf);
    footer.u32(sum);
    debug_assert_eq!(footer.buf.len(), PACK_FOOTER_BYTES as usize, "docs/format.md");

    writer.bytes(&footer.buf);
    let len = directory_at + writer.buf.len() as u64;
    let receipt = Receipt { len, footer: Hash::of(&writer.buf) };
    PackTail { bytes: writer.buf, receipt }
}
