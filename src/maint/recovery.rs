//! Mounting: brings the state on this machine and the bucket together, and takes the volume (rules R8, R11).

use std::sync::Arc;

use crate::base::ids::{BatchNo, Epoch, Seq, VolumeId, WriterId};
use crate::base::time::Clock;
use crate::commit::journal::{Journal, put_record};
use crate::commit::local::LocalState;
use crate::commit::record::{RecordHeader, encode_record};
use crate::commit::system::{Holder, JournalRow};
use crate::commit::{Committer, Limits, RecoveredParts};
use crate::rt::Spawner;
use crate::store::device::Directory;
use crate::store::kv::KeyValueStore;
use crate::store::merge::MergeRules;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind};

use super::catch_up::{catch_up, list_records, rebuild};

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
    let mut row = match state.journal.take() {
        Some(row) => row,
        None => rebuild(&parts, &mut state, report).await?,
    };
    let previous;
    let journal = match &parts.access {
        Access::ReadOnly => {
            catch_up(&parts, &mut state, &mut row, report).await?;
            previous = state.holder()?;
            None
        }
        Access::Write(claim) => {
            let (holder, before) = take(&parts, claim, &mut state, &mut row, report).await?;
            previous = before;
            Some(Journal { objects: parts.objects.clone(), volume: parts.volume, holder, row: row.clone() })
        }
    };
    let epoch = row.head.epoch;
    state.journal = Some(row);
    let MountParts { rules, clock, spawner, limits, .. } = parts;
    let recovered = RecoveredParts { rules, clock, spawner, limits };
    let committer = Committer::open_recovered(state, recovered, journal)?;
    Ok(Mounted { committer, epoch, previous, rebuilt })
}

/// Takes the volume: a record with the next epoch, above everything that is there.
async fn take(
    parts: &MountParts,
    claim: &Claim,
    state: &mut LocalState,
    row: &mut JournalRow,
    report: &Report<'_>,
) -> Result<(Holder, Option<Holder>), MountError> {
    for _ in 0..FENCE_ATTEMPTS {
        catch_up(parts, state, row, report).await?;
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
        let holder = Holder {
            epoch: Epoch(row.head.epoch.0 + 1),
            host: claim.host.clone(),
            boot_id: claim.boot_id.clone(),
            writer: claim.writer,
            tier: claim.tier.clone(),
            since: parts.clock.now(),
            released: false,
        };
        let header = fence_header(parts.volume, &holder, row);
        let record = encode_record(&header, &[holder.write()]);
        match put_record(&*parts.objects, parts.volume, &record).await {
            Ok(()) => {}
            // Somebody was faster: read what they wrote, and decide again.
            Err(error) if error.kind == Kind::Fenced => continue,
            Err(error) => return Err(error.into()),
        }
        // Confirmed by a second look: nothing may stand above the fence (rule R8).
        if let Some(above) = list_records(&*parts.objects, record.head.seq).await?.first() {
            let text = format!("mount: journal {:016x} is above our fence", above.0);
            return Err(Error::new(Kind::Fenced, text).into());
        }
        row.head = record.head;
        row.tail_records += 1;
        row.tail_bytes += record.bytes.len() as u64;
        // Nothing an earlier writer of this machine still had on its way can stand above this.
        row.writers = vec![claim.writer];
        state.save(row, vec![holder.write()])?;
        return Ok((holder, previous));
    }
    Err(Error::new(Kind::Fenced, "mount: others keep taking the volume").into())
}

/// A fence holds no batch: local ones that are not in the bucket yet follow it.
fn fence_header(volume: VolumeId, holder: &Holder, row: &JournalRow) -> RecordHeader {
    RecordHeader {
        volume,
        seq: Seq(row.head.seq.0 + 1),
        epoch: holder.epoch,
        writer: holder.writer,
        prev: row.head.chain,
        first: BatchNo(row.batch.0 + 1),
        last: row.batch,
    }
}
