//! The local log: every batch in commit order, in segments on the local disk, until it is applied for good and in the
//! bucket. It is also the queue the journal reads from, so an hour without the bucket costs disk and not memory.

mod format;
mod open;
mod tail;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use self::format::{LogSegmentId, LoggedBatch, encode_batch};
use self::format::{RawRecord, SEGMENT_HEADER_BYTES, encode_record, encode_segment_header};
pub(super) use self::tail::{LogTail, TailBatch};
use crate::base::ids::BatchNo;
use crate::commit::batch::is_synced;
use crate::store::Result;
use crate::store::device::{Device, Directory};

/// The writing end. One caller at a time.
pub(super) struct Log {
    directory: Arc<dyn Directory>,
    segment_bytes: u64,
    segments: BTreeMap<LogSegmentId, Segment>,
    /// Takes new records; none right after opening.
    current: Option<LogSegmentId>,
    /// The next segment, created and reserved ahead of its use, so that no submit waits for a disk sync.
    spare: Option<(LogSegmentId, Arc<dyn Device>)>,
    next_id: LogSegmentId,
    last: BatchNo,
    synced: BatchNo,
    /// Bytes of records appended since opening.
    pub(super) appended_bytes: u64,
}

struct Segment {
    device: Arc<dyn Device>,
    /// Its newest batch; while it holds none, the newest of the segment before.
    last: BatchNo,
    /// Where its records end.
    end: u64,
    /// True if it holds bytes not synced yet.
    dirty: bool,
}

/// What a sync has to cover, taken under the caller's lock and carried out without it.
pub(super) struct SyncWork {
    devices: Vec<Arc<dyn Device>>,
}

impl SyncWork {
    /// Makes the records durable. Not to be repeated after an error (rule R14).
    pub(super) fn run(&self) -> Result<()> {
        self.devices.iter().try_for_each(|device| device.sync())
    }
}

impl Log {
    /// Number of the newest batch.
    pub(super) fn last(&self) -> BatchNo {
        self.last
    }

    /// All batches up to this one are durable here.
    pub(super) fn synced(&self) -> BatchNo {
        self.synced
    }

    /// Appends the next batch and returns its number. Survives the death of this process, not a power cut.
    ///
    /// # Errors
    /// `Full` if the disk has no room: nothing has changed and a later call may succeed. After any other error what the
    /// log holds is unknown.
    pub(super) fn append(&mut self, payload: &[u8]) -> Result<BatchNo> {
        let batch = BatchNo(self.last.0 + 1);
        let id = self.segment_for(batch)?;
        let synced = self.synced;
        let record = encode_record(id, &RawRecord { batch, synced, payload });
        let segment = self.segments.get_mut(&id).expect("segment_for made it");
        segment.device.write_at(&record, segment.end)?;
        segment.end += record.len() as u64;
        segment.last = batch;
        segment.dirty = true;
        self.last = batch;
        self.appended_bytes += record.len() as u64;
        Ok(batch)
    }

    fn segment_for(&mut self, first: BatchNo) -> Result<LogSegmentId> {
        if let Some(current) = self.current
            && self.segments.get(&current).is_some_and(|segment| segment.end < self.segment_bytes)
        {
            return Ok(current);
        }
        let (id, device) = match self.spare.take() {
            Some(spare) => spare,
            None => {
                let made = prepare(&*self.directory, self.next_id, self.segment_bytes)?;
                self.next_id = LogSegmentId(made.0.0 + 1);
                made
            }
        };
        let header = encode_segment_header(id, first);
        if let Err(error) = device.write_at(&header, 0) {
            self.spare = Some((id, device));
            return Err(error);
        }
        let last = BatchNo(first.0 - 1);
        let end = header.len() as u64;
        self.segments.insert(id, Segment { device, last, end, dirty: true });
        self.current = Some(id);
        Ok(id)
    }

    /// The segment to prepare without the lock and to hand to [`Self::provide_spare`], if there is none in store.
    pub(super) fn spare_wanted(&mut self) -> Option<SpareWork> {
        if self.spare.is_some() {
            return None;
        }
        let id = self.next_id;
        // The number is taken at once: an append that cannot wait must not prepare the same file.
        self.next_id = LogSegmentId(id.0 + 1);
        Some(SpareWork { directory: self.directory.clone(), id, segment_bytes: self.segment_bytes })
    }

