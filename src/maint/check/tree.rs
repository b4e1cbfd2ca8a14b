//! Inodes and what belongs to one: names, content in the metadata, attributes, staged content.

use std::collections::{HashMap, HashSet};

use super::rows::{Keys, Limits, hex, visit_all, visit_keys, visit_part};
use super::{FindingKind, Progress, Report, Seen, Step};
use crate::base::acl::{Acl, AclKind};
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::base::name::Name;
use crate::content::seal::{Seal, Sealed};
use crate::store::Result;
use crate::store::blob::BlobKey;
use crate::store::block::{BlockLocation, Receipt, UploadTicket};
use crate::store::kv::Snapshot;
use crate::store::schema::inode::{ContentForm, DentryRow, InodeRow};
use crate::store::schema::manifest::ManifestRow;
use crate::store::schema::{
    BLOB, COOKIES_PER_HASH, Cookie, DENTRY, INLINE, INODE, MANIFEST, ORPHAN, OVERLAY, XATTR, ino_key,
    parse_ino_key, parse_pair_key,
};

/// Directories known to lead to the root; forgotten when there are more, which costs time alone.
const KNOWN_DIRECTORIES_MAX: usize = 1_000_000;

/// Rows between two reports of progress.
const REPORT_EVERY: u64 = 10_000;

/// What was found of one inode.
struct Facts {
    row: InodeRow,
    names: u64,
    /// Keys of blobs.
    keys: u64,
    subdirectories: u64,
    entries: u64,
    /// Of a directory: where its entry is.
    entry_parent: Option<Ino>,
    is_orphan: bool,
    inline_bytes: Option<u64>,
    manifest_rows: u64,
    manifest_bytes: u64,
    /// Where the manifest row before ends.
    manifest_end: u64,
}

/// A part of the inodes.
struct Part<'a> {
    view: &'a dyn Snapshot,
    keys: Keys,
    /// None for a row that does not decode.
    inodes: HashMap<Ino, Option<Facts>>,
}

pub(super) fn check_tree(
    view: &dyn Snapshot,
    limits: Limits,
    seen: &mut Seen,
    report: &mut Report<'_>,
) -> Result<()> {
    let mut known = HashSet::from([Ino::ROOT]);
    let mut from = Some(Vec::new());
    while let Some(start) = from {
        let mut part = Part::read(view, &start, limits.inodes, seen, report)?;
        part.read_entries(seen)?;
        part.read_blobs(seen)?;
        part.read_inline(seen)?;
        part.read_manifests(seen)?;
        part.read_xattrs(seen)?;
        part.read_orphans(seen)?;
        part.read_seals(seen)?;
        let mut inodes: Vec<(&Ino, &Facts)> =
            part.inodes.iter().filter_map(|(ino, facts)| Some((ino, facts.as_ref()?))).collect();
        inodes.sort_unstable_by_key(|(ino, _)| **ino);
        for (ino, facts) in inodes {
            conclude(*ino, facts, seen);
            if facts.row.kind == FileKind::Directory && !facts.is_orphan {
                check_way_up(view, *ino, facts.row.parent, &mut known, seen)?;
            }
        }
        from = part.keys.to;
    }
    if view.get(INODE, &ino_key(Ino::ROOT))?.is_none() && 0 < seen.totals.inodes {
        seen.find(FindingKind::Parent, "inode 1", "there is no root directory");
    }
    Ok(())
}

