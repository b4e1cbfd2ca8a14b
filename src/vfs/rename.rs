//! Rename in its three modes, and the barrier that keeps a replaced name from ever showing an empty file (rule R1).

use std::sync::Arc;

use super::change::Change;
use super::error::{Error, Result};
use super::inode::Inode;
use super::locks::LockSet;
use super::lookup::ready;
use super::unlink::drop_link;
use super::{Pending, Vfs};
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::limits::LINKS_MAX;
use crate::base::name::Name;
use crate::base::sync::lock;
use crate::store::schema::Cookie;
use crate::store::schema::inode::{DentryRow, InodeRow};

/// What to do about a name that exists, as `renameat2(2)` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// A name in a directory.
#[derive(Clone)]
struct Place {
    dir: Arc<Inode>,
    name: Name,
}

/// What a name stands for.
struct Target {
    inode: Arc<Inode>,
    cookie: Cookie,
}

impl Vfs {
    /// Moves `from` to `to`. Atomic, for whoever looks and across crashes.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (NoReplace), `NotEmpty`, `IsDirectory`, `NotDirectory`, `Invalid` for a directory into
    /// itself, `TooManyLinks`, `ReadOnly`.
    pub fn rename(self: &Arc<Self>, from: (Ino, &Name), to: (Ino, &Name), mode: RenameMode) -> Pending<()> {
        match self.try_rename(from, to, mode) {
            Ok(Renamed::Done) => ready(Ok(())),
            Err(error) => ready(Err(error)),
            Ok(Renamed::ContentFirst(dirty)) => {
                let vfs = Arc::clone(self);
                let (from, to) = ((from.0, from.1.clone()), (to.0, to.1.clone()));
                Box::pin(async move {
                    for inode in &dirty {
                        vfs.stage_all(inode).await?;
                        vfs.publish_ahead(inode).await?;
                    }
                    // Boxed again: whoever goes on writing to the source may make it take another round.
                    vfs.rename((from.0, &from.1), (to.0, &to.1), mode).await
                })
            }
        }
    }

    fn try_rename(&self, from: (Ino, &Name), to: (Ino, &Name), mode: RenameMode) -> Result<Renamed> {
        self.writable()?;
        let source_place = Place { dir: self.directory(from.0)?, name: from.1.clone() };
        let target_place = Place { dir: self.directory(to.0)?, name: to.1.clone() };
        let (source, target) = (self.resolve(&source_place)?, self.resolve(&target_place)?);
        let source = source.ok_or(Error::NotFound)?;

        let moves_directory = |inode: &Inode| from.0 != to.0 && inode.kind == FileKind::Directory;
        let reshapes = moves_directory(&source.inode)
            || (mode == RenameMode::Exchange && target.as_ref().is_some_and(|t| moves_directory(&t.inode)));
        let _token = reshapes.then(|| lock(&self.rename_token));
        let mut involved = vec![&source_place.dir, &target_place.dir, &source.inode];
        involved.extend(target.as_ref().map(|target| &target.inode));
        let mut locks = LockSet::of(&involved);

        if !self.unchanged(&source_place, Some(&source))?
            || !self.unchanged(&target_place, target.as_ref())?
        {
            drop(locks);
            drop(_token);
            return self.try_rename(from, to, mode);
        }
        if mode != RenameMode::NoReplace
            && target.as_ref().is_some_and(|target| target.inode.ino == source.inode.ino)
        {
            return Ok(Renamed::Done);
        }
        self.check(&source_place, &source, &target_place, target.as_ref(), mode, &mut locks)?;
        let dirty = self.needs_content_first(&source, target.as_ref(), mode, &mut locks);
        if !dirty.is_empty() {
            return Ok(Renamed::ContentFirst(dirty));
        }

        let (change, rows) =
            self.plan(&source_place, &source, &target_place, target.as_ref(), mode, &mut locks)?;

        let _ticket = change.submit(&self.commit)?;

        for (inode, row) in rows {
            locks.get(&inode).row = row;
        }
        Ok(Renamed::Done)
    }

    fn resolve(&self, place: &Place) -> Result<Option<Target>> {
        match self.child(place.dir.ino, &place.name) {
            Err(Error::NotFound) => Ok(None),
            found => found.map(|(inode, cookie)| Some(Target { inode, cookie })),
        }
    }

    fn unchanged(&self, place: &Place, target: Option<&Target>) -> Result<bool> {
        let now = self.find(place.dir.ino, &place.name)?;
        Ok(now.map(|(cookie, entry)| (cookie, entry.ino)) == target.map(|t| (t.cookie, t.inode.ino)))
    }

