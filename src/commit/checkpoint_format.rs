//! Checkpoints: what the objects below `checkpoints/<seq>/` hold (docs/format.md, "Checkpoint").

use super::batch::is_synced;
use super::record::{compress, decompress};
use super::rows::{decode_row, encode_row};
use super::system::Head;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::Hash;
use crate::base::ids::{BatchNo, Epoch, Seq, VolumeId};
use crate::store::kv::{Table, Write};
use crate::store::{Error, Kind, Result};

const PART_MAGIC: [u8; 4] = *b"GFSK";
const ROOT_MAGIC: [u8; 4] = *b"GFSR";
const VERSION: u16 = 1;
const TRAILER_BYTES: usize = 32;

/// The object that makes a checkpoint: metadata as of an acknowledged journal record (rule R6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub(crate) volume: VolumeId,
    /// The record it stands behind; its chain hash ties it to the journal.
    pub(crate) head: Head,
    pub(crate) batch: BatchNo,
    /// Rows of each table that has any.
    pub(crate) rows: Vec<(Table, u64)>,
    /// Ascending by their first row, without overlap.
    pub(crate) parts: Vec<PartRef>,
}

/// A run of rows, stored as an object named by its hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PartRef {
    pub(crate) first: (Table, Vec<u8>),
    pub(crate) hash: Hash,
    pub(crate) len: u64,
}

/// Rows on their way into a part.
#[derive(Default)]
pub(crate) struct PartRows {
    body: Writer,
}

impl PartRows {
    pub(crate) fn add(&mut self, table: Table, key: &[u8], value: &[u8]) {
        encode_row(&mut self.body, table, key, Some(value));
    }

    pub(super) fn bytes(&self) -> usize {
        self.body.buf.len()
    }

    /// The object's bytes.
    pub(crate) fn encode(self) -> Vec<u8> {
        let raw = self.body.buf;
        let (codec, stored) = compress(&raw);
        let mut w = Writer::new();
        w.bytes(&PART_MAGIC).u16(VERSION).u8(codec).u8(0).u64(raw.len() as u64).sized(&stored);
        w.buf
    }
}

/// The rows of a part, checked against the hash its root names.
///
/// # Errors
/// `Corrupt`; `Precondition` for a newer version.
pub(crate) fn decode_part(bytes: &[u8], part: &PartRef) -> Result<Vec<Write>> {
    let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("checkpoint part {}: {what}", part.hash));
    if Hash::of(bytes) != part.hash {
        return Err(corrupt("bytes do not match their hash"));
    }
    let decode = || -> std::result::Result<Vec<Write>, DecodeError> {
        let mut r = Reader::new("checkpoint part", bytes);
        let (magic, version, codec, _) = (r.array::<4>()?, r.u16()?, r.u8()?, r.u8()?);
        let error = r.malformed();
        if magic != PART_MAGIC || version != VERSION {
            return Err(error);
        }
        let (raw_len, stored) = (r.u64()?, r.sized()?);
        r.finish()?;
        let raw = decompress(codec, stored, raw_len).ok_or(error)?;
        let mut rows = Reader::new("checkpoint rows", &raw);
        let mut writes = Vec::new();
        while rows.remaining() > 0 {
            let write = decode_row(&mut rows)?;
            if write.value.is_none() || !is_synced(write.table) {
                return Err(rows.malformed());
            }
            writes.push(write);
        }
        Ok(writes)
    };
    decode().map_err(|error| corrupt(&error.to_string()))
}