impl<'a> Part<'a> {
    fn read(
        view: &'a dyn Snapshot,
        from: &[u8],
        limit: usize,
        seen: &mut Seen,
        report: &mut Report<'_>,
    ) -> Result<Self> {
        let mut inodes = HashMap::new();
        let keys = visit_part(view, INODE, from, limit, &mut |key, value| {
            let Some(ino) = parse_ino_key(key) else {
                seen.find(FindingKind::Row, format_args!("inode {}", hex(key)), "malformed key");
                return;
            };
            seen.totals.inodes += 1;
            if seen.totals.inodes.is_multiple_of(REPORT_EVERY) {
                report(Progress { step: Step::Tree, done: seen.totals.inodes, of: None });
            }
            seen.totals.newest_ino = seen.totals.newest_ino.max(ino.0);
            match InodeRow::decode(value) {
                Ok(row) => {
                    inodes.insert(ino, Some(Facts::new(row)));
                }
                Err(error) => {
                    seen.find(FindingKind::Row, format_args!("inode {ino}"), error);
                    inodes.insert(ino, None);
                }
            }
        })?;
        for facts in inodes.values().flatten() {
            let row = &facts.row;
            seen.totals.allocated_bytes = seen.totals.allocated_bytes.wrapping_add(row.allocated);
            if row.kind == FileKind::Regular {
                seen.totals.files += 1;
                seen.outcome.files += 1;
                seen.totals.logical_bytes = seen.totals.logical_bytes.wrapping_add(row.size);
            }
        }
        Ok(Self { view, keys, inodes })
    }

    /// The facts of an inode of this part that something else tells of. One that is missing is reported.
    fn facts(
        &mut self,
        ino: Ino,
        seen: &mut Seen,
        kind: FindingKind,
        thing: impl FnOnce() -> String,
    ) -> Option<&mut Facts> {
        match self.inodes.get_mut(&ino) {
            Some(facts) => facts.as_mut(),
            None => {
                seen.find(kind, thing(), format_args!("inode {ino} does not exist"));
                None
            }
        }
    }

    fn has(&self, ino: Ino) -> bool {
        self.keys.contains(&ino_key(ino))
    }

    fn read_entries(&mut self, seen: &mut Seen) -> Result<()> {
        let view = self.view;
        let mut alike = Alike::default();
        visit_all(view, DENTRY, &mut |key, value| {
            let is_ours = self.keys.contains(key);
            let Some((parent, cookie)) = parse_pair_key(key) else {
                if is_ours {
                    seen.find(FindingKind::Row, format_args!("entry {}", hex(key)), "malformed key");
                }
                return;
            };
            let parent = Ino(parent);
            let entry = match DentryRow::decode(value) {
                Ok(entry) => entry,
                Err(error) => {
                    if is_ours {
                        seen.find(FindingKind::Row, format_args!("entry {parent}/{cookie:x}"), error);
                    }
                    return;
                }
            };
            let thing = || format!("entry {parent}/{}", told(&entry.name));
            if is_ours {
                alike.check(parent, Cookie(cookie), &entry, seen);
                if let Some(facts) = self.facts(parent, seen, FindingKind::Entry, thing) {
                    facts.entries += 1;
                    facts.subdirectories += u64::from(entry.kind == FileKind::Directory);
                    if facts.row.kind != FileKind::Directory {
                        seen.find(
                            FindingKind::Entry,
                            thing(),
                            format_args!("inode {parent} is no directory"),
                        );
                    }
                }
            }
            if self.has(entry.ino)
                && let Some(facts) = self.facts(entry.ino, seen, FindingKind::Entry, thing)
            {
                facts.names += 1;
                if facts.row.kind != entry.kind {
                    let detail =
                        format!("says {:?}, inode {} is {:?}", entry.kind, entry.ino, facts.row.kind);
                    seen.find(FindingKind::Entry, thing(), detail);
                }
                facts.entry_parent = Some(parent);
            }
        })
    }

    fn read_blobs(&mut self, seen: &mut Seen) -> Result<()> {
        visit_all(self.view, BLOB, &mut |key, value| {
            let name = std::str::from_utf8(key).ok().and_then(BlobKey::parse);
            let ino = parse_ino_key(value);
            let (Some(name), Some(ino)) = (name, ino) else {
                if self.keys.is_first() {
                    seen.find(FindingKind::Row, format_args!("blob {}", hex(key)), "malformed key or value");
                }
                return;
            };
            if !self.has(ino) {
                return;
            }
            let thing = || format!("blob {name}");
            if let Some(facts) = self.facts(ino, seen, FindingKind::Blob, thing) {
                facts.keys += 1;
                if facts.row.kind != FileKind::Regular {
                    seen.find(FindingKind::Blob, thing(), format_args!("inode {ino} is no file"));
                }
            }
        })
    }

