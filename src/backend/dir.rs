//! An object store in a local directory (`file:///dir`): one file per object, durable by rule R18.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use super::dir_list;
use super::direct_io::DirectIo;
use crate::base::range::ByteRange;
use crate::store::object::{
    Etag, Fencing, ImmutableObjectStore, ListPage, MutableObjectStore, ObjectKey, ObjectMeta,
};
use crate::store::{Error, Kind, Result};

/// Directory of temporary files and of the lock. `~` is in no object key, so no key can lie in it and no listing
/// shows it.
const SCRATCH: &str = "~tmp";

/// A temporary file untouched for this long was left by a process that died; no write takes so long.
const SCRATCH_STALE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Objects as files: the key is the path below the root. Processes of one host may share the directory; over a network
/// filesystem the conditional writes are as atomic as its link(2) and flock(2). Calls are made on a tokio runtime, whose
/// blocking threads do the work.
pub struct DirObjectStore {
    tree: Arc<Tree>,
}

impl DirObjectStore {
    /// Opens the directory `root`, which must exist.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory, `Denied` if it cannot be entered.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let what = format!("open {}", root.display());
        let metadata = fs::metadata(&root).map_err(|error| Error::from_io(&what, error))?;
        if !metadata.is_dir() {
            return Err(Error::new(Kind::NotFound, format!("{what}: not a directory")));
        }
        fs::read_dir(&root).map_err(|error| Error::from_io(&what, error))?;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let tree = Tree {
            identity: (metadata.dev(), metadata.ino()),
            root,
            tag: format!("{}-{}", std::process::id(), since_1970.as_nanos()),
            io: Arc::default(),
            durable_dirs: Mutex::default(),
            temporaries: AtomicU64::new(0),
        };
        tree.sweep_scratch();
        Ok(Self { tree: Arc::new(tree) })
    }

    /// Makes the directory, with missing parents, durably, and opens it; one that exists is opened as it is.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let io = |error| Error::from_io(&format!("create {}", root.display()), error);
        let missing: Vec<_> = root.ancestors().take_while(|dir| !dir.exists()).collect();
        fs::create_dir_all(&root).map_err(io)?;
        for dir in missing {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_dir(parent.unwrap_or(Path::new("."))).map_err(io)?;
        }
        Self::open(root)
    }

    /// Runs file system calls on a thread that may block. Dropping the future does not stop them.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tree) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tree = Arc::clone(&self.tree);
        match tokio::task::spawn_blocking(move || work(&tree)).await {
            Ok(result) => result,
            Err(error) => Err(Error::new(Kind::Internal, format!("file operation: {error}"))),
        }
    }
}

#[async_trait]
impl ImmutableObjectStore for DirObjectStore {
    async fn put_new(&self, key: &ObjectKey, body: Bytes) -> Result<ObjectMeta> {
        let key = key.clone();
        self.blocking(move |tree| tree.put_new(&key, &body)).await
    }

    async fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let key = key.clone();
        self.blocking(move |tree| tree.get(&key, range)).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let key = key.clone();
        self.blocking(move |tree| tree.head(&key)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        let (prefix, start_after) = (prefix.to_owned(), start_after.cloned());
        self.blocking(move |tree| tree.list(&prefix, start_after.as_ref())).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        let keys = keys.to_vec();
        self.blocking(move |tree| tree.delete(&keys)).await
    }

    fn fencing(&self) -> Fencing {
        Fencing::Cas
    }

    fn location(&self) -> String {
        format!("file://{}", self.tree.root.display())
    }
}

#[async_trait]
impl MutableObjectStore for DirObjectStore {
    async fn put_if(&self, key: &ObjectKey, body: Bytes, expected: &Etag) -> Result<ObjectMeta> {
        let (key, expected) = (key.clone(), expected.clone());
        self.blocking(move |tree| tree.put_if(&key, &body, &expected)).await
    }

    async fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        let (from, to) = (from.clone(), to.clone());
        self.blocking(move |tree| tree.copy(&from, &to)).await
    }
}

/// The directory, with blocking calls.
struct Tree {
    root: PathBuf,
    /// Device and inode of the root when it was opened.
    identity: (u64, u64),
    /// Begins the names of our temporary files; no other store, in whatever process, has the same.
    tag: String,
    io: Arc<DirectIo>,
    /// Directories whose own entry is known to be durable: synced once per process, not once per object.
    durable_dirs: Mutex<HashSet<PathBuf>>,
    /// Temporary files made so far, to name the next.
    temporaries: AtomicU64,
}

