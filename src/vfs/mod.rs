//! The POSIX namespace.
