//! A disk in memory that can lose power: what was not synced is then kept, dropped or torn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::time::Random;
use crate::store::device::{Device, Directory};
use crate::store::{Error, Kind, Result};

/// The unit a disk writes whole; a torn write is torn between two of these.
const SECTOR_BYTES: u64 = 512;

/// One directory of files. Clones share it.
#[derive(Clone)]
pub struct MemoryDirectory {
    disk: Arc<Mutex<Disk>>,
}

struct Disk {
    capacity_bytes: u64,
    files: BTreeMap<FileId, FileState>,
    next_id: FileId,
    /// The names as the process sees them, and as the last sync of the directory left them.
    names: BTreeMap<String, FileId>,
    synced_names: BTreeMap<String, FileId>,
    /// Changes of names since, in order.
    unsynced: Vec<NameChange>,
    /// Power cuts so far: a device opened before the last one belongs to a process that is gone.
    crashes: u64,
}

type FileId = u64;

#[derive(Default)]
struct FileState {
    data: Vec<u8>,
    /// What a power cut would keep for certain.
    synced: Vec<u8>,
    /// Changes of the data since, in order.
    unsynced: Vec<DataChange>,
    reserved_bytes: u64,
    /// How many devices are open on it; a file without name lives until the last one closes.
    open: usize,
}

enum DataChange {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

enum NameChange {
    Create { name: String, id: FileId },
    Remove { name: String },
    Rename { from: String, to: String, id: FileId },
}

impl MemoryDirectory {
    /// An empty directory on a disk without end.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(u64::MAX)
    }

    /// An empty directory on a disk of `capacity_bytes`.
    #[must_use]
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        let disk = Disk {
            capacity_bytes,
            files: BTreeMap::new(),
            next_id: 0,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            unsynced: Vec::new(),
            crashes: 0,
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power. Of the unsynced changes each may survive or not, independently of the others: writes in pieces
    /// of a sector, changes of length and of names whole. Devices opened before fail from now on.
    pub fn crash(&self, random: &dyn Random) {
        let mut disk = self.lock();
        disk.crashes += 1;
        for file in disk.files.values_mut() {
            file.crash(random);
        }
        disk.crash_names(random);
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self, disk: &mut Disk, id: FileId) -> Arc<dyn Device> {
        disk.file_mut(id).open += 1;
        Arc::new(MemoryDevice { directory: self.clone(), id, crashes: disk.crashes })
    }
}

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory for MemoryDirectory {
    fn create(&self, name: &str) -> Result<Arc<dyn Device>> {
        let mut disk = self.lock();
        check_name(name)?;
        if disk.names.contains_key(name) {
            return Err(Error::new(Kind::Precondition, format!("create {name}: it exists")));
        }
        let id = disk.next_id;
        disk.next_id += 1;
        disk.files.insert(id, FileState::default());
        disk.names.insert(name.to_owned(), id);
        disk.unsynced.push(NameChange::Create { name: name.to_owned(), id });
        Ok(self.device(&mut disk, id))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        let mut disk = self.lock();
        check_name(name)?;
        let id = disk.names.get(name).copied();
        let id = id.ok_or_else(|| Error::new(Kind::NotFound, format!("open {name}: no such file")))?;
        Ok(self.device(&mut disk, id))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut disk = self.lock();
        check_name(name)?;
        if let Some(id) = disk.names.remove(name) {
            disk.unsynced.push(NameChange::Remove { name: name.to_owned() });
            disk.forget_unless_used(id);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut disk = self.lock();
        check_name(from)?;
        check_name(to)?;
        let id = disk.names.get(from).copied();
        let id = id.ok_or_else(|| Error::new(Kind::NotFound, format!("rename {from}: no such file")))?;
        if from == to {
            return Ok(());
        }
        disk.names.remove(from);
        let replaced = disk.names.insert(to.to_owned(), id);
        disk.unsynced.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), id });
        replaced.into_iter().for_each(|id| disk.forget_unless_used(id));
        Ok(())
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        let disk = self.lock();
        Ok(disk.names.iter().map(|(name, id)| (name.clone(), len_of(&disk.files[id].data))).collect())
    }

    fn sync(&self) -> Result<()> {
        let mut disk = self.lock();
        disk.synced_names = disk.names.clone();
        disk.unsynced.clear();
        disk.forget_unused();
        Ok(())
    }

    fn free_bytes(&self) -> Result<u64> {
        let disk = self.lock();
        Ok(disk.capacity_bytes.saturating_sub(disk.used_bytes()))
    }
}

