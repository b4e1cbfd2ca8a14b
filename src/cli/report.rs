//! What `status` reports, in the fields and units that scripts rely on, and as text.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::size::format_bytes;

/// Raised when a field changes its meaning or goes; new fields do not raise it.
pub const SCHEMA: u32 = 1;

/// What a volume is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Mounted,
    /// The mountpoint is free, what was written is on its way to the store.
    Draining,
    /// Mounted with `ro`, or changes are refused until it is mounted again: another host has taken the volume, or it is
    /// uncertain what is durable here.
    ReadOnly,
    Unmounted,
    /// Not mounted, and another host has changed the volume while changes of this one had not reached the store. They are
    /// kept aside.
    Diverged,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::Draining => "draining",
            Self::ReadOnly => "read-only",
            Self::Unmounted => "unmounted",
            Self::Diverged => "diverged",
        }
    }
}

/// Requests since mount; pieces of multipart uploads and copies count as put.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
}

/// Written bytes of a file that could not be kept as they should, last time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastFailure {
    /// As `find -inum` takes it.
    pub inode: u64,
    pub cause: String,
    /// Failures since mount, of this file and others.
    pub count: u64,
}

/// `status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub schema: u32,
    pub volume: String,
    pub volume_id: String,
    /// Where it is mounted; None if it is not.
    pub mountpoint: Option<PathBuf>,
    pub pid: Option<u32>,
    pub state: State,
    /// Why changes are refused: what closed a latch, or how the volume has diverged.
    pub state_cause: Option<String>,
    /// `local` or `remote`; None if it is not mounted.
    pub durability: Option<String>,
    /// `cas`, `lease` or `none`; `unknown` of an S3 server that is only read, since asking it takes writes.
    pub fencing: String,
    pub files: u64,
    /// Bytes of all files, holes not counted.
    pub logical_bytes: u64,
    /// Bytes of all packs and journal objects.
    pub stored_bytes: u64,
    /// Written, not yet in a pack.
    pub dirty_bytes: u64,
    /// Packed, not yet acknowledged by the store.
    pub pending_upload_bytes: u64,
    /// Age of the oldest byte that is not in the store.
    pub oldest_pending_seconds: u64,
    /// None if nothing has failed since mount.
    pub last_failure: Option<LastFailure>,
    pub cache_bytes: u64,
    pub memory_bytes: u64,
    pub object_requests: Requests,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Status {
    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name:<12}{value}").expect("a string takes every line");
        };
        line("volume", format!("{} ({})", self.volume, self.volume_id));
        let cause = self.state_cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        line("state", format!("{}{cause}", self.state.as_str()));
        if let (Some(mountpoint), Some(pid)) = (&self.mountpoint, self.pid) {
            line("mountpoint", format!("{} (process {pid})", mountpoint.display()));
        }
        if let Some(durability) = &self.durability {
            line("durability", format!("{durability}, fencing {}", self.fencing));
        }
        line("files", format!("{}, {}", self.files, format_bytes(self.logical_bytes)));
        line("stored", format_bytes(self.stored_bytes));
        let waiting = self.dirty_bytes + self.pending_upload_bytes;
        let pending = match waiting {
            0 => "everything is in the store".to_owned(),
            _ => format!("{}, oldest {} s ago", format_bytes(waiting), self.oldest_pending_seconds),
        };
        line("pending", pending);
        if let Some(LastFailure { inode, cause, count }) = &self.last_failure {
            line("failed", format!("written bytes of inode {inode}: {cause} ({count} since mount)"));
        }
        line("cache", format_bytes(self.cache_bytes));
        line("memory", format_bytes(self.memory_bytes));
        let Requests { put, get, head, list, delete } = self.object_requests;
        line("requests", format!("{put} put, {get} get, {head} head, {list} list, {delete} delete"));
        let (sent, received) = (format_bytes(self.sent_bytes), format_bytes(self.received_bytes));
        line("traffic", format!("{sent} sent, {received} received"));
        text
    }
}

/// How far a drain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    pub dirty_bytes: u64,
    pub pending_upload_bytes: u64,
}

impl Progress {
    /// One line for a terminal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let (dirty, pending) = (format_bytes(self.dirty_bytes), format_bytes(self.pending_upload_bytes));
        format!("{dirty} to pack, {pending} to upload")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            schema: SCHEMA,
            volume: "file:///v".to_owned(),
            volume_id: "00".repeat(16),
            mountpoint: Some("/mnt".into()),
            pid: Some(7),
            state: State::ReadOnly,
            state_cause: Some("journal 3 was taken".to_owned()),
            durability: Some("local".to_owned()),
            fencing: "cas".to_owned(),
            files: 3,
            logical_bytes: 4096,
            stored_bytes: 2048,
            dirty_bytes: 1024,
            pending_upload_bytes: 512,
            oldest_pending_seconds: 9,
            last_failure: Some(LastFailure { inode: 17, cause: "no space left".to_owned(), count: 2 }),
            cache_bytes: 0,
            memory_bytes: 0,
            object_requests: Requests::default(),
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// Scripts read these names; a change of this list is a change of the contract.
    #[test]
    fn the_json_has_the_documented_fields() {
        let json = serde_json::to_value(status()).expect("serializes");
        for field in [
            "schema",
            "volume_id",
            "mountpoint",
            "pid",
            "state",
            "state_cause",
            "durability",
            "fencing",
            "files",
            "logical_bytes",
            "stored_bytes",
            "dirty_bytes",
            "pending_upload_bytes",
            "oldest_pending_seconds",
            "last_failure",
            "cache_bytes",
            "memory_bytes",
            "object_requests",
            "sent_bytes",
            "received_bytes",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["state"], "read-only");
        for kind in ["put", "get", "head", "list", "delete"] {
            assert_eq!(json["object_requests"][kind], 0, "{kind}");
        }
    }

    #[test]
    fn the_text_says_what_is_pending() {
        let text = status().to_text();
        assert!(text.contains("pending     1.5 KiB, oldest 9 s ago"), "{text}");
        assert!(text.contains("/mnt (process 7)"), "{text}");
        assert!(text.contains("failed      written bytes of inode 17: no space left (2 since"), "{text}");
        assert!(text.contains("read-only: journal 3 was taken"), "{text}");
    }
}
