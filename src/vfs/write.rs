//! write(2): into the overlay, against memory and disk that are reserved before the answer (rule R12).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::error::{Error, Result};
use super::inode::{Inode, State};
use super::{Pending, Vfs};
use crate::base::ids::Fh;
use crate::base::limits::{FILE_BYTES_MAX, MIB};
use crate::base::range::ByteRange;
use crate::content::overlay::Overlay;
use crate::store;
use crate::store::schema::inode::ContentForm;

/// Hot bytes of one file that are worth staging at once: several blocks, and a fraction of a pack.
const STAGE_BYTES: u64 = 8 * MIB;

/// How long a write waits for uploads to free local disk before it answers ENOSPC. Each time some is freed the wait
/// begins anew: as long as uploads go on the volume is not full.
const SPILL_WAIT: Duration = Duration::from_secs(5);

/// Outcome of a write.
pub enum Written {
    /// Bytes written.
    Now(u32),
    /// Memory or disk for them must be freed first.
    Later(Pending<u32>),
}

impl Vfs {
    /// Writes `data` at `offset`, all of it. What it takes from an executable has gone before ([`Self::kill_privileges`]).
    ///
    /// # Errors
    /// `BadHandle`, `FileTooLarge`, `NoSpace`, `ReadOnly`; of the tier if the handle is O_SYNC.
    pub fn write(self: &Arc<Self>, fh: Fh, offset: u64, data: &[u8]) -> Result<Written> {
        self.writable()?;
        let handle = self.handles.get(fh)?;
        let len = u32::try_from(data.len()).map_err(|_| Error::Invalid)?;
        if FILE_BYTES_MAX < offset.saturating_add(u64::from(len)) {
            return Err(Error::FileTooLarge);
        }
        if self.try_write(&handle.inode, offset, data)? {
            if !handle.flags.sync {
                return Ok(Written::Now(len));
            }
            let (vfs, handle) = (Arc::clone(self), Arc::clone(&handle));
            return Ok(Written::Later(Box::pin(async move {
                vfs.sync_inode(&handle.inode).await?;
                Ok(len)
            })));
        }
        let (vfs, data) = (Arc::clone(self), Bytes::copy_from_slice(data));
        Ok(Written::Later(Box::pin(async move {
            vfs.write_when_possible(&handle.inode, offset, &data).await?;
            if handle.flags.sync {
                vfs.sync_inode(&handle.inode).await?;
            }
            Ok(len)
        })))
    }

    /// Writes as soon as memory and disk have room.
    ///
    /// # Errors
    /// `NoSpace` once nothing is freed any more.
    pub(super) async fn write_when_possible(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: u64,
        data: &Bytes,
    ) -> Result<()> {
        loop {
            self.writable()?;
            let (hot_released, spill_released) = (self.hot_budget.released(), self.spill.released());
            self.hot.wake();
            match self.try_write(inode, offset, data) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    // Staging always ends: its bytes have room on the disk, or they turn into an error here.
                    let clock_says = self.clock.sleep(SPILL_WAIT);
                    tokio::select! { () = hot_released => {} () = clock_says => {} }
                }
                Err(Error::NoSpace) => {
                    let clock_says = self.clock.sleep(SPILL_WAIT);
                    tokio::select! { () = spill_released => {} () = clock_says => return Err(Error::NoSpace) }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes if there is room in memory; false if not.
    fn try_write(self: &Arc<Self>, inode: &Arc<Inode>, offset: u64, data: &[u8]) -> Result<bool> {
        let len = data.len() as u64;
        if !self.hot_budget.try_take(len) {
            return Ok(false);
        }
        let written = self.write_reserved(inode, offset, data);
        if written.is_err() {
            self.hot_budget.release(len);
        }
        written.map(|()| true)
    }

    pub(super) fn write_reserved(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        let reservation = self.spill.reserve(data.len() as u64)?;
        let mut state = inode.lock();
        self.lift_inline(inode, &mut state)?;
        let when = (self.clock.now(), self.clock.monotonic());
        let mut failed = None;
        let overlay = self.overlay(&mut state);
        let before = overlay.hot_bytes() + data.len() as u64;
        let State { row, overlay, .. } = &mut *state;
        let overlay = overlay.as_mut().expect("made just now");
        let mut uncovered = |range: ByteRange| {
            let holes = || self.hole_bytes(&self.commit.view()?, inode.ino, row, range);
            holes().unwrap_or_else(|error: store::Error| {
                failed = Some(error);
                0
            })
        };
        overlay.write(offset, data, when, &mut uncovered);
        // What it replaced was hot too and is counted once only.
        self.hot_budget.release(before - overlay.hot_bytes());
        self.count_uncommitted(&mut state);
        if let Some(error) = failed {
            tracing::warn!(ino = inode.ino.0, %error, "count allocated bytes");
        }
        match &mut state.spill {
            Some(held) => held.merge(reservation),
            None => state.spill = Some(reservation),
        }
        self.note_hot(inode, &state);
        let worth_staging = STAGE_BYTES <= state.overlay.as_ref().map_or(0, |overlay| overlay.hot_bytes());
        if worth_staging && !state.staging {
            state.staging = true;
            drop(state);
            let (vfs, inode) = (Arc::clone(self), Arc::clone(inode));
            self.spawner.spawn(
                "stage run",
                Box::pin(async move {
                    vfs.stage_and_report(&inode, super::stage::Tail::Leave).await;
                    inode.lock().staging = false;
                }),
            );
        }
        Ok(())
    }

    /// The inode's overlay, made if there is none.
    pub(super) fn overlay<'a>(&self, state: &'a mut State) -> &'a mut Overlay {
        let (size, allocated) = (state.row.size, state.row.allocated);
        state.overlay.get_or_insert_with(|| Box::new(Overlay::new(size, allocated, 1)))
    }

    /// Content that lives in the metadata moves to the overlay before the first change: it is committed again inline,
    /// or as a block, with what is written now.
    pub(super) fn lift_inline(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State) -> Result<()> {
        if state.row.form != ContentForm::Inline || state.overlay.is_some() {
            return Ok(());
        }
        let bytes = self.inline_bytes(inode.ino)?;
        self.hot_budget.take(bytes.len() as u64);
        let when = (state.row.mtime, self.clock.monotonic());
        self.overlay(state).write(0, &bytes, when, &mut |_| 0);
        self.note_hot(inode, state);
        Ok(())
    }
}
