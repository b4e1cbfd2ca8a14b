//! Mounts of the built binary for tests: a volume in a temporary directory or on the S3 test server, with local files
//! of its own, taken down on every way out. Needs root and `/dev/fuse`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Finished, LIMIT, run_within, script, script_within};
use crate::s3::{self, Mode, S3Server};

pub const BUCKET: &str = "bucket";
/// S3 volumes are not at the root of their bucket, so that a key without its prefix is noticed.
const PREFIX: &str = "some/where";

/// What a drain may take on a busy machine with a slow build.
const UMOUNT_LIMIT: Duration = Duration::from_secs(300);
/// What a mount without history may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
const LOG_TAIL_LINES: usize = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    File,
    S3,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::S3 => "s3",
        })
    }
}

/// Makes of each function `fn(&Volume)` two tests, one per backend. The limit is for all of the test.
macro_rules! on_each_backend {
    ($($name:ident within $seconds:literal s,)*) => { $(
        mod $name {
            use crate::mount::{Backend, run_test};

            #[test]
            fn on_file() {
                run_test(Backend::File, module_path!(), $seconds, super::$name);
            }

            #[test]
            fn on_s3() {
                run_test(Backend::S3, module_path!(), $seconds, super::$name);
            }
        }
    )* };
}
pub(crate) use on_each_backend;

/// Gives `body` a volume that is not mounted yet; afterwards unmounts it if it is mounted, and fails if the daemon
/// complained about anything that the test did not announce.
pub fn run_test(backend: Backend, path: &str, limit_seconds: u64, body: fn(&Volume)) {
    let volume = Volume::new(backend);
    let watchdog = Watchdog::start(&volume, Duration::from_secs(limit_seconds));
    body(&volume);
    let requests = volume.all_requests();
    if volume.is_mounted() {
        volume.umount();
    }
    drop(watchdog);
    volume.assert_no_complaints();
    let test = path.strip_prefix("mounted::").unwrap_or(path);
    print_past_capture(&format!("backend={backend} test={test} requests={requests}\n"));
}

/// The test runner hides what is printed by tests that pass; these lines are part of the result.
fn print_past_capture(line: &str) {
    std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
}

/// Requests to the object store by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Requests {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
}

impl Requests {
    fn from_status(status: &Value) -> Self {
        let of = |kind: &str| number(&status["object_requests"], kind);
        Self { put: of("put"), get: of("get"), head: of("head"), list: of("list"), delete: of("delete") }
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            put: self.put - earlier.put,
            get: self.get - earlier.get,
            head: self.head - earlier.head,
            list: self.list - earlier.list,
            delete: self.delete - earlier.delete,
        }
    }

    /// Those that ask the store for something.
    #[must_use]
    pub fn asking(&self) -> u64 {
        self.get + self.head + self.list
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { put, get, head, list, delete } = self;
        write!(f, "put:{put},get:{get},head:{head},list:{list},delete:{delete}")
    }
}

/// Bytes of the objects of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stored {
    pub packs: u64,
    pub journal: u64,
    pub all: u64,
}

/// A volume, its local files, and the place to mount it.
pub struct Volume {
    pub backend: Backend,
    /// Past the protocol, on S3.
    pub server: Option<S3Server>,
    directory: TempDir,
    /// Words that may occur in warnings of the daemon.
    expected_complaints: RefCell<Vec<String>>,
}

