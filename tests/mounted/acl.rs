//! POSIX ACLs: kept, enforced, inherited, in step with the mode, and carried along by the tools that copy them.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::command::{Finished, LIMIT, Somebody, require, run_within, script};
use crate::mount::{Volume, on_each_backend};
use crate::syscall::{get_xattr, list_xattrs, remove_xattr, set_xattr};
use crate::tree::{assert_same, picture};

on_each_backend! {
    access_is_what_the_list_says within 120 s,
    a_list_and_the_mode_follow_each_other_in_every_view within 120 s,
    what_is_made_inherits_the_default_list within 120 s,
    sgid_goes_when_somebody_outside_the_group_changes_mode_or_list within 120 s,
    copies_carry_their_lists within 120 s,
    values_that_are_no_list_have_the_errors_of_ext4 within 120 s,
    lists_hold_on_a_mount_of_a_user_too within 120 s,
    the_umask_option_hides_the_same_bits_of_lists within 120 s,
}

const OWNER: Somebody = Somebody::alone(100);
const NAMED: Somebody = Somebody::alone(101);
const STRANGER: Somebody = Somebody::alone(102);
const IN_NAMED_GROUP: Somebody = Somebody { uid: 103, gid: 103, groups: &[7, 200] };

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("lstat").mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// A list as getfacl shows it, in one line.
fn acl(path: &Path) -> String {
    let shown = script(Path::new("/"), &format!("getfacl -n -c -p -E {}", path.display()));
    shown.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(",")
}

fn access_is_what_the_list_says(volume: &Volume) {
    require(&["setfacl"]);
    volume.mount();
    let (root, file) = (volume.mountpoint(), volume.path("file"));
    fs::write(&file, "secret").expect("write");
    chown(&file, Some(100), Some(100)).expect("chown");
    set_mode(&file, 0o640);
    assert!(OWNER.may(&root, "cat file") && !NAMED.may(&root, "cat file"));

    script(&root, "setfacl -m u:101:rw,g:200:r file");
    let who_reads = || [OWNER, NAMED, IN_NAMED_GROUP, STRANGER].map(|who| who.may(&root, "cat file"));
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        assert_eq!(acl(&file), "user::rw-,user:101:rw-,group::r--,group:200:r--,mask::rw-,other::---");
        assert_eq!(mode(&file), 0o660);
        assert_eq!(who_reads(), [true, true, true, false]);
        assert!(NAMED.may(&root, "echo more >> file") && !IN_NAMED_GROUP.may(&root, "echo more >> file"));
    }
    // The mask limits everybody but owner and others, and takes effect at once.
    script(&root, "setfacl -m m::- file");
    assert_eq!(who_reads(), [true, false, false, false]);
    set_mode(&file, 0o640);
    assert_eq!(who_reads(), [true, true, true, false], "chmod sets the mask");
    assert!(!NAMED.may(&root, "echo more >> file"));
    // The owner's entry counts for the owner, the first that names one for others.
    script(&root, "setfacl -m u:100:rw,u::-,u:102:-,o::r file");
    assert_eq!(who_reads(), [false, true, true, false]);
    script(&root, "setfacl -b file");
    assert_eq!(who_reads(), [false, true, true, true]);
    assert!(!STRANGER.may(&root, "setfacl -m u:102:rw file"), "the file is not theirs");
    assert!(OWNER.may(&root, "setfacl -m u::rw,u:102:rw file"));
    assert!(STRANGER.may(&root, "echo more >> file"));

    // A directory that one user only may enter.
    fs::create_dir(volume.path("dir")).expect("mkdir");
    fs::write(volume.path("dir/inner"), "").expect("write");
    set_mode(&volume.path("dir"), 0o700);
    script(&root, "setfacl -m u:101:rwx dir");
    assert!(NAMED.may(&root, "touch dir/new && mv dir/new dir/renamed && rm dir/renamed"));
    assert!(!STRANGER.may(&root, "cat dir/inner") && !IN_NAMED_GROUP.may(&root, "ls dir"));
}

