//! From the parts of files to packs: segments, blocks, what counts references to them, and the totals.

use std::collections::HashMap;

use super::rows::{Keys, Limits, hex, visit_all, visit_keys, visit_part};
use super::{FindingKind, Progress, Report, Seen, Step};
use crate::base::codec::Reader;
use crate::base::hash::BlockId;
use crate::base::ids::{Ino, PackId, SegmentId};
use crate::base::limits::{BLOCK_BYTES_MAX, SEGMENT_ENTRIES_MAX};
use crate::store::Result;
use crate::store::block::BlockLocation;
use crate::store::kv::Snapshot;
use crate::store::schema::manifest::{ManifestRow, Segment, UNWRITTEN};
use crate::store::schema::pack::{BlockRow, PackRow};
use crate::store::schema::{
    BLOCK, COUNTER, Counter, DEAD_SEGMENT, MANIFEST, PACK, SEGMENT, SEGMENT_REFS, pack_key, parse_ino_key,
    parse_pack_key, parse_pair_key, segment_key,
};

/// What was found of one segment.
#[derive(Default)]
struct SegmentFacts {
    /// None for a row that is missing or does not decode.
    len: Option<u64>,
    is_there: bool,
    refs: Option<u32>,
    is_dead: bool,
    /// Manifest rows that name it.
    named: u64,
}

fn parse_segment_key(key: &[u8]) -> Option<SegmentId> {
    parse_ino_key(key).map(|number| SegmentId(number.0))
}

pub(super) fn check_segments(
    view: &dyn Snapshot,
    limits: Limits,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut from = Some(Vec::new());
    let mut done = 0;
    while let Some(start) = from {
        let mut segments: HashMap<SegmentId, SegmentFacts> = HashMap::new();
        let keys = visit_part(view, SEGMENT, &start, limits.segments, &mut |key, value| {
            let Some(id) = parse_segment_key(key) else {
                return seen.find(FindingKind::Row, format_args!("segment {}", hex(key)), "malformed key");
            };
            seen.totals.newest_segment = seen.totals.newest_segment.max(id.0);
            let facts = segments.entry(id).or_default();
            facts.is_there = true;
            match Segment::decode(value) {
                Ok(segment) => {
                    facts.len = Some(segment.len());
                    if segment.is_empty() || SEGMENT_ENTRIES_MAX < segment.slices().len() {
                        let detail = format!("has {} slices", segment.slices().len());
                        seen.find(FindingKind::Segment, format_args!("segment {}", id.0), detail);
                    }
                }
                Err(error) => seen.find(FindingKind::Row, format_args!("segment {}", id.0), error),
            }
        })?;
        read_segment_references(view, &keys, &mut segments, seen)?;
        read_windows(view, &keys, &mut segments, seen)?;
        let mut all: Vec<_> = segments.iter().collect();
        all.sort_unstable_by_key(|(id, _)| **id);
        for (id, facts) in all {
            conclude_segment(*id, facts, seen);
        }
        done += segments.len() as u64;
        report(Progress { step: Step::Content, done, of: None });
        from = keys.to;
    }
    Ok(())
}

fn read_segment_references(
    view: &dyn Snapshot,
    keys: &Keys,
    segments: &mut HashMap<SegmentId, SegmentFacts>,
    seen: &mut Seen,
) -> Result<()> {
    visit_keys(view, SEGMENT_REFS, keys, &mut |key, value| {
        let mut r = Reader::new("segment references", value);
        match (parse_segment_key(key), r.u32()) {
            (Some(id), Ok(refs)) if r.remaining() == 0 => segments.entry(id).or_default().refs = Some(refs),
            _ => seen.find(FindingKind::Row, format_args!("segment references {}", hex(key)), "malformed"),
        }
    })?;
    visit_keys(view, DEAD_SEGMENT, keys, &mut |key, value| match parse_segment_key(key) {
        Some(id) if value.is_empty() => segments.entry(id).or_default().is_dead = true,
        _ => seen.find(FindingKind::Row, format_args!("dead segment {}", hex(key)), "malformed"),
    })
}

