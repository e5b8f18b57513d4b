//! The least that a durable change can cost, for benchmarks to stand beside.
//!
//! BARE is one `pwrite` of the bytes and one `fdatasync`, into a file whose blocks are all written: no names, no
//! atomicity of several files. LIMIT is BARE, and for each file a temporary file created, written and renamed (or
//! exchanged with what it replaces), unsynced: what any design costs that leaves ordinary files behind. With checks it also
//! looks at what it replaces, twice, and at what the exchange took out: what atomtree's protocol asks of the system.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use atomtree_vfs::os::Os;
use atomtree_vfs::{self as vfs, Access, Dir, Metadata, Vfs};

/// Originals up to this size are kept in a log.
pub const ORIGINAL_BYTES_MAX: u64 = 4096;

/// BARE: a file whose blocks are all written.
pub struct Bare {
    file: File,
}

impl Bare {
    /// Makes the file, of `bytes` bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path, bytes: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let zeros = vec![0; bytes.min(1 << 20)];
        let mut offset = 0;
        while offset < bytes {
            let length = zeros.len().min(bytes - offset);
            file.write_all_at(&zeros[..length], offset as u64)?;
            offset += length;
        }
        file.sync_all()?;
        Ok(Self { file })
    }

    /// One write at the beginning and one sync. The bytes must not be more than the file was made for.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, 0)
    }

    /// As [`Bare::write`], at an offset, for logs that go on.
    ///
    /// # Errors
    /// The system's.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.file.sync_data()
    }
}

/// What LIMIT does beside BARE: temporary files, and their way to their names.
pub struct Limit {
    root: Arc<dyn Dir>,
    temporary: Arc<dyn Dir>,
    /// Makes the temporary names, which threads must not share.
    next: AtomicU64,
    checks: bool,
}

impl Limit {
    /// Files get their names below `root`, which exists and holds no `temporary` yet.
    ///
    /// # Errors
    /// The system's.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = Os.open_root(root)?;
        root.create_dir(OsStr::new("temporary"), 0o777)?;
        let temporary = root.open_dir(Path::new("temporary"))?;
        Ok(Self { temporary, root, next: AtomicU64::new(0), checks: false })
    }

    /// Whether it also looks at what it replaces: reads it, with its metadata, before it makes the file; compares the
    /// metadata before the exchange, and those of what it took out after it.
    #[must_use]
    pub fn with_checks(self, checks: bool) -> Self {
        Self { checks, ..self }
    }

    /// Makes a directory for [`Limit::put`].
    ///
    /// # Errors
    /// The system's.
    pub fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.root.create_dir(OsStr::new(dir), 0o777)
    }

    /// Writes each content beside its name and puts it there, with no sync. What is replaced stays until
    /// [`Limit::clear`]. Threads may do so at once, under different names.
    ///
    /// # Errors
    /// The system's.
    pub fn put<'a>(
        &self,
        dir: &str,
        replaced: bool,
        files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> io::Result<()> {
        let target = self.root.open_dir(Path::new(dir))?;
        let files = files.into_iter().map(|(name, content)| (OsStr::new(name), content));
        if self.checks {
            // What is to be put in place together is written before anything is.
            let staged: Vec<_> = files
                .map(|(name, content)| {
                    let original = look_at(&*target, name)?;
                    let (slot, file) = self.stage(content)?;
                    file.metadata()?;
                    Ok((name, original, slot))
                })
                .collect::<io::Result<_>>()?;
            return staged.iter().try_for_each(|(name, original, slot)| {
                self.put_checked(&*target, name, original.as_ref(), slot)
            });
        }
        for (name, content) in files {
            let (slot, _) = self.stage(content)?;
            let exchanged = replaced && self.temporary.exchange(&slot, &*target, name).is_ok();
            if !exchanged {
                self.temporary.rename(&slot, &*target, name)?;
            }
        }
        Ok(())
    }

    fn stage(&self, content: &[u8]) -> io::Result<(OsString, Arc<dyn vfs::File>)> {
        let slot = OsString::from(self.next.fetch_add(1, Relaxed).to_string());
        let file = self.temporary.create_file(&slot, 0o666)?;
        file.write_at(&[IoSlice::new(content)], 0)?;
        Ok((slot, file))
    }

    /// Puts a file in place if the original, or nothing, still stands there, and looks at what it took out.
    fn put_checked(
        &self,
        target: &dyn Dir,
        name: &OsStr,
        original: Option<&Metadata>,
        slot: &OsStr,
    ) -> io::Result<()> {
        let Some(original) = original else { return self.temporary.rename(slot, target, name) };
        let is_original = |found: Metadata| {
            let is_it = (original.inode, original.size, original.modified)
                == (found.inode, found.size, found.modified);
            if is_it { Ok(()) } else { Err(io::Error::other("another program has edited it")) }
        };
        is_original(target.metadata(name)?)?;
        self.temporary.exchange(slot, target, name)?;
        is_original(self.temporary.metadata(slot)?)
    }

    /// Removes the originals that were exchanged, as a checkpoint does.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self) -> io::Result<()> {
        for entry in self.temporary.list()? {
            self.temporary.remove_file(&entry.name)?;
        }
        Ok(())
    }
}

/// What a transaction has to know of a name that it writes.
fn look_at(dir: &dyn Dir, name: &OsStr) -> io::Result<Option<Metadata>> {
    let file = match dir.open_file(name, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let found = file.metadata()?;
    if found.size <= ORIGINAL_BYTES_MAX {
        file.read_all(ORIGINAL_BYTES_MAX)?;
    }
    file.xattrs()?;
    Ok(Some(found))
}
