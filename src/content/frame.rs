//! The stored form of a block: a fixed header and the payload, raw or compressed (docs/format.md, "Frame"). It holds
//! nothing of the file a block came from, so that files can share it.

use std::io;

use bytes::Bytes;

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::{BlockId, Hash, crc32c};
use crate::base::limits::BLOCK_BYTES_MAX;

/// Bytes of the header.
pub const FRAME_HEADER_BYTES: u32 = 60;

const MAGIC: [u8; 4] = *b"GFRM";
const VERSION: u8 = 1;
/// What the checksum of the header covers: all before it.
const CHECKED_BYTES: usize = 56;

/// Level 1 is three to five times faster to write than what the next levels save is worth.
const ZSTD_LEVEL: i32 = 1;
/// A payload is kept compressed only if it is shorter than 31/32 of the block: less is not worth a decompression at
/// every read.
const KEEP_SHORTER_THAN: (usize, usize) = (31, 32);
/// Two samples of this many bytes decide for blocks longer than four of them whether to try at all.
const SAMPLE_BYTES: usize = 16 << 10;

/// How blocks are compressed when they are stored; reading needs no setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    None,
    #[default]
    Zstd,
}

/// How a payload is stored. The numbers are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Codec {
    Raw = 0,
    Zstd = 1,
}

impl Codec {
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why bytes are not the frame asked for.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error("frame header fails its checksum")]
    HeaderChecksum,
    #[error("frame version {0} is newer than this program")]
    Version(u8),
    #[error("frame codec {0} is unknown")]
    Codec(u8),
    #[error("frame is encrypted with key {0}, which is not known")]
    Key(u32),
    #[error("frame flags {0:#06x} are unknown")]
    Flags(u16),
    #[error("frame length fields are out of bounds")]
    Length,
    #[error("frame payload fails its checksum")]
    PayloadChecksum,
    #[error("frame payload does not decompress")]
    Decompress(#[source] io::Error),
    #[error("frame holds {0}")]
    OtherBlock(BlockId),
    #[error("frame payload is not the block it names")]
    Hash,
}

/// The fields of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    pub id: BlockId,
    pub codec: Codec,
    /// Length of the payload in bytes.
    pub stored_len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; what follows is not looked at.
    ///
    /// # Errors
    /// If it is not a header this program can use. Lengths of a header that is returned are within their bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new("frame header", bytes);
        if reader.array()? != MAGIC {
            return Err(DecodeError { what: "frame header", at: 0 }.into());
        }
        let version = reader.u8()?;
        let (codec, flags, key) = (reader.u8()?, reader.u16()?, reader.u32()?);
        let (plain_len, stored_len) = (reader.u32()?, reader.u32()?);
        let id = BlockId { hash: Hash(reader.array()?), len: plain_len };
        let payload_crc = reader.u32()?;
        let checked = bytes.get(..CHECKED_BYTES).ok_or_else(|| reader.malformed())?;
        if reader.u32()? != crc32c(checked) {
            return Err(FrameError::HeaderChecksum);
        }
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let codec = Codec::from_code(codec).ok_or(FrameError::Codec(codec))?;
        if key != 0 {
            return Err(FrameError::Key(key));
        }
        if flags != 0 {
            return Err(FrameError::Flags(flags));
        }
        let header = Self { id, codec, stored_len, payload_crc };
        header.has_valid_lengths().then_some(header).ok_or(FrameError::Length)
    }

    fn has_valid_lengths(&self) -> bool {
        let plain_valid = (1..=BLOCK_BYTES_MAX).contains(&self.id.len);
        let stored_valid = match self.codec {
            Codec::Raw => self.stored_len == self.id.len,
            Codec::Zstd => (1..self.id.len).contains(&self.stored_len),
        };
        plain_valid && stored_valid
    }

    /// Bytes of header and payload.
    #[must_use]
    pub fn frame_len(&self) -> u32 {
        FRAME_HEADER_BYTES + self.stored_len
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(&MAGIC).u8(VERSION).u8(self.codec as u8).u16(0).u32(0);
        writer.u32(self.id.len).u32(self.stored_len).bytes(&self.id.hash.0).u32(self.payload_crc);
        let sum = crc32c(&writer.buf);
        writer.u32(sum);
        writer.buf
    }
}

