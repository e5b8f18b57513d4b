//! Operations of every kind against a model: any sequence of them has the effect, and the errors, of doing them one by
//! one.
//!
//! The model is a map from path to what stands there; it knows nothing of commits.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use atomtree::{Error, ErrorKind, Kind, RecoveryReport, Transaction};

use crate::basics::{Random, inspect, small, tree};

/// What stands at a name of the model.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(Vec<u8>, u32),
    Dir(u32),
    Link(String),
}

#[derive(Clone)]
struct Model {
    nodes: BTreeMap<String, Node>,
    umask: u32,
}

type Outcome = Result<(), ErrorKind>;

impl Model {
    fn check_parents(&self, path: &str) -> Outcome {
        for (at, _) in path.match_indices('/') {
            match self.nodes.get(&path[..at]) {
                Some(Node::Dir(_)) => {}
                Some(_) => return Err(ErrorKind::NotADirectory),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn at(&self, path: &str) -> Result<Option<&Node>, ErrorKind> {
        self.check_parents(path)?;
        Ok(self.nodes.get(path))
    }

    fn existing(&self, path: &str) -> Result<&Node, ErrorKind> {
        self.at(path)?.ok_or(ErrorKind::NotFound)
    }

    fn is_empty(&self, path: &str) -> bool {
        let below = format!("{path}/");
        !self.nodes.keys().any(|name| name.starts_with(&below))
    }

    fn make_parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Dir(0o777 & !self.umask));
        }
    }

    fn put(&mut self, path: &str, node: Node) {
        self.make_parents(path);
        self.nodes.insert(path.to_owned(), node);
    }

    fn write(&mut self, path: &str, content: Vec<u8>, mode: Option<u32>) -> Outcome {
        let kept = match self.at(path)? {
            Some(Node::Dir(_)) => return Err(ErrorKind::IsADirectory),
            Some(Node::Link(_)) => return Err(ErrorKind::Unsupported),
            Some(Node::File(_, mode)) => *mode,
            None => 0o666 & !self.umask,
        };
        self.put(path, Node::File(content, mode.unwrap_or(kept)));
        Ok(())
    }

    fn content(&self, path: &str) -> Result<&Vec<u8>, ErrorKind> {
        match self.existing(path)? {
            Node::File(content, _) => Ok(content),
            Node::Dir(_) => Err(ErrorKind::IsADirectory),
            Node::Link(_) => Err(ErrorKind::Unsupported),
        }
    }

