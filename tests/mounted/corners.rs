//! Corner cases of system calls, each done on the mount and on a local directory of this machine: the outcomes must be
//! the same.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, OFlag, RenameFlags, fallocate, open, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, Whence, ftruncate, linkat, lseek, truncate};

use crate::command::script;
use crate::mount::{Volume, on_each_backend};
use crate::syscall::{Handle, copy_range};

on_each_backend! {
    corner_cases_end_as_on_a_local_filesystem within 300 s,
    an_open_that_is_refused_leaves_a_running_program_whole within 120 s,
    what_fuse_does_not_pass_is_refused_cleanly within 120 s,
    a_handle_opens_its_file_after_a_remount_and_no_other within 120 s,
}

const PAGE: i64 = 4096;
const MIB: i64 = 1 << 20;

/// Outcomes by name, in order.
struct Outcomes {
    dir: PathBuf,
    list: Vec<(String, String)>,
}

impl Outcomes {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn add(&mut self, name: &str, outcome: impl std::fmt::Debug) {
        self.list.push((name.to_owned(), format!("{outcome:?}")));
    }

    fn errno<T>(&mut self, name: &str, outcome: nix::Result<T>) {
        self.add(name, outcome.map(drop));
    }

    fn io<T>(&mut self, name: &str, outcome: std::io::Result<T>) {
        self.add(name, outcome.map(drop).map_err(|error| error.raw_os_error()));
    }

    fn file(&self, name: &str) -> File {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        options.open(self.path(name)).expect("open")
    }
}

fn corner_cases_end_as_on_a_local_filesystem(volume: &Volume) {
    volume.mount();
    let (mounted, local) = (volume.path("corners"), volume.scratch().join("corners"));
    let on = |dir: &Path| {
        fs::create_dir(dir).expect("mkdir");
        let mut outcomes = Outcomes { dir: dir.to_owned(), list: Vec::new() };
        for family in [names, opens, sizes, seeks, allocations, renames, copies, times] {
            family(&mut outcomes);
        }
        outcomes.list
    };
    let (found, expected) = (on(&mounted), on(&local));
    let different: Vec<_> =
        found.iter().zip(&expected).filter(|(found, expected)| found != expected).collect();
    assert!(different.is_empty(), "(on the mount, local): {different:#?}");
    assert!(expected.len() > 80, "{}", expected.len());
}

fn names(outcomes: &mut Outcomes) {
    let (longest, longer) = ("n".repeat(255), "n".repeat(256));
    outcomes.io("create 255", File::create(outcomes.path(&longest)));
    outcomes.io("create 256", File::create(outcomes.path(&longer)));
    outcomes.io("stat 256", fs::metadata(outcomes.path(&longer)));
    outcomes.io("mkdir 256", fs::create_dir(outcomes.path(&longer)));
    outcomes.io("rename 256", fs::rename(outcomes.path(&longest), outcomes.path(&longer)));
    outcomes.io("link 256", fs::hard_link(outcomes.path(&longest), outcomes.path(&longer)));
    outcomes.io("unlink 256", fs::remove_file(outcomes.path(&longer)));
    outcomes.io("symlink of 4095", symlink("x".repeat(4095), outcomes.path("long-link")));
    outcomes.io("follow 4095", File::open(outcomes.path("long-link")));
    outcomes.io("symlink of 4096", symlink("x".repeat(4096), outcomes.path("longer-link")));
    outcomes.io("symlink of nothing", symlink("", outcomes.path("empty-link")));
    symlink("loop", outcomes.path("loop")).expect("symlink");
    outcomes.io("loop", File::open(outcomes.path("loop")));
    outcomes.errno("truncate loop", truncate(&outcomes.path("loop"), 0));
    fs::write(outcomes.path("chain-0"), "end").expect("write");
    for at in 1..=41 {
        symlink(format!("chain-{}", at - 1), outcomes.path(&format!("chain-{at}"))).expect("symlink");
    }
    outcomes.io("40 links", fs::metadata(outcomes.path("chain-40")));
    outcomes.io("41 links", fs::metadata(outcomes.path("chain-41")));
    fs::create_dir(outcomes.path("directory")).expect("mkdir");
    outcomes.io("link of a directory", fs::hard_link(outcomes.path("directory"), outcomes.path("other")));
    outcomes.io("unlink a directory", fs::remove_file(outcomes.path("directory")));
    outcomes.io("rmdir a file", fs::remove_dir(outcomes.path("chain-0")));
    outcomes.io("below a file", File::create(outcomes.path("chain-0/below")));
    outcomes.io("rmdir dot", fs::remove_dir(outcomes.path("directory/.")));
    let gone = outcomes.file("gone");
    fs::remove_file(outcomes.path("gone")).expect("unlink");
    let revived = outcomes.path("revived");
    outcomes
        .errno("link of an unlinked file", linkat(&gone, "", AT_FDCWD, &revived, LinkatFlags::AT_EMPTY_PATH));
}

