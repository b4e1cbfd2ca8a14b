//! The control socket of a running mount: one request per connection, one JSON line each way, progress in between.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::blob::{BlobInfo, BlobOp};
use super::check::CheckReport;
use super::descriptor;
use super::exit::{Code, Failure, Result};
use super::report::{Progress, Status};
use crate::maint::check::{self, Data};

const SOCKET: &str = "control.sock";

/// Connections served at once; more are closed unanswered.
const CONNECTIONS_MAX: usize = 32;

/// The longest request; a blob's key is most of it.
const REQUEST_BYTES_MAX: usize = 4096;

/// What a mount can be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    Status,
    Sync,
    /// Take the mount off and send everything to the store.
    Unmount {
        /// Give up draining after this many seconds.
        timeout_seconds: Option<u64>,
    },
    /// Look whether the volume is whole.
    Check {
        data: Data,
    },
    /// A file comes with it if the operation reads or writes one.
    Blob {
        op: BlobOp,
    },
}

/// What a client is told before the last line of an answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Told {
    Progress(Progress),
    Checking(check::Progress),
    Checked(Box<CheckReport>),
    Blob(BlobInfo),
}

/// One line of an answer; `Status`, `Done` and `Failed` are the last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Progress(Progress),
    Checking(check::Progress),
    Checked(Box<CheckReport>),
    Blob(BlobInfo),
    Status(Box<Status>),
    Done,
    Failed { code: u8, thing: String, cause: String, advice: String },
}

/// What answers the requests of one mount.
pub trait Handler: Send + Sync + 'static {
    /// Does `work`, which answers a request, and keeps the process from exiting before it is done.
    fn while_alive(&self, work: &mut dyn FnMut());

    /// A snapshot of everything that is reported.
    ///
    /// # Errors
    /// If the metadata cannot be read.
    fn status(&self) -> Result<Status>;

    /// Returns once everything written before the call is in the store.
    ///
    /// # Errors
    /// Of the store.
    fn sync(&self, progress: &mut dyn FnMut(Progress)) -> Result<()>;

    /// Takes the mount off and drains. After Ok, and after `DrainTimedOut`, the process exits.
    ///
    /// # Errors
    /// `Busy` if files are open, in which case the mount goes on; `DrainTimedOut`; of the store.
    fn unmount(&self, timeout_seconds: Option<u64>, progress: &mut dyn FnMut(Progress)) -> Result<()>;

    /// Looks whether the volume is whole, as it is now. It goes on serving.
    ///
    /// # Errors
    /// Of the metadata and the store; what is wrong with the volume is no error.
    fn check(&self, data: Data, report: &mut check::Report<'_>) -> Result<CheckReport>;

    /// Does something to the volume's blobs.
    ///
    /// # Errors
    /// As the operation has it.
    fn blob(&self, op: &BlobOp, file: Option<File>, report: &mut (dyn FnMut(BlobInfo) + Send)) -> Result<()>;
}

