//! ACLs beside the mode, what a new file inherits, and what a change takes from an executable.

use gravitonfs::base::acl::{Acl, AclKind};
use gravitonfs::base::ids::Ino;
use gravitonfs::vfs::{Caller, Error, OpenFlags, Rights, SetAttr, SetXattr};

use super::world::{ROOT, World, named};

/// u::rw-,u:7:rwx,g::r--,m::rwx,o::---
const EXTENDED: &[(u8, u8, u8)] = &[(1, 6, 255), (2, 7, 7), (4, 4, 255), (16, 7, 255), (32, 0, 255)];
/// u::rwx,g::r-x,o::--x
const MINIMAL: &[(u8, u8, u8)] = &[(1, 7, 255), (4, 5, 255), (32, 1, 255)];

/// The value with these tags, bits and ids, where 255 stands for none.
fn value(entries: &[(u8, u8, u8)]) -> Vec<u8> {
    let entry = |&(tag, bits, id): &(u8, u8, u8)| {
        let high = if id == 255 { 255 } else { 0 };
        [tag, 0, bits, 0, id, high, high, high]
    };
    [vec![2, 0, 0, 0], entries.iter().flat_map(entry).collect()].concat()
}

fn acl(entries: &[(u8, u8, u8)]) -> Acl {
    Acl::decode(&value(entries)).expect("valid").expect("has entries")
}

/// Somebody with one group and no capability.
struct Member(u32);

impl Rights for Member {
    fn is_in_group(&self, gid: u32) -> bool {
        gid == self.0
    }

    fn keeps_set_id(&self) -> bool {
        false
    }
}

fn user(rights: &Member) -> Caller<'_> {
    Caller { uid: 1000, gid: 1000, umask: 0, rights }
}

fn mode(world: &World, ino: Ino) -> u32 {
    world.vfs().getattr(ino).unwrap().mode
}

fn stored(world: &World, ino: Ino, kind: AclKind) -> Option<Acl> {
    match world.vfs().getxattr(ino, kind.attribute()) {
        Ok(value) => Some(Acl::decode(&value).expect("valid").expect("has entries")),
        Err(Error::NoAttribute) => None,
        Err(error) => panic!("{error}"),
    }
}

