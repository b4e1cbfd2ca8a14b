//! System calls that neither std nor nix wrap for the tests.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]
#![expect(unsafe_code, reason = "calls into libc with buffers that outlive the call")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

fn check(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Sets an extended attribute; `flags` as in setxattr(2).
pub fn set_xattr(path: &Path, name: &CStr, value: &[u8], flags: i32) -> Result<()> {
    let path = c_path(path);
    // SAFETY: both strings end with NUL, and the value is as long as said.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(result as isize).map(drop)
}

/// The value of an extended attribute of up to 64 KiB.
pub fn get_xattr(path: &Path, name: &CStr) -> Result<Vec<u8>> {
    let mut value = vec![0; 64 << 10];
    let len = read_xattr(path, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// Length of an extended attribute as told to somebody who has `room` for it; without any it is only asked for.
pub fn get_xattr_into(path: &Path, name: &CStr, room: usize) -> Result<usize> {
    read_xattr(path, name, &mut vec![0; room])
}

fn read_xattr(path: &Path, name: &CStr, value: &mut [u8]) -> Result<usize> {
    let path = c_path(path);
    // SAFETY: both strings end with NUL, and the buffer is as long as said.
    let result =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    check(result)
}

/// Removes an extended attribute.
pub fn remove_xattr(path: &Path, name: &CStr) -> Result<()> {
    let path = c_path(path);
    // SAFETY: both strings end with NUL.
    let result = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    check(result as isize).map(drop)
}

/// Names of all extended attributes, sorted.
pub fn list_xattrs(path: &Path) -> Result<Vec<CString>> {
    let mut names = vec![0_u8; 64 << 10];
    let path = c_path(path);
    // SAFETY: the path ends with NUL, and the buffer is as long as said.
    let result = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(result)?);
    let split = names.split_inclusive(|&byte| byte == 0);
    let name = |bytes| CStr::from_bytes_with_nul(bytes).expect("every name ends with NUL").to_owned();
    let mut names: Vec<_> = split.map(name).collect();
    names.sort();
    Ok(names)
}

/// Names and values of all extended attributes, sorted.
pub fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let names = list_xattrs(path).expect("list the attributes");
    let with_value = |name: CString| {
        let value = get_xattr(path, &name).expect("read a listed attribute");
        (name.into_bytes(), value)
    };
    names.into_iter().map(with_value).collect()
}

/// Copies up to `len` bytes between files and advances both offsets by what was copied.
pub fn copy_range(from: &File, from_at: &mut i64, to: &File, to_at: &mut i64, len: usize) -> Result<usize> {
    // SAFETY: both offsets live as long as the call, and the descriptors are open.
    let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), from_at, to.as_raw_fd(), to_at, len, 0) };
    check(copied)
}

/// What name_to_handle_at(2) gives: names an inode of a filesystem for good.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Handle {
    len: u32,
    kind: i32,
    bytes: [u8; 128],
}

impl Handle {
    /// The handle of a file.
    pub fn of(path: &Path) -> Result<Self> {
        let mut handle = Self { len: 128, kind: 0, bytes: [0; 128] };
        let (path, mut mount) = (c_path(path), 0);
        // SAFETY: the path ends with NUL, and the handle has room for as many bytes as it says.
        let result = unsafe {
            let place = (&raw mut handle).cast();
            libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), place, &raw mut mount, 0)
        };
        check(result as isize).map(|_| handle)
    }

    /// Opens the file for reading; `below` is anything of the same mount.
    pub fn open(&self, below: &File) -> Result<File> {
        let mut handle = self.clone();
        // SAFETY: the handle is as long as it says.
        let opened =
            unsafe { libc::open_by_handle_at(below.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDONLY) };
        check(opened as isize)?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(unsafe { File::from_raw_fd(opened) })
    }
}

