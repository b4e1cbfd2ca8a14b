//! Programs that ask much of a filesystem: git, sqlite, cargo, fio, and a file with large holes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::command::{require, script, script_within};
use crate::mount::{Volume, on_each_backend};
use crate::tree::{MIB, Noise, digest};

on_each_backend! {
    git_clones_commits_and_collects_garbage within 300 s,
    sqlite_keeps_ten_thousand_rows_in_both_journal_modes within 300 s,
    cargo_builds_a_crate_and_knows_after_a_remount_that_it_is_fresh within 300 s,
    fio_verifies_what_it_wrote_at_random within 300 s,
    a_sparse_file_of_five_gibibytes_takes_the_room_of_its_data within 300 s,
}

const LIMIT: Duration = Duration::from_secs(180);

fn git_clones_commits_and_collects_garbage(volume: &Volume) {
    require(&["git"]);
    let origin = volume.scratch().join("origin");
    fs::create_dir(&origin).expect("mkdir");
    let git = "git -c user.name=t -c user.email=t@localhost -c init.defaultBranch=main";
    script(
        &origin,
        &format!(
            "cp -r {}/src . && {git} init -q && git add . && {git} commit -q -m first
         for i in $(seq 20); do echo $i >> src/lib.rs; {git} commit -q -a -m \"change $i\"; done",
            env!("CARGO_MANIFEST_DIR")
        ),
    );
    volume.mount();
    let clone = volume.path("clone");
    script_within(
        LIMIT,
        &volume.mountpoint(),
        &format!("git clone -q --no-local {} clone", origin.display()),
    );
    script_within(
        LIMIT,
        &clone,
        &format!(
            "for i in $(seq 10); do echo $i > new-$i; git add .; {git} commit -q -m \"add $i\"; done
         {git} checkout -q -b side HEAD~5; echo side > side; git add side; {git} commit -q -m side
         {git} checkout -q main; {git} merge -q -m merge side; git gc -q; git fsck --full --strict"
        ),
    );
    let head = script(&clone, "git log -1 --format=%H");
    volume.remount_from_the_store_alone();
    assert_eq!(script(&clone, "git log -1 --format=%H"), head);
    script_within(LIMIT, &clone, "git fsck --full --strict");
    assert_eq!(script(&clone, "git status --porcelain"), "", "nothing looks changed");
    script(&clone, "git diff --exit-code HEAD");
}

fn sqlite_keeps_ten_thousand_rows_in_both_journal_modes(volume: &Volume) {
    require(&["sqlite3"]);
    volume.mount();
    let mut statements = String::from("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, n INTEGER);\n");
    statements.push_str("CREATE INDEX by_n ON t (n);\n");
    for transaction in 0..10 {
        statements.push_str("BEGIN;\n");
        for row in 0..1000 {
            let n = (transaction * 1000 + row) * 7919 % 10_000;
            statements.push_str(&format!("INSERT INTO t (text, n) VALUES ('row {n} of the table', {n});\n"));
        }
        statements.push_str("COMMIT;\n");
    }
    fs::write(volume.scratch().join("insert.sql"), statements).expect("write the script");
    let insert = volume.scratch().join("insert.sql");
    let check = "PRAGMA integrity_check; SELECT count(*), sum(n) FROM t;";
    for mode in ["delete", "wal"] {
        let set = format!("sqlite3 {mode}.db 'PRAGMA journal_mode={mode};'");
        assert_eq!(script(&volume.mountpoint(), &set).trim(), mode);
        let line = format!("sqlite3 -bail {mode}.db < {}", insert.display());
        script_within(LIMIT, &volume.mountpoint(), &line);
        script(&volume.mountpoint(), &format!("sqlite3 {mode}.db 'UPDATE t SET n = n + 1 WHERE id % 3 = 0'"));
    }
    let sum = 10_000 * 9_999 / 2 + 3333;
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        for mode in ["delete", "wal"] {
            let found = script(&volume.mountpoint(), &format!("sqlite3 {mode}.db '{check}'"));
            assert_eq!(found, format!("ok\n10000|{sum}\n"), "{mode}");
        }
    }
}