    fn remove_all(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|name, _| name != path && !name.starts_with(&below));
    }

    fn rename(&mut self, from: &str, to: &str) -> Outcome {
        let moved = self.existing(from)?.clone();
        let target = self.at(to)?.cloned();
        let is_dir = matches!(moved, Node::Dir(_));
        if is_dir && to.starts_with(&format!("{from}/")) {
            return Err(ErrorKind::InvalidInput);
        }
        if matches!((&moved, &target), (Node::File(..), Some(Node::Link(_)))) {
            return Err(ErrorKind::Unsupported);
        }
        if from == to {
            return Ok(());
        }
        match (target, is_dir) {
            (Some(Node::Dir(_)), false) => return Err(ErrorKind::IsADirectory),
            (Some(Node::Dir(_)), true) if !self.is_empty(to) => return Err(ErrorKind::NotEmpty),
            (Some(Node::File(..) | Node::Link(_)), true) => return Err(ErrorKind::NotADirectory),
            _ => {}
        }
        let below = format!("{from}/");
        let moving: Vec<(String, Node)> = (self.nodes.iter())
            .filter(|(name, _)| name.starts_with(&below))
            .map(|(name, node)| (format!("{to}/{}", &name[below.len()..]), node.clone()))
            .collect();
        self.remove_all(from);
        self.put(to, moved);
        self.nodes.extend(moving);
        Ok(())
    }

    fn step(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::Write(path, content, mode) => self.write(path, content.clone(), *mode),
            Operation::Append(path, bytes) => {
                let mut content = match self.content(path) {
                    Err(ErrorKind::NotFound) => Vec::new(),
                    content => content?.clone(),
                };
                content.extend(bytes);
                self.write(path, content, None)
            }
            Operation::Patch(path, offset, bytes) => {
                let mut content = self.content(path)?.clone();
                if *offset > content.len() {
                    return Err(ErrorKind::InvalidInput);
                }
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[*offset..][..bytes.len()].copy_from_slice(bytes);
                self.write(path, content, None)
            }
            Operation::Remove(path) => {
                if matches!(self.existing(path)?, Node::Dir(_)) {
                    return Err(ErrorKind::IsADirectory);
                }
                self.nodes.remove(path);
                Ok(())
            }
            Operation::Rename(from, to) => self.rename(from, to),
            Operation::CreateDir(path, mode) => {
                if self.at(path)?.is_some() {
                    return Err(ErrorKind::Exists);
                }
                if path.rfind('/').is_some_and(|at| !self.nodes.contains_key(&path[..at])) {
                    return Err(ErrorKind::NotFound);
                }
                self.put(path, Node::Dir(mode.unwrap_or(0o777 & !self.umask)));
                Ok(())
            }
            Operation::CreateDirAll(path) => match self.at(path)? {
                Some(Node::Dir(_)) => Ok(()),
                Some(_) => Err(ErrorKind::Exists),
                None => {
                    self.put(path, Node::Dir(0o777 & !self.umask));
                    Ok(())
                }
            },
            Operation::RemoveDir(path, all) => {
                if !matches!(self.existing(path)?, Node::Dir(_)) {
                    return Err(ErrorKind::NotADirectory);
                }
                if !all && !self.is_empty(path) {
                    return Err(ErrorKind::NotEmpty);
                }
                self.remove_all(path);
                Ok(())
            }
            Operation::Symlink(path, target) => {
                if matches!(self.at(path)?, Some(Node::File(..) | Node::Dir(_))) {
                    return Err(ErrorKind::Exists);
                }
                self.put(path, Node::Link(target.clone()));
                Ok(())
            }
            Operation::SetMode(path, mode) => {
                self.existing(path)?;
                match self.nodes.get_mut(path).expect("it is there") {
                    Node::File(_, old) | Node::Dir(old) => *old = *mode,
                    Node::Link(_) => return Err(ErrorKind::Unsupported),
                }
                Ok(())
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Write(String, Vec<u8>, Option<u32>),
    Append(String, Vec<u8>),
    Patch(String, usize, Vec<u8>),
    Remove(String),
    Rename(String, String),
    CreateDir(String, Option<u32>),
    CreateDirAll(String),
    RemoveDir(String, bool),
    Symlink(String, String),
    SetMode(String, u32),
}

impl Operation {
    fn random(random: &mut Random) -> Self {
        let path = |random: &mut Random| {
            let names = ["a", "b", "c"];
            let depth = random.below(3);
            let mut parts: Vec<_> = (0..depth).map(|_| names[random.below(3) as usize]).collect();
            // Links are only ever last, where they are the operations' business.
            parts.push(["a", "b", "c", "link"][random.below(4) as usize]);
            parts.join("/")
        };
        let content = |random: &mut Random| {
            let length = match random.below(20) {
                0 => 4096,
                1 => 20_000,
                2 if random.below(4) == 0 => 1 << 20 | 1,
                _ => random.below(30),
            };
            random.bytes(length as usize)
        };
        let mode = |random: &mut Random| [0o600, 0o644, 0o755, 0o700, 0o4755][random.below(5) as usize];
        match random.below(20) {
            0..4 => {
                let mode = (random.below(4) == 0).then(|| mode(random));
                Self::Write(path(random), content(random), mode)
            }
            4 => Self::Append(path(random), content(random)),
            5 => Self::Patch(path(random), random.below(40) as usize, content(random)),
            6 | 7 => Self::Remove(path(random)),
            8..13 => {
                let (from, to) = (path(random), path(random));
                let to = if from.ends_with("link") { as_link(&to) } else { to };
                Self::Rename(from, to)
            }
            13 => Self::CreateDir(path(random), (random.below(3) == 0).then(|| mode(random) & 0o777)),
            14 => Self::CreateDirAll(path(random).replace("link", "b")),
            15 => Self::RemoveDir(path(random), false),
            16 => Self::RemoveDir(path(random), true),
            17 => Self::Symlink(as_link(&path(random)), format!("to/{}", random.below(3))),
            _ => Self::SetMode(path(random), mode(random)),
        }
    }

    fn run(&self, tx: &mut Transaction) -> Result<(), Error> {
        match self {
            Self::Write(path, content, None) => tx.write(path, content.clone()),
            Self::Write(path, content, Some(mode)) => tx.write_with_mode(path, content.clone(), *mode),
            Self::Append(path, bytes) => tx.append(path, bytes),
            Self::Patch(path, offset, bytes) => tx.patch(path, *offset as u64, bytes),
            Self::Remove(path) => tx.remove(path),
            Self::Rename(from, to) => tx.rename(from, to),
            Self::CreateDir(path, None) => tx.create_dir(path),
            Self::CreateDir(path, Some(mode)) => tx.create_dir_with_mode(path, *mode),
            Self::CreateDirAll(path) => tx.create_dir_all(path),
            Self::RemoveDir(path, false) => tx.remove_dir(path),
            Self::RemoveDir(path, true) => tx.remove_dir_all(path),
            Self::Symlink(path, target) => tx.symlink(path, target),
            Self::SetMode(path, mode) => tx.set_mode(path, *mode),
        }
    }
}

/// The path with a last component that nothing is looked up below.
fn as_link(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((above, _)) => format!("{above}/link"),
        None => "link".into(),
    }
}