/// The manifest rows that name a segment of this part.
fn read_windows(
    view: &dyn Snapshot,
    keys: &Keys,
    segments: &mut HashMap<SegmentId, SegmentFacts>,
    seen: &mut Seen,
) -> Result<()> {
    visit_all(view, MANIFEST, &mut |key, value| {
        // What does not decode is reported with its inode.
        let (Some((ino, end)), Ok(row)) = (parse_pair_key(key), ManifestRow::decode(value)) else { return };
        if row.segment == UNWRITTEN || !keys.contains(&segment_key(row.segment)) {
            return;
        }
        let facts = segments.entry(row.segment).or_default();
        facts.named += 1;
        let thing = format_args!("inode {} up to {end}", Ino(ino));
        if !facts.is_there {
            seen.find(FindingKind::Manifest, thing, format_args!("segment {} is missing", row.segment.0));
        } else if let Some(len) = facts.len
            && row.skip.checked_add(row.len).is_none_or(|end| len < end)
        {
            let detail = format!(
                "needs {} bytes from {} of segment {}, which has {len}",
                row.len, row.skip, row.segment.0
            );
            seen.find(FindingKind::Manifest, thing, detail);
        }
    })
}

fn conclude_segment(id: SegmentId, facts: &SegmentFacts, seen: &mut Seen) {
    let thing = format!("segment {}", id.0);
    let SegmentFacts { is_there, refs, is_dead, named, .. } = facts;
    if !is_there {
        // Who names it is reported already.
        if *named == 0 {
            seen.find(FindingKind::Segment, thing, "is missing, but counted or queued for release");
        }
        return;
    }
    if *is_dead && refs.is_some() {
        seen.find(FindingKind::Segment, thing, "is queued for release, but counted as named");
    } else if *is_dead && 0 < *named {
        seen.find(
            FindingKind::Segment,
            thing,
            format_args!("is queued for release, but named {named} times"),
        );
    } else if !is_dead && refs.is_none() && *named == 0 {
        seen.find(FindingKind::Segment, thing, "is named by nothing and not queued for release");
    } else if u64::from(refs.unwrap_or(0)) != *named || *refs == Some(0) {
        let detail = format!("is named {named} times, counts {}", refs.unwrap_or(0));
        seen.find(FindingKind::SegmentReferences, thing, detail);
    }
}

pub(super) fn check_blocks(
    view: &dyn Snapshot,
    limits: Limits,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut from = Some(Vec::new());
    while let Some(start) = from {
        // The references counted, and those found.
        let mut blocks: HashMap<BlockId, Option<(u32, u64)>> = HashMap::new();
        let keys = visit_part(view, BLOCK, &start, limits.blocks, &mut |key, value| {
            let Some(id) = BlockId::from_key(key).filter(|id| (1..=BLOCK_BYTES_MAX).contains(&id.len)) else {
                return seen.find(FindingKind::Row, format_args!("block {}", hex(key)), "malformed key");
            };
            seen.outcome.blocks += 1;
            let row = match BlockRow::decode(value) {
                Ok(row) => row,
                Err(error) => {
                    blocks.insert(id, None);
                    return seen.find(FindingKind::Row, id, error);
                }
            };
            blocks.insert(id, Some((row.refs, 0)));
            if 0 < row.refs {
                seen.totals.stored_bytes += row.stored_len(id.len);
            }
        })?;
        report(Progress { step: Step::Content, done: seen.outcome.blocks, of: None });
        visit_all(view, SEGMENT, &mut |key, value| {
            // What does not decode is reported as a segment.
            let Ok(segment) = Segment::decode(value) else { return };
            for slice in segment.slices().iter().filter(|slice| keys.contains(&slice.block.to_key())) {
                match blocks.get_mut(&slice.block) {
                    Some(Some((_, found))) => *found += 1,
                    Some(None) => {}
                    None => {
                        let thing = format!("segment {}", parse_segment_key(key).map_or(0, |id| id.0));
                        let detail = format!("{} is not in the index", slice.block);
                        seen.find(FindingKind::Block, thing, detail);
                    }
                }
            }
        })?;
        let wrong = blocks.iter().filter_map(|(id, counts)| Some((id, (*counts)?)));
        let mut wrong: Vec<_> = wrong.filter(|(_, (counted, found))| u64::from(*counted) != *found).collect();
        wrong.sort_unstable_by_key(|(id, _)| **id);
        for (id, (counted, found)) in wrong {
            let detail = format!("is named {found} times, counts {counted}");
            seen.find(FindingKind::BlockReferences, id, detail);
        }
        from = keys.to;
    }
    Ok(())
}

