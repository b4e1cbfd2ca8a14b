//! Shared rows: the deltas there are, and what each makes of its row.

use super::pack::{BlockRow, PackRow, decode_location, encode_location};
use super::{BLOCK, COUNTER, Counter, DEAD_SEGMENT, PACK, SEGMENT_REFS, pack_key, segment_key};
use crate::base::codec::{Reader, Writer};
use crate::base::hash::{BlockId, Hash};
use crate::base::ids::{PackId, SegmentId};
use crate::store::block::{BlockLocation, Receipt};
use crate::store::merge::{Delta, MergeRules, Merged};
use crate::store::{Error, Kind, Result};

/// Adds to a counter.
#[must_use]
pub fn count(counter: Counter, by: i64) -> Delta {
    Delta { table: COUNTER, key: counter.key(), bytes: by.to_le_bytes().to_vec() }
}

/// Adds to the number of manifest rows that name a segment; at 0 the segment is queued for release.
#[must_use]
pub fn segment_refs(segment: SegmentId, by: i64) -> Delta {
    Delta { table: SEGMENT_REFS, key: segment_key(segment), bytes: by.to_le_bytes().to_vec() }
}

/// One more slice of a segment names the block; creates its row if there is none.
#[must_use]
pub fn block_referenced(block: BlockId, location: &BlockLocation) -> Delta {
    let mut w = Writer::new();
    w.i64(1);
    encode_location(&mut w, location);
    Delta { table: BLOCK, key: block.to_key().to_vec(), bytes: w.buf }
}

/// One slice less names the block.
#[must_use]
pub fn block_released(block: BlockId) -> Delta {
    Delta { table: BLOCK, key: block.to_key().to_vec(), bytes: (-1i64).to_le_bytes().to_vec() }
}

/// The store has acknowledged the pack.
#[must_use]
pub fn pack_acknowledged(pack: PackId, receipt: Receipt) -> Delta {
    let mut w = Writer::new();
    w.i64(0).u64(receipt.len).bytes(&receipt.footer.0);
    Delta { table: PACK, key: pack_key(pack), bytes: w.buf }
}

fn pack_live(pack: PackId, by: i64) -> Delta {
    Delta { table: PACK, key: pack_key(pack), bytes: by.to_le_bytes().to_vec() }
}

/// The rules of this schema.
pub struct SchemaMerge;

impl MergeRules for SchemaMerge {
    fn merge(&self, delta: &Delta, old: Option<&[u8]>) -> Result<Merged> {
        let mut r = Reader::new("delta", &delta.bytes);
        match delta.table {
            COUNTER => {
                let old = old.map_or(Ok(0), |old| Reader::new("counter", old).i64())?;
                let new = old.checked_add(r.i64()?).ok_or_else(|| broken(delta, "overflows"))?;
                Ok(row(Some(new.to_le_bytes().to_vec())))
            }
            SEGMENT_REFS => merge_segment_refs(delta, r.i64()?, old),
            DEAD_SEGMENT => Ok(row(Some(Vec::new()))),
            BLOCK => merge_block(delta, &mut r, old),
            PACK => merge_pack(delta, &mut r, old),
            _ => Err(broken(delta, "names a table that is not shared")),
        }
    }
}

fn row(value: Option<Vec<u8>>) -> Merged {
    Merged { value, follow: Vec::new() }
}

fn broken(delta: &Delta, why: &str) -> Error {
    Error::new(Kind::Internal, format!("delta of table {}: {why}", delta.table.0))
}

fn merge_segment_refs(delta: &Delta, by: i64, old: Option<&[u8]>) -> Result<Merged> {
    let old = old.map_or(Ok(0), |old| Reader::new("segment references", old).u32())?;
    let new = add(old, by).ok_or_else(|| broken(delta, "takes a count below zero"))?;
    if new != 0 {
        return Ok(row(Some(new.to_le_bytes().to_vec())));
    }
    let dead = Delta { table: DEAD_SEGMENT, key: delta.key.clone(), bytes: Vec::new() };
    Ok(Merged { value: None, follow: vec![dead] })
}

