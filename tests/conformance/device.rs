//! `Device` and `Directory`: one check per line of their contracts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use gravitonfs::backend::local::LocalDirectory;
use gravitonfs::backend::memory_device::MemoryDirectory;
use gravitonfs::rt::SeededRandom;
use gravitonfs::store::device::{Device, Directory};
use gravitonfs::store::{Error, Kind, Result};

const DISK_BYTES: u64 = 1 << 20;

/// A directory under test and what can happen to it.
trait Fixture {
    fn directory(&self) -> Arc<dyn Directory>;

    /// Loses power; devices opened before are gone. False if that cannot be done to it.
    fn crash(&self) -> bool {
        false
    }

    /// True if its disk has room for `DISK_BYTES` only.
    fn is_small(&self) -> bool {
        false
    }
}

type Check = fn(&dyn Fixture);

const CHECKS: &[(Check, Fault)] = &[
    (what_is_written_is_read, Fault::LosesOffset),
    (reading_past_the_end_is_corrupt, Fault::ShortReadsAreZeros),
    (writing_past_the_end_leaves_zeros, Fault::GapsAreNoise),
    (cutting_and_extending_leaves_zeros, Fault::CutBytesComeBack),
    (reserving_keeps_the_length, Fault::ReserveExtends),
    (a_disk_without_room_is_full, Fault::FullIsInternal),
    (synced_data_survive_a_crash, Fault::DataSyncDoesNothing),
    (create_refuses_an_existing_name, Fault::CreateReplaces),
    (open_refuses_a_missing_name, Fault::OpenCreates),
    (devices_of_one_file_share_it, Fault::OpenCopies),
    (removing_twice_is_success, Fault::RemoveNeedsTheFile),
    (a_removed_file_stays_usable_while_open, Fault::RemoveCutsOff),
    (renaming_replaces_and_moves, Fault::RenameKeepsTheOldName),
    (the_list_has_names_and_lengths, Fault::ListForgetsLengths),
    (synced_names_survive_a_crash, Fault::NameSyncDoesNothing),
    (names_are_plain, Fault::AnyName),
    (free_room_is_known, Fault::NoFreeRoom),
];

fn kind<T>(outcome: Result<T>) -> Option<Kind> {
    outcome.err().map(|error| error.kind)
}

fn content(device: &dyn Device) -> Vec<u8> {
    let len = usize::try_from(device.len().expect("len")).expect("small");
    let mut data = vec![0; len];
    device.read_at(&mut data, 0).expect("read");
    data
}

fn file(directory: &dyn Directory, name: &str, data: &[u8]) -> Arc<dyn Device> {
    let device = directory.create(name).expect("create");
    device.write_at(data, 0).expect("write");
    device
}

fn listed(directory: &dyn Directory) -> Vec<(String, u64)> {
    let mut files = directory.list().expect("list");
    files.sort();
    files
}

fn what_is_written_is_read(fixture: &dyn Fixture) {
    let device = file(&*fixture.directory(), "f", b"0123456789");
    device.write_at(b"ab", 4).expect("write");
    device.write_at(b"", 100).expect("write nothing");
    assert_eq!(content(&*device), b"0123ab6789");
    let mut part = [0; 3];
    device.read_at(&mut part, 5).expect("read");
    assert_eq!(&part, b"b67");
}

fn reading_past_the_end_is_corrupt(fixture: &dyn Fixture) {
    let device = file(&*fixture.directory(), "f", b"0123");
    for (len, offset) in [(5, 0), (1, 4), (2, 3), (1, 1 << 40)] {
        assert_eq!(kind(device.read_at(&mut vec![0; len], offset)), Some(Kind::Corrupt));
    }
    device.read_at(&mut [], 4).expect("nothing is there");
}

fn writing_past_the_end_leaves_zeros(fixture: &dyn Fixture) {
    let device = file(&*fixture.directory(), "f", b"ab");
    device.write_at(b"cd", 5).expect("write");
    assert_eq!(content(&*device), b"ab\0\0\0cd");
}

fn cutting_and_extending_leaves_zeros(fixture: &dyn Fixture) {
    let device = file(&*fixture.directory(), "f", b"0123456789");
    device.set_len(3).expect("cut");
    assert_eq!(content(&*device), b"012");
    device.set_len(6).expect("extend");
    assert_eq!(content(&*device), b"012\0\0\0");
}

fn reserving_keeps_the_length(fixture: &dyn Fixture) {
    let device = file(&*fixture.directory(), "f", b"ab");
    for len in [0, 1, 100_000] {
        device.reserve(len).expect("reserve");
        assert_eq!(content(&*device), b"ab");
    }
    device.write_at(b"x", 99_999).expect("reserved");
}

