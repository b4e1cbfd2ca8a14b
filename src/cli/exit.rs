//! How a command fails: the exit code and the one line on stderr that says what to do.

use std::fmt;
use std::process::ExitCode;

use crate::store;

/// The documented exit codes. The numbers are a contract with scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    Busy = 4,
    Denied = 5,
    Unreachable = 6,
    Corrupt = 7,
    TooNew = 8,
    Fenced = 9,
    DrainTimedOut = 10,
}

impl Code {
    /// The code with this number; what is not one of ours counts as internal.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            2 => Self::Usage,
            3 => Self::NotFound,
            4 => Self::Busy,
            5 => Self::Denied,
            6 => Self::Unreachable,
            7 => Self::Corrupt,
            8 => Self::TooNew,
            9 => Self::Fenced,
            10 => Self::DrainTimedOut,
            _ => Self::Internal,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A failed command. Prints as `<thing>: <cause>; <what to do>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub code: Code,
    /// What the command was about: a volume, a mountpoint, an option.
    pub thing: String,
    /// Lowercase, no full stop.
    pub cause: String,
    /// What the user can do next.
    pub advice: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    #[must_use]
    pub fn new(
        code: Code,
        thing: impl fmt::Display,
        cause: impl fmt::Display,
        advice: impl fmt::Display,
    ) -> Self {
        let part = |text: String| text.replace(['\n', '\r'], " ");
        Self {
            code,
            thing: part(thing.to_string()),
            cause: part(cause.to_string()),
            advice: part(advice.to_string()),
        }
    }

    /// Wrong arguments: the advice is the manual unless there is a better one.
    #[must_use]
    pub fn usage(thing: impl fmt::Display, cause: impl fmt::Display) -> Self {
        Self::new(Code::Usage, thing, cause, "see gravitonfs --help")
    }

    /// A port's error about `thing`, with the meaning that most commands give its kind.
    #[must_use]
    pub fn store(thing: impl fmt::Display, error: &store::Error) -> Self {
        let (code, advice) = meaning(error.kind);
        Self::new(code, thing, error, advice)
    }

    /// An error of the local operating system about `thing`.
    #[must_use]
    pub fn io(thing: impl fmt::Display, what: &str, error: std::io::Error) -> Self {
        let error = store::Error::from_io(what, error);
        let advice = match error.kind {
            store::Kind::NotFound => "check the path",
            store::Kind::Denied => "check its permissions",
            store::Kind::Full => "free some space and try again",
            _ => "see the system log",
        };
        Self::new(meaning(error.kind).0, thing, error, advice)
    }
}

/// What a kind means to somebody who typed a command.
fn meaning(kind: store::Kind) -> (Code, &'static str) {
    use store::Kind;
    match kind {
        Kind::NotFound => (Code::NotFound, "check the name, or use --create"),
        Kind::Precondition => (Code::Busy, "somebody else changed it at the same time: try again"),
        Kind::Fenced => (Code::Fenced, "unmount it on the other host, or mount with -o takeover"),
        Kind::Unavailable => (Code::Unreachable, "check the endpoint and the network, then try again"),
        Kind::Throttled => (Code::Unreachable, "the store asks to go slower: try again later"),
        Kind::Full => (Code::Internal, "free some space and try again"),
        Kind::Denied => (Code::Denied, "check the credentials and their permissions"),
        Kind::Corrupt => (Code::Corrupt, "restore the volume from a copy, or report a bug"),
        Kind::Internal => (Code::Internal, "look into the log and report a bug"),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.thing, self.cause, self.advice)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Error, Kind};

    #[test]
    fn a_failure_is_one_line_with_thing_cause_and_advice() {
        let failure = Failure::new(Code::Busy, "/mnt", "already\nmounted", "unmount it first");
        assert_eq!(failure.to_string(), "/mnt: already mounted; unmount it first");
    }

    #[test]
    fn every_kind_has_its_documented_code() {
        let table = [
            (Kind::NotFound, 3),
            (Kind::Precondition, 4),
            (Kind::Denied, 5),
            (Kind::Unavailable, 6),
            (Kind::Throttled, 6),
            (Kind::Corrupt, 7),
            (Kind::Fenced, 9),
            (Kind::Full, 1),
            (Kind::Internal, 1),
        ];
        for (kind, number) in table {
            let code = Failure::store("volume", &Error::new(kind, "detail")).code;
            assert_eq!(code as u8, number, "{kind:?}");
            assert_eq!(Code::from_number(number), code, "{kind:?}");
        }
    }
}
