//! Mounting: brings the state on this machine and the bucket together, and takes the volume (rules R8, R11).

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use crate::base::ids::{BatchNo, Epoch, Seq, VolumeId, WriterId};
use crate::base::time::Clock;
use crate::commit::journal::{Journal, list_records, put_record};
use crate::commit::local::LocalState;
use crate::commit::record::{EncodedRecord, RecordHeader, encode_record};
use crate::commit::system::{Head, Holder, JournalRow};
use crate::commit::{Committer, Limits, RecoveredParts};
use crate::rt::Spawner;
use crate::store::device::Directory;
use crate::store::keys::RecordName;
use crate::store::kv::KeyValueStore;
use crate::store::merge::MergeRules;
use crate::store::object::{Fencing, ImmutableObjectStore};
use crate::store::{self, Error, Kind, keys};

use super::catch_up::{Surroundings, catch_up, rebuild};

/// What a mount works with.
pub struct MountParts {
    /// Empty, or as the last mount on this machine left it.
    pub kv: Arc<dyn KeyValueStore>,
    /// Directory of the log, beside `kv`.
    pub log: Arc<dyn Directory>,
    pub objects: Arc<dyn ImmutableObjectStore>,
    pub rules: Arc<dyn MergeRules>,
    pub clock: Arc<dyn Clock>,
    pub spawner: Arc<dyn Spawner>,
    pub limits: Limits,
    pub volume: VolumeId,
    pub access: Access,
}

/// What a mount may do to the volume.
#[derive(Clone, Debug)]
pub enum Access {
    /// Writes nothing to the bucket and asks nobody.
    ReadOnly,
    Write(Claim),
}

impl Access {
    /// True for records of this mount.
    pub(super) fn is_own(&self, name: &RecordName) -> bool {
        match self {
            Self::ReadOnly => false,
            Self::Write(claim) => name.own.is_some_and(|(_, writer)| writer == claim.writer),
        }
    }
}

/// Who takes the volume.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Stable name of this machine; the lock of the local state keeps other mounts on it out.
    pub host: String,
    pub boot_id: String,
    /// Minted for this mount.
    pub writer: WriterId,
    pub tier: String,
    /// Takes the volume from another host that has not released it.
    pub takeover: bool,
}

/// A mounted volume's metadata.
pub struct Mounted {
    /// Waits for [`Committer::attach_staging`] before anything is sent.
    pub committer: Arc<Committer>,
    /// Of this mount; of the last writer if it only reads.
    pub epoch: Epoch,
    /// Who held the volume before.
    pub previous: Option<Holder>,
    /// True if there was no state on this machine and all came from the bucket.
    pub rebuilt: bool,
    /// Journal records found that are not part of the volume: their writer had lost it to another. Nothing deletes them.
    pub other_branches: Vec<String>,
}

/// How far a recovery has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    Checkpoint { parts: usize, of: usize },
    Journal { records: usize, of: usize },
}

/// Receives progress.
pub type Report<'a> = dyn Fn(Progress) + Send + Sync + 'a;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Another host has not released the volume.
    #[error("volume is held by host {} (tier {}) since {} s after 1970", .0.host, .0.tier, .0.since.secs)]
    Held(Box<Holder>),
    /// Another host has changed the volume while changes of this one had not reached the bucket. Nothing is lost and
    /// nothing was deleted: they are in the local state.
    #[error(
        "local changes never reached the bucket, and writer {writer} has changed the volume since journal {seq:016x}"
    )]
    Diverged { writer: WriterId, seq: u64 },
    #[error(transparent)]
    Store(#[from] Error),
}

/// Attempts to take the volume while others take it too.
const FENCE_ATTEMPTS: usize = 16;

/// Opens the state on this machine, brings it up to the bucket (or builds it from the bucket alone), and takes the
/// volume by a record above all others. Nothing in the bucket is ever deleted or overwritten. Does local I/O on its own
/// thread: not to be polled by a worker of the runtime that others need.
///
/// # Errors
/// `Held`, `Diverged`; `Corrupt` naming what is damaged or missing; `Fenced` if another mount took the volume at the
/// same time; of the stores.
pub async fn mount(parts: MountParts, report: &Report<'_>) -> Result<Mounted, MountError> {
    LocalState::clear_half_rebuilt(&*parts.kv)?;
    let mut state = LocalState::open(parts.kv.clone(), parts.log.clone(), parts.limits.segment_bytes)?;
    let rebuilt = state.journal.is_none();
    let mut around = Surroundings::default();
    let mut row = match state.journal.take() {
        Some(row) => row,
        None => rebuild(&parts, &mut state, &mut around, report).await?,
    };
    let previous;
    let journal = match &parts.access {
        Access::ReadOnly => {
            catch_up(&parts, &mut state, &mut row, &mut around, report).await?;
            previous = state.holder()?;
            None
        }
        Access::Write(claim) => {
            let taken = take(&parts, claim, &mut state, &mut row, &mut around, report).await?;
            previous = taken.previous;
            let (objects, volume, row) = (parts.objects.clone(), parts.volume, row.clone());
            Some(Journal { objects, volume, holder: taken.holder, own_names: taken.own_names, row })
        }
    };
    let epoch = row.head.epoch;
    state.journal = Some(row);
    let MountParts { rules, clock, spawner, limits, .. } = parts;
    let recovered = RecoveredParts { rules, clock, spawner, limits };
    let committer = Committer::open_recovered(state, recovered, journal)?;
    let other_branches = around.others.iter().map(|name| keys::journal_record(*name).to_string()).collect();
    Ok(Mounted { committer, epoch, previous, rebuilt, other_branches })
}

