//! Names, links and attributes.

use gravitonfs::base::ids::Ino;
use gravitonfs::base::name::Name;
use gravitonfs::vfs::{DirEntry, DirSink, Error, RenameMode, SetXattr};

use super::world::{ROOT, World, named};

struct Names {
    names: Vec<Vec<u8>>,
    last: u64,
    room: usize,
}

impl DirSink for Names {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.last = entry.cookie;
        self.names.push(entry.name.to_vec());
        true
    }
}

fn list(world: &World, dir: Ino, room: usize) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut last = 0;
    loop {
        let mut sink = Names { names: Vec::new(), last, room };
        world.vfs().readdir(dir, last, &mut sink).unwrap();
        if sink.names.is_empty() {
            names.sort();
            return names;
        }
        last = sink.last;
        names.extend(sink.names);
    }
}

#[test]
fn a_directory_lists_every_entry_once_however_it_is_read() {
    let world = World::new(1);
    let mut expected: Vec<Vec<u8>> = vec![b".".to_vec(), b"..".to_vec()];
    for number in 0..1_200 {
        let name = Name::new(format!("{number}-\u{e9}").as_bytes()).unwrap();
        world.vfs().mknod(&ROOT, Ino::ROOT, &name, 0o100_644, 0).unwrap();
        expected.push(name.as_bytes().to_vec());
    }
    expected.sort();
    for room in [1, 7, 500, 10_000] {
        assert!(list(&world, Ino::ROOT, room) == expected, "{room} at a time");
    }
}

#[test]
fn removing_what_was_listed_loses_nothing_that_stays() {
    let world = World::new(2);
    for number in 0..600 {
        world.vfs().mkdir(&ROOT, Ino::ROOT, &named(&number.to_string()), 0o755).unwrap();
    }
    let mut seen = 0;
    let mut last = 2;
    loop {
        let mut sink = Names { names: Vec::new(), last, room: 13 };
        world.vfs().readdir(Ino::ROOT, last, &mut sink).unwrap();
        if sink.names.is_empty() {
            break;
        }
        last = sink.last;
        seen += sink.names.len();
        for name in sink.names {
            world.vfs().rmdir(Ino::ROOT, &Name::new(&name).unwrap()).unwrap();
        }
    }
    assert_eq!(seen, 600);
    assert_eq!(world.vfs().getattr(Ino::ROOT).unwrap().nlink, 2);
}

#[test]
fn rename_refuses_what_posix_refuses() {
    let world = World::new(3);
    let vfs = world.vfs();
    let dir = |parent, name: &str| vfs.mkdir(&ROOT, parent, &named(name), 0o755).unwrap().ino;
    let (a, b) = (dir(Ino::ROOT, "a"), dir(Ino::ROOT, "b"));
    let inner = dir(a, "inner");
    vfs.mknod(&ROOT, b, &named("file"), 0o100_600, 0).unwrap();
    let rename = |from: (Ino, &str), to: (Ino, &str), mode| {
        let moved = vfs.rename((from.0, &named(from.1)), (to.0, &named(to.1)), mode);
        world.runtime.block_on(moved)
    };
    use RenameMode::{Exchange, NoReplace, Replace};
    assert!(matches!(rename((Ino::ROOT, "a"), (inner, "x"), Replace), Err(Error::Invalid)));
    assert!(matches!(rename((Ino::ROOT, "a"), (a, "inner"), Exchange), Err(Error::Invalid)));
    assert!(matches!(rename((Ino::ROOT, "a"), (Ino::ROOT, "b"), Replace), Err(Error::NotEmpty)));
    assert!(matches!(rename((Ino::ROOT, "a"), (b, "file"), Replace), Err(Error::NotDirectory)));
    assert!(matches!(rename((b, "file"), (Ino::ROOT, "a"), Replace), Err(Error::IsDirectory)));
    assert!(matches!(rename((b, "file"), (Ino::ROOT, "a"), NoReplace), Err(Error::Exists)));
    assert!(matches!(rename((b, "file"), (a, "new"), Exchange), Err(Error::NotFound)));
    rename((Ino::ROOT, "a"), (b, "a"), Replace).unwrap();
    assert_eq!(vfs.parent(a).unwrap(), b);
    assert_eq!(vfs.getattr(b).unwrap().nlink, 3);
    assert_eq!(vfs.getattr(Ino::ROOT).unwrap().nlink, 3);
    rename((b, "a"), (b, "file"), Exchange).unwrap();
    assert_eq!(vfs.lookup(b, &named("file")).unwrap().unwrap().ino, a);
}

#[test]
fn names_links_and_attributes_survive_a_kill() {
    let mut world = World::new(4);
    let (ino, _) = world.create("one");
    world.vfs().link(ino, Ino::ROOT, &named("two")).unwrap();
    world.vfs().setxattr(ino, b"user.key", b"value", SetXattr::Create).unwrap();
    world.vfs().symlink(&ROOT, Ino::ROOT, &named("sym"), b"one").unwrap();
    world.kill_and_remount();
    let vfs = world.vfs();
    let attr = vfs.lookup(Ino::ROOT, &named("two")).unwrap().unwrap();
    assert_eq!((attr.ino, attr.nlink), (ino, 2));
    assert_eq!(vfs.getxattr(ino, b"user.key").unwrap(), b"value");
    let sym = vfs.lookup(Ino::ROOT, &named("sym")).unwrap().unwrap();
    assert_eq!(vfs.readlink(sym.ino).unwrap(), b"one");
    let made = vfs.mknod(&ROOT, Ino::ROOT, &named("new"), 0o100_600, 0).unwrap();
    assert!(made.ino > sym.ino, "numbers are never used twice");
}
