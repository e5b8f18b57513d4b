//! The JSON front door: a line as `atomtree batch` reads it. What it answers is held against a second reading of the
//! document, by an interpreter of a few lines on a map of names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use atomtree::vfs::sim::{Node, NodeBody, Sim};
use atomtree::{Checkpoints, Options, Store};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::SEGMENT_BYTES;

/// A line is refused with a reason and nothing changed, or does what it says; nothing beside the tree changes.
pub fn document(bytes: &[u8]) {
    static VICTIM: LazyLock<Sim> = LazyLock::new(victim);
    let value: Option<Value> = serde_json::from_slice(bytes).ok();
    if let Err((kind, message)) = atomtree_cli::check_document(bytes) {
        assert_eq!((kind.code(), message.is_empty()), ("invalid_input", false));
        return;
    }
    let value = value.expect("a document is JSON");
    let ops = value["ops"].as_array().expect("a document has operations");
    // Contents of files come from outside of the simulation.
    if ops.iter().any(|op| op.get("file").is_some()) {
        return;
    }
    let sim = VICTIM.kill();
    let (outside, before) = (sim.tree("/outside"), user_tree(&sim));
    let store = open(&sim);
    let (answer, status) = atomtree_cli::answer_document(&store, bytes);
    store.close().expect("nothing fails");
    assert_eq!(sim.tree("/outside"), outside);
    let answer: Value = serde_json::from_str(&answer).expect("answers are JSON");
    if let Some(id) = value.get("id") {
        assert_eq!(answer["id"], *id);
    }
    if answer["ok"] == Value::Bool(false) {
        assert!(status != 0 && answer["message"].as_str().is_some_and(|message| !message.is_empty()));
        assert_eq!(user_tree(&sim), before, "refused: {answer}");
        return;
    }
    assert_eq!((&answer["ok"], status), (&Value::Bool(true), 0));
    let expected = ops.iter().try_fold(before, carried_out);
    if let Some(expected) = expected {
        assert_eq!(user_tree(&sim), expected, "{answer}");
    }
}

fn open(sim: &Sim) -> Store {
    let options = Options::new().segment_bytes(SEGMENT_BYTES).log_bytes_max(1 << 20).ballast_bytes(4096);
    let options = options.vfs(Arc::new(sim.clone())).checkpoints(Checkpoints::Manual);
    options.open("/root").expect("the store is whole")
}

fn victim() -> Sim {
    let sim = Sim::new(6);
    sim.write_file("/outside/canary", b"untouched");
    sim.write_file("/root/a", b"first");
    sim.write_file("/root/dir/b", b"second");
    sim.create_dir("/root/empty");
    sim.create_symlink("/root/link", "a");
    sim.create_symlink("/root/out", "/outside");
    open(&sim).close().expect("nothing fails");
    sim.kill()
}

type Tree = BTreeMap<PathBuf, Node>;

fn user_tree(sim: &Sim) -> Tree {
    sim.tree("/root").into_iter().filter(|(path, _)| !path.starts_with(".atomtree")).collect()
}

/// The tree after an operation that was carried out; `None` where links make it more than a map can tell.
fn carried_out(mut tree: Tree, op: &Value) -> Option<Tree> {
    let path = |name: &str| path_of(op.get(name)?);
    let content = || match (op.get("text"), op.get("base64")) {
        (Some(text), _) => Some(text.as_str()?.as_bytes().to_vec()),
        (_, Some(base64)) => STANDARD.decode(base64.as_str()?).ok(),
        _ => None,
    };
    let mode = op
        .get("mode")
        .and_then(Value::as_str)
        .map(|mode| u32::from_str_radix(mode, 8).expect("octal digits"));
    if op["op"] == "rename" {
        let (from, to) = (path("from")?, path("to")?);
        if !is_plain(&tree, &from) || !is_plain(&tree, &to) {
            return None;
        }
        if from != to {
            make_parents(&mut tree, &to);
            let below: Vec<PathBuf> = tree.keys().filter(|path| path.starts_with(&from)).cloned().collect();
            for one in below {
                let node = tree.remove(&one).expect("it was listed");
                let rest = one.strip_prefix(&from).expect("it starts with it").to_owned();
                let to = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                tree.insert(to, node);
            }
        }
        return Some(tree);
    }
    let path = path("path")?;
    if !is_plain(&tree, &path) {
        return None;
    }
    let old = || match tree.get(&path) {
        Some(Node { body: NodeBody::File(bytes), .. }) => bytes.clone(),
        _ => Vec::new(),
    };
    match op["op"].as_str()? {
        "write" => put(&mut tree, &path, NodeBody::File(content()?), mode.or(Some(0o644)), mode.is_some()),
        "append" => {
            let bytes = [old(), content()?].concat();
            put(&mut tree, &path, NodeBody::File(bytes), mode.or(Some(0o644)), mode.is_some());
        }
        "patch" | "patch_in_place" => {
            let (mut bytes, new) = (old(), content()?);
            let at = usize::try_from(op["offset"].as_u64()?).ok()?;
            let end = at.checked_add(new.len())?;
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(&new);
            put(&mut tree, &path, NodeBody::File(bytes), None, false);
        }
        "remove" | "rmdir" => tree.retain(|one, _| !one.starts_with(&path)),
        "mkdir" => {
            if !tree.contains_key(&path) {
                put(&mut tree, &path, NodeBody::Dir, mode.or(Some(0o755)), mode.is_some());
            }
        }
        "symlink" => {
            let target = path_of(op.get("target")?)?;
            put(&mut tree, &path, NodeBody::Symlink(target.into_os_string()), Some(0o777), false);
        }
        "chmod" => tree.get_mut(&path)?.mode = mode?,
        "expect" => assert_eq!(op.get("absent").is_some(), !tree.contains_key(&path), "{op}"),
        other => panic!("{other} was carried out"),
    }
    Some(tree)
}

fn path_of(value: &Value) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    match value {
        Value::String(text) => Some(text.into()),
        Value::Object(object) => {
            let bytes = STANDARD.decode(object.get("base64")?.as_str()?).ok()?;
            Some(std::ffi::OsString::from_vec(bytes).into())
        }
        _ => None,
    }
}

/// Whether no symlink stands on the way, nor at the end.
fn is_plain(tree: &Tree, path: &std::path::Path) -> bool {
    path.ancestors().all(|one| !matches!(tree.get(one), Some(Node { body: NodeBody::Symlink(_), .. })))
}

fn make_parents(tree: &mut Tree, path: &std::path::Path) {
    for dir in path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
        tree.entry(dir.to_owned()).or_insert_with(|| node(NodeBody::Dir, 0o755));
    }
}

fn node(body: NodeBody, mode: u32) -> Node {
    Node { body, mode, uid: 1000, gid: 1000, xattrs: Vec::new() }
}

/// Puts something at a name. What stands there keeps its mode, unless another is asked for.
fn put(tree: &mut Tree, path: &std::path::Path, body: NodeBody, mode: Option<u32>, is_asked: bool) {
    make_parents(tree, path);
    if let Some(node) = tree.get_mut(path) {
        node.body = body;
        if is_asked {
            node.mode = mode.expect("it was asked for");
        }
    } else {
        let mode = mode.expect("only what stands there is patched");
        tree.insert(path.to_owned(), node(body, mode));
    }
}
