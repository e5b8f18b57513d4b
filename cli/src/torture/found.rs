//! What stands in a tree, read as any program reads it: nothing here knows of atomtree.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::torture::workload::{Node, Nodes};

/// The names in the root itself, without the store.
pub(super) fn top(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != ".atomtree" {
            names.push(name);
        }
    }
    Ok(names)
}

/// A number that a file in the root holds; 0 if there is no file, nothing if it is no number.
pub(super) fn number(root: &Path, name: &str) -> io::Result<Option<u64>> {
    match fs::read_to_string(root.join(name)) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(0)),
        Err(error) => Err(error),
    }
}

/// What stands at `top` and below it.
pub(super) fn nodes(root: &Path, top: &str) -> io::Result<Nodes> {
    let mut nodes = Nodes::new();
    let mut unseen = vec![top.to_owned()];
    while let Some(name) = unseen.pop() {
        let path = root.join(&name);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == top => return Ok(nodes),
            result => result?,
        };
        let mode = metadata.permissions().mode() & 0o777;
        let node = if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                unseen.push(format!("{name}/{}", entry?.file_name().to_string_lossy()));
            }
            Node::Dir { mode }
        } else if metadata.is_symlink() {
            Node::Link(fs::read_link(&path)?.to_string_lossy().into_owned())
        } else if metadata.is_file() {
            Node::File { content: fs::read(&path)?, mode }
        } else {
            Node::Other
        };
        nodes.insert(name, node);
    }
    Ok(nodes)
}
