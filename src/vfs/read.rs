//! read(2): what is in memory answers at once; blocks are fetched together, and ahead of a reader that goes straight on.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::error::{Error, Result};
use super::handle::Handle;
use super::inode::{Inode, State};
use super::lookup::ready;
use super::{Pending, Vfs};
use crate::base::hash::BlockId;
use crate::base::ids::Fh;
use crate::base::limits::{KIB, MIB};
use crate::base::range::ByteRange;
use crate::base::sync::lock;
use crate::content::manifest::Stored;
use crate::content::overlay::Source;
use crate::store::block::BlockStore;
use crate::store::schema::inode::ContentForm;
use crate::store::{self, Kind};

/// Readahead begins with this many bytes and doubles with each read that goes on where the last ended.
const AHEAD_BYTES_FIRST: u64 = MIB;
const AHEAD_BYTES_MAX: u64 = 16 * MIB;

/// Places of one file that are followed at once: several programs, or one that interleaves, read through one handle.
const STREAMS: usize = 4;

/// A read that begins this close behind the last one's end still goes on: the kernel's own readahead reorders a little.
const STREAM_GAP_BYTES: u64 = 256 * KIB;

/// Where a handle's readers are.
#[derive(Default)]
pub(super) struct Readahead {
    streams: [Stream; STREAMS],
    clock: u64,
}

#[derive(Clone, Copy, Default)]
struct Stream {
    /// End of the last read.
    end: u64,
    /// End of what was asked for ahead.
    ahead: u64,
    /// How far to look ahead from the end of the last read.
    window: u64,
    used: u64,
}

impl Readahead {
    /// Notes a read; returns what to fetch ahead, if anything.
    fn note(&mut self, range: ByteRange) -> Option<ByteRange> {
        self.clock += 1;
        let goes_on = |stream: &&mut Stream| {
            stream.used != 0
                && stream.end <= range.start + STREAM_GAP_BYTES
                && range.start <= stream.end + STREAM_GAP_BYTES
        };
        let clock = self.clock;
        if let Some(stream) = self.streams.iter_mut().find(goes_on) {
            stream.used = clock;
            stream.end = stream.end.max(range.end);
            let begin = stream.ahead.max(stream.end);
            // In quarters: several requests are under way while one is consumed, and each is usable when it has come.
            if begin.saturating_sub(stream.end) > stream.window / 4 * 3 {
                return None;
            }
            stream.window = (2 * stream.window).clamp(AHEAD_BYTES_FIRST, AHEAD_BYTES_MAX);
            stream.ahead = stream.end.saturating_add(stream.window);
            return Some(ByteRange::new(begin, stream.ahead));
        }
        let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used)?;
        // A file that is read from its start is likely to be read on.
        let window = if range.start == 0 { AHEAD_BYTES_FIRST / 2 } else { 0 };
        *oldest = Stream { end: range.end, ahead: range.end, window, used: clock };
        None
    }
}

/// A read, resolved.
struct Plan {
    range: ByteRange,
    parts: Vec<(ByteRange, Part)>,
}

enum Part {
    Memory(Bytes),
    Block { id: BlockId, skip: u32 },
}

impl Vfs {
    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `BadHandle`; `Io` if bytes are missing or not what was written. Never other bytes.
    pub fn read(self: &Arc<Self>, fh: Fh, offset: u64, len: u32) -> Pending<Bytes> {
        match self.plan_read(fh, ByteRange::at(offset, u64::from(len))) {
            Ok(plan) => self.carry_out_read(plan),
            Err(error) => ready(Err(error)),
        }
    }

    fn plan_read(self: &Arc<Self>, fh: Fh, window: ByteRange) -> Result<Plan> {
        let handle = self.handles.get(fh)?;
        let mut state = handle.inode.lock();
        self.touch_atime(&mut state);
        let range = window.intersect(&ByteRange::new(0, state.size()));
        let parts = self.parts(&handle.inode, &state, range)?;
        drop(state);
        self.read_ahead(&handle, range);
        Ok(Plan { range, parts })
    }

    /// Reads the part of `window` that lies within the file, without a handle.
    pub(super) async fn read_inode(&self, inode: &Inode, window: ByteRange) -> Result<Bytes> {
        let plan = {
            let state = inode.lock();
            let range = window.intersect(&ByteRange::new(0, state.size()));
            Plan { range, parts: self.parts(inode, &state, range)? }
        };
        self.carry_out_read(plan).await
    }

    /// What `range` of a file is made of, ascending; gaps read as zeros.
    fn parts(&self, inode: &Inode, state: &State, range: ByteRange) -> Result<Vec<(ByteRange, Part)>> {
        let overlay = state.overlay.as_ref().map(|overlay| overlay.read(range)).unwrap_or_default();
        let mut parts = Vec::with_capacity(overlay.len() + 4);
        let mut at = range.start;
        for (part, source) in overlay {
            self.committed_parts(inode, state, ByteRange::new(at, part.start), &mut parts)?;
            at = part.end;
            match source {
                Source::Memory(data) => parts.push((part, Part::Memory(data))),
                Source::Block(ticket, skip) => parts.push((part, Part::Block { id: ticket.id, skip })),
                Source::Zeros => {}
            }
        }
        self.committed_parts(inode, state, ByteRange::new(at, range.end), &mut parts)?;
        Ok(parts)
    }