    fn read_inline(&mut self, seen: &mut Seen) -> Result<()> {
        let (view, keys) = (self.view, self.keys.clone());
        visit_keys(view, INLINE, &keys, &mut |key, value| {
            let Some(ino) = parse_ino_key(key) else {
                return seen.find(FindingKind::Row, format_args!("inline {}", hex(key)), "malformed key");
            };
            let thing = || format!("inode {ino}");
            if let Some(facts) = self.facts(ino, seen, FindingKind::Inline, thing) {
                facts.inline_bytes = Some(value.len() as u64);
            }
        })
    }

    fn read_manifests(&mut self, seen: &mut Seen) -> Result<()> {
        let (view, keys) = (self.view, self.keys.clone());
        visit_keys(view, MANIFEST, &keys, &mut |key, value| {
            let Some((ino, end)) = parse_pair_key(key) else {
                return seen.find(FindingKind::Row, format_args!("manifest {}", hex(key)), "malformed key");
            };
            let thing = || format!("inode {ino} up to {end}");
            let row = match ManifestRow::decode(value) {
                Ok(row) => row,
                Err(error) => return seen.find(FindingKind::Row, thing(), error),
            };
            let Some(facts) = self.facts(Ino(ino), seen, FindingKind::Manifest, thing) else { return };
            if end.checked_sub(row.len).is_none_or(|start| start < facts.manifest_end) {
                let detail = format!("{} bytes overlap what ends at {}", row.len, facts.manifest_end);
                seen.find(FindingKind::Manifest, thing(), detail);
            }
            facts.manifest_end = end;
            facts.manifest_rows += 1;
            facts.manifest_bytes = facts.manifest_bytes.saturating_add(row.len);
        })
    }

    fn read_xattrs(&mut self, seen: &mut Seen) -> Result<()> {
        let (view, keys) = (self.view, self.keys.clone());
        visit_keys(view, XATTR, &keys, &mut |key, value| {
            let Some((ino, name)) = key.split_first_chunk::<8>() else {
                return seen.find(FindingKind::Row, format_args!("xattr {}", hex(key)), "malformed key");
            };
            let ino = Ino(u64::from_be_bytes(*ino));
            let thing = || format!("inode {ino} {}", name.escape_ascii());
            let is_file = match self.facts(ino, seen, FindingKind::Xattr, thing) {
                Some(facts) => facts.row.kind != FileKind::Directory,
                None => return,
            };
            if name.is_empty() || XATTR_NAME_BYTES_MAX < name.len() || XATTR_VALUE_BYTES_MAX < value.len() {
                seen.find(FindingKind::Xattr, thing(), "name or value is longer than the kernel allows");
            }
            match AclKind::of_attribute(name) {
                None => {}
                Some(AclKind::Default) if is_file => {
                    seen.find(FindingKind::Xattr, thing(), "a default list on what is no directory");
                }
                Some(_) if !matches!(Acl::decode(value), Ok(Some(_))) => {
                    seen.find(FindingKind::Xattr, thing(), "not a valid list");
                }
                Some(_) => {}
            }
        })
    }

    fn read_orphans(&mut self, seen: &mut Seen) -> Result<()> {
        let (view, keys) = (self.view, self.keys.clone());
        visit_keys(view, ORPHAN, &keys, &mut |key, value| {
            let ino = parse_ino_key(key).filter(|_| value.is_empty());
            let Some(ino) = ino else {
                return seen.find(FindingKind::Row, format_args!("orphan {}", hex(key)), "malformed");
            };
            if let Some(facts) = self.facts(ino, seen, FindingKind::Orphan, || format!("inode {ino}")) {
                facts.is_orphan = true;
            }
        })
    }

