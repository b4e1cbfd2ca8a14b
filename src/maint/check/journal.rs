//! The journal and the checkpoints of a bucket: they decode, follow on each other, and lead to what is checked.

use std::collections::HashMap;

use futures_util::StreamExt as _;

use super::reading::ReadOnlyStore;
use super::{FindingKind, Progress, Report, Seen, Step};
use crate::base::hash::Hash;
use crate::base::ids::{Epoch, Seq, VolumeId};
use crate::commit::checkpoint_format::{Root, decode_part};
use crate::commit::journal::list_records;
use crate::commit::record::{Record, decode_record};
use crate::commit::system::{Head, Holder, JournalRow, is_holder_row};
use crate::store::keys::{self, RecordName};
use crate::store::kv::{Snapshot, Table};
use crate::store::object::ImmutableObjectStore as _;
use crate::store::{Error, Kind, Result};

use super::super::catch_up::list_checkpoints;

/// Records fetched at once: each takes a few MiB of memory.
const FETCHES: usize = 8;

/// Places in the journal by their chain hash: which record they stand behind, and its epoch.
type Places = HashMap<Hash, (Seq, Epoch)>;

/// With the metadata of the volume, which must be as of some place in the journal.
pub(super) async fn check_journal(
    objects: &ReadOnlyStore,
    volume: VolumeId,
    view: Option<&dyn Snapshot>,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    // In the order in which they come to be: each list has all that the one before speaks of.
    let checkpoints = list_checkpoints(objects).await?;
    let names = list_records(objects, Seq(0)).await?;
    report_gaps(&names, &checkpoints, seen);
    let places = check_records(objects, volume, &names, seen, report).await?;
    for seq in checkpoints {
        check_checkpoint(objects, volume, seq, &places, seen).await?;
    }
    let row = view.map(JournalRow::read).and_then(|row| row.ok().flatten());
    if let Some(Head { seq, chain, .. }) = row.map(|row| row.head)
        && seq != Seq(0)
        && !places.chains.contains_key(&chain)
        && places.first <= seq
    {
        let detail = "the metadata stand behind a record of this number, but not behind one that is there";
        seen.find(FindingKind::Journal, keys::journal(seq), detail);
    }
    Ok(())
}

/// Records must be dense. Only the oldest may be gone, if a checkpoint stands behind them.
fn report_gaps(names: &[RecordName], checkpoints: &[Seq], seen: &mut Seen) {
    let oldest = checkpoints.first().copied().unwrap_or(Seq(0));
    let newest =
        names.last().map_or(Seq(0), |name| name.seq).max(checkpoints.last().copied().unwrap_or(Seq(0)));
    let first = names.first().map_or(newest.0 + 1, |name| name.seq.0);
    let mut expected = first.min(oldest.0 + 1);
    for seq in names.iter().map(|name| name.seq.0).chain([newest.0 + 1]) {
        if expected < seq {
            let detail = match seq - expected {
                1 => "is missing".to_owned(),
                count => format!("is missing, and {} behind it", count - 1),
            };
            seen.find(FindingKind::Journal, keys::journal(Seq(expected)), detail);
        }
        expected = expected.max(seq + 1);
    }
}

/// What the records say.
struct Chains {
    chains: Places,
    /// The oldest record that is there.
    first: Seq,
}

