//! A directory entry's name: any 1 to 255 bytes but `/` and NUL.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::limits::NAME_BYTES_MAX;

/// Why bytes are not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// Longer than 255 bytes (ENAMETOOLONG).
    TooLong,
    /// Empty, `.`, `..`, or holding `/` or NUL (EINVAL; the kernel never sends one).
    Invalid,
}

/// A valid name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`NameError::TooLong`] above 255 bytes, [`NameError::Invalid`] for what no entry may be called.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        let forbidden = bytes.is_empty() || bytes == b"." || bytes == b"..";
        if forbidden || bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(NameError::Invalid);
        }
        Ok(Self(bytes.into()))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_255_bytes_but_slash_and_nul() {
        assert!(Name::new(&[0xff; 255]).is_ok());
        assert_eq!(Name::new(&[b'a'; 256]), Err(NameError::TooLong));
        for bytes in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(Name::new(bytes), Err(NameError::Invalid), "{bytes:?}");
        }
        assert!(Name::new(b"...").is_ok());
    }
}
