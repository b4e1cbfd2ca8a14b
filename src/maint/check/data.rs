//! Fetches packs and hashes every frame in them.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::content::PackFacts;
use super::reading::ReadOnlyStore;
use super::{FindingKind, Progress, Report, Seen, Step};
use crate::base::ids::PackId;
use crate::base::limits::{BLOCK_BYTES_MAX, PACK_BYTES_TARGET};
use crate::base::range::ByteRange;
use crate::content::frame;
use crate::content::pack::PackEntry;
use crate::content::pack_listing::read_directory;
use crate::store::block::Receipt;
use crate::store::kv::Snapshot;
use crate::store::object::ImmutableObjectStore as _;
use crate::store::schema::BLOCK;
use crate::store::schema::pack::BlockRow;
use crate::store::{Error, Kind, Result, keys};

/// Packs fetched at once; each takes the memory of one fetch.
const FETCHES: usize = 3;

/// Bytes fetched at once, so that most packs are one request. A single frame can be a little longer.
const FETCH_BYTES_MAX: u64 = PACK_BYTES_TARGET + BLOCK_BYTES_MAX as u64;

/// What to find in a pack.
#[derive(Clone, Copy)]
struct Expected {
    id: PackId,
    /// In the store.
    len: u64,
    receipt: Option<Receipt>,
    /// That the index places in it.
    blocks: u64,
}

/// What is wrong with a pack.
type Damage = Vec<(FindingKind, String)>;

pub(super) async fn check_pack_data(
    view: &dyn Snapshot,
    objects: &ReadOnlyStore,
    packs: &HashMap<PackId, PackFacts>,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut stored: Vec<Expected> = packs
        .iter()
        .filter_map(|(id, facts)| {
            let len = facts.listed?;
            Some(Expected { id: *id, len, receipt: facts.row.receipt, blocks: facts.blocks })
        })
        .collect();
    stored.sort_unstable_by_key(|pack| pack.id);
    let of = stored.len() as u64;
    let check = async |pack: Expected| Ok::<_, Error>((pack.id, check_pack(view, objects, pack).await?));
    let mut checked = Box::pin(futures_util::stream::iter(stored).map(check).buffered(FETCHES));
    let mut done = 0;
    while let Some((id, damage)) = checked.try_next().await? {
        for (kind, detail) in damage {
            seen.find(kind, keys::pack(id), detail);
        }
        done += 1;
        report(Progress { step: Step::Data, done, of: Some(of) });
    }
    Ok(())
}

async fn check_pack(view: &dyn Snapshot, objects: &ReadOnlyStore, pack: Expected) -> Result<Damage> {
    let mut damage = Damage::new();
    let directory = match read_directory(objects, pack.id, pack.len).await {
        Ok(directory) => directory,
        Err(error) => return told(error).map(|detail| vec![(FindingKind::Data, detail)]),
    };
    // Of another length it is reported as an object.
    if pack.receipt.is_some_and(|known| known.len == pack.len && known.footer != directory.receipt.footer) {
        damage.push((FindingKind::Data, "directory and footer are not those that were stored".to_owned()));
    }
    let mut placed = 0;
    for entry in &directory.entries {
        let row = view.get(BLOCK, &entry.id.to_key())?.map(|row| BlockRow::decode(&row));
        let Some(Ok(row)) = row.filter(|row| matches!(row, Ok(row) if row.location.pack() == Some(pack.id)))
        else {
            continue;
        };
        placed += 1;
        if row.location != entry.location(pack.id) {
            let detail =
                format!("{} is at {}, the index has it at {:?}", entry.id, entry.offset, row.location);
            damage.push((FindingKind::Block, detail));
        }
    }
    if placed < pack.blocks {
        let detail = format!("holds {placed} of {} blocks that the index has in it", pack.blocks);
        damage.push((FindingKind::Block, detail));
    }
    let mut rest = &directory.entries[..];
    while let Some(first) = rest.first() {
        let most = u64::from(first.offset) + FETCH_BYTES_MAX;
        let count = rest.partition_point(|entry| entry.end() <= most).max(1);
        let (now, later) = rest.split_at(count);
        damage.extend(hash_frames(objects, pack.id, now).await?);
        rest = later;
    }
    Ok(damage)
}

/// Fetches frames that follow each other and hashes each.
async fn hash_frames(objects: &ReadOnlyStore, pack: PackId, entries: &[PackEntry]) -> Result<Damage> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Damage::new()) };
    let start = u64::from(first.offset);
    let bytes = match objects.get(&keys::pack(pack), Some(ByteRange::new(start, last.end()))).await {
        Ok(bytes) => bytes,
        Err(error) => return told(error).map(|detail| vec![(FindingKind::Data, detail)]),
    };
    let mut damage = Damage::new();
    for entry in entries {
        let at = (entry.offset - first.offset) as usize;
        let decoded = frame::decode(&bytes.slice(at..at + entry.len as usize), entry.id);
        if let Err(error) = decoded {
            damage.push((FindingKind::Data, format!("{} at {}: {error}", entry.id, entry.offset)));
        }
    }
    Ok(damage)
}

/// Damage as it is told; other errors are errors.
fn told(error: Error) -> Result<String> {
    match error.kind {
        Kind::Corrupt | Kind::NotFound => Ok(error.to_string()),
        _ => Err(error),
    }
}