impl Volume {
    /// A volume that does not exist yet: the first mount makes it.
    ///
    /// # Panics
    /// If the machine cannot mount.
    pub fn new(backend: Backend) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "mounted tests run as root");
        assert!(Path::new("/dev/fuse").exists(), "mounted tests need /dev/fuse: modprobe fuse");
        let directory =
            tempfile::Builder::new().prefix("gravitonfs-test-").tempdir().expect("temporary directory");
        for name in ["mnt", "state", "cache", "scratch"] {
            fs::create_dir(directory.path().join(name)).expect("mkdir");
        }
        // Other users reach the mountpoint in tests of permissions.
        script(directory.path(), "chmod 755 .");
        let server = (backend == Backend::S3).then(|| {
            let server = S3Server::start(Mode::Atomic);
            server.create_bucket(BUCKET);
            server
        });
        Self { backend, server, directory, expected_complaints: Vec::new().into() }
    }

    /// As the command line takes it.
    pub fn url(&self) -> String {
        match self.backend {
            Backend::File => format!("file://{}", self.store_dir().display()),
            Backend::S3 => format!("s3://{BUCKET}/{PREFIX}"),
        }
    }

    /// Where the objects of a `file://` volume are.
    pub fn store_dir(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// The temporary directory with everything of this test in it.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// A path below the mountpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint().join(name)
    }

    /// A local directory beside the mount.
    pub fn scratch(&self) -> PathBuf {
        self.directory.path().join("scratch")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// The binary under test, in a clean environment: local files in the temporary directory, credentials of the test
    /// server.
    pub fn gravitonfs<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gravitonfs"));
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"AWS_") || name.as_bytes().starts_with(b"GRAVITONFS_") {
                command.env_remove(name);
            }
        }
        // A file of the user's own would take part in the choice of credentials.
        command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
        command.env("GRAVITONFS_STATE_DIR", self.state_dir()).env("GRAVITONFS_CACHE_DIR", self.cache_dir());
        command.args(arguments);
        command
    }

    /// Arguments that say where the test server is.
    pub fn store_options(&self) -> Vec<String> {
        let Some(server) = &self.server else { return Vec::new() };
        vec!["-o".to_owned(), format!("endpoint={},region={}", server.endpoint(), s3::REGION)]
    }

    /// `gravitonfs mount` with these arguments and the store's options, as a command that may fail.
    pub fn mount_command(&self, url: &str, mountpoint: &Path, arguments: &[&str]) -> Command {
        let mut command = self.gravitonfs(&["mount", url]);
        command.arg(mountpoint).args(self.store_options()).args(arguments);
        command
    }

    /// Mounts, making the volume if need be.
    pub fn mount(&self) {
        self.mount_with(&[]);
    }

    /// Mounts with further arguments, making the volume if need be.
    ///
    /// # Panics
    /// If it does not return success in time.
    pub fn mount_with(&self, arguments: &[&str]) {
        let mut command = self.mount_command(&self.url(), &self.mountpoint(), arguments);
        let Some(Finished { code, stdout, stderr }) = run_within(MOUNT_LIMIT, command.arg("--create")) else {
            panic!("mount does not return\n{}", self.log_tail());
        };
        assert_eq!(code, Some(0), "mount: {stdout}{stderr}{}", self.log_tail());
        assert_eq!(stdout.lines().count(), 1, "mount says where in one line: {stdout:?}");
        assert!(self.is_mounted(), "mount returned 0 but nothing is mounted");
    }

    /// Unmounts with everything in the store.
    ///
    /// # Panics
    /// If it fails, takes too long, or leaves a mount or a process behind.
    pub fn umount(&self) {
        let mut command = self.gravitonfs(&["umount"]);
        let Some(Finished { code, stderr, .. }) = run_within(UMOUNT_LIMIT, command.arg(self.mountpoint()))
        else {
            panic!("umount does not return\n{}", self.log_tail());
        };
        assert_eq!(code, Some(0), "umount: {stderr}{}", self.log_tail());
        self.assert_gone();
    }

    /// Notes a measured number beside the result of the test.
    pub fn report(&self, name: &str, value: u64) {
        print_past_capture(&format!("backend={} {name}={value}\n", self.backend));
    }

    /// Asserts that neither a mount nor a process of one is there.
    pub fn assert_gone(&self) {
        assert!(!self.is_mounted(), "still mounted");
        let daemons = self.daemons();
        assert!(daemons.is_empty(), "processes left behind: {daemons:?}\n{}", self.log_tail());
    }

    /// Waits until everything written so far is in the store.
    pub fn sync(&self) {
        let mut command = self.gravitonfs(&["sync"]);
        let Some(Finished { code, stderr, .. }) = run_within(UMOUNT_LIMIT, command.arg(self.mountpoint()))
        else {
            panic!("sync does not return\n{}", self.log_tail());
        };
        assert_eq!(code, Some(0), "sync: {stderr}{}", self.log_tail());
    }

    /// Unmounts, deletes everything local, and mounts again.
    pub fn remount_from_the_store_alone(&self) {
        self.umount();
        self.wipe_local();
        self.mount();
    }

    /// Deletes state and cache, as a lost machine would.
    pub fn wipe_local(&self) {
        assert!(!self.is_mounted(), "unmount first");
        self.assert_no_complaints();
        for directory in [self.state_dir(), self.cache_dir()] {
            fs::remove_dir_all(&directory).expect("remove local files");
            fs::create_dir(&directory).expect("mkdir");
        }
    }

    /// `status --json` of the mount.
    pub fn status(&self) -> Value {
        let mut command = self.gravitonfs(&["status", "--json"]);
        let Some(Finished { code, stdout, stderr }) = run_within(LIMIT, command.arg(self.mountpoint()))
        else {
            panic!("status does not return\n{}", self.log_tail());
        };
        assert_eq!(code, Some(0), "status: {stderr}{}", self.log_tail());
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("status is not JSON: {error}: {stdout}"))
    }

    /// Requests since this mount began, as it counts them itself.
    pub fn requests(&self) -> Requests {
        Requests::from_status(&self.status())
    }

    /// Bytes sent to the store since this mount began.
    pub fn sent_bytes(&self) -> u64 {
        number(&self.status(), "sent_bytes")
    }

    /// Requests that reached the server over all mounts; of a directory those that the current mount counts.
    fn all_requests(&self) -> Requests {
        match &self.server {
            Some(_) => self.server_requests(),
            None if self.is_mounted() => self.requests(),
            None => Requests::default(),
        }
    }

    /// What the S3 server has seen so far.
    pub fn server_requests(&self) -> Requests {
        let mut requests = Requests::default();
        for request in self.server.as_ref().expect("only on S3").requests() {
            match request.kind() {
                "put" => requests.put += 1,
                "get" => requests.get += 1,
                "head" => requests.head += 1,
                "list" => requests.list += 1,
                _ => requests.delete += 1,
            }
        }
        requests
    }

    /// Keys below the volume and lengths of all its objects.
    pub fn objects(&self) -> Vec<(String, u64)> {
        match &self.server {
            Some(server) => {
                let all = server.objects().list(BUCKET).into_iter();
                all.filter_map(|(key, len)| Some((key.strip_prefix(PREFIX)?[1..].to_owned(), len))).collect()
            }
            None => {
                let listed =
                    script(&self.store_dir(), "find . -type f -printf '%s %P\\n' | LC_ALL=C sort -k2");
                let parse = |line: &str| {
                    let (len, key) = line.split_once(' ').expect("two columns");
                    (key.to_owned(), len.parse().expect("a length"))
                };
                listed.lines().map(parse).collect()
            }
        }
    }

    pub fn stored(&self) -> Stored {
        let mut stored = Stored::default();
        for (key, len) in self.objects() {
            stored.all += len;
            match key.split_once('/') {
                Some(("packs" | "blocks", _)) => stored.packs += len,
                Some(("journal", _)) => stored.journal += len,
                _ => {}
            }
        }
        stored
    }

    /// The content of an object, past the product.
    pub fn read_object(&self, key: &str) -> Vec<u8> {
        match &self.server {
            Some(server) => {
                let body = server.objects().read(BUCKET, &format!("{PREFIX}/{key}"));
                body.expect("the object exists").to_vec()
            }
            None => fs::read(self.store_dir().join(key)).expect("read object"),
        }
    }

    /// Puts an object in the place of another, past the product.
    pub fn write_object(&self, key: &str, body: Vec<u8>) {
        match &self.server {
            Some(server) => server.objects().write(BUCKET, &format!("{PREFIX}/{key}"), body),
            None => fs::write(self.store_dir().join(key), body).expect("write object"),
        }
    }

    /// Loses an object.
    pub fn delete_object(&self, key: &str) {
        match &self.server {
            Some(server) => server.objects().delete(BUCKET, &format!("{PREFIX}/{key}")),
            None => fs::remove_file(self.store_dir().join(key)).expect("remove object"),
        }
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.mountpoint())
    }

    /// Processes of the binary under test that serve this mountpoint.
    pub fn daemons(&self) -> Vec<i32> {
        daemons_of(&self.mountpoint())
    }

    /// The paths of all logs below the state directory.
    fn logs(&self) -> Vec<PathBuf> {
        logs_below(&self.state_dir())
    }

    /// Everything that the daemons of this volume have logged since the local files were last deleted.
    pub fn log(&self) -> String {
        let read = |path: &PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.logs().iter().filter_map(|path| read(path).ok()).collect()
    }

    pub fn log_tail(&self) -> String {
        tail_of(&self.log())
    }

    /// Warnings and errors in the log whose line has one of `words` are part of this test.
    pub fn expect_complaints(&self, words: &[&str]) {
        self.expected_complaints.borrow_mut().extend(words.iter().map(|&word| word.to_owned()));
    }

    fn assert_no_complaints(&self) {
        let expected = self.expected_complaints.borrow();
        let log = self.log();
        let is_complaint = |line: &&str| {
            let is_bad = line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked at");
            is_bad && !expected.iter().any(|word| line.contains(word.as_str()))
        };
        let complaints: Vec<_> = log.lines().filter(is_complaint).collect();
        assert!(complaints.is_empty(), "the daemon complained:\n{}", complaints.join("\n"));
    }

    fn take_down(&self) {
        let mut command = self.gravitonfs(&["umount"]);
        let ended = self.is_mounted() && {
            let limit = if std::thread::panicking() { Duration::from_secs(20) } else { UMOUNT_LIMIT };
            run_within(limit, command.arg(self.mountpoint())).is_some_and(|finished| finished.code == Some(0))
        };
        if !ended {
            kill_mount(&self.mountpoint());
        }
        // What a command mounted that should have been refused.
        for mountpoint in mounted_below(self.directory.path()) {
            kill_mount(&mountpoint);
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}---", self.log_tail());
        }
        self.take_down();
        if std::thread::panicking() && std::env::var_os("GRAVITONFS_TEST_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept {}", self.directory.path().display());
        }
    }
}

