//! Rows the committer and recovery keep for themselves: who holds the volume, how far this machine has got.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::hash::Hash;
use crate::base::ids::{BatchNo, Epoch, Seq, WriterId};
use crate::base::time::Timestamp;
use crate::store::Result;
use crate::store::kv::{Snapshot, Table, Write};

/// Journaled rows of the protocol itself.
pub const SYSTEM: Table = Table(0);
/// The same for rows that stay on this machine.
pub const LOCAL_SYSTEM: Table = Table(0xff);

const HOLDER: &[u8] = b"holder";
const APPLIED: &[u8] = b"applied";
const JOURNAL: &[u8] = b"journal";
const REBUILDING: &[u8] = b"rebuilding";

/// Who holds the volume for writing (rule R11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub epoch: Epoch,
    /// Stable name of the machine.
    pub host: String,
    pub boot_id: String,
    pub writer: WriterId,
    /// Durability tier of the mount, as `status` prints it.
    pub tier: String,
    pub since: Timestamp,
    /// Set by a clean unmount: anybody may take the volume.
    pub released: bool,
}

impl Holder {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).u8(u8::from(self.released)).u64(self.epoch.0).u128(self.writer.0);
        w.i64(self.since.secs).u32(self.since.nanos);
        for text in [&self.host, &self.boot_id, &self.tier] {
            w.sized(text.as_bytes());
        }
        w.buf
    }

    /// # Errors
    /// If `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, DecodeError> {
        let mut r = Reader::new("holder row", bytes);
        check_version(&mut r)?;
        let released = r.u8()? != 0;
        let (epoch, writer) = (Epoch(r.u64()?), WriterId(r.u128()?));
        let since = Timestamp { secs: r.i64()?, nanos: r.u32()? };
        let mut text = || Ok::<_, DecodeError>(String::from_utf8_lossy(r.sized()?).into_owned());
        let (host, boot_id, tier) = (text()?, text()?, text()?);
        r.finish()?;
        Ok(Self { epoch, host, boot_id, writer, tier, since, released })
    }

    pub(crate) fn read(view: &dyn Snapshot) -> Result<Option<Self>> {
        Ok(view.get(SYSTEM, HOLDER)?.map(|row| Self::decode(&row)).transpose()?)
    }

    pub(crate) fn write(&self) -> Write {
        Write { table: SYSTEM, key: HOLDER.to_vec(), value: Some(self.encode()) }
    }
}

/// True for the row that fences and releases change: two hosts may both have written it without having touched each
/// other's data.
pub(crate) fn is_holder_row(write: &Write) -> bool {
    write.table == SYSTEM && write.key == HOLDER
}

const VERSION: u8 = 1;

fn check_version(r: &mut Reader<'_>) -> std::result::Result<(), DecodeError> {
    let error = r.malformed();
    if r.u8()? == VERSION { Ok(()) } else { Err(error) }
}

/// How far the key-value store has got; written in each of its commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Applied {
    /// All batches up to this one are in.
    pub(crate) batch: BatchNo,
    /// The log holds every batch from this one on; segments below may be gone.
    pub(crate) log_from: BatchNo,
}

impl Applied {
    pub(crate) fn read(view: &dyn Snapshot) -> Result<Option<Self>> {
        let Some(row) = view.get(LOCAL_SYSTEM, APPLIED)? else { return Ok(None) };
        let mut r = Reader::new("applied row", &row);
        check_version(&mut r)?;
        let applied = Self { batch: BatchNo(r.u64()?), log_from: BatchNo(r.u64()?) };
        r.finish()?;
        Ok(Some(applied))
    }

    pub(crate) fn write(self) -> Write {
        let mut w = Writer::new();
        w.u8(VERSION).u64(self.batch.0).u64(self.log_from.0);
        Write { table: LOCAL_SYSTEM, key: APPLIED.to_vec(), value: Some(w.buf) }
    }
}

/// What this machine knows of the journal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct JournalRow {
    /// Newest record known to be in the bucket and to be part of this state.
    pub(crate) head: Head,
    /// All batches of the local order up to this one are in records up to `head`.
    pub(crate) batch: BatchNo,
    /// Since the newest checkpoint: records, and their bytes.
    pub(crate) tail_records: u64,
    pub(crate) tail_bytes: u64,
    /// Writers of this machine whose records may stand above `head`.
    pub(crate) writers: Vec<WriterId>,
}

/// A place in the journal: a record, and the hash of all up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub seq: Seq,
    pub chain: Hash,
    pub epoch: Epoch,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: Seq(0), chain: Hash::ZERO, epoch: Epoch(0) }
    }
}

impl JournalRow {
    pub(crate) fn read(view: &dyn Snapshot) -> Result<Option<Self>> {
        let Some(row) = view.get(LOCAL_SYSTEM, JOURNAL)? else { return Ok(None) };
        let mut r = Reader::new("journal row", &row);
        check_version(&mut r)?;
        let head = Head { seq: Seq(r.u64()?), chain: Hash(r.array()?), epoch: Epoch(r.u64()?) };
        let (batch, tail_records, tail_bytes) = (BatchNo(r.u64()?), r.u64()?, r.u64()?);
        let count = r.u16()?;
        let writers = (0..count).map(|_| r.u128().map(WriterId)).collect::<std::result::Result<_, _>>()?;
        r.finish()?;
        Ok(Some(Self { head, batch, tail_records, tail_bytes, writers }))
    }

    pub(crate) fn write(&self) -> Write {
        let mut w = Writer::new();
        w.u8(VERSION).u64(self.head.seq.0).bytes(&self.head.chain.0).u64(self.head.epoch.0);
        w.u64(self.batch.0).u64(self.tail_records).u64(self.tail_bytes);
        w.u16(u16::try_from(self.writers.len()).expect("one per failed mount"));
        self.writers.iter().for_each(|writer| {
            w.u128(writer.0);
        });
        Write { table: LOCAL_SYSTEM, key: JOURNAL.to_vec(), value: Some(w.buf) }
    }
}

/// The mark of a store that is being filled from the bucket and is worth nothing until it is full.
pub(crate) fn rebuilding(on: bool) -> Write {
    Write { table: LOCAL_SYSTEM, key: REBUILDING.to_vec(), value: on.then(Vec::new) }
}

pub(crate) fn is_rebuilding(view: &dyn Snapshot) -> Result<bool> {
    Ok(view.get(LOCAL_SYSTEM, REBUILDING)?.is_some())
}
