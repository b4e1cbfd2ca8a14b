//! Opening the log after a stop of any kind: what counts, what was never promised, what is damaged (rule R14).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::format::{
    LogSegmentId, LoggedBatch, RawRecord, SEGMENT_HEADER_BYTES, SegmentHeader, decode_batch, decode_record,
    decode_segment_header,
};
use super::{Log, Segment};
use crate::base::ids::BatchNo;
use crate::commit::system::Applied;
use crate::store::device::{Device, Directory};
use crate::store::{Error, Kind, Result};

/// Where reading the log stopped short of its end.
struct Damage {
    segment: LogSegmentId,
    at: usize,
}

struct Scan<'a> {
    applied: Applied,
    /// The batch that must come next.
    next: BatchNo,
    segments: BTreeMap<LogSegmentId, Segment>,
    replay: &'a mut dyn FnMut(BatchNo, LoggedBatch) -> Result<()>,
}

impl Log {
    /// Opens the log in `directory` and hands every batch that `applied` does not cover to `replay`, in order.
    ///
    /// Unsynced records may survive a power cut without their predecessors. So at the first record that is missing or
    /// not whole the log ends, unless something proves that the record had been durable: a later record that says so,
    /// or `applied`. What is cut off was never promised to anybody.
    ///
    /// # Errors
    /// `Corrupt` if a durable record is missing; nothing is changed then. `Precondition` if a newer version wrote it.
    pub(in crate::commit) fn open(
        directory: Arc<dyn Directory>,
        segment_bytes: u64,
        applied: Applied,
        replay: &mut dyn FnMut(BatchNo, LoggedBatch) -> Result<()>,
    ) -> Result<Self> {
        let mut ids: Vec<_> =
            directory.list()?.iter().filter_map(|(name, _)| LogSegmentId::parse(name)).collect();
        ids.sort_unstable();
        let next = applied.log_from.max(BatchNo(1));
        let mut scan = Scan { applied, next, segments: BTreeMap::new(), replay };
        let mut damage = None;
        for (index, &id) in ids.iter().enumerate() {
            let device = directory.open(&id.file_name())?;
            let bytes = read_all(&*device)?;
            if let Some(found) = scan.segment(id, &device, &bytes)? {
                scan.check_undurable(&*directory, &bytes, &found, ids.get(index + 1..).unwrap_or_default())?;
                damage = Some(found);
                break;
            }
        }
        let last = BatchNo(scan.next.0 - 1);
        if last < applied.batch {
            return Err(lost(scan.next, "the log ends before what was applied"));
        }
        let segments = scan.segments;
        repair(&*directory, &ids, &segments, damage)?;
        let next_id = LogSegmentId(ids.last().map_or(1, |id| id.0 + 1));
        // What is replayed now will be acted on: it may not be lost by the next power cut.
        segments.values().try_for_each(|segment| segment.device.sync())?;
        Ok(Self {
            directory,
            segment_bytes,
            segments,
            current: None,
            spare: None,
            next_id,
            last,
            synced: last,
            appended_bytes: 0,
        })
    }
}

impl Scan<'_> {
    /// Reads the records of one segment; answers where they end too early.
    fn segment(
        &mut self,
        id: LogSegmentId,
        device: &Arc<dyn Device>,
        bytes: &[u8],
    ) -> Result<Option<Damage>> {
        let mut batch = match decode_segment_header(bytes, id) {
            SegmentHeader::Newer(version) => {
                let text = format!("open log: segment {} has version {version}", id.file_name());
                return Err(Error::new(Kind::Precondition, text));
            }
            // Nothing in it counts; whether something is missing shows in what comes after.
            SegmentHeader::Torn if !proves_durable(bytes, id, self.next) => return Ok(None),
            SegmentHeader::Torn => return Ok(Some(Damage { segment: id, at: 0 })),
            SegmentHeader::Valid(first) if self.next < first => {
                return Ok(Some(Damage { segment: id, at: 0 }));
            }
            SegmentHeader::Valid(first) => first,
        };
        let mut at = SEGMENT_HEADER_BYTES;
        let whole = loop {
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                break true;
            }
            let Some(record) = decode_record(rest, id).filter(|record| record.batch == batch) else {
                break false;
            };
            if batch == self.next {
                self.record(&record)?;
            }
            at += record.len();
            batch.0 += 1;
        };
        let last = BatchNo(batch.0 - 1);
        let segment = Segment { device: device.clone(), last, end: at as u64, dirty: false };
        self.segments.insert(id, segment);
        // A segment may end badly below where the log starts: it was not needed any more.
        Ok((!whole && self.next <= batch).then_some(Damage { segment: id, at }))
    }

    fn record(&mut self, record: &RawRecord<'_>) -> Result<()> {
        if self.applied.batch < record.batch {
            (self.replay)(record.batch, decode_batch(record.payload)?)?;
        }
        self.next.0 += 1;
        Ok(())
    }

    /// Makes sure that the record that should be at the damage was never durable.
    fn check_undurable(
        &self,
        directory: &dyn Directory,
        bytes: &[u8],
        damage: &Damage,
        later: &[LogSegmentId],
    ) -> Result<()> {
        let name = damage.segment.file_name();
        let rest = bytes.get(damage.at..).unwrap_or_default();
        if proves_durable(rest, damage.segment, self.next) {
            return Err(lost(self.next, &format!("segment {name} is damaged at byte {}", damage.at)));
        }
        for &id in later {
            let bytes = read_all(&*directory.open(&id.file_name())?)?;
            if proves_durable(&bytes, id, self.next) {
                return Err(lost(self.next, &format!("segment {name} is damaged at byte {}", damage.at)));
            }
        }
        Ok(())
    }
}

/// True if any record in `bytes` says that `batch` was durable when it was written. Looks at every offset: where
/// records begin is unknown after a damaged one.
fn proves_durable(bytes: &[u8], id: LogSegmentId, batch: BatchNo) -> bool {
    (0..bytes.len()).any(|at| {
        let record = decode_record(bytes.get(at..).unwrap_or_default(), id);
        record.is_some_and(|record| batch <= record.synced)
    })
}

fn lost(batch: BatchNo, why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("open log: batch {} was durable and is lost: {why}", batch.0))
}

/// Cuts off what follows the damage, durably, so that no later opening finds it behind new records.
fn repair(
    directory: &dyn Directory,
    ids: &[LogSegmentId],
    segments: &BTreeMap<LogSegmentId, Segment>,
    damage: Option<Damage>,
) -> Result<()> {
    if let Some(damage) = damage
        && let Some(segment) = segments.get(&damage.segment)
    {
        segment.device.set_len(segment.end)?;
        segment.device.sync()?;
    }
    let unread: Vec<_> = ids.iter().filter(|id| !segments.contains_key(id)).collect();
    for id in &unread {
        directory.remove(&id.file_name())?;
    }
    if unread.is_empty() { Ok(()) } else { directory.sync() }
}

fn read_all(device: &dyn Device) -> Result<Vec<u8>> {
    let len = usize::try_from(device.len()?)
        .map_err(|_| Error::new(Kind::Corrupt, "open log: segment too large"))?;
    let mut bytes = vec![0; len];
    device.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
