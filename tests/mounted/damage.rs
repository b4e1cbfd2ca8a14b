//! A store that lost or damaged something, and a disk that is full: errors where the data are gone, and nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::command::script;
use crate::mount::{Backend, SmallDisk, Volume, on_each_backend};
use crate::s3::{Action, Fault};
use crate::tree::{MIB, Noise, digest, write_noise};

on_each_backend! {
    a_flipped_bit_in_a_pack_is_an_error_for_its_block_only within 180 s,
    a_deleted_pack_is_an_error_and_never_zeros within 180 s,
    a_full_disk_refuses_writes_and_loses_none within 300 s,
}

const LEN: usize = 24 * MIB;
/// As the kernel caches files.
const PAGE: usize = 4096;
/// The longest block, and the two pages that it shares with its neighbours.
const DAMAGE_BYTES_MAX: usize = MIB + 2 * PAGE;

/// Little more than the mount leaves free for its metadata and log.
const STATE_DISK_MEGABYTES: u64 = 640;

/// A volume with one file of many blocks and several small ones in its packs, and nothing local.
fn prepare(volume: &Volume) -> Vec<u8> {
    volume.mount();
    write_noise(&volume.path("victim"), b"", 7, LEN);
    volume.umount();
    volume.mount();
    fs::write(volume.path("bystander"), Noise::new(8).take(MIB)).expect("write");
    volume.umount();
    volume.wipe_local();
    Noise::new(7).take(LEN)
}

/// The largest pack: it holds blocks of the victim only.
fn largest_pack(volume: &Volume) -> (String, u64) {
    let packs = volume.objects().into_iter().filter(|(key, _)| key.starts_with("packs/"));
    packs.max_by_key(|(_, len)| *len).expect("there is a pack")
}

/// Reads the file page by page. Asserts that what can be read is right; returns the indices of pages that cannot.
fn unreadable_pages(path: &Path, expected: &[u8]) -> Vec<usize> {
    let file = File::open(path).expect("open");
    assert_eq!(file.metadata().expect("stat").len(), expected.len() as u64);
    let mut bad = Vec::new();
    let mut page = vec![0; PAGE];
    for (index, right) in expected.chunks(PAGE).enumerate() {
        match file.read_exact_at(&mut page[..right.len()], (index * PAGE) as u64) {
            Ok(()) => assert!(page[..right.len()] == *right, "wrong bytes in page {index}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                bad.push(index);
            }
        }
    }
    bad
}

fn a_flipped_bit_in_a_pack_is_an_error_for_its_block_only(volume: &Volume) {
    let expected = prepare(volume);
    let (key, len) = largest_pack(volume);
    let mut body = volume.read_object(&key);
    body[usize::try_from(len / 2).expect("small")] ^= 1;
    volume.write_object(&key, body);

    volume.expect_complaints(&["blake3:", pack_name(&key)]);
    volume.mount();
    let bad = unreadable_pages(&volume.path("victim"), &expected);
    let (first, last) = (bad.first().expect("the damage is noticed"), bad.last().expect("not empty"));
    assert_eq!(last - first + 1, bad.len(), "one range: {bad:?}");
    assert!(bad.len() * PAGE <= DAMAGE_BYTES_MAX, "one block: {} pages", bad.len());
    let bystander = fs::read(volume.path("bystander")).expect("other files are well");
    assert!(bystander == Noise::new(8).take(MIB));
    let log = volume.log();
    let names_both = |line: &str| line.contains("blake3:") && line.contains(pack_name(&key));
    assert!(log.lines().any(names_both), "the log names block and pack {key}:\n{log}");
}

/// The part of the key that identifies the pack.
fn pack_name(key: &str) -> &str {
    key.rsplit('/').next().expect("split yields one part at least")
}

fn a_deleted_pack_is_an_error_and_never_zeros(volume: &Volume) {
    let expected = prepare(volume);
    let (key, _) = largest_pack(volume);
    volume.delete_object(&key);
    volume.expect_complaints(&["blake3:", pack_name(&key)]);
    volume.mount();
    let bad = unreadable_pages(&volume.path("victim"), &expected);
    assert!(!bad.is_empty(), "the loss is noticed");
    assert!(bad.len() < LEN / PAGE, "what is in other packs is there");
    let bystander = fs::read(volume.path("bystander")).expect("other files are well");
    assert!(bystander == Noise::new(8).take(MIB));
    // What is new has nothing to do with what is lost.
    let other = write_noise(&volume.path("other"), b"", 10, LEN);
    volume.sync();
    assert_eq!(digest(&volume.path("other")), other);
}

fn a_full_disk_refuses_writes_and_loses_none(volume: &Volume) {
    let state_disk = SmallDisk::mount(&volume.state_dir(), STATE_DISK_MEGABYTES);
    let store_disk = (volume.backend == Backend::File).then(|| SmallDisk::mount(&volume.store_dir(), 16));
    volume.expect_complaints(&["ull", "pace", "vailable", "upload", "retry"]);
    volume.mount();
    fs::write(volume.path("early"), "early").expect("write");
    volume.sync();
    if let Some(server) = &volume.server {
        server.faults().add(Fault::on("put", Action::Respond { status: 503, code: "ServiceUnavailable" }));
    }

    // What write(2) took is counted; what it refused is not.
    let path = volume.path("large");
    let mut file = OpenOptions::new().create_new(true).write(true).open(&path).expect("create");
    let mut noise = Noise::new(9);
    let mut taken = Vec::new();
    let refused = loop {
        let piece = noise.take(64 << 10);
        match file.write(&piece) {
            Ok(len) => taken.extend_from_slice(&piece[..len]),
            Err(error) => break error,
        }
        assert!(taken.len() < 512 * MIB, "more is taken than there is room for");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    drop(file);
    assert_eq!(fs::read(volume.path("early")).expect("reads go on"), b"early");
    assert!(fs::read(&path).expect("what was taken can be read") == taken);
    fs::remove_file(volume.path("early")).expect("a full disk can be tidied up");

    // Room and the store come back.
    state_disk.grow(1024);
    if let Some(disk) = &store_disk {
        disk.grow(1024);
    }
    if let Some(server) = &volume.server {
        server.faults().clear();
    }
    volume.umount();
    script(&volume.state_dir(), "find . -mindepth 1 -delete");
    script(&volume.cache_dir(), "find . -mindepth 1 -delete");
    volume.mount();
    assert!(fs::read(&path).expect("read") == taken, "everything that was taken is in the store");
    assert!(!volume.path("early").exists());
    volume.umount();
    drop((state_disk, store_disk));
}
