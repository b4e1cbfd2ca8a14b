//! Bytes of the local log: segment headers and records (docs/format.md, "Local log").

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::{crc32c, crc32c_append};
use crate::base::ids::{BatchNo, PackId, WriterId};
use crate::commit::rows::{decode_row, encode_row};
use crate::store::kv::Write;

pub(super) const SEGMENT_MAGIC: [u8; 4] = *b"GFSL";
pub(super) const SEGMENT_VERSION: u16 = 1;
pub(super) const SEGMENT_HEADER_BYTES: usize = 32;
pub(super) const RECORD_HEADER_BYTES: usize = 36;

/// The only kind of record so far.
const KIND_BATCH: u8 = 1;

/// Number of a segment, from 1, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct LogSegmentId(pub(crate) u64);

impl LogSegmentId {
    pub(super) fn file_name(self) -> String {
        format!("{:016x}.log", self.0)
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let id = Self(u64::from_str_radix(name.strip_suffix(".log")?, 16).ok()?);
        (id.file_name() == name).then_some(id)
    }
}

pub(super) fn encode_segment_header(id: LogSegmentId, first: BatchNo) -> Vec<u8> {
    let mut w = Writer::new();
    w.bytes(&SEGMENT_MAGIC).u16(SEGMENT_VERSION).u16(0).u64(id.0).u64(first.0).u32(0);
    let sum = crc32c(&w.buf);
    w.u32(sum);
    w.buf
}

/// What a segment's first bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SegmentHeader {
    /// The first batch that was to be written into it.
    Valid(BatchNo),
    /// Intact, of a version this program does not know.
    Newer(u16),
    /// Not written, or not whole.
    Torn,
}

pub(super) fn decode_segment_header(bytes: &[u8], id: LogSegmentId) -> SegmentHeader {
    let decode = || -> Result<SegmentHeader, DecodeError> {
        let mut r = Reader::new("log segment header", bytes);
        let (magic, version, _) = (r.array::<4>()?, r.u16()?, r.u16()?);
        let (found, first, _) = (r.u64()?, r.u64()?, r.u32()?);
        let sum = crc32c(bytes.get(..r.position()).unwrap_or_default());
        if magic != SEGMENT_MAGIC || found != id.0 || r.u32()? != sum {
            return Ok(SegmentHeader::Torn);
        }
        Ok(match version {
            SEGMENT_VERSION => SegmentHeader::Valid(BatchNo(first)),
            newer => SegmentHeader::Newer(newer),
        })
    };
    decode().unwrap_or(SegmentHeader::Torn)
}

/// A record as found in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RawRecord<'a> {
    pub(super) batch: BatchNo,
    /// Batches up to this one were durable when the record was written.
    pub(super) synced: BatchNo,
    pub(super) payload: &'a [u8],
}

impl RawRecord<'_> {
    /// Bytes it takes in the segment.
    pub(super) fn len(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.len()
    }
}

pub(super) fn encode_record(id: LogSegmentId, record: &RawRecord<'_>) -> Vec<u8> {
    let mut w = Writer::new();
    w.buf.reserve(record.len());
    let len = u32::try_from(record.payload.len()).expect("batches are far below 4 GiB");
    w.u32(len).u8(KIND_BATCH).u8(0).u16(0).u64(id.0).u64(record.batch.0).u64(record.synced.0);
    let sum = crc32c_append(crc32c(&w.buf), record.payload);
    w.u32(sum).bytes(record.payload);
    w.buf
}

/// The record that `bytes` begin with, if they are one of segment `id`. The checksum covers the segment's id and the
/// batch's number, so that bytes left of another use of the disk are never taken for a record (rule R14).
pub(super) fn decode_record(bytes: &[u8], id: LogSegmentId) -> Option<RawRecord<'_>> {
    let mut r = Reader::new("log record", bytes);
    let (len, kind, _, _) = (r.u32().ok()?, r.u8().ok()?, r.u8().ok()?, r.u16().ok()?);
    let (segment, batch, synced) = (r.u64().ok()?, BatchNo(r.u64().ok()?), BatchNo(r.u64().ok()?));
    // Checked first: it is what makes trying every offset of a damaged segment cheap.
    if kind != KIND_BATCH || segment != id.0 {
        return None;
    }
    let header = bytes.get(..r.position())?;
    let sum = r.u32().ok()?;
    let payload = r.bytes(len as usize).ok()?;
    (crc32c_append(crc32c(header), payload) == sum).then_some(RawRecord { batch, synced, payload })
}

