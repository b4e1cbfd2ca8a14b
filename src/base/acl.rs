//! POSIX access control lists: the value of the two extended attributes that hold them, the permission bits they stand
//! for, and what a new file inherits. The rules are those of acl(5); the kernel checks access by them, not we.

/// The two lists an inode can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclKind {
    /// Who may use it.
    Access,
    /// Of a directory: what new entries get.
    Default,
}

impl AclKind {
    /// The extended attribute that holds it.
    #[must_use]
    pub fn attribute(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }

    /// The list that the attribute called `name` holds, if it holds one.
    #[must_use]
    pub fn of_attribute(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| kind.attribute() == name)
    }
}

/// Longest value in bytes: the kernel reads lists into one page of 4 KiB. Larger ones, which a kernel with larger pages
/// lets through, could not be used everywhere.
pub const ACL_BYTES_MAX: usize = 4096;

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Tags of entries, in the order in which a list has them.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The id in entries that have none, and no user's or group's id.
const NO_ID: u32 = u32::MAX;

/// The bits of one entry, as in one digit of a mode: read 4, write 2, execute 1.
type Bits = u32;

const ALL: Bits = 0o7;

/// A valid list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    owner: Bits,
    users: Vec<(u32, Bits)>,
    /// Of the file's group.
    group: Bits,
    groups: Vec<(u32, Bits)>,
    /// Limits `users`, `group` and `groups`. Always there if a user or group is named.
    mask: Option<Bits>,
    other: Bits,
}

/// Why a value is no list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclError {
    Malformed,
    /// Written by rules that are not known here.
    UnknownVersion,
    TooLarge,
}

impl Acl {
    /// The list in the value of an attribute; None if it has no entries, which stands for no list at all.
    ///
    /// # Errors
    /// If the value is no valid list.
    pub fn decode(value: &[u8]) -> Result<Option<Self>, AclError> {
        if value.is_empty() {
            return Ok(None);
        }
        if ACL_BYTES_MAX < value.len() {
            return Err(AclError::TooLarge);
        }
        let (version, entries) = value.split_first_chunk::<HEADER_BYTES>().ok_or(AclError::Malformed)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(AclError::UnknownVersion);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(AclError::Malformed);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        Self::from_entries(entries.iter().map(Entry::decode)).map(Some)
    }

    /// The list that `entries` make in the order acl(5) asks for: owner, users, group, groups, mask, other.
    fn from_entries(entries: impl Iterator<Item = Entry>) -> Result<Self, AclError> {
        let mut entries = entries.peekable();
        let mut one = |tag| entries.next_if(|entry| entry.tag == tag && entry.bits <= ALL);
        let owner = one(USER_OBJ).ok_or(AclError::Malformed)?.bits;
        let users = std::iter::from_fn(|| one(USER)).map(Entry::named).collect::<Result<_, _>>()?;
        let group = one(GROUP_OBJ).ok_or(AclError::Malformed)?.bits;
        let groups = std::iter::from_fn(|| one(GROUP)).map(Entry::named).collect::<Result<_, _>>()?;
        let mask = one(MASK).map(|entry| entry.bits);
        let other = one(OTHER).ok_or(AclError::Malformed)?.bits;
        let acl = Self { owner, users, group, groups, mask, other };
        let lacks_mask = mask.is_none() && !(acl.users.is_empty() && acl.groups.is_empty());
        if entries.next().is_some() || lacks_mask {
            return Err(AclError::Malformed);
        }
        Ok(acl)
    }

    /// The value of the attribute.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        let mut add = |tag: u16, bits: Bits, id: u32| {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&u16::try_from(bits).expect("three bits").to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        };
        add(USER_OBJ, self.owner, NO_ID);
        self.users.iter().for_each(|(id, bits)| add(USER, *bits, *id));
        add(GROUP_OBJ, self.group, NO_ID);
        self.groups.iter().for_each(|(id, bits)| add(GROUP, *bits, *id));
        self.mask.iter().for_each(|bits| add(MASK, *bits, NO_ID));
        add(OTHER, self.other, NO_ID);
        value
    }

    /// The nine permission bits it stands for. Those of the group are the mask where there is one.
    #[must_use]
    pub fn permissions(&self) -> u32 {
        self.owner << 6 | self.mask.unwrap_or(self.group) << 3 | self.other
    }

    /// True if it says no more than its permission bits do, so that these can take its place.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.mask.is_none()
    }

    /// The list after the permission bits became those of `mode`: the group's digit goes to the mask where there is one,
    /// so that what named users and groups may is limited and not forgotten.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.owner = mode >> 6 & ALL;
        *self.mask.as_mut().unwrap_or(&mut self.group) = mode >> 3 & ALL;
        self.other = mode & ALL;
        self
    }

    /// The access list of something made with `mode` below a directory with this default list: no more than both allow.
    #[must_use]
    pub fn inherited(&self, mode: u32) -> Self {
        self.clone().with_mode(self.permissions() & mode)
    }
}

/// One entry as the attribute spells it.
#[derive(Clone, Copy)]
struct Entry {
    tag: u16,
    bits: Bits,
    id: u32,
}

impl Entry {
    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let [tag0, tag1, bits0, bits1, id @ ..] = *bytes;
        Self {
            tag: u16::from_le_bytes([tag0, tag1]),
            bits: u32::from(u16::from_le_bytes([bits0, bits1])),
            id: u32::from_le_bytes(id),
        }
    }

    /// Id and bits of an entry for a user or group.
    fn named(self) -> Result<(u32, Bits), AclError> {
        if self.id == NO_ID { Err(AclError::Malformed) } else { Ok((self.id, self.bits)) }
    }
}

#[cfg(test)]
mod tests;