fn opens(outcomes: &mut Outcomes) {
    fs::write(outcomes.path("file"), "content").expect("write");
    fs::create_dir(outcomes.path("dir")).expect("mkdir");
    symlink("file", outcomes.path("link")).expect("symlink");
    let flags =
        |name: &str, flags| open(&outcomes.path(name), flags, Mode::from_bits_truncate(0o644)).map(drop);
    let cases = [
        ("link", OFlag::O_RDONLY | OFlag::O_NOFOLLOW),
        ("link", OFlag::O_PATH | OFlag::O_NOFOLLOW),
        ("file", OFlag::O_DIRECTORY),
        ("file/", OFlag::O_RDONLY),
        ("dir", OFlag::O_RDWR),
        ("dir", OFlag::O_RDONLY | OFlag::O_TRUNC),
        ("dir", OFlag::O_RDONLY | OFlag::O_CREAT),
        ("dir", OFlag::O_PATH),
        ("new/", OFlag::O_CREAT | OFlag::O_RDWR),
        ("file", OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR),
        ("link", OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR),
        ("file", OFlag::O_RDONLY | OFlag::O_TMPFILE),
        ("file", OFlag::O_RDWR | OFlag::O_NOATIME),
    ];
    let found = cases.map(|(name, wanted)| (name, wanted, flags(name, wanted)));
    for (name, wanted, outcome) in found {
        outcomes.errno(&format!("open {name} {wanted:?}"), outcome);
    }
    let path_only = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(outcomes.path("file"));
    let path_only = path_only.expect("open with O_PATH");
    outcomes.errno("ftruncate O_PATH", ftruncate(&path_only, 0));
    outcomes.io("read O_PATH", path_only.read_at(&mut [0], 0));
    outcomes.errno("lseek O_PATH", lseek(&path_only, 0, Whence::SeekSet));
    let appending = OpenOptions::new().read(true).append(true).open(outcomes.path("file")).expect("open");
    outcomes.io("pwrite to O_APPEND", appending.write_at(b"!", 0));
    outcomes.add("it goes to the end", fs::read(outcomes.path("file")).expect("read"));
    let write_only = OpenOptions::new().write(true).open(outcomes.path("file")).expect("open");
    outcomes.io("read O_WRONLY", write_only.read_at(&mut [0], 0));
    outcomes.errno("truncate to less than nothing", truncate(&outcomes.path("file"), -1));
    outcomes.errno("truncate a directory", truncate(&outcomes.path("dir"), 0));
    let program = script(
        &outcomes.dir,
        "set +e; printf '#!/bin/sh\\nexit 7\\n' >program; ./program; echo $?; chmod 755 program; ./program; echo $?; true",
    );
    outcomes.add("programs", program);
}

fn sizes(outcomes: &mut Outcomes) {
    let file = outcomes.file("size");
    outcomes.errno("ftruncate to the last byte of all", ftruncate(&file, i64::MAX));
    outcomes.io("pwrite at the last byte of all", file.write_at(b"xx", i64::MAX as u64 - 1));
    ftruncate(&file, 0).expect("cut");
    let limited = "set +e; trap '' XFSZ; ulimit -f 16; exec 2>&1
        head -c 20000 /dev/zero | dd of=limited bs=5000 conv=notrunc status=none | sed 's/.*: //'; stat -c %s limited
        truncate -s 16384 limited && echo fits; truncate -s 16385 limited | sed 's/.*: //'
        fallocate -l 16385 limited | sed 's/.*: //'; stat -c %s limited";
    let limited = script(&outcomes.dir, &format!("bash -c \"{limited}\""));
    outcomes.add("RLIMIT_FSIZE", limited);
}

fn seeks(outcomes: &mut Outcomes) {
    let file = outcomes.file("sparse");
    file.write_all_at(&[1; PAGE as usize], MIB as u64).expect("write");
    file.set_len(4 * MIB as u64).expect("extend");
    file.sync_all().expect("sync");
    for whence in [Whence::SeekData, Whence::SeekHole] {
        for at in [-1, 0, 1, MIB, MIB + 1, MIB + PAGE - 1, MIB + PAGE, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1] {
            outcomes.add(&format!("{whence:?} {at}"), lseek(&file, at, whence));
        }
    }
    outcomes.errno("seek before the start", lseek(&file, -1, Whence::SeekSet));
    outcomes.errno("seek to before the start", lseek(&file, -5 * MIB, Whence::SeekEnd));
    let empty = outcomes.file("empty");
    outcomes.add("data of nothing", lseek(&empty, 0, Whence::SeekData));
    outcomes.add("hole of nothing", lseek(&empty, 0, Whence::SeekHole));
}