/// Ends a mount without asking: for mounts that hang. Only processes that serve `mountpoint` are touched.
fn kill_mount(mountpoint: &Path) {
    for pid in daemons_of(mountpoint) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    while is_mounted(mountpoint) {
        if umount2(mountpoint, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
}

/// True if something is mounted exactly at `path`.
pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let path = path.to_str().expect("test paths are text");
    // Test paths hold nothing that the table would escape.
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// Everything mounted below `directory`, the newest first.
fn mounted_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let paths = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    let mut below: Vec<_> = paths.filter(|path| path.starts_with(directory)).collect();
    below.reverse();
    below
}

/// Processes whose executable is the binary under test and that have `mountpoint` as one argument.
pub fn daemons_of(mountpoint: &Path) -> Vec<i32> {
    let binary = fs::canonicalize(env!("CARGO_BIN_EXE_gravitonfs")).expect("the binary is built");
    let is_ours = |process: &Path| {
        let command_line = fs::read(process.join("cmdline")).unwrap_or_default();
        let serves =
            command_line.split(|&byte| byte == 0).any(|word| word == mountpoint.as_os_str().as_bytes());
        serves && fs::read_link(process.join("exe")).is_ok_and(|exe| exe == binary)
    };
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    let pid =
        |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok().filter(|_| is_ours(&entry.path()));
    processes.filter_map(pid).collect()
}

fn logs_below(state: &Path) -> Vec<PathBuf> {
    let volumes = fs::read_dir(state).into_iter().flatten().flatten();
    volumes.map(|entry| entry.path().join("daemon.log")).filter(|path| path.exists()).collect()
}

fn tail_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    let mut tail = String::new();
    for line in &lines[from..] {
        writeln!(tail, "{line}").expect("a string takes every line");
    }
    tail
}

