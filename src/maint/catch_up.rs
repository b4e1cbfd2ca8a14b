//! Reading the bucket: the newest checkpoint and the records above it, or the records this machine has not seen.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tracing::{info, warn};

use super::branches::{Link, choose};
use super::recovery::{MountError, MountParts, Progress, Report};
use crate::base::ids::{BatchNo, Epoch, Seq, VolumeId, WriterId};
use crate::commit::checkpoint_format::{Root, decode_part};
use crate::commit::journal::list_records;
use crate::commit::local::LocalState;
use crate::commit::record::{Record, decode_record};
use crate::commit::system::{Head, JournalRow, is_holder_row};
use crate::store::keys::RecordName;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// Objects fetched at once: each takes a few MiB of memory.
const FETCHES: usize = 8;

/// What was found beside the records that are the volume.
#[derive(Default)]
pub(super) struct Surroundings {
    /// All records listed so far: a fence is confirmed if no other has come.
    pub(super) seen: BTreeSet<RecordName>,
    /// Records of other branches: whose writers lost the volume and did not know it yet.
    pub(super) others: BTreeSet<RecordName>,
    /// The newest record has a name of its writer's own.
    pub(super) own_names: bool,
}

impl Surroundings {
    /// The highest epoch in the bucket: a fence goes above it.
    pub(super) fn epoch_max(&self) -> Epoch {
        let epochs = self.seen.iter().filter_map(|name| name.own).map(|(epoch, _)| epoch);
        epochs.max().unwrap_or_default()
    }
}

/// Sequences of all checkpoints that have a root, ascending.
pub(super) async fn list_checkpoints(objects: &dyn ImmutableObjectStore) -> Result<Vec<Seq>> {
    let mut start = None;
    let mut found = Vec::new();
    loop {
        let page = objects.list(keys::CHECKPOINTS, start.as_ref()).await?;
        found.extend(page.objects.iter().filter_map(|object| keys::parse_checkpoint_root(&object.key)));
        match page.objects.last() {
            Some(last) if page.more => start = Some(last.key.clone()),
            _ => return Ok(found),
        }
    }
}

/// Fails unless `records` follow on `head` without a gap, and reach as far as anything in the bucket says.
fn check_dense(head: Seq, records: &[RecordName], checkpoints: &[Seq]) -> Result<()> {
    let mut seqs: Vec<Seq> = records.iter().map(|name| name.seq).collect();
    seqs.dedup();
    let missing = (head.0 + 1..).zip(&seqs).find(|(expected, found)| *expected != found.0);
    let newest = seqs.last().copied().unwrap_or(head);
    let beyond = checkpoints.last().filter(|checkpoint| newest < **checkpoint);
    let missing = missing.map(|(expected, _)| expected).or(beyond.map(|_| newest.0 + 1));
    match missing {
        None => Ok(()),
        Some(seq) => Err(Error::new(Kind::Corrupt, format!("journal {seq:016x} is missing"))),
    }
}

/// Brings an existing state up to the bucket: notes which of our records arrived, applies what others wrote.
pub(super) async fn catch_up(
    parts: &MountParts,
    state: &mut LocalState,
    row: &mut JournalRow,
    around: &mut Surroundings,
    report: &Report<'_>,
) -> std::result::Result<(), MountError> {
    let objects = &*parts.objects;
    let records = list_records(objects, row.head.seq).await?;
    let checkpoints = list_checkpoints(objects).await?;
    around.seen.extend(&records);
    let above = records.partition_point(|name| name.seq <= row.head.seq);
    let (at_head, above) = records.split_at(above);
    check_dense(row.head.seq, above, &checkpoints)?;
    let is_head = |name: &&RecordName| name.own.is_none_or(|(epoch, _)| epoch == row.head.epoch);
    let at_head_own = at_head.iter().find(is_head).map(|name| name.own.is_some());
    if above.is_empty()
        && row.head.seq != Seq(0)
        && at_head_own.is_none()
        && !checkpoints.contains(&row.head.seq)
    {
        let text =
            format!("bucket is behind the state on this machine: journal {:016x} is missing", row.head.seq.0);
        return Err(Error::new(Kind::Corrupt, text).into());
    }

    let chain = choose_chain(parts, row.head, at_head, above).await?;
    around.own_names = chain.last().map_or(at_head_own.unwrap_or(false), |name| name.own.is_some());
    for other in above.iter().filter(|name| !chain.contains(name) && !parts.access.is_own(name)) {
        if around.others.insert(*other) {
            let key = keys::journal_record(*other);
            warn!(%key, "a record of another branch is not part of the volume; it is kept");
        }
    }
    if chain.is_empty() {
        return Ok(());
    }
    let unsent = state.has_unsent(row.batch)?;
    let mut fetched = fetch(parts.objects.clone(), parts.volume, chain.clone());
    let mut done = 0;
    while let Some((name, record)) = fetched.try_next().await? {
        check_chain(name, &record, row.head)?;
        merge(state, row, record, unsent)?;
        done += 1;
        report(Progress::Journal { records: done, of: chain.len() });
    }
    Ok(state.save(row, Vec::new())?)
}