fn chmod(world: &World, ino: Ino, mode: u32) {
    world.vfs().setattr(&ROOT, ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
}

#[test]
fn a_list_and_the_mode_follow_each_other_also_over_a_kill() {
    let mut world = World::new(70);
    let (ino, _) = world.create("file");
    world.vfs().set_acl(&ROOT, ino, AclKind::Access, &value(EXTENDED)).unwrap();
    assert_eq!(mode(&world, ino), 0o670, "the mask is the group's digit");
    assert_eq!(stored(&world, ino, AclKind::Access), Some(acl(EXTENDED)));
    chmod(&world, ino, 0o4751);
    let changed = acl(&[(1, 7, 255), (2, 7, 7), (4, 4, 255), (16, 5, 255), (32, 1, 255)]);
    for is_remounted in [false, true] {
        if is_remounted {
            world.kill_and_remount();
        }
        assert_eq!(stored(&world, ino, AclKind::Access), Some(changed.clone()));
        assert_eq!(mode(&world, ino), 0o4751);
    }
    // After the remount nothing is known of the attributes: chmod must look.
    chmod(&world, ino, 0o600);
    assert_eq!(stored(&world, ino, AclKind::Access).unwrap().permissions(), 0o600);

    // What a mode can say is left to the mode.
    let before = world.vfs().getattr(ino).unwrap().ctime;
    world.vfs().set_acl(&ROOT, ino, AclKind::Access, &value(MINIMAL)).unwrap();
    assert_eq!((mode(&world, ino), stored(&world, ino, AclKind::Access)), (0o751, None));
    assert!(before < world.vfs().getattr(ino).unwrap().ctime);
    assert!(world.vfs().listxattr(ino).unwrap().is_empty());

    // Removing a list leaves the mode as it was.
    world.vfs().set_acl(&ROOT, ino, AclKind::Access, &value(EXTENDED)).unwrap();
    world.vfs().remove_acl(ino, AclKind::Access).unwrap();
    assert_eq!((mode(&world, ino), stored(&world, ino, AclKind::Access)), (0o670, None));
    world.vfs().remove_acl(ino, AclKind::Access).unwrap();
    world.vfs().set_acl(&ROOT, ino, AclKind::Access, &value(EXTENDED)).unwrap();
    world.vfs().set_acl(&ROOT, ino, AclKind::Access, &value(&[])).unwrap();
    assert_eq!(stored(&world, ino, AclKind::Access), None, "a list without entries removes");
}

#[test]
fn what_is_no_list_is_refused_and_changes_nothing() {
    let world = World::new(71);
    let vfs = world.vfs();
    let (file, _) = world.create("file");
    let dir = vfs.mkdir(&ROOT, Ino::ROOT, &named("dir"), 0o755).unwrap().ino;
    let link = vfs.symlink(&ROOT, Ino::ROOT, &named("link"), b"file").unwrap().ino;
    let set = |ino, kind, value: &[u8]| vfs.set_acl(&ROOT, ino, kind, value);
    let good = value(EXTENDED);
    let other_version = [&[1, 0, 0, 0][..], &good[4..]].concat();
    let huge = value(&[&EXTENDED[..2], &[(2, 7, 7); 600], &EXTENDED[2..]].concat());
    assert!(matches!(set(file, AclKind::Access, &good[..good.len() - 1]), Err(Error::Invalid)));
    assert!(matches!(set(file, AclKind::Access, &value(&EXTENDED[..4])), Err(Error::Invalid)));
    assert!(matches!(set(file, AclKind::Access, &other_version), Err(Error::NotSupported)));
    assert!(matches!(set(file, AclKind::Access, &huge), Err(Error::AttributeTooLarge)));
    assert!(matches!(set(file, AclKind::Default, &good), Err(Error::Access)));
    assert!(matches!(set(link, AclKind::Access, &good), Err(Error::NotSupported)));
    let as_attribute = vfs.setxattr(file, AclKind::Access.attribute(), &good, SetXattr::Either);
    assert!(matches!(as_attribute, Err(Error::NotSupported)), "it would not change the mode");
    vfs.remove_acl(file, AclKind::Default).unwrap();
    assert_eq!((mode(&world, file), stored(&world, file, AclKind::Access)), (0o644, None));
    set(dir, AclKind::Default, &value(MINIMAL)).unwrap();
    assert_eq!(mode(&world, dir), 0o755, "a default list is not about the directory itself");
    assert_eq!(stored(&world, dir, AclKind::Default), Some(acl(MINIMAL)), "and is kept if minimal");
}

#[test]
fn a_default_list_takes_the_place_of_the_umask() {
    let mut world = World::new(72);
    let masked = Caller { umask: 0o027, ..ROOT };
    let dir = world.vfs().mkdir(&masked, Ino::ROOT, &named("dir"), 0o777).unwrap().ino;
    assert_eq!(mode(&world, dir), 0o750);
    let default = acl(&[(1, 7, 255), (2, 7, 7), (4, 5, 255), (16, 7, 255), (32, 5, 255)]);
    world.vfs().set_acl(&ROOT, dir, AclKind::Default, &default.encode()).unwrap();
    for round in ["fresh", "remounted"] {
        if round == "remounted" {
            world.kill_and_remount();
        }
        let vfs = world.vfs();
        let name = |kind: &str| named(&format!("{kind}-{round}"));
        let (file, _) = vfs.create(&masked, dir, &name("file"), 0o666, OpenFlags::default()).unwrap();
        let fifo = vfs.mknod(&masked, dir, &name("fifo"), 0o010_640, 0).unwrap();
        let sub = vfs.mkdir(&masked, dir, &name("dir"), 0o1777).unwrap();
        let link = vfs.symlink(&masked, dir, &name("link"), b"file").unwrap();
        for (made, expected) in [(&file, 0o664), (&fifo, 0o640), (&sub, 0o1775), (&link, 0o777)] {
            assert_eq!(made.mode, expected, "{round} {:?}", made.kind);
        }
        let access = |bits: [u8; 3]| {
            acl(&[(1, bits[0], 255), (2, 7, 7), (4, 5, 255), (16, bits[1], 255), (32, bits[2], 255)])
        };
        assert_eq!(stored(&world, file.ino, AclKind::Access), Some(access([6, 6, 4])));
        assert_eq!(stored(&world, fifo.ino, AclKind::Access), Some(access([6, 4, 0])));
        assert_eq!(stored(&world, sub.ino, AclKind::Access), Some(access([7, 7, 5])));
        assert_eq!(stored(&world, sub.ino, AclKind::Default), Some(default.clone()));
        assert_eq!(stored(&world, file.ino, AclKind::Default), None);
        assert!(vfs.listxattr(link.ino).unwrap().is_empty());
        // What is made knows its list without looking.
        chmod(&world, file.ino, 0o600);
        assert_eq!(stored(&world, file.ino, AclKind::Access), Some(access([6, 0, 0])));
    }
    // A minimal default list gives modes, and to directories itself.
    world.vfs().set_acl(&ROOT, dir, AclKind::Default, &value(MINIMAL)).unwrap();
    let file = world.vfs().mknod(&masked, dir, &named("plain"), 0o100_666, 0).unwrap();
    let sub = world.vfs().mkdir(&masked, dir, &named("plain-dir"), 0o777).unwrap();
    assert_eq!((file.mode, stored(&world, file.ino, AclKind::Access)), (0o640, None));
    assert_eq!((sub.mode, stored(&world, sub.ino, AclKind::Default)), (0o751, Some(acl(MINIMAL))));
}

#[test]
fn sgid_goes_when_somebody_outside_the_group_sets_a_list() {
    let world = World::new(73);
    let vfs = world.vfs();
    let dir = vfs.mkdir(&ROOT, Ino::ROOT, &named("dir"), 0o755).unwrap().ino;
    let (file, _) = world.create("file");
    for ino in [dir, file] {
        let owner = SetAttr { uid: Some(1000), gid: Some(500), ..SetAttr::default() };
        vfs.setattr(&ROOT, ino, &owner).unwrap();
        for (caller, entries, expected) in [
            (user(&Member(500)), EXTENDED, 0o2670),
            (user(&Member(501)), EXTENDED, 0o670),
            (user(&Member(500)), MINIMAL, 0o2751),
            (user(&Member(501)), MINIMAL, 0o751),
            (ROOT, EXTENDED, 0o2670),
        ] {
            chmod(&world, ino, 0o2755);
            vfs.set_acl(&caller, ino, AclKind::Access, &value(entries)).unwrap();
            assert_eq!(mode(&world, ino), expected);
        }
    }
    chmod(&world, dir, 0o2755);
    vfs.set_acl(&user(&Member(501)), dir, AclKind::Default, &value(EXTENDED)).unwrap();
    assert_eq!(mode(&world, dir), 0o2755);
    // What is made in there inherits the bit with the list, whoever makes it (the kernel strips it from files).
    let sub = vfs.mkdir(&user(&Member(501)), dir, &named("sub"), 0o755).unwrap();
    assert_eq!((sub.mode, sub.gid), (0o2650, 500));
}

/// A change of content or owner: what the kernel sends for it.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// A write by somebody without CAP_FSETID.
    Write,
    /// A write by root.
    WriteOfRoot,
    Truncate,
    OpenTruncating,
    Chown,
    /// chown to what is, or before fallocate.
    Nothing,
}

