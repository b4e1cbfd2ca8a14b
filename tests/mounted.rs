//! The built binary on a real mount, as users meet it: whole tools on real input, then one family of operations per
//! file. Runs as root with `/dev/fuse`; every test runs on a directory and on the S3 test server.

#![allow(clippy::disallowed_methods, reason = "tests run on the machine and not in a simulation")]

#[path = "common/command.rs"]
mod command;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/s3/mod.rs"]
mod s3;
#[path = "common/syscall.rs"]
mod syscall;
#[path = "common/tree.rs"]
mod tree;

#[path = "mounted/acl.rs"]
mod acl;
#[path = "mounted/allocate.rs"]
mod allocate;
#[path = "mounted/attributes.rs"]
mod attributes;
#[path = "mounted/check.rs"]
mod check;
#[path = "mounted/corners.rs"]
mod corners;
#[path = "mounted/counters.rs"]
mod counters;
#[path = "mounted/damage.rs"]
mod damage;
#[path = "mounted/directories.rs"]
mod directories;
#[path = "mounted/kill.rs"]
mod kill;
#[path = "mounted/lifecycle.rs"]
mod lifecycle;
#[path = "mounted/mmap.rs"]
mod mmap;
#[path = "mounted/names.rs"]
mod names;
#[path = "mounted/privileges.rs"]
mod privileges;
#[path = "mounted/processes.rs"]
mod processes;
#[path = "mounted/random.rs"]
mod random;
#[path = "mounted/read_write.rs"]
mod read_write;
#[path = "mounted/refusals.rs"]
mod refusals;
#[path = "mounted/rename.rs"]
mod rename;
#[path = "mounted/sources.rs"]
mod sources;
#[path = "mounted/tools.rs"]
mod tools;
#[path = "mounted/xattr.rs"]
mod xattr;
