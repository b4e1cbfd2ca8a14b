//! The superblock: what a volume says of itself, and which programs may use it (docs/format.md, "Superblock").

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::base::ids::VolumeId;

/// The format this program writes.
pub const FORMAT_VERSION: u32 = 1;

/// Features of a volume this program knows, as bits. A volume with an unknown `compat` bit may be used all the same,
/// one with an unknown `ro_compat` bit only read, one with an unknown `incompat` bit not at all.
pub const COMPAT_KNOWN: u64 = 0;
pub const RO_COMPAT_KNOWN: u64 = 0;
pub const INCOMPAT_KNOWN: u64 = 0;

const MAGIC: &str = "gravitonfs";

/// What is fixed when a volume is made. Stored as JSON: whoever finds the bucket can read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Superblock {
    magic: String,
    /// Format version; one this program does not know is refused before anything else is looked at.
    pub format: u32,
    pub compat: u64,
    pub ro_compat: u64,
    pub incompat: u64,
    /// 32 hexadecimal digits.
    volume_id: String,
    pub block_bytes: BlockBytes,
    pub layout: Layout,
    pub codec: BlockCodec,
    /// Files up to this many bytes live in the metadata.
    pub inline_bytes_max: u64,
    /// Wrapped keys of an encrypted volume.
    pub key_slots: Vec<KeySlot>,
    /// 32 hexadecimal digits; a promoted replica gets its own (rule R15).
    pub lineage: String,
    /// Seconds since 1970.
    pub created: i64,
}

/// Lengths of blocks in bytes. All writers of a volume cut alike, or they share nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockBytes {
    pub min: u32,
    pub avg: u32,
    pub max: u32,
}

/// How blocks become objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Many in one pack.
    #[default]
    Framed,
    /// One object each.
    Single,
}

/// How new blocks are compressed; each block says how it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockCodec {
    #[default]
    Zstd,
    None,
}

/// Nothing yet: volumes of this version are not encrypted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeySlot {}

/// What the maker of a volume chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeShape {
    pub block_bytes: BlockBytes,
    pub layout: Layout,
    pub codec: BlockCodec,
    pub inline_bytes_max: u64,
}

/// Why a superblock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("not formatted")]
    Missing,
    #[error("already formatted: volume {0}")]
    Exists(VolumeId),
    #[error("location is not empty: found {0}")]
    NotEmpty(String),
    /// A newer program made the volume, or has changed it since.
    #[error("format too new: {0}")]
    TooNew(String),
    #[error("superblock is damaged: {0}")]
    Damaged(String),
    #[error(transparent)]
    Store(#[from] Error),
}

impl Superblock {
    #[must_use]
    pub fn new(shape: VolumeShape, volume: VolumeId, lineage: u128, created_secs: i64) -> Self {
        Self {
            magic: MAGIC.into(),
            format: FORMAT_VERSION,
            compat: COMPAT_KNOWN,
            ro_compat: RO_COMPAT_KNOWN,
            incompat: INCOMPAT_KNOWN,
            volume_id: volume.to_string(),
            block_bytes: shape.block_bytes,
            layout: shape.layout,
            codec: shape.codec,
            inline_bytes_max: shape.inline_bytes_max,
            key_slots: Vec::new(),
            lineage: format!("{lineage:032x}"),
            created: created_secs,
        }
    }

    /// # Panics
    /// Never: [`Self::new`] and [`Self::decode`] admit only well-formed ids.
    #[must_use]
    pub fn volume_id(&self) -> VolumeId {
        VolumeId::parse(&self.volume_id).expect("checked where the superblock was made")
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data has no reason to fail");
        text.push(b'\n');
        text
    }

