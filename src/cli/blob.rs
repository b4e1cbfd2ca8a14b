//! `gravitonfs blob`: whole contents by key, in a mounted volume by its daemon, in an unmounted one by this process.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::args::{self, BlobAction};
use super::control::{Request, Told, ask_with_file};
use super::daemon::Reporter;
use super::environment::LocalRoots;
use super::exit::{Code, Failure, Result};
use super::open::{EngineConfig, open, start_runtime};
use super::options::MountOptions;
use super::registry;
use super::volume::Volume;
use crate::base::hash::Hasher;
use crate::base::limits::MIB;
use crate::base::range::ByteRange;
use crate::store::blob::{BlobKey, BlobSource, BlobStat, BlobStore};
use crate::store::{self, Kind};

/// Bytes that go through memory at a time.
const PIECE_BYTES: usize = 4 * MIB as usize;

/// What can be done to blobs. `Put` reads a file and `Get` writes one that comes with the request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobOp {
    Put { key: String },
    Get { key: String },
    Stat { key: String },
    Remove { key: String },
    List,
}

/// A blob as it is reported.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlobInfo {
    pub key: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Blocks it is cut into.
    pub blocks: u64,
}

impl BlobInfo {
    fn new(key: &BlobKey, stat: BlobStat) -> Self {
        Self { key: key.to_string(), bytes: stat.len, blocks: stat.blocks }
    }
}

/// Runs one of the blob commands.
///
/// # Errors
/// `NotFound` for a key that is not there; of the volume.
pub fn blob(roots: &LocalRoots, arguments: &args::Blob) -> Result<()> {
    let volume: Volume =
        arguments.volume.parse().map_err(|cause: String| Failure::usage(&arguments.volume, cause))?;
    let options = MountOptions::parse(&arguments.options)?;
    match registry::find_volume(&roots.state, &volume.to_string()) {
        Some(entry) => perform(&arguments.action, &mut |op, file| {
            let print = &mut |told: Told| {
                if let Told::Blob(info) = told {
                    print_json(&info);
                }
            };
            ask_with_file(&entry.state_dir, &Request::Blob { op: op.clone() }, file, print)
        }),
        None => unmounted(roots, &volume, &options, &arguments.action),
    }
}

fn unmounted(roots: &LocalRoots, volume: &Volume, options: &MountOptions, action: &BlobAction) -> Result<()> {
    let is_change = matches!(action, BlobAction::Put { .. } | BlobAction::Rm { .. });
    let options = MountOptions { read_only: options.read_only || !is_change, ..options.clone() };
    let runtime = start_runtime()?;
    let config = EngineConfig {
        volume,
        purpose: Path::new("gravitonfs blob"),
        create: false,
        options: &options,
        roots,
        log_filter: None,
    };
    let engine = runtime.block_on(open(&runtime, &config, &mut Reporter::silent()))?;
    let done = perform(action, &mut |op, file| {
        let file = file.map(|file| file.try_clone_to_owned().map(File::from)).transpose();
        let file = file.map_err(|error| Failure::io("blob", "open", error))?;
        runtime.block_on(run(&engine.blobs(), volume, op, file, &mut |info| print_json(&info)))
    });
    let closed = runtime.block_on(engine.close());
    done.and(closed)
}

fn print_json(info: &BlobInfo) {
    println!("{}", serde_json::to_string(info).expect("plain data always serializes"));
}

/// Does what was typed, through `perform_one`.
fn perform(
    action: &BlobAction,
    perform_one: &mut dyn FnMut(&BlobOp, Option<BorrowedFd<'_>>) -> Result<()>,
) -> Result<()> {
    match action {
        BlobAction::Put { files } => files.iter().try_for_each(|path| {
            let failed = |what, error| Failure::io(path.display(), what, error);
            let mut file = File::open(path).map_err(|error| failed("open", error))?;
            let key = content_key(&mut file).map_err(|error| failed("read", error))?;
            perform_one(&BlobOp::Put { key: key.clone() }, Some(file.as_fd()))?;
            println!("{key}");
            Ok(())
        }),
        BlobAction::Get { key } => {
            let stdout = std::io::stdout();
            perform_one(&BlobOp::Get { key: key.clone() }, Some(stdout.as_fd()))
        }
        BlobAction::Stat { key } => perform_one(&BlobOp::Stat { key: key.clone() }, None),
        BlobAction::Rm { key } => perform_one(&BlobOp::Remove { key: key.clone() }, None),
        BlobAction::Ls => perform_one(&BlobOp::List, None),
    }
}

/// The key of a content is its hash; leaves the file at its start.
fn content_key(file: &mut File) -> std::io::Result<String> {
    let mut hasher = Hasher::default();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let len = file.read(&mut piece)?;
        let Some(read) = piece.get(..len).filter(|read| !read.is_empty()) else { break };
        hasher.update(read);
    }
    file.rewind()?;
    Ok(hasher.finish().to_string())
}

