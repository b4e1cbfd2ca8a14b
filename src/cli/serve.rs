//! The life of a mount: appear at the mountpoint, serve, go away by whichever way, drain.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use tokio::runtime::Handle;

use super::blob::{self, BlobInfo, BlobOp};
use super::check::CheckReport;
use super::client;
use super::control::{self, Handler};
use super::engine::Engine;
use super::exit::{Code, Failure, Result};
use super::lifecycle::{Lifecycle, timed_out};
use super::mount_table::{mounted_at, wait_until_gone};
use super::mountpoint::{Mode, abort_connection, mount_device, raise_readahead, unmount};
use super::options::MountOptions;
use super::registry::Entry;
use super::report::{Progress, State, Status};
use crate::base::limits::MIB;
use crate::fuse::{Adapter, AdapterParts, PROBE_BYTES, Presentation, SelfTest, Session};
use crate::maint::check::{self, Data};
use crate::rt::TokioRuntime;

/// One read of this many bytes is one request: what the kernel lets through without a larger `max_pages_limit`.
const READAHEAD_BYTES: u64 = MIB;

/// How long the kernel gets to close the connection of a mount that is gone. Longer means that a copy of the mount
/// lives in another mount namespace, and would for ever.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// A process between fork and exec has the files of its parent open for a moment, and one that ends has its own: nobody who
/// looks finds them.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);
const BUSY_STEP: Duration = Duration::from_millis(10);

/// How often a drain tells how far it is, and a mount without a name looks whether files are still open.
const TICK: Duration = Duration::from_millis(100);

/// Why a mount leaves its loop.
enum Event {
    /// SIGTERM or SIGINT.
    Signal,
    /// `gravitonfs umount` has taken the mount off.
    Command { timeout_seconds: Option<u64> },
    /// No mount of this filesystem is left in our namespace.
    Gone,
    /// The kernel has closed the connection.
    SessionEnded,
}

/// What is mounted, and where.
pub struct Mounting {
    pub engine: Arc<Engine>,
    pub runtime: TokioRuntime,
    /// Absolute.
    pub mountpoint: PathBuf,
    pub options: MountOptions,
    pub state_root: PathBuf,
}

/// A mount that answers.
pub struct Mount {
    mounting: Mounting,
    shared: Arc<Shared>,
    entry: Entry,
    events: Receiver<Event>,
}

/// What the control socket needs too.
struct Shared {
    engine: Arc<Engine>,
    runtime: Handle,
    lifecycle: Lifecycle,
    mountpoint: PathBuf,
    /// `major:minor` of the mount.
    device: String,
    open_count: Arc<AtomicU64>,
    durability: &'static str,
    events: SyncSender<Event>,
}

/// Keeps SIGTERM and SIGINT for the thread that waits for them. Called while the process has one thread: others
/// inherit it.
///
/// # Errors
/// If the system refuses.
pub fn block_signals() -> Result<()> {
    signals().thread_block().map_err(|errno| Failure::io("signals", "block", errno.into()))
}

fn signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
}

impl Mount {
    /// Mounts, and returns when the root directory has answered.
    ///
    /// # Errors
    /// Of mount(2); `Internal` if the root does not answer. Nothing is mounted then, and the runtime comes back.
    pub fn start(mounting: Mounting) -> std::result::Result<Self, (Box<Failure>, TokioRuntime)> {
        match Self::try_start(&mounting) {
            Ok((shared, entry, events)) => Ok(Self { mounting, shared, entry, events }),
            Err(failure) => Err((Box::new(failure), mounting.runtime)),
        }
    }

