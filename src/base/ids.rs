//! Newtypes for every id that crosses a function border; no arithmetic except what is meant.

use std::fmt;

/// Inode number. 1 is the root; 0 is never used (the kernel reads it as "no such entry").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as FUSE fixes it.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Handle number handed to the kernel by open and opendir; unique within a mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fh(pub u64);

/// Content generation of an inode (rule R10): raised by whatever discards bytes, carried by
/// overlay records so that recovery can tell bytes that were discarded after they were written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Generation(pub u64);

/// Number of a manifest segment, unique within a volume, from logged ranges (never reused).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId(pub u64);

/// Position of a batch in the commit order of one volume, dense from 1. 0 means "before all".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct BatchNo(pub u64);

/// Sequence number of a journal object, dense from 1. 0 means "before the first record".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

/// Number of times the volume has been taken for writing (each writer's fence raises it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// Random id of one writing mount. Two writers never share one, so neither can ever overwrite an
/// object of the other, whatever the store makes of conditional requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub u128);

/// Random id of a volume, fixed at format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u128);

/// Name of a pack: who wrote it, and its number with that writer. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    pub writer: WriterId,
    pub number: u64,
}

macro_rules! hex128 {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl $type {
            /// Parses exactly 32 hexadecimal digits.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                u128::from_str_radix(text, 16).ok().map(Self)
            }
        }
    };
}

hex128!(WriterId);
hex128!(VolumeId);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.writer, self.number)
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PackId {
    /// Parses what `Display` writes: `<32 hex>-<hex>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (writer, number) = text.split_once('-')?;
        let writer = WriterId::parse(writer)?;
        let canonical = !number.is_empty() && number.len() <= 16 && !number.starts_with('+');
        let number = u64::from_str_radix(canonical.then_some(number)?, 16).ok()?;
        Some(Self { writer, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_id_reads_back_what_it_writes() {
        let id = PackId { writer: WriterId(0xfeed << 100), number: 0x1a2b };
        assert_eq!(PackId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in ["", "-", "zz-1", "00-1", "0000000000000000000000000000000g-1"] {
            assert_eq!(PackId::parse(text), None, "{text}");
        }
        assert_eq!(PackId::parse(&format!("{}-+1", WriterId(1))), None);
        assert_eq!(VolumeId::parse("+0000000000000000000000000000001"), None);
    }
}