/// Does `op` in the volume's blobs. Blocks its thread on `file`, so it is for threads that may.
///
/// # Errors
/// `NotFound` for a key that is not there; `Usage` for what is no key; of the file and the volume.
pub async fn run(
    blobs: &dyn BlobStore,
    volume: &Volume,
    op: &BlobOp,
    file: Option<File>,
    report: &mut (dyn FnMut(BlobInfo) + Send),
) -> Result<()> {
    let key_of = |key: &str| {
        let rule = "a key is 1 to 255 printable characters without spaces";
        BlobKey::parse(key).ok_or_else(|| Failure::usage(format_args!("blob {key:?}"), rule))
    };
    let file_of = |file: Option<File>| file.ok_or_else(|| Failure::usage("blob", "no file came with it"));
    match op {
        BlobOp::Put { key } => {
            let (key, file) = (key_of(key)?, file_of(file)?);
            match blobs.put(&key, &mut FileSource { file }).await {
                // The key is the hash of the content: it is there already.
                Err(error) if error.kind == Kind::Precondition => Ok(()),
                put => put.map(drop).map_err(|error| failed(volume, &key, &error)),
            }
        }
        BlobOp::Get { key } => {
            let (key, mut file) = (key_of(key)?, file_of(file)?);
            let len = blobs.stat(&key).await.map_err(|error| failed(volume, &key, &error))?.len;
            let mut at = 0;
            while at < len {
                let piece = ByteRange::new(at, len.min(at + PIECE_BYTES as u64));
                let bytes = blobs.get(&key, Some(piece)).await;
                let bytes = bytes.map_err(|error| failed(volume, &key, &error))?;
                file.write_all(&bytes).map_err(|error| Failure::io("output", "write", error))?;
                at = piece.end;
            }
            Ok(())
        }
        BlobOp::Stat { key } => {
            let key = key_of(key)?;
            let stat = blobs.stat(&key).await.map_err(|error| failed(volume, &key, &error))?;
            report(BlobInfo::new(&key, stat));
            Ok(())
        }
        BlobOp::Remove { key } => {
            let key = key_of(key)?;
            // Missing is success to the port, but not to somebody who mistyped.
            blobs.stat(&key).await.map_err(|error| failed(volume, &key, &error))?;
            blobs.delete(&key).await.map_err(|error| failed(volume, &key, &error))
        }
        BlobOp::List => {
            let mut visit = |key: &BlobKey, stat: BlobStat| {
                report(BlobInfo::new(key, stat));
                ControlFlow::Continue(())
            };
            blobs.list(&mut visit).await.map_err(|error| Failure::store(volume, &error))
        }
    }
}

fn failed(volume: &Volume, key: &BlobKey, error: &store::Error) -> Failure {
    if error.kind == Kind::NotFound {
        let advice = format!("gravitonfs blob {volume} ls shows what is there");
        return Failure::new(Code::NotFound, format_args!("blob {key}"), "no such blob", advice);
    }
    Failure::store(format_args!("blob {key}"), error)
}

/// A file from where it stands.
struct FileSource {
    file: File,
}

#[async_trait]
impl BlobSource for FileSource {
    async fn next(&mut self) -> store::Result<Option<Bytes>> {
        let mut piece = vec![0; PIECE_BYTES];
        let len = self.file.read(&mut piece).map_err(|error| store::Error::from_io("read file", error))?;
        piece.truncate(len);
        Ok((len != 0).then(|| Bytes::from(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory_blob::InMemoryBlobStore;
    use crate::rt::TokioRuntime;

    fn temporary(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(content).expect("write");
        file.rewind().expect("seekable");
        file
    }

    #[test]
    fn a_content_comes_back_under_its_hash() {
        let runtime = TokioRuntime::new(1, 1).expect("threads for a test");
        let blobs = InMemoryBlobStore::default();
        let run_one = |op: &BlobOp, file: Option<File>| {
            let mut told = Vec::new();
            let done = runtime.block_on(run(&blobs, &Volume::Memory, op, file, &mut |info| told.push(info)));
            done.map(|()| told)
        };
        let mut content = temporary(b"some content");
        let key = content_key(&mut content).expect("readable");
        for _ in 0..2 {
            let again = content.try_clone().expect("a second handle");
            content.rewind().expect("seekable");
            run_one(&BlobOp::Put { key: key.clone() }, Some(again)).expect("stored, twice");
        }
        let mut out = tempfile::tempfile().expect("temporary file");
        let handle = out.try_clone().expect("a second handle");
        run_one(&BlobOp::Get { key: key.clone() }, Some(handle)).expect("there");
        out.rewind().expect("seekable");
        let mut text = String::new();
        out.read_to_string(&mut text).expect("text");
        assert_eq!(text, "some content");
        let listed = run_one(&BlobOp::List, None).expect("listed");
        assert_eq!(listed.iter().map(|info| (&info.key, info.bytes)).collect::<Vec<_>>(), [(&key, 12)]);
        run_one(&BlobOp::Remove { key: key.clone() }, None).expect("removed");
        for op in [BlobOp::Remove { key: key.clone() }, BlobOp::Stat { key }] {
            assert_eq!(run_one(&op, None).map_err(|failure| failure.code), Err(Code::NotFound));
        }
    }
}