fn a_list_and_the_mode_follow_each_other_in_every_view(volume: &Volume) {
    require(&["setfacl"]);
    volume.mount();
    let (root, file) = (volume.mountpoint(), volume.path("file"));
    fs::write(&file, "content").expect("write");
    set_mode(&file, 0o644);
    let handle = File::open(&file).expect("open");
    let ctime = |path: &Path| {
        let stat = fs::metadata(path).expect("stat");
        (stat.ctime(), stat.ctime_nsec())
    };
    for (change, mode_after, acl_after) in [
        ("setfacl -m u:7:rwx file", 0o674, "user::rw-,user:7:rwx,group::r--,mask::rwx,other::r--"),
        ("chmod 4710 file", 0o4710, "user::rwx,user:7:rwx,group::r--,mask::--x,other::---"),
        ("setfacl -m m::rw,o::x file", 0o4761, "user::rwx,user:7:rwx,group::r--,mask::rw-,other::--x"),
        ("chmod g=,o=r file", 0o4704, "user::rwx,user:7:rwx,group::r--,mask::---,other::r--"),
        ("setfacl -x u:7 file", 0o4744, "user::rwx,group::r--,mask::r--,other::r--"),
        ("setfacl -b file", 0o4744, "user::rwx,group::r--,other::r--"),
        ("setfacl -m u::r,g::w,o::- file", 0o4420, "user::r--,group::-w-,other::---"),
    ] {
        let before = ctime(&file);
        script(&root, change);
        assert_eq!(mode(&file), mode_after, "{change}: lstat");
        assert_eq!(handle.metadata().expect("fstat").mode() & 0o7777, mode_after, "{change}: fstat");
        let listed = script(&root, "ls -l file; find . -name file -printf %m").replace(' ', "");
        assert!(listed.ends_with(&format!("{mode_after:o}")), "{change}: {listed}");
        assert_eq!(acl(&file), acl_after, "{change}");
        assert!(before < ctime(&file), "{change}");
    }
    let names = list_xattrs(&file).expect("list");
    assert!(names.is_empty(), "what the mode says is no attribute: {names:?}");
    // Removing a list by its attribute leaves the mode that it made, as on ext4.
    script(&root, "chmod 600 file; setfacl -m u:7:rw file");
    remove_xattr(&file, c"system.posix_acl_access").expect("remove");
    assert_eq!((mode(&file), acl(&file).as_str()), (0o660, "user::rw-,group::rw-,other::---"));
    remove_xattr(&file, c"system.posix_acl_access").expect("there is none, and that is no error");
    // Devices, pipes and sockets have lists too, links have none.
    script(&root, "mkfifo pipe; ln -s file link; setfacl -m u:7:rw pipe");
    assert_eq!(acl(&volume.path("pipe")).matches("user:7:rw-").count(), 1);
    drop(handle);
    volume.remount_from_the_store_alone();
    assert_eq!(acl(&volume.path("pipe")).matches("user:7:rw-").count(), 1);
}

fn what_is_made_inherits_the_default_list(volume: &Volume) {
    require(&["setfacl"]);
    volume.mount();
    let (root, dir) = (volume.mountpoint(), volume.path("dir"));
    script(&root, "umask 022; mkdir -m 777 dir; setfacl -d -m u::rwx,u:101:rwx,g::rx,o::x dir");
    let default =
        "default:user::rwx,default:user:101:rwx,default:group::r-x,default:mask::rwx,default:other::--x";
    assert_eq!(acl(&dir), format!("user::rwx,group::rwx,other::rwx,{default}"));
    // The umask that would take everything takes nothing where there is a default list.
    let make = "umask 777; : > file; mkdir sub; mkfifo pipe; ln -s file link; mkdir -m 2700 narrow";
    script(&dir, make);
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        let at = |name: &str| (mode(&dir.join(name)), acl(&dir.join(name)));
        let made = |mask: &str, owner: &str, other: &str| {
            format!("user::{owner},user:101:rwx,group::r-x,mask::{mask},other::{other}")
        };
        assert_eq!(at("file"), (0o660, made("rw-", "rw-", "---")));
        assert_eq!(at("pipe"), (0o660, made("rw-", "rw-", "---")));
        assert_eq!(at("sub"), (0o771, format!("{},{default}", made("rwx", "rwx", "--x"))));
        assert_eq!(at("narrow"), (0o2700, format!("{},{default}", made("---", "rwx", "---"))));
        assert_eq!(mode(&dir.join("link")), 0o777);
        assert!(list_xattrs(&dir.join("link")).expect("list").is_empty());
    }
    assert!(NAMED.may(&dir, "echo more >> file && touch sub/new"), "the list gives access");
    assert_eq!(mode(&dir.join("sub/new")), 0o660);
    assert!(!STRANGER.may(&dir, "cat file"));
    // Lists go down to any depth.
    script(&dir, "mkdir -p sub/a/b/c; : > sub/a/b/c/deep");
    assert!(acl(&dir.join("sub/a/b/c/deep")).contains("user:101:rwx"));
    // A default list that says no more than a mode makes modes.
    script(
        &root,
        "mkdir plain; setfacl -d --set u::rwx,g::rwx,o::- plain; umask 777; : > plain/file; mkdir plain/sub",
    );
    assert_eq!(
        (mode(&volume.path("plain/file")), acl(&volume.path("plain/file")).as_str()),
        (0o660, "user::rw-,group::rw-,other::---")
    );
    let minimal = "default:user::rwx,default:group::rwx,default:other::---";
    assert_eq!(acl(&volume.path("plain/sub")), format!("user::rwx,group::rwx,other::---,{minimal}"));
    // Without one the umask is back.
    script(&root, "setfacl -k dir; umask 027; : > dir/after; mkdir dir/dir-after; mkfifo dir/pipe-after");
    assert_eq!(["after", "dir-after", "pipe-after"].map(|name| mode(&dir.join(name))), [0o640, 0o750, 0o640]);
    assert_eq!(acl(&dir.join("dir-after")), "user::rwx,group::r-x,other::---");
}