fn check_name(name: &str) -> Result<()> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(Error::new(Kind::Internal, format!("not a file name: {name:?}")));
    }
    Ok(())
}

fn len_of(data: &[u8]) -> u64 {
    data.len() as u64
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).expect("64-bit machines only")
}

impl Disk {
    fn file_mut(&mut self, id: FileId) -> &mut FileState {
        self.files.get_mut(&id).expect("a file lives as long as a name or a device of it")
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(FileState::used_bytes).sum()
    }

    /// Lets a file without name and device go, unless a power cut could bring its name back.
    fn forget_unless_used(&mut self, id: FileId) {
        let named = |names: &BTreeMap<String, FileId>| names.values().any(|&named| named == id);
        let changing = self.unsynced.iter().any(|change| change.names() == Some(id));
        let open = self.files.get(&id).is_some_and(|file| file.open > 0);
        if !open && !changing && !named(&self.names) && !named(&self.synced_names) {
            self.files.remove(&id);
        }
    }

    fn forget_unused(&mut self) {
        for id in self.files.keys().copied().collect::<Vec<_>>() {
            self.forget_unless_used(id);
        }
    }

    /// Names a change at a time, as a filesystem without ordering would: the weakest that any promises.
    fn crash_names(&mut self, random: &dyn Random) {
        let mut names = std::mem::take(&mut self.synced_names);
        for change in std::mem::take(&mut self.unsynced) {
            if random.next_u64().is_multiple_of(2) {
                change.apply(&mut names);
            }
        }
        self.synced_names = names.clone();
        self.names = names;
        self.forget_unused();
    }
}

impl NameChange {
    /// The file that the change gives a name to.
    fn names(&self) -> Option<FileId> {
        match self {
            Self::Create { id, .. } | Self::Rename { id, .. } => Some(*id),
            Self::Remove { .. } => None,
        }
    }

    fn apply(self, names: &mut BTreeMap<String, FileId>) {
        // A file has one name: a change that was lost in between must not leave it with two.
        if let Some(id) = self.names() {
            names.retain(|_, named| *named != id);
        }
        match self {
            Self::Create { name, id } => {
                names.insert(name, id);
            }
            Self::Remove { name } => {
                names.remove(&name);
            }
            Self::Rename { from, to, id } => {
                names.remove(&from);
                names.insert(to, id);
            }
        }
    }
}

impl FileState {
    fn used_bytes(&self) -> u64 {
        len_of(&self.data).max(self.reserved_bytes)
    }