fn a_disk_without_room_is_full(fixture: &dyn Fixture) {
    if !fixture.is_small() {
        return;
    }
    let device = file(&*fixture.directory(), "f", &[1; 1000]);
    assert_eq!(kind(device.reserve(DISK_BYTES + 1)), Some(Kind::Full));
    let big = vec![1; usize::try_from(DISK_BYTES).expect("small")];
    assert_eq!(kind(device.write_at(&big, 1000)), Some(Kind::Full));
    device.write_at(&[2; 1000], 0).expect("overwriting needs no room");
}

fn synced_data_survive_a_crash(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    let device = file(&*directory, "f", &[7; 5000]);
    directory.sync().expect("sync names");
    device.set_len(4500).expect("cut");
    device.sync().expect("sync data");
    if fixture.crash() {
        let device = fixture.directory().open("f").expect("open");
        assert_eq!(content(&*device), [7; 4500]);
    }
}

fn create_refuses_an_existing_name(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    let device = file(&*directory, "f", b"old");
    assert_eq!(kind(directory.create("f")), Some(Kind::Precondition));
    assert_eq!(content(&*device), b"old");
    assert_eq!(content(&*directory.open("f").expect("open")), b"old");
}

fn open_refuses_a_missing_name(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    assert_eq!(kind(directory.open("f")), Some(Kind::NotFound));
    assert_eq!(listed(&*directory), []);
}

fn devices_of_one_file_share_it(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    let first = file(&*directory, "f", b"old");
    let second = directory.open("f").expect("open");
    second.write_at(b"new", 0).expect("write");
    assert_eq!(content(&*first), b"new");
}

fn removing_twice_is_success(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    file(&*directory, "f", b"data");
    directory.remove("f").expect("remove");
    directory.remove("f").expect("remove again");
    assert_eq!(kind(directory.open("f")), Some(Kind::NotFound));
}

fn a_removed_file_stays_usable_while_open(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    let device = file(&*directory, "f", b"old");
    directory.remove("f").expect("remove");
    device.write_at(b"new", 1).expect("write");
    file(&*directory, "f", b"another");
    assert_eq!(content(&*device), b"onew");
}

fn renaming_replaces_and_moves(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    file(&*directory, "f", b"old");
    let device = file(&*directory, "f.tmp", b"newer");
    directory.rename("f.tmp", "f").expect("rename");
    assert_eq!(listed(&*directory), [("f".to_owned(), 5)]);
    device.write_at(b"N", 0).expect("write");
    assert_eq!(content(&*directory.open("f").expect("open")), b"Newer");
    assert_eq!(kind(directory.rename("gone", "f")), Some(Kind::NotFound));
    assert_eq!(listed(&*directory), [("f".to_owned(), 5)]);
}

fn the_list_has_names_and_lengths(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    assert_eq!(listed(&*directory), []);
    for len in 0..20 {
        file(&*directory, &format!("f{len:02}"), &vec![1; len]);
    }
    let expected: Vec<_> = (0..20).map(|len| (format!("f{len:02}"), len)).collect();
    assert_eq!(listed(&*directory), expected);
}

fn synced_names_survive_a_crash(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    for name in ["removed", "from", "kept"] {
        file(&*directory, name, b"data").sync().expect("sync data");
    }
    directory.sync().expect("sync names");
    directory.remove("removed").expect("remove");
    directory.rename("from", "to").expect("rename");
    file(&*directory, "created", b"data").sync().expect("sync data");
    directory.sync().expect("sync names");
    if fixture.crash() {
        assert_eq!(listed(&*fixture.directory()), ["created", "kept", "to"].map(|name| (name.to_owned(), 4)));
    }
}

fn names_are_plain(fixture: &dyn Fixture) {
    let directory = fixture.directory();
    for name in ["", ".", "..", "a/b", "../f", "/f", "a\0"] {
        assert_eq!(kind(directory.create(name)), Some(Kind::Internal), "{name:?}");
    }
}

fn free_room_is_known(fixture: &dyn Fixture) {
    assert!(fixture.directory().free_bytes().expect("free bytes") > 0);
}

struct Memory {
    directory: MemoryDirectory,
    random: SeededRandom,
    fault: Fault,
}

impl Memory {
    fn new(seed: u64, fault: Fault) -> Self {
        let directory = MemoryDirectory::with_capacity(DISK_BYTES);
        Self { directory, random: SeededRandom::new(seed), fault }
    }
}

impl Fixture for Memory {
    fn directory(&self) -> Arc<dyn Directory> {
        match self.fault {
            Fault::None => Arc::new(self.directory.clone()),
            fault => Arc::new(FaultyDirectory { inner: self.directory.clone(), fault }),
        }
    }

    fn crash(&self) -> bool {
        self.directory.crash(&self.random);
        true
    }

    fn is_small(&self) -> bool {
        true
    }
}

struct Local(tempfile::TempDir);

impl Fixture for Local {
    fn directory(&self) -> Arc<dyn Directory> {
        Arc::new(LocalDirectory::open_or_create(&self.0.path().join("d")).expect("creatable"))
    }
}

