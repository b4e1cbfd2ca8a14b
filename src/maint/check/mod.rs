//! `check`: whether everything a volume says of itself is true, and whether its store has what that needs. Only reads.
//!
//! Tables too large for memory are taken in parts: the rows of one part are held, and what refers to them is read past
//! once per part. Volumes of ordinary size are one part.

mod content;
mod data;
mod findings;
mod journal;
mod objects;
mod reading;
mod rows;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::content::{check_blocks, check_packs, check_segments};
use self::data::check_pack_data;
pub use self::findings::{Finding, FindingKind, Findings};
use self::journal::check_journal;
use self::objects::{check_block_objects, find_packs, report_missing};
use self::reading::ReadOnlyStore;
use self::rows::{Limits, check_known_tables};
use self::tree::check_tree;
use crate::base::hash::BlockId;
use crate::base::ids::{PackId, VolumeId};
use crate::content::staged_files::StagedFiles;
use crate::store::kv::Snapshot;
use crate::store::object::ImmutableObjectStore;
use crate::store::{Kind, Result};

/// What is checked.
pub struct CheckParts {
    /// All metadata at one moment.
    pub view: Arc<dyn Snapshot>,
    /// What was staged on this machine after that moment: uploads go on while a mount is checked.
    pub staged: StagedFiles,
    pub objects: Arc<dyn ImmutableObjectStore>,
    pub volume: VolumeId,
    /// Whether every stored byte is fetched and hashed.
    pub data: Data,
}

/// What is done about the content of packs and blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// They must be there and as long as the metadata say.
    Listed,
    /// And every block is fetched and hashed.
    Hashed,
}

/// What a check is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Tree,
    Content,
    Packs,
    Data,
    Journal,
}

/// How far a check has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    pub step: Step,
    /// Rows, packs or records done in this step, and how many there are if that is known.
    pub done: u64,
    pub of: Option<u64>,
}

/// Receives progress.
pub type Report<'a> = dyn FnMut(Progress) + Send + 'a;

/// What a check has seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Regular files.
    pub files: u64,
    /// Blocks that the index knows.
    pub blocks: u64,
    /// Packs that the index knows.
    pub packs: u64,
    /// Bytes of objects fetched from the store.
    pub bytes_read: u64,
    pub findings: Findings,
}

/// What the metadata say besides that they are consistent.
#[derive(Default)]
struct Seen {
    outcome: Outcome,
    totals: Totals,
    /// Of blocks that only seals name: their packs, with the end of the last frame named.
    sealed_packs: HashMap<PackId, u64>,
    /// The same for blocks with objects of their own.
    sealed_blocks: Vec<BlockId>,
}

/// What the counters should be.
#[derive(Default)]
struct Totals {
    inodes: u64,
    files: u64,
    allocated_bytes: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    newest_ino: u64,
    newest_segment: u64,
}

impl Seen {
    fn find(&mut self, kind: FindingKind, thing: impl std::fmt::Display, detail: impl std::fmt::Display) {
        self.outcome.findings.add(kind, thing, detail);
    }

    /// Damage that ends a step is a finding like others; an error of a store that does not answer is not.
    fn finish(&mut self, kind: FindingKind, thing: &str, step: Result<()>) -> Result<()> {
        match step {
            Err(error) if matches!(error.kind, Kind::Corrupt | Kind::NotFound) => {
                self.find(kind, thing, error);
                Ok(())
            }
            step => step,
        }
    }
}

/// Checks the metadata alone.
///
/// # Errors
/// Of the medium. Damage is no error but a finding.
pub fn check_metadata(view: &dyn Snapshot) -> Result<Findings> {
    let mut seen = Seen::default();
    check_rows(view, Limits::default(), &mut seen, &mut |_| {})?;
    let mut from = Some(Vec::new());
    while let Some(start) = from {
        let packs = check_packs(view, Limits::default(), &start, &mut seen)?;
        from = packs.next;
    }
    Ok(seen.outcome.findings)
}

/// Everything but packs, which are looked for in the store while their rows are at hand.
fn check_rows(view: &dyn Snapshot, limits: Limits, seen: &mut Seen, report: &mut Report<'_>) -> Result<()> {
    let metadata = "metadata";
    let step = check_known_tables(view, seen);
    seen.finish(FindingKind::Row, metadata, step)?;
    let step = check_tree(view, limits, seen, report);
    seen.finish(FindingKind::Row, metadata, step)?;
    let step = check_segments(view, limits, seen, report);
    seen.finish(FindingKind::Row, metadata, step)?;
    let step = check_blocks(view, limits, seen, report);
    seen.finish(FindingKind::Row, metadata, step)?;
    let step = content::check_counters(view, seen);
    seen.finish(FindingKind::Row, metadata, step)
}

/// Checks a volume.
///
/// # Errors
/// Of a store that does not answer, or refuses. Damage is no error but a finding.
pub async fn check(parts: CheckParts, report: &mut Report<'_>) -> Result<Outcome> {
    let mut seen = Seen::default();
    let objects = ReadOnlyStore::new(parts.objects.clone());
    let view = &*parts.view;
    check_rows(view, Limits::default(), &mut seen, report)?;
    let step = check_stored(&parts, &objects, &mut seen, report).await;
    seen.finish(FindingKind::Row, "metadata", step)?;
    let step = check_journal(&objects, parts.volume, Some(view), &mut seen, report).await;
    seen.finish(FindingKind::Journal, "journal", step)?;
    seen.outcome.bytes_read = objects.bytes_read();
    Ok(seen.outcome)
}

/// Checks what a store has of a volume whose metadata cannot be opened: journal and checkpoints.
///
/// # Errors
/// As [`check`].
pub async fn check_without_metadata(
    objects: Arc<dyn ImmutableObjectStore>,
    volume: VolumeId,
    reason: Finding,
    report: &mut Report<'_>,
) -> Result<Outcome> {
    let mut seen = Seen::default();
    seen.find(reason.kind, reason.thing, reason.detail);
    let objects = ReadOnlyStore::new(objects);
    let step = check_journal(&objects, volume, None, &mut seen, report).await;
    seen.finish(FindingKind::Journal, "journal", step)?;
    seen.outcome.bytes_read = objects.bytes_read();
    Ok(seen.outcome)
}

async fn check_stored(
    parts: &CheckParts,
    objects: &ReadOnlyStore,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let view = &*parts.view;
    let mut from = Some(Vec::new());
    while let Some(start) = from {
        let mut packs = check_packs(view, Limits::default(), &start, seen)?;
        find_packs(objects, &mut packs.rows, seen, report).await?;
        report_missing(&packs.rows, &parts.staged, seen);
        if parts.data == Data::Hashed {
            check_pack_data(view, objects, &packs.rows, seen, report).await?;
        }
        from = packs.next;
    }
    objects::report_unfound_seals(&parts.staged, seen);
    check_block_objects(view, objects, parts, seen, report).await
}
