//! Tests of what a directory has and other stores have not: other processes, other filesystems, leftovers.

use futures_util::future::join_all;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text.to_owned())
}

const BODY: Bytes = Bytes::from_static(b"content");

#[tokio::test]
async fn a_missing_directory_is_not_found_and_create_makes_it() {
    let parent = tempfile::tempdir().expect("make a directory");
    let root = parent.path().join("new/volume");
    let error = DirObjectStore::open(&root).err().expect("there is no such directory");
    assert_eq!(error.kind, Kind::NotFound);
    assert!(error.detail.contains("new/volume"), "{error}");
    let store = DirObjectStore::create(&root).expect("create");
    store.put_new(&key("packs/a"), BODY).await.expect("put");
    let again = DirObjectStore::create(&root).expect("an existing one is opened");
    assert_eq!(again.get(&key("packs/a"), None).await.expect("get"), BODY);
    assert_eq!(again.location(), format!("file://{}", root.display()));
}

/// An unmounted disk shows the empty directory below its mount point: "no such object" there would read as an empty
/// volume, and a write would begin another one.
#[tokio::test]
async fn a_directory_that_was_exchanged_is_unavailable_and_not_empty() {
    let parent = tempfile::tempdir().expect("make a directory");
    let root = parent.path().join("volume");
    let store = DirObjectStore::create(&root).expect("create");
    let meta = store.put_new(&key("a"), BODY).await.expect("put");
    fs::rename(&root, parent.path().join("elsewhere")).expect("move it away");
    for exchanged in [false, true] {
        if exchanged {
            fs::create_dir(&root).expect("make an empty one");
        }
        for result in [
            store.get(&key("a"), None).await.map(drop),
            store.head(&key("a")).await.map(drop),
            store.list("", None).await.map(drop),
            store.put_new(&key("b"), BODY).await.map(drop),
            store.put_if(&key("a"), BODY, &meta.etag).await.map(drop),
            store.copy(&key("a"), &key("b")).await.map(drop),
            store.delete(&[key("a")]).await,
        ] {
            let error = result.expect_err("the directory is another one");
            assert_eq!(error.kind, Kind::Unavailable, "{error}");
        }
    }
    assert_eq!(fs::read_dir(&root).expect("list it").count(), 0, "nothing was begun there");
}

#[tokio::test]
async fn two_processes_cannot_both_replace_one_version() {
    let root = tempfile::tempdir().expect("make a directory");
    let stores = [(); 4].map(|()| DirObjectStore::open(root.path()).expect("open"));
    let mut current = stores[0].put_new(&key("head"), BODY).await.expect("put");
    for round in 0..10 {
        let body = |writer: usize| Bytes::from(format!("{round} {writer}"));
        let writes = stores
            .iter()
            .enumerate()
            .map(|(writer, store)| store.put_if(&current.key, body(writer), &current.etag));
        let results = join_all(writes).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        current = stores[0].head(&current.key).await.expect("head");
    }
}

#[tokio::test]
async fn a_version_differs_although_the_clock_went_back() {
    let root = tempfile::tempdir().expect("make a directory");
    let store = DirObjectStore::open(root.path()).expect("open");
    store.put_new(&key("a"), BODY).await.expect("put");
    let future = SystemTime::now() + Duration::from_secs(3600);
    File::open(root.path().join("a")).and_then(|file| file.set_modified(future)).expect("set its time");
    let first = store.head(&key("a")).await.expect("head");
    let second = store.put_if(&key("a"), BODY, &first.etag).await.expect("overwrite");
    let third = store.put_if(&key("a"), BODY, &second.etag).await.expect("overwrite");
    let times = [&first, &second, &third].map(|meta| meta.etag.0.split('-').next().map(str::to_owned));
    assert!(times.is_sorted_by(|a, b| a < b), "inode numbers come back, times must not: {times:?}");
}

#[tokio::test]
async fn leftovers_of_dead_processes_are_swept_and_never_listed() {
    let root = tempfile::tempdir().expect("make a directory");
    let store = DirObjectStore::open(root.path()).expect("open");
    store.put_new(&key("a"), BODY).await.expect("put");
    let scratch = root.path().join(SCRATCH);
    assert_eq!(fs::read_dir(&scratch).expect("list it").count(), 0, "a put leaves nothing behind");
    let (dead, living) = (scratch.join("1-1-0"), scratch.join("2-2-0"));
    File::create(&living).expect("a write under way");
    let long_ago = SystemTime::now() - SCRATCH_STALE_AFTER - Duration::from_secs(60);
    File::create(&dead).and_then(|file| file.set_modified(long_ago)).expect("a write that never ended");
    fs::write(root.path().join("Notes.txt"), "of somebody").expect("write");
    let store = DirObjectStore::open(root.path()).expect("open again");
    assert_eq!((dead.exists(), living.exists()), (false, true));
    let page = store.list("", None).await.expect("list");
    assert_eq!(page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a"]);
}

/// Unmounts on drop.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where this process may not mount.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a directory");
        let (source, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(source, dir.path(), source, flags, Some("size=256k")).ok().map(|()| Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_full_and_keeps_what_it_has_and_a_read_only_one_denies() {
    let Some(disk) = SmallDisk::new() else {
        println!("skipped: needs the right to mount");
        return;
    };
    let path = disk.0.path();
    let store = DirObjectStore::open(path).expect("open");
    store.put_new(&key("a"), BODY).await.expect("put");
    let error = store.put_new(&key("b"), vec![0; 1 << 20].into()).await.expect_err("no room");
    assert_eq!(error.kind, Kind::Full, "{error}");
    assert_eq!(store.head(&key("b")).await.expect_err("nothing was created").kind, Kind::NotFound);
    store.put_new(&key("c"), vec![0; 100 << 10].into()).await.expect("the failed write gave its space back");

    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(Some("tmpfs"), path, Some("tmpfs"), read_only, None::<&str>).expect("remount");
    let error = store.put_new(&key("d"), BODY).await.expect_err("read-only");
    assert_eq!(error.kind, Kind::Denied, "{error}");
    assert_eq!(store.get(&key("a"), None).await.expect("get"), BODY);
}
