//! Content names (BLAKE3) and local checksums (CRC32C); the only user of both crates.

use std::fmt;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What nothing hashes to; the chain hash before the first journal record.
    pub const ZERO: Self = Self([0; 32]);

    /// Hashes `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }

    /// Parses what `Display` writes: 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
        }
        let hash = Self(hash);
        (hash.to_string() == text).then_some(hash)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Hash of a stream, fed piece by piece.
#[derive(Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    #[must_use]
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// Name of a block: hash and length of its plain bytes, `blake3:<64 hex>:<len>`.
///
/// The length is 1 to [`crate::base::limits::BLOCK_BYTES_MAX`]; it is part of the name so that a reader
/// knows how much memory to reserve before it trusts a byte of what it fetched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId {
    pub hash: Hash,
    pub len: u32,
}

impl BlockId {
    /// Names `data`. The caller keeps blocks within `BLOCK_BYTES_MAX`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        let len = u32::try_from(data.len()).expect("blocks are at most BLOCK_BYTES_MAX long");
        Self { hash: Hash::of(data), len }
    }

    /// True if `data` is what this name stands for.
    #[must_use]
    pub fn verifies(&self, data: &[u8]) -> bool {
        data.len() == self.len as usize && Hash::of(data) == self.hash
    }

    /// The 36 bytes used as a key: hash, then length (big-endian).
    #[must_use]
    pub fn to_key(self) -> [u8; 36] {
        let mut key = [0; 36];
        key[..32].copy_from_slice(&self.hash.0);
        key[32..].copy_from_slice(&self.len.to_be_bytes());
        key
    }

    /// Reads what [`Self::to_key`] wrote.
    #[must_use]
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (hash, len) = key.split_first_chunk::<32>()?;
        let len = u32::from_be_bytes(len.try_into().ok()?);
        Some(Self { hash: Hash(*hash), len })
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}:{}", self.hash, self.len)
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// CRC32C of `data`: guards bytes that stay on this machine, where BLAKE3 would be a tax.
#[must_use]
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// CRC32C continued: the checksum of what `sum` covered followed by `data`.
#[must_use]
pub fn crc32c_append(sum: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_key_reads_back() {
        let id = BlockId::of(b"some bytes");
        assert_eq!(BlockId::from_key(&id.to_key()), Some(id));
        assert_eq!(BlockId::from_key(&id.to_key()[..35]), None);
    }

    #[test]
    fn verification_needs_hash_and_length() {
        let id = BlockId::of(b"abc");
        assert!(id.verifies(b"abc"));
        assert!(!id.verifies(b"abd"));
        assert!(!BlockId { len: 4, ..id }.verifies(b"abc"));
    }
}
