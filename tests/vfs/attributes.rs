//! Times of directories.

use gravitonfs::base::ids::Ino;
use gravitonfs::vfs::{DirEntry, DirSink};

use super::world::{ROOT, World, named};

struct Ignore;

impl DirSink for Ignore {
    fn add(&mut self, _: &DirEntry<'_>) -> bool {
        true
    }
}

#[test]
fn reading_a_directory_moves_its_atime_as_relatime_has_it() {
    let world = World::new(24);
    let dir = world.vfs().mkdir(&ROOT, Ino::ROOT, &named("d"), 0o755).unwrap();
    let atime = || world.vfs().getattr(dir.ino).unwrap().atime;
    world.vfs().readdir(dir.ino, 0, &mut Ignore).unwrap();
    let first = atime();
    assert!(dir.atime < first);
    world.vfs().readdir(dir.ino, 0, &mut Ignore).unwrap();
    assert_eq!(atime(), first, "nothing changed since");
}
