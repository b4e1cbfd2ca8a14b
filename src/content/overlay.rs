//! What has been written to one file and is not committed: hot bytes in memory, sealed bytes in staged blocks.
//!
//! Reads look here first, then at the committed content. A *seal* freezes the hot bytes of one moment together with the
//! size and time of that moment, so that what is published later is the file as it was then, never a mixture
//! (rule R2). Whatever discards bytes cuts hot bytes and seals alike (rule R10): first it is planned, then committed as
//! one small seal that says so, then done here. Rows of earlier seals are never written again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::extent_map::{Cut, ExtentMap};
use super::seal::{Seal, Sealed};
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;
use crate::base::time::Timestamp;
use crate::store::block::BlockTicket;

mod hand_out;

pub use hand_out::{Frozen, Run};

/// Appended bytes are gathered in one buffer up to this many, so that a program that writes byte by byte does not
/// cost a map entry each. Equals the largest write the kernel sends.
const RUN_BYTES_MAX: usize = 1 << 20;

/// Part of the overlay, as the map holds it.
#[derive(Clone, Debug)]
enum Piece {
    /// Written, in memory only. `version` tells bytes written before a seal was frozen from later ones; `at` is when the
    /// first of its places came to be in memory only, so that bytes do not stay young by being written over.
    Hot { data: Bytes, version: u64, at: Duration },
    /// In a staged block, from `skip` on.
    Staged { ticket: BlockTicket, skip: u32, seal: u64 },
    /// Allocated, reads as zeros; `seal` is None until it is frozen.
    Unwritten { seal: Option<u64> },
}

impl Cut for Piece {
    fn cut(&self, part: ByteRange) -> Self {
        match self {
            Self::Hot { data, version, at } => {
                let data = data.slice(part.start as usize..part.end as usize);
                Self::Hot { data, version: *version, at: *at }
            }
            Self::Staged { ticket, skip, seal } => {
                let skip = skip + u32::try_from(part.start).expect("a piece lies within one block");
                Self::Staged { ticket: ticket.clone(), skip, seal: *seal }
            }
            Self::Unwritten { seal } => Self::Unwritten { seal: *seal },
        }
    }
}

/// Where bytes of a read come from.
#[derive(Clone, Debug)]
pub enum Source {
    Memory(Bytes),
    /// From `skip` on of a staged block; the ticket keeps it readable.
    Block(BlockTicket, u32),
    Zeros,
}

/// A discard that is planned and not done.
#[derive(Debug)]
pub struct Discard {
    range: ByteRange,
    /// What remains allocated.
    allocated: u64,
    touched: Timestamp,
    /// To be committed with the discard: it keeps recovery from bringing back bytes of earlier seals.
    pub seal: Option<Seal>,
}

/// Bytes appended since the last piece was closed.
#[derive(Debug)]
struct OpenRun {
    start: u64,
    buf: Vec<u8>,
    /// As that of a piece.
    at: Duration,
}

