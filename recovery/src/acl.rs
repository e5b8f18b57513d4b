//! What a directory's default ACL makes of a new file: the kernel's own rule, for files that are created elsewhere and
//! renamed in.
//!
//! Format and rule: `acl(5)`, "OBJECT CREATION AND DEFAULT ACLs", and the extended attribute layout of
//! `linux/posix_acl_xattr.h` (a version word, then tag, permissions and id for each entry, little-endian).

/// The attribute that holds a directory's default ACL.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// The attribute that holds an ACL.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const USER_OBJECT: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJECT: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The mode and, where the mode alone does not say it all, the access ACL of something created with `mode` in a
/// directory with this default ACL. `None` if the attribute is not an ACL of the known version.
pub fn inherited(default_acl: &[u8], mode: u32) -> Option<(u32, Option<Vec<u8>>)> {
    let (version, entries) = default_acl.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let mut acl = default_acl.to_vec();
    let tag_at = |acl: &[u8], at: usize| u16::from_le_bytes([acl[at], acl[at + 1]]);
    let places: Vec<usize> = (4..acl.len()).step_by(ENTRY_BYTES).collect();
    let has_mask = places.iter().any(|&at| tag_at(&acl, at) == MASK);
    let mut result = mode & !0o777;
    let mut says_more = false;
    for at in places {
        // The class whose bits of the mode this entry is limited by, and in turn determines.
        let shift = match tag_at(&acl, at) {
            USER_OBJECT => 6,
            MASK => 3,
            GROUP_OBJECT if !has_mask => 3,
            OTHER => 0,
            GROUP_OBJECT => continue,
            USER | GROUP => {
                says_more = true;
                continue;
            }
            _ => return None,
        };
        says_more |= shift == 3 && has_mask;
        let granted = (u32::from(acl[at + 2]) & (mode >> shift)) & 0o7;
        acl[at + 2] = granted as u8;
        result |= granted << shift;
    }
    Some((result, says_more.then_some(acl)))
}

/// What `chmod` to `mode` makes of an access ACL: the mask, or without one the owning group's entry, takes the group
/// bits. `None` if the attribute is not an ACL of the known version.
pub fn with_mode(access_acl: &[u8], mode: u32) -> Option<Vec<u8>> {
    let (version, entries) = access_acl.split_first_chunk()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let mut acl = access_acl.to_vec();
    let has_mask =
        entries.chunks_exact(ENTRY_BYTES).any(|entry| u16::from_le_bytes([entry[0], entry[1]]) == MASK);
    for entry in acl[4..].chunks_exact_mut(ENTRY_BYTES) {
        let shift = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJECT => 6,
            MASK => 3,
            GROUP_OBJECT if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        entry[2] = (mode >> shift & 0o7) as u8;
    }
    Some(acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u8, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for &(tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend([permissions, 0]);
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn without_named_entries_the_mode_says_it_all() {
        let default = acl(&[(USER_OBJECT, 7, !0), (GROUP_OBJECT, 5, !0), (OTHER, 0, !0)]);
        assert_eq!(inherited(&default, 0o666), Some((0o640, None)));
    }

    #[test]
    fn the_mask_is_limited_by_the_mode_and_named_entries_stay() {
        let default = acl(&[
            (USER_OBJECT, 7, !0),
            (USER, 7, 1000),
            (GROUP_OBJECT, 5, !0),
            (MASK, 7, !0),
            (OTHER, 4, !0),
        ]);
        let expected = acl(&[
            (USER_OBJECT, 6, !0),
            (USER, 7, 1000),
            (GROUP_OBJECT, 5, !0),
            (MASK, 6, !0),
            (OTHER, 4, !0),
        ]);
        assert_eq!(inherited(&default, 0o666), Some((0o664, Some(expected))));
    }

    #[test]
    fn changing_the_mode_changes_the_mask_and_not_the_group() {
        let entries = |mask| {
            acl(&[
                (USER_OBJECT, 6, !0),
                (USER, 7, 1000),
                (GROUP_OBJECT, 5, !0),
                (MASK, mask, !0),
                (OTHER, 0, !0),
            ])
        };
        assert_eq!(with_mode(&entries(7), 0o640), Some(entries(4)));
        let plain = |group| acl(&[(USER_OBJECT, 6, !0), (GROUP_OBJECT, group, !0), (OTHER, 0, !0)]);
        assert_eq!(with_mode(&plain(5), 0o620), Some(plain(2)));
        assert_eq!(with_mode(&[3, 0, 0, 0], 0o620), None);
    }

    #[test]
    fn anything_else_is_not_an_acl() {
        for bytes in [b"".as_slice(), &[2, 0, 0], &[3, 0, 0, 0], &[2, 0, 0, 0, 1], &acl(&[(0x40, 7, 0)])] {
            assert_eq!(inherited(bytes, 0o666), None, "{bytes:?}");
        }
    }
}
