//! Listing of a directory store: a walk in the byte order of keys, cut to one page.

use std::fs;
use std::io;
use std::path::Path;

use super::dir::meta_of;
use crate::store::object::{ListPage, ObjectKey, ObjectMeta, PAGE_OBJECTS_MAX};
use crate::store::{Error, Result};

/// One page of the objects below `root`; empty if there is no such directory.
pub(super) fn page(root: &Path, prefix: &str, start_after: Option<&ObjectKey>) -> Result<ListPage> {
    let mut walk =
        Walk { root, prefix, start_after: start_after.map_or("", ObjectKey::as_str), found: vec![] };
    walk.visit("").map_err(|error| Error::from_io(&format!("list {prefix}"), error))?;
    let more = walk.found.len() > PAGE_OBJECTS_MAX;
    walk.found.truncate(PAGE_OBJECTS_MAX);
    Ok(ListPage { objects: walk.found, more })
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    start_after: &'a str,
    /// At most one more than a page, which tells that there is more.
    found: Vec<ObjectMeta>,
}

impl Walk<'_> {
    /// Visits the directory `dir`, which is "" or ends in `/`.
    fn visit(&mut self, dir: &str) -> io::Result<()> {
        for name in sorted_names(&self.root.join(dir))? {
            let path = format!("{dir}{name}");
            if path.ends_with('/') {
                if self.may_hold_matches(&path) {
                    self.visit(&path)?;
                }
            } else if path.starts_with(self.prefix) && path.as_str() > self.start_after {
                self.add(&path)?;
            }
            if self.found.len() > PAGE_OBJECTS_MAX {
                return Ok(());
            }
        }
        Ok(())
    }

    /// False if no key that starts with `dir` can match the prefix and lie behind `start_after`.
    fn may_hold_matches(&self, dir: &str) -> bool {
        let matches_prefix = dir.starts_with(self.prefix) || self.prefix.starts_with(dir);
        matches_prefix && (dir > self.start_after || self.start_after.starts_with(dir))
    }

    fn add(&mut self, path: &str) -> io::Result<()> {
        // What is not an object key is not ours: somebody's notes in the directory are none of our business.
        let Some(key) = ObjectKey::parse(path) else { return Ok(()) };
        match fs::metadata(self.root.join(path)) {
            Ok(metadata) if metadata.is_file() => self.found.push(meta_of(&key, &metadata)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Deleted meanwhile.
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Names in a directory in the order of the keys they begin: a directory sorts as its name and `/`.
fn sorted_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names), // Removed meanwhile.
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if entry.file_type()?.is_dir() {
            if ObjectKey::parse(&name).is_none() {
                continue;
            }
            name.push('/');
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}