    fn read_seals(&mut self, seen: &mut Seen) -> Result<()> {
        let (view, keys) = (self.view, self.keys.clone());
        let upload = UploadTicket::fulfilled(Receipt::UNKNOWN);
        visit_keys(view, OVERLAY, &keys, &mut |key, value| {
            let Some((ino, number)) = parse_pair_key(key) else {
                return seen.find(FindingKind::Row, format_args!("overlay {}", hex(key)), "malformed key");
            };
            let thing = || format!("inode {ino} seal {number}");
            let seal = match Seal::decode(value, &mut |_, _| upload.clone()) {
                Ok(seal) => seal,
                Err(error) => return seen.find(FindingKind::Row, thing(), error),
            };
            if seal.number != number {
                seen.find(FindingKind::Seal, thing(), format_args!("says it is seal {}", seal.number));
            }
            let facts = self.facts(Ino(ino), seen, FindingKind::Seal, thing);
            if facts.is_some_and(|facts| facts.row.kind != FileKind::Regular) {
                seen.find(FindingKind::Seal, thing(), "of what is no file");
            }
            for (_, sealed) in seal.extents.iter() {
                let Sealed::Block { ticket, .. } = sealed else { continue };
                match ticket.location {
                    BlockLocation::Object => seen.sealed_blocks.push(ticket.id),
                    BlockLocation::Frame { pack, offset, len } => {
                        let end = u64::from(offset) + u64::from(len);
                        let known = seen.sealed_packs.entry(pack).or_default();
                        *known = end.max(*known);
                    }
                }
            }
        })
    }
}

impl Facts {
    fn new(row: InodeRow) -> Self {
        Self {
            row,
            names: 0,
            keys: 0,
            subdirectories: 0,
            entries: 0,
            entry_parent: None,
            is_orphan: false,
            inline_bytes: None,
            manifest_rows: 0,
            manifest_bytes: 0,
            manifest_end: 0,
        }
    }
}

/// Entries of one directory whose names share a hash.
#[derive(Default)]
struct Alike {
    group: Option<(Ino, u64)>,
    names: Vec<Name>,
}

impl Alike {
    fn check(&mut self, parent: Ino, cookie: Cookie, entry: &DentryRow, seen: &mut Seen) {
        let thing = || format!("entry {parent}/{}", told(&entry.name));
        let group = cookie.0 / COOKIES_PER_HASH;
        if group != Cookie::first_of(&entry.name).0 / COOKIES_PER_HASH {
            seen.find(FindingKind::Entry, thing(), "is not in its place and cannot be found by its name");
        }
        if self.group != Some((parent, group)) {
            self.group = Some((parent, group));
            self.names.clear();
        }
        if self.names.contains(&entry.name) {
            seen.find(FindingKind::Entry, thing(), "is there twice");
        }
        self.names.push(entry.name.clone());
    }
}

/// A name as it is told.
fn told(name: &Name) -> String {
    name.as_bytes().escape_ascii().to_string()
}

/// Compares an inode with what was found of it.
fn conclude(ino: Ino, facts: &Facts, seen: &mut Seen) {
    let thing = format!("inode {ino}");
    match facts.row.kind {
        FileKind::Directory => conclude_directory(ino, facts, &thing, seen),
        _ => conclude_names(facts, &thing, seen),
    }
    conclude_content(facts, &thing, seen);
}

fn conclude_names(facts: &Facts, thing: &str, seen: &mut Seen) {
    let Facts { row, names, keys, is_orphan, .. } = facts;
    let found = names + keys;
    if *is_orphan {
        // One that never had a name counts a link until it gets one or goes.
        if found != 0 || 1 < row.nlink {
            let detail = format!("is an orphan with {found} names, counts {}", row.nlink);
            seen.find(FindingKind::Orphan, thing, detail);
        }
    } else if found == 0 && row.nlink == 0 {
        seen.find(FindingKind::Orphan, thing, "has no name and is no orphan: nothing will remove it");
    } else if u64::from(row.nlink) != found {
        seen.find(FindingKind::Links, thing, format_args!("has {found} names, counts {}", row.nlink));
    }
}

