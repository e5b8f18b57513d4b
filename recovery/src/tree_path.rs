//! A name in the user's tree that can name neither the outside nor the store's own files.
//!
//! Every path passes through here twice: when a caller gives it, and when it is read back from the log. What it holds
//! is canonical: components joined by one slash, none of them empty, `.` or `..`. Whether a component is a symlink
//! only the file system knows; whoever resolves one does so without following.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The store's directory, below the root.
pub const STORE_DIR: &str = ".atomtree";
/// Where a store is built before it is renamed into place.
pub const STORE_DIR_NEW: &str = ".atomtree.new";

/// The longest component, in bytes, as on every Linux file system.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest path below the root, in bytes.
pub const PATH_BYTES_MAX: usize = 64 * 1024;

/// A validated path below the root, in bytes; never empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath(Box<[u8]>);

/// Why a path cannot name anything in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The empty path.
    #[error("the path is empty")]
    Empty,
    /// It starts with a slash.
    #[error("the path is absolute; give it relative to the root")]
    Absolute,
    /// A component is empty: two slashes in a row, or one at the end.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("the path has a `.` or `..` component")]
    DotComponent,
    /// It contains a zero byte.
    #[error("the path contains a zero byte")]
    Nul,
    /// A component is longer than [`NAME_BYTES_MAX`].
    #[error("a component of the path is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    /// It is longer than [`PATH_BYTES_MAX`].
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    PathTooLong,
    /// It leads into the store.
    #[error("the path leads into the store's own directory, {STORE_DIR}")]
    StoreDirectory,
}

impl TreePath {
    /// Checks `bytes` and takes them as a path.
    ///
    /// # Errors
    /// One [`PathError`] for each rule.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        let this = Self::from_bytes_below(bytes)?;
        // Compared without case, because in a directory that folds it `.ATOMTREE` is the store as well.
        let first = bytes.split(|&byte| byte == b'/').next().unwrap_or_default();
        if [STORE_DIR, STORE_DIR_NEW].iter().any(|dir| first.eq_ignore_ascii_case(dir.as_bytes())) {
            return Err(PathError::StoreDirectory);
        }
        Ok(this)
    }

    /// As [`TreePath::from_bytes`], for a path that starts at a directory below the root, where nothing is the
    /// store's.
    ///
    /// # Errors
    /// As there, but for the store's directory.
    pub fn from_bytes_below(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::PathTooLong);
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        for component in bytes.split(|&byte| byte == b'/') {
            match component {
                b"" => return Err(PathError::EmptyComponent),
                b"." | b".." => return Err(PathError::DotComponent),
                long if long.len() > NAME_BYTES_MAX => return Err(PathError::NameTooLong),
                _ => {}
            }
        }
        Ok(Self(bytes.into()))
    }

    /// As [`TreePath::from_bytes`], for a path as the operating system spells it.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, PathError> {
        Self::from_bytes(path.as_ref().as_os_str().as_bytes())
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path for the operating system, relative to the root.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The last component.
    pub fn name(&self) -> &OsStr {
        let start = self.0.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        OsStr::from_bytes(&self.0[start..])
    }

    /// The directory that holds the name; `None` when that is the root.
    pub fn parent(&self) -> Option<Self> {
        let slash = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(Self(self.0[..slash].into()))
    }

    /// The directory that holds the name, as a path relative to the root: empty for the root.
    pub fn parent_path(&self) -> &Path {
        let end = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Path::new(OsStr::from_bytes(&self.0[..end]))
    }

    /// This path followed by one more component.
    ///
    /// # Errors
    /// As for [`TreePath::from_bytes`].
    pub fn join(&self, name: &OsStr) -> Result<Self, PathError> {
        Self::from_bytes(&[&self.0, b"/".as_slice(), name.as_bytes()].concat())
    }

    /// The path of what lies at `rest` below this one; `None` if that is too long to be a path.
    pub fn below(&self, rest: &Self) -> Option<Self> {
        Self::from_bytes(&[&self.0, b"/".as_slice(), &rest.0].concat()).ok()
    }

    /// What is left of this path below `above`; `None` if it does not lie below it.
    pub fn relative_to(&self, above: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(&*above.0)?.strip_prefix(b"/")?;
        Some(Self(rest.into()))
    }

    /// Whether this path is `other`, or lies below it.
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        self.0.split(|&byte| byte == b'/').count()
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().display().fmt(f)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_refuses_its_case_and_nothing_else() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (bytes, error) in [
            (b"".as_slice(), PathError::Empty),
            (b"/etc/passwd", PathError::Absolute),
            (b"a//b", PathError::EmptyComponent),
            (b"a/", PathError::EmptyComponent),
            (b"./a", PathError::DotComponent),
            (b"a/../b", PathError::DotComponent),
            (b"..", PathError::DotComponent),
            (b"a\0b", PathError::Nul),
            (long.as_bytes(), PathError::NameTooLong),
            (b".atomtree", PathError::StoreDirectory),
            (b".Atomtree/wal", PathError::StoreDirectory),
            (b".atomtree.new/x", PathError::StoreDirectory),
        ] {
            assert_eq!(TreePath::from_bytes(bytes), Err(error), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(TreePath::from_bytes(&vec![b'a'; PATH_BYTES_MAX + 1]), Err(PathError::PathTooLong));
        for fine in [b"a".as_slice(), b"a/.atomtree", b"...", b"a b/\xff\n", b"-rf", &[b'x'; NAME_BYTES_MAX]]
        {
            assert_eq!(TreePath::from_bytes(fine).unwrap().as_bytes(), fine);
        }
    }

    #[test]
    fn parent_and_name_divide_at_the_last_slash() {
        let path = TreePath::new("a/b/c").unwrap();
        assert_eq!((path.name(), path.parent_path(), path.depth()), (OsStr::new("c"), Path::new("a/b"), 3));
        assert_eq!(path.parent().unwrap().parent().unwrap(), TreePath::new("a").unwrap());
        let top = TreePath::new("a").unwrap();
        assert_eq!((top.name(), top.parent_path(), top.parent()), (OsStr::new("a"), Path::new(""), None));
        assert_eq!(top.join(OsStr::new("b")).unwrap(), TreePath::new("a/b").unwrap());
    }
}