/// Listens in `state_dir` and answers on threads of its own for as long as the process lives.
///
/// # Errors
/// If the socket cannot be made.
pub fn serve(state_dir: &Path, handler: Arc<dyn Handler>) -> io::Result<()> {
    let listener = listen(state_dir)?;
    let active = Arc::new(AtomicUsize::new(0));
    let work = move || {
        for stream in listener.incoming().flatten() {
            let (handler, active) = (Arc::clone(&handler), Arc::clone(&active));
            if CONNECTIONS_MAX <= active.fetch_add(1, Ordering::Relaxed) {
                active.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let answer_one = move || {
                // A client that went away needs no answer.
                handler.while_alive(&mut || drop(answer(&*handler, &stream)));
                active.fetch_sub(1, Ordering::Relaxed);
            };
            if let Err(error) = std::thread::Builder::new().name("control".to_owned()).spawn(answer_one) {
                tracing::warn!(%error, "answer a control request");
            }
        }
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(work)?;
    Ok(())
}

fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(state_dir.join(SOCKET)) {
        // Left by a process that was killed: its lock is ours now.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    with_short_path(state_dir, |path| UnixListener::bind(path))
}

/// A socket's address holds 107 bytes; through the descriptor of its directory it is short wherever that is.
fn with_short_path<T>(state_dir: &Path, use_path: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let directory =
        File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(state_dir)?;
    use_path(Path::new(&format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())))
}

fn answer(handler: &dyn Handler, stream: &UnixStream) -> io::Result<()> {
    let (line, file) = receive_line(stream)?;
    let mut out = BufWriter::new(stream);
    // The work goes on although nobody listens.
    let mut tell = |reply| drop(send(&mut out, &reply));
    let outcome = match serde_json::from_slice(&line) {
        Ok(Request::Status) => handler.status().map(|status| Reply::Status(Box::new(status))),
        Ok(Request::Sync) => {
            handler.sync(&mut |progress| tell(Reply::Progress(progress))).map(|()| Reply::Done)
        }
        Ok(Request::Unmount { timeout_seconds }) => {
            let progress = &mut |progress| tell(Reply::Progress(progress));
            handler.unmount(timeout_seconds, progress).map(|()| Reply::Done)
        }
        Ok(Request::Check { data }) => {
            let checked = handler.check(data, &mut |progress| tell(Reply::Checking(progress)));
            checked.map(|report| {
                tell(Reply::Checked(Box::new(report)));
                Reply::Done
            })
        }
        Ok(Request::Blob { op }) => {
            handler.blob(&op, file, &mut |info| tell(Reply::Blob(info))).map(|()| Reply::Done)
        }
        Err(error) => Err(Failure::usage("control socket", error)),
    };
    let last = outcome.unwrap_or_else(|failure| {
        let Failure { code, thing, cause, advice } = failure;
        Reply::Failed { code: code as u8, thing, cause, advice }
    });
    send(&mut out, &last)
}

/// The request, and the file that came with it.
fn receive_line(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<File>)> {
    let (mut line, mut file) = (Vec::new(), None);
    let mut buffer = [0; 4096];
    while line.last() != Some(&b'\n') {
        let (len, descriptor) = descriptor::receive(stream, &mut buffer)?;
        let received = buffer.get(..len).filter(|received| !received.is_empty());
        line.extend_from_slice(received.ok_or(io::ErrorKind::UnexpectedEof)?);
        file = file.or(descriptor.map(File::from));
        if REQUEST_BYTES_MAX < line.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok((line, file))
}

fn send(out: &mut impl io::Write, reply: &Reply) -> io::Result<()> {
    serde_json::to_writer(&mut *out, reply)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Asks the mount whose state is in `state_dir`, and tells `progress` how it goes.
///
/// # Errors
/// What the mount answers; `Internal` if it ended without an answer.
pub fn ask(
    state_dir: &Path,
    request: &Request,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Status>> {
    let tell = &mut |told| {
        if let Told::Progress(made) = told {
            progress(made);
        }
    };
    ask_for_reply(state_dir, request, None, tell)
}

/// As [`ask`], for a request that is told more than progress or comes with a file.
///
/// # Errors
/// As [`ask`].
pub fn ask_with_file(
    state_dir: &Path,
    request: &Request,
    file: Option<BorrowedFd<'_>>,
    tell: &mut dyn FnMut(Told),
) -> Result<()> {
    ask_for_reply(state_dir, request, file, tell).map(drop)
}

fn ask_for_reply(
    state_dir: &Path,
    request: &Request,
    file: Option<BorrowedFd<'_>>,
    tell: &mut dyn FnMut(Told),
) -> Result<Option<Status>> {
    let failed = |what: &str, error: io::Error| {
        let failure = Failure::io(state_dir.join(SOCKET).display(), what, error);
        Failure { code: Code::Internal, advice: "look into daemon.log beside it".to_owned(), ..failure }
    };
    let stream = with_short_path(state_dir, |path| UnixStream::connect(path))
        .map_err(|error| failed("connect to the mount", error))?;
    let line = serde_json::to_string(request).expect("a request always serializes") + "\n";
    descriptor::send(&stream, line.as_bytes(), file).map_err(|error| failed("send", error))?;
    for line in BufReader::new(&stream).lines() {
        let line = line.map_err(|error| failed("receive", error))?;
        match serde_json::from_str(&line).map_err(|error| failed("read the answer", error.into()))? {
            Reply::Progress(made) => tell(Told::Progress(made)),
            Reply::Checking(made) => tell(Told::Checking(made)),
            Reply::Checked(report) => tell(Told::Checked(report)),
            Reply::Blob(info) => tell(Told::Blob(info)),
            Reply::Status(status) => return Ok(Some(*status)),
            Reply::Done => return Ok(None),
            Reply::Failed { code, thing, cause, advice } => {
                return Err(Failure { code: Code::from_number(code), thing, cause, advice });
            }
        }
    }
    Err(failed("wait for an answer", io::ErrorKind::UnexpectedEof.into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::base::ids::VolumeId;

    /// Reports two steps of progress, and refuses to unmount without a timeout.
    struct Scripted;

    impl Handler for Scripted {
        fn while_alive(&self, work: &mut dyn FnMut()) {
            work();
        }

        fn status(&self) -> Result<Status> {
            Err(Failure::new(Code::Corrupt, "metadata", "unreadable", "run a check"))
        }

        fn sync(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
            progress(Progress { dirty_bytes: 2, pending_upload_bytes: 0 });
            progress(Progress { dirty_bytes: 0, pending_upload_bytes: 1 });
            Ok(())
        }

        fn unmount(&self, timeout_seconds: Option<u64>, _: &mut dyn FnMut(Progress)) -> Result<()> {
            match timeout_seconds {
                Some(_) => Ok(()),
                None => Err(Failure::new(Code::Busy, "/mnt", "files are open", "close them")),
            }
        }

        fn check(&self, _: Data, report: &mut check::Report<'_>) -> Result<CheckReport> {
            report(check::Progress { step: check::Step::Packs, done: 1, of: None });
            Ok(CheckReport::new("mem:", VolumeId(7), check::Outcome::default()))
        }

        fn blob(
            &self,
            _: &BlobOp,
            file: Option<File>,
            report: &mut (dyn FnMut(BlobInfo) + Send),
        ) -> Result<()> {
            let bytes = file.map_or(0, |file| file.metadata().expect("a file").len());
            report(BlobInfo { key: "k".to_owned(), bytes, blocks: 0 });
            Ok(())
        }
    }

    #[test]
    fn requests_are_answered_with_progress_and_failures_whole() {
        let root = tempfile::tempdir().expect("temporary directory");
        // Longer than a socket address may be.
        let state_dir = root.path().join("x".repeat(120));
        std::fs::create_dir(&state_dir).expect("mkdir");
        serve(&state_dir, Arc::new(Scripted)).expect("listens");

        let mut seen = Vec::new();
        let done = ask(&state_dir, &Request::Sync, &mut |progress| seen.push(progress));
        assert_eq!(done, Ok(None));
        assert_eq!(
            seen.iter().map(|p| (p.dirty_bytes, p.pending_upload_bytes)).collect::<Vec<_>>(),
            [(2, 0), (0, 1)]
        );

        let status = ask(&state_dir, &Request::Status, &mut |_| {}).expect_err("scripted");
        assert_eq!(status.to_string(), "metadata: unreadable; run a check");
        assert_eq!(status.code, Code::Corrupt);

        let mut told = Vec::new();
        let request = Request::Check { data: Data::Listed };
        ask_with_file(&state_dir, &request, None, &mut |line| told.push(line)).expect("scripted");
        assert!(matches!(&told[..], [Told::Checking(_), Told::Checked(_)]), "{told:?}");

        let unmount = |timeout_seconds| {
            ask(&state_dir, &Request::Unmount { timeout_seconds }, &mut |_| {}).map_err(|f| f.code)
        };
        assert_eq!(unmount(None), Err(Code::Busy));
        assert_eq!(unmount(Some(1)), Ok(None));
    }

    #[test]
    fn a_file_travels_with_a_request() {
        let root = tempfile::tempdir().expect("temporary directory");
        serve(root.path(), Arc::new(Scripted)).expect("listens");
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(b"seven b").expect("write");
        let mut told = Vec::new();
        let request = Request::Blob { op: BlobOp::Put { key: "k".to_owned() } };
        ask_with_file(root.path(), &request, Some(file.as_fd()), &mut |line| told.push(line)).expect("done");
        assert_eq!(told, [Told::Blob(BlobInfo { key: "k".to_owned(), bytes: 7, blocks: 0 })]);
    }

    #[test]
    fn nobody_listening_is_an_error() {
        let root = tempfile::tempdir().expect("temporary directory");
        let failure = ask(root.path(), &Request::Status, &mut |_| {}).expect_err("no socket");
        assert_eq!(failure.code, Code::Internal);
    }
}
