//! The rules of acl(5), each tried on every combination of bits it speaks of.

use proptest::prelude::*;

use super::*;

type Raw = (u16, u16, u32);

fn spell(entries: &[Raw]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&bits.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn decode(entries: &[Raw]) -> Result<Option<Acl>, AclError> {
    Acl::decode(&spell(entries))
}

fn minimal(mode: u32) -> Acl {
    Acl {
        owner: mode >> 6 & 7,
        users: Vec::new(),
        group: mode >> 3 & 7,
        groups: Vec::new(),
        mask: None,
        other: mode & 7,
    }
}

/// A list with a named user and group, whose group's own entry says `group`.
fn extended(mode: u32, group: Bits) -> Acl {
    Acl { users: vec![(1, 7)], group, groups: vec![(2, 5)], mask: Some(mode >> 3 & 7), ..minimal(mode) }
}

#[test]
fn values_are_spelled_as_the_kernel_spells_them() {
    // u::rwx,u:100:r-x,g::r--,g:200:-wx,m::rwx,o::--x, as setfacl writes it on ext4.
    let value = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 5, 0, 100, 0, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[8, 0, 3, 0, 200, 0, 0, 0],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 1, 0, 255, 255, 255, 255],
    ]
    .concat();
    let acl =
        Acl { owner: 7, users: vec![(100, 5)], group: 4, groups: vec![(200, 3)], mask: Some(7), other: 1 };
    assert_eq!(Acl::decode(&value), Ok(Some(acl.clone())));
    assert_eq!(acl.encode(), value);
}

#[test]
fn no_entries_are_no_list() {
    assert_eq!(Acl::decode(&[]), Ok(None));
    assert_eq!(decode(&[]), Ok(None));
}

#[test]
fn lists_must_have_their_entries_in_order_and_the_three_of_the_mode() {
    let (owner, group, mask, other) =
        ((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 4, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID));
    let (user, named_group) = ((USER, 4, 1), (GROUP, 4, 2));
    for valid in [
        &[owner, group, other][..],
        &[owner, group, mask, other],
        &[owner, user, group, mask, other],
        &[owner, group, named_group, mask, other],
        &[owner, user, (USER, 1, 9), group, named_group, (GROUP, 2, 9), mask, other],
        // The kernel does not look for two entries of one id either; the first counts.
        &[owner, user, user, group, mask, other],
    ] {
        let acl = decode(valid).expect("valid").expect("not empty");
        assert_eq!(acl.encode(), spell(valid));
    }
    for invalid in [
        &[owner][..],
        &[owner, group],
        &[group, other],
        &[owner, other],
        &[owner, other, group],
        &[group, owner, other],
        &[owner, owner, group, other],
        &[owner, group, group, other],
        &[owner, group, other, other],
        &[owner, group, mask, mask, other],
        &[owner, group, other, mask],
        &[mask, owner, group, other],
        // Named ones need a mask.
        &[owner, user, group, other],
        &[owner, group, named_group, other],
        // Named ones stand with their kind.
        &[user, owner, group, mask, other],
        &[owner, group, user, mask, other],
        &[owner, named_group, group, mask, other],
        &[owner, group, mask, named_group, other],
        &[owner, group, other, named_group],
    ] {
        assert_eq!(decode(invalid), Err(AclError::Malformed), "{invalid:?}");
    }
}

