//! Owners, modes, times and kinds of files, and who may do what.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::command::{LIMIT, run_within, script};
use crate::mount::{Volume, on_each_backend};
use crate::tree::{assert_same, picture};

on_each_backend! {
    times_are_kept_to_the_nanosecond within 120 s,
    every_kind_of_file_can_be_made within 120 s,
    sticky_setgid_and_suid_bits_mean_what_they_do_elsewhere within 120 s,
    owners_can_be_shown_as_others within 120 s,
}

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

/// Runs a shell line as a user without rights; true if it succeeds.
fn may(user: u32, directory: &Path, line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(directory).uid(user).gid(user);
    run_within(LIMIT, &mut command).expect("returns in time").code == Some(0)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("lstat").mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn times_are_kept_to_the_nanosecond(volume: &Volume) {
    volume.mount();
    let path = volume.path("file");
    fs::write(&path, "content").expect("write");
    let set = |atime, mtime| {
        utimensat(nix::fcntl::AT_FDCWD, &path, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
            .expect("utimensat");
    };
    let times = || {
        let stat = fs::metadata(&path).expect("stat");
        ((stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec()))
    };
    set(TimeSpec::new(1_000_000_000, 123_456_789), TimeSpec::new(4_000_000_000, 1));
    assert_eq!(times(), ((1_000_000_000, 123_456_789), (4_000_000_000, 1)));
    let ctime = fs::metadata(&path).expect("stat").ctime();
    set(TimeSpec::UTIME_OMIT, TimeSpec::new(5, 0));
    assert_eq!(times(), ((1_000_000_000, 123_456_789), (5, 0)));
    assert!(ctime <= fs::metadata(&path).expect("stat").ctime());
    set(TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
    assert!(1_600_000_000 < times().0.0, "now");
    assert_eq!(times().1, (5, 0));
    // Before 1970 nanoseconds count up within their second too.
    set(TimeSpec::new(-1000, 0), TimeSpec::new(-1, 0));
    assert_eq!(times(), ((-1000, 0), (-1, 0)));
    set(TimeSpec::new(-5, 123_456_789), TimeSpec::new(-1, 999_999_999));
    assert_eq!(times(), ((-5, 123_456_789), (-1, 999_999_999)));

    // A write moves mtime and ctime, a chmod only ctime, a new entry those of its directory.
    let mut file = OpenOptions::new().append(true).open(&path).expect("open");
    file.write_all(b"more").expect("write");
    assert!(1_600_000_000 < times().1.0);
    drop(file);
    set(TimeSpec::new(7, 0), TimeSpec::new(8, 9));
    set_mode(&path, 0o600);
    assert_eq!(times().1, (8, 9));
    let directory = volume.path("directory");
    fs::create_dir(&directory).expect("mkdir");
    script(&volume.mountpoint(), "touch -d @100 directory");
    File::create(directory.join("new")).expect("create");
    assert!(100 < fs::metadata(&directory).expect("stat").mtime());

    let (expected, kept) = (picture(&volume.mountpoint()), times());
    volume.remount_from_the_store_alone();
    assert_eq!(times(), kept);
    assert_same(&expected, &picture(&volume.mountpoint()));
}

fn every_kind_of_file_can_be_made(volume: &Volume) {
    volume.mount();
    let all = Mode::from_bits_truncate(0o640);
    let make = |name: &str, kind, device| mknod(&volume.path(name), kind, all, device).expect("mknod");
    make("fifo", SFlag::S_IFIFO, 0);
    make("socket", SFlag::S_IFSOCK, 0);
    make("character", SFlag::S_IFCHR, makedev(1, 3));
    make("block", SFlag::S_IFBLK, makedev(259, 1_000_000));
    make("regular", SFlag::S_IFREG, 0);
    let mut expected = picture(&volume.mountpoint());
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        assert_same(&expected, &picture(&volume.mountpoint()));
        let kind = |name: &str| fs::symlink_metadata(volume.path(name)).expect("lstat").file_type();
        assert!(kind("fifo").is_fifo() && kind("socket").is_socket() && kind("regular").is_file());
        assert!(kind("character").is_char_device() && kind("block").is_block_device());
        assert_eq!(fs::metadata(volume.path("block")).expect("stat").rdev(), makedev(259, 1_000_000));
        // A device is the system's, as root may expect of a mount of its own.
        fs::write(volume.path("character"), "into the null device").expect("write");
        let through = script(&volume.mountpoint(), "(echo through > fifo &); cat fifo");
        assert_eq!(through, "through\n");
        // Use may have moved times.
        expected = picture(&volume.mountpoint());
    }
}

fn sticky_setgid_and_suid_bits_mean_what_they_do_elsewhere(volume: &Volume) {
    volume.mount();
    let root = volume.mountpoint();
    set_mode(&root, 0o755);
    let sticky = volume.path("sticky");
    fs::create_dir(&sticky).expect("mkdir");
    set_mode(&sticky, 0o1777);
    assert!(may(NOBODY, &sticky, "echo mine > theirs"));
    assert_eq!(fs::metadata(sticky.join("theirs")).expect("stat").uid(), NOBODY);
    assert!(!may(DAEMON, &sticky, "rm -f theirs"), "only the owner removes from a sticky directory");
    assert!(!may(DAEMON, &sticky, "mv -f theirs stolen"));
    assert!(may(NOBODY, &sticky, "mv theirs renamed && rm renamed"));

    let shared = volume.path("shared");
    fs::create_dir(&shared).expect("mkdir");
    chown(&shared, Some(0), Some(4321)).expect("chown");
    set_mode(&shared, 0o2777);
    assert!(may(NOBODY, &shared, "echo > file && mkdir directory"));
    assert_eq!(fs::metadata(shared.join("file")).expect("stat").gid(), 4321, "the group is inherited");
    let directory = fs::metadata(shared.join("directory")).expect("stat");
    assert_eq!((directory.gid(), directory.mode() & 0o2000), (4321, 0o2000), "and the bit");

    // Whoever changes a program does not keep its rights.
    let program = volume.path("program");
    for (change, expected) in
        [("echo >> program", 0o777), ("truncate -s 1 program", 0o777), ("chmod 777 program", 0o6777)]
    {
        fs::write(&program, "#!/bin/true\n").expect("write");
        set_mode(&program, 0o6777);
        assert_eq!(may(NOBODY, &root, change), expected == 0o777, "{change}");
        assert_eq!(mode(&program), expected, "{change}");
    }
    chown(&program, Some(NOBODY), Some(NOBODY)).expect("chown");
    assert_eq!(mode(&program), 0o777, "chown takes suid and sgid away");

    fs::write(volume.path("secret"), "secret").expect("write");
    set_mode(&volume.path("secret"), 0o600);
    assert!(!may(NOBODY, &root, "cat secret"));
    assert!(!may(NOBODY, &root, "rm -f secret"), "the directory is not theirs");
    assert!(!may(NOBODY, &root, "chmod 666 secret"));
    let masked =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(volume.path("masked"));
    drop(masked.expect("create"));
    assert_eq!(mode(&volume.path("masked")) & 0o111, 0);
    let expected = picture(&root);
    volume.remount_from_the_store_alone();
    assert_same(&expected, &picture(&root));
    assert_eq!(mode(&root), 0o755);
}

fn owners_can_be_shown_as_others(volume: &Volume) {
    volume.mount();
    fs::write(volume.path("file"), "content").expect("write");
    set_mode(&volume.path("file"), 0o666);
    volume.umount();
    volume.mount_with(&["-o", "uid=1234,gid=2345", "-o", "umask=027"]);
    let stat = fs::metadata(volume.path("file")).expect("stat");
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o777), (1234, 2345, 0o640));
    volume.umount();
    volume.mount();
    let stat = fs::metadata(volume.path("file")).expect("stat");
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o777), (0, 0, 0o666), "what is stored is untouched");
}
