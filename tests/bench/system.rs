//! The filesystems that are compared, each with a directory to work in: a local one, a FUSE filesystem that does
//! nothing, and GravitonFS over a directory or an S3 server. Whatever they started ends when they are dropped.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use super::workload::forget_pages_below;

const MOUNT_DEADLINE: Duration = Duration::from_secs(20);

/// What the store was asked for since the mount.
#[derive(Clone, Copy, Default, Debug)]
pub struct Traffic {
    pub requests: u64,
    pub bytes: u64,
}

pub trait System {
    /// The column or table it is reported in.
    fn name(&self) -> &'static str;
    /// Where the workloads put their files.
    fn root(&self) -> &Path;
    /// The process that does the filesystem's part of the work.
    fn daemon(&self) -> Option<u32>;
    /// Waits until nothing of what was done is left to do, so that the next system has the machine for itself.
    fn settle(&mut self) -> io::Result<()>;
    /// Empties every cache that the content of files can be in.
    fn cool(&mut self) -> io::Result<()>;
    fn traffic(&self) -> io::Result<Traffic>;
}

/// A directory of the filesystem that holds the work directory.
pub struct Local {
    root: PathBuf,
}

impl Local {
    pub fn new(work: &Path) -> io::Result<Self> {
        let root = work.join("local");
        fs::create_dir(&root)?;
        Ok(Self { root })
    }
}

impl System for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn daemon(&self) -> Option<u32> {
        None
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(nix::unistd::syncfs(fs::File::open(&self.root)?)?)
    }

    fn cool(&mut self) -> io::Result<()> {
        forget_pages_below(&self.root)
    }

    fn traffic(&self) -> io::Result<Traffic> {
        Ok(Traffic::default())
    }
}

/// The FUSE filesystem that does nothing, in a process of its own.
pub struct NullFuse {
    mountpoint: Mountpoint,
    server: Child,
}

