//! What a transaction is: operations on a tree of thought, and the one net change per final name that they come to.
//! Nothing here touches the disk.

use crate::disk::{Disk, FRESH, Inode, ROOT};
use std::collections::BTreeMap;

pub(crate) type Path = Vec<u8>;

/// Parses `a/x`; names are one byte long.
pub(crate) fn path(text: &str) -> Path {
    text.bytes().filter(|&byte| byte != b'/').collect()
}

/// What stands at a path; `inode` for what was there before the first transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) is_dir: bool,
    pub(crate) content: u8,
    pub(crate) mode: u8,
    pub(crate) inode: Option<Inode>,
}

pub(crate) type Shapes = BTreeMap<Path, Shape>;

struct Thing {
    shape: Shape,
    names: BTreeMap<u8, usize>,
}

/// The tree as a transaction's operations leave it, one after the other.
pub(crate) struct Thought(Vec<Thing>);

impl Thought {
    pub(crate) fn of(disk: &Disk) -> Self {
        let mut thought = Self(Vec::new());
        thought.read(disk, ROOT);
        thought
    }

    fn read(&mut self, disk: &Disk, inode: Inode) -> usize {
        let node = disk.node(inode);
        let index = self.add(node.is_dir, node.content, node.mode);
        self.0[index].shape.inode = Some(inode);
        for (name, child) in disk.names.children(inode) {
            let child = self.read(disk, child);
            self.0[index].names.insert(name, child);
        }
        index
    }

    fn add(&mut self, is_dir: bool, content: u8, mode: u8) -> usize {
        self.0.push(Thing { shape: Shape { is_dir, content, mode, inode: None }, names: BTreeMap::new() });
        self.0.len() - 1
    }

    fn find(&self, path: &[u8]) -> Option<usize> {
        path.iter().try_fold(0, |index, name| self.0[index].names.get(name).copied())
    }

    /// Carries out a script such as `mkdir d; mv a d/a; write d/a/f 7; mode d 3; rm b`, as the transaction of this
    /// number, so that the same script writes other contents the next time. None if it cannot be done.
    pub(crate) fn run(&mut self, script: &str, number: u8) -> Option<()> {
        for line in script.split(';') {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = path(words[1]);
            let value = || words[2].parse::<u8>().expect("a script's numbers are numbers");
            let (&name, above) = at.split_last()?;
            let dir = self.find(above).filter(|&dir| self.0[dir].shape.is_dir)?;
            let old = self.0[dir].names.get(&name).copied();
            match words[0] {
                "mkdir" => {
                    old.is_none().then_some(())?;
                    let new = self.add(true, 0, FRESH + 1);
                    self.0[dir].names.insert(name, new);
                }
                "write" => {
                    let is_file = |old: usize| !self.0[old].shape.is_dir;
                    old.is_none_or(is_file).then_some(())?;
                    let mode = old.map_or(FRESH + 1, |old| self.0[old].shape.mode);
                    let new = self.add(false, value() + 40 * number, mode);
                    self.0[dir].names.insert(name, new);
                }
                "mode" => self.0[old?].shape.mode = value(),
                "rm" => {
                    self.0[dir].names.remove(&name)?;
                }
                "mv" => {
                    let to = path(words[2]);
                    let (&new_name, above) = to.split_last()?;
                    let new_dir = self.find(above).filter(|&dir| self.0[dir].shape.is_dir)?;
                    let is_free = !self.0[new_dir].names.contains_key(&new_name);
                    (is_free && !to.starts_with(&at)).then_some(())?;
                    let moved = self.0[dir].names.remove(&name)?;
                    self.0[new_dir].names.insert(new_name, moved);
                }
                other => unreachable!("no operation {other}"),
            }
        }
        Some(())
    }

    pub(crate) fn shapes(&self) -> Shapes {
        let mut shapes = Shapes::new();
        self.collect(0, &mut Path::new(), &mut shapes);
        shapes
    }

    fn collect(&self, index: usize, at: &mut Path, shapes: &mut Shapes) {
        for (&name, &child) in &self.0[index].names {
            at.push(name);
            shapes.insert(at.clone(), self.0[child].shape);
            self.collect(child, at, shapes);
            at.pop();
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    File {
        content: u8,
    },
    MakeDir,
    Absent,
    /// Nothing shall stand here: the directory that did is moved elsewhere.
    Vacated,
    Moved {
        inode: Inode,
        from: Path,
    },
    Mode,
}

/// What stood at a name when the transaction was logged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Original {
    pub(crate) inode: Inode,
    pub(crate) is_dir: bool,
    pub(crate) content: u8,
    /// It gives way by being moved elsewhere.
    pub(crate) is_moved: bool,
    /// Everything that goes along with it, below it: the content, or none for a directory.
    pub(crate) beneath: Vec<(Path, Option<u8>)>,
}

/// The net change of one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Change {
    pub(crate) path: Path,
    /// Where this name was in the tree before: its directory may have been moved.
    pub(crate) path_before: Path,
    pub(crate) what: What,
    pub(crate) original: Option<Original>,
    /// The mode before, or of what is just created, and the mode after.
    pub(crate) mode: Option<(u8, u8)>,
}