    /// Reads a superblock and decides whether this program may use the volume.
    ///
    /// # Errors
    /// `TooNew` for a format or feature this program does not know, `Damaged` for anything that is not a superblock.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let damaged = |error: serde_json::Error| SuperblockError::Damaged(error.to_string());
        // The version first: what follows may have another form in a newer one.
        let front: Front = serde_json::from_slice(bytes).map_err(damaged)?;
        if front.magic != MAGIC {
            return Err(SuperblockError::Damaged(format!("magic is {:?}", front.magic)));
        }
        let (format, unknown) = (front.format, front.incompat & !INCOMPAT_KNOWN);
        if format > FORMAT_VERSION {
            return Err(SuperblockError::TooNew(format!("version={format} known={FORMAT_VERSION}")));
        }
        if unknown != 0 {
            return Err(SuperblockError::TooNew(format!("features={unknown:#x}")));
        }
        let superblock: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if VolumeId::parse(&superblock.volume_id).is_none() {
            return Err(SuperblockError::Damaged(format!("volume id is {:?}", superblock.volume_id)));
        }
        let BlockBytes { min, avg, max } = superblock.block_bytes;
        if min == 0 || avg < min || max < avg || crate::base::limits::BLOCK_BYTES_MAX < max {
            return Err(SuperblockError::Damaged(format!("block lengths are {min}, {avg}, {max}")));
        }
        Ok(superblock)
    }

    /// True if this program may change the volume; else it may only read it.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN == 0
    }
}

/// The part every version has.
#[derive(Deserialize)]
struct Front {
    magic: String,
    format: u32,
    incompat: u64,
}

/// Where a volume keeps its superblock.
#[async_trait]
pub trait SchemaStore: Send + Sync + 'static {
    /// Reads it, refusing what this program must not touch.
    ///
    /// # Errors
    /// `Missing` if there is none; as [`Superblock::decode`]; of the store.
    async fn read(&self) -> Result<Superblock, SuperblockError>;

    /// Writes the first one. Atomic and durable: of several callers one succeeds.
    ///
    /// # Errors
    /// `Exists` if there is one; `NotEmpty` if the location holds anything else; of the store.
    async fn create(&self, superblock: &Superblock) -> Result<(), SuperblockError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        let block_bytes = BlockBytes { min: 65_536, avg: 262_144, max: 1_048_576 };
        let shape = VolumeShape {
            block_bytes,
            layout: Layout::Framed,
            codec: BlockCodec::Zstd,
            inline_bytes_max: 2048,
        };
        Superblock::new(shape, VolumeId(7), 9, 1_700_000_000)
    }

    /// Golden: volumes made by released programs say exactly this.
    const STORED: &str = r#"{
  "magic": "gravitonfs",
  "format": 1,
  "compat": 0,
  "ro_compat": 0,
  "incompat": 0,
  "volume_id": "00000000000000000000000000000007",
  "block_bytes": {
    "min": 65536,
    "avg": 262144,
    "max": 1048576
  },
  "layout": "framed",
  "codec": "zstd",
  "inline_bytes_max": 2048,
  "key_slots": [],
  "lineage": "00000000000000000000000000000009",
  "created": 1700000000
}
"#;

    #[test]
    fn the_stored_form_is_fixed() {
        assert_eq!(String::from_utf8(superblock().encode()).expect("JSON"), STORED);
        assert_eq!(Superblock::decode(STORED.as_bytes()).expect("readable"), superblock());
    }

    #[test]
    fn newer_volumes_are_told_apart_from_damaged_ones() {
        let too_new =
            |text: &str| matches!(Superblock::decode(text.as_bytes()), Err(SuperblockError::TooNew(_)));
        assert!(too_new(&STORED.replace("\"format\": 1", "\"format\": 2")));
        assert!(too_new(&STORED.replace("\"incompat\": 0", "\"incompat\": 4")));
        assert!(too_new(r#"{"magic": "gravitonfs", "format": 9, "incompat": 0, "unheard": "of"}"#));
        let damaged =
            |text: &str| matches!(Superblock::decode(text.as_bytes()), Err(SuperblockError::Damaged(_)));
        assert!(damaged(""));
        assert!(damaged(&STORED.replace("gravitonfs", "another")));
        assert!(damaged(&STORED.replace("0000000007", "07")));
        assert!(damaged(&STORED.replace("\"min\": 65536", "\"min\": 0")));
    }

    #[test]
    fn unknown_optional_features_do_not_keep_readers_out() {
        let decode = |text: String| Superblock::decode(text.as_bytes()).expect("usable");
        assert!(decode(STORED.replace("\"compat\": 0,\n  \"ro", "\"compat\": 1,\n  \"ro")).is_writable());
        assert!(!decode(STORED.replace("\"ro_compat\": 0", "\"ro_compat\": 1")).is_writable());
    }
}
