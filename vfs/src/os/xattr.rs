//! Reads all extended attributes of an inode, however it is referred to.
//!
//! Another program may change them meanwhile, so no size is believed and a name that vanishes is skipped. What the
//! process may not read is left out, as the contract says.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use crate::Xattr;

/// More than Linux allows for a value or a list of names (64 KiB), so that its own error is what ends the growing.
const BUFFER_BYTES_MAX: usize = 1 << 18;

/// All attributes, sorted by name. `list` and `get` are the system calls on the inode in question.
pub(super) fn read_all(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<Xattr>> {
    let names = match read_growing(list) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !is_alias(name)) {
        let name = OsStr::from_bytes(name);
        match read_growing(|buffer| get(name, buffer)) {
            Ok(value) => xattrs.push(Xattr { name: OsString::from(name), value }),
            Err(Errno::NODATA | Errno::NOTSUP | Errno::ACCESS | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Whether the attribute is another under a second name: xfs shows root each ACL once more, as it is on disk. Setting
/// or removing both would do the work twice and fail the second time.
fn is_alias(name: &[u8]) -> bool {
    matches!(name, b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT")
}

/// Calls with a larger buffer until the answer fits. Asking for the size first would cost a call and prove nothing.
fn read_growing(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        match read(&mut buffer) {
            Ok(length) => return Ok(buffer[..length].to_vec()),
            Err(Errno::INTR) => {}
            Err(Errno::RANGE) if buffer.len() < BUFFER_BYTES_MAX => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A list that grows between calls, a name that vanishes, one that is not permitted and an alias: what is left
    /// comes out sorted.
    #[test]
    fn reads_what_is_left_of_a_changing_set() {
        let calls = Cell::new(0);
        let list = |buffer: &mut [u8]| {
            calls.set(calls.get() + 1);
            let names = b"user.z\0trusted.SGI_ACL_FILE\0user.gone\0user.secret\0user.a\0";
            if calls.get() < 3 {
                return Err(Errno::RANGE);
            }
            buffer[..names.len()].copy_from_slice(names);
            Ok(names.len())
        };
        let get = |name: &OsStr, buffer: &mut [u8]| match name.as_bytes() {
            b"user.gone" => Err(Errno::NODATA),
            b"user.secret" => Err(Errno::PERM),
            b"user.a" => Ok(0),
            _ => {
                buffer[..2].copy_from_slice(&[0, 255]);
                Ok(2)
            }
        };
        let expected = [
            Xattr { name: "user.a".into(), value: Vec::new() },
            Xattr { name: "user.z".into(), value: vec![0, 255] },
        ];
        assert_eq!(read_all(list, get).unwrap(), expected);
        assert_eq!(calls.get(), 3);
    }

    #[test]
    fn a_file_system_without_attributes_has_none() {
        let get = |_: &OsStr, _: &mut [u8]| unreachable!();
        assert_eq!(read_all(|_| Err(Errno::NOTSUP), get).unwrap(), []);
        assert!(read_all(|_| Err(Errno::IO), get).is_err());
        assert!(read_all(|_| Err(Errno::RANGE), get).is_err());
    }
}