impl Change {
    /// What has to give way to this change and goes to its slot.
    pub(crate) fn replaced(&self) -> Option<&Original> {
        self.original.as_ref().filter(|original| !original.is_moved && self.what != What::Mode)
    }

    pub(crate) fn names(&self) -> Vec<&Path> {
        match &self.what {
            What::Moved { from, .. } => vec![&self.path, from],
            _ => vec![&self.path],
        }
    }

    fn is_barrier(&self) -> bool {
        let takes_dir = self.replaced().is_some_and(|original| original.is_dir);
        let changes_kind = self.what == What::MakeDir && self.replaced().is_some();
        matches!(self.what, What::Moved { .. } | What::Vacated) || takes_dir || changes_kind
    }
}

/// The net changes of one transaction, parents first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan(pub(crate) Vec<Change>);

impl Plan {
    pub(crate) fn new(disk: &Disk, script: &str, at: u8) -> Option<Self> {
        let before = Thought::of(disk).shapes();
        let mut thought = Thought::of(disk);
        thought.run(script, at)?;
        let places =
            before.iter().map(|(path, shape)| (shape.inode.expect("it was read from the disk"), path));
        let mut differ = Differ {
            before: &before,
            places: places.collect(),
            after: thought.shapes().values().filter_map(|shape| shape.inode).collect(),
            changes: Vec::new(),
        };
        differ.compare(&thought, 0, &Path::new(), Some(&Path::new()));
        Some(Self(differ.changes))
    }

    pub(crate) fn moves(&self) -> impl Iterator<Item = (usize, Inode, &Path)> {
        self.0.iter().enumerate().filter_map(|(index, change)| match &change.what {
            What::Moved { inode, from } => Some((index, *inode, from)),
            _ => None,
        })
    }

    pub(crate) fn barrier_names(&self) -> Vec<&Path> {
        self.0.iter().filter(|change| change.is_barrier()).flat_map(Change::names).collect()
    }

    pub(crate) fn names(&self) -> Vec<&Path> {
        self.0.iter().flat_map(Change::names).collect()
    }
}

struct Differ<'a> {
    before: &'a Shapes,
    places: BTreeMap<Inode, &'a Path>,
    after: Vec<Inode>,
    changes: Vec<Change>,
}

impl Differ<'_> {
    /// Compares what one directory holds, by name, with what the same directory held before.
    fn compare(&mut self, thought: &Thought, index: usize, at: &Path, at_before: Option<&Path>) {
        let below = |dir: &Path, name: u8| [dir.as_slice(), &[name]].concat();
        let old_names =
            self.before.keys().filter(|path| Some(&path[..path.len() - 1]) == at_before.map(|p| &p[..]));
        let mut names: Vec<u8> = old_names.map(|path| *path.last().expect("a name")).collect();
        names.extend(thought.0[index].names.keys());
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (path, path_before) = (below(at, name), below(at_before.unwrap_or(at), name));
            let old = at_before.and_then(|_| self.before.get(&path_before)).copied();
            let new = thought.0[index].names.get(&name).map(|&child| (child, thought.0[child].shape));
            let original = old.map(|old| self.original(old, &path_before));
            let mut mode = None;
            let what = match new {
                None if original.as_ref().is_some_and(|original| original.is_moved) => What::Vacated,
                None => What::Absent,
                Some((_, shape)) => {
                    let place = shape.inode.map(|inode| self.places[&inode]);
                    let mode_before = place.map_or(FRESH, |place| self.before[place].mode);
                    mode = (mode_before != shape.mode).then_some((mode_before, shape.mode));
                    match shape.inode {
                        inode if inode.is_some() && inode == old.and_then(|old| old.inode) => What::Mode,
                        Some(inode) if shape.is_dir => {
                            What::Moved { inode, from: place.expect("it was there").clone() }
                        }
                        None if shape.is_dir => What::MakeDir,
                        _ => {
                            mode = Some((FRESH, shape.mode));
                            What::File { content: shape.content }
                        }
                    }
                }
            };
            if what != What::Mode || mode.is_some() {
                self.changes.push(Change { path: path.clone(), path_before, what, original, mode });
            }
            if let Some((child, shape)) = new {
                let before = shape.inode.map(|inode| self.places[&inode].clone());
                self.compare(thought, child, &path, before.as_ref());
            }
        }
    }

    fn original(&self, old: Shape, at: &Path) -> Original {
        let stays = |inode: Inode| self.after.contains(&inode);
        let inode = old.inode.expect("it was read from the disk");
        // A moved directory below takes its own subtree elsewhere.
        let moved_out = |path: &Path| {
            (at.len() + 1..=path.len()).any(|length| {
                let shape = self.before[&path[..length]];
                shape.is_dir && shape.inode.is_some_and(stays)
            })
        };
        let below = self.before.iter().filter(|(path, _)| path.len() > at.len() && path.starts_with(at));
        let below = below.filter(|(path, _)| !moved_out(path));
        let beneath =
            below.map(|(path, shape)| (path[at.len()..].to_vec(), (!shape.is_dir).then_some(shape.content)));
        let is_moved = old.is_dir && stays(inode);
        let beneath = if is_moved { Vec::new() } else { beneath.collect() };
        Original { inode, is_dir: old.is_dir, content: old.content, is_moved, beneath }
    }
}