fn sgid_goes_when_somebody_outside_the_group_changes_mode_or_list(volume: &Volume) {
    require(&["setfacl"]);
    volume.mount();
    let root = volume.mountpoint();
    let outside = Somebody { uid: 100, gid: 101, groups: &[] };
    let supplementary = Somebody { uid: 100, gid: 101, groups: &[7, 100] };
    script(&root, ": > file; mkdir dir; chown 100:100 file dir");
    for name in ["file", "dir"] {
        let path = volume.path(name);
        for (who, keeps) in [(OWNER, true), (outside, false), (supplementary, true)] {
            for change in
                ["chmod 2777", "setfacl -m u::rwx,g::rwx,o::rwx", "setfacl -m u:7:rwx,m::rwx,o::rwx"]
            {
                set_mode(&path, 0o2755);
                assert!(who.may(&root, &format!("{change} {name}")), "{change} {name} by {who:?}");
                let expected = if keeps { 0o2777 } else { 0o777 };
                assert_eq!(mode(&path), expected, "{change} {name} by {who:?}");
                script(&root, &format!("setfacl -b {name}"));
            }
        }
        assert!(!STRANGER.may(&root, &format!("chmod 2777 {name}")));
        // With the capabilities of root in a namespace of one's own one is still nobody here.
        set_mode(&path, 0o2755);
        let alone = format!("unshare -U -r setfacl -m u::rwx,g::rwx {name}");
        if outside.may(&root, "unshare -U -r true") {
            assert!(outside.may(&root, &alone));
            assert_eq!(mode(&path), 0o775, "{name}");
        }
    }
    // A new directory keeps the bit it inherits with a default list, a program does not.
    script(&root, "mkdir shared; setfacl -d -m u:101:rwx shared; chown 100:100 shared; chmod 2777 shared");
    assert!(
        OWNER.may(&root, "umask 0; mkdir shared/theirs")
            && outside.may(&root, "umask 0; mkdir shared/others")
    );
    assert_eq!(mode(&volume.path("shared/theirs")) & 0o2000, 0o2000);
    assert_eq!(mode(&volume.path("shared/others")) & 0o2000, 0o2000);
    assert_eq!(fs::metadata(volume.path("shared/others")).expect("stat").gid(), 100);
}