fn cargo_builds_a_crate_and_knows_after_a_remount_that_it_is_fresh(volume: &Volume) {
    volume.mount();
    let krate = volume.path("crate");
    fs::create_dir_all(krate.join("src")).expect("mkdir");
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    fs::write(krate.join("Cargo.toml"), manifest).expect("write");
    fs::write(krate.join("src/part.rs"), "pub fn answer() -> u32 { 42 }\n").expect("write");
    let main = "mod part;\nfn main() { println!(\"{}\", part::answer()); }\n";
    fs::write(krate.join("src/main.rs"), main).expect("write");
    script_within(LIMIT, &krate, "cargo build --offline --target-dir target 2>&1");
    assert_eq!(script(&krate, "target/debug/small"), "42\n");
    volume.remount_from_the_store_alone();
    assert_eq!(script(&krate, "target/debug/small"), "42\n");
    let second = script_within(LIMIT, &krate, "cargo build --offline --target-dir target 2>&1");
    assert!(!second.contains("Compiling"), "times survive to the nanosecond: {second}");
}

fn fio_verifies_what_it_wrote_at_random(volume: &Volume) {
    require(&["fio"]);
    volume.mount();
    let common =
        "fio --name=verify --size=48M --ioengine=psync --verify=crc32c --verify_fatal=1 --do_verify=1";
    for job in ["--rw=randwrite --bs=4k", "--rw=randwrite --bsrange=512-128k --bs_unaligned --fsync=64"] {
        script_within(LIMIT, &volume.mountpoint(), &format!("{common} {job}"));
    }
    let before = digest(&volume.path("verify.0.0"));
    volume.remount_from_the_store_alone();
    assert_eq!(digest(&volume.path("verify.0.0")), before);
}

fn a_sparse_file_of_five_gibibytes_takes_the_room_of_its_data(volume: &Volume) {
    volume.mount();
    let data = volume.scratch().join("data");
    fs::write(&data, Noise::new(5).take(MIB)).expect("write");
    // Data at the head, behind 4 GiB, and a hole at the end.
    script_within(
        LIMIT,
        &volume.mountpoint(),
        &format!(
            "truncate -s 5G sparse
         dd if={0} of=sparse bs=1M count=1 conv=notrunc status=none
         dd if={0} of=sparse bs=1M count=1 seek=4500 conv=notrunc status=none",
            data.display()
        ),
    );
    assert_sparse(volume, "sparse");
    script_within(LIMIT, &volume.mountpoint(), "cp --sparse=auto sparse copy");
    assert_sparse(volume, "copy");
    let tar = "mkdir out && tar -cSf - sparse | tar -xSf - -C out && mv out/sparse unpacked";
    script_within(LIMIT, &volume.mountpoint(), tar);
    assert_sparse(volume, "unpacked");
    volume.remount_from_the_store_alone();
    for name in ["sparse", "copy", "unpacked"] {
        assert_sparse(volume, name);
        let line = format!("cmp <(dd if={name} bs=1M skip=4500 count=1 status=none) {}", data.display());
        script(&volume.mountpoint(), &line);
    }
    assert!(volume.stored().packs < 2 * MIB as u64, "holes are not stored, and the data once");
}

fn assert_sparse(volume: &Volume, name: &str) {
    let path = volume.path(name);
    let stat = fs::metadata(&path).expect("stat");
    assert_eq!(stat.len(), 5 << 30, "{name}");
    let allocated = stat.blocks() * 512;
    let room = 2 * MIB as u64..8 * MIB as u64;
    assert!(room.contains(&allocated), "{name}: {allocated} bytes allocated for 2 MiB of data");
    let du = script(&volume.mountpoint(), &format!("du -k {name} | cut -f1"));
    assert_eq!(du.trim(), (allocated / 1024).to_string(), "{name}");
    assert_eq!(data_extents(&path), [(0, MIB as u64), (4500 * MIB as u64, 4501 * MIB as u64)], "{name}");
}

/// Half-open ranges that SEEK_DATA and SEEK_HOLE tell.
pub(crate) fn data_extents(path: &Path) -> Vec<(u64, u64)> {
    use nix::unistd::{Whence, lseek};
    let file = fs::File::open(path).expect("open");
    let end = i64::try_from(file.metadata().expect("stat").len()).expect("a file offset");
    let mut extents = Vec::new();
    let mut at = 0;
    while at < end {
        let from = match lseek(&file, at, Whence::SeekData) {
            Ok(from) => from,
            Err(nix::errno::Errno::ENXIO) => break,
            Err(errno) => panic!("SEEK_DATA: {errno}"),
        };
        at = lseek(&file, from, Whence::SeekHole).expect("SEEK_HOLE");
        extents.push((from.cast_unsigned(), at.cast_unsigned()));
    }
    extents
}
