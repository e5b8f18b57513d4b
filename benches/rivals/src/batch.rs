//! The files of one commit, with contents that nobody has written before.
//!
//! Contents are random: a database that compresses, or that skips what it holds already, would otherwise be measured at
//! something else than the rest.

use std::ops::Range;

use atomtree_tests::history::Random;

/// The files of one commit. Their contents lie one behind the other, as BARE writes them.
pub struct Batch {
    dir: String,
    replaces: bool,
    all: Vec<u8>,
    files: Vec<(String, Range<usize>)>,
}

/// One file of a batch.
#[derive(Clone, Copy)]
pub struct NewFile<'a> {
    /// From the root: `dir/name`.
    pub path: &'a str,
    /// Its last component.
    pub name: &'a str,
    /// What it shall hold.
    pub content: &'a [u8],
}

impl Batch {
    /// `count` files of `bytes` bytes each in `dir`, whose names begin with `prefix`. `replaces` says that they exist.
    pub fn new(
        random: &mut Random,
        dir: &str,
        prefix: &str,
        count: usize,
        bytes: usize,
        replaces: bool,
    ) -> Self {
        let files = (0..count)
            .map(|file| (format!("{dir}/{prefix}{file}"), file * bytes..(file + 1) * bytes))
            .collect();
        Self { dir: dir.to_owned(), replaces, all: random_bytes(random, count * bytes), files }
    }

    /// One file with this content.
    pub fn of(dir: &str, name: &str, content: Vec<u8>, replaces: bool) -> Self {
        let files = vec![(format!("{dir}/{name}"), 0..content.len())];
        Self { dir: dir.to_owned(), replaces, all: content, files }
    }

    /// Where they lie.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Whether files of these names exist.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// All contents in one.
    pub fn all(&self) -> &[u8] {
        &self.all
    }

    /// The files, in order.
    pub fn files(&self) -> impl Iterator<Item = NewFile<'_>> {
        self.files.iter().map(|(path, range)| NewFile {
            path,
            name: &path[self.dir.len() + 1..],
            content: &self.all[range.clone()],
        })
    }
}

/// Bytes that don't compress, fast enough to make 64 MiB of them between two samples.
pub fn random_bytes(random: &mut Random, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&random.next().to_le_bytes()[..part.len()]);
    }
    bytes
}
