//! What is measured: programs' ways of using files, in the order in which one repeat runs them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::data::Generator;

const MIB: usize = 1 << 20;
const BIG: &str = "big";
const COPY: &str = "copy";
const SMALL: &str = "small";
const FILES_PER_DIRECTORY: usize = 100;
const SMALL_BYTES_MAX: usize = 32 << 10;
const PAGE: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    SeqWrite,
    SeqReadWarm,
    SmallFiles,
    Clone,
    Edit,
    ColdRead,
    RandomRead,
    Find,
}

impl Workload {
    /// As one repeat runs them: each finds what those before it left.
    pub const ALL: [Self; 8] = [
        Self::SeqWrite,
        Self::SeqReadWarm,
        Self::SmallFiles,
        Self::Clone,
        Self::Edit,
        Self::ColdRead,
        Self::RandomRead,
        Self::Find,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SeqWrite => "seq_write",
            Self::SeqReadWarm => "seq_read_warm",
            Self::SmallFiles => "small_files",
            Self::Clone => "clone",
            Self::Edit => "edit",
            Self::ColdRead => "cold_read",
            Self::RandomRead => "random_read_4k",
            Self::Find => "find",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::SeqWrite | Self::SeqReadWarm | Self::Clone | Self::ColdRead => "MiB/s",
            Self::SmallFiles | Self::Find => "files/s",
            Self::Edit => "edits/s",
            Self::RandomRead => "reads/s",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::SeqWrite => "one big file written in pieces of 1 MiB, and fsync",
            Self::SeqReadWarm => "the big file read again, in the page cache",
            Self::SmallFiles => "files of 16 KiB on average created, written and closed, 100 in a directory",
            Self::Clone => "cp of the big file to another name",
            Self::Edit => "1 MiB overwritten in the middle of the big file, and fsync",
            Self::ColdRead => {
                "the big file read with every cache empty; of ours there is nothing but the store"
            }
            Self::RandomRead => {
                "4 KiB at random places of the big file, page cache empty, our own caches not"
            }
            Self::Find => "every name listed and every file looked at with lstat",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub big_bytes: usize,
    pub small_files: usize,
    pub random_reads: usize,
    pub repeats: usize,
}

/// The bytes of one repeat, the same for every system.
pub struct Payload {
    seed: u64,
    big: Vec<u8>,
    small: Vec<Vec<u8>>,
    edit: Vec<u8>,
}

impl Payload {
    pub fn new(sizes: &Sizes, seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        let big = generator.bytes(sizes.big_bytes);
        let edit = generator.bytes(MIB);
        let small = (0..sizes.small_files)
            .map(|_| {
                let len = 1 + generator.below(SMALL_BYTES_MAX);
                generator.bytes(len)
            })
            .collect();
        Self { seed, big, small, edit }
    }

    fn edit_offset(&self) -> usize {
        // Not at a border of anything.
        self.big.len() / 2 + 12345
    }

    /// What has to be true before the clock starts: here only what every system needs alike.
    pub fn prepare(&self, workload: Workload, root: &Path) -> io::Result<()> {
        match workload {
            Workload::SeqReadWarm => read_through(&root.join(BIG)).map(drop),
            Workload::RandomRead => forget_pages(&root.join(BIG)),
            _ => Ok(()),
        }
    }

