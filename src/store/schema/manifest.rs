//! Rows that say which blocks a file is made of.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::{BlockId, Hash};
use crate::base::ids::SegmentId;
use crate::base::range::ByteRange;

/// Part of a file: `len` bytes that end at the offset in the row's key, found in a segment from `skip` on.
/// Clones, ranged copies and overwrites only make new windows on segments that exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestRow {
    /// Bytes of the file this row stands for, at least 1.
    pub len: u64,
    /// The segment, or [`UNWRITTEN`].
    pub segment: SegmentId,
    /// First byte of the segment that belongs to the file here.
    pub skip: u64,
}

/// Stands for space that was allocated but never written: reads as zeros, counts as allocated.
pub const UNWRITTEN: SegmentId = SegmentId(0);

impl ManifestRow {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u64(self.len).u64(self.segment.0).u64(self.skip);
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("manifest row", bytes);
        let row = Self { len: r.u64()?, segment: SegmentId(r.u64()?), skip: r.u64()? };
        if row.len == 0 {
            return Err(r.malformed());
        }
        r.finish()?;
        Ok(row)
    }
}

/// `len` bytes from `skip` of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSlice {
    pub block: BlockId,
    pub skip: u32,
    pub len: u32,
}

/// Immutable run of block slices without gaps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    slices: Vec<BlockSlice>,
    /// Offset of each slice in the segment, ascending from 0.
    starts: Vec<u64>,
    len: u64,
}

impl Segment {
    #[must_use]
    pub fn new(slices: Vec<BlockSlice>) -> Self {
        let mut len = 0;
        let starts = slices
            .iter()
            .map(|slice| {
                let start = len;
                len += u64::from(slice.len);
                start
            })
            .collect();
        Self { slices, starts, len }
    }

    /// Bytes it stands for.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn slices(&self) -> &[BlockSlice] {
        &self.slices
    }

    /// The slices that make up `window` of the segment, the first and last cut to fit.
    pub fn window(&self, window: ByteRange) -> impl Iterator<Item = BlockSlice> + '_ {
        let first = self.starts.partition_point(|&start| start <= window.start).saturating_sub(1);
        let parts = self.slices.iter().zip(&self.starts).skip(first);
        parts.take_while(move |&(_, &start)| start < window.end).filter_map(move |(slice, &start)| {
            let part = ByteRange::at(start, u64::from(slice.len)).intersect(&window);
            let narrow = |bytes: u64| u32::try_from(bytes).expect("within one slice");
            (!part.is_empty()).then(|| BlockSlice {
                block: slice.block,
                skip: slice.skip + narrow(part.start - start),
                len: narrow(part.len()),
            })
        })
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        for slice in &self.slices {
            w.bytes(&slice.block.hash.0).u32(slice.block.len).u32(slice.skip).u32(slice.len);
        }
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes, or a slice does not lie within its block.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new("manifest segment", bytes);
        let mut slices = Vec::with_capacity(bytes.len() / 44);
        while r.remaining() > 0 {
            let block = BlockId { hash: Hash(r.array()?), len: r.u32()? };
            let slice = BlockSlice { block, skip: r.u32()?, len: r.u32()? };
            let end = slice.skip.checked_add(slice.len);
            if slice.len == 0 || end.is_none_or(|end| slice.block.len < end) {
                return Err(r.malformed());
            }
            slices.push(slice);
        }
        Ok(Self::new(slices))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slices() -> Vec<BlockSlice> {
        let slice = |text: &[u8], skip, len| BlockSlice { block: BlockId::of(text), skip, len };
        vec![slice(b"0123456789", 0, 10), slice(b"abcdef", 2, 3), slice(b"xyz", 0, 3)]
    }

    #[test]
    fn a_window_cuts_the_first_and_last_slice() {
        let segment = Segment::new(slices());
        let window: Vec<_> = segment.window(ByteRange::new(4, 14)).collect();
        let [first, second, third] = &window[..] else { panic!("{window:?}") };
        assert_eq!((first.skip, first.len), (4, 6));
        assert_eq!((second.skip, second.len), (2, 3));
        assert_eq!((third.skip, third.len), (0, 1));
        assert_eq!(segment.window(ByteRange::new(10, 13)).count(), 1);
        assert_eq!(segment.window(ByteRange::new(16, 20)).count(), 0);
    }

    #[test]
    fn rows_read_back_and_slices_outside_their_block_are_refused() {
        let segment = Segment::new(slices());
        assert_eq!(Segment::decode(&segment.encode()), Ok(segment));
        let outside = BlockSlice { block: BlockId::of(b"abc"), skip: 1, len: 3 };
        assert!(Segment::decode(&Segment::new(vec![outside]).encode()).is_err());
        let row = ManifestRow { len: 5, segment: SegmentId(1), skip: u64::MAX };
        assert_eq!(ManifestRow::decode(&row.encode()), Ok(row));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Segment::decode(&bytes);
            let _ = ManifestRow::decode(&bytes);
        }
    }
}