/// The volume, taken.
struct Taken {
    holder: Holder,
    previous: Option<Holder>,
    own_names: bool,
}

/// Takes the volume: a record with the next epoch, above everything that is there.
async fn take(
    parts: &MountParts,
    claim: &Claim,
    state: &mut LocalState,
    row: &mut JournalRow,
    around: &mut Surroundings,
    report: &Report<'_>,
) -> Result<Taken, MountError> {
    for attempt in 0..FENCE_ATTEMPTS {
        catch_up(parts, state, row, around, report).await?;
        let previous = state.holder()?;
        if let Some(held) = previous.as_ref().filter(|holder| !holder.released && holder.host != claim.host)
            && !claim.takeover
        {
            return Err(MountError::Held(Box::new(held.clone())));
        }
        // Durable before the record can be: if we die in between, the next mount knows the record for ours.
        if !row.writers.contains(&claim.writer) {
            row.writers.push(claim.writer);
            state.save(row, Vec::new())?;
        }
        let own_names = around.own_names || parts.objects.fencing() == Fencing::Lease;
        let holder = Holder {
            epoch: Epoch(row.head.epoch.max(around.epoch_max()).0 + 1),
            host: claim.host.clone(),
            boot_id: claim.boot_id.clone(),
            writer: claim.writer,
            tier: claim.tier.clone(),
            since: parts.clock.now(),
            released: false,
        };
        let fence = Fence { holder: &holder, own_names };
        let record = match fence.put(parts, row.batch, row.head).await {
            Ok(record) => record,
            // Somebody was faster: read what they wrote, and decide again.
            Err(error) if error.kind == Kind::Fenced => continue,
            Err(error) => return Err(error.into()),
        };
        if !fence.is_confirmed(parts, row.head, &record, around).await? {
            fence.withdraw(parts, row.batch, &record).await;
            parts.clock.sleep(pause(claim.writer, attempt)).await;
            continue;
        }
        row.head = record.head;
        row.tail_records += 1;
        row.tail_bytes += record.bytes.len() as u64;
        // Nothing an earlier writer of this machine still had on its way can stand above this.
        row.writers = vec![claim.writer];
        state.save(row, vec![holder.write()])?;
        return Ok(Taken { holder, previous, own_names });
    }
    Err(Error::new(Kind::Fenced, "mount: others keep taking the volume").into())
}

/// The record that takes the volume.
struct Fence<'a> {
    holder: &'a Holder,
    own_names: bool,
}

impl Fence<'_> {
    fn name(&self, seq: Seq) -> RecordName {
        RecordName { seq, own: self.own_names.then_some((self.holder.epoch, self.holder.writer)) }
    }

    async fn put(&self, parts: &MountParts, batch: BatchNo, head: Head) -> store::Result<EncodedRecord> {
        let header = fence_header(parts.volume, self.holder, batch, head);
        let record = encode_record(&header, &[self.holder.write()]);
        put_record(&*parts.objects, parts.volume, self.name(header.seq), &record).await?;
        Ok(record)
    }

    /// A second look (rule R8). Under a name that excludes others nothing may stand above the fence; under a name of our
    /// own it is confirmed if nothing has come beside it that was not known before: whoever writes later will see it.
    async fn is_confirmed(
        &self,
        parts: &MountParts,
        before: Head,
        record: &EncodedRecord,
        around: &Surroundings,
    ) -> store::Result<bool> {
        let mine = self.name(record.head.seq);
        let found = list_records(&*parts.objects, before.seq).await?;
        if self.own_names {
            return Ok(found.iter().all(|name| *name == mine || around.seen.contains(name)));
        }
        match found.iter().find(|name| mine.seq < name.seq) {
            None => Ok(true),
            Some(above) => {
                let text = format!("mount: {} is above our fence", keys::journal_record(*above));
                Err(Error::new(Kind::Fenced, text))
            }
        }
    }

    /// Says that a fence that was not confirmed holds nothing, so that whoever met it need not think the volume held.
    async fn withdraw(&self, parts: &MountParts, batch: BatchNo, record: &EncodedRecord) {
        let holder = Holder { released: true, ..self.holder.clone() };
        let released = Fence { holder: &holder, ..*self };
        if let Err(error) = released.put(parts, batch, record.head).await {
            // Then others need `takeover`, as after a crash.
            warn!(%error, "withdraw a fence");
        }
    }
}

/// How long to stay away after meeting another who takes the volume at the same time: different for each writer.
fn pause(writer: WriterId, attempt: usize) -> Duration {
    let bits = writer.0 >> (8 * (attempt % 16));
    Duration::from_millis(4 * u64::from(bits as u8))
}

/// A fence holds no batch: local ones that are not in the bucket yet follow it.
fn fence_header(volume: VolumeId, holder: &Holder, batch: BatchNo, head: Head) -> RecordHeader {
    RecordHeader {
        volume,
        seq: Seq(head.seq.0 + 1),
        epoch: holder.epoch,
        writer: holder.writer,
        prev: head.chain,
        first: BatchNo(batch.0 + 1),
        last: batch,
    }
}