    fn try_start(mounting: &Mounting) -> Result<(Arc<Shared>, Entry, Receiver<Event>)> {
        let source = mounting.engine.volume().to_string();
        let device = mount_device(&source, &mounting.mountpoint, &mounting.options)?;
        let mounted = Unmounter { mountpoint: &mounting.mountpoint };
        let selftest = Arc::new(SelfTest::new(mounting.engine.random(), owner()));
        let open_count = Arc::new(AtomicU64::new(0));
        let adapter = adapter(mounting, &selftest, &open_count);
        let failed = |what, error| Failure::io(mounting.mountpoint.display(), what, error);
        let session = Session::negotiate(device, adapter).map_err(|error| failed("negotiate", error))?;

        let (sender, events) = sync_channel(16);
        run_session(session, sender.clone()).map_err(|error| failed("start the session", error))?;
        std::fs::metadata(&mounting.mountpoint).map_err(|error| failed("ask the root", error))?;
        let in_table = mounted_at(&mounting.mountpoint).map_err(|error| failed("read mounts", error))?;
        let advice = "was it unmounted at once?";
        let lost =
            || Failure::new(Code::Internal, mounting.mountpoint.display(), "the mount is gone", advice);
        let device = in_table.filter(|found| found.is_ours()).ok_or_else(lost)?.device;
        raise_readahead(&device, READAHEAD_BYTES);
        let direct = !mounting.engine.is_read_only() && sees_direct_writes(&mounting.mountpoint, &selftest);
        selftest.conclude(direct);
        tracing::info!(direct_writes = direct, %device, "mounted");

        let shared = Arc::new(Shared {
            engine: Arc::clone(&mounting.engine),
            runtime: mounting.runtime.handle(),
            lifecycle: Lifecycle::default(),
            mountpoint: mounting.mountpoint.clone(),
            device,
            open_count,
            durability: mounting.options.durability.as_str(),
            events: sender,
        });
        shared.watch().map_err(|error| failed("watch the mount", error))?;
        let entry = Entry {
            mountpoint: mounting.mountpoint.clone(),
            volume: source,
            pid: std::process::id(),
            state_dir: mounting.engine.state_dir().to_owned(),
        };
        let handler = Arc::clone(&shared) as Arc<dyn Handler>;
        control::serve(&entry.state_dir, handler).map_err(|error| failed("open control socket", error))?;
        entry.publish(&mounting.state_root).map_err(|error| failed("register the mount", error))?;
        std::mem::forget(mounted);
        Ok((shared, entry, events))
    }

    /// Serves until the mount is gone, then sends everything to the store.
    ///
    /// Gives the runtime back too, for the caller to end.
    ///
    /// # Errors
    /// `DrainTimedOut` if that was cut short; of the store.
    pub fn run(self) -> (Result<()>, TokioRuntime) {
        let timeout = self.until_stopped();
        self.shared.lifecycle.draining(self.shared.engine.progress());
        let outcome = self.drain(timeout);
        match &outcome {
            Ok(()) => tracing::info!("unmounted, everything is in the store"),
            Err(failure) => tracing::error!(%failure, "unmounted"),
        }
        self.entry.withdraw(&self.mounting.state_root);
        self.shared.lifecycle.end(outcome.clone(), CLOSE_GRACE);
        (outcome, self.mounting.runtime)
    }

    /// Returns when the kernel is done with us, with the time that the drain may take.
    fn until_stopped(&self) -> Option<u64> {
        match self.next_event() {
            Event::SessionEnded => None,
            Event::Gone => self.serve_open_files(),
            Event::Command { timeout_seconds } => {
                self.close_connection();
                timeout_seconds
            }
            Event::Signal => {
                self.take_off();
                None
            }
        }
    }

    fn next_event(&self) -> Event {
        self.events.recv().expect("this process holds a sender itself")
    }

