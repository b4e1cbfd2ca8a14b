//! Random operations on the mount and on a local directory: result, errno, attributes, bytes, holes, extended attributes
//! and maps agree after each step. The local directory is the temporary folder's filesystem, which must have holes and
//! extended attributes.
//!
//! `GRAVITONFS_MODEL_SEEDS` sets how many seeds, `GRAVITONFS_MODEL_SEED` the first, `GRAVITONFS_MODEL_STEPS` how many
//! steps each takes.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek, mkfifo};

use crate::mount::{Backend, Volume, run_test};
use crate::syscall::{Mapping, copy_range, get_xattr, list_xattrs, remove_xattr, set_xattr};
use crate::tools::data_extents;
use crate::tree::Noise;

const SEEDS: u64 = 5;
const STEPS: u64 = 600;

/// The trees are compared whole after this many steps.
const COMPARE_EVERY: u64 = 60;

/// What both filesystems count holes in. Files with a name that begins with `h` are changed in such units only, so that
/// their holes are the same; those of others are where each filesystem likes.
const UNIT: u64 = 4096;
const UNITS_MAX: u64 = 16;
const SIZE_MAX: u64 = UNIT * UNITS_MAX;

const HANDLES_MAX: usize = 6;

/// The direct handles' buffers begin at a multiple of a unit.
#[repr(align(4096))]
struct Aligned([u8; SIZE_MAX as usize]);

#[test]
fn random_operations_agree_with_a_local_directory() {
    let limit = 120 + 120 * number_from("GRAVITONFS_MODEL_SEEDS").unwrap_or(SEEDS);
    run_test(Backend::File, module_path!(), limit, |volume| {
        let first = number_from("GRAVITONFS_MODEL_SEED").unwrap_or(1);
        let steps = number_from("GRAVITONFS_MODEL_STEPS").unwrap_or(STEPS);
        volume.mount();
        for seed in first..first + number_from("GRAVITONFS_MODEL_SEEDS").unwrap_or(SEEDS) {
            println!("GRAVITONFS_MODEL_SEED={seed}");
            let mut twins = Twins::new(volume, seed);
            for step in 1..=steps {
                twins.step(step);
            }
            twins.remount();
            fs::remove_dir_all(twins.root(Side::Mount)).expect("remove");
            fs::remove_dir_all(twins.root(Side::Local)).expect("remove");
        }
    });
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Local,
    Mount,
}

const SIDES: [Side; 2] = [Side::Local, Side::Mount];

/// A file that is open on both sides, perhaps mapped.
struct Handle {
    /// Below the root, when it was opened.
    name: String,
    files: [File; 2],
    direct: bool,
    append: bool,
    maps: Option<[Mapping; 2]>,
}

/// What lstat says that both filesystems mean the same by.
#[derive(PartialEq, Eq, Debug)]
struct Stat {
    mode: u32,
    links: u64,
    owner: (u32, u32),
    size: u64,
}

/// What is at a path.
#[derive(PartialEq, Eq, Debug)]
struct Entry {
    stat: Stat,
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    extents: Vec<(u64, u64)>,
}

/// The two directories that are kept alike.
struct Twins<'a> {
    volume: &'a Volume,
    seed: u64,
    step: u64,
    dice: Noise,
    handles: Vec<Handle>,
    trace: Vec<String>,
    buffer: Box<Aligned>,
}

type Outcome<T> = Result<T, Option<i32>>;

fn outcome<T>(result: io::Result<T>) -> Outcome<T> {
    result.map_err(|error| error.raw_os_error())
}

impl Drop for Twins<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.trace.len().saturating_sub(60);
            eprintln!(
                "GRAVITONFS_MODEL_SEED={} step {}\n{}",
                self.seed,
                self.step,
                self.trace[from..].join("\n")
            );
        }
    }
}

impl<'a> Twins<'a> {
    fn new(volume: &'a Volume, seed: u64) -> Self {
        let buffer = Box::new(Aligned([0; SIZE_MAX as usize]));
        let twins = Self {
            volume,
            seed,
            step: 0,
            dice: Noise::new(seed),
            handles: Vec::new(),
            trace: Vec::new(),
            buffer,
        };
        for side in SIDES {
            for directory in ["", "a", "b", "a/c"] {
                fs::create_dir(twins.root(side).join(directory)).expect("mkdir");
            }
        }
        twins
    }

    fn root(&self, side: Side) -> PathBuf {
        let name = format!("seed-{}", self.seed);
        match side {
            Side::Local => self.volume.scratch().join(name),
            Side::Mount => self.volume.path(&name),
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.dice.number() % limit
    }

    fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = self.below(from.len() as u64);
        from[usize::try_from(at).expect("small")].clone()
    }