impl Root {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(&ROOT_MAGIC).u16(VERSION).u16(0).u128(self.volume.0);
        w.u64(self.head.seq.0).u64(self.head.epoch.0).bytes(&self.head.chain.0).u64(self.batch.0);
        w.u32(u32::try_from(self.rows.len()).expect("at most 128 tables"));
        for (table, rows) in &self.rows {
            w.u8(table.0).u64(*rows);
        }
        w.u32(u32::try_from(self.parts.len()).expect("4 MiB of rows each"));
        for PartRef { first: (table, key), hash, len } in &self.parts {
            w.u8(table.0).sized(key).bytes(&hash.0).u64(*len);
        }
        let hash = Hash::of(&w.buf);
        w.bytes(&hash.0);
        w.buf
    }

    /// Reads the root of checkpoint `seq`.
    ///
    /// # Errors
    /// `Corrupt`; `Precondition` for a newer version.
    pub(crate) fn decode(bytes: &[u8], volume: VolumeId, seq: Seq) -> Result<Self> {
        let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("checkpoint {:016x}: {what}", seq.0));
        let cut = bytes.len().checked_sub(TRAILER_BYTES).ok_or_else(|| corrupt("too short"))?;
        let (front, trailer) = bytes.split_at(cut);
        if Hash::of(front).0 != trailer {
            return Err(corrupt("bytes do not match their hash"));
        }
        let root = Self::decode_front(front).map_err(|error| corrupt(&error.to_string()))?;
        let Some(root) = root else {
            let text = format!("checkpoint {:016x}: written by a newer version", seq.0);
            return Err(Error::new(Kind::Precondition, text));
        };
        if root.volume != volume || root.head.seq != seq {
            return Err(corrupt("belongs to another volume or place"));
        }
        Ok(root)
    }

    fn decode_front(bytes: &[u8]) -> std::result::Result<Option<Self>, DecodeError> {
        let mut r = Reader::new("checkpoint root", bytes);
        let (magic, version, _) = (r.array::<4>()?, r.u16()?, r.u16()?);
        if magic != ROOT_MAGIC {
            return Err(r.malformed());
        }
        if version != VERSION {
            return Ok(None);
        }
        let (volume, seq, epoch) = (VolumeId(r.u128()?), Seq(r.u64()?), Epoch(r.u64()?));
        let head = Head { seq, epoch, chain: Hash(r.array()?) };
        let batch = BatchNo(r.u64()?);
        let rows =
            (0..r.u32()?).map(|_| Ok((Table(r.u8()?), r.u64()?))).collect::<std::result::Result<_, _>>()?;
        let part = |r: &mut Reader<'_>| {
            let first = (Table(r.u8()?), r.sized()?.to_vec());
            Ok(PartRef { first, hash: Hash(r.array()?), len: r.u64()? })
        };
        let parts = (0..r.u32()?).map(|_| part(&mut r)).collect::<std::result::Result<_, DecodeError>>()?;
        r.finish()?;
        Ok(Some(Self { volume, head, batch, rows, parts }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        let head = Head { seq: Seq(2), epoch: Epoch(3), chain: Hash::of(b"chain") };
        let part = PartRef { first: (Table(1), b"k".to_vec()), hash: Hash::of(b"part"), len: 9 };
        Root { volume: VolumeId(1), head, batch: BatchNo(4), rows: vec![(Table(1), 5)], parts: vec![part] }
    }

    #[test]
    fn a_root_has_the_documented_bytes() {
        let bytes = root().encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let documented = [
            "47465352",                         // magic
            "0100",                             // version
            "0000",                             // reserved
            "01000000000000000000000000000000", // volume
            "0200000000000000",                 // sequence
            "0300000000000000",                 // epoch
            &Hash::of(b"chain").to_string(),
            "0400000000000000", // batch
            "01000000",         // tables
            "01",
            "0500000000000000", // table 1: five rows
            "01000000",         // parts
            "01",
            "01000000",
            "6b", // first row
            &Hash::of(b"part").to_string(),
            "0900000000000000", // length
            &Hash::of(&bytes[..bytes.len() - 32]).to_string(),
        ];
        assert_eq!(hex, documented.concat());
        assert_eq!(Root::decode(&bytes, VolumeId(1), Seq(2)).expect("readable"), root());
    }

    #[test]
    fn a_root_of_another_place_or_damaged_anywhere_is_refused() {
        let bytes = root().encode();
        let kind = |bytes: &[u8], volume, seq| {
            Root::decode(bytes, VolumeId(volume), Seq(seq)).map(|_| ()).map_err(|error| error.kind)
        };
        assert_eq!(kind(&bytes, 1, 3), Err(Kind::Corrupt));
        assert_eq!(kind(&bytes, 2, 2), Err(Kind::Corrupt));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(kind(&damaged, 1, 2), Err(Kind::Corrupt), "byte {at}");
            assert_eq!(kind(&bytes[..at], 1, 2), Err(Kind::Corrupt), "cut at {at}");
        }
    }

    #[test]
    fn a_part_has_the_documented_bytes_and_must_match_its_hash() {
        let mut rows = PartRows::default();
        rows.add(Table(1), b"k", b"v");
        let bytes = rows.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4746534b0100000009000000000000000900000001010001000000".to_owned() + "6b76");
        let part = PartRef { first: (Table(1), b"k".to_vec()), hash: Hash::of(&bytes), len: 29 };
        let write = Write { table: Table(1), key: b"k".to_vec(), value: Some(b"v".to_vec()) };
        assert_eq!(decode_part(&bytes, &part).expect("readable"), [write]);
        let mut damaged = bytes;
        damaged[28] ^= 1;
        assert_eq!(decode_part(&damaged, &part).map_err(|error| error.kind), Err(Kind::Corrupt));
    }
}
