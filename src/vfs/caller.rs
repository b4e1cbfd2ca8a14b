//! Who asks for a change, as far as the outcome depends on it. The kernel has checked whether they may.

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// Owner and group of what it makes.
    pub uid: u32,
    pub gid: u32,
    /// Bits cleared in the mode of what it makes, unless a default ACL takes their place.
    pub umask: u32,
    /// Asked only where the answer matters, because finding it out costs.
    pub rights: &'a dyn Rights,
}

/// What decides whether suid and sgid bits survive a change.
pub trait Rights {
    /// True if `gid` is among the groups of the caller, supplementary ones included.
    fn is_in_group(&self, gid: u32) -> bool;

    /// True with the capability to keep both bits (CAP_FSETID), which root has.
    fn keeps_set_id(&self) -> bool;
}

impl Caller<'_> {
    /// Root, or the mount itself.
    pub const ROOT: Self = Self { uid: 0, gid: 0, umask: 0, rights: &AllRights };

    /// True if the caller may leave or set the sgid bit on what belongs to `gid`.
    pub(super) fn may_have_sgid_of(&self, gid: u32) -> bool {
        self.rights.is_in_group(gid) || self.rights.keeps_set_id()
    }
}

struct AllRights;

impl Rights for AllRights {
    fn is_in_group(&self, _gid: u32) -> bool {
        true
    }

    fn keeps_set_id(&self) -> bool {
        true
    }
}
