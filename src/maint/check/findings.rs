//! What is wrong with a volume, one line each, and no more of them than memory allows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Findings that are listed; more are counted. A volume with so many has lost something large.
const FINDINGS_MAX: usize = 1000;

/// What is wrong. The names are a contract with scripts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A row does not decode, or nobody knows its table.
    Row,
    /// A directory entry names nothing, or something else than it says, or is in the wrong place.
    Entry,
    /// An inode has more or fewer names than it counts.
    Links,
    /// A directory does not lead to the root.
    Parent,
    /// The list of inodes without names is wrong.
    Orphan,
    /// Size, allocation or form of an inode differ from its content.
    Inode,
    /// Content in the metadata that no inode has, or that is missing.
    Inline,
    /// A part of a file is nowhere, or is two things.
    Manifest,
    /// A segment that nothing names, or that is queued for release and named.
    Segment,
    /// A segment is named by more or fewer parts of files than it counts.
    SegmentReferences,
    /// A block that a segment names is not in the index, or is nowhere in its pack.
    Block,
    /// A block is named by more or fewer segments than it counts.
    BlockReferences,
    /// The index is wrong about a pack.
    Pack,
    /// A total differs from what was counted.
    Counter,
    /// An extended attribute of nothing, or one that is not valid.
    Xattr,
    /// A blob that is not there.
    Blob,
    /// Staged content that cannot be committed.
    Seal,
    /// An object that the metadata name is not in the store, or not as long as it was.
    Object,
    /// Stored bytes are not what their name says.
    Data,
    /// A journal record is missing, damaged, or continues nothing.
    Journal,
    /// A checkpoint is damaged or incomplete, or of another history.
    Checkpoint,
    /// The metadata cannot be opened.
    Recovery,
}

impl FindingKind {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Entry => "entry",
            Self::Links => "links",
            Self::Parent => "parent",
            Self::Orphan => "orphan",
            Self::Inode => "inode",
            Self::Inline => "inline",
            Self::Manifest => "manifest",
            Self::Segment => "segment",
            Self::SegmentReferences => "segment-references",
            Self::Block => "block",
            Self::BlockReferences => "block-references",
            Self::Pack => "pack",
            Self::Counter => "counter",
            Self::Xattr => "xattr",
            Self::Blob => "blob",
            Self::Seal => "seal",
            Self::Object => "object",
            Self::Data => "data",
            Self::Journal => "journal",
            Self::Checkpoint => "checkpoint",
            Self::Recovery => "recovery",
        }
    }
}

/// One thing that is wrong. Prints as `what: where: how it differs`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// Where: an inode, a block, an object.
    pub thing: String,
    /// How it differs.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind.as_str(), self.thing, self.detail)
    }
}

/// All that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Findings {
    pub listed: Vec<Finding>,
    /// Found beyond those.
    pub left_out: u64,
}

impl Findings {
    pub(super) fn add(&mut self, kind: FindingKind, thing: impl fmt::Display, detail: impl fmt::Display) {
        if self.listed.len() < FINDINGS_MAX {
            self.listed.push(Finding { kind, thing: thing.to_string(), detail: detail.to_string() });
        } else {
            self.left_out += 1;
        }
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// How many, also those that are not listed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.listed.len() as u64 + self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_findings_than_fit_are_counted() {
        let mut findings = Findings::default();
        for index in 0..FINDINGS_MAX + 3 {
            findings.add(FindingKind::Links, index, "two");
        }
        assert_eq!((findings.listed.len(), findings.left_out), (FINDINGS_MAX, 3));
        assert_eq!(findings.count(), 1003);
        assert_eq!(findings.listed[7].to_string(), "links: 7: two");
    }

    #[test]
    fn kinds_are_spelled_alike_in_text_and_json() {
        let kind = FindingKind::SegmentReferences;
        assert_eq!(serde_json::to_value(kind).expect("serializes"), kind.as_str());
    }
}
