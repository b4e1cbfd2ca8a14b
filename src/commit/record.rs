//! Journal records: what one object `journal/<seq>` holds (docs/format.md, "Journal").

use bytes::Bytes;

use super::batch::{Rows, is_synced};
use super::log::LoggedBatch;
use super::rows::{decode_row, encode_row};
use super::system::Head;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::{Hash, Hasher};
use crate::base::ids::{BatchNo, Epoch, Seq, VolumeId, WriterId};
use crate::base::limits::MIB;
use crate::store::kv::Write;
use crate::store::{Error, Kind, Result};

const MAGIC: [u8; 4] = *b"GFSJ";
const VERSION: u16 = 1;
const TRAILER_BYTES: usize = 32;
/// Higher than for blocks: a record is a few MiB at most, made behind everybody's back, and kept for long.
const ZSTD_LEVEL: i32 = 6;
/// Bytes of rows a reader accepts: above what any record is cut at, so that a damaged length cannot take all memory.
const RAW_BYTES_MAX: u64 = 64 * MIB;

/// How a body is stored. The numbers are stored.
pub(super) const CODEC_RAW: u8 = 0;
pub(super) const CODEC_ZSTD: u8 = 1;

/// What a record says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) volume: VolumeId,
    pub(crate) seq: Seq,
    pub(crate) epoch: Epoch,
    pub(crate) writer: WriterId,
    /// Hash of all records before.
    pub(crate) prev: Hash,
    /// Batches of the writer's order whose rows it holds. `last` below `first` for a fence, which holds none.
    pub(crate) first: BatchNo,
    pub(crate) last: BatchNo,
}

/// A record and its rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) header: RecordHeader,
    /// One per row, ascending by table and key: what the row was after the last of the batches.
    pub(crate) writes: Vec<Write>,
    /// Hash of the stored bytes.
    hash: Hash,
}

impl Record {
    /// The place in the journal behind this record.
    pub(crate) fn head(&self) -> Head {
        Head { seq: self.header.seq, epoch: self.header.epoch, chain: chain(self.header.prev, self.hash) }
    }
}

/// The hash of all records up to one.
fn chain(prev: Hash, record: Hash) -> Hash {
    let mut hasher = Hasher::default();
    hasher.update(&prev.0);
    hasher.update(&record.0);
    hasher.finish()
}

/// The rows of several batches, the last change of each: a record is atomic, so what lies between is nobody's.
#[derive(Default)]
pub(super) struct Coalesced {
    rows: Rows,
}

