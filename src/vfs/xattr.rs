//! Extended attributes, one row each.

use std::ops::ControlFlow;

use super::Vfs;
use super::change::Change;
use super::error::{Error, Result};
use crate::base::ids::Ino;
use crate::base::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::store::kv::Snapshot;
use crate::store::schema::{XATTR, ino_key, ino_key_end, xattr_key};

/// What setxattr does about an attribute that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetXattr {
    Either,
    Create,
    Replace,
}

/// Namespaces that are stored. The kernel keeps `trusted.` to root and checks the others.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

impl Vfs {
    /// An attribute's value.
    ///
    /// # Errors
    /// `NoAttribute`; `NotSupported` for a namespace that is not stored, `Invalid` for nothing but a namespace.
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
        self.commit.view()?.scan(XATTR, &ino_key(ino), Some(&ino_key_end(ino)), &mut |key, _| {
            names.extend_from_slice(key.get(8..).unwrap_or_default());
            names.push(0);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(names)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// `Exists` (Create), `NoAttribute` (Replace), `BufferTooSmall` for a name over 255 bytes, `AttributeTooLarge` for a
    /// value over 64 KiB, `NotSupported`, `ReadOnly`.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: SetXattr) -> Result<()> {
        self.writable()?;
        check_name(name)?;
        if XATTR_VALUE_BYTES_MAX < value.len() {
            return Err(Error::AttributeTooLarge);
        }
        self.change_xattr(
            ino,
            |change, exists| {
                match (mode, exists) {
                    (SetXattr::Create, true) => return Err(Error::Exists),
                    (SetXattr::Replace, false) => return Err(Error::NoAttribute),
                    _ => {}
                }
                change.batch.put(XATTR, xattr_key(ino, name), value);
                Ok(())
            },
            name,
        )
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `NotSupported`, `ReadOnly`.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        check_name(name)?;
        self.change_xattr(
            ino,
            |change, exists| {
                if !exists {
                    return Err(Error::NoAttribute);
                }
                change.batch.delete(XATTR, xattr_key(ino, name));
                Ok(())
            },
            name,
        )
    }

    fn change_xattr(
        &self,
        ino: Ino,
        plan: impl FnOnce(&mut Change, bool) -> Result<()>,
        name: &[u8],
    ) -> Result<()> {
        let inode = self.inode(ino)?;

        let mut state = inode.lock();

        let exists = self.commit.get(XATTR, &xattr_key(ino, name))?.is_some();
        let mut row = state.row.clone();
        row.ctime = self.clock.now();
        let mut change = Change::default();
        plan(&mut change, exists)?;
        change.put_inode(ino, &state.row, &row);

        let _ticket = change.submit(&self.commit)?;

        state.row = row;
        Ok(())
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if XATTR_NAME_BYTES_MAX < name.len() {
        return Err(Error::BufferTooSmall);
    }
    match NAMESPACES.iter().find(|space| name.starts_with(space)) {
        None => Err(Error::NotSupported),
        Some(space) if space.len() == name.len() => Err(Error::Invalid),
        Some(_) => Ok(()),
    }
}