/// The records above `head` that are the volume. Looked into only where a sequence was taken twice.
async fn choose_chain(
    parts: &MountParts,
    head: Head,
    at_head: &[RecordName],
    above: &[RecordName],
) -> std::result::Result<Vec<RecordName>, MountError> {
    let taken_twice = above.windows(2).any(|pair| matches!(pair, [one, other] if one.seq == other.seq));
    let later = |name: &&RecordName| name.own.is_some_and(|(epoch, _)| head.epoch < epoch);
    let beside: Vec<RecordName> = at_head.iter().filter(later).copied().collect();
    // Fences of this mount that were not confirmed are no place to go on from.
    let unconfirmed = above.iter().any(|name| parts.access.is_own(name));
    if !taken_twice && beside.is_empty() && !unconfirmed {
        return Ok(above.to_vec());
    }
    let mut links = Vec::new();
    let names = [&beside[..], above].concat();
    let mut fetched = fetch(parts.objects.clone(), parts.volume, names);
    while let Some((name, record)) = fetched.try_next().await? {
        links.push(Link::of(name, &record));
    }
    let choice = choose(head, &links, |name| parts.access.is_own(name));
    match choice.later {
        None => Ok(choice.chain),
        Some((writer, seq)) => Err(left_behind(writer, seq)),
    }
}

/// This machine's state is of a branch that lost: what it holds beyond the fork never counted.
fn left_behind(writer: WriterId, seq: Seq) -> MountError {
    MountError::Diverged { writer, seq: seq.0 }
}

/// Takes one record of the bucket into a state that may hold batches the bucket lacks.
fn merge(
    state: &mut LocalState,
    row: &mut JournalRow,
    record: Record,
    unsent: bool,
) -> std::result::Result<(), MountError> {
    let header = record.header;
    let ours = row.writers.contains(&header.writer);
    row.head = record.head();
    row.tail_records += 1;
    if ours && header.last <= state.last() {
        // All of it is here, and newer values perhaps: only the answer was lost.
        row.batch = row.batch.max(header.last);
        if header.last < header.first {
            state.commit(row, record.writes)?;
        }
        return Ok(());
    }
    let harmless = record.writes.iter().all(is_holder_row);
    if !ours && unsent && !harmless {
        return Err(MountError::Diverged { writer: header.writer, seq: header.seq.0 });
    }
    if ours || !unsent {
        let last = header.last.max(state.last());
        state.skip_to(last);
        row.batch = last;
    }
    Ok(state.commit(row, record.writes)?)
}

fn check_chain(name: RecordName, record: &Record, head: Head) -> std::result::Result<(), MountError> {
    if record.header.prev == head.chain {
        return Ok(());
    }
    if name.own.is_some() {
        return Err(left_behind(record.header.writer, name.seq));
    }
    let text = format!("journal {:016x} does not continue the history before it", record.header.seq.0);
    Err(Error::new(Kind::Corrupt, text).into())
}