const CHANGES: [Change; 6] = [
    Change::Write,
    Change::WriteOfRoot,
    Change::Truncate,
    Change::OpenTruncating,
    Change::Chown,
    Change::Nothing,
];

fn make(world: &World, change: Change, caller: &Caller<'_>, ino: Ino) {
    let vfs = world.vfs();
    let set = |set: SetAttr| vfs.setattr(caller, ino, &set).map(drop).unwrap();
    let open = |truncate| {
        let flags = OpenFlags { truncate, sync: false };
        vfs.open_file(caller, ino, flags).unwrap()
    };
    match change {
        Change::Write | Change::WriteOfRoot => {
            let fh = open(false);
            let writer = matches!(change, Change::Write).then_some(caller);
            let _is_taken = vfs.kill_privileges(fh, writer).unwrap();
            assert!(!vfs.kill_privileges(fh, writer).unwrap(), "nothing is left to take");
            world.write(fh, 0, b"content");
            vfs.release(fh);
        }
        Change::Truncate => set(SetAttr { size: Some(2), ..SetAttr::default() }),
        Change::OpenTruncating => vfs.release(open(true)),
        Change::Chown => set(SetAttr { gid: Some(500), ..SetAttr::default() }),
        Change::Nothing => set(SetAttr::default()),
    }
}

#[test]
fn changes_take_suid_and_sgid_as_ext4_does() {
    let world = World::new(74);
    let (ino, fh) = world.create("program");
    world.vfs().release(fh);
    let owner = SetAttr { uid: Some(1000), gid: Some(500), ..SetAttr::default() };
    world.vfs().setattr(&ROOT, ino, &owner).unwrap();
    let (inside, outside) = (Member(500), Member(501));
    for change in CHANGES {
        let by_root = matches!(change, Change::WriteOfRoot | Change::Truncate | Change::OpenTruncating);
        for (before, by_member, by_stranger) in [
            (0o6666, 0o2666, 0o666),
            (0o6676, 0o676, 0o676),
            (0o6777, 0o777, 0o777),
            (0o2766, 0o2766, 0o766),
            (0o4711, 0o711, 0o711),
            (0o1640, 0o1640, 0o1640),
        ] {
            let after = |caller: &Caller<'_>| {
                chmod(&world, ino, before);
                make(&world, change, caller, ino);
                mode(&world, ino)
            };
            let what = format!("{change:?} of {before:o}");
            let kept = matches!(change, Change::WriteOfRoot);
            assert_eq!(after(&user(&inside)), if kept { before } else { by_member }, "{what} by a member");
            assert_eq!(
                after(&user(&outside)),
                if kept { before } else { by_stranger },
                "{what} by a stranger"
            );
            assert_eq!(after(&ROOT), if by_root { before } else { by_member }, "{what} by root");
        }
    }
    let dir = world.vfs().mkdir(&ROOT, Ino::ROOT, &named("dir"), 0o755).unwrap().ino;
    chmod(&world, dir, 0o6777);
    make(&world, Change::Chown, &user(&outside), dir);
    assert_eq!(mode(&world, dir), 0o6777, "of directories nothing is taken");
}

