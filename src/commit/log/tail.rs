//! Reading batches back from the log, in order: how the journal finds what to send.

use std::sync::Arc;

use super::format::{LogSegmentId, LoggedBatch, decode_batch, decode_record};
use super::{FIRST_RECORD_AT, Log};
use crate::base::ids::BatchNo;
use crate::store::device::Device;
use crate::store::{Error, Kind, Result};

/// A place in the log: the next batch to read.
#[derive(Clone, Copy, Debug)]
pub(in crate::commit) struct LogTail {
    next: BatchNo,
    /// Where it is, if it is in this segment.
    hint: Option<(LogSegmentId, u64)>,
}

/// A batch read back.
pub(in crate::commit) struct TailBatch {
    pub(in crate::commit) batch: BatchNo,
    /// Bytes of its rows as logged.
    pub(in crate::commit) bytes: usize,
    pub(in crate::commit) logged: LoggedBatch,
    segment: LogSegmentId,
    end: u64,
}

/// One read, planned under the lock of the log and carried out without it.
pub(in crate::commit) struct TailRead {
    device: Arc<dyn Device>,
    segment: LogSegmentId,
    from: u64,
    end: u64,
    next: BatchNo,
}

/// Bytes one read takes at most; above the largest record, so that each read makes progress.
const READ_BYTES_MAX: u64 = 4 << 20;

impl LogTail {
    /// Reads from the batch after `batch`.
    pub(in crate::commit) fn above(batch: BatchNo) -> Self {
        Self { next: BatchNo(batch.0 + 1), hint: None }
    }

    /// Everything below is behind this reader.
    pub(in crate::commit) fn next(&self) -> BatchNo {
        self.next
    }

    /// The read that finds the next batches, or None if there are none.
    pub(in crate::commit) fn plan(&self, log: &Log) -> Option<TailRead> {
        let (segment, device, end) = log.segment_of(self.next)?;
        let from = self.hint.filter(|(id, _)| *id == segment).map_or(FIRST_RECORD_AT, |(_, at)| at);
        Some(TailRead { device, segment, from, end, next: self.next })
    }

    /// Goes on behind `batch`, which the last read returned.
    pub(in crate::commit) fn advance(&mut self, batch: &TailBatch) {
        // Numbers may be missing: batches without rows for the journal go from the log when they are applied.
        self.next = BatchNo(batch.batch.0 + 1);
        self.hint = Some((batch.segment, batch.end));
    }
}

impl TailRead {
    /// At least one batch, and more as far as one read goes.
    ///
    /// # Errors
    /// `Corrupt` if a record is not what was appended.
    pub(in crate::commit) fn run(&self) -> Result<Vec<TailBatch>> {
        let mut batches = Vec::new();
        let mut from = self.from;
        while batches.is_empty() {
            let len = (self.end - from).min(READ_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(len).expect("at most READ_BYTES_MAX")];
            self.device.read_at(&mut bytes, from)?;
            let read = self.records(&bytes, from, &mut batches)?;
            if read == 0 {
                let text = format!("read log: bad record segment={} offset={from}", self.segment.0);
                return Err(Error::new(Kind::Corrupt, text));
            }
            from += read;
        }
        Ok(batches)
    }

    /// Decodes whole records at the front of `bytes` and returns how many bytes they take.
    fn records(&self, bytes: &[u8], offset: u64, batches: &mut Vec<TailBatch>) -> Result<u64> {
        let mut at = 0;
        while let Some(record) = decode_record(bytes.get(at..).unwrap_or_default(), self.segment) {
            at += record.len();
            if self.next <= record.batch {
                batches.push(TailBatch {
                    batch: record.batch,
                    bytes: record.payload.len(),
                    logged: decode_batch(record.payload)?,
                    segment: self.segment,
                    end: offset + at as u64,
                });
            }
        }
        Ok(at as u64)
    }
}
