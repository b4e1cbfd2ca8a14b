//! System calls that neither std nor nix wrap for the tests.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]
#![expect(unsafe_code, reason = "calls into libc with buffers that outlive the call")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;
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
    let path = c_path(path);
    // SAFETY: both strings end with NUL, and the buffer is as long as said.
    let result =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(result)?);
    Ok(value)
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

/// A file mapped into memory, shared and writable.
pub struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes of `file`.
    pub fn new(file: &File, len: usize) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping wherever the kernel likes touches nothing that exists.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
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