/// What the log keeps of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LoggedBatch {
    pub(crate) needs: Vec<PackId>,
    pub(crate) writes: Vec<Write>,
}

pub(crate) fn encode_batch(needs: impl ExactSizeIterator<Item = PackId>, writes: &[Write]) -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(count(needs.len()));
    for pack in needs {
        w.u128(pack.writer.0).u64(pack.number);
    }
    w.u32(count(writes.len()));
    for write in writes {
        encode_row(&mut w, write.table, &write.key, write.value.as_deref());
    }
    w.buf
}

pub(crate) fn decode_batch(payload: &[u8]) -> Result<LoggedBatch, DecodeError> {
    let mut r = Reader::new("logged batch", payload);
    let pack = |r: &mut Reader<'_>| Ok(PackId { writer: WriterId(r.u128()?), number: r.u64()? });
    let needs = (0..r.u32()?).map(|_| pack(&mut r)).collect::<Result<_, DecodeError>>()?;
    let writes = (0..r.u32()?).map(|_| decode_row(&mut r)).collect::<Result<_, _>>()?;
    r.finish()?;
    Ok(LoggedBatch { needs, writes })
}

fn count(items: usize) -> u32 {
    u32::try_from(items).expect("a batch is far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::kv::Table;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_segment_has_the_documented_bytes() {
        let id = LogSegmentId(2);
        assert_eq!(id.file_name(), "0000000000000002.log");
        let header = encode_segment_header(id, BatchNo(3));
        assert_eq!(hex(&header), "4746534c010000000200000000000000030000000000000000000000e2470483");
        assert_eq!(decode_segment_header(&header, id), SegmentHeader::Valid(BatchNo(3)));
        let pack = PackId { writer: WriterId(4), number: 5 };
        let writes = [
            Write { table: Table(1), key: b"k".to_vec(), value: Some(b"v".to_vec()) },
            Write { table: Table(0x90), key: b"g".to_vec(), value: None },
        ];
        let payload = encode_batch([pack].into_iter(), &writes);
        let documented = concat!(
            "01000000",
            "04000000000000000000000000000000",
            "0500000000000000", // needs one pack
            "02000000",
            "01",
            "0100",
            "01000000",
            "6b",
            "76", // k = v
            "90",
            "0100",
            "ffffffff",
            "67", // g is removed
        );
        assert_eq!(hex(&payload), documented);
        let record = RawRecord { batch: BatchNo(3), synced: BatchNo(1), payload: &payload };
        let bytes = encode_record(id, &record);
        let front = concat!(
            "31000000",
            "01",
            "00",
            "0000",             // length, kind, reserved
            "0200000000000000", // segment
            "0300000000000000", // batch
            "0100000000000000", // durable by then
            "b44c6a43",         // checksum
        );
        assert_eq!(hex(&bytes), front.to_owned() + documented);
        assert_eq!(decode_record(&bytes, id), Some(record));
        assert_eq!(
            decode_batch(&payload).expect("readable"),
            LoggedBatch { needs: vec![pack], writes: writes.to_vec() }
        );
    }

    #[test]
    fn records_and_headers_of_other_segments_or_versions_do_not_count() {
        let record = RawRecord { batch: BatchNo(3), synced: BatchNo(1), payload: b"payload" };
        let bytes = encode_record(LogSegmentId(2), &record);
        assert_eq!(decode_record(&bytes, LogSegmentId(3)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode_record(&damaged, LogSegmentId(2)), None, "byte {at}");
            assert_eq!(decode_record(&bytes[..at], LogSegmentId(2)), None, "cut at {at}");
        }
        let header = encode_segment_header(LogSegmentId(2), BatchNo(1));
        assert_eq!(decode_segment_header(&header, LogSegmentId(3)), SegmentHeader::Torn);
        let mut newer = header[..28].to_vec();
        newer[4] = 9;
        newer.extend(crc32c(&newer).to_le_bytes());
        assert_eq!(decode_segment_header(&newer, LogSegmentId(2)), SegmentHeader::Newer(9));
    }
}
