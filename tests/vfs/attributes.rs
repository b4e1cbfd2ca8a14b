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

#[test]
fn a_renewed_atime_outlives_the_inode_in_memory() {
    let mut world = World::new(25);
    let dir = world.vfs().mkdir(&ROOT, Ino::ROOT, &named("d"), 0o755).unwrap();
    world.vfs().readdir(dir.ino, 0, &mut Ignore).unwrap();
    let renewed = world.vfs().getattr(dir.ino).unwrap().atime;
    assert!(dir.atime < renewed);
    world.vfs().forget(dir.ino, 1);
    assert_eq!(world.vfs().getattr(dir.ino).unwrap().atime, renewed, "the kernel has forgotten it");
    world.kill_and_remount();
    assert_eq!(world.vfs().getattr(dir.ino).unwrap().atime, renewed, "it was committed");
}

#[test]
fn a_renewed_atime_is_kept_when_everything_is_synced() {
    let mut world = World::new(26);
    let dir = world.vfs().mkdir(&ROOT, Ino::ROOT, &named("d"), 0o755).unwrap();
    world.vfs().readdir(dir.ino, 0, &mut Ignore).unwrap();
    let renewed = world.vfs().getattr(dir.ino).unwrap().atime;
    world.runtime.block_on(world.vfs().sync_all()).unwrap();
    world.kill_and_remount();
    assert_eq!(world.vfs().getattr(dir.ino).unwrap().atime, renewed);
}