    fn check(
        &self,
        from: &Place,
        source: &Target,
        to: &Place,
        target: Option<&Target>,
        mode: RenameMode,
        locks: &mut LockSet<'_>,
    ) -> Result<()> {
        let source_is_dir = source.inode.kind == FileKind::Directory;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
            (RenameMode::Exchange, None) => return Err(Error::NotFound),
            (RenameMode::Exchange, Some(target)) => {
                if target.inode.kind == FileKind::Directory {
                    self.check_not_below(&target.inode, &from.dir, locks)?;
                }
            }
            (RenameMode::Replace, Some(target)) => {
                match (source_is_dir, target.inode.kind == FileKind::Directory) {
                    (true, false) => return Err(Error::NotDirectory),
                    (false, true) => return Err(Error::IsDirectory),
                    _ => self.check_empty(&target.inode)?,
                }
            }
            (RenameMode::Replace | RenameMode::NoReplace, None) => {}
        }
        if locks.get(&to.dir).row.nlink == 0 {
            return Err(Error::NotFound);
        }
        if source_is_dir {
            self.check_not_below(&source.inode, &to.dir, locks)?;
            let gains =
                from.dir.ino != to.dir.ino && target.is_none_or(|t| t.inode.kind != FileKind::Directory);
            if gains && LINKS_MAX <= locks.get(&to.dir).row.nlink {
                return Err(Error::TooManyLinks);
            }
        }
        Ok(())
    }

    /// # Errors
    /// `Invalid` if `dir` is `moved` or lies below it. The rename token keeps the answer true.
    fn check_not_below(&self, moved: &Inode, dir: &Inode, locks: &mut LockSet<'_>) -> Result<()> {
        let mut at = dir.ino;
        if at == moved.ino {
            return Err(Error::Invalid);
        }
        let mut parent = locks.get(dir).row.parent;
        while at != Ino::ROOT {
            if parent == moved.ino {
                return Err(Error::Invalid);
            }
            at = parent;
            parent = self.committed_parent(at)?;
        }
        Ok(())
    }

    /// A directory's parent from its row: locks of others may not be taken here.
    fn committed_parent(&self, ino: Ino) -> Result<Ino> {
        let key = crate::store::schema::ino_key(ino);
        let row = self.commit.get(crate::store::schema::INODE, &key)?.ok_or(Error::Stale)?;
        Ok(InodeRow::decode(&row).map_err(crate::store::Error::from)?.parent)
    }

    /// Rule R1: files that get a name which showed something else, and whose bytes are not committed yet.
    fn needs_content_first(
        &self,
        source: &Target,
        target: Option<&Target>,
        mode: RenameMode,
        locks: &mut LockSet<'_>,
    ) -> Vec<Arc<Inode>> {
        let Some(target) = target else { return Vec::new() };
        let mut renamed = vec![&source.inode];
        if mode == RenameMode::Exchange {
            renamed.push(&target.inode);
        }
        renamed.retain(|inode| locks.get(inode).overlay.is_some());
        renamed.into_iter().cloned().collect()
    }

    fn plan(
        &self,
        from: &Place,
        source: &Target,
        to: &Place,
        target: Option<&Target>,
        mode: RenameMode,
        locks: &mut LockSet<'_>,
    ) -> Result<(Change, NewRows)> {
        let now = self.clock.now();
        let mut change = Change::default();
        let mut rows = Rows::default();
        let entry = |target: &Target, name: &Name| DentryRow {
            ino: target.inode.ino,
            kind: target.inode.kind,
            name: name.clone(),
        };
        let cookie = match target {
            Some(target) => target.cookie,
            None => self.free_cookie(to.dir.ino, &to.name)?,
        };
        change.put_dentry(to.dir.ino, cookie, &entry(source, &to.name));
        for dir in [&from.dir, &to.dir] {
            let row = rows.of(dir, locks);
            (row.mtime, row.ctime) = (now, now);
        }
        rows.of(&source.inode, locks).ctime = now;
        move_parent(&mut rows, locks, &source.inode, &from.dir, &to.dir);
        match (mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                change.put_dentry(from.dir.ino, source.cookie, &entry(target, &from.name));
                rows.of(&target.inode, locks).ctime = now;
                move_parent(&mut rows, locks, &target.inode, &to.dir, &from.dir);
            }
            (_, replaced) => {
                change.remove_dentry(from.dir.ino, source.cookie);
                if let Some(replaced) = replaced {
                    let old = locks.get(&replaced.inode).row.clone();
                    let new = drop_link(&mut change, replaced.inode.ino, &old, now);
                    rows.0.push((Arc::clone(&replaced.inode), new.clone(), new));
                    if replaced.inode.kind == FileKind::Directory {
                        rows.of(&to.dir, locks).nlink -= 1;
                    }
                }
            }
        }
        for (inode, old, new) in &rows.0 {
            if old != new {
                change.put_inode(inode.ino, old, new);
            }
        }
        Ok((change, rows.0.into_iter().map(|(inode, _, new)| (inode, new)).collect()))
    }
}

/// Rows to publish once the change is committed.
type NewRows = Vec<(Arc<Inode>, InodeRow)>;

/// Outcome of one attempt.
enum Renamed {
    Done,
    /// These must have their content in the commit order first.
    ContentFirst(Vec<Arc<Inode>>),
}

/// Rows a rename changes, before and after.
#[derive(Default)]
struct Rows(Vec<(Arc<Inode>, InodeRow, InodeRow)>);

impl Rows {
    fn of(&mut self, inode: &Arc<Inode>, locks: &mut LockSet<'_>) -> &mut InodeRow {
        let at = self.0.iter().position(|(known, _, _)| known.ino == inode.ino).unwrap_or_else(|| {
            let row = locks.get(inode).row.clone();
            self.0.push((Arc::clone(inode), row.clone(), row));
            self.0.len() - 1
        });
        &mut self.0.get_mut(at).expect("found or pushed just now").2
    }
}

/// A directory that changes its parent takes the link of its `..` along.
fn move_parent(
    rows: &mut Rows,
    locks: &mut LockSet<'_>,
    moved: &Arc<Inode>,
    from: &Arc<Inode>,
    to: &Arc<Inode>,
) {
    if moved.kind != FileKind::Directory || from.ino == to.ino {
        return;
    }
    rows.of(from, locks).nlink -= 1;
    rows.of(to, locks).nlink += 1;
    rows.of(moved, locks).parent = to.ino;
}