    fn a_path(&mut self) -> String {
        let directory = self.pick(&["", "a/", "b/", "a/c/", "b/d1/"]);
        let name = self.pick(&["h1", "h2", "u1", "u2", "u3", "d1", "d2", "l1"]);
        format!("{directory}{name}")
    }

    fn a_file(&mut self) -> String {
        let directory = self.pick(&["", "a/", "b/"]);
        let name = self.pick(&["h1", "h2", "u1", "u2"]);
        format!("{directory}{name}")
    }

    /// Does the same on both sides and compares what came of it.
    fn both<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: String,
        act: impl Fn(Side, &dyn Fn(&str) -> PathBuf) -> io::Result<T>,
    ) {
        let _compared = self.both_return(what, act);
    }

    /// As [`Self::both`], and tells what it was.
    fn both_return<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: String,
        act: impl Fn(Side, &dyn Fn(&str) -> PathBuf) -> io::Result<T>,
    ) -> Outcome<T> {
        let run = |side| {
            let root = self.root(side);
            outcome(act(side, &|name| root.join(name)))
        };
        let (local, mount) = (run(Side::Local), run(Side::Mount));
        self.trace.push(format!("{}: {what} -> {}", self.step, brief(&local)));
        assert!(local == mount, "{what}: local {} mount {}", brief(&local), brief(&mount));
        mount
    }

    fn step(&mut self, step: u64) {
        self.step = step;
        match self.below(100) {
            0..=29 => self.name_step(),
            30..=36 => self.attribute_step(),
            37..=43 => self.xattr_step(),
            44..=53 => self.open_step(),
            54..=57 => self.close_step(),
            _ => self.handle_step(),
        }
        self.compare_handles();
        if step.is_multiple_of(COMPARE_EVERY) {
            self.compare();
        }
    }

    fn name_step(&mut self) {
        let (path, other) = (self.a_path(), self.a_path());
        let what = |verb: &str| format!("{verb} {path} {other}");
        match self.below(14) {
            0..=1 => self.both(what("mkdir"), |_, at| fs::create_dir(at(&path))),
            2 => self.both(what("rmdir"), |_, at| fs::remove_dir(at(&path))),
            3..=4 => self.both(what("unlink"), |_, at| fs::remove_file(at(&path))),
            5..=8 => {
                // Holes are compared under the name a file was made with.
                if is_in_units(&path) != is_in_units(&other) {
                    return;
                }
                let flags = self.pick(&[
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::RENAME_NOREPLACE,
                    RenameFlags::RENAME_EXCHANGE,
                ]);
                let what = format!("rename {path} {other} {flags:?}");
                self.both(what, |_, at| {
                    renameat2(AT_FDCWD, &at(&path), AT_FDCWD, &at(&other), flags).map_err(io::Error::from)
                });
            }
            9 => {
                if is_in_units(&path) == is_in_units(&other) {
                    self.both(what("link"), |_, at| fs::hard_link(at(&path), at(&other)));
                }
            }
            10 if !is_in_units(&path) => self.both(what("symlink"), |_, at| symlink("u1", at(&path))),
            10 => {}
            11 => self.both(what("readlink"), |_, at| fs::read_link(at(&path))),
            12 => self.both(what("mkfifo"), |_, at| {
                mkfifo(&at(&path), Mode::from_bits_truncate(0o640)).map_err(io::Error::from)
            }),
            _ => self.both(what("list"), |_, at| {
                let mut names = fs::read_dir(at(&path))?
                    .map(|entry| Ok(entry?.file_name()))
                    .collect::<io::Result<Vec<_>>>()?;
                names.sort();
                Ok(names)
            }),
        }
        self.compare_path(&path);
        self.compare_path(&other);
    }

    fn attribute_step(&mut self) {
        let path = self.a_path();
        match self.below(4) {
            0 => {
                let mode = self.below(0o10_000);
                self.both(format!("chmod {path} {mode:o}"), |_, at| {
                    // chmod(2) follows links, which may lead anywhere.
                    let mode = Mode::from_bits_truncate(u32::try_from(mode).expect("small"));
                    nix::sys::stat::fchmodat(
                        AT_FDCWD,
                        &at(&path),
                        mode,
                        nix::sys::stat::FchmodatFlags::FollowSymlink,
                    )
                    .map_err(io::Error::from)
                });
            }
            1 => {
                let (uid, gid) = (self.below(3), self.below(3));
                self.both(format!("chown {path} {uid} {gid}"), |_, at| {
                    std::os::unix::fs::lchown(at(&path), Some(uid as u32), Some(gid as u32))
                });
            }
            2 => {
                let seconds = self.pick(&[-5, 0, 1_000_000_000, 4_000_000_000]);
                let time = TimeSpec::new(seconds, 123_456_789);
                let set = self.both_return(format!("utimensat {path} {seconds}"), |_, at| {
                    utimensat(AT_FDCWD, &at(&path), &time, &time, UtimensatFlags::NoFollowSymlink)
                        .map_err(io::Error::from)
                });
                if set.is_ok() {
                    let times = self.both_return(format!("times of {path}"), |_, at| {
                        let stat = fs::symlink_metadata(at(&path))?;
                        Ok((stat.mtime(), stat.mtime_nsec(), stat.atime(), stat.atime_nsec()))
                    });
                    assert_eq!(times, Ok((seconds, 123_456_789, seconds, 123_456_789)));
                }
            }
            _ => {
                let path = self.a_file();
                let size = self.a_size(&path);
                self.both(format!("truncate {path} {size}"), |_, at| {
                    let not_waiting = libc::O_NONBLOCK;
                    OpenOptions::new().write(true).custom_flags(not_waiting).open(at(&path))?.set_len(size)
                });
            }
        }
        self.compare_path(&path);
    }

    fn a_size(&mut self, path: &str) -> u64 {
        if is_in_units(path) { UNIT * self.below(UNITS_MAX) } else { self.below(SIZE_MAX) }
    }

    fn a_range(&mut self, in_units: bool) -> (u64, usize) {
        let (offset, len) = if in_units {
            let first = self.below(UNITS_MAX);
            (UNIT * first, UNIT * (1 + self.below(4)))
        } else {
            (self.below(SIZE_MAX), 1 + self.below(9_000))
        };
        (offset, usize::try_from(len.min(SIZE_MAX - offset)).expect("small"))
    }

    fn xattr_step(&mut self) {
        let path = self.a_path();
        let name = self.pick(&["user.one", "user.two", "trusted.one", "none.one", "user."]);
        let c_name = CString::new(name).expect("without NUL");
        match self.below(5) {
            0..=1 => {
                let (len, byte) = (self.below(300), self.below(256));
                let value = vec![byte as u8; usize::try_from(len).expect("small")];
                let flags = self.pick(&[0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
                let what = format!("setxattr {path} {name} {len} {flags}");
                self.both(what, |_, at| set_xattr(&at(&path), &c_name, &value, flags));
            }
            2 => self.both(format!("getxattr {path} {name}"), |_, at| get_xattr(&at(&path), &c_name)),
            3 => self.both(format!("listxattr {path}"), |_, at| list_xattrs(&at(&path))),
            _ => self.both(format!("removexattr {path} {name}"), |_, at| remove_xattr(&at(&path), &c_name)),
        }
    }

    fn open_step(&mut self) {
        if HANDLES_MAX <= self.handles.len() {
            self.close_step();
        }
        let name = self.a_file();
        let (create, new, truncate) = (!self.one_in(3), self.one_in(8), self.one_in(6));
        let direct = is_in_units(&name) && self.one_in(3);
        let append = !is_in_units(&name) && self.one_in(4);
        let writes_only = self.one_in(8);
        let open = |path: PathBuf| {
            let mut options = OpenOptions::new();
            options.read(!writes_only).write(!append).append(append).create(create || new).create_new(new);
            // A name may be that of a FIFO, which would wait for somebody at its other end.
            let direct = if direct { libc::O_DIRECT } else { 0 };
            options.truncate(truncate && !append && !new).custom_flags(direct | libc::O_NONBLOCK);
            options.open(path)
        };
        let what = format!(
            "open {name} create {create} new {new} truncate {truncate} direct {direct} append {append} only {writes_only}"
        );
        let files: Vec<Outcome<File>> =
            SIDES.iter().map(|side| outcome(open(self.root(*side).join(&name)))).collect();
        self.trace.push(format!("{}: {what}", self.step));
        match <[Outcome<File>; 2]>::try_from(files).expect("two") {
            [Ok(local), Ok(mount)] => {
                if !local.metadata().expect("fstat").is_file() {
                    return;
                }
                let writes_only = writes_only || append;
                self.handles.push(Handle { name, files: [local, mount], direct, append, maps: None });
                if !direct && !writes_only && self.one_in(2) {
                    let map = |file: &File| Mapping::new(file, SIZE_MAX as usize).expect("mmap");
                    let handle = self.handles.last_mut().expect("pushed just now");
                    handle.maps = Some([map(&handle.files[0]), map(&handle.files[1])]);
                }
            }
            [Err(local), Err(mount)] => assert_eq!(local, mount, "{what}"),
            [local, mount] => panic!("{what}: local {} mount {}", brief(&local), brief(&mount)),
        }
    }

    fn close_step(&mut self) {
        if !self.handles.is_empty() {
            let at = self.below(self.handles.len() as u64);
            let handle = self.handles.swap_remove(usize::try_from(at).expect("small"));
            self.trace.push(format!("{}: close {}", self.step, handle.name));
        }
    }

    fn handle_step(&mut self) {
        if self.handles.is_empty() {
            return self.open_step();
        }
        let at = self.below(self.handles.len() as u64);
        let handle = self.handles.swap_remove(usize::try_from(at).expect("small"));
        self.use_handle(&handle);
        self.handles.push(handle);
    }

    fn use_handle(&mut self, handle: &Handle) {
        let in_units = is_in_units(&handle.name);
        let (offset, len) = self.a_range(in_units);
        let file = |side: Side| &handle.files[side as usize];
        let name = &handle.name;
        match self.below(16) {
            0..=4 => {
                let bytes = self.dice.take(len);
                self.buffer.0[..len].copy_from_slice(&bytes);
                let size = file(Side::Local).metadata().expect("fstat").len();
                if handle.append && SIZE_MAX < size + len as u64 {
                    return;
                }
                let buffer = std::mem::replace(&mut self.buffer, Box::new(Aligned([0; SIZE_MAX as usize])));
                self.both(format!("write {name} {offset} {len} direct {}", handle.direct), |side, _| {
                    if handle.append {
                        io::Write::write(&mut file(side), &buffer.0[..len])
                    } else {
                        file(side).write_at(&buffer.0[..len], offset)
                    }
                });
                self.buffer = buffer;
            }
            5..=6 => {
                self.both(format!("read {name} {offset} {len} direct {}", handle.direct), |side, _| {
                    let mut bytes = Box::new(Aligned([0; SIZE_MAX as usize]));
                    let read = file(side).read_at(&mut bytes.0[..len], offset)?;
                    Ok(bytes.0[..read].to_vec())
                });
            }
            7 => {
                let size = self.a_size(name);
                self.both(format!("ftruncate {name} {size}"), |side, _| file(side).set_len(size));
            }
            8..=9 => {
                let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
                // Of room that was never written ext4 says data if it was read.
                if in_units {
                    let mode = keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE;
                    self.both(format!("punch {name} {offset} {len}"), |side, _| {
                        fallocate(file(side), mode, offset as i64, len as i64).map_err(io::Error::from)
                    });
                    return self.compare_path(name);
                }
                let mode = self.pick(&[
                    FallocateFlags::empty(),
                    keep,
                    keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                    keep | FallocateFlags::FALLOC_FL_ZERO_RANGE,
                    FallocateFlags::FALLOC_FL_ZERO_RANGE,
                ]);
                let what = format!("fallocate {name} {offset} {len} {mode:?}");
                self.both(what, |side, _| {
                    fallocate(file(side), mode, offset as i64, len as i64).map_err(io::Error::from)
                });
            }
            10 => {
                let whence = self.pick(&[Whence::SeekData, Whence::SeekHole]);
                if in_units {
                    // What is in a map only is not in the file yet, where a hole is asked for.
                    self.sync_maps();
                    handle.maps.iter().flatten().for_each(|map| map.sync().expect("msync"));
                    self.both(format!("lseek {name} {offset} {whence:?}"), |side, _| {
                        lseek(file(side), offset as i64, whence).map_err(io::Error::from)
                    });
                }
            }
            11 => self.both(format!("fsync {name}"), |side, _| file(side).sync_all()),
            12 => {
                // Holes of the source are data in a local copy, and holes here.
                if in_units || handle.append {
                    return;
                }
                let source = self.below(SIZE_MAX) as i64;
                self.both(format!("copy within {name} {source} {offset} {len}"), |side, _| {
                    let (mut from, mut to) = (source, offset as i64);
                    copy_range(file(side), &mut from, file(side), &mut to, len)
                });
            }
            _ => self.use_map(handle, offset, len),
        }
        self.compare_path(name);
    }

    fn use_map(&mut self, handle: &Handle, offset: u64, len: usize) {
        let Some(maps) = &handle.maps else { return };
        let size = handle.files[0].metadata().expect("fstat").len();
        let len = len.min(usize::try_from(size.saturating_sub(offset)).expect("small"));
        if len == 0 {
            return;
        }
        let offset = usize::try_from(offset).expect("small");
        let what = format!("{} {offset} {len}", handle.name);
        if self.one_in(3) {
            self.both(format!("read map {what}"), |side, _| Ok(maps[side as usize].read(offset, len)));
            return;
        }
        let bytes = self.dice.take(len);
        for map in maps {
            map.write(offset, &bytes);
        }
        self.trace.push(format!("{}: write map {what}", self.step));
        if self.one_in(2) {
            self.both(format!("msync {what}"), |side, _| maps[side as usize].sync());
        }
    }

    fn sync_maps(&self) {
        for handle in &self.handles {
            handle.maps.iter().flatten().for_each(|map| map.sync().expect("msync"));
        }
    }

    /// Attributes and bytes by name, as another process sees them.
    fn compare_path(&mut self, path: &str) {
        let stats = SIDES.map(|side| outcome(stat(&self.root(side).join(path))));
        assert_eq!(stats[0], stats[1], "lstat of {path}");
        if stats[0].as_ref().is_ok_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFREG) {
            let bytes = SIDES.map(|side| fs::read(self.root(side).join(path)).expect("read"));
            assert_same_bytes(path, &bytes[0], &bytes[1]);
        }
    }

    /// Length and bytes of what is open, which may have no name any more.
    fn compare_handles(&self) {
        for handle in &self.handles {
            let sizes = handle.files.each_ref().map(|file| file.metadata().expect("fstat").len());
            assert_eq!(sizes[0], sizes[1], "length of open {}", handle.name);
            if let Some(maps) = &handle.maps {
                let bytes = maps.each_ref().map(|map| map.read(0, usize::try_from(sizes[0]).expect("small")));
                assert_same_bytes(&format!("map of {}", handle.name), &bytes[0], &bytes[1]);
            }
        }
    }

    fn compare(&self) {
        self.sync_maps();
        let trees = SIDES.map(|side| tree(&self.root(side)));
        let names = trees.each_ref().map(|tree| tree.keys().cloned().collect::<Vec<_>>());
        assert_eq!(names[0], names[1], "names");
        for (path, local) in &trees[0] {
            let mount = &trees[1][path];
            assert_same_bytes(&path.display().to_string(), &local.content, &mount.content);
            assert_eq!(local, mount, "{}", path.display());
        }
    }

    /// From the store alone everything is as before.
    fn remount(&mut self) {
        self.handles.clear();
        self.compare();
        self.volume.remount_from_the_store_alone();
        self.compare();
    }
}