async fn check_records(
    objects: &ReadOnlyStore,
    volume: VolumeId,
    names: &[RecordName],
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<Chains> {
    let first = names.first().map_or(Seq(0), |name| name.seq);
    let mut chains = Places::new();
    if first == Seq(1) {
        chains.insert(Hash::ZERO, (Seq(0), Epoch(0)));
    }
    let fetch = async |name: RecordName| {
        let bytes = objects.get(&keys::journal_record(name), None).await;
        (name, bytes.and_then(|bytes| decode_record(&bytes, volume, name.seq)))
    };
    let mut fetched = Box::pin(futures_util::stream::iter(names.to_vec()).map(fetch).buffered(FETCHES));
    let mut done = 0;
    let mut newest = Seq(0);
    // The newest record that could not be read, or is not there: what follows cannot be tied to it.
    let mut broken = None;
    while let Some((name, record)) = fetched.next().await {
        if newest.0 + 1 < name.seq.0 {
            broken = Some(Seq(name.seq.0 - 1));
        }
        newest = name.seq;
        match record {
            Ok(record) => check_record(name, &record, broken, &mut chains, seen),
            Err(error) if is_damage(&error) => {
                broken = Some(name.seq);
                seen.find(FindingKind::Journal, keys::journal_record(name), error);
            }
            Err(error) => return Err(error),
        }
        done += 1;
        report(Progress { step: Step::Journal, done, of: Some(names.len() as u64) });
    }
    Ok(Chains { chains, first })
}

fn check_record(
    name: RecordName,
    record: &Record,
    broken: Option<Seq>,
    places: &mut Places,
    seen: &mut Seen,
) {
    let header = &record.header;
    let key = keys::journal_record(name);
    match places.get(&header.prev) {
        Some((seq, epoch)) => {
            if seq.0 + 1 != header.seq.0 {
                let detail = format!("continues record {:016x}", seq.0);
                seen.find(FindingKind::Journal, &key, detail);
            } else if header.epoch < *epoch {
                let detail = format!("epoch {} follows on epoch {}", header.epoch.0, epoch.0);
                seen.find(FindingKind::Journal, &key, detail);
            }
        }
        // That it stands behind the record that is lost is all that is left of it.
        None if broken.is_some_and(|broken| broken.0 + 1 == header.seq.0) => {
            places.insert(header.prev, (Seq(header.seq.0 - 1), Epoch(0)));
        }
        None => seen.find(FindingKind::Journal, &key, "continues none of the records before it"),
    }
    if name.own.is_some_and(|own| own != (header.epoch, header.writer)) {
        seen.find(FindingKind::Journal, &key, "is of another writer or epoch than its name says");
    }
    let holder = record.writes.iter().find(|write| is_holder_row(write));
    let holder = holder.and_then(|write| write.value.as_deref()).map(Holder::decode);
    let is_fence = header.last < header.first;
    match holder {
        Some(Ok(holder)) if holder.epoch == header.epoch && holder.writer == header.writer => {}
        None if !is_fence => {}
        None => seen.find(FindingKind::Journal, &key, "takes the volume for nobody"),
        Some(Ok(holder)) => {
            let detail = format!("holder has epoch {}, the record {}", holder.epoch.0, header.epoch.0);
            seen.find(FindingKind::Journal, &key, detail);
        }
        Some(Err(error)) => seen.find(FindingKind::Journal, &key, error),
    }
    places.insert(record.head().chain, (header.seq, header.epoch));
}

async fn check_checkpoint(
    objects: &ReadOnlyStore,
    volume: VolumeId,
    seq: Seq,
    places: &Chains,
    seen: &mut Seen,
) -> Result<()> {
    let key = keys::checkpoint_root(seq);
    let root = match objects.get(&key, None).await.and_then(|bytes| Root::decode(&bytes, volume, seq)) {
        Ok(root) => root,
        Err(error) if is_damage(&error) => {
            seen.find(FindingKind::Checkpoint, key, error);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if places.first <= seq && !places.chains.contains_key(&root.head.chain) {
        seen.find(FindingKind::Checkpoint, &key, "stands behind no record that is there");
    }
    let mut rows: HashMap<Table, u64> = HashMap::new();
    let mut newest: Option<(Table, Vec<u8>)> = None;
    for part in &root.parts {
        let part_key = keys::checkpoint_part(seq, part.hash);
        let bytes = objects.get(&part_key, None).await;
        let writes = match bytes.and_then(|bytes| decode_part(&bytes, part)) {
            Ok(writes) => writes,
            Err(error) if is_damage(&error) => {
                seen.find(FindingKind::Checkpoint, part_key, error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if writes.first().is_none_or(|write| (write.table, &write.key) != (part.first.0, &part.first.1)) {
            seen.find(FindingKind::Checkpoint, &part_key, "does not begin with the row its root says");
        }
        let mut ascends = true;
        for write in writes {
            *rows.entry(write.table).or_default() += 1;
            let place = Some((write.table, write.key));
            ascends &= newest < place;
            newest = place;
        }
        if !ascends {
            seen.find(FindingKind::Checkpoint, part_key, "has rows out of order");
        }
    }
    let expected: HashMap<Table, u64> = root.rows.iter().copied().filter(|(_, count)| 0 < *count).collect();
    if rows != expected {
        seen.find(FindingKind::Checkpoint, key, "its parts do not have the rows that its root counts");
    }
    Ok(())
}

/// True for what is wrong with the object itself. A newer version is for newer programs to check.
fn is_damage(error: &Error) -> bool {
    matches!(error.kind, Kind::Corrupt | Kind::NotFound)
}
