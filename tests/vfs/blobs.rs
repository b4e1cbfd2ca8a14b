//! Blobs of a volume: their own keys, the same blocks as files.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gravitonfs::store::Kind;
use gravitonfs::store::blob::{BlobKey, BlobSource, BlobStore};
use gravitonfs::vfs::VolumeBlobs;

use super::world::World;

struct Pieces(VecDeque<Bytes>);

#[async_trait]
impl BlobSource for Pieces {
    async fn next(&mut self) -> gravitonfs::store::Result<Option<Bytes>> {
        Ok(self.0.pop_front())
    }
}

fn pieces(data: &[u8]) -> Pieces {
    Pieces(data.chunks(9_000).map(Bytes::copy_from_slice).collect())
}

fn key(text: &str) -> BlobKey {
    BlobKey::parse(text).unwrap()
}

fn content(seed: u32) -> Vec<u8> {
    (0..40_000u32).flat_map(|at| (at * at + seed).to_le_bytes()).collect()
}

#[test]
fn a_blob_is_kept_until_it_is_removed_and_shares_blocks_with_files() {
    let mut world = World::new(1);
    let data = content(1);
    let (_, fh) = world.create("file");
    world.write(fh, 0, &data);
    world.settle();
    let stored = world.vfs().statfs().unwrap().stored_bytes;

    let blobs = VolumeBlobs(Arc::clone(world.vfs()));
    let stat = world.runtime.block_on(blobs.put(&key("k"), &mut pieces(&data))).unwrap();
    assert_eq!(stat.len, data.len() as u64);
    assert_eq!(world.vfs().statfs().unwrap().stored_bytes, stored, "nothing new is stored");
    let again = world.runtime.block_on(blobs.put(&key("k"), &mut pieces(b"other"))).unwrap_err();
    assert_eq!(again.kind, Kind::Precondition);
    drop(blobs);

    world.kill_and_remount();
    let blobs = VolumeBlobs(Arc::clone(world.vfs()));
    assert!(world.runtime.block_on(blobs.get(&key("k"), None)).unwrap() == data);
    world.runtime.block_on(blobs.delete(&key("k"))).unwrap();
    world.runtime.block_on(blobs.delete(&key("k"))).unwrap();
    let gone = world.runtime.block_on(blobs.get(&key("k"), None)).unwrap_err();
    assert_eq!(gone.kind, Kind::NotFound);
    let (ino, fh) = world.open("file");
    assert!(world.read_all(fh, ino) == data, "the file keeps its blocks");
}

#[test]
fn a_clone_outlives_its_origin_and_lists_in_order() {
    let world = World::new(2);
    let blobs = VolumeBlobs(Arc::clone(world.vfs()));
    let data = content(2);
    world.runtime.block_on(async {
        blobs.put(&key("b"), &mut pieces(&data)).await.unwrap();
        blobs.put(&key("empty"), &mut pieces(b"")).await.unwrap();
        blobs.clone_as(&key("b"), &key("a")).await.unwrap();
        blobs.delete(&key("b")).await.unwrap();
        assert!(blobs.get(&key("a"), None).await.unwrap() == data);
        let mut keys = Vec::new();
        blobs
            .list(&mut |key, stat| {
                keys.push((key.to_string(), stat.len));
                ControlFlow::Continue(())
            })
            .await
            .unwrap();
        assert_eq!(keys, [("a".into(), data.len() as u64), ("empty".into(), 0)]);
    });
}
