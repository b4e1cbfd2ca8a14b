//! What a port can answer besides success: a kind that says what the caller does, a detail that says what happened.

use std::fmt;

/// What a failed call means to its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The named thing is not there. Nothing else is ever reported as this.
    NotFound,
    /// A condition did not hold: it exists already, or has changed since.
    Precondition,
    /// A newer writer has taken the volume.
    Fenced,
    /// The store did not answer, or could not now; the same call may work later.
    Unavailable,
    /// The store asks to go slower; the same call will work later.
    Throttled,
    /// No room, on the local disk or in the store.
    Full,
    /// Credentials are missing, wrong, or not enough.
    Denied,
    /// Bytes are not what was stored.
    Corrupt,
    /// A broken assumption; not the caller's fault, and repeating does not help.
    Internal,
}

/// A failed call of a port.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    /// Operation and name, then what happened: `get packs/ab/...: timed out`. Lowercase, no full stop.
    pub detail: String,
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), source: None }
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An error of the local operating system while doing `what`.
    #[must_use]
    pub fn from_io(what: &str, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => Kind::NotFound,
            Io::AlreadyExists => Kind::Precondition,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Kind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Kind::Full,
            Io::UnexpectedEof | Io::InvalidData => Kind::Corrupt,
            _ => Kind::Internal,
        };
        Self::new(kind, format!("{what}: {error}")).with_source(error)
    }

    /// True if repeating the same call later may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Throttled)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<crate::base::codec::DecodeError> for Error {
    fn from(error: crate::base::codec::DecodeError) -> Self {
        Self::new(Kind::Corrupt, error.to_string())
    }
}