    fn committed_parts(
        &self,
        inode: &Inode,
        state: &State,
        window: ByteRange,
        parts: &mut Vec<(ByteRange, Part)>,
    ) -> Result<()> {
        let window = window.intersect(&ByteRange::new(0, state.row.size));
        if window.is_empty() {
            return Ok(());
        }
        match state.row.form {
            ContentForm::Empty => {}
            ContentForm::Inline => {
                let data = Bytes::from(self.inline_bytes(inode.ino)?);
                let part = window.intersect(&ByteRange::new(0, data.len() as u64));
                if !part.is_empty() {
                    let data = data.slice(part.start as usize..part.end as usize);
                    parts.push((part, Part::Memory(data)));
                }
            }
            ContentForm::Manifest => {
                let view = self.commit.view()?;
                for (part, stored) in self.manifests.read(&view, inode.ino, window)? {
                    if let Stored::Block { block, skip } = stored {
                        parts.push((part, Part::Block { id: block, skip }));
                    }
                }
            }
        }
        Ok(())
    }

    fn carry_out_read(&self, plan: Plan) -> Pending<Bytes> {
        let mut ids: Vec<BlockId> = Vec::new();
        for (_, part) in &plan.parts {
            if let Part::Block { id, .. } = part
                && ids.last() != Some(id)
            {
                ids.push(*id);
            }
        }
        if ids.is_empty() {
            return ready(assemble(&plan, &[], &[]));
        }
        let blocks = Arc::clone(&self.blocks);
        Box::pin(async move {
            let data = blocks.get_many(&ids).await?;
            assemble(&plan, &ids, &data)
        })
    }

    /// Fetches into the cache what a reader will want next; nobody waits, and nobody hears of a failure.
    fn read_ahead(self: &Arc<Self>, handle: &Handle, range: ByteRange) {
        let Some(ahead) = lock(&handle.readahead).note(range) else { return };
        let (vfs, inode) = (Arc::clone(self), Arc::clone(&handle.inode));
        let parts = {
            let state = inode.lock();
            let ahead = ahead.intersect(&ByteRange::new(0, state.size()));
            vfs.parts(&inode, &state, ahead)
        };
        let ids: Vec<BlockId> = parts
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(_, part)| match part {
                Part::Block { id, .. } => Some(id),
                Part::Memory(_) => None,
            })
            .collect();
        if ids.is_empty() {
            return;
        }
        let blocks: Arc<dyn BlockStore> = Arc::clone(&self.blocks);
        self.spawner.spawn(
            "read ahead",
            Box::pin(async move {
                if let Err(error) = blocks.get_many(&ids).await {
                    tracing::debug!(%error, "read ahead");
                }
            }),
        );
    }
}

/// Puts the answer together; copies only if it has more than one part.
fn assemble(plan: &Plan, ids: &[BlockId], data: &[Bytes]) -> Result<Bytes> {
    let mut ids = ids.iter().zip(data);
    let mut current: Option<(&BlockId, &Bytes)> = None;
    let len = usize::try_from(plan.range.len()).expect("within one request");
    let mut out = BytesMut::new();
    for (range, part) in &plan.parts {
        let bytes = match part {
            Part::Memory(data) => data.clone(),
            Part::Block { id, skip } => {
                if current.is_none_or(|(known, _)| known != id) {
                    current = ids.next();
                }
                let skip = *skip as usize;
                let end = skip + usize::try_from(range.len()).expect("a slice of a block");
                let (_, block) = current.filter(|(known, _)| *known == id).ok_or_else(|| short(id))?;
                if block.len() < end {
                    return Err(short(id));
                }
                block.slice(skip..end)
            }
        };
        if *range == plan.range {
            return Ok(bytes);
        }
        let gap = usize::try_from(range.start - plan.range.start).expect("within one request");
        // All at once: an answer that grows is copied each time.
        out.reserve(len - out.len());
        out.resize(gap, 0);
        out.extend_from_slice(&bytes);
    }
    out.resize(len, 0);
    Ok(out.freeze())
}

fn short(id: &BlockId) -> Error {
    Error::Io(store::Error::new(Kind::Corrupt, format!("read: block store answered too little for {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_on_is_read_ahead_of_in_growing_steps() {
        let mut readahead = Readahead::default();
        let mut at = 0;
        let mut ahead = 0;
        for _ in 0..200 {
            let range = ByteRange::at(at, 128 * KIB);
            if let Some(next) = readahead.note(range) {
                assert!(ahead <= next.start && range.end <= next.start, "nothing is asked for twice");
                assert!(next.end <= range.end + AHEAD_BYTES_MAX);
                ahead = next.end;
            }
            at = range.end;
        }
        assert!(at + AHEAD_BYTES_MAX / 2 <= ahead);
    }

    #[test]
    fn random_reads_ask_for_nothing_more() {
        let mut readahead = Readahead::default();
        for at in [700, 100, 900, 300, 500, 1100] {
            assert_eq!(readahead.note(ByteRange::at(at * MIB, 4 * KIB)), None);
        }
    }

    #[test]
    fn four_interleaved_readers_are_told_apart() {
        let mut readahead = Readahead::default();
        let mut asked = [false; 4];
        for step in 0..20 {
            for (reader, asked) in asked.iter_mut().enumerate() {
                let at = reader as u64 * 1000 * MIB + step * 128 * KIB;
                *asked |= readahead.note(ByteRange::at(at, 128 * KIB)).is_some();
            }
        }
        assert_eq!(asked, [true; 4]);
    }
}