fn copies_carry_their_lists(volume: &Volume) {
    require(&["setfacl", "rsync", "tar"]);
    volume.mount();
    let (root, local) = (volume.mountpoint(), volume.scratch());
    script(
        &root,
        "mkdir -p from/sub; echo a > from/a; echo b > from/sub/b; setfacl -R -m u:101:rwX,g:200:rX from",
    );
    script(
        &root,
        "setfacl -d -m u:102:rx from/sub; echo c > from/sub/c; setfacl -m m::r from/a; chmod 4750 from/sub/b",
    );
    // rsync takes times within one second for equal.
    script(&root, "touch -d @1000 from/sub from");
    let lists = |directory: &Path| script(directory, "getfacl -R -n . | grep -v '^# flags'");
    let expected = lists(&volume.path("from"));
    assert!(expected.contains("default:user:102:r-x") && expected.contains("user:101:rwx"));
    let scratch = local.display();
    script(&root, "cp -a from copied && rsync -aAX from/ synced/");
    script(
        &root,
        "tar --acls --xattrs -cf from.tar from && mkdir untarred && tar --acls --xattrs -xpf from.tar -C untarred",
    );
    script(&root, "getfacl -R -n from > lists; cp -r from bare; setfacl -R -b -k bare");
    script(
        &root,
        "(cd bare && getfacl -R -n .) | grep -q 101 && exit 1; sed -i 's|: from|: bare|' lists; setfacl --restore=lists",
    );
    for is_remounted in [false, true] {
        if is_remounted {
            volume.remount_from_the_store_alone();
        }
        for copy in ["from", "copied", "synced", "untarred/from", "bare"] {
            assert_eq!(lists(&volume.path(copy)), expected, "{copy}");
        }
    }
    assert_same(&picture(&volume.path("from")), &picture(&volume.path("synced")));
    // A second run finds nothing to do.
    let again = script(&root, "rsync -aAX --itemize-changes from/ synced/");
    assert_eq!(again, "", "rsync sees the same lists");
    // Out of the mount and in again, where the other side can hold them.
    if script(&local, "touch probe; setfacl -m u:101:r probe && echo yes || true").contains("yes") {
        script(&root, &format!("cp -a from {scratch}/outside && cp -a {scratch}/outside back"));
        assert_eq!(lists(&volume.path("back")), expected);
    }
    // Hard links and renames are the same file; removing it all leaves nothing behind.
    script(&root, "ln from/a linked; mv from/a from/moved");
    assert_eq!(acl(&volume.path("linked")), acl(&volume.path("from/moved")));
    script(&root, "rm -r from copied synced untarred bare");
}

fn values_that_are_no_list_have_the_errors_of_ext4(volume: &Volume) {
    volume.mount();
    let (file, directory, link) = (volume.path("file"), volume.path("directory"), volume.path("link"));
    fs::write(&file, "").expect("write");
    set_mode(&file, 0o640);
    fs::create_dir(&directory).expect("mkdir");
    symlink("file", &link).expect("symlink");
    let (access, default) = (c"system.posix_acl_access", c"system.posix_acl_default");
    let list = |entries: &[(u8, u8, u32)]| {
        let entry = |&(tag, bits, id): &(u8, u8, u32)| [&[tag, 0, bits, 0][..], &id.to_le_bytes()].concat();
        [vec![2, 0, 0, 0], entries.iter().flat_map(entry).collect()].concat()
    };
    let none = u32::MAX;
    let (owner, group, mask, other) = ((1, 6, none), (4, 4, none), (16, 7, none), (32, 0, none));
    let good = list(&[owner, (2, 7, 5), group, mask, other]);
    let users = |count: u32| {
        let named: Vec<_> = (0..count).map(|id| (2, 4, id)).collect();
        list(&[&[owner][..], &named, &[group, mask, other]].concat())
    };
    let set = |path: &Path, name, value: &[u8]| {
        set_xattr(path, name, value, 0).err().and_then(|error| error.raw_os_error())
    };
    for (what, value, errno) in [
        ("cut", &good[..good.len() - 1], libc::EINVAL),
        ("too short", &good[..2], libc::EINVAL),
        ("version 1", &[&[1, 0, 0, 0][..], &good[4..]].concat()[..], libc::EOPNOTSUPP),
        ("no mask", &list(&[owner, (2, 7, 5), group, other]), libc::EINVAL),
        ("no other", &list(&[owner, group]), libc::EINVAL),
        ("order", &list(&[group, owner, other]), libc::EINVAL),
        ("two owners", &list(&[owner, owner, group, other]), libc::EINVAL),
        ("bits", &list(&[(1, 8, none), group, other]), libc::EINVAL),
        ("tag", &list(&[owner, group, (64, 0, none)]), libc::EINVAL),
        ("user without id", &list(&[owner, (2, 7, none), group, mask, other]), libc::EINVAL),
        ("too large", &users(600), libc::E2BIG),
    ] {
        assert_eq!(set(&file, access, value), Some(errno), "{what}");
        assert_eq!(set(&directory, default, value), Some(errno), "{what}");
        assert_eq!(mode(&file), 0o640, "{what}");
    }
    assert_eq!(set(&file, default, &good), Some(libc::EACCES));
    assert_eq!(set(&link, access, &good), Some(libc::EOPNOTSUPP));
    let get = |path: &Path, name| get_xattr(path, name).map_err(|error| error.raw_os_error());
    assert_eq!(get(&file, access), Err(Some(libc::ENODATA)));
    assert_eq!(get(&file, default), Err(Some(libc::ENODATA)));
    assert_eq!(get(&link, access), Err(Some(libc::EOPNOTSUPP)));
    remove_xattr(&file, default).expect("there can be none, and that is no error");
    // As many entries as the kernel reads, kept and back.
    assert_eq!(set(&file, access, &users(506)), None);
    volume.remount_from_the_store_alone();
    assert_eq!(get(&file, access), Ok(users(506)));
    // Without entries it is no list.
    assert_eq!(set(&file, access, &list(&[])), None);
    assert_eq!(get(&file, access), Err(Some(libc::ENODATA)));
}