/// A frame whose parts are not side by side yet.
pub struct EncodedFrame {
    pub header: FrameHeader,
    payload: Bytes,
}

impl EncodedFrame {
    /// Appends the bytes of the frame by `append`, in two parts.
    pub fn write_to(&self, mut append: impl FnMut(&[u8])) {
        append(&self.header.encode());
        append(&self.payload);
    }
}

/// Turns blocks into frames; keeps the compressor's tables between them.
pub struct FrameEncoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl FrameEncoder {
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        let zstd = match compression {
            Compression::None => None,
            Compression::Zstd => {
                Some(zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 1 exists and memory is there"))
            }
        };
        Self { zstd, scratch: Vec::new() }
    }

    /// The frame of `data`, which `id` names. A payload that is not compressed is `data` itself.
    pub fn encode(&mut self, id: BlockId, data: &Bytes) -> EncodedFrame {
        debug_assert_eq!(id.len as usize, data.len(), "a block is as long as its name says");
        let compressed = self.compress(data).map(Bytes::copy_from_slice);
        let codec = if compressed.is_some() { Codec::Zstd } else { Codec::Raw };
        let payload = compressed.unwrap_or_else(|| data.clone());
        let stored_len = u32::try_from(payload.len()).expect("a payload is never longer than its block");
        let header = FrameHeader { id, codec, stored_len, payload_crc: crc32c(&payload) };
        EncodedFrame { header, payload }
    }

    /// The compressed bytes, if they are worth keeping.
    fn compress(&mut self, data: &[u8]) -> Option<&[u8]> {
        let zstd = self.zstd.as_mut()?;
        let limit = data.len() * KEEP_SHORTER_THAN.0 / KEEP_SHORTER_THAN.1;
        let room = limit.max(SAMPLE_BYTES);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        if !samples_shrink(zstd, data, &mut self.scratch) {
            return None;
        }
        // A destination that is too short for what comes out is an error: exactly "not worth keeping".
        let len = zstd.compress_to_buffer(data, self.scratch.get_mut(..limit)?).ok()?;
        self.scratch.get(..len)
    }
}

/// False if `data` is long and two samples of it do not shrink: media and archives, which would cost a full pass each.
fn samples_shrink(zstd: &mut zstd::bulk::Compressor<'_>, data: &[u8], scratch: &mut [u8]) -> bool {
    if data.len() <= 4 * SAMPLE_BYTES {
        return true;
    }
    let limit = SAMPLE_BYTES * KEEP_SHORTER_THAN.0 / KEEP_SHORTER_THAN.1;
    [data.len() / 4, data.len() * 3 / 4 - SAMPLE_BYTES].into_iter().any(|start| {
        let sample = data.get(start..start + SAMPLE_BYTES).unwrap_or(data);
        scratch.get_mut(..limit).is_some_and(|room| zstd.compress_to_buffer(sample, room).is_ok())
    })
}

/// The block `id` out of `frame` (exactly one frame), verified. A raw payload is a slice of `frame`.
///
/// # Errors
/// If `frame` is anything but the stored form of that block.
pub fn decode(frame: &Bytes, id: BlockId) -> Result<Bytes, FrameError> {
    let header = FrameHeader::parse(frame)?;
    if header.id != id {
        return Err(FrameError::OtherBlock(header.id));
    }
    if frame.len() != header.frame_len() as usize {
        return Err(FrameError::Length);
    }
    let payload = frame.slice(FRAME_HEADER_BYTES as usize..);
    let plain = match header.codec {
        Codec::Raw => payload,
        Codec::Zstd => {
            let plain = zstd::bulk::decompress(&payload, id.len as usize).map_err(FrameError::Decompress)?;
            Bytes::from(plain)
        }
    };
    if id.verifies(&plain) { Ok(plain) } else { Err(FrameError::Hash) }
}

