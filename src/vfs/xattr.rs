//! Extended attributes, one row each. ACLs are among them; setting one is in `acl.rs`.

use std::ops::ControlFlow;

use super::Vfs;
use super::change::Change;
use super::error::{Error, Result};
use super::inode::{Inode, State};
use super::privileges::CAPABILITY;
use crate::base::acl::AclKind;
use crate::base::ids::Ino;
use crate::base::limits::{XATTR_LIST_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::store::kv::Snapshot;
use crate::store::schema::{XATTR, ino_key, ino_key_end, xattr_key};

/// What setxattr does about an attribute that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetXattr {
    Either,
    Create,
    Replace,
    /// Both at once: a way to fail whether it exists or not.
    CreateAndReplace,
}

/// Namespaces that are stored, beside the two ACLs. The kernel keeps `trusted.` to root and checks the others.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// What other operations need to know of an inode's attributes; kept while the inode is in memory.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct XattrSummary {
    /// Length of the list of names, a NUL behind each.
    list_bytes: usize,
    pub(super) has_capability: bool,
    pub(super) has_access_acl: bool,
    pub(super) has_default_acl: bool,
}

impl XattrSummary {
    pub(super) fn has_acl(&self, kind: AclKind) -> bool {
        match kind {
            AclKind::Access => self.has_access_acl,
            AclKind::Default => self.has_default_acl,
        }
    }

    /// Adds an attribute that is not there yet.
    ///
    /// # Errors
    /// `NoSpace` if the kernel could no longer list them all.
    pub(super) fn add(&mut self, name: &[u8]) -> Result<()> {
        self.list_bytes += name.len() + 1;
        self.set_flag(name, true);
        if self.list_bytes <= XATTR_LIST_BYTES_MAX { Ok(()) } else { Err(Error::NoSpace) }
    }

    /// Takes away one that is there.
    pub(super) fn remove(&mut self, name: &[u8]) {
        self.list_bytes -= name.len() + 1;
        self.set_flag(name, false);
    }

    fn set_flag(&mut self, name: &[u8], value: bool) {
        match AclKind::of_attribute(name) {
            Some(AclKind::Access) => self.has_access_acl = value,
            Some(AclKind::Default) => self.has_default_acl = value,
            None if name == CAPABILITY => self.has_capability = value,
            None => {}
        }
    }
}

impl Vfs {
    /// An attribute's value.
    ///
    /// # Errors
    /// `NoAttribute`; `NotSupported` for a namespace that is not stored, `Invalid` for one without a name.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        self.commit.get(XATTR, &xattr_key(ino, name))?.ok_or(Error::NoAttribute)
    }

    /// Names of all attributes, each followed by NUL.
    ///
    /// # Errors
    /// Of the metadata.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        self.each_xattr(ino, |name| {
            names.extend_from_slice(name);
            names.push(0);
        })?;
        Ok(names)
    }

    /// Sets an attribute that is no ACL.
    ///
    /// # Errors
    /// `Exists` (Create), `NoAttribute` (Replace), `BufferTooSmall` for a name over 255 bytes, `AttributeTooLarge` for a
    /// value over 64 KiB, `NoSpace` if the names of all exceed 64 KiB, `Invalid` for a namespace without a name,
    /// `NotSupported`, `ReadOnly`.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: SetXattr) -> Result<()> {
        self.writable()?;
        check_name(name)?;
        if AclKind::of_attribute(name).is_some() {
            return Err(Error::NotSupported);
        }
        if XATTR_VALUE_BYTES_MAX < value.len() {
            return Err(Error::AttributeTooLarge);
        }
        self.change_xattr(ino, name, |change, exists, xattrs| {
            match (mode, exists) {
                (SetXattr::Create | SetXattr::CreateAndReplace, true) => return Err(Error::Exists),
                (SetXattr::Replace | SetXattr::CreateAndReplace, false) => return Err(Error::NoAttribute),
                _ => {}
            }
            change.batch.put(XATTR, xattr_key(ino, name), value);
            if exists { Ok(()) } else { xattrs.add(name) }
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Invalid`, `NotSupported`, `ReadOnly`.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        check_name(name)?;
        self.change_xattr(ino, name, |change, exists, xattrs| {
            if !exists {
                return Err(Error::NoAttribute);
            }
            change.batch.delete(XATTR, xattr_key(ino, name));
            xattrs.remove(name);
            Ok(())
        })
    }

    fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        plan: impl FnOnce(&mut Change, bool, &mut XattrSummary) -> Result<()>,
    ) -> Result<()> {
        let inode = self.inode(ino)?;

        let mut state = inode.lock();

        let exists = self.commit.get(XATTR, &xattr_key(ino, name))?.is_some();
        let mut xattrs = self.xattrs(&inode, &mut state)?;
        let mut row = state.row.clone();
        row.ctime = self.clock.now();
        let mut change = Change::default();
        plan(&mut change, exists, &mut xattrs)?;
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        state.xattrs = Some(xattrs);
        Ok(())
    }

    /// What there is to know of an inode's attributes; read once.
    pub(super) fn xattrs(&self, inode: &Inode, state: &mut State) -> Result<XattrSummary> {
        if let Some(known) = state.xattrs {
            return Ok(known);
        }
        let mut xattrs = XattrSummary::default();
        self.each_xattr(inode.ino, |name| {
            // More than fit now may have been set before there was a limit.
            let _is_full = xattrs.add(name);
        })?;
        state.xattrs = Some(xattrs);
        Ok(xattrs)
    }

    fn each_xattr(&self, ino: Ino, mut visit: impl FnMut(&[u8])) -> Result<()> {
        self.commit.view()?.scan(XATTR, &ino_key(ino), Some(&ino_key_end(ino)), &mut |key, _| {
            visit(key.get(8..).unwrap_or_default());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(())
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if XATTR_NAME_BYTES_MAX < name.len() {
        return Err(Error::BufferTooSmall);
    }
    if NAMESPACES.contains(&name) {
        return Err(Error::Invalid);
    }
    if NAMESPACES.iter().any(|space| name.starts_with(space)) || AclKind::of_attribute(name).is_some() {
        return Ok(());
    }
    Err(Error::NotSupported)
}