#[test]
fn every_change_takes_file_capabilities_and_nothing_else_does() {
    let mut world = World::new(75);
    let (ino, fh) = world.create("program");
    world.vfs().release(fh);
    const CAPABILITY: &[u8] = b"security.capability";
    let inside = Member(0);
    for change in CHANGES {
        for (caller, is_remounted) in [(user(&inside), false), (ROOT, true)] {
            world.vfs().setxattr(ino, b"user.other", b"stays", SetXattr::Either).unwrap();
            world.vfs().setxattr(ino, CAPABILITY, b"value", SetXattr::Either).unwrap();
            chmod(&world, ino, 0o755);
            assert_eq!(world.vfs().getxattr(ino, CAPABILITY).unwrap(), b"value");
            if is_remounted {
                world.kill_and_remount();
            }
            make(&world, change, &caller, ino);
            let found = world.vfs().getxattr(ino, CAPABILITY);
            assert!(matches!(found, Err(Error::NoAttribute)), "{change:?}: {found:?}");
            assert_eq!(world.vfs().listxattr(ino).unwrap(), b"user.other\0");
        }
    }
}

#[test]
fn attributes_are_taken_until_their_names_fill_what_can_be_listed() {
    let mut world = World::new(76);
    let (ino, _) = world.create("file");
    let name = |number: u32| format!("user.{number:0250}").into_bytes();
    for number in 0..256 {
        world.vfs().setxattr(ino, &name(number), b"x", SetXattr::Create).unwrap();
    }
    assert_eq!(world.vfs().listxattr(ino).unwrap().len(), 65_536);
    for is_remounted in [false, true] {
        if is_remounted {
            world.kill_and_remount();
        }
        let vfs = world.vfs();
        assert!(matches!(vfs.setxattr(ino, b"user.a", b"", SetXattr::Either), Err(Error::NoSpace)));
        assert!(matches!(vfs.set_acl(&ROOT, ino, AclKind::Access, &value(EXTENDED)), Err(Error::NoSpace)));
        assert_eq!(mode(&world, ino), 0o644, "a list that is not kept changes no mode");
        vfs.setxattr(ino, &name(7), b"replaced", SetXattr::Replace).unwrap();
        vfs.removexattr(ino, &name(9)).unwrap();
        vfs.setxattr(ino, &name(9), b"again", SetXattr::Create).unwrap();
    }
    // All of it goes with the file.
    world.vfs().unlink(Ino::ROOT, &named("file")).unwrap();
}

#[test]
fn names_outside_the_namespaces_are_refused_as_on_ext4() {
    let world = World::new(77);
    let vfs = world.vfs();
    let (ino, _) = world.create("file");
    for name in ["user.", "trusted.", "security."] {
        assert!(matches!(vfs.setxattr(ino, name.as_bytes(), b"", SetXattr::Either), Err(Error::Invalid)));
        assert!(matches!(vfs.getxattr(ino, name.as_bytes()), Err(Error::Invalid)), "{name}");
    }
    for name in ["", "user", "users.a", "system.a", "system.posix_acl_access2", "os2.a"] {
        let set = vfs.setxattr(ino, name.as_bytes(), b"", SetXattr::Either);
        assert!(matches!(set, Err(Error::NotSupported)), "{name}");
        assert!(matches!(vfs.removexattr(ino, name.as_bytes()), Err(Error::NotSupported)), "{name}");
    }
    let both = |name: &[u8]| vfs.setxattr(ino, name, b"", SetXattr::CreateAndReplace);
    assert!(matches!(both(b"user.a"), Err(Error::NoAttribute)));
    vfs.setxattr(ino, b"user.a", b"", SetXattr::Create).unwrap();
    assert!(matches!(both(b"user.a"), Err(Error::Exists)));
}