    /// Keeps a prepared segment, or gives it back if appends have gone past its number in the meantime.
    #[must_use]
    pub(super) fn provide_spare(&mut self, id: LogSegmentId, device: Arc<dyn Device>) -> bool {
        let late = self.segments.keys().next_back().is_some_and(|newest| id < *newest);
        if !late && self.spare.is_none() {
            self.spare = Some((id, device));
            return true;
        }
        false
    }

    /// What to sync so that everything appended so far is durable.
    pub(super) fn begin_sync(&mut self) -> SyncWork {
        let mut devices = Vec::new();
        for segment in self.segments.values_mut() {
            if std::mem::take(&mut segment.dirty) {
                devices.push(segment.device.clone());
            }
        }
        SyncWork { devices }
    }

    /// Notes that batches up to `upto` are durable now, and what they refer to.
    pub(super) fn end_sync(&mut self, upto: BatchNo) {
        self.synced = self.synced.max(upto);
    }

    /// Forgets segments that hold only batches below `from` and returns their files, for the caller to remove. That the
    /// log starts at `from` is durable already.
    pub(super) fn trim(&mut self, from: BatchNo) -> Vec<String> {
        let current = self.current;
        let old = self.segments.extract_if(.., |id, segment| Some(*id) != current && segment.last < from);
        old.map(|(id, _)| id.file_name()).collect()
    }

    /// Visits the batches above `batch` that have rows for the journal, with the bytes of their rows.
    pub(super) fn read_above(&self, batch: BatchNo, visit: &mut dyn FnMut(BatchNo, usize)) -> Result<()> {
        let mut tail = LogTail::above(batch);
        while let Some(read) = tail.plan(self) {
            for batch in read.run()? {
                tail.advance(&batch);
                if batch.logged.writes.iter().any(|write| is_synced(write.table)) {
                    visit(batch.batch, batch.bytes);
                }
            }
        }
        Ok(())
    }

    pub(super) fn directory(&self) -> Arc<dyn Directory> {
        self.directory.clone()
    }

    /// Numbers batches from above `batch` on, where another history has taken the numbers up to it. All segments so far
    /// are closed.
    pub(super) fn skip_to(&mut self, batch: BatchNo) {
        self.last = self.last.max(batch);
        self.synced = self.last;
        self.current = None;
    }

    /// The segment that holds `batch`: its id, device and where its records end.
    fn segment_of(&self, batch: BatchNo) -> Option<(LogSegmentId, Arc<dyn Device>, u64)> {
        let (&id, segment) = self.segments.iter().find(|(_, segment)| batch <= segment.last)?;
        Some((id, segment.device.clone(), segment.end))
    }
}

/// A segment to prepare.
pub(super) struct SpareWork {
    directory: Arc<dyn Directory>,
    id: LogSegmentId,
    segment_bytes: u64,
}

impl SpareWork {
    pub(super) fn run(&self) -> Result<(LogSegmentId, Arc<dyn Device>)> {
        prepare(&*self.directory, self.id, self.segment_bytes)
    }
}

/// Removes what [`Log::provide_spare`] gave back.
pub(super) fn discard_spare(directory: &dyn Directory, id: LogSegmentId) -> Result<()> {
    directory.remove(&id.file_name())
}

/// Creates and reserves a segment and makes its name durable before the first record goes in (rule R3).
fn prepare(
    directory: &dyn Directory,
    id: LogSegmentId,
    segment_bytes: u64,
) -> Result<(LogSegmentId, Arc<dyn Device>)> {
    let name = id.file_name();
    // Left by an attempt that failed halfway: nothing was ever written into it.
    directory.remove(&name)?;
    let device = directory.create(&name)?;
    device.reserve(segment_bytes)?;
    directory.sync()?;
    Ok((id, device))
}

pub(super) const FIRST_RECORD_AT: u64 = SEGMENT_HEADER_BYTES as u64;