    /// The mountpoint was taken away from outside, perhaps lazily: whoever has files open keeps them. Ends when the
    /// kernel closes the connection, or when nothing is open and only a copy of the mount can be what is left.
    fn serve_open_files(&self) -> Option<u64> {
        self.shared.lifecycle.draining(self.shared.engine.progress());
        let mut idle_since = None;
        loop {
            match self.events.recv_timeout(TICK) {
                Ok(Event::SessionEnded) => return None,
                Ok(Event::Gone) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Command { timeout_seconds }) => {
                    self.close_connection();
                    return timeout_seconds;
                }
                Ok(Event::Signal) | Err(RecvTimeoutError::Disconnected) => {
                    self.close_connection();
                    return None;
                }
            }
            if self.shared.open_count.load(Ordering::Relaxed) != 0 {
                idle_since = None;
            } else if CLOSE_GRACE < idle_since.get_or_insert_with(Instant::now).elapsed() {
                self.close_connection();
                return None;
            }
        }
    }

    /// Unmounts whether or not files are open: the process was told to end.
    fn take_off(&self) {
        if let Err(error) = self.shared.unmount_own(Mode::Plain) {
            tracing::warn!(%error, "unmount although files are open");
            if let Err(error) = self.shared.unmount_own(Mode::Lazy) {
                tracing::warn!(%error, "unmount");
            }
        }
        self.close_connection();
    }

    /// Waits until the kernel has closed the connection; cuts it if something keeps it open.
    fn close_connection(&self) {
        if self.session_ends_within(CLOSE_GRACE) {
            return;
        }
        tracing::warn!(
            "something still holds the mount, perhaps a copy in another namespace: cut the connection"
        );
        if let Err(error) = abort_connection(&self.shared.device) {
            // It ends with this process.
            tracing::warn!(%error, "cut the connection");
            return;
        }
        self.session_ends_within(CLOSE_GRACE);
    }

    fn session_ends_within(&self, grace: Duration) -> bool {
        let until = Instant::now() + grace;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::SessionEnded) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends everything to the store, telling how far it is. A second signal, or the timeout of a command, cuts it.
    fn drain(&self, timeout_seconds: Option<u64>) -> Result<()> {
        let engine = &self.shared.engine;
        let mut deadline = timeout_seconds.map(after);
        let closing = engine.close();
        self.mounting.runtime.block_on(async {
            tokio::pin!(closing);
            loop {
                if let Ok(outcome) = tokio::time::timeout(TICK, &mut closing).await {
                    return outcome;
                }
                let progress = engine.progress();
                self.shared.lifecycle.draining(progress);
                let is_cut = match self.events.try_recv() {
                    Ok(Event::Signal) => true,
                    Ok(Event::Command { timeout_seconds: Some(seconds) }) => {
                        deadline = Some(after(seconds));
                        false
                    }
                    Ok(_) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => false,
                };
                if is_cut || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    return Err(timed_out(engine.volume(), progress));
                }
            }
        })
    }
}

fn after(seconds: u64) -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_secs(seconds))
        .unwrap_or_else(|| now + Duration::from_secs(u32::MAX.into()))
}

fn owner() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Takes a mount off that did not come to work.
struct Unmounter<'a> {
    mountpoint: &'a Path,
}

impl Drop for Unmounter<'_> {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.mountpoint, Mode::Lazy) {
            tracing::warn!(%error, "take off a mount that failed");
        }
    }
}

fn adapter(mounting: &Mounting, selftest: &Arc<SelfTest>, open_count: &Arc<AtomicU64>) -> Adapter {
    let MountOptions { uid, gid, umask, .. } = mounting.options;
    Adapter::new(AdapterParts {
        vfs: mounting.engine.vfs(),
        spawner: mounting.runtime.spawner(),
        clock: mounting.runtime.clock(),
        runtime: mounting.runtime.handle(),
        presentation: Presentation { uid, gid, umask },
        selftest: Arc::clone(selftest),
        open_count: Arc::clone(open_count),
    })
}

fn run_session(session: Session, events: SyncSender<Event>) -> io::Result<()> {
    let run = move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "serve the kernel");
        }
        // The receiver is gone once the process is ending.
        let _ = events.send(Event::SessionEnded);
    };
    std::thread::Builder::new().name("fuse".to_owned()).spawn(run).map(drop)
}

