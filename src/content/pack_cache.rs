//! Parts of packs on the local disk, as many as a limit allows; losing any of it costs a request and nothing else.
//!
//! Each fetched range is a file of its own, named by pack and offset, so that the listing of the directory is the whole
//! index and a file cut short by a crash is found out by whoever verifies its frames. Whole packs that were staged here
//! stay where they are under such a name: moving them into the cache would write every byte twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;
use tracing::debug;

use crate::base::ids::PackId;
use crate::base::range::ByteRange;
use crate::base::range_set::RangeSet;
use crate::store::device::Directory;
use crate::store::{Kind, Result};

/// What a [`PackCache`] may take.
#[derive(Clone, Copy, Debug)]
pub struct PackCacheLimits {
    /// Most bytes of files.
    pub bytes_max: u64,
    /// Bytes of the disk that stay free: nothing is cached below it.
    pub free_bytes_min: u64,
}

/// See the module. Its calls block on local files.
pub struct PackCache {
    fetched: Arc<dyn Directory>,
    staged: Arc<dyn Directory>,
    limits: PackCacheLimits,
    state: Mutex<State>,
}

/// Names the file: the pack and the offset of its first byte.
type PartKey = (PackId, u64);

#[derive(Clone, Copy)]
struct Part {
    len: u64,
    /// In the staged directory, not in the one for fetched ranges.
    is_staged: bool,
}

struct State {
    /// Least recently used last. Unbounded by count: `bytes` bounds it.
    parts: LruCache<PartKey, Part>,
    /// Start to length, by pack: the same parts, to be found by range.
    by_pack: HashMap<PackId, BTreeMap<u64, u64>>,
    bytes: u64,
}

fn file_name((pack, start): PartKey) -> String {
    format!("{pack}.{start:x}")
}

fn parse_name(name: &str) -> Option<PartKey> {
    let (pack, start) = name.split_once('.')?;
    let key = (PackId::parse(pack)?, u64::from_str_radix(start, 16).ok()?);
    (file_name(key) == name).then_some(key)
}

impl PackCache {
    /// Takes over what the directories hold: `fetched` for ranges, which nobody else uses, and `staged`, where uploaded
    /// packs stay (the directory of the block store's staged packs). Files of other names are not touched.
    ///
    /// # Errors
    /// Of listing the directories.
    pub fn open(
        fetched: Arc<dyn Directory>,
        staged: Arc<dyn Directory>,
        limits: PackCacheLimits,
    ) -> Result<Self> {
        let mut state = State { parts: LruCache::unbounded(), by_pack: HashMap::new(), bytes: 0 };
        for (is_staged, directory) in [(false, &fetched), (true, &staged)] {
            let mut files = directory.list()?;
            // The order of use is forgotten; that of names is at least the same every time.
            files.sort_unstable();
            for (name, len) in files {
                if let Some(key) = parse_name(&name) {
                    state.insert(key, Part { len, is_staged });
                }
            }
        }
        let cache = Self { fetched, staged, limits, state: Mutex::new(state) };
        cache.evict(0);
        Ok(cache)
    }

    /// The bytes of `range`, unverified, if they are all here in one part. An error of the disk drops the part.
    #[must_use]
    pub fn read(&self, pack: PackId, range: ByteRange) -> Option<Bytes> {
        let (key, part) = self.state().find(pack, range)?;
        let mut buf = vec![0; usize::try_from(range.len()).ok()?];
        let read = || self.directory(part).open(&file_name(key))?.read_at(&mut buf, range.start - key.1);
        match ({ read })() {
            Ok(()) => Some(buf.into()),
            Err(error) => {
                debug!(%pack, ?range, %error, "drop unreadable cached part");
                self.remove(key);
                None
            }
        }
    }

    /// Keeps `bytes`, which are the pack's from `start`. Best effort.
    pub fn insert(&self, pack: PackId, start: u64, bytes: &Bytes) {
        let range = ByteRange::at(start, bytes.len() as u64);
        let key = (pack, start);
        if range.is_empty() || self.limits.bytes_max < range.len() || self.state().find(pack, range).is_some()
        {
            return;
        }
        self.remove_within(pack, range);
        self.evict(range.len());
        if !self.has_room(range.len()) {
            return;
        }
        let write = || self.fetched.create(&file_name(key))?.write_at(bytes, 0);
        match write() {
            Ok(()) => self.state().insert(key, Part { len: range.len(), is_staged: false }),
            // Somebody else is writing the same range.
            Err(error) if error.kind == Kind::Precondition => {}
            Err(error) => {
                debug!(%pack, ?range, %error, "cache part of pack");
                let _ = self.fetched.remove(&file_name(key));
            }
        }
    }

