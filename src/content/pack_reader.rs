//! Reads the directory of a pack, and finds the complete frames of a staged file that has none yet.

use super::frame::{self, Codec, FRAME_HEADER_BYTES, FrameHeader};
use super::pack::{
    DIRECTORY_ENTRY_BYTES, DIRECTORY_HASH_BYTES, FOOTER_CHECKED_BYTES, MAGIC, PACK_FOOTER_BYTES, PackEntry,
    PackError, VERSION,
};
use crate::base::codec::Reader;
use crate::base::hash::{BlockId, Hash, crc32c};
use crate::base::ids::{PackId, WriterId};
use crate::base::range::ByteRange;
use crate::store::Result;
use crate::store::device::Device;

/// What a pack's last bytes say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackFooter {
    pub id: PackId,
    /// Frames in the pack.
    pub count: u32,
    /// Where the directory is.
    pub directory: ByteRange,
    directory_hash: [u8; DIRECTORY_HASH_BYTES],
}

impl PackFooter {
    /// Reads the last [`PACK_FOOTER_BYTES`] of a pack of `pack_len` bytes.
    ///
    /// # Errors
    /// If they are not the footer of a pack of that length.
    pub fn parse(bytes: &[u8], pack_len: u64) -> std::result::Result<Self, PackError> {
        let mut reader = Reader::new("pack footer", bytes);
        let magic: [u8; 4] = reader.array()?;
        let (version, _flags, _reserved) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let (count, offset, directory_len) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let id = PackId { writer: WriterId(reader.u128()?), number: reader.u64()? };
        let directory_hash = reader.array()?;
        let checked = bytes.get(..FOOTER_CHECKED_BYTES).ok_or_else(|| reader.malformed())?;
        if magic != MAGIC || reader.u32()? != crc32c(checked) {
            return Err(PackError::FooterChecksum);
        }
        reader.finish()?;
        if version != VERSION {
            return Err(PackError::Version(version));
        }
        let directory = ByteRange::at(offset.into(), directory_len.into());
        let adds_up = u64::from(count) * u64::from(DIRECTORY_ENTRY_BYTES) == directory.len()
            && directory.end + u64::from(PACK_FOOTER_BYTES) == pack_len;
        adds_up.then_some(Self { id, count, directory, directory_hash }).ok_or(PackError::Bounds)
    }

    /// Reads the directory out of its bytes (those of [`Self::directory`]).
    ///
    /// # Errors
    /// If they are not those that were written with this footer, or do not describe frames that follow each other.
    pub fn parse_directory(&self, bytes: &[u8]) -> std::result::Result<Vec<PackEntry>, PackError> {
        if !Hash::of(bytes).0.starts_with(&self.directory_hash) {
            return Err(PackError::DirectoryHash);
        }
        let mut reader = Reader::new("pack directory", bytes);
        let mut entries = Vec::with_capacity(bytes.len() / DIRECTORY_ENTRY_BYTES as usize);
        let mut next = 0;
        while reader.remaining() != 0 {
            let index = entries.len();
            let (hash, plain_len) = (Hash(reader.array()?), reader.u32()?);
            let (offset, len, codec) = (reader.u32()?, reader.u32()?, reader.u8()?);
            let _reserved = reader.bytes(3)?;
            let codec = Codec::from_code(codec).ok_or(PackError::Entry(index))?;
            let entry = PackEntry { id: BlockId { hash, len: plain_len }, offset, len, codec };
            if !entry.has_valid_lengths() || u64::from(offset) != next {
                return Err(PackError::Entry(index));
            }
            next = entry.end();
            entries.push(entry);
        }
        if next == self.directory.start { Ok(entries) } else { Err(PackError::Bounds) }
    }
}

/// What a staged file holds.
pub struct Scan {
    /// Its complete frames, in order.
    pub entries: Vec<PackEntry>,
    /// The first byte behind the last of them; what follows is a torn write or the tail of a sealed pack.
    pub end: u64,
}

