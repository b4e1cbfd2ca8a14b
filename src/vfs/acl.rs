//! Access control lists: kept in step with the mode, and inherited. They are stored as extended attributes; the kernel
//! reads them there and checks access.

use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Inode, State};
use super::xattr::XattrSummary;
use super::{Caller, Vfs};
use crate::base::acl::{Acl, AclError, AclKind};
use crate::base::attr::{FileKind, PERMISSION_BITS, S_ISGID};
use crate::base::ids::Ino;
use crate::store::schema::inode::InodeRow;
use crate::store::schema::{XATTR, xattr_key};
use crate::store::{self, Kind};

impl Vfs {
    /// Sets a list, or removes it if `value` has no entries. An access list becomes the mode's permission bits, and is
    /// only kept if it says more than they do; sgid goes unless the caller is in the file's group or may set it.
    ///
    /// # Errors
    /// `Invalid` for what is no list, `NotSupported` for one of another version or on a symlink, `AttributeTooLarge`,
    /// `Access` for a default list on what is no directory, `NoSpace` beside too many attributes, `ReadOnly`.
    pub fn set_acl(&self, caller: &Caller<'_>, ino: Ino, kind: AclKind, value: &[u8]) -> Result<()> {
        self.writable()?;
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Symlink {
            return Err(Error::NotSupported);
        }
        let Some(acl) = Acl::decode(value)? else { return self.remove_acl(ino, kind) };
        if kind == AclKind::Default && inode.kind != FileKind::Directory {
            return Err(Error::Access);
        }

        let mut state = inode.lock();

        let mut xattrs = self.xattrs(&inode, &mut state)?;
        let mut row = state.row.clone();
        row.ctime = self.clock.now();
        if kind == AclKind::Access {
            row.mode = row.mode & !PERMISSION_BITS | acl.permissions();
            if row.mode & S_ISGID != 0 && !caller.may_have_sgid_of(row.gid) {
                row.mode &= !S_ISGID;
            }
        }
        let mut change = Change::default();
        let (attribute, exists) = (kind.attribute(), xattrs.has_acl(kind));
        if kind == AclKind::Default || !acl.is_minimal() {
            change.batch.put(XATTR, xattr_key(ino, attribute), acl.encode());
            if !exists {
                xattrs.add(attribute)?;
            }
        } else if exists {
            change.batch.delete(XATTR, xattr_key(ino, attribute));
            xattrs.remove(attribute);
        }
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        state.xattrs = Some(xattrs);
        Ok(())
    }

    /// Removes a list; the mode stays. That there is none is no error, as on ext4.
    ///
    /// # Errors
    /// `ReadOnly`, of the metadata.
    pub fn remove_acl(&self, ino: Ino, kind: AclKind) -> Result<()> {
        match self.removexattr(ino, kind.attribute()) {
            Err(Error::NoAttribute) => Ok(()),
            removed => removed,
        }
    }

    /// Plans that the access list follows a new mode.
    pub(super) fn plan_chmod(
        &self,
        inode: &Inode,
        state: &mut State,
        mode: u32,
        change: &mut Change,
    ) -> Result<()> {
        if self.xattrs(inode, state)?.has_access_acl {
            let acl = self.acl(inode.ino, AclKind::Access)?.with_mode(mode);
            change.batch.put(XATTR, xattr_key(inode.ino, AclKind::Access.attribute()), acl.encode());
        }
        Ok(())
    }

    /// Plans what `row`, about to be made in `dir`, gets from the directory's default list; without one its mode loses
    /// the bits of `umask`. Returns its attributes.
    pub(super) fn plan_inheritance(
        &self,
        dir: (&Inode, &mut State),
        made: (Ino, &mut InodeRow),
        umask: u32,
        change: &mut Change,
    ) -> Result<XattrSummary> {
        let ((dir, dir_state), (ino, row)) = (dir, made);
        let mut xattrs = XattrSummary::default();
        if row.kind == FileKind::Symlink {
            return Ok(xattrs);
        }
        if !self.xattrs(dir, dir_state)?.has_default_acl {
            row.mode &= !(umask & PERMISSION_BITS);
            return Ok(xattrs);
        }
        let default = self.acl(dir.ino, AclKind::Default)?;
        let access = default.inherited(row.mode);
        row.mode = row.mode & !PERMISSION_BITS | access.permissions();
        let mut put = |kind: AclKind, acl: &Acl| {
            change.batch.put(XATTR, xattr_key(ino, kind.attribute()), acl.encode());
            xattrs.add(kind.attribute())
        };
        if !access.is_minimal() {
            put(AclKind::Access, &access)?;
        }
        if row.kind == FileKind::Directory {
            put(AclKind::Default, &default)?;
        }
        Ok(xattrs)
    }

    /// A list that is there.
    fn acl(&self, ino: Ino, kind: AclKind) -> Result<Acl> {
        let value = self.commit.get(XATTR, &xattr_key(ino, kind.attribute()))?;
        let acl = value.and_then(|value| Acl::decode(&value).ok().flatten());
        acl.ok_or_else(|| {
            let detail = format!("inode {ino}: its {kind:?} ACL is missing or malformed");
            Error::Io(store::Error::new(Kind::Corrupt, detail))
        })
    }
}

impl From<AclError> for Error {
    fn from(error: AclError) -> Self {
        match error {
            AclError::Malformed => Self::Invalid,
            AclError::UnknownVersion => Self::NotSupported,
            AclError::TooLarge => Self::AttributeTooLarge,
        }
    }
}