/// True if a cached page of a file is dropped when the file is written past the page cache.
fn sees_direct_writes(mountpoint: &Path, selftest: &SelfTest) -> bool {
    let path = mountpoint.join(selftest.name());
    let see = || -> io::Result<bool> {
        let mut page = [0_u8; PROBE_BYTES];
        let reader = File::open(&path)?;
        reader.read_exact_at(&mut page, 0)?;
        File::options().write(true).open(&path)?.write_all_at(&[1; PROBE_BYTES], 0)?;
        reader.read_exact_at(&mut page, 0)?;
        Ok(page == [1; PROBE_BYTES])
    };
    see().unwrap_or_else(|error| {
        tracing::info!(%error, "cannot test direct writes");
        false
    })
}

impl Shared {
    /// Starts the threads that wait for the ends of a mount.
    fn watch(&self) -> io::Result<()> {
        let (device, events) = (self.device.clone(), self.events.clone());
        let until_gone = move || match wait_until_gone(&device) {
            Ok(()) => drop(events.send(Event::Gone)),
            Err(error) => tracing::error!(%error, "watch the mount table"),
        };
        std::thread::Builder::new().name("mount-watch".to_owned()).spawn(until_gone)?;
        let events = self.events.clone();
        let until_signal = move || {
            while signals().wait().is_ok() && events.send(Event::Signal).is_ok() {}
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(until_signal)?;
        Ok(())
    }

    /// Takes our mount off; one that is busy is tried again for a moment.
    fn unmount_when_free(&self) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            match self.unmount_own(Mode::Plain) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy && begin.elapsed() < BUSY_PATIENCE =>
                {
                    std::thread::sleep(BUSY_STEP);
                }
                outcome => return outcome,
            }
        }
    }

    /// Takes our mount off, if it is still the one at its place.
    fn unmount_own(&self, mode: Mode) -> io::Result<()> {
        match mounted_at(&self.mountpoint)? {
            Some(mounted) if mounted.device == self.device => unmount(&self.mountpoint, mode),
            _ => Ok(()),
        }
    }

    fn state(&self) -> State {
        if !self.lifecycle.is_serving() {
            State::Draining
        } else if self.engine.is_read_only() || self.engine.refusal().is_some() {
            State::ReadOnly
        } else {
            State::Mounted
        }
    }
}

impl Handler for Shared {
    fn while_alive(&self, work: &mut dyn FnMut()) {
        let _watcher = self.lifecycle.watch();
        work();
    }

    fn status(&self) -> Result<Status> {
        let status = self.engine.status()?;
        Ok(Status {
            mountpoint: Some(self.mountpoint.clone()),
            pid: Some(std::process::id()),
            state: self.state(),
            durability: Some(self.durability.to_owned()),
            ..status
        })
    }

    fn sync(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let syncing = self.engine.sync();
        self.runtime.block_on(async {
            tokio::pin!(syncing);
            loop {
                match tokio::time::timeout(TICK, &mut syncing).await {
                    Ok(outcome) => return outcome,
                    Err(_) => progress(self.engine.progress()),
                }
            }
        })
    }

    fn unmount(&self, timeout_seconds: Option<u64>, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let watcher = self.lifecycle.watch();
        if self.lifecycle.is_serving() {
            match watcher.unmounting(|| self.unmount_when_free()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    return Err(client::busy(&self.mountpoint));
                }
                // Somebody was faster.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(Failure::io(self.mountpoint.display(), "unmount", error)),
            }
        }
        // Full only while the end is under way already.
        let _ = self.events.try_send(Event::Command { timeout_seconds });
        watcher.until_end(progress)
    }

    fn check(&self, data: Data, report: &mut check::Report<'_>) -> Result<CheckReport> {
        self.runtime.block_on(self.engine.check(data, report))
    }

    fn blob(&self, op: &BlobOp, file: Option<File>, report: &mut (dyn FnMut(BlobInfo) + Send)) -> Result<()> {
        let blobs = self.engine.blobs();
        self.runtime.block_on(blob::run(&blobs, self.engine.volume(), op, file, report))
    }
}