fn on_disk(root: &Path) -> BTreeMap<String, Node> {
    let node = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        let mode = metadata.mode() & 0o7777;
        if metadata.is_dir() {
            Node::Dir(mode)
        } else if metadata.is_symlink() {
            Node::Link(fs::read_link(path).unwrap().into_os_string().into_string().unwrap())
        } else {
            Node::File(fs::read(path).unwrap(), mode)
        }
    };
    tree(root).into_keys().map(|path| (path.to_str().unwrap().to_owned(), node(&root.join(&path)))).collect()
}

/// What the transaction says of a name, and of the names in it, is what the model says.
fn ask(tx: &mut Transaction, model: &Model, path: &str) {
    match model.at(path) {
        Err(kind) => assert_eq!(tx.exists(path).map_err(|error| error.kind()), Err(kind), "{path}"),
        Ok(None) => assert!(!tx.exists(path).unwrap(), "{path}"),
        Ok(Some(node)) => {
            let metadata = tx.metadata(path).unwrap();
            match node {
                Node::File(content, mode) => {
                    let found = (metadata.kind, metadata.mode, metadata.bytes);
                    assert_eq!(found, (Kind::File, *mode, content.len() as u64), "{path}");
                    assert_eq!(tx.read(path).unwrap(), *content, "{path}");
                }
                Node::Link(target) => assert_eq!(tx.read_link(path).unwrap(), Path::new(target), "{path}"),
                Node::Dir(mode) => {
                    assert_eq!((metadata.kind, metadata.mode), (Kind::Dir, *mode), "{path}");
                    let below = format!("{path}/");
                    let expected: Vec<String> = (model.nodes.keys())
                        .filter_map(|name| name.strip_prefix(&below))
                        .filter(|rest| !rest.contains('/'))
                        .map(str::to_owned)
                        .collect();
                    let listed = tx.list(path).unwrap();
                    let found: Vec<String> =
                        listed.into_iter().map(|(name, _)| name.into_string().unwrap()).collect();
                    assert_eq!(found, expected, "{path}");
                }
            }
        }
    }
}

/// Goal: any sequence of operations has the effect, and the errors, of doing them one by one. Method: thousands of
/// random ones in transactions of up to twelve, some abandoned, some partly undone, some after reopening, against a
/// map.
#[test]
fn random_operations_agree_with_a_model() {
    let mut random = Random::from_environment();
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let options = || small().log_bytes_max(1 << 20).inline_bytes_max(3000);
    let mut store = options().open(root).unwrap();
    fs::write(root.join("probe"), "").unwrap();
    let umask = 0o666 & !fs::metadata(root.join("probe")).unwrap().permissions().mode();
    fs::remove_file(root.join("probe")).unwrap();
    let mut model = Model { nodes: BTreeMap::new(), umask };
    let rounds = std::env::var("ATOMTREE_ROUNDS").map_or(600, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut tx = store.begin().unwrap();
        let mut next = model.clone();
        let mut log = Vec::new();
        let mut saved = None;
        for _ in 0..=random.below(12) {
            let operation = Operation::random(&mut random);
            let mut expected_state = next.clone();
            let expected = expected_state.step(&operation);
            let found = operation.run(&mut tx).map_err(|error| error.kind());
            log.push(format!("{operation:.0?}").chars().take(70).collect::<String>());
            assert_eq!(found, expected, "round {round}: {log:#?} on {:?}", model.nodes.keys());
            if expected.is_ok() {
                next = expected_state;
            }
            if random.below(4) == 0 {
                let paths: Vec<_> = next.nodes.keys().cloned().collect();
                for path in paths.iter().map(String::as_str).chain(["a", "b/c", "c/link"]) {
                    ask(&mut tx, &next, path);
                }
            }
            match (random.below(8), &saved) {
                (0, _) => {
                    log.push("save".into());
                    saved = Some((tx.savepoint(), next.clone()));
                }
                (1, Some((savepoint, then))) => {
                    log.push("return".into());
                    tx.return_to(savepoint).unwrap();
                    next = then.clone();
                }
                _ => {}
            }
        }
        if random.below(8) == 0 {
            drop(tx);
        } else {
            tx.commit().unwrap_or_else(|error| panic!("round {round}: {error}: {log:#?}"));
            let found = on_disk(root);
            assert!(
                found == next.nodes,
                "round {round}: {log:#?} on {:#?}\nfound {found:#?}\nexpected {:#?}",
                model.nodes,
                next.nodes
            );
            model = next;
        }
        if random.below(40) == 0 {
            store.close().unwrap();
            store = options().open(root).unwrap();
            assert_eq!(*store.recovery(), RecoveryReport::default());
        }
    }
    store.close().unwrap();
    assert_eq!(inspect(root).status().unwrap().quarantined, 0);
    let left: Vec<_> = fs::read_dir(root.join(".atomtree/stage")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