fn is_in_units(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with('h'))
}

fn stat(path: &Path) -> io::Result<Stat> {
    let stat = fs::symlink_metadata(path)?;
    let size = if stat.is_dir() { 0 } else { stat.size() };
    Ok(Stat { mode: stat.mode(), links: stat.nlink(), owner: (stat.uid(), stat.gid()), size })
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for listed in fs::read_dir(&directory).expect("list") {
            let path = listed.expect("entry").path();
            let kind = fs::symlink_metadata(&path).expect("lstat").file_type();
            if kind.is_dir() {
                directories.push(path.clone());
            }
            let content = match () {
                () if kind.is_file() => fs::read(&path).expect("read"),
                () if kind.is_symlink() => {
                    fs::read_link(&path).expect("readlink").into_os_string().into_encoded_bytes()
                }
                () => Vec::new(),
            };
            let xattrs =
                if kind.is_fifo() || kind.is_symlink() { Vec::new() } else { crate::syscall::xattrs(&path) };
            let has_units = kind.is_file() && is_in_units(path.to_str().expect("text"));
            let extents = if has_units { data_extents(&path) } else { Vec::new() };
            let entry = Entry { stat: stat(&path).expect("lstat"), content, xattrs, extents };
            entries.insert(path.strip_prefix(root).expect("below the root").to_owned(), entry);
        }
    }
    entries
}

fn assert_same_bytes(what: &str, local: &[u8], mount: &[u8]) {
    assert_eq!(local.len(), mount.len(), "length of {what}");
    if let Some(at) = local.iter().zip(mount).position(|(local, mount)| local != mount) {
        panic!("{what} differs at {at} of {}: local {} mount {}", local.len(), local[at], mount[at]);
    }
}

fn brief<T: std::fmt::Debug>(outcome: &Outcome<T>) -> String {
    let mut text = format!("{outcome:?}");
    text.truncate(120);
    text
}
