//! Hot bytes on their way to staged blocks: handed out, sealed when the blocks are there, or kept hot.

use std::time::Duration;

use bytes::Bytes;

use super::{Overlay, Piece};
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;
use crate::base::time::Timestamp;
use crate::content::extent_map::ExtentMap;
use crate::content::seal::{SEAL_EXTENTS_MAX, Seal, Sealed};
use crate::store::block::BlockTicket;

/// Hot bytes handed out to be staged.
#[derive(Debug)]
pub struct Frozen {
    pub runs: Vec<Run>,
    pub unwritten: Vec<ByteRange>,
    version: u64,
    /// Size when the bytes were handed out.
    size: u64,
    /// Size that is committed or sealed already.
    size_before: u64,
}

/// Contiguous hot bytes.
#[derive(Debug)]
pub struct Run {
    pub start: u64,
    pub data: Vec<Bytes>,
    /// Since when its oldest byte has been in memory only.
    pub oldest: Duration,
}

impl Run {
    #[must_use]
    pub fn len(&self) -> u64 {
        self.data.iter().map(|data| data.len() as u64).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

impl Overlay {
    /// Hands out everything that is not sealed. One hand-out at a time: it ends with [`Self::thaw`].
    pub fn freeze(&mut self, committed_size: u64) -> Frozen {
        debug_assert!(self.cut_since_freeze.is_none(), "one staging at a time");
        self.close_run();
        self.cut_since_freeze = Some((RangeSet::new(), u64::MAX));
        let mut runs: Vec<Run> = Vec::new();
        let mut unwritten = Vec::new();
        for (range, piece) in self.pieces.iter() {
            match piece {
                Piece::Hot { data, at, .. } => match runs.last_mut() {
                    Some(run) if run.start + run.len() == range.start => {
                        run.data.push(data.clone());
                        run.oldest = run.oldest.min(*at);
                    }
                    _ => runs.push(Run { start: range.start, data: vec![data.clone()], oldest: *at }),
                },
                Piece::Unwritten { seal: None } => unwritten.push(range),
                Piece::Staged { .. } | Piece::Unwritten { seal: Some(_) } => {}
            }
        }
        let size_before = self.seals.back().map_or(committed_size, |seal| seal.size);
        let (version, size) = (self.version, self.size);
        Frozen { runs, unwritten, version, size, size_before }
    }

    /// Ends a hand-out: what has not been installed stays hot.
    pub fn thaw(&mut self) {
        self.cut_since_freeze = None;
    }

    /// Plans to seal the staged part of a hand-out. `staged` are the blocks by file range, ascending; hot bytes of the
    /// hand-out that they do not cover must all lie above them. `committed` is the row's mtime, which holds if it was set by
    /// hand since the last write, also while the bytes were handed out, and its size. No seal if all was discarded meanwhile.
    ///
    /// Very many pieces become several seals, from the start of the file, so that the row of each fits a batch
    /// (rule R17).
    #[must_use]
    pub fn plan_seals(
        &self,
        frozen: &Frozen,
        staged: &[(ByteRange, BlockTicket)],
        committed: (Timestamp, u64),
    ) -> Vec<Seal> {
        let nothing = (RangeSet::new(), u64::MAX);
        let (cut, limit) = self.cut_since_freeze.as_ref().unwrap_or(&nothing);
        let mut extents = ExtentMap::default();
        for (range, ticket) in staged {
            for part in cut.gaps(*range) {
                let skip = u32::try_from(part.start - range.start).expect("within one block");
                extents.insert(part, Sealed::Block { ticket: ticket.clone(), skip });
            }
        }
        for range in &frozen.unwritten {
            cut.gaps(*range).for_each(|part| extents.insert(part, Sealed::Unwritten));
        }
        let staged_end = staged.iter().map(|(range, _)| range.end).max().unwrap_or(0);
        let hot_end = frozen.runs.last().map_or(0, |run| run.start + run.len());
        // Where hot bytes are left out the file ends before them, so that no reader of the published state ever sees
        // zeros in their place (rule R2).
        let whole = hot_end <= staged_end;
        let size_last = if whole { frozen.size } else { frozen.size_before.max(staged_end) };

        let (mtime, committed_size) = committed;
        // What came meanwhile, a copy from another file, may have made the file longer again than a truncate had left it:
        // sizes go down by cuts alone.
        let size_before = self.seals.back().map_or(committed_size, |seal| seal.size);
        let bounded = |size: u64| size.min(*limit).max(size_before);
        if extents.is_empty() && bounded(size_last) == size_before {
            return Vec::new();
        }
        let touched = self.touched.unwrap_or(mtime);
        let mut seals = Vec::new();
        let mut parts = extents.split(SEAL_EXTENTS_MAX).into_iter().peekable();
        while let Some(extents) = parts.next() {
            let end = extents.iter().next_back().map_or(0, |(range, _)| range.end);
            let is_last = parts.peek().is_none();
            let size = if is_last { size_last } else { frozen.size_before.max(end).min(size_last) };
            let number = self.next_seal + seals.len() as u64;
            seals.push(Seal { number, extents, cut: None, size: bounded(size), touched });
        }
        seals
    }

    /// Carries out one planned seal, once it is committed.
    pub fn install(&mut self, frozen: &Frozen, seal: Seal) {
        debug_assert_eq!(seal.number, self.next_seal, "planned under the same lock");
        self.next_seal += 1;
        for (range, sealed) in seal.extents.iter() {
            match sealed {
                Sealed::Block { ticket, skip } => {
                    self.replace_hot(range, frozen.version, |part| Piece::Staged {
                        ticket: ticket.clone(),
                        skip: skip + u32::try_from(part.start - range.start).expect("within one block"),
                        seal: seal.number,
                    })
                }
                Sealed::Unwritten => self.seal_unwritten(range, seal.number),
            }
        }
        self.seals.push_back(seal);
    }

    /// Turns hot bytes of `range` not written since `version` into what `make` says.
    fn replace_hot(&mut self, range: ByteRange, version: u64, make: impl Fn(ByteRange) -> Piece) {
        let old: Vec<ByteRange> = self
            .pieces
            .overlaps(range)
            .filter(|(_, piece)| matches!(piece, Piece::Hot { version: own, .. } if *own <= version))
            .map(|(part, _)| part)
            .collect();
        for part in old {
            self.hot_bytes -= part.len();
            self.pieces.insert(part, make(part));
        }
    }

    fn seal_unwritten(&mut self, range: ByteRange, number: u64) {
        let open: Vec<ByteRange> = self
            .pieces
            .overlaps(range)
            .filter(|(_, piece)| matches!(piece, Piece::Unwritten { seal: None }))
            .map(|(part, _)| part)
            .collect();
        for part in open {
            self.pieces.insert(part, Piece::Unwritten { seal: Some(number) });
        }
    }
}
