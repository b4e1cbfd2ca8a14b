//! What the kernel is told unasked.

use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

/// The way to tell it; there is none before the session has begun, and then the kernel knows nothing either.
#[derive(Default)]
pub(super) struct Notices(OnceLock<Notifier>);

impl Notices {
    /// From now on the kernel can be told.
    pub(super) fn connect(&self, notifier: Notifier) {
        self.0.set(notifier).expect("an adapter serves one session");
    }

    /// Makes the kernel ask for the attributes of `target` again.
    pub(super) fn forget_attributes(&self, target: INodeNo) {
        let Some(notifier) = self.0.get() else { return };
        // A negative offset spares the cached pages.
        if let Err(error) = notifier.inval_inode(target, -1, 0) {
            tracing::warn!(ino = target.0, %error, "invalidate attributes");
        }
    }
}
