//! Finds out from the store alone which packs it has and what is in them.

use super::pack::{PACK_FOOTER_BYTES, PackEntry};
use super::pack_reader::PackFooter;
use crate::base::hash::Hash;
use crate::base::ids::PackId;
use crate::base::range::ByteRange;
use crate::store::block::Receipt;
use crate::store::object::{ImmutableObjectStore, ObjectKey, ObjectMeta};
use crate::store::{Error, Kind, Result, keys};

/// Bytes read from the end of a pack at first: footer and the directory of some 1,300 frames, more than a pack of blocks
/// of ordinary size has.
const TAIL_BYTES: u64 = 64 << 10;

/// A pack's own list of its content.
pub(crate) struct StoredDirectory {
    pub(crate) entries: Vec<PackEntry>,
    pub(crate) receipt: Receipt,
}

/// Reads the directory of a stored pack of `len` bytes.
///
/// # Errors
/// `Corrupt` naming the pack if it is not the pack of that name; what the store answers otherwise.
pub(crate) async fn read_directory(
    objects: &dyn ImmutableObjectStore,
    id: PackId,
    len: u64,
) -> Result<StoredDirectory> {
    let key = keys::pack(id);
    let corrupt = |what: &dyn std::fmt::Display| Error::new(Kind::Corrupt, format!("read {key}: {what}"));
    let footer_bytes = u64::from(PACK_FOOTER_BYTES);
    if len < footer_bytes {
        return Err(corrupt(&"shorter than a footer"));
    }
    let mut start = len.saturating_sub(TAIL_BYTES);
    let mut tail = objects.get(&key, Some(ByteRange::new(start, len))).await?;
    let footer_at = |tail: &[u8]| tail.len().saturating_sub(PACK_FOOTER_BYTES as usize);
    let footer = PackFooter::parse(tail.get(footer_at(&tail)..).unwrap_or_default(), len);
    let footer = footer.map_err(|error| corrupt(&error))?;
    if footer.id != id {
        return Err(corrupt(&format_args!("holds pack {}", footer.id)));
    }
    if footer.directory.start < start {
        start = footer.directory.start;
        tail = objects.get(&key, Some(ByteRange::new(start, len))).await?;
    }
    let from = usize::try_from(footer.directory.start - start).unwrap_or(usize::MAX);
    let tail = tail.get(from..).ok_or_else(|| corrupt(&"shorter than its footer says"))?;
    let directory = tail.get(..footer_at(tail)).unwrap_or_default();
    let entries = footer.parse_directory(directory).map_err(|error| corrupt(&error))?;
    Ok(StoredDirectory { entries, receipt: Receipt { len, footer: Hash::of(tail) } })
}

/// Walks through all packs of the volume in the order of their names.
pub(super) struct PackPages<'a> {
    objects: &'a dyn ImmutableObjectStore,
    after: Option<ObjectKey>,
    more: bool,
}

impl<'a> PackPages<'a> {
    pub(super) fn new(objects: &'a dyn ImmutableObjectStore) -> Self {
        Self { objects, after: None, more: true }
    }

    /// The next packs with their lengths; None at the end. Names that are not ours are left out.
    ///
    /// # Errors
    /// What the store answers.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<(PackId, u64)>>> {
        if !self.more {
            return Ok(None);
        }
        let page = self.objects.list(keys::PACKS, self.after.as_ref()).await?;
        self.after = page.objects.last().map(|object| object.key.clone());
        self.more = page.more && self.after.is_some();
        let pack = |object: &ObjectMeta| Some((keys::parse_pack(&object.key)?, object.len));
        Ok(Some(page.objects.iter().filter_map(pack).collect()))
    }
}