impl OpenRun {
    fn range(&self) -> ByteRange {
        ByteRange::at(self.start, self.buf.len() as u64)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Overlay {
    size: u64,
    allocated: u64,
    touched: Option<Timestamp>,
    pieces: ExtentMap<Piece>,
    open: Option<OpenRun>,
    seals: VecDeque<Seal>,
    next_seal: u64,
    version: u64,
    hot_bytes: u64,
    /// What was discarded, and how short the file was, since bytes were handed out by `freeze`.
    cut_since_freeze: Option<(RangeSet, u64)>,
}

impl Overlay {
    /// An overlay over committed content of `size` bytes of which `allocated` are not hole. `first_seal` is above all
    /// seals the inode ever had on this machine.
    #[must_use]
    pub fn new(size: u64, allocated: u64, first_seal: u64) -> Self {
        Self {
            size,
            allocated,
            touched: None,
            pieces: ExtentMap::default(),
            open: None,
            seals: VecDeque::new(),
            next_seal: first_seal,
            version: 0,
            hot_bytes: 0,
            cut_since_freeze: None,
        }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of committed content and overlay together that are not hole.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Time of the last write that is not committed.
    #[must_use]
    pub fn touched(&self) -> Option<Timestamp> {
        self.touched
    }

    /// Carries out what [`Self::plan_time`] planned: the time of writes so far is forgotten.
    pub fn set_time(&mut self, touched: Timestamp, mark: Option<Seal>) {
        self.touched = None;
        self.seals.iter_mut().for_each(|seal| seal.touched = touched);
        mark.into_iter().for_each(|mark| self.push_seal(mark));
    }

    /// Bytes that are only in memory.
    #[must_use]
    pub fn hot_bytes(&self) -> u64 {
        self.hot_bytes
    }

    /// True if something waits to be sealed.
    #[must_use]
    pub fn has_unsealed(&self, committed_size: u64) -> bool {
        self.hot_bytes > 0
            || self.pieces.iter().any(|(_, piece)| matches!(piece, Piece::Unwritten { seal: None }))
            || self.seals.back().map_or(committed_size, |seal| seal.size) != self.size
    }

    /// True if nothing here differs from what is committed. Never while bytes are out to be staged: what becomes of
    /// them must be told here, or bytes cut meanwhile would come back.
    #[must_use]
    pub fn is_clean(&self, committed_size: u64) -> bool {
        let is_empty = self.pieces.is_empty() && self.open.is_none() && self.seals.is_empty();
        is_empty && self.size == committed_size && self.cut_since_freeze.is_none()
    }

    #[must_use]
    pub fn seals(&self) -> &VecDeque<Seal> {
        &self.seals
    }

    /// Writes `data` at `offset`. `uncovered` tells how many bytes of a range are hole in the committed content.
    pub fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        when: (Timestamp, Duration),
        uncovered: &mut dyn FnMut(ByteRange) -> u64,
    ) {
        let range = ByteRange::at(offset, data.len() as u64);
        if range.is_empty() {
            return;
        }
        self.touched = Some(when.0);
        self.allocated += self.growth(range, uncovered);
        self.size = self.size.max(range.end);
        if self.append(range, data) {
            return;
        }
        self.close_run();
        let at = self.discard_hot(range).map_or(when.1, |oldest| oldest.min(when.1));
        self.hot_bytes += range.len();
        if data.len() < RUN_BYTES_MAX / 4 {
            self.pieces.remove(range);
            let mut buf = Vec::with_capacity((2 * data.len()).clamp(4096, RUN_BYTES_MAX));
            buf.extend_from_slice(data);
            self.open = Some(OpenRun { start: offset, buf, at });
        } else {
            self.version += 1;
            let (data, version) = (Bytes::copy_from_slice(data), self.version);
            self.pieces.insert(range, Piece::Hot { data, version, at });
        }
    }

    /// Adds to the open run if `range` continues it.
    fn append(&mut self, range: ByteRange, data: &[u8]) -> bool {
        let Some(open) = &self.open else { return false };
        let fits = open.buf.len() + data.len() <= RUN_BYTES_MAX;
        if open.range().end != range.start || !fits {
            return false;
        }
        let oldest = self.discard_hot(range);
        let open = self.open.as_mut().expect("looked at above");
        open.buf.extend_from_slice(data);
        open.at = oldest.map_or(open.at, |oldest| oldest.min(open.at));
        self.pieces.remove(range);
        self.hot_bytes += range.len();
        true
    }

    /// Bytes of `range` that become allocated when it is filled.
    fn growth(&self, range: ByteRange, uncovered: &mut dyn FnMut(ByteRange) -> u64) -> u64 {
        let open = self.open.as_ref().map_or(ByteRange::new(0, 0), OpenRun::range);
        let outside = |gap: &ByteRange| {
            [
                ByteRange::new(gap.start, gap.end.min(open.start)),
                ByteRange::new(gap.start.max(open.end), gap.end),
            ]
        };
        let gaps = self.pieces.gaps(range);
        if open.is_empty() {
            return gaps.into_iter().map(uncovered).sum();
        }
        gaps.iter().flat_map(outside).filter(|part| !part.is_empty()).map(uncovered).sum()
    }

    fn close_run(&mut self) {
        let Some(run) = self.open.take() else { return };
        self.version += 1;
        let (range, version) = (run.range(), self.version);
        self.pieces.insert(range, Piece::Hot { data: Bytes::from(run.buf), version, at: run.at });
    }

    /// Takes hot bytes of closed pieces in `range` off the count; returns since when the oldest have been so.
    fn discard_hot(&mut self, range: ByteRange) -> Option<Duration> {
        let mut oldest = None;
        for (part, piece) in self.pieces.overlaps(range) {
            let Piece::Hot { at, .. } = piece else { continue };
            self.hot_bytes -= part.len();
            oldest = Some(oldest.map_or(at, |oldest: Duration| oldest.min(at)));
        }
        oldest
    }

    /// What the overlay holds of `window`, ascending; the gaps are committed content.
    #[must_use]
    pub fn read(&self, window: ByteRange) -> Vec<(ByteRange, Source)> {
        let mut found: Vec<_> = self
            .pieces
            .overlaps(window)
            .map(|(range, piece)| match piece {
                Piece::Hot { data, .. } => (range, Source::Memory(data)),
                Piece::Staged { ticket, skip, .. } => (range, Source::Block(ticket, skip)),
                Piece::Unwritten { .. } => (range, Source::Zeros),
            })
            .collect();
        if let Some(open) = &self.open {
            let part = open.range().intersect(&window);
            if !part.is_empty() {
                let relative = (part.start - open.start) as usize..(part.end - open.start) as usize;
                let data = Bytes::copy_from_slice(open.buf.get(relative).unwrap_or_default());
                let at = found.partition_point(|(range, _)| range.start < part.start);
                found.insert(at, (part, Source::Memory(data)));
            }
        }
        found
    }

    /// True for ranges that are data for SEEK_DATA: all but allocated zeros.
    #[must_use]
    pub fn data_ranges(&self, window: ByteRange) -> Vec<(ByteRange, bool)> {
        self.read(window)
            .into_iter()
            .map(|(range, source)| (range, !matches!(source, Source::Zeros)))
            .collect()
    }

    /// Allocates `range` where nothing is: what is written or committed there stays (`committed_gaps` are the holes).
    pub fn allocate(&mut self, committed_gaps: &[ByteRange], size: u64, touched: Timestamp) {
        self.close_run();
        self.touched = Some(touched);
        self.size = self.size.max(size);
        for gap in committed_gaps {
            for part in self.pieces.gaps(*gap) {
                self.allocated += part.len();
                self.pieces.insert(part, Piece::Unwritten { seal: None });
            }
        }
    }

    /// Sets a size that is not below the current one, without writing.
    pub fn grow(&mut self, size: u64, touched: Timestamp) {
        debug_assert!(self.size <= size, "a file is shortened by a discard");
        self.touched = Some(touched);
        self.size = size;
    }

    /// Plans that `range` becomes hole here; one without end also shortens the file to its start. The caller does the same
    /// to the committed content, of which `committed` bytes remain allocated, and commits both at once. `uncovered` is
    /// asked about ranges outside of `range` only.
    ///
    /// # Errors
    /// Of `uncovered`.
    pub fn plan_discard<E>(
        &self,
        range: ByteRange,
        touched: Timestamp,
        committed: u64,
        uncovered: &mut dyn FnMut(ByteRange) -> Result<u64, E>,
    ) -> Result<Discard, E> {
        let mut allocated = committed;
        let open = self.open.as_ref().map(OpenRun::range);
        for piece in self.pieces.iter().map(|(piece, _)| piece).chain(open) {
            let before = ByteRange::new(piece.start, piece.end.min(range.start));
            let after = ByteRange::new(piece.start.max(range.end), piece.end);
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                allocated += uncovered(part)?;
            }
        }
        let seal = self.seals.back().map(|last| {
            let mut seal = Seal { cut: Some(range), ..self.mark(last, touched) };
            seal.cut_by(range);
            seal
        });
        Ok(Discard { range, allocated, touched, seal })
    }

    /// Carries out what was planned, once it is committed.
    pub fn discard(&mut self, discard: Discard) {
        let Discard { range, allocated, touched, seal } = discard;
        self.close_run();
        self.discard_hot(range);
        self.pieces.remove(range);
        self.seals.iter_mut().for_each(|seal| seal.cut_by(range));
        self.allocated = allocated;
        self.touched = Some(touched);
        if range.end == u64::MAX {
            self.size = self.size.min(range.start);
        }
        if let Some((cut, limit)) = &mut self.cut_since_freeze {
            cut.insert(range);
            if range.end == u64::MAX {
                *limit = range.start.min(*limit);
            }
        }
        seal.into_iter().for_each(|seal| self.push_seal(seal));
    }

    /// Plans that sealed content of another file takes the place of what `discard` discards. Nothing may be hot: seals are
    /// in the order of writes. The first `counted` bytes of the file are allocated all the same: content that lives in the
    /// metadata has no holes.
    #[must_use]
    pub fn plan_adopt(
        &self,
        mut discard: Discard,
        extents: ExtentMap<Sealed>,
        size: u64,
        counted: u64,
    ) -> Discard {
        debug_assert!(self.hot_bytes == 0, "seals are in the order of writes");
        let uncounted = |range: ByteRange| range.end.saturating_sub(range.start.max(counted));
        discard.allocated += extents.iter().map(|(range, _)| uncounted(range)).sum::<u64>();
        let (number, touched) = (self.next_seal, discard.touched);
        let cut = discard.seal.and_then(|seal| seal.cut);
        discard.seal = Some(Seal { number, extents, cut, size, touched });
        discard
    }

    /// A seal without content behind all others, for a time that was set by hand; None if there is no seal whose time it
    /// replaces.
    #[must_use]
    pub fn plan_time(&self, touched: Timestamp) -> Option<Seal> {
        self.seals.back().map(|last| self.mark(last, touched))
    }

    fn mark(&self, last: &Seal, touched: Timestamp) -> Seal {
        let number = self.next_seal;
        Seal { number, extents: ExtentMap::default(), cut: None, size: last.size, touched }
    }

    fn push_seal(&mut self, seal: Seal) {
        debug_assert_eq!(seal.number, self.next_seal, "planned under the same lock");
        self.next_seal += 1;
        for (range, sealed) in seal.extents.iter() {
            let piece = match sealed {
                Sealed::Block { ticket, skip } => {
                    Piece::Staged { ticket: ticket.clone(), skip: *skip, seal: seal.number }
                }
                Sealed::Unwritten => Piece::Unwritten { seal: Some(seal.number) },
            };
            self.pieces.insert(range, piece);
        }
        self.size = self.size.max(seal.size);
        self.seals.push_back(seal);
    }

    /// Drops what seals up to `number` hold: they are committed.
    pub fn published(&mut self, number: u64, committed_size: u64) {
        self.seals.retain(|seal| number < seal.number);
        self.pieces.retain(|piece| match piece {
            Piece::Hot { .. } | Piece::Unwritten { seal: None } => true,
            Piece::Staged { seal, .. } | Piece::Unwritten { seal: Some(seal) } => number < *seal,
        });
        if self.is_clean(committed_size) {
            self.touched = None;
        }
    }

    /// The whole content, if all of it is in memory: none of it sealed, committed or hole.
    #[must_use]
    pub fn whole(&self) -> Option<Vec<u8>> {
        if !self.seals.is_empty() || self.cut_since_freeze.is_some() {
            return None;
        }
        let mut content = Vec::new();
        for (range, source) in self.read(ByteRange::new(0, u64::MAX)) {
            let Source::Memory(data) = source else { return None };
            if range.start != content.len() as u64 {
                return None;
            }
            content.extend_from_slice(&data);
        }
        (content.len() as u64 == self.size).then_some(content)
    }

    /// Since when the oldest of the last `len` hot bytes has been in memory only.
    #[must_use]
    pub fn oldest_of_last_hot(&self, len: u64) -> Option<Duration> {
        let open = self.open.iter().map(|run| (run.buf.len() as u64, run.at));
        let closed = self.pieces.iter().rev().filter_map(|(range, piece)| match piece {
            Piece::Hot { at, .. } => Some((range.len(), *at)),
            Piece::Staged { .. } | Piece::Unwritten { .. } => None,
        });
        let mut seen = 0;
        let last = open.chain(closed).take_while(|(piece_len, _)| {
            let within = seen < len;
            seen += piece_len;
            within
        });
        last.map(|(_, at)| at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash::{BlockId, Hash};
    use crate::content::seal::SEAL_EXTENTS_MAX;
    use crate::store::block::{BlockLocation, Receipt, UploadTicket};

    const NOW: Timestamp = Timestamp { secs: 1, nanos: 0 };

    fn written(data: &[u8]) -> Overlay {
        let mut overlay = Overlay::new(0, 0, 1);
        overlay.write(0, data, (NOW, Duration::ZERO), &mut |range| range.len());
        overlay
    }

    fn ticket(data: &[u8]) -> BlockTicket {
        let upload = UploadTicket::fulfilled(Receipt { len: 1, footer: Hash::ZERO });
        BlockTicket { id: BlockId::of(data), location: BlockLocation::Object, upload }
    }

    fn cut(overlay: &mut Overlay, range: ByteRange) {
        let planned = overlay.plan_discard(range, NOW, 0, &mut |part| Ok::<_, ()>(part.len()));
        overlay.discard(planned.expect("cannot fail"));
    }

    fn staged(data: &[u8]) -> Overlay {
        let mut overlay = written(data);
        let frozen = overlay.freeze(0);
        install(&mut overlay, &frozen, &[(ByteRange::new(0, data.len() as u64), ticket(data))]);
        overlay
    }

    fn install(overlay: &mut Overlay, frozen: &Frozen, staged: &[(ByteRange, BlockTicket)]) -> Seal {
        for seal in overlay.plan_seals(frozen, staged, (NOW, 0)) {
            overlay.install(frozen, seal);
        }
        overlay.thaw();
        overlay.seals().back().expect("installed just now").clone()
    }

    #[test]
    fn very_many_pieces_become_several_seals_none_longer_than_what_it_and_those_before_it_hold() {
        let mut overlay = Overlay::new(0, 0, 1);
        let pieces = SEAL_EXTENTS_MAX as u64 + 1;
        for piece in 0..pieces {
            overlay.write(piece * 2, &[7], (NOW, Duration::ZERO), &mut |range| range.len());
        }
        let frozen = overlay.freeze(0);
        let staged: Vec<_> = (0..pieces).map(|piece| (ByteRange::at(piece * 2, 1), ticket(&[7]))).collect();
        let last = install(&mut overlay, &frozen, &staged);
        assert_eq!(overlay.seals()[0].size, 2 * pieces - 3, "rule R2");
        assert_eq!((last.number, last.size, overlay.size()), (2, 2 * pieces - 1, 2 * pieces - 1));
        assert_eq!(overlay.hot_bytes(), 0);
        overlay.published(2, last.size);
        assert!(overlay.is_clean(last.size));
    }

    #[test]
    fn a_plan_changes_nothing_and_counts_what_remains() {
        let mut overlay = staged(&[7; 5_000]);
        overlay.write(6_000, &[8; 100], (NOW, Duration::ZERO), &mut |range| range.len());
        let range = ByteRange::new(1_000, 6_050);
        let planned = overlay.plan_discard(range, NOW, 0, &mut |part| Ok::<_, ()>(part.len()));
        let planned = planned.expect("cannot fail");
        assert_eq!((overlay.allocated(), overlay.hot_bytes(), overlay.seals().len()), (5_100, 100, 1));
        overlay.discard(planned);
        assert_eq!((overlay.allocated(), overlay.hot_bytes(), overlay.size()), (1_050, 50, 6_100));
    }

    #[test]
    fn a_cut_is_one_small_seal_that_takes_from_those_before_it_and_from_none_after() {
        let mut overlay = staged(&[7; 5_000]);
        cut(&mut overlay, ByteRange::new(2_000, u64::MAX));
        assert_eq!(overlay.size(), 2_000);
        let [first, mark] = [&overlay.seals()[0], &overlay.seals()[1]];
        assert_eq!((first.size, mark.size, mark.number), (2_000, 2_000, 2));
        assert!(mark.encode().len() < 64, "whatever the backlog");

        let mut after_restart = staged(&[7; 5_000]).seals()[0].clone();
        after_restart.cut_by(mark.cut.expect("a cut"));
        assert_eq!(after_restart.encode(), first.encode(), "recovery comes to the same");
    }

    #[test]
    fn bytes_cut_while_they_are_out_to_be_staged_do_not_come_back() {
        let data = [7; 5_000];
        let mut overlay = written(&data);
        let frozen = overlay.freeze(0);
        cut(&mut overlay, ByteRange::new(0, u64::MAX));
        assert!(!overlay.is_clean(0), "the hand-out must end in this overlay");
        let staged = [(ByteRange::new(0, 5_000), ticket(&data))];
        assert!(overlay.plan_seals(&frozen, &staged, (NOW, 0)).is_empty());
        overlay.thaw();
        assert!(overlay.is_clean(0));
    }

    #[test]
    fn room_that_was_discarded_and_allocated_anew_while_it_was_out_is_kept_by_the_next_seal() {
        let range = ByteRange::new(100, 200);
        let mut overlay = Overlay::new(0, 0, 1);
        overlay.allocate(&[range], 200, NOW);
        let frozen = overlay.freeze(0);
        cut(&mut overlay, range);
        overlay.allocate(&[range], 200, NOW);
        assert!(install(&mut overlay, &frozen, &[]).extents.is_empty());
        overlay.published(1, 200);
        assert!(overlay.has_unsealed(200), "the room is not committed yet");
        let frozen = overlay.freeze(200);
        let seal = install(&mut overlay, &frozen, &[]);
        assert_eq!(seal.extents.iter().map(|(part, _)| part).collect::<Vec<_>>(), [range]);
    }

    #[test]
    fn a_seal_ends_before_bytes_that_stayed_hot() {
        let data = [7; 10_000];
        let mut overlay = written(&data);
        let frozen = overlay.freeze(0);
        let seal = install(&mut overlay, &frozen, &[(ByteRange::new(0, 6_000), ticket(&data[..6_000]))]);
        assert_eq!(seal.size, 6_000, "rule R2");
        assert_eq!(overlay.size(), 10_000);
        assert_eq!(overlay.hot_bytes(), 4_000);
    }

    #[test]
    fn bytes_written_since_they_were_handed_out_stay_hot_and_the_seal_keeps_the_old_ones() {
        let data = [7; 5_000];
        let mut overlay = written(&data);
        let frozen = overlay.freeze(0);
        overlay.write(1_000, &[8; 100], (NOW, Duration::ZERO), &mut |_| 0);
        let seal = install(&mut overlay, &frozen, &[(ByteRange::new(0, 5_000), ticket(&data))]);
        assert_eq!(seal.extents.iter().map(|(range, _)| range.len()).sum::<u64>(), 5_000);
        assert_eq!(overlay.hot_bytes(), 100);
        let read = overlay.read(ByteRange::new(1_000, 1_100));
        assert!(matches!(&read[..], [(_, Source::Memory(bytes))] if bytes[..] == [8; 100]));
    }
}