    /// Does the work in `root` and returns how much of the workload's unit was done.
    pub fn run(&self, workload: Workload, root: &Path, sizes: &Sizes) -> io::Result<f64> {
        let mebibytes = self.big.len() as f64 / MIB as f64;
        match workload {
            Workload::SeqWrite => self.write_big(&root.join(BIG)).map(|()| mebibytes),
            Workload::SeqReadWarm | Workload::ColdRead => {
                let read = read_through(&root.join(BIG))?;
                assert_eq!(read, self.big.len(), "the file lost its end");
                Ok(mebibytes)
            }
            Workload::SmallFiles => self.write_small(&root.join(SMALL)).map(|()| self.small.len() as f64),
            Workload::Clone => {
                let done = Command::new("cp").arg(root.join(BIG)).arg(root.join(COPY)).status()?;
                if done.success() { Ok(mebibytes) } else { Err(io::Error::other("cp failed")) }
            }
            Workload::Edit => self.edit(&root.join(BIG)).map(|()| 1.0),
            Workload::RandomRead => self.read_random(&root.join(BIG), sizes.random_reads),
            Workload::Find => {
                let found = walk(root)?;
                // Big, its copy, the directory of directories, and what is in them.
                let expected = 3 + self.small.len() + self.small.len().div_ceil(FILES_PER_DIRECTORY);
                assert_eq!(found, expected, "names were lost");
                Ok(found as f64)
            }
        }
    }

    fn write_big(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        for piece in self.big.chunks(MIB) {
            file.write_all(piece)?;
        }
        file.sync_all()
    }

    fn write_small(&self, root: &Path) -> io::Result<()> {
        fs::create_dir(root)?;
        for (directory, files) in self.small.chunks(FILES_PER_DIRECTORY).enumerate() {
            let directory = root.join(format!("d{directory:03}"));
            fs::create_dir(&directory)?;
            for (number, bytes) in files.iter().enumerate() {
                File::create_new(directory.join(format!("file-{number:03}")))?.write_all(bytes)?;
            }
        }
        Ok(())
    }

    fn edit(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&self.edit, self.edit_offset() as u64)?;
        file.sync_all()
    }

    fn read_random(&self, path: &Path, count: usize) -> io::Result<f64> {
        let file = File::open(path)?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        let mut places = Generator::new(self.seed ^ 0x5eed);
        let mut page = [0; PAGE];
        for _ in 0..count {
            let at = places.below(self.big.len() / PAGE) * PAGE;
            file.read_exact_at(&mut page, at as u64)?;
        }
        Ok(count as f64)
    }

    /// Checks every byte that this repeat has written, after the edit.
    pub fn verify(&self, root: &Path) -> io::Result<()> {
        let (before, rest) = self.big.split_at(self.edit_offset());
        let (_, after) = rest.split_at(MIB);
        expect_content(&root.join(BIG), &[before, &self.edit, after])?;
        expect_content(&root.join(COPY), &[&self.big])?;
        for (directory, files) in self.small.chunks(FILES_PER_DIRECTORY).enumerate() {
            for (number, bytes) in files.iter().enumerate() {
                expect_content(&root.join(format!("{SMALL}/d{directory:03}/file-{number:03}")), &[bytes])?;
            }
        }
        Ok(())
    }
}

/// Compares a file with `expected`, one part behind the other, in small pieces: files may be as large as memory.
fn expect_content(path: &Path, expected: &[&[u8]]) -> io::Result<()> {
    let wrong = |what| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}: {what}, not what was written", path.display()),
        )
    };
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB];
    for piece in expected.iter().flat_map(|part| part.chunks(MIB)) {
        let read = &mut buffer[..piece.len()];
        file.read_exact(read)?;
        if read != piece {
            return Err(wrong("other bytes"));
        }
    }
    if file.read(&mut buffer)? == 0 { Ok(()) } else { Err(wrong("more bytes")) }
}

fn read_through(path: &Path) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; MIB];
    let mut total = 0;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(total),
            read => total += read,
        }
    }
}

/// Drops the clean pages of one file.
fn forget_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // Dirty pages would stay.
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Drops the clean pages of every file below `root`.
pub fn forget_pages_below(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            forget_pages_below(&path)?;
        } else if meta.is_file() {
            forget_pages(&path)?;
        }
    }
    Ok(())
}

/// Counts what is below `root` as `find -ls` would: one lstat for each name.
fn walk(root: &Path) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        found += 1;
        let meta = fs::symlink_metadata(&path)?;
        std::hint::black_box(meta.mtime());
        if meta.is_dir() {
            found += walk(&path)?;
        }
    }
    Ok(found)
}