impl Coalesced {
    /// Takes the rows of a batch that leave this machine; false if there are none.
    pub(super) fn add(&mut self, batch: LoggedBatch) -> bool {
        let mut any = false;
        for Write { table, key, value } in batch.writes {
            if is_synced(table) {
                any = true;
                self.rows.insert((table, key), value);
            }
        }
        any
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn into_writes(self) -> Vec<Write> {
        self.rows.into_iter().map(|((table, key), value)| Write { table, key, value }).collect()
    }
}

/// A record ready to be sent: its bytes never change (rule R9).
pub(crate) struct EncodedRecord {
    pub(crate) bytes: Bytes,
    pub(crate) head: Head,
}

pub(crate) fn encode_record(header: &RecordHeader, writes: &[Write]) -> EncodedRecord {
    let mut body = Writer::new();
    for write in writes {
        encode_row(&mut body, write.table, &write.key, write.value.as_deref());
    }
    let (codec, stored) = compress(&body.buf);
    let mut w = Writer::new();
    w.bytes(&MAGIC).u16(VERSION).u8(codec).u8(0);
    w.u128(header.volume.0).u64(header.seq.0).u64(header.epoch.0).u128(header.writer.0);
    w.bytes(&header.prev.0).u64(header.first.0).u64(header.last.0);
    w.u64(body.buf.len() as u64).sized(&stored);
    let hash = Hash::of(&w.buf);
    w.bytes(&hash.0);
    let head = Head { seq: header.seq, epoch: header.epoch, chain: chain(header.prev, hash) };
    EncodedRecord { bytes: w.buf.into(), head }
}

/// Reads a record, checking every byte against the hash at its end and its place against `volume` and `seq`.
///
/// # Errors
/// `Corrupt` naming the sequence; `Precondition` for a newer version.
pub(crate) fn decode_record(bytes: &[u8], volume: VolumeId, seq: Seq) -> Result<Record> {
    let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("journal record {:016x}: {what}", seq.0));
    let cut = bytes.len().checked_sub(TRAILER_BYTES).ok_or_else(|| corrupt("too short"))?;
    let (front, trailer) = bytes.split_at(cut);
    let hash = Hash::of(front);
    if hash.0 != trailer {
        return Err(corrupt("bytes do not match their hash"));
    }
    let decoded = decode_front(front).map_err(|error| corrupt(&error.to_string()))?;
    let Some((header, body)) = decoded else {
        let text = format!("journal record {:016x}: written by a newer version", seq.0);
        return Err(Error::new(Kind::Precondition, text));
    };
    if header.volume != volume || header.seq != seq {
        return Err(corrupt("belongs to another volume or place"));
    }
    let body = decompress(body.codec, body.stored, body.raw_len)
        .ok_or_else(|| corrupt("body does not decompress"))?;
    let mut r = Reader::new("journal rows", &body);
    let mut writes = Vec::new();
    while r.remaining() > 0 {
        let write = decode_row(&mut r).map_err(|error| corrupt(&error.to_string()))?;
        // A record that changed local rows would reach into another machine's state.
        if !is_synced(write.table) {
            return Err(corrupt("holds a row of a local table"));
        }
        writes.push(write);
    }
    Ok(Record { header, writes, hash })
}

/// Rows as they are stored.
struct Body<'a> {
    codec: u8,
    raw_len: u64,
    stored: &'a [u8],
}

/// Header and body, or None for a version this program does not know.
fn decode_front(bytes: &[u8]) -> std::result::Result<Option<(RecordHeader, Body<'_>)>, DecodeError> {
    let mut r = Reader::new("journal record", bytes);
    let (magic, version, codec, _) = (r.array::<4>()?, r.u16()?, r.u8()?, r.u8()?);
    if magic != MAGIC {
        return Err(r.malformed());
    }
    if version != VERSION {
        return Ok(None);
    }
    let (volume, seq, epoch) = (VolumeId(r.u128()?), Seq(r.u64()?), Epoch(r.u64()?));
    let (writer, prev) = (WriterId(r.u128()?), Hash(r.array()?));
    let (first, last, raw_len) = (BatchNo(r.u64()?), BatchNo(r.u64()?), r.u64()?);
    let stored = r.sized()?;
    r.finish()?;
    let header = RecordHeader { volume, seq, epoch, writer, prev, first, last };
    Ok(Some((header, Body { codec, raw_len, stored })))
}

/// The codec and the stored form of rows.
pub(super) fn compress(raw: &[u8]) -> (u8, Vec<u8>) {
    let packed = zstd::bulk::compress(raw, ZSTD_LEVEL).ok();
    match packed.filter(|packed| packed.len() < raw.len()) {
        Some(packed) => (CODEC_ZSTD, packed),
        None => (CODEC_RAW, raw.to_vec()),
    }
}