#[test]
fn bits_ids_tags_and_lengths_out_of_range_are_refused() {
    let list = |change: &dyn Fn(&mut Vec<Raw>)| {
        let mut entries =
            vec![(USER_OBJ, 7, NO_ID), (USER, 7, 1), (GROUP_OBJ, 7, NO_ID), (GROUP, 7, 1), (MASK, 7, NO_ID)];
        entries.push((OTHER, 7, NO_ID));
        change(&mut entries);
        decode(&entries)
    };
    assert!(list(&|_| ()).is_ok());
    for at in 0..6 {
        for bits in [8, 0x100, u16::MAX] {
            assert_eq!(list(&|entries| entries[at].1 = bits), Err(AclError::Malformed), "{at}: {bits}");
        }
        for tag in [0, 3, 0x40, 0x100 | entry_tag(at)] {
            assert_eq!(list(&|entries| entries[at].0 = tag), Err(AclError::Malformed), "{at}: {tag}");
        }
    }
    for named in [1, 3] {
        assert_eq!(list(&|entries| entries[named].2 = NO_ID), Err(AclError::Malformed), "{named}");
    }
    // Ids of the others mean nothing.
    assert!(list(&|entries| entries[0].2 = 5).is_ok());

    let value = minimal(0o640).encode();
    for len in 1..value.len() {
        let expected = if len == HEADER_BYTES { Ok(None) } else { Err(AclError::Malformed) };
        let found = Acl::decode(&value[..len]);
        // Cut between two entries it still lacks one.
        assert_eq!(found, expected, "{len} bytes");
    }
    for version in [0, 1, 3, 2 << 24] {
        let mut value = value.clone();
        value[..HEADER_BYTES].copy_from_slice(&u32::to_le_bytes(version));
        assert_eq!(Acl::decode(&value), Err(AclError::UnknownVersion), "{version}");
    }
}

fn entry_tag(at: usize) -> u16 {
    [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER][at]
}

#[test]
fn as_many_entries_are_taken_as_fit_the_page_of_the_kernel() {
    let with_users = |count: u32| Acl { users: (0..count).map(|id| (id, 4)).collect(), ..extended(0o644, 4) };
    let largest = with_users(506);
    assert_eq!(largest.encode().len(), 4092);
    assert_eq!(Acl::decode(&largest.encode()), Ok(Some(largest)));
    assert_eq!(Acl::decode(&with_users(507).encode()), Err(AclError::TooLarge));
}

#[test]
fn the_group_of_the_mode_is_the_mask_where_there_is_one() {
    for mode in 0..=0o777 {
        assert_eq!(minimal(mode).permissions(), mode);
        assert!(minimal(mode).is_minimal());
        for group in 0..=7 {
            assert_eq!(extended(mode, group).permissions(), mode);
        }
    }
    assert!(!extended(0o644, 4).is_minimal());
    assert!(!Acl { mask: Some(7), ..minimal(0o777) }.is_minimal(), "a mask alone is more than a mode");
}

#[test]
fn chmod_changes_owner_other_and_the_mask_and_keeps_what_is_named() {
    for (before, mode) in
        (0..=0o777).step_by(37).flat_map(|before| (0..=0o7777).map(move |mode| (before, mode)))
    {
        assert_eq!(minimal(before).with_mode(mode), minimal(mode & 0o777));
        let changed = extended(before, 5).with_mode(mode);
        assert_eq!(changed, extended(mode & 0o777, 5), "the group's own entry stays");
        assert_eq!(changed.permissions(), mode & 0o777);
    }
}

#[test]
fn what_is_made_gets_no_more_than_the_default_list_and_its_mode_allow() {
    for (list, mode) in (0..=0o777).step_by(29).flat_map(|list| (0..=0o777).map(move |mode| (list, mode))) {
        assert_eq!(minimal(list).inherited(mode), minimal(list & mode));
        let made = extended(list, 6).inherited(mode);
        assert_eq!(made, extended(list & mode, 6), "only the mask is cut, not the group's own entry");
    }
}

proptest! {
    #[test]
    fn arbitrary_values_never_panic_and_valid_ones_read_back(
        value in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 4, 7, 8, 16, 32, 255]), 0..60),
    ) {
        for value in [value.clone(), [&[2, 0, 0, 0][..], &value].concat()] {
            if let Ok(Some(acl)) = Acl::decode(&value) {
                prop_assert_eq!(Acl::decode(&acl.encode()), Ok(Some(acl)));
            }
        }
    }
}