/// Finds the complete frames of a staged file of `len` bytes by walking from header to header, up to the first that is
/// torn or is none. Reads one frame at a time.
///
/// # Errors
/// Of the device. Bytes that are not a frame end the walk and are no error.
pub fn scan(device: &dyn Device, len: u64) -> Result<Scan> {
    let mut found = Scan { entries: Vec::new(), end: 0 };
    let mut buffer = Vec::new();
    loop {
        let Some(behind_header) = found.end.checked_add(FRAME_HEADER_BYTES.into()).filter(|&end| end <= len)
        else {
            return Ok(found);
        };
        buffer.resize(FRAME_HEADER_BYTES as usize, 0);
        device.read_at(&mut buffer, found.end)?;
        let Ok(header) = FrameHeader::parse(&buffer) else { return Ok(found) };
        let payload_end = behind_header + u64::from(header.stored_len);
        if len < payload_end {
            return Ok(found);
        }
        buffer.resize(header.frame_len() as usize, 0);
        let (_, payload) = buffer.split_at_mut(FRAME_HEADER_BYTES as usize);
        device.read_at(payload, behind_header)?;
        let (Ok(offset), Ok(header)) = (u32::try_from(found.end), frame::check(&buffer)) else {
            return Ok(found);
        };
        found.entries.push(PackEntry::new(&header, offset));
        found.end = payload_end;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::frame::{Compression, FrameEncoder};
    use super::super::pack_writer;
    use super::*;

    const ID: PackId = PackId { writer: WriterId(0x0102_0304), number: 5 };

    fn pack(blocks: &[&[u8]]) -> (Vec<u8>, Vec<PackEntry>, Hash) {
        let (mut bytes, mut entries) = (Vec::new(), Vec::new());
        let mut encoder = FrameEncoder::new(Compression::Zstd);
        for block in blocks {
            let offset = bytes.len() as u32;
            let frame = encoder.encode(BlockId::of(block), &Bytes::copy_from_slice(block));
            frame.write_to(|part| bytes.extend_from_slice(part));
            entries.push(PackEntry::new(&frame.header, offset));
        }
        let tail = pack_writer::tail(ID, &entries);
        bytes.extend_from_slice(&tail.bytes);
        assert_eq!(tail.receipt.len, bytes.len() as u64);
        (bytes, entries, tail.receipt.footer)
    }

    fn parse(bytes: &[u8]) -> std::result::Result<(PackFooter, Vec<PackEntry>), PackError> {
        let footer_at = bytes.len().saturating_sub(PACK_FOOTER_BYTES as usize);
        let footer = PackFooter::parse(&bytes[footer_at..], bytes.len() as u64)?;
        let directory = &bytes[footer.directory.start as usize..footer.directory.end as usize];
        Ok((footer, footer.parse_directory(directory)?))
    }

    #[test]
    fn a_pack_reads_back() {
        let packs: [&[&[u8]]; 3] = [&[], &[b"a"], &[b"a", &[7; 1000], b"ccc"]];
        for blocks in packs {
            let (bytes, entries, _) = pack(blocks);
            let (footer, read) = parse(&bytes).expect("pack");
            assert_eq!((footer.id, footer.count as usize, read), (ID, blocks.len(), entries));
        }
    }

    #[test]
    fn a_pack_has_the_documented_bytes() {
        let (bytes, ..) = pack(&[b"abc"]);
        let hex: String = bytes[63..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85\
             03000000000000003f00000000000000\
             4750414b01000000010000003f000000\
             300000000403020100000000000000000000000005000000\
             0000000075036417a69e86f04640737b4385e23b00089066"
        );
    }

    #[test]
    fn every_flipped_bit_of_directory_and_footer_is_noticed() {
        let (bytes, entries, _) = pack(&[b"abc", b"defg"]);
        let frames_end = entries[1].end() as usize;
        for bit in frames_end * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_pack_of_another_length_is_refused() {
        let (mut bytes, ..) = pack(&[b"abc"]);
        bytes.insert(0, 0);
        assert_eq!(parse(&bytes).expect_err("longer"), PackError::Bounds);
        assert_eq!(parse(&bytes[2..]).expect_err("shorter"), PackError::Bounds);
    }

    /// A device over fixed bytes.
    struct Fixed(Vec<u8>);

    impl Device for Fixed {
        fn len(&self) -> Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let start = offset as usize;
            buf.copy_from_slice(&self.0[start..start + buf.len()]);
            Ok(())
        }
        fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
            unreachable!("a scan only reads")
        }
        fn set_len(&self, _: u64) -> Result<()> {
            unreachable!("a scan only reads")
        }
        fn reserve(&self, _: u64) -> Result<()> {
            unreachable!("a scan only reads")
        }
        fn sync(&self) -> Result<()> {
            unreachable!("a scan only reads")
        }
    }

    fn scan_bytes(bytes: &[u8]) -> Vec<PackEntry> {
        scan(&Fixed(bytes.to_vec()), bytes.len() as u64).expect("scan").entries
    }

    #[test]
    fn a_scan_keeps_exactly_the_complete_frames_wherever_the_file_is_torn() {
        let (bytes, entries, _) = pack(&[b"abc", &[1; 500], b"x"]);
        for len in 0..=bytes.len() {
            let complete = entries.iter().filter(|entry| entry.end() <= len as u64).count();
            assert_eq!(scan_bytes(&bytes[..len]), entries[..complete], "torn at {len}");
            let mut zeroed = bytes.clone();
            zeroed[len..].fill(0);
            assert!(scan_bytes(&zeroed).len() >= complete, "zeros from {len}");
            assert!(scan_bytes(&zeroed).len() <= complete + 1, "zeros from {len}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(&bytes).is_err());
            prop_assert!(scan_bytes(&bytes).is_empty());
        }

        #[test]
        fn a_directory_whose_footer_was_forged_never_panics(
            count in 0..4u32, offset in any::<u32>(), bytes in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let directory_hash = Hash::of(&bytes).0[..DIRECTORY_HASH_BYTES].try_into().expect("16 bytes");
            let directory = ByteRange::at(offset.into(), bytes.len() as u64);
            let footer = PackFooter { id: ID, count, directory, directory_hash };
            if let Ok(entries) = footer.parse_directory(&bytes) {
                prop_assert!(entries.is_empty() && offset == 0);
            }
        }
    }
}