impl NullFuse {
    pub fn new(work: &Path) -> io::Result<Self> {
        let mountpoint = Mountpoint::new(work.join("null"))?;
        let mut server = Command::new(std::env::current_exe()?)
            .arg("--serve-null-fuse")
            .arg(&mountpoint.path)
            .stdin(Stdio::null())
            .spawn()?;
        let deadline = Instant::now() + MOUNT_DEADLINE;
        while mountpoint.expect_fuse().is_err() {
            if let Some(status) = server.try_wait()? {
                return Err(io::Error::other(format!("the null filesystem ended: {status}")));
            }
            if deadline <= Instant::now() {
                let _ = server.kill();
                return Err(io::Error::other("the null filesystem does not mount"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        raise_readahead(&mountpoint.path)?;
        Ok(Self { mountpoint, server })
    }
}

impl System for NullFuse {
    fn name(&self) -> &'static str {
        "null_fuse"
    }

    fn root(&self) -> &Path {
        &self.mountpoint.path
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.server.id())
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn cool(&mut self) -> io::Result<()> {
        forget_pages_below(&self.mountpoint.path)
    }

    fn traffic(&self) -> io::Result<Traffic> {
        Ok(Traffic::default())
    }
}

impl Drop for NullFuse {
    fn drop(&mut self) {
        self.mountpoint.detach();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The kernel reads ahead 128 KiB on FUSE until somebody says more.
fn raise_readahead(mountpoint: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(mountpoint)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // Not everybody may; then the row is what such a user gets.
    let _ = fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024");
    Ok(())
}

/// A mount of ours and the store behind it.
pub struct Ours {
    name: &'static str,
    binary: PathBuf,
    volume: String,
    options: Vec<String>,
    mountpoint: Mountpoint,
    state: PathBuf,
    cache: PathBuf,
    /// Local files of the store, whose pages must go for a cold read.
    store: Option<PathBuf>,
    /// Dropped after the mount.
    _server: Option<S3Process>,
    pid: u32,
}

impl Ours {
    /// Over `file://`, with everything below `work`.
    pub fn over_directory(binary: &Path, work: &Path) -> io::Result<Self> {
        let store = work.join("file-volume");
        let volume = format!("file://{}", store.display());
        Self::new("file", binary, work, volume, vec![], Some(store), None)
    }

    /// Over `s3://`, on a server with memory for `bytes`.
    pub fn over_s3(binary: &Path, work: &Path, bytes: usize) -> io::Result<Self> {
        let server = S3Process::start(bytes)?;
        let options = vec![format!("endpoint={},region={},path-style", server.endpoint, super::s3::REGION)];
        Self::new(
            "s3",
            binary,
            work,
            format!("s3://{}/bench", S3Process::BUCKET),
            options,
            None,
            Some(server),
        )
    }

    fn new(
        name: &'static str,
        binary: &Path,
        work: &Path,
        volume: String,
        options: Vec<String>,
        store: Option<PathBuf>,
        server: Option<S3Process>,
    ) -> io::Result<Self> {
        let mountpoint = Mountpoint::new(work.join(format!("{name}-mount")))?;
        let (state, cache) = (work.join(format!("{name}-state")), work.join(format!("{name}-cache")));
        fs::create_dir(&state)?;
        fs::create_dir(&cache)?;
        let (binary, pid) = (binary.to_owned(), 0);
        let mut ours =
            Self { name, binary, volume, options, mountpoint, state, cache, store, _server: server, pid };
        ours.mount(&["--create"])?;
        Ok(ours)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ACCESS_KEY_ID", super::s3::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", super::s3::SECRET_KEY)
            .env("GRAVITONFS_STATE_DIR", &self.state)
            .env("GRAVITONFS_CACHE_DIR", &self.cache)
            .stdin(Stdio::null())
            .arg(verb);
        command
    }

    fn mount(&mut self, extra: &[&str]) -> io::Result<()> {
        let mut command = self.command("mount");
        command.args(extra).arg(&self.volume).arg(&self.mountpoint.path);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        // Its one line of success is no part of our report.
        finish(command.stdout(Stdio::null()))?;
        self.mountpoint.expect_fuse()?;
        let status = self.status()?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        self.pid = pid.ok_or_else(|| io::Error::other(format!("status names no process: {status}")))?;
        Ok(())
    }

    fn umount(&self) -> io::Result<()> {
        let mut command = self.command("umount");
        finish(command.arg(&self.mountpoint.path).stdout(Stdio::null()))
    }

    fn status(&self) -> io::Result<serde_json::Value> {
        let output = self
            .command("status")
            .arg("--json")
            .arg(&self.mountpoint.path)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("status: {}", output.status)));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl System for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn root(&self) -> &Path {
        &self.mountpoint.path
    }

    fn daemon(&self) -> Option<u32> {
        Some(self.pid)
    }

    fn settle(&mut self) -> io::Result<()> {
        let mut command = self.command("sync");
        finish(command.arg(&self.mountpoint.path).stdout(Stdio::null()))
    }

    fn cool(&mut self) -> io::Result<()> {
        self.umount()?;
        // The state directory too: after an unmount nothing in it is needed, and it may hold copies of sent packs.
        for directory in [&self.cache, &self.state] {
            fs::remove_dir_all(directory)?;
            fs::create_dir(directory)?;
        }
        if let Some(store) = &self.store {
            forget_pages_below(store)?;
        }
        self.mount(&[])
    }

    fn traffic(&self) -> io::Result<Traffic> {
        let status = self.status()?;
        let count = |value: &serde_json::Value| {
            value.as_u64().ok_or_else(|| io::Error::other(format!("status lacks a number: {status}")))
        };
        let mut requests = 0;
        for kind in ["put", "get", "head", "list", "delete"] {
            requests += count(&status["object_requests"][kind])?;
        }
        Ok(Traffic { requests, bytes: count(&status["sent_bytes"])? + count(&status["received_bytes"])? })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if self.mountpoint.expect_fuse().is_ok() && self.umount().is_err() {
            // The volume goes with the work directory: nothing worth draining is left.
            self.mountpoint.detach();
        }
    }
}

fn finish(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("gravitonfs {}: {status}", words.join(" "))))
    }
}

/// A directory that something is mounted on for as long as this lives.
struct Mountpoint {
    path: PathBuf,
}

impl Mountpoint {
    fn new(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// Refuses when the directory below the mount would be measured.
    fn expect_fuse(&self) -> io::Result<()> {
        if statfs(&self.path)?.filesystem_type() == FUSE_SUPER_MAGIC {
            return Ok(());
        }
        Err(io::Error::other(format!("nothing is mounted on {}", self.path.display())))
    }

    fn detach(&self) {
        if umount2(&self.path, MntFlags::MNT_DETACH).is_err() {
            // Not root.
            let _ = Command::new("fusermount3").arg("-uz").arg(&self.path).status();
        }
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // A dead mount answers statfs with an error.
        if self.expect_fuse().is_ok() || fs::metadata(&self.path).is_err() {
            self.detach();
        }
    }
}

/// The S3 server of the tests, in a process of its own so that its work is not counted as ours.
struct S3Process {
    server: Child,
    endpoint: String,
}

impl S3Process {
    const BUCKET: &str = "bench";

    /// With memory for `bytes` of objects.
    fn start(bytes: usize) -> io::Result<Self> {
        let mut server = Command::new(std::env::current_exe()?)
            .arg("--serve-s3")
            .arg(Self::BUCKET)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut endpoint = String::new();
        BufReader::new(server.stdout.take().expect("piped")).read_line(&mut endpoint)?;
        Ok(Self { server, endpoint: endpoint.trim().to_owned() })
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
