//! The one place where an outcome becomes an errno.

use fuser::Errno;

use crate::vfs::Error;

/// The number that POSIX gives an outcome.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::Exists => Errno::EEXIST,
        Error::NotDirectory => Errno::ENOTDIR,
        Error::IsDirectory => Errno::EISDIR,
        Error::NotEmpty => Errno::ENOTEMPTY,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::Invalid => Errno::EINVAL,
        Error::NotPermitted => Errno::EPERM,
        Error::Access => Errno::EACCES,
        Error::NoSpace => Errno::ENOSPC,
        Error::ReadOnly => Errno::EROFS,
        Error::TooManyLinks => Errno::EMLINK,
        Error::FileTooLarge => Errno::EFBIG,
        Error::NoAttribute => Errno::NO_XATTR,
        Error::AttributeTooLarge => Errno::E2BIG,
        Error::BufferTooSmall => Errno::ERANGE,
        Error::NotSupported => Errno::EOPNOTSUPP,
        Error::BadHandle => Errno::EBADF,
        Error::Stale => Errno::ESTALE,
        Error::NoSuchOffset => Errno::ENXIO,
        Error::Io(_) => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{self, Kind};

    #[test]
    fn outcomes_have_the_numbers_that_programs_test_for() {
        let table = [
            (Error::NotFound, libc::ENOENT),
            (Error::NoAttribute, libc::ENODATA),
            (Error::NotSupported, libc::ENOTSUP),
            (Error::NoSuchOffset, libc::ENXIO),
            (Error::ReadOnly, libc::EROFS),
        ];
        for (error, number) in table {
            assert_eq!(i32::from(errno(&error)), number, "{error}");
        }
    }

    #[test]
    fn a_missing_object_is_an_io_error_and_not_a_missing_file() {
        let error = Error::from(store::Error::new(Kind::NotFound, "get packs/00/x"));
        assert_eq!(i32::from(errno(&error)), libc::EIO);
    }
}
