//! Reading the bucket: the newest checkpoint and the records above it, or the records this machine has not seen.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tracing::{info, warn};

use super::recovery::{MountError, MountParts, Progress, Report};
use crate::base::ids::{BatchNo, Seq, VolumeId};
use crate::commit::checkpoint_format::{Root, decode_part};
use crate::commit::local::LocalState;
use crate::commit::record::{Record, decode_record};
use crate::commit::system::{Head, JournalRow, is_holder_row};
use crate::store::object::ImmutableObjectStore;
use crate::store::{Error, Kind, Result, keys};

/// Objects fetched at once: each takes a few MiB of memory.
const FETCHES: usize = 8;

/// Sequences of all records above `after`, ascending.
pub(super) async fn list_records(objects: &dyn ImmutableObjectStore, after: Seq) -> Result<Vec<Seq>> {
    let mut start = keys::journal(after);
    let mut found = Vec::new();
    loop {
        let page = objects.list(keys::JOURNAL, Some(&start)).await?;
        found.extend(page.objects.iter().filter_map(|object| keys::parse_journal(&object.key)));
        match page.objects.last() {
            Some(last) if page.more => start = last.key.clone(),
            _ => return Ok(found),
        }
    }
}

/// Sequences of all checkpoints that have a root, ascending.
async fn list_checkpoints(objects: &dyn ImmutableObjectStore) -> Result<Vec<Seq>> {
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
fn check_dense(head: Seq, records: &[Seq], checkpoints: &[Seq]) -> Result<()> {
    let missing = (head.0 + 1..).zip(records).find(|(expected, found)| *expected != found.0);
    let newest = records.last().copied().unwrap_or(head);
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
    report: &Report<'_>,
) -> std::result::Result<(), MountError> {
    let objects = &*parts.objects;
    let records = list_records(objects, row.head.seq).await?;
    let checkpoints = list_checkpoints(objects).await?;
    check_dense(row.head.seq, &records, &checkpoints)?;
    if records.is_empty() {
        if !checkpoints.contains(&row.head.seq) {
            check_known(objects, row.head.seq).await?;
        }
        return Ok(());
    }
    let unsent = state.has_unsent(row.batch)?;
    let mut fetched = fetch(parts.objects.clone(), parts.volume, records.clone());
    let mut done = 0;
    while let Some(record) = fetched.try_next().await? {
        check_chain(&record, row.head)?;
        merge(state, row, record, unsent)?;
        done += 1;
        report(Progress::Journal { records: done, of: records.len() });
    }
    Ok(state.save(row, Vec::new())?)
}

/// Fails if the record this machine knows as the newest is gone, and nothing stands above or for it: then the bucket is older than the state (rule R8).
async fn check_known(objects: &dyn ImmutableObjectStore, seq: Seq) -> Result<()> {
    if seq == Seq(0) {
        return Ok(());
    }
    match objects.head(&keys::journal(seq)).await {
        Err(error) if error.kind == Kind::NotFound => {
            let text =
                format!("bucket is behind the state on this machine: journal {:016x} is missing", seq.0);
            Err(Error::new(Kind::Corrupt, text))
        }
        outcome => outcome.map(|_| ()),
    }
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

fn check_chain(record: &Record, head: Head) -> Result<()> {
    if record.header.prev == head.chain {
        return Ok(());
    }
    let text = format!("journal {:016x} does not continue the history before it", record.header.seq.0);
    Err(Error::new(Kind::Corrupt, text))
}

fn fetch(
    objects: Arc<dyn ImmutableObjectStore>,
    volume: VolumeId,
    records: Vec<Seq>,
) -> impl futures_util::Stream<Item = Result<Record>> + Unpin + Send {
    let get = move |seq: Seq| {
        let objects = objects.clone();
        async move { decode_record(&objects.get(&keys::journal(seq), None).await?, volume, seq) }
    };
    Box::pin(futures_util::stream::iter(records).map(get).buffered(FETCHES))
}

/// Fills an empty state from the bucket alone: the newest checkpoint that belongs to the journal, and what follows it.
pub(super) async fn rebuild(
    parts: &MountParts,
    state: &mut LocalState,
    report: &Report<'_>,
) -> std::result::Result<JournalRow, MountError> {
    if BatchNo(0) < state.last() {
        let text = "the log holds batches but the metadata database is empty: it was removed or replaced";
        return Err(Error::new(Kind::Corrupt, text).into());
    }
    state.begin_rebuild()?;
    let mut row = JournalRow::default();
    if let Some(root) = newest_root(&*parts.objects, parts.volume).await? {
        info!(seq = root.head.seq.0, "building the metadata from a checkpoint");
        load_parts(parts, state, &root, report).await?;
        row = JournalRow { head: root.head, batch: root.batch, ..row };
        state.skip_to(root.batch);
    }
    catch_up(parts, state, &mut row, report).await?;
    state.end_rebuild(&row)?;
    Ok(row)
}

/// The newest checkpoint whose root is whole and tied to the journal.
async fn newest_root(objects: &dyn ImmutableObjectStore, volume: VolumeId) -> Result<Option<Root>> {
    for seq in list_checkpoints(objects).await?.into_iter().rev() {
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
async fn belongs(objects: &dyn ImmutableObjectStore, volume: VolumeId, root: &Root) -> Result<bool> {
    let Head { seq, chain, .. } = root.head;
    match objects.get(&keys::journal(seq), None).await {
        Ok(bytes) => return Ok(decode_record(&bytes, volume, seq)?.head().chain == chain),
        Err(error) if error.kind != Kind::NotFound => return Err(error),
        Err(_) => {}
    }
    let next = Seq(seq.0 + 1);
    match objects.get(&keys::journal(next), None).await {
        Ok(bytes) => Ok(decode_record(&bytes, volume, next)?.header.prev == chain),
        Err(error) if error.kind == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
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
