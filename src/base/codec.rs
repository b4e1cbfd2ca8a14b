//! Fixed-width little-endian encoding with bounds-checked decoding, for every stored format.

/// The bytes ended, or held what the format does not allow; says where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed {what} at byte {at}")]
pub struct DecodeError {
    pub what: &'static str,
    pub at: usize,
}

/// Appends fixed-width fields to a buffer.
#[derive(Default)]
pub struct Writer {
    pub buf: Vec<u8>,
}

impl Writer {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.buf.push(value);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(value);
        self
    }

    /// A length (`u32`) and the bytes.
    pub fn sized(&mut self, value: &[u8]) -> &mut Self {
        let len = u32::try_from(value.len()).expect("stored fields are far below 4 GiB");
        self.u32(len).bytes(value)
    }
}

/// Reads fixed-width fields; never indexes past the end.
pub struct Reader<'a> {
    what: &'static str,
    whole: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, naming `what` in errors.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, whole: bytes, at: 0 }
    }

    /// The error for the place where reading stands.
    #[must_use]
    pub fn malformed(&self) -> DecodeError {
        DecodeError { what: self.what, at: self.at }
    }

    /// How many bytes were read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    #[must_use]
    pub fn remaining(&self) -> usize {
        self.whole.len() - self.at
    }

    /// # Errors
    /// If fewer than `len` bytes are left; the same for all that follow.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(len).ok_or_else(|| self.malformed())?;
        let bytes = self.whole.get(self.at..end).ok_or_else(|| self.malformed())?;
        self.at = end;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let error = self.malformed();
        self.bytes(N)?.try_into().map_err(|_| error)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }

    /// # Errors
    /// If bytes are left over: a decoder that ignores a tail would accept a torn neighbour.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.at == self.whole.len() { Ok(()) } else { Err(self.malformed()) }
    }
}
