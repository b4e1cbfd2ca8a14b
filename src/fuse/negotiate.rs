//! What is agreed with the kernel when it mounts.

use fuser::{InitFlags, KernelConfig};

/// Requests of readahead and asynchronous I/O that may wait at once. fuser's default of 16 starves one fast reader.
const BACKGROUND_REQUESTS_MAX: u16 = 64;

/// Features that are used where the kernel has them; each works without. Not among them: FUSE_ATOMIC_O_TRUNC. With it the
/// open truncates before the kernel finds out that the file is a running program and refuses with ETXTBSY.
const FEATURES: [InitFlags; 9] = [
    // A default ACL takes the place of the umask, so we apply it.
    InitFlags::FUSE_DONT_MASK,
    // Without it every write(2) asks for security.capability first. We clear suid and sgid as the kernel says.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Nobody else changes files, so size and mtime in replies must not drop cached pages.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    // Handles of open_by_handle_at(2) and NFS stay good when the kernel has forgotten the inode: numbers are never reused.
    InitFlags::FUSE_EXPORT_SUPPORT,
];

/// What came of it, as far as it changes what is answered.
pub(super) struct Negotiated {
    /// The kernel checks access by ACLs.
    pub(super) has_acls: bool,
}

pub(super) fn negotiate(config: &mut KernelConfig) -> Negotiated {
    for feature in FEATURES {
        if config.add_capabilities(feature).is_err() {
            tracing::info!(?feature, "the kernel lacks a feature");
        }
    }
    let _previous = config.set_max_background(BACKGROUND_REQUESTS_MAX).expect("above zero");
    Negotiated { has_acls: config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_ok() }
}
