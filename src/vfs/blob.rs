//! Whole contents by key, beside the tree: each blob is an inode without a name, so that it shares blocks with files and
//! is counted, checked and kept like one.

use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::change::Change;
use super::inode::Inode;
use super::{Error, Tier, Vfs, new_row};
use crate::base::attr::FileKind;
use crate::base::ids::Ino;
use crate::base::range::ByteRange;
use crate::commit::Expect;
use crate::content::manifest::Stored;
use crate::store::blob::{BlobKey, BlobSource, BlobStat, BlobStore};
use crate::store::kv::Snapshot;
use crate::store::schema::{BLOB, ORPHAN, ino_key, parse_ino_key};
use crate::store::{self, Kind, Result};

/// The blobs of a volume.
pub struct VolumeBlobs(pub Arc<Vfs>);

#[async_trait]
impl BlobStore for VolumeBlobs {
    async fn put(&self, key: &BlobKey, source: &mut dyn BlobSource) -> Result<BlobStat> {
        let vfs = &self.0;
        self.check_absent(key)?;
        let inode = vfs.add_detached().map_err(into_store)?;
        let filled = self.fill(&inode, source).await;
        self.settle_put(key, &inode, filled).await
    }

    async fn get(&self, key: &BlobKey, range: Option<ByteRange>) -> Result<Bytes> {
        let inode = self.inode(key)?;
        let range = range.unwrap_or(ByteRange::new(0, u64::MAX));
        self.0.read_inode(&inode, range).await.map_err(into_store)
    }

    async fn stat(&self, key: &BlobKey) -> Result<BlobStat> {
        self.stat_inode(&*self.inode(key)?)
    }

    async fn delete(&self, key: &BlobKey) -> Result<()> {
        let inode = match self.inode(key) {
            Err(error) if error.kind == Kind::NotFound => return Ok(()),
            inode => inode?,
        };
        self.0.remove_blob(key, &inode)?;
        self.0.reap_if_unused(&inode);
        self.make_durable().await
    }

    async fn clone_as(&self, from: &BlobKey, to: &BlobKey) -> Result<()> {
        let vfs = &self.0;
        let source = self.inode(from)?;
        self.check_absent(to)?;
        let target = vfs.add_detached().map_err(into_store)?;
        let size = source.lock().size();
        let mut copied = Ok(());
        let mut at = 0;
        while at < size && copied.is_ok() {
            match vfs.copy_inode((&source, at), (&target, at), size - at).await {
                Ok(0) => copied = Err(Error::Invalid),
                Ok(bytes) => at += bytes,
                Err(error) => copied = Err(error),
            }
        }
        self.settle_put(to, &target, copied.map_err(into_store)).await.map(drop)
    }

