//! Cuts a stream of bytes into blocks by content (FastCDC 2020): where it cuts depends on the bytes alone, never on how
//! they arrive.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{self, Normalization};

use crate::base::hash::BlockId;
use crate::base::limits::{BLOCK_BYTES_MAX, KIB};
use crate::store::block::Block;

/// Smallest, aimed-at and largest block in bytes; fixed when a volume is formatted, since data cut by other sizes is not
/// found again by deduplication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkSizes {
    min: u32,
    avg: u32,
    max: u32,
}

/// Bounds of the cutter, which steps two bytes at a time and has masks for these sizes only.
const AVG_BYTES_MIN: u32 = 4 << 10;
const AVG_BYTES_MAX: u32 = 4 << 20;

/// Length of the joining buffer in largest blocks: what is behind a cut moves to a new buffer only when this is used up.
const JOIN_BLOCKS: usize = 4;

impl ChunkSizes {
    /// None unless all are even, `64 <= min <= avg <= max <= BLOCK_BYTES_MAX` and `avg` is 4 KiB to 4 MiB.
    #[must_use]
    pub fn new(min: u32, avg: u32, max: u32) -> Option<Self> {
        let even = [min, avg, max].iter().all(|size| size.is_multiple_of(2));
        let ordered = 64 <= min && min <= avg && avg <= max && max <= BLOCK_BYTES_MAX;
        let supported = (AVG_BYTES_MIN..=AVG_BYTES_MAX).contains(&avg) && min <= 1 << 20;
        (even && ordered && supported).then_some(Self { min, avg, max })
    }

    /// A quarter and four times the average, as the paper has it. None for an average out of bounds or not a multiple
    /// of 8.
    #[must_use]
    pub fn around(avg: u32) -> Option<Self> {
        avg.is_multiple_of(8).then(|| Self::new(avg / 4, avg, avg.checked_mul(4)?)).flatten()
    }

    #[must_use]
    pub fn min(&self) -> u32 {
        self.min
    }

    #[must_use]
    pub fn avg(&self) -> u32 {
        self.avg
    }

    #[must_use]
    pub fn max(&self) -> u32 {
        self.max
    }
}

impl Default for ChunkSizes {
    /// 64 KiB, 256 KiB, 1 MiB (docs/decisions/0002-chunk-sizes.md).
    fn default() -> Self {
        const AVG: u32 = 256 * KIB as u32;
        Self { min: AVG / 4, avg: AVG, max: AVG * 4 }
    }
}

/// Cuts one stream. Holds fewer than `max` bytes between calls.
pub struct Chunker {
    sizes: ChunkSizes,
    masks: (u64, u64),
    /// Bytes after the last cut.
    pending: BytesMut,
}

impl Chunker {
    #[must_use]
    pub fn new(sizes: ChunkSizes) -> Self {
        let masks = v2020::select_masks(sizes.avg as usize, Normalization::Level1);
        Self { sizes, masks, pending: BytesMut::new() }
    }

    /// Takes the next bytes of the stream; returns the blocks they complete. A large buffer is sliced rather than
    /// copied, so its blocks keep it alive.
    #[must_use]
    pub fn push(&mut self, mut data: Bytes) -> Vec<Block> {
        let max = self.sizes.max as usize;
        let mut blocks = Vec::new();
        while !self.pending.is_empty() && self.pending.len() + data.len() >= max {
            // No more is joined than a cut may need; what it leaves of `data` is cut in place below.
            let before = self.pending.len();
            let joined = max - before;
            self.join(data.get(..joined).expect("pending and data reach max"));
            let cut = self.cut(&self.pending);
            blocks.push(named(self.pending.split_to(cut).freeze()));
            if cut < before {
                data = data.slice(joined..);
            } else {
                self.pending.clear();
                data = data.slice(cut - before..);
            }
        }
        while data.len() >= max {
            let cut = self.cut(&data);
            blocks.push(named(data.split_to(cut)));
        }
        self.join(&data);
        blocks
    }

    /// Ends the stream; returns its last blocks.
    #[must_use]
    pub fn finish(mut self) -> Vec<Block> {
        let mut blocks = Vec::new();
        while !self.pending.is_empty() {
            let cut = self.cut(&self.pending);
            blocks.push(named(self.pending.split_to(cut).freeze()));
        }
        blocks
    }

    /// Bytes taken but not yet in a block.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    fn join(&mut self, data: &[u8]) {
        if self.pending.capacity() - self.pending.len() < data.len() {
            self.pending.reserve(data.len().max(JOIN_BLOCKS * self.sizes.max as usize));
        }
        self.pending.extend_from_slice(data);
    }

    /// Length of the first block of `data`: right only if `data` is at least `max` long or ends the stream.
    fn cut(&self, data: &[u8]) -> usize {
        let ChunkSizes { min, avg, max } = self.sizes;
        let (strict, relaxed) = self.masks;
        let sizes = (min as usize, avg as usize, max as usize);
        v2020::cut(data, sizes.0, sizes.1, sizes.2, strict, relaxed, strict << 1, relaxed << 1).1
    }
}