fn allocations(outcomes: &mut Outcomes) {
    let file = outcomes.file("allocated");
    file.write_all_at(&[1; 20_000], 0).expect("write");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let cases = [
        (punch, 0, PAGE),
        (punch | zero | keep, 0, PAGE),
        (punch | keep, 100, 8000),
        (punch | keep, MIB, PAGE),
        (zero | keep, 9000, 100),
        (zero, 19_000, 2000),
        (keep, 0, MIB),
        (FallocateFlags::empty(), -1, PAGE),
        (FallocateFlags::empty(), 0, 0),
        (FallocateFlags::empty(), 0, -1),
        (FallocateFlags::empty(), i64::MAX, 1),
        (FallocateFlags::from_bits_retain(1 << 20), 0, PAGE),
    ];
    for (mode, at, len) in cases {
        outcomes.errno(&format!("fallocate {mode:?} {at} {len}"), fallocate(&file, mode, at, len));
        outcomes.add("size", file.metadata().expect("stat").len());
    }
    outcomes.add("content", fs::read(outcomes.path("allocated")).expect("read"));
    let reading = File::open(outcomes.path("allocated")).expect("open");
    outcomes.errno("fallocate O_RDONLY", fallocate(&reading, FallocateFlags::empty(), 0, 10));
    let directory = File::open(&outcomes.dir).expect("open");
    outcomes.errno("fallocate a directory", fallocate(&directory, FallocateFlags::empty(), 0, 10));
}

fn renames(outcomes: &mut Outcomes) {
    for name in ["a", "b"] {
        fs::write(outcomes.path(name), name).expect("write");
    }
    for name in ["d1", "d2", "d2/below"] {
        fs::create_dir(outcomes.path(name)).expect("mkdir");
    }
    let (replace, keep, swap) =
        (RenameFlags::empty(), RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE);
    let cases = [
        ("a", "b", keep),
        ("a", "c", keep),
        ("c", "b", swap),
        ("c", "missing", swap),
        ("c", "d1", swap),
        ("d1", "c", swap),
        ("c", "b", keep | swap),
        ("c", "b", RenameFlags::from_bits_retain(1 << 7)),
        ("d2", "d2/below", swap),
        ("d2/below", "d2", swap),
        ("d2", "d2/below", replace),
        ("d2/below", "d2", replace),
        ("d1", "d2", replace),
        ("d1", "b", replace),
        ("b", "d1", replace),
        ("b", "b/", replace),
        ("b", "b", replace),
        ("b", "b", keep),
        ("d1/.", "d3", replace),
        ("d1", "..", replace),
    ];
    for (from, to, flags) in cases {
        let outcome = renameat2(AT_FDCWD, &outcomes.path(from), AT_FDCWD, &outcomes.path(to), flags);
        outcomes.errno(&format!("rename {from} {to} {flags:?}"), outcome);
    }
    outcomes.add(
        "after all",
        script(&outcomes.dir, "find a b c d1 d2 -printf '%p %y %s\\n' 2>/dev/null | sort || true"),
    );
}

fn copies(outcomes: &mut Outcomes) {
    let file = outcomes.file("copied");
    file.write_all_at(&[3; 10_000], 0).expect("write");
    let target = outcomes.file("target");
    for (from, to, len) in
        [(0, 2500, 5000), (0, 5000, 5000), (20_000, 0, 10), (0, 0, 0), (9990, 20_000, 1 << 20)]
    {
        outcomes.io(
            &format!("copy within {from} {to} {len}"),
            copy_range(&file, &mut { from }, &file, &mut { to }, len),
        );
    }
    let mut copy = |name: &str, from: &File, to: &File| {
        outcomes.io(name, copy_range(from, &mut 0, to, &mut 0, 10));
    };
    let directory = File::open("/").expect("open");
    copy("copy a directory", &directory, &target);
    let dir = outcomes.dir.clone();
    let path = |name: &str| dir.join(name);
    let reading = File::open(path("target")).expect("open");
    let appending = OpenOptions::new().append(true).open(path("target")).expect("open");
    let writing = OpenOptions::new().write(true).open(path("copied")).expect("open");
    outcomes.io("copy to O_RDONLY", copy_range(&file, &mut 0, &reading, &mut 0, 10));
    outcomes.io("copy to O_APPEND", copy_range(&file, &mut 0, &appending, &mut 0, 10));
    outcomes.io("copy from O_WRONLY", copy_range(&writing, &mut 0, &target, &mut 0, 10));
    outcomes.add("copied", fs::read(path("copied")).expect("read"));
}