impl Tree {
    fn put_new(&self, key: &ObjectKey, body: &[u8]) -> Result<ObjectMeta> {
        let io = |error| self.write_error("put", key, error);
        let path = self.path(key);
        if path.symlink_metadata().is_ok() {
            return Err(exists(key)); // Only to save writing the body: link(2) decides.
        }
        let temporary = self.write_temporary(key, body)?;
        let parent = self.durable_parent(&path).map_err(io)?;
        match fs::hard_link(&temporary.path, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(key)),
            Err(error) => return Err(io(error)),
        }
        sync_dir(parent).map_err(io)?;
        temporary.meta(key).map_err(io)
    }

    fn get(&self, key: &ObjectKey, range: Option<ByteRange>) -> Result<Bytes> {
        let io = |error| self.io("get", key, error);
        let file = File::open(self.path(key)).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(io::ErrorKind::NotFound.into()));
        }
        let len = metadata.len();
        let range = range.unwrap_or(ByteRange::new(0, len));
        if len < range.end {
            let detail = format!("get {key}: range {range:?} ends beyond the object's {len} bytes");
            return Err(Error::new(Kind::Corrupt, detail));
        }
        let len = usize::try_from(range.len()).expect("addresses have 64 bits");
        self.io.read(&file, len, range.start).map_err(io)
    }

    fn head(&self, key: &ObjectKey) -> Result<ObjectMeta> {
        let metadata = fs::metadata(self.path(key)).map_err(|error| self.io("head", key, error))?;
        if !metadata.is_file() {
            return Err(self.io("head", key, io::ErrorKind::NotFound.into()));
        }
        Ok(meta_of(key, &metadata))
    }

    fn delete(&self, keys: &[ObjectKey]) -> Result<()> {
        // Under the lock, or a conditional write that has just checked the version would bring the object back.
        let _lock = self.lock()?;
        let mut touched = HashSet::new();
        for key in keys {
            let path = self.path(key);
            match fs::remove_file(&path) {
                Ok(()) => touched.extend(path.parent().map(Path::to_path_buf)),
                // A part of the path may be an object too; then this one cannot exist either.
                Err(error) if is_absent(&error) => self.require_root("delete", key)?,
                Err(error) => return Err(self.io("delete", key, error)),
            }
        }
        for dir in touched {
            let what = format!("delete in {}", dir.display());
            sync_dir(&dir).map_err(|error| Error::from_io(&what, error))?;
        }
        Ok(())
    }

    fn put_if(&self, key: &ObjectKey, body: &[u8], expected: &Etag) -> Result<ObjectMeta> {
        let temporary = self.write_temporary(key, body)?;
        let _lock = self.lock()?;
        let current = self.head(key)?;
        if current.etag != *expected {
            return Err(Error::new(Kind::Precondition, format!("put {key}: has changed since it was read")));
        }
        self.replace(key, temporary)
    }

    fn copy(&self, from: &ObjectKey, to: &ObjectKey) -> Result<ObjectMeta> {
        let mut source = File::open(self.path(from)).map_err(|error| self.io("copy", from, error))?;
        let io = |error| self.write_error("copy", from, error);
        let mut temporary = self.temporary().map_err(io)?;
        // Shares blocks where the filesystem can. A hard link would not do: both names would share one version.
        io::copy(&mut source, &mut temporary.file).map_err(io)?;
        temporary.finish().map_err(io)?;
        let _lock = self.lock()?;
        self.replace(to, temporary)
    }

    /// Puts a finished temporary file in the place of `key`, with a version that differs from the old one's. The
    /// caller holds the lock.
    fn replace(&self, key: &ObjectKey, temporary: Temporary) -> Result<ObjectMeta> {
        let io = |error| self.write_error("put", key, error);
        let path = self.path(key);
        if let Ok(old) = fs::metadata(&path).and_then(|metadata| metadata.modified())
            && temporary.file.metadata().and_then(|metadata| metadata.modified()).map_err(io)? <= old
        {
            // The clock went back. Inode numbers are reused at once, so the time alone must tell versions apart.
            temporary.file.set_modified(old + Duration::from_nanos(1)).map_err(io)?;
            temporary.file.sync_all().map_err(io)?;
        }
        let parent = self.durable_parent(&path).map_err(io)?;
        fs::rename(&temporary.path, &path).map_err(io)?;
        sync_dir(parent).map_err(io)?;
        temporary.meta(key).map_err(io)
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// A synced file with `body` in it, under a temporary name.
    fn write_temporary(&self, key: &ObjectKey, body: &[u8]) -> Result<Temporary> {
        let io = |error| self.write_error("put", key, error);
        let temporary = self.temporary().map_err(io)?;
        self.io.write_all_at(&temporary.file, body, 0).map_err(io)?;
        temporary.finish().map_err(io)?;
        Ok(temporary)
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.scratch()?.join(format!("{}-{number}", self.tag));
        Ok(Temporary { file: File::create_new(&path)?, path })
    }

    /// Every write comes through here, and none goes to another directory than the one that was opened: a disk that
    /// has been unmounted must not be continued in the empty directory below it.
    fn scratch(&self) -> io::Result<PathBuf> {
        if !self.root_is_ours() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let scratch = self.root.join(SCRATCH);
        match fs::create_dir(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(scratch),
        }
    }

    /// Waits for the one lock that conditional replacement and deletion share, also between processes. Released on
    /// drop.
    fn lock(&self) -> Result<File> {
        let lock = || -> io::Result<File> {
            let file = File::create(self.scratch()?.join("lock"))?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.gone("lock"),
            _ => Error::from_io(&format!("lock {}", self.root.display()), error),
        })
    }

    /// The directory of `path`, made if missing, its own entry durable.
    fn durable_parent<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let parent = path.parent().expect("object files lie below the root");
        self.make_durable(parent)?;
        Ok(parent)
    }

    fn make_durable(&self, dir: &Path) -> io::Result<()> {
        let durable = || self.durable_dirs.lock().unwrap_or_else(PoisonError::into_inner);
        if dir == self.root || durable().contains(dir) {
            return Ok(());
        }
        let above = dir.parent().expect("directories of objects lie below the root");
        self.make_durable(above)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_dir(above)?,
        }
        durable().insert(dir.to_path_buf());
        Ok(())
    }

    /// Removes what dead processes left. Best effort: leftovers cost space, nothing else.
    fn sweep_scratch(&self) {
        let Ok(entries) = fs::read_dir(self.root.join(SCRATCH)) else { return };
        let stale = |entry: &fs::DirEntry| {
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok()?;
            let age = SystemTime::now().duration_since(modified).ok()?;
            Some(age >= SCRATCH_STALE_AFTER && entry.file_name() != "lock")
        };
        for entry in entries.flatten().filter(|entry| stale(entry) == Some(true)) {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Tells a missing object from a missing directory: the latter must never read as "nothing stored".
    fn require_root(&self, operation: &str, key: &ObjectKey) -> Result<()> {
        if self.root_is_ours() {
            return Ok(());
        }
        Err(self.gone(&format!("{operation} {key}")))
    }

    fn gone(&self, what: &str) -> Error {
        Error::new(Kind::Unavailable, format!("{what}: the directory {} is gone", self.root.display()))
    }

    fn root_is_ours(&self) -> bool {
        fs::metadata(&self.root).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    fn list(&self, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
        // Asked afterwards: a root that vanished meanwhile would make the listing a partial one.
        let page = dir_list::page(&self.root, prefix, start_after)?;
        self.root_is_ours().then_some(page).ok_or_else(|| self.gone(&format!("list {prefix}")))
    }

    fn io(&self, operation: &str, key: &ObjectKey, error: io::Error) -> Error {
        if !is_absent(&error) {
            return Error::from_io(&format!("{operation} {key}"), error);
        }
        match self.require_root(operation, key) {
            Ok(()) => {
                Error::new(Kind::NotFound, format!("{operation} {key}: no such object")).with_source(error)
            }
            Err(gone) => gone,
        }
    }

    /// As [`Self::io`] for a write, which no missing object can stop: what is missing then is a directory.
    fn write_error(&self, operation: &str, key: &ObjectKey, error: io::Error) -> Error {
        match self.io(operation, key, error) {
            Error { kind: Kind::NotFound, source, .. } => {
                let detail = format!("{operation} {key}: a part of the path is missing or not a directory");
                Error { kind: Kind::Internal, detail, source }
            }
            error => error,
        }
    }
}

/// A file being written, removed on drop unless it was renamed into place.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    /// Makes the content durable. The file's time becomes the clock's: the kernel's own stamp is too coarse to tell
    /// two versions written in one tick apart.
    fn finish(&self) -> io::Result<()> {
        self.file.set_modified(SystemTime::now())?;
        self.file.sync_all()
    }

    fn meta(&self, key: &ObjectKey) -> io::Result<ObjectMeta> {
        Ok(meta_of(key, &self.file.metadata()?))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing by this name, and nobody else uses it while we live.
        let _ = fs::remove_file(&self.path);
    }
}

/// Persists names created, removed or renamed in `dir`.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn exists(key: &ObjectKey) -> Error {
    Error::new(Kind::Precondition, format!("put {key}: exists already"))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

/// Version of a file: time of last change in nanoseconds, inode, length.
pub(super) fn meta_of(key: &ObjectKey, metadata: &fs::Metadata) -> ObjectMeta {
    let etag = format!(
        "{:x}.{:09}-{:x}-{:x}",
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ino(),
        metadata.len()
    );
    ObjectMeta { key: key.clone(), len: metadata.len(), etag: Etag(etag) }
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
