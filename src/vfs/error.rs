//! Why an operation failed: one variant per outcome POSIX tells apart.

use crate::base::name::NameError;
use crate::store::{self, Kind};

/// The outcome of a failed operation; `fuse/errno.rs` gives each its number.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such file or directory")]
    NotFound,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name too long")]
    NameTooLong,
    #[error("invalid argument")]
    Invalid,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("permission denied")]
    Access,
    #[error("no space left")]
    NoSpace,
    #[error("read-only filesystem")]
    ReadOnly,
    #[error("too many links")]
    TooManyLinks,
    #[error("file too large")]
    FileTooLarge,
    #[error("no such attribute")]
    NoAttribute,
    #[error("attribute too large")]
    AttributeTooLarge,
    #[error("buffer too small")]
    BufferTooSmall,
    #[error("not supported")]
    NotSupported,
    #[error("bad file handle")]
    BadHandle,
    #[error("stale inode")]
    Stale,
    /// lseek beyond the last data or hole.
    #[error("no data there")]
    NoSuchOffset,
    /// Bytes or metadata could not be read or kept; what happened is in the source.
    #[error("{0}")]
    Io(store::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        match error {
            NameError::TooLong => Self::NameTooLong,
            NameError::Invalid => Self::Invalid,
        }
    }
}

/// What a failing port means to a file operation. Absence of metadata is an `Option`, never an error, so `NotFound`
/// here is content that should be there: EIO, as for every other kind the caller cannot act on.
impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error.kind {
            Kind::Full => Self::NoSpace,
            Kind::Fenced => Self::ReadOnly,
            Kind::NotFound
            | Kind::Precondition
            | Kind::Unavailable
            | Kind::Throttled
            | Kind::Denied
            | Kind::Corrupt
            | Kind::Internal => Self::Io(error),
        }
    }
}