/// A number of `status`.
pub fn number(status: &Value, field: &str) -> u64 {
    status[field].as_u64().unwrap_or_else(|| panic!("{field} is not a whole number: {status}"))
}

/// Ends the mount of a test that takes too long, so that calls which hang in it fail instead.
struct Watchdog {
    /// Dropping it calls the watchdog off.
    over: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(volume: &Volume, limit: Duration) -> Self {
        let (over, wait) = sync_channel(0);
        let (mountpoint, state) = (volume.mountpoint(), volume.state_dir());
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
            let log: String = logs_below(&state).iter().map(read).collect();
            let seconds = limit.as_secs();
            let text =
                format!("the test is not over after {seconds} s: killing its mount\n{}", tail_of(&log));
            let _ = std::io::stderr().write_all(text.as_bytes());
            kill_mount(&mountpoint);
        });
        Self { over: Some(over), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A small filesystem of memory in the place of a directory, to be filled up.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    pub fn mount(path: &Path, megabytes: u64) -> Self {
        fs::create_dir_all(path).expect("mkdir");
        script(path, &format!("mount -t tmpfs -o size={megabytes}m,mode=755 test {}", path.display()));
        Self { path: path.to_owned() }
    }

    pub fn grow(&self, megabytes: u64) {
        let script_text = format!("mount -o remount,size={megabytes}m {}", self.path.display());
        script_within(LIMIT, Path::new("/"), &script_text);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
