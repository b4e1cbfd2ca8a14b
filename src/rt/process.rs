//! What another process may, as `/proc` shows it: supplementary groups and capabilities, which the kernel does not send
//! with a request.

/// Keep suid and sgid bits that a change would clear.
pub const CAP_FSETID: u32 = 4;

/// See `trusted.` attributes, among much else.
pub const CAP_SYS_ADMIN: u32 = 21;

/// The rights of a thread. One that waits for our answer to a request of its keeps them until then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    groups: Vec<u32>,
    /// A bit for each capability, by its number.
    capabilities: u64,
}

impl Credentials {
    /// The credentials of the thread with this number; None if it cannot be seen, as from another pid namespace.
    #[must_use]
    pub fn of(thread: u32) -> Option<Self> {
        let read = |of: &str, file| std::fs::read_to_string(format!("/proc/{of}/{file}")).ok();
        let thread = thread.to_string();
        let mut found = Self::parse(&read(&thread, "status")?)?;
        // In a user namespace of its own everybody has all capabilities, which mean nothing here. A kernel without such
        // namespaces has no maps either.
        if read(&thread, "uid_map") != read("self", "uid_map") {
            found.capabilities = 0;
        }
        Some(found)
    }

    fn parse(status: &str) -> Option<Self> {
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        let groups = field("Groups")?.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        Some(Self { groups, capabilities })
    }

    /// True if `gid` is a supplementary group.
    #[must_use]
    pub fn has_group(&self, gid: u32) -> bool {
        self.groups.contains(&gid)
    }

    #[must_use]
    pub fn has_capability(&self, number: u32) -> bool {
        self.capabilities >> number & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_read_as_proc_has_them() {
        let status = "Name:\tGroups:\nUid:\t0\t0\t0\t0\nGroups:\t4 24 100 \nCapEff:\t0000000000200010\n";
        let found = Credentials::parse(status).expect("a status");
        assert!(found.has_group(24) && found.has_group(100) && !found.has_group(0));
        assert!(found.has_capability(CAP_FSETID) && found.has_capability(CAP_SYS_ADMIN));
        assert!(!found.has_capability(0) && !found.has_capability(5));
        let none = "Groups:\t\nCapEff:\t0000000000000000\n";
        assert_eq!(Credentials::parse(none), Some(Credentials { groups: Vec::new(), capabilities: 0 }));
        for incomplete in ["", "Groups:\t1\n", "CapEff:\t0\n", "Groups:\tx\nCapEff:\t0\n"] {
            assert_eq!(Credentials::parse(incomplete), None, "{incomplete:?}");
        }
    }

    #[test]
    fn our_own_credentials_can_be_seen_and_those_of_nobody_cannot() {
        assert!(Credentials::of(std::process::id()).is_some());
        assert_eq!(Credentials::of(0), None);
    }
}