    /// Takes over the staged file of a whole pack; false if it did not, and the file is where it was.
    pub(super) fn adopt(&self, pack: PackId, staged_name: &str, len: u64) -> bool {
        let key = (pack, 0);
        if self.limits.bytes_max < len || self.staged.rename(staged_name, &file_name(key)).is_err() {
            return false;
        }
        self.remove_within(pack, ByteRange::at(0, len));
        self.state().insert(key, Part { len, is_staged: true });
        self.evict(0);
        true
    }

    /// The parts of `window` that are not here.
    #[must_use]
    pub fn gaps(&self, pack: PackId, window: ByteRange) -> RangeSet {
        let state = self.state();
        let parts = state.by_pack.get(&pack).into_iter().flatten();
        let present: RangeSet = parts.map(|(&start, &len)| ByteRange::at(start, len)).collect();
        present.gaps(window).collect()
    }

    /// Drops every part that shares a byte with `range`: it was not what it should be.
    pub fn drop_range(&self, pack: PackId, range: ByteRange) {
        self.remove_all(pack, |part| part.overlaps(&range));
    }

    /// Drops all of a pack.
    pub fn forget(&self, pack: PackId) {
        self.remove_all(pack, |_| true);
    }

    /// Bytes of files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.state().bytes
    }

    fn remove_within(&self, pack: PackId, range: ByteRange) {
        self.remove_all(pack, |part| range.contains_range(part));
    }

    fn remove_all(&self, pack: PackId, matches: impl Fn(&ByteRange) -> bool) {
        let parts = self.state().by_pack.get(&pack).cloned().unwrap_or_default();
        for (start, len) in parts {
            if matches(&ByteRange::at(start, len)) {
                self.remove((pack, start));
            }
        }
    }

    fn remove(&self, key: PartKey) {
        let removed = self.state().remove(key);
        if let Some(part) = removed {
            self.delete(key, part);
        }
    }

    /// Makes room for `more` bytes, from the least recently used.
    fn evict(&self, more: u64) {
        loop {
            let mut state = self.state();
            if state.bytes.saturating_add(more) <= self.limits.bytes_max {
                return;
            }
            let Some((&key, _)) = state.parts.peek_lru() else { return };
            let Some(part) = state.remove(key) else { return };
            drop(state);
            self.delete(key, part);
        }
    }

    /// A part that cannot be deleted is found again by the next start.
    fn delete(&self, key: PartKey, part: Part) {
        if let Err(error) = self.directory(part).remove(&file_name(key)) {
            debug!(pack = %key.0, start = key.1, %error, "remove cached part");
        }
    }

    /// False if the disk is too full; then something of the cache goes instead.
    fn has_room(&self, bytes: u64) -> bool {
        let needed = self.limits.free_bytes_min.saturating_add(bytes);
        if self.fetched.free_bytes().is_ok_and(|free| needed <= free) {
            return true;
        }
        let keep = self.used_bytes().saturating_sub(bytes);
        self.evict(self.limits.bytes_max.saturating_sub(keep));
        false
    }

    fn directory(&self, part: Part) -> &dyn Directory {
        if part.is_staged { &*self.staged } else { &*self.fetched }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, key: PartKey, part: Part) {
        self.remove(key);
        self.bytes += part.len;
        self.by_pack.entry(key.0).or_default().insert(key.1, part.len);
        self.parts.put(key, part);
    }

    fn remove(&mut self, key: PartKey) -> Option<Part> {
        let part = self.parts.pop(&key)?;
        self.bytes -= part.len;
        if let Some(starts) = self.by_pack.get_mut(&key.0) {
            starts.remove(&key.1);
            if starts.is_empty() {
                self.by_pack.remove(&key.0);
            }
        }
        Some(part)
    }

    /// A part that holds all of `range`, now the most recently used.
    fn find(&mut self, pack: PackId, range: ByteRange) -> Option<(PartKey, Part)> {
        let starts = self.by_pack.get(&pack)?;
        let holds = |(start, len): &(&u64, &u64)| ByteRange::at(**start, **len).contains_range(&range);
        let (&start, _) = starts.range(..=range.start).rev().find(holds)?;
        let key = (pack, start);
        self.parts.get(&key).map(|part| (key, *part))
    }
}