fn times(outcomes: &mut Outcomes) {
    let path = outcomes.path("times");
    fs::write(&path, "").expect("write");
    let (now, omit) = (TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
    for (secs, nanos) in
        [(0, 0), (0, 1), (-1, 999_999_999), (-1, 0), (-2, 500_000_000), (-1_000_000, 1), (1 << 32, 5)]
    {
        let time = TimeSpec::new(secs, nanos);
        utimensat(AT_FDCWD, &path, &time, &time, UtimensatFlags::FollowSymlink).expect("utimensat");
        let stat = fs::metadata(&path).expect("stat");
        let shown = [(stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec())];
        outcomes.add(&format!("time {secs} {nanos}"), shown);
    }
    for (atime, mtime) in [(TimeSpec::new(0, 1_000_000_000), now), (TimeSpec::new(0, -5), now), (omit, omit)]
    {
        let outcome = utimensat(AT_FDCWD, &path, &atime, &mtime, UtimensatFlags::FollowSymlink);
        outcomes.errno(&format!("utimensat {atime:?} {mtime:?}"), outcome);
    }
}

/// With FUSE_ATOMIC_O_TRUNC the daemon emptied the file before the kernel found that it was a running program: open(2)
/// said ETXTBSY, and the program died of a bus error.
fn an_open_that_is_refused_leaves_a_running_program_whole(volume: &Volume) {
    volume.mount();
    let path = volume.path("sleep");
    fs::copy("/bin/sleep", &path).expect("copy");
    let len = fs::metadata(&path).expect("stat").len();
    let mut running = Command::new(&path).arg("60").stdin(Stdio::null()).spawn().expect("start");
    for flags in [OFlag::O_RDONLY | OFlag::O_TRUNC, OFlag::O_WRONLY | OFlag::O_TRUNC, OFlag::O_WRONLY] {
        assert_eq!(open(&path, flags, Mode::empty()).map(drop), Err(Errno::ETXTBSY), "{flags:?}");
    }
    assert_eq!(truncate(&path, 0), Err(Errno::ETXTBSY));
    assert_eq!(fs::metadata(&path).expect("stat").len(), len);
    assert!(running.try_wait().expect("wait").is_none(), "it goes on");
    running.kill().expect("kill");
    running.wait().expect("wait");
    assert_eq!(fs::read(&path).expect("read"), fs::read("/bin/sleep").expect("read"));
}

/// What the kernel does not send, or fuser does not know: programs fall back on these answers.
fn what_fuse_does_not_pass_is_refused_cleanly(volume: &Volume) {
    volume.mount();
    let mode = Mode::from_bits_truncate(0o600);
    let unnamed = open(&volume.mountpoint(), OFlag::O_TMPFILE | OFlag::O_RDWR, mode).map(drop);
    assert_eq!(unnamed, Err(Errno::EOPNOTSUPP));
    let output = script(
        &volume.mountpoint(),
        "set -e; exec 2>/dev/null
        head -c 300000 /dev/urandom >file
        cp --reflink=auto file copy; cmp file copy; echo copied
        if cp --reflink=always file other; then echo cloned; else echo not cloned; fi
        if lsattr file; then echo flags; else echo no flags; fi
        mkfifo fifo; test -p fifo; echo made",
    );
    assert_eq!(output, "copied\nnot cloned\nno flags\nmade\n");
    let file = File::open(volume.path("file")).expect("open");
    for mode in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        let writing = OpenOptions::new().write(true).open(volume.path("file")).expect("open");
        assert_eq!(fallocate(&writing, mode, 0, PAGE), Err(Errno::EOPNOTSUPP), "{mode:?}");
    }
    assert_eq!(file.metadata().expect("stat").len(), 300_000);
    assert!(fs::metadata(volume.path("fifo")).expect("stat").file_type().is_fifo());
}

fn a_handle_opens_its_file_after_a_remount_and_no_other(volume: &Volume) {
    volume.mount();
    fs::create_dir(volume.path("dir")).expect("mkdir");
    for name in ["dir/kept", "dir/unlinked"] {
        fs::write(volume.path(name), name).expect("write");
    }
    let handle = |name: &str| Handle::of(&volume.path(name)).expect("a handle");
    let (kept, unlinked, dir) = (handle("dir/kept"), handle("dir/unlinked"), handle("dir"));
    fs::remove_file(volume.path("dir/unlinked")).expect("unlink");
    volume.umount();
    volume.mount();
    let root = File::open(volume.mountpoint()).expect("open");
    let opened = kept.open(&root).expect("open by handle");
    let mut content = [0; 8];
    opened.read_exact_at(&mut content, 0).expect("read");
    assert_eq!(&content, b"dir/kept");
    assert_eq!(dir.open(&root).expect("a directory").metadata().expect("stat").ino(), ino(volume, "dir"));
    let refused = unlinked.open(&root).err().and_then(|error| error.raw_os_error());
    assert_eq!(refused, Some(libc::ESTALE));
}

fn ino(volume: &Volume, name: &str) -> u64 {
    fs::metadata(volume.path(name)).expect("stat").ino()
}
