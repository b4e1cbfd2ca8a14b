//! Making volumes.

use std::sync::Arc;

use bytes::Bytes;
use gravitonfs::backend::memory_object::MemoryObjectStore;
use gravitonfs::maint::format::{ObjectSchema, format};
use gravitonfs::rt::{ManualClock, SeededRandom, TokioRuntime};
use gravitonfs::store::keys;
use gravitonfs::store::object::{ImmutableObjectStore as _, ObjectKey};
use gravitonfs::store::superblock::{
    BlockBytes, BlockCodec, Layout, SchemaStore as _, SuperblockError, VolumeShape,
};

const SHAPE: VolumeShape = VolumeShape {
    block_bytes: BlockBytes { min: 65_536, avg: 262_144, max: 1_048_576 },
    layout: Layout::Framed,
    codec: BlockCodec::Zstd,
    inline_bytes_max: 2048,
};

#[test]
fn a_volume_is_made_once_and_only_in_an_empty_place() {
    TokioRuntime::new(1, 1).expect("threads for a test").block_on(async {
        let objects = Arc::new(MemoryObjectStore::new());
        let schema = ObjectSchema::new(objects.clone());
        let (random, clock) = (SeededRandom::new(1), ManualClock::new());
        assert!(matches!(schema.read().await, Err(SuperblockError::Missing)));
        let made = format(&schema, SHAPE, &random, &clock).await.expect("empty");
        assert_eq!(schema.read().await.expect("formatted"), made);
        let again = format(&schema, SHAPE, &random, &clock).await;
        assert!(matches!(again, Err(SuperblockError::Exists(id)) if id == made.volume_id()));
        assert_eq!(schema.read().await.expect("unchanged"), made);

        let objects = Arc::new(MemoryObjectStore::new());
        let foreign = ObjectKey::parse("holiday.jpg").expect("valid");
        objects.put_new(&foreign, Bytes::from_static(b"...")).await.expect("empty");
        let schema = ObjectSchema::new(objects.clone());
        let outcome = format(&schema, SHAPE, &random, &clock).await;
        assert!(matches!(outcome, Err(SuperblockError::NotEmpty(name)) if name == "holiday.jpg"));
        assert!(objects.head(&keys::superblock()).await.is_err(), "nothing was written");
    });
}