/// The rows again, exactly `raw_len` bytes, or None.
pub(super) fn decompress(codec: u8, stored: &[u8], raw_len: u64) -> Option<Vec<u8>> {
    let capacity = usize::try_from(raw_len).ok().filter(|_| raw_len <= RAW_BYTES_MAX)?;
    let raw = match codec {
        CODEC_RAW => stored.to_vec(),
        CODEC_ZSTD => zstd::bulk::decompress(stored, capacity).ok()?,
        _ => return None,
    };
    (raw.len() == capacity).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            volume: VolumeId(1),
            seq: Seq(2),
            epoch: Epoch(3),
            writer: WriterId(4),
            prev: Hash::of(b"before"),
            first: BatchNo(5),
            last: BatchNo(6),
        }
    }

    fn rows() -> Vec<Write> {
        vec![
            Write { table: Table(1), key: b"k".to_vec(), value: Some(b"v".to_vec()) },
            Write { table: Table(2), key: b"gone".to_vec(), value: None },
        ]
    }

    use crate::store::kv::Table;

    #[test]
    fn a_record_has_the_documented_bytes() {
        let record = encode_record(&header(), &rows());
        let hex: String = record.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let documented = concat!(
            "4746534a",                         // magic
            "0100",                             // version
            "00",                               // codec
            "00",                               // reserved
            "01000000000000000000000000000000", // volume
            "0200000000000000",                 // sequence
            "0300000000000000",                 // epoch
            "04000000000000000000000000000000", // writer
            "PREV",
            "0500000000000000", // first batch
            "0600000000000000", // last batch
            "1400000000000000", // bytes of rows
            "14000000",         // stored bytes
            "01",
            "0100",
            "01000000",
            "6b",
            "76", // table 1: k = v
            "02",
            "0400",
            "ffffffff",
            "676f6e65", // table 2: gone is removed
            "HASH",
        );
        let documented = documented.replace("PREV", &Hash::of(b"before").to_string());
        let front: Vec<u8> = record.bytes[..record.bytes.len() - 32].to_vec();
        assert_eq!(hex, documented.replace("HASH", &Hash::of(&front).to_string()));
        assert_eq!(record.head.chain.to_string(), CHAIN);
        let read = decode_record(&record.bytes, VolumeId(1), Seq(2)).expect("readable");
        assert_eq!((read.header, &read.writes, read.head()), (header(), &rows(), record.head));
    }

    const CHAIN: &str = "2fd8b3fb3399a8231c5fb8590719375137a834865d39974c0d6d30dc9cf826e6";

    #[test]
    fn a_record_of_another_place_version_or_length_is_refused() {
        let bytes = encode_record(&header(), &rows()).bytes;
        let kind = |bytes: &[u8], volume, seq| {
            decode_record(bytes, VolumeId(volume), Seq(seq)).map(|_| ()).map_err(|error| error.kind)
        };
        assert_eq!(kind(&bytes, 1, 3), Err(Kind::Corrupt));
        assert_eq!(kind(&bytes, 9, 2), Err(Kind::Corrupt));
        for len in 0..bytes.len() {
            assert_eq!(kind(&bytes[..len], 1, 2), Err(Kind::Corrupt), "cut at {len}");
        }
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut front = bytes[..bytes.len() - 32].to_vec();
            change(&mut front);
            let hash = Hash::of(&front);
            front.extend(hash.0);
            kind(&front, 1, 2)
        };
        assert_eq!(with(&|front| front[4] = 2), Err(Kind::Precondition), "a newer version");
        assert_eq!(with(&|front| front[6] = 7), Err(Kind::Corrupt), "an unknown codec");
        let table_at = front_len() + 4;
        assert_eq!(with(&|front| front[table_at] = 0x80), Err(Kind::Corrupt), "a local table");
    }

    fn front_len() -> usize {
        8 + 16 + 8 + 8 + 16 + 32 + 8 + 8 + 8
    }

    #[test]
    fn long_records_are_compressed_and_read_back() {
        let write =
            |n: u32| Write { table: Table(1), key: n.to_be_bytes().to_vec(), value: Some(vec![7; 90]) };
        let rows: Vec<_> = (0..5000).map(write).collect();
        let record = encode_record(&header(), &rows);
        assert!(record.bytes.len() < 60_000, "{}", record.bytes.len());
        assert_eq!(decode_record(&record.bytes, VolumeId(1), Seq(2)).expect("readable").writes, rows);
    }
}