/// A file mapped into memory, writable.
pub struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`, shared.
    pub fn new(file: &File, len: usize) -> Result<Self> {
        Self::map(file, len, libc::MAP_SHARED)
    }

    /// The same, with changes for this mapping alone.
    pub fn private(file: &File, len: usize) -> Result<Self> {
        Self::map(file, len, libc::MAP_PRIVATE)
    }

    fn map(file: &File, len: usize, flags: libc::c_int) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel likes touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(Self { start, len }) }
    }

    /// Stores through the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len, "inside the mapping");
        // SAFETY: the range lies in a mapping that lives as long as `self`, which only one thread at a time can have.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast::<u8>().add(offset), bytes.len()) };
    }

    /// Loads through the mapping.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len, "inside the mapping");
        let mut bytes = vec![0; len];
        // SAFETY: the range lies in a mapping that lives as long as `self`.
        unsafe { ptr::copy_nonoverlapping(self.start.cast::<u8>().add(offset), bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Waits until what was stored is in the file.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the range is exactly the mapping.
        check(unsafe { libc::msync(self.start, self.len, libc::MS_SYNC) } as isize).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the mapping, and nobody can use it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// The three kinds of locks a file can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    Flock,
    /// fcntl(2), of the process.
    Posix,
    /// fcntl(2), of the open file.
    Ofd,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    Shared,
    Exclusive,
    None,
}

/// Sets a lock on `len` bytes from `start` (flock(2) knows the whole file only), and waits for it if asked to.
pub fn lock(file: &File, kind: LockKind, lock: Lock, range: (i64, i64), wait: bool) -> Result<()> {
    let fd = file.as_raw_fd();
    if kind == LockKind::Flock {
        let operation = match lock {
            Lock::Shared => libc::LOCK_SH,
            Lock::Exclusive => libc::LOCK_EX,
            Lock::None => libc::LOCK_UN,
        };
        // SAFETY: the descriptor is open.
        let result = unsafe { libc::flock(fd, operation | if wait { 0 } else { libc::LOCK_NB }) };
        return check(result as isize).map(drop);
    }
    let command = match (kind == LockKind::Ofd, wait) {
        (true, true) => libc::F_OFD_SETLKW,
        (true, false) => libc::F_OFD_SETLK,
        (false, true) => libc::F_SETLKW,
        (false, false) => libc::F_SETLK,
    };
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let request = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.0,
        l_len: range.1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the request lives as long as the call.
    check(unsafe { libc::fcntl(fd, command, &raw const request) } as isize).map(drop)
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// Has SIGUSR1 interrupt what this process waits for, and do nothing else.
pub fn let_sigusr1_interrupt() {
    // SAFETY: the handler does nothing; without SA_RESTART calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
    }
}

/// Closes what is open below the temporary directories of other tests.
fn close_files_of_others(own: &Path) {
    let tests = own.parent().expect("a test has a directory below the one for temporary files");
    for entry in std::fs::read_dir("/proc/self/fd").expect("list").flatten() {
        let descriptor = entry.file_name().to_string_lossy().parse().expect("a number");
        let is_others = |target: &Path| target.starts_with(tests) && !target.starts_with(own);
        if std::fs::read_link(entry.path()).is_ok_and(|target| is_others(&target)) {
            // SAFETY: the values that own these descriptors are not used in this process.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Another process, which ends when this value is dropped.
pub struct Child {
    pid: libc::pid_t,
    ended: Option<i32>,
}

impl Child {
    /// Starts a process that does `act` and exits with what it returns. It shares open files with this one, but those of
    /// mounts other than the one in `own`, whose tests would find them busy.
    pub fn start(own: &Path, act: impl FnOnce() -> u8) -> Self {
        // SAFETY: the child does what was asked and exits without running anything of the test's.
        let pid = unsafe { libc::fork() };
        assert!(0 <= pid, "fork: {}", Error::last_os_error());
        if pid == 0 {
            let act = || {
                close_files_of_others(own);
                act()
            };
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(255);
            // SAFETY: ends the child here.
            unsafe { libc::_exit(i32::from(code)) };
        }
        Self { pid, ended: None }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn signal(&self, signal: libc::c_int) {
        assert!(self.ended.is_none(), "its number may be another's by now");
        // SAFETY: it has not been waited for, so the number is still its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// True once it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.wait_with(libc::WNOHANG)
    }

    /// Its exit code, or None if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        while !self.wait_with(0) {}
        let status = self.ended.expect("ended");
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
    }

    /// The signal that ended it, or None if it exited.
    pub fn wait_for_signal(&mut self) -> Option<i32> {
        while !self.wait_with(0) {}
        let status = self.ended.expect("ended");
        libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
    }

    fn wait_with(&mut self, flags: libc::c_int) -> bool {
        if self.ended.is_none() {
            let mut status = 0;
            // SAFETY: the status lives as long as the call.
            if unsafe { libc::waitpid(self.pid, &raw mut status, flags) } == self.pid {
                self.ended = Some(status);
            }
        }
        self.ended.is_some()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.signal(libc::SIGKILL);
            self.wait();
        }
    }
}

/// An open directory with the positions of telldir(3).
pub struct Listing(*mut libc::DIR);

impl Listing {
    pub fn open(path: &Path) -> Result<Self> {
        let path = c_path(path);
        // SAFETY: the path ends with NUL.
        let directory = unsafe { libc::opendir(path.as_ptr()) };
        if directory.is_null() { Err(Error::last_os_error()) } else { Ok(Self(directory)) }
    }

    pub fn tell(&self) -> i64 {
        // SAFETY: open as long as `self` lives.
        unsafe { libc::telldir(self.0) }
    }

    /// Goes to a position that [`Self::tell`] gave.
    pub fn seek(&self, position: i64) {
        // SAFETY: open as long as `self` lives.
        unsafe { libc::seekdir(self.0, position) };
    }
}

impl Iterator for Listing {
    type Item = CString;

    fn next(&mut self) -> Option<CString> {
        // SAFETY: open as long as `self` lives, and used by one thread at a time.
        let entry = unsafe { libc::readdir64(self.0) };
        if entry.is_null() {
            return None;
        }
        // SAFETY: an entry's name ends with NUL and stays until the next call.
        Some(unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) }.to_owned())
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: open until now.
        unsafe { libc::closedir(self.0) };
    }
}