/// Hashed right after it was cut, while it is still in the processor's cache.
fn named(data: Bytes) -> Block {
    Block { id: BlockId::of(&data), data }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pseudo-random bytes (xorshift), the same in every run.
    fn noise(len: usize, seed: u64) -> Bytes {
        let mut state = seed | 1;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(step).collect()
    }

    fn sizes() -> ChunkSizes {
        ChunkSizes::around(4096).expect("valid")
    }

    fn cut_whole(data: &Bytes) -> Vec<BlockId> {
        let mut chunker = Chunker::new(sizes());
        let mut blocks = chunker.push(data.clone());
        blocks.extend(chunker.finish());
        blocks.iter().map(|block| block.id).collect()
    }

    #[test]
    fn blocks_join_to_the_input_and_keep_their_bounds() {
        let data = noise(1 << 20, 3);
        let mut chunker = Chunker::new(sizes());
        let mut blocks = chunker.push(data.clone());
        assert!(chunker.pending_bytes() < sizes().max() as usize);
        blocks.extend(chunker.finish());
        assert_eq!(blocks.iter().flat_map(|block| block.data.to_vec()).collect::<Vec<_>>(), data);
        let (_, body) = blocks.split_last().expect("blocks");
        assert!(body.iter().all(|block| (sizes().min()..=sizes().max()).contains(&block.id.len)));
        assert!(blocks.iter().all(|block| block.id.verifies(&block.data)));
    }

    #[test]
    fn the_cuts_are_those_of_fastcdc_with_its_own_masks() {
        let data = noise(1 << 20, 5);
        let theirs: Vec<_> =
            v2020::FastCDC::new(&data, 1024, 4096, 16384).map(|chunk| chunk.length as u32).collect();
        assert_eq!(cut_whole(&data).iter().map(|id| id.len).collect::<Vec<_>>(), theirs);
    }

    /// A release that cut elsewhere would no longer find what is stored.
    #[test]
    fn the_cuts_of_the_default_sizes_never_change() {
        let data = noise(4 << 20, 7);
        let mut chunker = Chunker::new(ChunkSizes::default());
        let mut blocks = chunker.push(data);
        blocks.extend(chunker.finish());
        let lens: Vec<_> = blocks.iter().map(|block| block.id.len).collect();
        assert_eq!(lens, GOLDEN_LENS);
    }

    const GOLDEN_LENS: &[u32] = &[
        84297, 273446, 164801, 376534, 371260, 383085, 304546, 283788, 273469, 327358, 622666, 320159, 408895,
    ];

    #[test]
    fn an_inserted_byte_changes_one_or_two_blocks() {
        let data = noise(1 << 20, 9);
        let mut edited = data.to_vec();
        edited.insert(0, 1);
        let old: std::collections::HashSet<_> = cut_whole(&data).into_iter().collect();
        let new = cut_whole(&edited.into());
        assert!(new.iter().filter(|id| !old.contains(id)).count() <= 2, "{new:?}");
    }

    #[test]
    fn an_empty_stream_has_no_blocks() {
        let mut chunker = Chunker::new(sizes());
        assert!(chunker.push(Bytes::new()).is_empty());
        assert!(chunker.finish().is_empty());
    }

    #[test]
    fn sizes_the_cutter_cannot_do_are_refused() {
        for (min, avg, max) in
            [(1023, 4096, 16384), (4096, 1024, 16384), (1024, 4096, (16 << 20) + 2), (0, 4096, 8192)]
        {
            assert_eq!(ChunkSizes::new(min, avg, max), None, "{min} {avg} {max}");
        }
        assert_eq!(ChunkSizes::around(256 << 10), Some(ChunkSizes::default()));
        assert_eq!(ChunkSizes::around(u32::MAX - 7), None);
    }

    proptest! {
        #[test]
        fn feeding_does_not_matter(
            seed in any::<u64>(),
            len in 0..200_000usize,
            pieces in prop::collection::vec(1..40_000usize, 1..20),
        ) {
            let data = noise(len, seed);
            let mut chunker = Chunker::new(sizes());
            let (mut rest, mut blocks) = (data.clone(), Vec::new());
            for piece in pieces.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                blocks.extend(chunker.push(rest.split_to((*piece).min(rest.len()))));
            }
            blocks.extend(chunker.finish());
            let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
            prop_assert_eq!(ids, cut_whole(&data));
        }
    }
}
