//! What all kinds of replies have in common: each can carry an error instead.

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use tracing::error;

use super::errno::errno;
use crate::vfs::Error;

/// A reply that can be an error.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Answers with `error`. Errors that no program can act on are logged here, where they end.
pub(super) fn refuse(reply: impl Refuse, what: What, error: &Error) {
    if let Error::Io(source) = error {
        error!(operation = what.operation, ino = what.ino, %source, "answer EIO");
    }
    reply.refuse(errno(error));
}

/// Which request an answer belongs to, for the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct What {
    pub(super) operation: &'static str,
    pub(super) ino: u64,
}

/// Answers with an attribute, or a list of names. With size 0 the caller asks how large a buffer it needs.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    let len = u32::try_from(value.len()).expect("values and lists of names are far smaller");
    if size == 0 {
        reply.size(len);
    } else if size < len {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