    async fn list(
        &self,
        visit: &mut (dyn for<'a> FnMut(&'a BlobKey, BlobStat) -> ControlFlow<()> + Send),
    ) -> Result<()> {
        let mut keys = Vec::new();
        self.0.commit.view()?.scan(BLOB, &[], None, &mut |key, _| {
            keys.extend(std::str::from_utf8(key).ok().and_then(BlobKey::parse));
            Ok(ControlFlow::Continue(()))
        })?;
        for key in keys {
            match self.stat(&key).await {
                // Removed meanwhile.
                Err(error) if error.kind == Kind::NotFound => {}
                stat => {
                    if visit(&key, stat?).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl VolumeBlobs {
    async fn fill(&self, inode: &Arc<Inode>, source: &mut dyn BlobSource) -> Result<()> {
        let mut at = 0;
        while let Some(bytes) = source.next().await? {
            self.0.write_when_possible(inode, at, &bytes).await.map_err(into_store)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Gives a filled inode its key, or drops it.
    async fn settle_put(&self, key: &BlobKey, inode: &Arc<Inode>, filled: Result<()>) -> Result<BlobStat> {
        let vfs = &self.0;
        let kept = match filled {
            Ok(()) => self.name_inode(key, inode).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            inode.lock().row.nlink = 0;
            vfs.reap_if_unused(inode);
            return Err(error);
        }
        self.make_durable().await?;
        self.stat_inode(inode)
    }

    async fn name_inode(&self, key: &BlobKey, inode: &Arc<Inode>) -> Result<()> {
        let vfs = &self.0;
        vfs.stage_all(inode).await.map_err(into_store)?;
        vfs.blocks.seal().await?;
        vfs.publish_acknowledged(inode).await.map_err(into_store)?;
        let mut change = Change::default();
        let absent = Expect::Absent { table: BLOB, key: key.as_str().into() };
        change.batch.expect(absent);
        change.batch.put(BLOB, key.as_str(), ino_key(inode.ino));
        change.batch.delete(ORPHAN, ino_key(inode.ino));
        let _ticket = change.submit(&vfs.commit)?;
        Ok(())
    }

    async fn make_durable(&self) -> Result<()> {
        let commit = &self.0.commit;
        match self.0.options.tier {
            Tier::Local => commit.sync_local(commit.newest()).await,
            Tier::Remote => commit.flush(commit.newest()).await,
        }
    }

    fn check_absent(&self, key: &BlobKey) -> Result<()> {
        match self.0.commit.get(BLOB, key.as_str().as_bytes())? {
            None => Ok(()),
            Some(_) => Err(store::Error::new(Kind::Precondition, format!("put blob {key}: it exists"))),
        }
    }

    fn inode(&self, key: &BlobKey) -> Result<Arc<Inode>> {
        let row = self.0.commit.get(BLOB, key.as_str().as_bytes())?;
        let missing = || store::Error::new(Kind::NotFound, format!("blob {key}: no such key"));
        let malformed = || store::Error::new(Kind::Corrupt, format!("blob {key}: malformed row"));
        let ino: Ino = parse_ino_key(&row.ok_or_else(missing)?).ok_or_else(malformed)?;
        self.0.inode(ino).map_err(into_store)
    }

    fn stat_inode(&self, inode: &Inode) -> Result<BlobStat> {
        let len = inode.lock().size();
        let view = self.0.commit.view()?;
        let parts = self.0.manifests.read(&view, inode.ino, ByteRange::new(0, len))?;
        let blocks = parts.iter().filter(|(_, stored)| matches!(stored, Stored::Block { .. })).count();
        Ok(BlobStat { len, blocks: blocks as u64 })
    }
}

impl Vfs {
    /// An inode that has no name yet: a crash before it gets one leaves an orphan.
    fn add_detached(&self) -> super::Result<Arc<Inode>> {
        self.writable()?;
        let ino = Ino(self.inode_numbers.next(&self.commit)?);
        let row = new_row(FileKind::Regular, 0o600, (0, 0), self.clock.now());
        let mut change = Change::default();
        change.add_inode(ino, &row);
        change.batch.put(ORPHAN, ino_key(ino), Vec::new());
        let _ticket = change.submit(&self.commit)?;
        Ok(self.table.adopt(Inode::new(ino, row)))
    }

    /// Takes a blob's key away; its inode becomes an orphan.
    fn remove_blob(&self, key: &BlobKey, inode: &Inode) -> Result<()> {
        let mut state = inode.lock();
        let mut row = state.row.clone();
        row.nlink = 0;
        let mut change = Change::default();
        change.batch.delete(BLOB, key.as_str());
        change.batch.put(ORPHAN, ino_key(inode.ino), Vec::new());
        change.put_inode(inode.ino, &state.row, &row);
        let _ticket = change.submit(&self.commit)?;
        state.row = row;
        Ok(())
    }
}

/// What a failed file operation is to a caller of the port.
fn into_store(error: Error) -> store::Error {
    match error {
        Error::Io(error) => error,
        Error::NoSpace => store::Error::new(Kind::Full, "blob: no space left"),
        Error::ReadOnly => store::Error::new(Kind::Denied, "blob: the volume is read-only"),
        Error::Stale | Error::NotFound => store::Error::new(Kind::NotFound, "blob: removed meanwhile"),
        other => store::Error::new(Kind::Internal, format!("blob: {other}")),
    }
}