#[test]
fn memory_keeps_the_contract_through_power_cuts() {
    for seed in 0..50 {
        CHECKS.iter().for_each(|(check, _)| check(&Memory::new(seed, Fault::None)));
    }
}

#[test]
fn local_files_keep_the_contract() {
    CHECKS.iter().for_each(|(check, _)| check(&Local(tempfile::tempdir().expect("temporary directory"))));
}

/// What a broken directory or its devices do wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    LosesOffset,
    ShortReadsAreZeros,
    GapsAreNoise,
    CutBytesComeBack,
    ReserveExtends,
    FullIsInternal,
    DataSyncDoesNothing,
    CreateReplaces,
    OpenCreates,
    OpenCopies,
    RemoveNeedsTheFile,
    RemoveCutsOff,
    RenameKeepsTheOldName,
    ListForgetsLengths,
    NameSyncDoesNothing,
    AnyName,
    NoFreeRoom,
}

struct FaultyDirectory {
    inner: MemoryDirectory,
    fault: Fault,
}

impl FaultyDirectory {
    fn device(&self, inner: Arc<dyn Device>) -> Arc<dyn Device> {
        Arc::new(FaultyDevice { inner, fault: self.fault })
    }

    fn copy(&self, from: &str, to: &str) -> Result<Arc<dyn Device>> {
        let data = content(&*self.inner.open(from)?);
        let copy = self.inner.create(to)?;
        copy.write_at(&data, 0)?;
        Ok(copy)
    }
}

impl Directory for FaultyDirectory {
    fn create(&self, name: &str) -> Result<Arc<dyn Device>> {
        match self.fault {
            Fault::CreateReplaces => self.inner.remove(name)?,
            Fault::AnyName => return self.inner.create("any"),
            _ => {}
        }
        Ok(self.device(self.inner.create(name)?))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        match self.fault {
            Fault::OpenCreates => self.inner.open(name).or_else(|_| self.inner.create(name)),
            Fault::OpenCopies => self.copy(name, &format!("{name}.copy")),
            _ => Ok(self.device(self.inner.open(name)?)),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        match self.fault {
            Fault::RemoveNeedsTheFile => drop(self.inner.open(name)?),
            Fault::RemoveCutsOff => self.inner.open(name)?.set_len(0)?,
            _ => {}
        }
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        if self.fault == Fault::RenameKeepsTheOldName {
            self.inner.remove(to)?;
            return self.copy(from, to).map(drop);
        }
        self.inner.rename(from, to)
    }

    fn list(&self) -> Result<Vec<(String, u64)>> {
        let mut files = self.inner.list()?;
        if self.fault == Fault::ListForgetsLengths {
            files.iter_mut().for_each(|(_, len)| *len = 0);
        }
        Ok(files)
    }

    fn sync(&self) -> Result<()> {
        if self.fault == Fault::NameSyncDoesNothing { Ok(()) } else { self.inner.sync() }
    }

    fn free_bytes(&self) -> Result<u64> {
        if self.fault == Fault::NoFreeRoom { Ok(0) } else { self.inner.free_bytes() }
    }
}

struct FaultyDevice {
    inner: Arc<dyn Device>,
    fault: Fault,
}

impl Device for FaultyDevice {
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let outcome = self.inner.read_at(buf, offset);
        if self.fault == Fault::ShortReadsAreZeros { Ok(()) } else { outcome }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let (offset, len) = (if self.fault == Fault::LosesOffset { 0 } else { offset }, self.inner.len()?);
        if self.fault == Fault::GapsAreNoise && offset > len {
            self.inner.write_at(b"?", len)?;
        }
        let outcome = self.inner.write_at(data, offset);
        match self.fault {
            Fault::FullIsInternal => outcome.map_err(|error| Error::new(Kind::Internal, error.detail)),
            _ => outcome,
        }
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let extends = len > self.inner.len()?;
        self.inner.set_len(len)?;
        if self.fault == Fault::CutBytesComeBack && extends { self.inner.write_at(b"3", 3) } else { Ok(()) }
    }

    fn reserve(&self, len: u64) -> Result<()> {
        if self.fault == Fault::ReserveExtends && len > self.inner.len()? {
            return self.inner.set_len(len);
        }
        self.inner.reserve(len)
    }

    fn sync(&self) -> Result<()> {
        if self.fault == Fault::DataSyncDoesNothing { Ok(()) } else { self.inner.sync() }
    }
}

#[test]
fn every_check_finds_its_fault_and_only_faults() {
    for (check, fault) in CHECKS {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // What a power cut keeps by luck differs from seed to seed.
            (0..20).for_each(|seed| check(&Memory::new(seed, *fault)));
        }));
        assert!(outcome.is_err(), "no check noticed {fault:?}");
    }
}
