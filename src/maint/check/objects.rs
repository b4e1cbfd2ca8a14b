//! Whether the store has the objects that the metadata name, as long as they should be. Lists, and fetches only blocks
//! of layout Single, if their bytes are to be hashed.

use std::collections::HashMap;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::content::PackFacts;
use super::reading::ReadOnlyStore;
use super::rows::{Limits, visit_part};
use super::{CheckParts, Data, FindingKind, Progress, Report, Seen, Step};
use crate::base::hash::BlockId;
use crate::base::ids::PackId;
use crate::content::frame::{self, FRAME_HEADER_BYTES};
use crate::content::pack::PACK_FOOTER_BYTES;
use crate::content::staged_files::StagedFiles;
use crate::store::block::BlockLocation;
use crate::store::kv::Snapshot;
use crate::store::object::{ImmutableObjectStore as _, ObjectKey};
use crate::store::schema::BLOCK;
use crate::store::schema::pack::BlockRow;
use crate::store::{Kind, Result, keys};

/// Blocks fetched at once, each up to 16 MiB.
const FETCHES: usize = 4;

/// Notes the length in the store of each pack in `packs`, and which packs of seals are there.
pub(super) async fn find_packs(
    objects: &ReadOnlyStore,
    packs: &mut HashMap<PackId, PackFacts>,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut after = None;
    let mut done = 0;
    loop {
        let page = objects.list(keys::PACKS, after.as_ref()).await?;
        for object in &page.objects {
            let Some(id) = keys::parse_pack(&object.key) else { continue };
            if let Some(facts) = packs.get_mut(&id) {
                facts.listed = Some(object.len);
                done += 1;
            }
            if let Some(end) = seen.sealed_packs.get(&id)
                && end + u64::from(PACK_FOOTER_BYTES) <= object.len
            {
                seen.sealed_packs.remove(&id);
            }
        }
        report(Progress { step: Step::Packs, done, of: Some(packs.len() as u64) });
        match page.objects.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return Ok(()),
        }
    }
}

/// Compares the lengths of packs with what the index knows.
pub(super) fn report_missing(packs: &HashMap<PackId, PackFacts>, staged: &StagedFiles, seen: &mut Seen) {
    let mut packs: Vec<_> = packs.iter().collect();
    packs.sort_unstable_by_key(|(id, _)| **id);
    for (id, facts) in packs {
        let key = keys::pack(*id);
        let receipt = facts.row.receipt;
        let Some(len) = facts.listed else {
            // Committed ahead of its upload, for which the journal waits (rule R1).
            let is_staged = staged.packs.get(id).is_some_and(|len| facts.end <= *len);
            if receipt.is_some() || !is_staged {
                let detail = format!("is not in the store; {} blocks are in it", facts.blocks);
                seen.find(FindingKind::Object, key, detail);
            }
            continue;
        };
        if let Some(receipt) = receipt.filter(|receipt| receipt.len != len) {
            let detail = format!("has {len} bytes, had {} when it was stored", receipt.len);
            seen.find(FindingKind::Object, key, detail);
        } else if len < facts.end + u64::from(PACK_FOOTER_BYTES) {
            let detail = format!("has {len} bytes, a block in it ends at {}", facts.end);
            seen.find(FindingKind::Block, key, detail);
        }
    }
}

/// Staged content whose pack is neither here nor in the store can never be committed.
pub(super) fn report_unfound_seals(staged: &StagedFiles, seen: &mut Seen) {
    let mut lost: Vec<_> = std::mem::take(&mut seen.sealed_packs).into_iter().collect();
    lost.sort_unstable();
    for (id, end) in lost {
        match staged.packs.get(&id) {
            Some(len) if end <= *len => {}
            Some(len) => {
                let detail = format!("is staged with {len} bytes, a block in it ends at {end}");
                seen.find(FindingKind::Seal, format_args!("pack {id}"), detail);
            }
            None => {
                let detail = "holds staged content, but is neither here nor in the store";
                seen.find(FindingKind::Seal, format_args!("pack {id}"), detail);
            }
        }
    }
}

