//! The only place that spells object names (docs/format.md, "Bucket").

use super::object::ObjectKey;
use crate::base::hash::{BlockId, Hash};
use crate::base::ids::{Epoch, PackId, Seq, WriterId};

pub const PACKS: &str = "packs/";
pub const BLOCKS: &str = "blocks/";
pub const JOURNAL: &str = "journal/";
pub const CHECKPOINTS: &str = "checkpoints/";
/// Scratch objects of the conditional-write probe; deleted at once, harmless if left.
pub const PROBES: &str = "probe/";

#[must_use]
pub fn superblock() -> ObjectKey {
    ObjectKey::new("superblock".into())
}

#[must_use]
pub fn journal_floor() -> ObjectKey {
    ObjectKey::new("journal-floor".into())
}

/// `packs/<2 hex>/<writer>-<n>`: spread over 256 prefixes by the low byte of the pack's number.
#[must_use]
pub fn pack(id: PackId) -> ObjectKey {
    ObjectKey::new(format!("{PACKS}{:02x}/{id}", id.number & 0xff))
}

/// The pack that `key` names.
#[must_use]
pub fn parse_pack(key: &ObjectKey) -> Option<PackId> {
    let id = PackId::parse(key.as_str().strip_prefix(PACKS)?.get(3..)?)?;
    (pack(id) == *key).then_some(id)
}

/// `blocks/<2 hex>/<hash>-<len>`: one object per block (layout Single).
#[must_use]
pub fn block(id: BlockId) -> ObjectKey {
    let hash = id.hash.to_string();
    let shard = hash.get(..2).expect("a hash prints as 64 digits");
    ObjectKey::new(format!("{BLOCKS}{shard}/{hash}-{}", id.len))
}

/// The block that `key` names.
#[must_use]
pub fn parse_block(key: &ObjectKey) -> Option<BlockId> {
    let (hex, len) = key.as_str().strip_prefix(BLOCKS)?.get(3..)?.split_once('-')?;
    let id = BlockId { hash: Hash::parse(hex)?, len: len.parse().ok()? };
    (block(id) == *key).then_some(id)
}

/// Name of a journal record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RecordName {
    pub seq: Seq,
    /// Where creating an object does not exclude others, no two writers share a name.
    pub own: Option<(Epoch, WriterId)>,
}

/// `journal/<16 hex seq>`: the name that writers share, and the first of all names with this sequence.
#[must_use]
pub fn journal(seq: Seq) -> ObjectKey {
    journal_record(RecordName { seq, own: None })
}

/// `journal/<16 hex seq>`, or `journal/<16 hex seq>-<16 hex epoch>-<writer>`.
#[must_use]
pub fn journal_record(name: RecordName) -> ObjectKey {
    let RecordName { seq, own } = name;
    let own = own.map(|(epoch, writer)| format!("-{:016x}-{writer}", epoch.0)).unwrap_or_default();
    ObjectKey::new(format!("{JOURNAL}{:016x}{own}", seq.0))
}

/// The record that `key` names.
#[must_use]
pub fn parse_journal(key: &ObjectKey) -> Option<RecordName> {
    let mut parts = key.as_str().strip_prefix(JOURNAL)?.splitn(3, '-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (seq, epoch) = (Seq(number()?), number());
    let writer = parts.next().and_then(WriterId::parse);
    let name = RecordName { seq, own: epoch.map(Epoch).zip(writer) };
    (journal_record(name) == *key).then_some(name)
}

/// `checkpoints/<16 hex seq>/<name>`.
#[must_use]
pub fn checkpoint_part(seq: Seq, hash: Hash) -> ObjectKey {
    ObjectKey::new(format!("{CHECKPOINTS}{:016x}/{hash}", seq.0))
}

/// The object whose existence makes a checkpoint: written last.
#[must_use]
pub fn checkpoint_root(seq: Seq) -> ObjectKey {
    ObjectKey::new(format!("{CHECKPOINTS}{:016x}/root", seq.0))
}

/// The sequence of the checkpoint whose root is `key`.
#[must_use]
pub fn parse_checkpoint_root(key: &ObjectKey) -> Option<Seq> {
    let hex = key.as_str().strip_prefix(CHECKPOINTS)?.strip_suffix("/root")?;
    let seq = Seq(u64::from_str_radix(hex, 16).ok()?);
    (checkpoint_root(seq) == *key).then_some(seq)
}

/// An object of the conditional-write probe, private to one writer.
#[must_use]
pub fn probe(writer: WriterId, round: u32) -> ObjectKey {
    ObjectKey::new(format!("{PROBES}{writer}-{round}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let id = PackId { writer: WriterId(7), number: 0x1ff };
        assert_eq!(pack(id).as_str(), "packs/ff/00000000000000000000000000000007-1ff");
        assert_eq!(parse_pack(&pack(id)), Some(id));
        let block_id = BlockId::of(b"x");
        assert_eq!(parse_block(&block(block_id)), Some(block_id));
        let shared = RecordName { seq: Seq(255), own: None };
        assert_eq!(parse_journal(&journal(Seq(255))), Some(shared));
        let own = RecordName { own: Some((Epoch(16), WriterId(10))), ..shared };
        let key = "journal/00000000000000ff-0000000000000010-0000000000000000000000000000000a";
        assert_eq!(journal_record(own).as_str(), key);
        assert_eq!(parse_journal(&journal_record(own)), Some(own));
        assert!(journal(Seq(255)) < journal_record(own) && journal_record(own) < journal(Seq(256)));
        assert_eq!(parse_checkpoint_root(&checkpoint_root(Seq(9))), Some(Seq(9)));
        assert_eq!(parse_checkpoint_root(&checkpoint_part(Seq(9), Hash::ZERO)), None);
    }

    #[test]
    fn foreign_names_are_not_ours() {
        let half = "journal/00000000000000ff-0000000000000010";
        for key in ["packs/00/00000000000000000000000000000007-1ff", "packs/ff", "journal/ff", half] {
            let key = ObjectKey::parse(key).expect("valid key");
            assert_eq!((parse_pack(&key), parse_journal(&key)), (None, None), "{key}");
        }
    }
}