/// Checks the frame at the start of `bytes` by its checksums alone, without decompressing: what tells a torn tail from
/// a complete frame.
///
/// # Errors
/// If it is not complete and as it was written.
pub fn check(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let header = FrameHeader::parse(bytes)?;
    let payload =
        bytes.get(FRAME_HEADER_BYTES as usize..header.frame_len() as usize).ok_or(FrameError::Length)?;
    if crc32c(payload) == header.payload_crc { Ok(header) } else { Err(FrameError::PayloadChecksum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(compression: Compression, data: &[u8]) -> (BlockId, Bytes) {
        let id = BlockId::of(data);
        let mut out = Vec::new();
        FrameEncoder::new(compression)
            .encode(id, &Bytes::copy_from_slice(data))
            .write_to(|part| out.extend_from_slice(part));
        (id, out.into())
    }

    /// Pseudo-random bytes (xorshift), the same in every run.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn a_raw_frame_has_the_documented_bytes() {
        let (_, frame) = encode(Compression::None, b"abc");
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "4746524d01000000000000000300000003000000\
             6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85\
             b73f4b366001da6e\
             616263"
        );
    }

    #[test]
    fn compressible_blocks_shrink_and_read_back() {
        let text = b"the quick brown fox ".repeat(20_000);
        let (id, frame) = encode(Compression::Zstd, &text);
        assert!(frame.len() < text.len() / 20, "{}", frame.len());
        assert_eq!(decode(&frame, id).unwrap(), text);
    }

    #[test]
    fn incompressible_blocks_are_stored_raw() {
        for len in [1, 100, 60 << 10, 300 << 10] {
            let data = noise(len);
            let (id, frame) = encode(Compression::Zstd, &data);
            assert_eq!(frame.len(), len + FRAME_HEADER_BYTES as usize);
            assert_eq!(decode(&frame, id).unwrap(), data);
        }
    }

    #[test]
    fn another_block_is_not_taken_for_the_one_asked_for() {
        let (_, frame) = encode(Compression::Zstd, b"abc");
        let other = BlockId::of(b"abd");
        assert!(matches!(decode(&frame, other), Err(FrameError::OtherBlock(_))));
    }

    #[test]
    fn a_header_that_asks_for_too_much_memory_is_refused() {
        let id = BlockId { len: BLOCK_BYTES_MAX + 1, ..BlockId::of(b"abc") };
        let header = FrameHeader { id, codec: Codec::Zstd, stored_len: 5, payload_crc: 0 };
        assert!(matches!(FrameHeader::parse(&header.encode()), Err(FrameError::Length)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let text = b"some text, some text, some text, some text".repeat(4);
        for compression in [Compression::None, Compression::Zstd] {
            let (id, frame) = encode(compression, &text);
            for bit in 0..frame.len() * 8 {
                let mut flipped = frame.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(check(&flipped).is_err(), "bit {bit}");
                // Zstandard has bits that mean nothing to a decoder: then the block must come out all the same.
                let read = decode(&Bytes::from(flipped), id);
                assert!(read.is_err() || read.is_ok_and(|plain| plain == text), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_cut_frame_is_not_a_frame() {
        let (id, frame) = encode(Compression::Zstd, &noise(1000));
        for len in 0..frame.len() {
            assert!(check(&frame[..len]).is_err() && decode(&frame.slice(..len), id).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn frames_read_back(data in prop::collection::vec(0..4u8, 1..100_000)) {
            let (id, frame) = encode(Compression::Zstd, &data);
            prop_assert_eq!(check(&frame).unwrap().id, id);
            prop_assert_eq!(decode(&frame, id).unwrap(), data);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            prop_assert!(decode(&bytes, BlockId::of(b"x")).is_err() && check(&bytes).is_err());
        }
    }
}
