//! Trees of files for tests: real sources, bytes that do not compress, and pictures of a tree to compare.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub const MIB: usize = 1 << 20;

/// How many files of the sources are used.
pub const SOURCE_FILES: usize = 5000;

/// A directory with the first [`SOURCE_FILES`] files, sorted by path, of the sources of the crates in our Cargo.lock, as
/// cargo unpacked them. Made once per process and left below `target/tmp`.
///
/// # Panics
/// If cargo has not unpacked that many.
pub fn sources() -> &'static Path {
    static SOURCES: OnceLock<PathBuf> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let lock =
            fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).expect("read Cargo.lock");
        let done = base.join(format!("sources-{}", &blake3::hash(lock.as_bytes()).to_hex()[..16]));
        if done.exists() {
            return done;
        }
        let draft = tempfile::tempdir_in(base).expect("temporary directory");
        for (root, relative) in first_source_files(&lock) {
            let target = draft.path().join(&relative);
            fs::create_dir_all(target.parent().expect("below the draft")).expect("mkdir");
            fs::copy(root.join(&relative), target).expect("copy a source file");
        }
        // Another process may have been quicker.
        if fs::rename(draft.path(), &done).is_ok() {
            drop(draft.keep());
        }
        done
    })
}

/// Registry directory and path below it of each.
fn first_source_files(lock: &str) -> Vec<(PathBuf, PathBuf)> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = home.expect("CARGO_HOME or HOME is set").join("registry/src");
    let roots: Vec<_> = fs::read_dir(&registries)
        .unwrap_or_else(|error| panic!("{}: {error}; run cargo fetch --locked", registries.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    let mut files = Vec::new();
    for krate in crates_in(lock) {
        let Some(root) = roots.iter().find(|root| root.join(&krate).is_dir()) else { continue };
        for file in files_below(&root.join(&krate)) {
            let relative = file.strip_prefix(root).expect("below the registry").to_owned();
            files.push((relative, root.clone()));
        }
    }
    files.sort();
    files.truncate(SOURCE_FILES);
    assert_eq!(files.len(), SOURCE_FILES, "too few unpacked sources; run cargo fetch --locked");
    files.into_iter().map(|(relative, root)| (root, relative)).collect()
}

/// `name-version` of every package that comes from a registry.
fn crates_in(lock: &str) -> Vec<String> {
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let name = |package: &str| {
        value(package, "source")?;
        Some(format!("{}-{}", value(package, "name")?, value(package, "version")?))
    };
    lock.split("[[package]]").filter_map(name).collect()
}

/// Regular files at any depth.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("read directory") {
        let entry = entry.expect("a directory entry");
        match entry.file_type().expect("file type") {
            kind if kind.is_dir() => files.extend(files_below(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

/// Sum of the lengths of all regular files.
pub fn bytes_below(directory: &Path) -> u64 {
    files_below(directory).iter().map(|file| fs::metadata(file).expect("stat").len()).sum()
}

/// What is at one path, as far as a user can see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub mode: u32,
    pub owner: (u32, u32),
    pub links: u64,
    pub size: u64,
    pub mtime: (i64, i64),
    /// Of devices.
    pub rdev: u64,
    /// Digest of a file, target of a link.
    pub content: String,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Everything below `root`, without `root` itself.
pub fn picture(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for listed in fs::read_dir(&directory).expect("read directory") {
            let path = listed.expect("a directory entry").path();
            let entry = entry(&path);
            if fs::symlink_metadata(&path).expect("lstat").is_dir() {
                directories.push(path.clone());
            }
            entries.insert(path.strip_prefix(root).expect("below the root").to_owned(), entry);
        }
    }
    entries
}

fn entry(path: &Path) -> Entry {
    let stat = fs::symlink_metadata(path).expect("lstat");
    let kind = stat.file_type();
    let content = if kind.is_file() {
        digest(path)
    } else if kind.is_symlink() {
        fs::read_link(path).expect("readlink").to_string_lossy().into_owned()
    } else {
        String::new()
    };
    let is_device = kind.is_block_device() || kind.is_char_device();
    Entry {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        links: stat.nlink(),
        // What a directory's length means is nobody's business.
        size: if kind.is_dir() { 0 } else { stat.size() },
        mtime: (stat.mtime(), stat.mtime_nsec()),
        rdev: if is_device { stat.rdev() } else { 0 },
        content,
        xattrs: crate::syscall::xattrs(path),
    }
}

/// Asserts that two pictures agree, naming the first few paths where they do not.
pub fn assert_same(expected: &BTreeMap<PathBuf, Entry>, found: &BTreeMap<PathBuf, Entry>) {
    let paths = expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path)));
    let differs = |path: &&PathBuf| expected.get(*path) != found.get(*path);
    let show =
        |path: &PathBuf| format!("{}: {:?}\nis {:?}", path.display(), expected.get(path), found.get(path));
    let differences: Vec<_> = paths.filter(differs).take(5).map(show).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// BLAKE3 of a file, read in pieces of 1 MiB.
pub fn digest(path: &Path) -> String {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; MIB];
    loop {
        match file.read(&mut piece).unwrap_or_else(|error| panic!("read {}: {error}", path.display())) {
            0 => return hasher.finalize().to_hex().to_string(),
            len => hasher.update(&piece[..len]),
        };
    }
}

/// An endless stream of bytes that do not compress, the same for the same seed.
pub struct Noise(blake3::OutputReader);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// Writes `head` and then `len` bytes of [`Noise`] over the file at `path`; returns the digest of it all.
pub fn write_noise(path: &Path, head: &[u8], seed: u64, len: usize) -> String {
    let mut file = File::create(path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    };
    if !head.is_empty() {
        write(head);
    }
    let mut noise = Noise::new(seed);
    let mut left = len;
    while 0 < left {
        let piece = noise.take(left.min(MIB));
        write(&piece);
        left -= piece.len();
    }
    hasher.finalize().to_hex().to_string()
}
