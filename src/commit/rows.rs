//! How writes are spelled in the log, in journal records and in checkpoints (docs/format.md, "Rows").

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::store::kv::{Table, Write};

/// Stands in place of a value's length for a row that is removed.
const REMOVED: u32 = u32::MAX;

/// Appends one row: table, length of key, length of value, key, value.
pub(super) fn encode_row(w: &mut Writer, table: Table, key: &[u8], value: Option<&[u8]>) {
    let key_len = u16::try_from(key.len()).expect("submit refuses longer keys");
    let value_len = value
        .map_or(REMOVED, |value| u32::try_from(value.len()).expect("submit refuses batches far below 4 GiB"));
    w.u8(table.0).u16(key_len).u32(value_len).bytes(key).bytes(value.unwrap_or_default());
}

/// Reads what [`encode_row`] wrote.
pub(super) fn decode_row(r: &mut Reader<'_>) -> Result<Write, DecodeError> {
    let (table, key_len, value_len) = (Table(r.u8()?), r.u16()?, r.u32()?);
    let key = r.bytes(usize::from(key_len))?.to_vec();
    let value = match value_len {
        REMOVED => None,
        len => Some(r.bytes(len as usize)?.to_vec()),
    };
    Ok(Write { table, key, value })
}