/// In a mount namespace of its own, where everybody may open `/dev/fuse`, as they may on most machines. fusermount3 wants the
/// user to have a name.
fn lists_hold_on_a_mount_of_a_user_too(volume: &Volume) {
    require(&["setfacl", "setpriv", "fusermount3"]);
    let beside = volume.scratch().parent().expect("a temporary directory").to_owned();
    // The build directory may be out of their reach.
    fs::copy(env!("CARGO_BIN_EXE_gravitonfs"), beside.join("gravitonfs")).expect("copy the binary");
    script(&beside, "mkdir -p store dev; chown nobody:nogroup store mnt state cache");
    let (url, options) = (volume.url(), volume.store_options().join(" "));
    let as_user = format!(
        "trap 'fusermount3 -q -u -z mnt || true' EXIT
         ./gravitonfs mount --create {url} $PWD/mnt {options}
         umask 077; mkdir mnt/dir; setfacl -d -m u:101:rwx,o::- mnt/dir; : > mnt/dir/file
         getfacl -n -c -E mnt/dir/file | grep -x -e user:101:rwx -e mask::rw- | wc -l | grep -x 2
         setfacl -m u::- mnt/dir/file; ! cat mnt/dir/file; setfacl -m u::rw mnt/dir/file; cat mnt/dir/file
         chmod 2750 mnt/dir; setfacl -m u:102:rx mnt/dir; stat -c %a mnt/dir | grep -x 2750
         getfacl -n -c mnt/dir/file > before
         ./gravitonfs umount $PWD/mnt
         rm -r state/* cache/*
         ./gravitonfs mount {url} $PWD/mnt {options}
         getfacl -n -c mnt/dir/file | cmp - before
         getfacl -n -c mnt/dir | grep -x user:102:r-x
         ./gravitonfs umount $PWD/mnt"
    );
    // Other tests' mounts are no business of this namespace: a copy would outlive their unmount.
    let in_namespace =
        "awk '$3 == \"fuse.gravitonfs\" {print $2}' /proc/self/mounts | xargs -r -n 1 umount -l || true
         mount -t tmpfs -o mode=755 dev dev; mknod -m 666 dev/fuse c 10 229
         mount --bind dev/fuse /dev/fuse; > before; chown nobody:nogroup before
         exec setpriv --reuid nobody --regid nogroup --clear-groups -- bash -euo pipefail -c \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euo", "pipefail", "-c", in_namespace, "bash", &as_user]);
    command.current_dir(&beside).env("LC_ALL", "C");
    command.envs(volume.gravitonfs(&[""]).get_envs().filter_map(|(name, value)| Some((name, value?))));
    let Finished { code, stdout, stderr } = run_within(LIMIT, &mut command).expect("returns in time");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

fn the_umask_option_hides_the_same_bits_of_lists(volume: &Volume) {
    require(&["setfacl"]);
    volume.mount();
    let (root, file) = (volume.mountpoint(), volume.path("file"));
    script(&root, "echo text > file; chmod 666 file; setfacl -m u:101:rw,g:200:rw file");
    let stored = acl(&file);
    volume.umount();
    volume.mount_with(&["-o", "umask=022"]);
    assert_eq!(acl(&file), stored.replace("mask::rw-", "mask::r--").replace("other::rw-", "other::r--"));
    assert_eq!(mode(&file), 0o644);
    for who in [NAMED, IN_NAMED_GROUP, STRANGER] {
        assert!(who.may(&root, "cat file") && !who.may(&root, "echo more >> file"), "{who:?}");
    }
    volume.umount();
    volume.mount();
    assert_eq!(acl(&file), stored, "what is stored is untouched");
}