fn merge_block(delta: &Delta, r: &mut Reader<'_>, old: Option<&[u8]>) -> Result<Merged> {
    let id = BlockId::from_key(&delta.key).ok_or_else(|| broken(delta, "has no block key"))?;
    let by = r.i64()?;
    let old = match old {
        Some(old) => BlockRow::decode(old)?,
        None if r.remaining() > 0 => BlockRow { location: decode_location(r)?, refs: 0 },
        None => return Err(broken(delta, "releases a block that has no row")),
    };
    let refs = add(old.refs, by).ok_or_else(|| broken(delta, "takes a count below zero"))?;
    let new = BlockRow { refs, ..old };
    let stored = i64::try_from(new.stored_len(id.len)).expect("frames are far below 2^63 bytes");
    let change = match (old.refs, refs) {
        (0, 1..) => stored,
        (1.., 0) => -stored,
        _ => 0,
    };
    let mut follow = Vec::new();
    if change != 0 {
        follow.push(count(Counter::StoredBytes, change));
        follow.extend(new.location.pack().map(|pack| pack_live(pack, change)));
    }
    Ok(Merged { value: Some(new.encode()), follow })
}

fn merge_pack(delta: &Delta, r: &mut Reader<'_>, old: Option<&[u8]>) -> Result<Merged> {
    let old = old.map(PackRow::decode).transpose()?;
    let old = old.unwrap_or(PackRow { live_bytes: 0, receipt: None });
    let live = old.live_bytes.checked_add_signed(r.i64()?);
    let live_bytes = live.ok_or_else(|| broken(delta, "takes live bytes below zero"))?;
    let receipt = match r.remaining() {
        0 => old.receipt,
        _ => Some(Receipt { len: r.u64()?, footer: Hash(r.array()?) }),
    };
    Ok(row(Some(PackRow { live_bytes, receipt }.encode())))
}

fn add(count: u32, by: i64) -> Option<u32> {
    u32::try_from(i64::from(count).checked_add(by)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::WriterId;

    const PACK_ID: PackId = PackId { writer: WriterId(1), number: 2 };
    const AT: BlockLocation = BlockLocation::Frame { pack: PACK_ID, offset: 0, len: 70 };

    fn merge(delta: &Delta, old: Option<&[u8]>) -> Merged {
        SchemaMerge.merge(delta, old).expect("merges")
    }

    #[test]
    fn first_reference_makes_a_block_live_and_the_last_release_dead() {
        let id = BlockId::of(b"block");
        let first = merge(&block_referenced(id, &AT), None);
        assert_eq!(first.follow, vec![count(Counter::StoredBytes, 70), pack_live(PACK_ID, 70)]);
        let second = merge(&block_referenced(id, &AT), first.value.as_deref());
        assert_eq!(second.follow, vec![]);
        let third = merge(&block_released(id), second.value.as_deref());
        assert_eq!(third.follow, vec![]);
        let last = merge(&block_released(id), third.value.as_deref());
        assert_eq!(last.follow, vec![count(Counter::StoredBytes, -70), pack_live(PACK_ID, -70)]);
        let row = BlockRow::decode(&last.value.expect("the row stays")).expect("decodes");
        assert_eq!(row, BlockRow { location: AT, refs: 0 });
        assert!(SchemaMerge.merge(&block_released(id), Some(&row.encode())).is_err(), "below zero");
    }

    #[test]
    fn a_known_block_keeps_its_place() {
        let id = BlockId::of(b"block");
        let known = BlockRow { location: BlockLocation::Object, refs: 1 }.encode();
        let again = merge(&block_referenced(id, &AT), Some(&known)).value.expect("row");
        assert_eq!(BlockRow::decode(&again).map(|row| row.location), Ok(BlockLocation::Object));
    }

    #[test]
    fn an_unnamed_segment_is_queued_for_release() {
        let one = merge(&segment_refs(SegmentId(4), 1), None).value;
        let gone = merge(&segment_refs(SegmentId(4), -1), one.as_deref());
        assert_eq!(gone.value, None);
        let [dead] = &gone.follow[..] else { panic!("{gone:?}") };
        assert_eq!((dead.table, &dead.key), (DEAD_SEGMENT, &segment_key(SegmentId(4))));
        assert_eq!(merge(dead, None).value, Some(vec![]));
    }

    #[test]
    fn counters_and_live_bytes_add_up() {
        let five = merge(&count(Counter::Inodes, 5), None).value;
        let three = merge(&count(Counter::Inodes, -2), five.as_deref()).value;
        assert_eq!(three, Some(3i64.to_le_bytes().to_vec()));
        let receipt = Receipt { len: 100, footer: Hash::of(b"f") };
        let live = merge(&pack_live(PACK_ID, 70), None).value;
        let row = merge(&pack_acknowledged(PACK_ID, receipt), live.as_deref()).value.expect("row");
        assert_eq!(PackRow::decode(&row), Ok(PackRow { live_bytes: 70, receipt: Some(receipt) }));
        assert!(SchemaMerge.merge(&pack_live(PACK_ID, -71), Some(&row)).is_err());
    }
}
