//! The stored form of a row: key behind its table's byte, value before a checksum of both.

use crate::base::hash::{crc32c, crc32c_append};
use crate::store::kv::Table;
use crate::store::{Error, Kind, Result};

const CHECKSUM_BYTES: usize = 4;

/// Table byte, then the key.
pub(super) fn key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(table.0);
    stored.extend_from_slice(key);
    stored
}

/// The first stored key after all of `table`; None after the last table.
pub(super) fn end_of(table: Table) -> Option<Vec<u8>> {
    table.0.checked_add(1).map(|next| vec![next])
}

/// The value, then CRC32C (little-endian) of stored key and value: redb does not check what it reads, and a row under
/// the wrong key is as wrong as a flipped bit.
pub(super) fn value(stored_key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(value.len() + CHECKSUM_BYTES);
    stored.extend_from_slice(value);
    stored.extend_from_slice(&checksum(stored_key, value).to_le_bytes());
    stored
}

/// The value that was stored under `stored_key`.
pub(super) fn verified<'a>(stored_key: &[u8], stored: &'a [u8]) -> Result<&'a [u8]> {
    let sound = stored
        .split_last_chunk::<CHECKSUM_BYTES>()
        .filter(|(value, sum)| checksum(stored_key, value) == u32::from_le_bytes(**sum));
    let Some((value, _)) = sound else {
        return Err(Error::new(Kind::Corrupt, format!("checksum of metadata row key={stored_key:02x?}")));
    };
    Ok(value)
}

/// What [`key`] was made from.
pub(super) fn plain_key(stored_key: &[u8]) -> &[u8] {
    stored_key.get(1..).unwrap_or_default()
}

/// What [`value`] was made from, verified before.
pub(super) fn plain_value(stored: &[u8]) -> &[u8] {
    stored.split_last_chunk::<CHECKSUM_BYTES>().map_or(&[], |(value, _)| value)
}

fn checksum(stored_key: &[u8], value: &[u8]) -> u32 {
    crc32c_append(crc32c(stored_key), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bytes_are_the_documented_ones() {
        let key = key(Table(7), b"k");
        assert_eq!(key, b"\x07k");
        assert_eq!(value(&key, b"v"), [b"v".as_slice(), &crc32c(b"\x07kv").to_le_bytes()].concat());
        assert_eq!(verified(&key, &value(&key, b"v")).map_err(|error| error.kind), Ok(b"v".as_slice()));
    }

    #[test]
    fn a_changed_or_misplaced_row_is_corrupt() {
        let stored = value(b"\x07k", b"v");
        let mut flipped = stored.clone();
        flipped[0] ^= 1;
        for (key, stored) in [(b"\x07k", &*flipped), (b"\x07l", &*stored), (b"\x07k", &stored[..3])] {
            assert_eq!(verified(key, stored).map_err(|error| error.kind), Err(Kind::Corrupt));
        }
    }
}