/// What was found of one pack.
pub(super) struct PackFacts {
    pub(super) row: PackRow,
    /// Blocks that the index places in it.
    pub(super) blocks: u64,
    /// Where the last of them ends.
    pub(super) end: u64,
    live_bytes: u64,
    /// Its length in the store.
    pub(super) listed: Option<u64>,
}

/// A part of the packs.
pub(super) struct PackPart {
    pub(super) rows: HashMap<PackId, PackFacts>,
    /// Where the next part begins.
    pub(super) next: Option<Vec<u8>>,
}

pub(super) fn check_packs(
    view: &dyn Snapshot,
    limits: Limits,
    start: &[u8],
    seen: &mut Seen,
) -> Result<PackPart> {
    let mut packs = HashMap::new();
    let mut undecoded = Vec::new();
    let keys = visit_part(view, PACK, start, limits.packs, &mut |key, value| {
        let Some(id) = parse_pack_key(key) else {
            return seen.find(FindingKind::Row, format_args!("pack {}", hex(key)), "malformed key");
        };
        seen.outcome.packs += 1;
        match PackRow::decode(value) {
            Ok(row) => {
                packs.insert(id, PackFacts { row, blocks: 0, end: 0, live_bytes: 0, listed: None });
            }
            Err(error) => {
                undecoded.push(id);
                seen.find(FindingKind::Row, format_args!("pack {id}"), error);
            }
        }
    })?;
    visit_all(view, BLOCK, &mut |key, value| {
        // What does not decode is reported as a block.
        let (Some(block), Ok(row)) = (BlockId::from_key(key), BlockRow::decode(value)) else { return };
        let BlockLocation::Frame { pack, offset, len } = row.location else { return };
        if !keys.contains(&pack_key(pack)) || undecoded.contains(&pack) {
            return;
        }
        let Some(facts) = packs.get_mut(&pack) else {
            return seen.find(FindingKind::Block, block, format_args!("pack {pack} is not in the index"));
        };
        facts.blocks += 1;
        facts.end = facts.end.max(u64::from(offset) + u64::from(len));
        facts.live_bytes += if 0 < row.refs { u64::from(len) } else { 0 };
    })?;
    let mut wrong: Vec<_> =
        packs.iter().filter(|(_, facts)| facts.live_bytes != facts.row.live_bytes).collect();
    wrong.sort_unstable_by_key(|(id, _)| **id);
    for (id, facts) in wrong {
        let detail = format!("{} bytes are needed, counts {}", facts.live_bytes, facts.row.live_bytes);
        seen.find(FindingKind::Pack, format_args!("pack {id}"), detail);
    }
    Ok(PackPart { rows: packs, next: keys.to })
}

/// Compares the counters with what was counted.
pub(super) fn check_counters(view: &dyn Snapshot, seen: &mut Seen) -> Result<()> {
    let mut counters = HashMap::new();
    visit_all(view, COUNTER, &mut |key, value| {
        let mut r = Reader::new("counter", value);
        match (key, r.i64()) {
            ([id @ 1..=7], Ok(count)) if r.remaining() == 0 => drop(counters.insert(*id, count)),
            _ => seen.find(FindingKind::Row, format_args!("counter {}", hex(key)), "unknown or malformed"),
        }
    })?;
    let of = |counter: Counter| counters.get(&(counter as u8)).copied().unwrap_or(0);
    let totals = std::mem::take(&mut seen.totals);
    for (name, counter, counted) in [
        ("inodes", Counter::Inodes, totals.inodes),
        ("files", Counter::Files, totals.files),
        ("allocated bytes", Counter::AllocatedBytes, totals.allocated_bytes),
        ("logical bytes", Counter::LogicalBytes, totals.logical_bytes),
        ("stored bytes", Counter::StoredBytes, totals.stored_bytes),
    ] {
        if of(counter) != counted.cast_signed() {
            seen.find(
                FindingKind::Counter,
                name,
                format_args!("{counted} are there, counts {}", of(counter)),
            );
        }
    }
    // The first numbers are 2 and 1 (rule R13).
    for (name, counter, first, newest) in [
        ("next inode number", Counter::NextIno, 2, totals.newest_ino),
        ("next segment number", Counter::NextSegment, 1, totals.newest_segment),
    ] {
        let next = of(counter).saturating_add(first);
        if next <= newest.cast_signed() && first <= newest.cast_signed() {
            seen.find(
                FindingKind::Counter,
                name,
                format_args!("{newest} is in use, the next would be {next}"),
            );
        }
    }
    Ok(())
}