/// Blocks with objects of their own (layout Single). Their names sort as their rows do, so one listing goes along.
pub(super) async fn check_block_objects(
    view: &dyn Snapshot,
    objects: &ReadOnlyStore,
    parts: &CheckParts,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut sealed = std::mem::take(&mut seen.sealed_blocks);
    sealed.sort_unstable();
    sealed.dedup();
    let mut from = Some(Vec::new());
    let mut after: Option<ObjectKey> = None;
    while let Some(start) = from {
        // The length in the store, once it is listed.
        let mut blocks: HashMap<BlockId, Option<u64>> = HashMap::new();
        let keys = visit_part(view, BLOCK, &start, Limits::default().blocks, &mut |key, value| {
            let (Some(id), Ok(row)) = (BlockId::from_key(key), BlockRow::decode(value)) else { return };
            if row.location == BlockLocation::Object {
                blocks.insert(id, None);
            }
        })?;
        let seals = sealed.iter().filter(|id| keys.contains(&id.to_key()));
        let only_sealed: Vec<BlockId> = seals.filter(|id| !blocks.contains_key(id)).copied().collect();
        blocks.extend(only_sealed.iter().map(|id| (*id, None)));
        from = keys.to;
        let Some(last) = blocks.keys().max().copied() else { continue };
        after = list_blocks(objects, after, keys::block(last), &mut blocks).await?;

        let mut all: Vec<(BlockId, Option<u64>)> = blocks.into_iter().collect();
        all.sort_unstable();
        for (id, len) in &all {
            let longest = u64::from(FRAME_HEADER_BYTES) + u64::from(id.len);
            match len {
                Some(len) if (u64::from(FRAME_HEADER_BYTES) + 1..=longest).contains(len) => {}
                Some(len) => {
                    let detail = format!("has {len} bytes, at most {longest} are right");
                    seen.find(FindingKind::Object, keys::block(*id), detail);
                }
                None if parts.staged.blocks.contains_key(id) => {}
                None if only_sealed.contains(id) => {
                    let detail = "holds staged content, but is neither here nor in the store";
                    seen.find(FindingKind::Seal, id, detail);
                }
                None => seen.find(FindingKind::Object, keys::block(*id), "is not in the store"),
            }
        }
        if parts.data == Data::Hashed {
            let there = all.into_iter().filter_map(|(id, len)| len.map(|_| id)).collect();
            hash_blocks(objects, there, seen, report).await?;
        }
    }
    Ok(())
}

/// Lists up to `last`, from where the listing before ended.
async fn list_blocks(
    objects: &ReadOnlyStore,
    mut after: Option<ObjectKey>,
    last: ObjectKey,
    blocks: &mut HashMap<BlockId, Option<u64>>,
) -> Result<Option<ObjectKey>> {
    loop {
        let page = objects.list(keys::BLOCKS, after.as_ref()).await?;
        for object in &page.objects {
            if last < object.key {
                return Ok(Some(last));
            }
            if let Some(len) = keys::parse_block(&object.key).and_then(|id| blocks.get_mut(&id)) {
                *len = Some(object.len);
            }
        }
        match page.objects.last() {
            Some(newest) if page.more => after = Some(newest.key.clone()),
            _ => return Ok(Some(last)),
        }
    }
}

async fn hash_blocks(
    objects: &ReadOnlyStore,
    blocks: Vec<BlockId>,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let of = blocks.len() as u64;
    let fetch = async |id: BlockId| match objects.get(&keys::block(id), None).await {
        Ok(frame) => Ok(frame::decode(&frame, id).err().map(|error| (id, error.to_string()))),
        Err(error) if matches!(error.kind, Kind::Corrupt | Kind::NotFound) => {
            Ok(Some((id, error.to_string())))
        }
        Err(error) => Err(error),
    };
    let mut fetched = Box::pin(futures_util::stream::iter(blocks).map(fetch).buffered(FETCHES));
    let mut done = 0;
    while let Some(damage) = fetched.try_next().await? {
        if let Some((id, damage)) = damage {
            seen.find(FindingKind::Data, keys::block(id), damage);
        }
        done += 1;
        report(Progress { step: Step::Data, done, of: Some(of) });
    }
    Ok(())
}
