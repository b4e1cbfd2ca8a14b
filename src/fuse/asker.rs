//! Who is behind a request. The kernel sends user and group; what else matters is looked up when it does. (It could say
//! what to clear on setattr, open and setxattr, but fuser 0.18 does not pass that on.)

use std::cell::OnceCell;

use fuser::Request;

use super::convert::Presentation;
use crate::rt::process::{CAP_FSETID, CAP_SYS_ADMIN, Credentials};
use crate::vfs::{Caller, Rights};

pub(super) struct Asker<'a> {
    request: &'a Request,
    presentation: &'a Presentation,
    credentials: OnceCell<Option<Credentials>>,
}

impl<'a> Asker<'a> {
    pub(super) fn new(request: &'a Request, presentation: &'a Presentation) -> Self {
        Self { request, presentation, credentials: OnceCell::new() }
    }

    /// As the vfs wants to know them; `umask` is that of a request that makes something.
    pub(super) fn caller(&self, umask: u32) -> Caller<'_> {
        Caller { uid: self.request.uid(), gid: self.request.gid(), umask, rights: self }
    }

    /// True if the names of `trusted.` attributes may be shown.
    pub(super) fn sees_trusted(&self) -> bool {
        self.has_capability(CAP_SYS_ADMIN)
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials.get_or_init(|| Credentials::of(self.request.pid())).as_ref()
    }

    /// Of a process that cannot be seen only root is taken to have any.
    fn has_capability(&self, number: u32) -> bool {
        let is_root = self.request.uid() == 0;
        self.credentials().map_or(is_root, |credentials| credentials.has_capability(number))
    }
}

impl Rights for Asker<'_> {
    fn is_in_group(&self, gid: u32) -> bool {
        let shown = self.presentation.gid.unwrap_or(gid);
        let has_group = |credentials: &Credentials| credentials.has_group(shown);
        self.request.gid() == shown || self.credentials().is_some_and(has_group)
    }

    fn keeps_set_id(&self) -> bool {
        self.has_capability(CAP_FSETID)
    }
}
