//! What committing children do again and again: each transaction makes a new version of everything in a directory, with
//! every kind of operation, and the tree says which version it is.
//!
//! Every third version is a barrier as well: directories move, go with everything in them, and change places with files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use atomtree::{Error, Transaction};

/// Versions of one directory.
pub struct Versions {
    dir: String,
    large_bytes: usize,
}

/// What shall stand at a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory with this mode.
    Dir(u32),
    /// A file with this mode and content.
    File(u32, Vec<u8>),
    /// A symlink to this target.
    Symlink(String),
}

/// After so many versions the appended file begins anew.
const APPENDED_MAX: u64 = 50;
const FILE: u32 = 0o644;
const DIR: u32 = 0o755;

impl Versions {
    /// Versions of the directory `dir` of a tree. Every seventh has a file of `large_bytes` bytes.
    pub fn new(dir: impl Into<String>, large_bytes: usize) -> Self {
        Self { dir: dir.into(), large_bytes }
    }

    /// Whether the version moves or removes directories, so that it commits alone.
    pub fn is_barrier(version: u64) -> bool {
        version.is_multiple_of(3)
    }

    /// No name is the directory itself.
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        Path::new(&self.dir).join(name).components().collect()
    }

    fn text(version: u64, bytes: usize) -> Vec<u8> {
        let text = format!("{version};").into_bytes();
        text.iter().copied().cycle().take(bytes.max(text.len())).collect()
    }

    fn appended(version: u64) -> Vec<u8> {
        let first = version - version % APPENDED_MAX;
        (first.max(1)..=version).flat_map(|version| format!("{version}\n").into_bytes()).collect()
    }

    fn large(&self, version: u64) -> Vec<u8> {
        Self::text(version, if version.is_multiple_of(7) { self.large_bytes } else { 100 })
    }

    /// Makes version `version` out of the one before it.
    pub fn change(&self, tx: &mut Transaction, version: u64) -> Result<(), Error> {
        let (n, before) = (version, version - 1);
        let at = |name: &str| self.path(name);
        if n == 1 {
            for (name, mode) in [("", DIR), ("deep", DIR), ("deep/er", 0o711), ("new", DIR), ("trees", DIR)] {
                tx.create_dir_with_mode(self.path(name), mode)?;
            }
        }
        tx.write(at("small"), Self::text(n, 10))?;
        tx.set_mode(at("small"), 0o600 | (n % 8) as u32)?;
        tx.write_with_mode(at("deep/er/medium"), Self::text(n, 1000 * (n % 9) as usize), FILE)?;
        tx.write_with_mode(at("large"), self.large(n), FILE)?;
        if n.is_multiple_of(APPENDED_MAX) || n == 1 {
            tx.write_with_mode(at("appended"), Self::appended(n), FILE)?;
        } else {
            tx.append(at("appended"), format!("{n}\n"))?;
        }
        if n % 2 == 1 {
            tx.write_with_mode(at("odd"), Self::text(n, 5), 0o640)?;
        } else {
            tx.remove(at("odd"))?;
        }
        let [moved, carried] = ["moved", "carried"].map(|name| self.path(format!("{name}-{}", n % 2)));
        if n == 1 {
            tx.write_with_mode(&carried, "carried from the first version on", FILE)?;
        } else {
            tx.rename(self.path(format!("moved-{}", before % 2)), &moved)?;
            tx.rename(self.path(format!("carried-{}", before % 2)), &carried)?;
            tx.remove(self.path(format!("new/{before}")))?;
        }
        tx.write_with_mode(&moved, Self::text(n, 50), FILE)?;
        tx.write_with_mode(self.path(format!("new/{n}")), Self::text(n, 20), FILE)?;
        tx.symlink(at("link"), format!("leads/{n}"))?;
        if Self::is_barrier(n) { self.change_directories(tx, n / 3) } else { Ok(()) }
    }

    /// What a barrier does besides; they are counted from 1 on.
    fn change_directories(&self, tx: &mut Transaction, barrier: u64) -> Result<(), Error> {
        let (n, before) = (barrier, barrier - 1);
        let moved = self.path(format!("box-{}", n % 2));
        let link = self.path(format!("pointer-{}", n % 2));
        if n == 1 {
            tx.create_dir_with_mode(&moved, 0o700)?;
            tx.create_dir_with_mode(moved.join("inner"), DIR)?;
            tx.write_with_mode(moved.join("inner/kept"), "put in once", FILE)?;
            tx.symlink(&link, "inner/kept")?;
        } else {
            tx.rename(self.path(format!("box-{}", before % 2)), &moved)?;
            tx.rename(self.path(format!("pointer-{}", before % 2)), &link)?;
            tx.remove_dir_all(self.path(format!("trees/{before}")))?;
        }
        tx.write_with_mode(moved.join("last"), Self::text(n, 30), FILE)?;
        tx.set_mode(&moved, 0o700 | (n % 8) as u32)?;
        tx.set_mode(self.path("deep"), 0o750 | (n % 8) as u32)?;
        for (name, node) in Self::tree_of_its_own(n) {
            let path = self.path(format!("trees/{n}/{name}"));
            match node {
                Node::Dir(mode) => tx.create_dir_with_mode(path, mode)?,
                Node::File(mode, content) => tx.write_with_mode(path, content, mode)?,
                Node::Symlink(target) => tx.symlink(path, target)?,
            }
        }
        // A name that is a file and a directory in turn.
        let turning = self.path("turning");
        if n % 2 == 1 {
            if n > 1 {
                tx.remove_dir_all(&turning)?;
            }
            return tx.write_with_mode(turning, Self::text(n, 10), FILE);
        }
        tx.remove(&turning)?;
        tx.create_dir_with_mode(&turning, DIR)?;
        tx.write_with_mode(turning.join("in"), Self::text(n, 10), FILE)
    }

    /// A directory that is made by one barrier and removed by the next.
    fn tree_of_its_own(n: u64) -> [(&'static str, Node); 6] {
        [
            ("", Node::Dir(DIR)),
            ("a", Node::Dir(0o700)),
            ("a/b", Node::Dir(DIR)),
            ("a/b/file", Node::File(FILE, Self::text(n, 40))),
            ("a/file", Node::File(0o600, Self::text(n, 3000))),
            ("link", Node::Symlink(format!("a/b/{n}"))),
        ]
    }

    /// The whole directory as this version leaves it, itself included; nothing for version 0.
    pub fn tree(&self, version: u64) -> BTreeMap<PathBuf, Node> {
        let n = version;
        let mut tree = BTreeMap::new();
        if n == 0 {
            return tree;
        }
        let barrier = n / 3;
        let mut put = |name: String, node: Node| {
            assert!(tree.insert(PathBuf::from(name), node).is_none(), "each name once");
        };
        let file = |content: Vec<u8>| Node::File(FILE, content);
        let deep = if barrier == 0 { DIR } else { 0o750 | (barrier % 8) as u32 };
        for (name, mode) in [("", DIR), ("deep", deep), ("deep/er", 0o711), ("new", DIR), ("trees", DIR)] {
            put(name.into(), Node::Dir(mode));
        }
        put("small".into(), Node::File(0o600 | (n % 8) as u32, Self::text(n, 10)));
        put("deep/er/medium".into(), file(Self::text(n, 1000 * (n % 9) as usize)));
        put("large".into(), file(self.large(n)));
        put("appended".into(), file(Self::appended(n)));
        if n % 2 == 1 {
            put("odd".into(), Node::File(0o640, Self::text(n, 5)));
        }
        put(format!("moved-{}", n % 2), file(Self::text(n, 50)));
        put(format!("carried-{}", n % 2), file("carried from the first version on".into()));
        put(format!("new/{n}"), file(Self::text(n, 20)));
        put("link".into(), Node::Symlink(format!("leads/{n}")));
        if barrier == 0 {
            return tree;
        }
        let moved = format!("box-{}", barrier % 2);
        put(moved.clone(), Node::Dir(0o700 | (barrier % 8) as u32));
        put(format!("{moved}/inner"), Node::Dir(DIR));
        put(format!("{moved}/inner/kept"), file("put in once".into()));
        put(format!("{moved}/last"), file(Self::text(barrier, 30)));
        put(format!("pointer-{}", barrier % 2), Node::Symlink("inner/kept".into()));
        for (name, node) in Self::tree_of_its_own(barrier) {
            let name = format!("trees/{barrier}/{name}");
            put(name.trim_end_matches('/').into(), node);
        }
        let turning = file(Self::text(barrier, 10));
        if barrier % 2 == 1 {
            put("turning".into(), turning);
        } else {
            put("turning".into(), Node::Dir(DIR));
            put("turning/in".into(), turning);
        }
        tree
    }

    /// Which version stands below `root`; 0 if none does.
    ///
    /// # Panics
    /// If what stands there is no version, naming what differs from the one that it says it is.
    pub fn standing(&self, root: &Path, label: &str) -> u64 {
        let top = root.join(&self.dir);
        let found = look(&top);
        let small = found.get(Path::new("small"));
        let version = small.map_or(0, |node| {
            let Node::File(_, text) = node else { panic!("{label}: {}/small is {node:?}", self.dir) };
            let text = String::from_utf8_lossy(text);
            text.split(';').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{label}: {text:?}"))
        });
        let expected = self.tree(version);
        let names = found.keys().chain(expected.keys());
        let differing: Vec<_> = names.filter(|name| found.get(*name) != expected.get(*name)).collect();
        assert!(
            differing.is_empty(),
            "{label}: {} is not version {version}: {}",
            self.dir,
            differing
                .iter()
                .map(|name| format!(
                    "\n{} is {}, not {}",
                    name.display(),
                    short(found.get(*name)),
                    short(expected.get(*name))
                ))
                .collect::<String>()
        );
        version
    }
}

/// Enough of it to tell which version it is of.
fn short(node: Option<&Node>) -> String {
    format!("{node:?}").chars().take(60).collect()
}

/// What stands at and below `top`; empty if nothing does.
fn look(top: &Path) -> BTreeMap<PathBuf, Node> {
    let mut found = BTreeMap::new();
    let mut unseen = vec![top.to_owned()];
    while let Some(path) = unseen.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            assert!(path == top, "{} was listed and is not there", path.display());
            continue;
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let node = if metadata.is_dir() {
            unseen.extend(fs::read_dir(&path).expect("it is ours").map(|entry| entry.expect("it is").path()));
            Node::Dir(mode)
        } else if metadata.is_symlink() {
            Node::Symlink(fs::read_link(&path).expect("it is a symlink").to_string_lossy().into_owned())
        } else {
            Node::File(mode, fs::read(&path).expect("it is ours"))
        };
        found.insert(path.strip_prefix(top).expect("it lies below").to_owned(), node);
    }
    found
}