fn conclude_directory(ino: Ino, facts: &Facts, thing: &str, seen: &mut Seen) {
    let Facts { row, names, subdirectories, entries, is_orphan, .. } = facts;
    if *is_orphan {
        if *names != 0 || row.nlink != 0 || *entries != 0 {
            let detail = format!("is an orphan with {names} names, {entries} entries, counts {}", row.nlink);
            seen.find(FindingKind::Orphan, thing, detail);
        }
        return;
    }
    let names_expected = u64::from(ino != Ino::ROOT);
    if *names != names_expected {
        seen.find(FindingKind::Links, thing, format_args!("is a directory with {names} names"));
    } else if u64::from(row.nlink) != 2 + subdirectories {
        let detail = format!("has {subdirectories} subdirectories, counts {} links", row.nlink);
        seen.find(FindingKind::Links, thing, detail);
    }
    let parent = if ino == Ino::ROOT { Some(Ino::ROOT) } else { facts.entry_parent };
    if parent.is_some_and(|parent| parent != row.parent) {
        let detail = format!("says its parent is {}, its entry is in {:?}", row.parent, parent.map(|p| p.0));
        seen.find(FindingKind::Parent, thing, detail);
    }
}

fn conclude_content(facts: &Facts, thing: &str, seen: &mut Seen) {
    let row = &facts.row;
    if row.form != ContentForm::Inline && facts.inline_bytes.is_some() {
        seen.find(FindingKind::Inline, thing, "has content in the metadata that its row does not know");
    }
    if row.form != ContentForm::Manifest && 0 < facts.manifest_rows {
        let detail = format!("has {} manifest rows that its row does not know", facts.manifest_rows);
        seen.find(FindingKind::Manifest, thing, detail);
        return;
    }
    let allocated = match (row.form, row.kind) {
        (ContentForm::Inline, _) => {
            let Some(bytes) = facts.inline_bytes else {
                return seen.find(FindingKind::Inline, thing, "content in the metadata is missing");
            };
            if bytes != row.size {
                let detail = format!("{bytes} bytes in the metadata, size {}", row.size);
                seen.find(FindingKind::Inline, thing, detail);
            }
            if row.kind == FileKind::Symlink { 0 } else { bytes }
        }
        (ContentForm::Manifest, _) => facts.manifest_bytes,
        (ContentForm::Empty, FileKind::Directory) => row.allocated,
        (ContentForm::Empty, _) => 0,
    };
    if row.allocated != allocated {
        let detail = format!("has {allocated} bytes allocated, counts {}", row.allocated);
        seen.find(FindingKind::Inode, thing, detail);
    }
    let may_have = match row.form {
        ContentForm::Empty => row.kind != FileKind::Symlink,
        ContentForm::Inline => matches!(row.kind, FileKind::Regular | FileKind::Symlink),
        ContentForm::Manifest => row.kind == FileKind::Regular,
    };
    if !may_have {
        seen.find(FindingKind::Inode, thing, format_args!("is {:?} with content {:?}", row.kind, row.form));
    }
}

/// Follows parents to the root. Where entries and parents agree this shows that a directory can be reached.
fn check_way_up(
    view: &dyn Snapshot,
    ino: Ino,
    parent: Ino,
    known: &mut HashSet<Ino>,
    seen: &mut Seen,
) -> Result<()> {
    let mut way = vec![ino];
    let mut at = parent;
    while !known.contains(&at) {
        if way.contains(&at) {
            seen.find(
                FindingKind::Parent,
                format_args!("inode {ino}"),
                format_args!("is below itself, in {at}"),
            );
            break;
        }
        let row = view.get(INODE, &ino_key(at))?.map(|row| InodeRow::decode(&row));
        match row {
            Some(Ok(row)) if row.kind == FileKind::Directory => {
                way.push(at);
                at = row.parent;
            }
            // Reported where it is read.
            Some(Err(_)) => break,
            _ => {
                let detail = format!("its parent {at} is no directory");
                seen.find(FindingKind::Parent, format_args!("inode {ino}"), detail);
                break;
            }
        }
    }
    if KNOWN_DIRECTORIES_MAX < known.len() {
        known.clear();
        known.insert(Ino::ROOT);
    }
    known.extend(way);
    Ok(())
}