    fn change(&mut self, change: DataChange) {
        change.apply(&mut self.data);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    fn crash(&mut self, random: &dyn Random) {
        for change in self.unsynced.drain(..) {
            change.apply_in_part(&mut self.synced, random);
        }
        self.data.clone_from(&self.synced);
        self.reserved_bytes = len_of(&self.data);
        self.open = 0;
    }
}

impl DataChange {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data: written } => write(data, *offset, written),
            Self::SetLen(len) => data.resize(to_usize(*len), 0),
        }
    }

    fn apply_in_part(&self, data: &mut Vec<u8>, random: &dyn Random) {
        let Self::Write { offset, data: written } = self else {
            if random.next_u64().is_multiple_of(2) {
                self.apply(data);
            }
            return;
        };
        let fate = random.next_u64();
        match fate % 4 {
            0 => {}
            1 => self.apply(data),
            // The length reached the disk, the bytes did not.
            2 => {
                let end = to_usize(*offset) + written.len();
                data.resize(data.len().max(end), 0);
            }
            _ => {
                let mut at = 0;
                while at < written.len() {
                    let in_sector = (offset + at as u64) % SECTOR_BYTES;
                    let end = written.len().min(at + to_usize(SECTOR_BYTES - in_sector));
                    if random.next_u64().is_multiple_of(2) {
                        write(data, offset + at as u64, &written[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn write(data: &mut Vec<u8>, offset: u64, written: &[u8]) {
    let start = to_usize(offset);
    let end = start + written.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[start..end].copy_from_slice(written);
}

/// One open file.
struct MemoryDevice {
    directory: MemoryDirectory,
    id: FileId,
    /// How many power cuts there had been when it was opened.
    crashes: u64,
}

impl MemoryDevice {
    /// The disk, if this device is still of it.
    fn disk(&self) -> Result<MutexGuard<'_, Disk>> {
        let disk = self.directory.lock();
        if disk.crashes != self.crashes {
            return Err(Error::new(Kind::Internal, "device was opened before the power cut"));
        }
        Ok(disk)
    }

    /// Makes `change`, which leaves the file at `len` bytes, if the disk has room.
    fn change(&self, len: u64, change: DataChange) -> Result<()> {
        let mut disk = self.disk()?;
        let used = disk.file_mut(self.id).used_bytes();
        disk.check_room(len.saturating_sub(used))?;
        disk.file_mut(self.id).change(change);
        Ok(())
    }
}

impl Disk {
    fn check_room(&self, more_bytes: u64) -> Result<()> {
        if more_bytes > self.capacity_bytes.saturating_sub(self.used_bytes()) {
            return Err(Error::new(Kind::Full, format!("disk full: capacity={}", self.capacity_bytes)));
        }
        Ok(())
    }
}

impl Device for MemoryDevice {
    fn len(&self) -> Result<u64> {
        Ok(len_of(&self.disk()?.file_mut(self.id).data))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut disk = self.disk()?;
        let data = &disk.file_mut(self.id).data;
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| data.get(start..start.checked_add(buf.len())?));
        let part = part.ok_or_else(|| {
            let (len, size) = (buf.len(), data.len());
            Error::new(Kind::Corrupt, format!("read beyond the end: offset={offset} len={len} size={size}"))
        })?;
        buf.copy_from_slice(part);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64);
        let end =
            end.ok_or_else(|| Error::new(Kind::Full, format!("write at offset={offset}: file too large")))?;
        self.change(end, DataChange::Write { offset, data: data.to_vec() })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(len, DataChange::SetLen(len))
    }

    fn reserve(&self, len: u64) -> Result<()> {
        let mut disk = self.disk()?;
        let used = disk.file_mut(self.id).used_bytes();
        disk.check_room(len.saturating_sub(used))?;
        let file = disk.file_mut(self.id);
        file.reserved_bytes = file.reserved_bytes.max(len);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.disk()?.file_mut(self.id).sync();
        Ok(())
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        let mut disk = self.directory.lock();
        if disk.crashes == self.crashes {
            disk.file_mut(self.id).open -= 1;
            disk.forget_unless_used(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rt::SeededRandom;

    const SEEDS: u64 = 200;

    /// The content of `name` after each of many power cuts that follow `prepare`; None where it is gone.
    fn outcomes(name: &str, prepare: impl Fn(&MemoryDirectory)) -> BTreeSet<Option<Vec<u8>>> {
        let outcome = |seed| {
            let directory = MemoryDirectory::new();
            prepare(&directory);
            directory.crash(&SeededRandom::new(seed));
            let device = directory.open(name).ok()?;
            let mut data = vec![0; to_usize(device.len().expect("readable"))];
            device.read_at(&mut data, 0).expect("readable");
            Some(data)
        };
        (0..SEEDS).map(outcome).collect()
    }

    fn synced_file(directory: &MemoryDirectory, name: &str, data: &[u8]) -> Arc<dyn Device> {
        let device = directory.create(name).expect("new");
        device.write_at(data, 0).expect("room");
        device.sync().expect("syncs");
        directory.sync().expect("syncs");
        device
    }

    #[test]
    fn what_was_synced_survives_every_power_cut() {
        let found = outcomes("f", |directory| {
            synced_file(directory, "f", b"data");
        });
        assert_eq!(found, BTreeSet::from([Some(b"data".to_vec())]));
    }

    #[test]
    fn a_synced_file_in_an_unsynced_directory_may_be_gone() {
        let found = outcomes("f", |directory| {
            let device = directory.create("f").expect("new");
            device.write_at(b"data", 0).expect("room");
            device.sync().expect("syncs");
        });
        assert_eq!(found, BTreeSet::from([None, Some(b"data".to_vec())]));
    }

    #[test]
    fn an_unsynced_write_is_kept_dropped_or_torn_between_sectors() {
        let (old, new) = (vec![b'o'; 1024], vec![b'n'; 1024]);
        let found = outcomes("f", |directory| {
            let device = synced_file(directory, "f", &old);
            device.write_at(&new, 0).expect("room");
        });
        let half = |first: &[u8], second: &[u8]| Some([&first[..512], &second[..512]].concat());
        let expected = [half(&old, &old), half(&old, &new), half(&new, &old), half(&new, &new)];
        assert_eq!(found, BTreeSet::from(expected));
    }

    #[test]
    fn an_unsynced_append_may_leave_zeros() {
        let found = outcomes("f", |directory| {
            let device = synced_file(directory, "f", b"old");
            device.write_at(b"new", 3).expect("room");
        });
        let expected = [b"old".to_vec(), b"oldnew".to_vec(), b"old\0\0\0".to_vec()];
        assert_eq!(found, expected.map(Some).into());
    }

    #[test]
    fn later_writes_may_survive_without_earlier_ones() {
        let found = outcomes("f", |directory| {
            let device = synced_file(directory, "f", b"..");
            device.write_at(b"1", 0).expect("room");
            device.write_at(b"2", 1).expect("room");
        });
        let expected = [b"..", b"1.", b".2", b"12"];
        assert_eq!(found, expected.map(|data| Some(data.to_vec())).into());
    }

    #[test]
    fn an_unsynced_cut_may_be_undone_and_one_synced_is_not() {
        let cut = |directory: &MemoryDirectory, sync: bool| {
            let device = synced_file(directory, "f", b"long");
            device.set_len(2).expect("room");
            if sync {
                device.sync().expect("syncs");
            }
        };
        let long_or_short = [b"long".to_vec(), b"lo".to_vec()].map(Some);
        assert_eq!(outcomes("f", |directory| cut(directory, false)), long_or_short.into());
        assert_eq!(outcomes("f", |directory| cut(directory, true)), BTreeSet::from([Some(b"lo".to_vec())]));
    }

    #[test]
    fn an_unsynced_rename_leaves_the_old_or_the_new_file_and_never_none() {
        let replace = |directory: &MemoryDirectory| {
            synced_file(directory, "f", b"old");
            synced_file(directory, "f.tmp", b"new");
            directory.rename("f.tmp", "f").expect("both exist");
        };
        assert_eq!(outcomes("f", replace), [b"old".to_vec(), b"new".to_vec()].map(Some).into());
        assert_eq!(outcomes("f.tmp", replace), [None, Some(b"new".to_vec())].into());
    }

    #[test]
    fn an_unsynced_removal_may_be_undone() {
        let found = outcomes("f", |directory| {
            synced_file(directory, "f", b"data");
            directory.remove("f").expect("exists");
        });
        assert_eq!(found, [None, Some(b"data".to_vec())].into());
    }

    #[test]
    fn a_power_cut_ends_open_devices() {
        let directory = MemoryDirectory::new();
        let device = synced_file(&directory, "f", b"data");
        directory.crash(&SeededRandom::new(1));
        assert_eq!(device.write_at(b"late", 0).map_err(|error| error.kind), Err(Kind::Internal));
        drop(device);
        assert_eq!(directory.list().expect("listable"), [("f".to_owned(), 4)]);
    }

    #[test]
    fn a_seed_repeats_its_power_cut() {
        let run = |seed| {
            let directory = MemoryDirectory::new();
            let device = synced_file(&directory, "f", &[0; 8192]);
            (0..100).for_each(|n| device.write_at(&[n; 700], u64::from(n) * 70).expect("room"));
            directory.crash(&SeededRandom::new(seed));
            let device = directory.open("f").expect("synced");
            let mut data = vec![0; to_usize(device.len().expect("readable"))];
            device.read_at(&mut data, 0).expect("readable");
            data
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn removed_files_give_their_room_back_when_nobody_can_see_them() {
        let directory = MemoryDirectory::with_capacity(100);
        let device = synced_file(&directory, "f", &[1; 60]);
        directory.remove("f").expect("exists");
        assert_eq!(directory.free_bytes().expect("known"), 40, "open, and a power cut could bring it back");
        drop(device);
        directory.sync().expect("syncs");
        assert_eq!(directory.free_bytes().expect("known"), 100);
    }
}