fn fetch(
    objects: Arc<dyn ImmutableObjectStore>,
    volume: VolumeId,
    records: Vec<RecordName>,
) -> impl futures_util::Stream<Item = Result<(RecordName, Record)>> + Unpin + Send {
    let get = move |name: RecordName| {
        let objects = objects.clone();
        async move {
            let bytes = objects.get(&keys::journal_record(name), None).await?;
            Ok((name, decode_record(&bytes, volume, name.seq)?))
        }
    };
    Box::pin(futures_util::stream::iter(records).map(get).buffered(FETCHES))
}

/// Fills an empty state from the bucket alone: the newest checkpoint that belongs to the journal, and what follows it.
pub(super) async fn rebuild(
    parts: &MountParts,
    state: &mut LocalState,
    around: &mut Surroundings,
    report: &Report<'_>,
) -> std::result::Result<JournalRow, MountError> {
    if BatchNo(0) < state.last() {
        let text = "the log holds batches but the metadata database is empty: it was removed or replaced";
        return Err(Error::new(Kind::Corrupt, text).into());
    }
    state.begin_rebuild()?;
    let mut row = JournalRow::default();
    if let Some(root) = newest_root(&parts.objects, parts.volume).await? {
        info!(seq = root.head.seq.0, "building the metadata from a checkpoint");
        load_parts(parts, state, &root, report).await?;
        row = JournalRow { head: root.head, batch: root.batch, ..row };
        state.skip_to(root.batch);
    }
    catch_up(parts, state, &mut row, around, report).await?;
    state.end_rebuild(&row)?;
    Ok(row)
}

/// The newest checkpoint whose root is whole and tied to the journal.
async fn newest_root(objects: &Arc<dyn ImmutableObjectStore>, volume: VolumeId) -> Result<Option<Root>> {
    for seq in list_checkpoints(&**objects).await?.into_iter().rev() {
        let root = objects.get(&keys::checkpoint_root(seq), None).await?;
        let root = match Root::decode(&root, volume, seq) {
            Ok(root) => root,
            Err(error) if error.kind == Kind::Corrupt => {
                warn!(%error, "checkpoint is passed over");
                continue;
            }
            Err(error) => return Err(error),
        };
        if belongs(objects, volume, &root).await? {
            return Ok(Some(root));
        }
        warn!(seq = seq.0, "checkpoint of another history is passed over");
    }
    Ok(None)
}

/// True if the journal says that the checkpoint is of this history (rule R6): by the record it stands behind, or, if
/// that is gone, by the next one.
async fn belongs(objects: &Arc<dyn ImmutableObjectStore>, volume: VolumeId, root: &Root) -> Result<bool> {
    let Head { seq, chain, .. } = root.head;
    let mut names = list_records(&**objects, seq).await?;
    names.retain(|name| name.seq.0 <= seq.0 + 1);
    let at_root = names.iter().filter(|name| name.seq == seq).count();
    let nearest = if at_root == 0 { names } else { names.split_at(at_root).0.to_vec() };
    let mut fetched = fetch(objects.clone(), volume, nearest);
    while let Some((name, record)) = fetched.try_next().await? {
        let here = if name.seq == seq { record.head().chain } else { record.header.prev };
        if here == chain {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn load_parts(
    parts: &MountParts,
    state: &mut LocalState,
    root: &Root,
    report: &Report<'_>,
) -> Result<()> {
    let seq = root.head.seq;
    let get = |part: crate::commit::checkpoint_format::PartRef| {
        let objects = parts.objects.clone();
        async move {
            let bytes = objects.get(&keys::checkpoint_part(seq, part.hash), None).await?;
            decode_part(&bytes, &part)
        }
    };
    let mut fetched = Box::pin(futures_util::stream::iter(root.parts.clone()).map(get).buffered(FETCHES));
    let (mut done, mut rows) = (0, 0);
    while let Some(writes) = fetched.try_next().await? {
        rows += writes.len() as u64;
        state.load(&writes)?;
        done += 1;
        report(Progress::Checkpoint { parts: done, of: root.parts.len() });
    }
    let expected: u64 = root.rows.iter().map(|(_, count)| count).sum();
    if rows != expected {
        let text = format!("checkpoint {:016x} has {rows} rows, its root says {expected}", seq.0);
        return Err(Error::new(Kind::Corrupt, text));
    }
    Ok(())
}
