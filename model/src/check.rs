//! What must hold when recovery, or everything, has come to an end; and what another program may have done meanwhile.

use crate::disk::{Disk, Inode, QUARANTINE, ROOT, STAGE};
use crate::plan::{Path, Shape, Shapes, What, path};
use crate::protocol::{Edit, Run, State};

/// The content that the other program creates, and the mode that it sets.
pub(crate) const FOREIGN: u8 = 99;

fn shapes(disk: &Disk, top: Inode) -> Shapes {
    let mut shapes = Shapes::new();
    let mut dirs = vec![(top, Path::new())];
    while let Some((dir, at)) = dirs.pop() {
        for (name, inode) in disk.names.children(dir) {
            let path = [at.as_slice(), &[name]].concat();
            let node = disk.node(inode);
            let shape =
                Shape { is_dir: node.is_dir, content: node.content, mode: node.mode, inode: Some(inode) };
            shapes.insert(path.clone(), shape);
            dirs.push((inode, path));
        }
    }
    shapes
}

/// Whether a difference at this path is the other program's doing.
fn is_excused(state: &State, path: &Path, expected: &Shapes, actual: &Shapes) -> bool {
    let above = || (1..=path.len()).map(|length| path[..length].to_vec());
    let shape_inode = |shapes: &Shapes, at: &Path| shapes.get(at).and_then(|shape| shape.inode);
    let is_foreign = actual.get(path).is_some_and(|shape| !shape.is_dir && shape.content == FOREIGN);
    // Torn by a cut before its program synced it.
    let is_foreign = is_foreign || state.is_edit_lost && path.last() == Some(&b'n');
    match &state.edit {
        Edit::None => false,
        Edit::Created => is_foreign,
        Edit::Away { at, inodes } => above().any(|above| {
            let inode = shape_inode(expected, &above).or(shape_inode(actual, &above));
            // What was to go below it has nowhere to go.
            let stands = shape_inode(actual, &above);
            let target = expected.iter().find(|(_, shape)| shape.inode.is_some() && shape.inode == stands);
            let is_homeless = target.is_some_and(|(path, _)| path.starts_with(at));
            let mut moves =
                state.plans.iter().flat_map(|plan| plan.moves().map(|moved| (moved.1, &plan.0[moved.0])));
            let is_target = moves.any(|(inode, change)| inodes.contains(&inode) && change.path == above);
            above == *at
                || above == b"z"
                || is_homeless
                || is_target
                || inode.is_some_and(|inode| inodes.contains(&inode))
        }),
        Edit::Put { at, dir } => {
            above().any(|above| {
                let (name, dir_path) = above.split_last().expect("paths have names");
                let is_cell = Some(name) == at.last()
                    && (shape_inode(expected, &dir_path.to_vec()) == Some(*dir)
                        || dir_path.is_empty() && *dir == ROOT);
                let holds =
                    actual.keys().any(|path| path.starts_with(&above) && actual[path].content == FOREIGN);
                above == *at
                    || is_cell
                    || holds && actual.get(&above).is_some_and(|shape| shape.content == FOREIGN)
            }) || is_foreign
        }
        Edit::Mode { inode } => {
            let is_it = shape_inode(actual, path) == Some(*inode);
            is_it
                && actual[path].mode == FOREIGN
                && expected.get(path).is_some_and(|shape| shape.is_dir == actual[path].is_dir)
        }
    }
}

fn first_difference(state: &State, expected: &Shapes, actual: &Shapes) -> Option<String> {
    let mut paths: Vec<&Path> = expected.keys().chain(actual.keys()).collect();
    paths.sort();
    let differs = |path: &&&Path| match (expected.get(**path), actual.get(**path)) {
        (Some(expected), Some(actual)) => {
            // A file that is moved is copied; a directory stays the inode that it was.
            let is_same = expected.inode.is_none() || !expected.is_dir || expected.inode == actual.inode;
            let image = |shape: &Shape| (shape.is_dir, shape.content, shape.mode);
            image(expected) != image(actual) || !is_same
        }
        _ => true,
    };
    let found = paths.iter().filter(differs).find(|path| !is_excused(state, path, expected, actual));
    found.map(|path| format!("{}: {:?} instead of {:?}", show(path), actual.get(*path), expected.get(*path)))
}

pub(crate) fn show(path: &[u8]) -> String {
    path.iter().map(|&name| char::from(name).to_string()).collect::<Vec<_>>().join("/")
}

/// What is wrong with a state in which all is done.
pub(crate) fn violation(run: &Run, state: &State) -> Option<String> {
    let disk = &state.disk;
    let tree = shapes(disk, ROOT);
    let quarantine = shapes(disk, QUARANTINE);
    let is_edited = state.edit != Edit::None;
    let first = usize::from(state.acknowledged);
    let has = |content: u8| tree.values().chain(quarantine.values()).any(|shape| shape.content == content);
    let problem = |count: usize| {
        let lost = run.expected[count]
            .values()
            .find(|shape| shape.inode.is_some() && !shape.is_dir && !has(shape.content));
        first_difference(state, &run.expected[count], &tree)
            .map(|difference| format!("not whole, {first} acknowledged: {difference}"))
            .or(lost.map(|lost| format!("content is lost: {}", lost.content)))
    };
    // What nobody had synced may be lost before the first commit.
    let may_differ = first == 0 && !run.start.is_durable(ROOT);
    let mut problems = (first..=state.plans.len()).map(problem);
    if !may_differ && problems.clone().all(|problem| problem.is_some()) {
        return problems.next_back().flatten();
    }
    if !is_edited && !quarantine.is_empty() {
        return Some("quarantine without an edit".to_owned());
    }
    if disk.names.children(STAGE).next().is_some() {
        return Some("something is left in the slots".to_owned());
    }
    let has = |content: u8| tree.values().chain(quarantine.values()).any(|shape| shape.content == content);
    let is_content = matches!(state.edit, Edit::Created | Edit::Put { .. });
    if is_content && !state.is_edit_lost && !has(FOREIGN) {
        return Some("the edit is lost".to_owned());
    }
    if !(is_edited || disk.is_durable(ROOT) && disk.is_durable(QUARANTINE)) {
        return Some("not durable in the end".to_owned());
    }
    if is_content && shapes_durable_in_stage(disk) {
        return Some("the edit is durable only in a slot".to_owned());
    }
    None
}

fn shapes_durable_in_stage(disk: &Disk) -> bool {
    let mut dirs = vec![STAGE];
    while let Some(dir) = dirs.pop() {
        for (_, inode) in disk.durable.children(dir) {
            if disk.node(inode).content == FOREIGN {
                return true;
            }
            dirs.push(inode);
        }
    }
    false
}

/// Whether the edit can still be seen anywhere.
pub(crate) fn edit_is_there(state: &State) -> bool {
    let shapes = [ROOT, STAGE, QUARANTINE].map(|top| shapes(&state.disk, top));
    shapes.iter().any(|shapes| shapes.values().any(|shape| shape.content == FOREIGN))
}

/// Everything that another program may do now, once something was logged.
pub(crate) fn edits(run: &Run, state: &State) -> Vec<(&'static str, State)> {
    let mut edits = Vec::new();
    if !run.edits || state.edit != Edit::None || state.logged().next().is_none() || state.is_complete() {
        return edits;
    }
    let mut dirs: Vec<Inode> = Vec::new();
    let mut inodes: Vec<Inode> = Vec::new();
    let mut paths: Vec<&Path> = Vec::new();
    for change in state.plans.iter().flat_map(|plan| &plan.0) {
        let moved = if let What::Moved { inode, .. } = &change.what { Some(*inode) } else { None };
        let removed =
            change.original.as_ref().filter(|original| original.is_dir).map(|original| original.inode);
        let made = state.disk.resolve(&change.path).filter(|_| change.what == What::MakeDir);
        dirs.extend([moved, removed, made].into_iter().flatten());
        inodes.extend(moved.or(made).or(removed));
        paths.extend(change.names());
    }
    let is_named = |inode: &Inode| state.disk.names.place(*inode).is_some();
    dirs.retain(|dir| is_named(dir) && state.disk.is_dir(*dir));
    inodes.retain(is_named);
    for list in [&mut dirs, &mut inodes] {
        list.sort_unstable();
        list.dedup();
    }
    paths.sort();
    paths.dedup();
    let mut add = |label: &'static str, edit: Edit, change: &dyn Fn(&mut Disk)| {
        let mut next = state.clone();
        change(&mut next.disk);
        next.edit = edit;
        edits.push((label, next));
    };
    let tree = shapes(&state.disk, ROOT);
    for &dir in &dirs {
        // Whoever has the directory open can do so wherever it is.
        add("EDIT: create n in a directory", Edit::Created, &|disk| {
            disk.create((dir, b'n'), false, FOREIGN, 2);
        });
        let place = tree.iter().find(|(_, shape)| shape.inode == Some(dir)).map(|(path, _)| path.clone());
        if let Some(at) = place {
            let below = tree.iter().filter(|(path, _)| path.starts_with(&at));
            let mut inodes: Vec<Inode> = below.filter_map(|(_, shape)| shape.inode).collect();
            // What a cut may bring back into it went with it, too.
            for shapes in &run.expected {
                let top = shapes.iter().find(|(_, shape)| shape.inode == Some(dir)).map_or(&at, |top| top.0);
                let below = shapes.iter().filter(|(path, _)| path.starts_with(top));
                inodes.extend(below.filter_map(|(_, shape)| shape.inode));
            }
            inodes.sort_unstable();
            inodes.dedup();
            let cell = state.disk.cell(&at).expect("it is in the tree");
            let away = path("z");
            add("EDIT: rename a directory to z", Edit::Away { at, inodes }, &|disk| {
                disk.rename(cell, (ROOT, away[0]));
            });
        }
    }
    for at in paths {
        let Some(cell) = state.disk.cell(at).filter(|&cell| state.disk.child(cell).is_none()) else {
            continue;
        };
        let edit = Edit::Put { at: at.clone(), dir: cell.0 };
        add("EDIT: put a file at a name", edit.clone(), &|disk| disk.create(cell, false, FOREIGN, 2));
        add("EDIT: put a directory at a name", edit, &|disk| {
            disk.create(cell, true, 0, 2);
            let dir = disk.child(cell).expect("it was just made");
            disk.create((dir, b'n'), false, FOREIGN, 2);
        });
    }
    for &inode in &inodes {
        add("EDIT: set a mode", Edit::Mode { inode }, &|disk| disk.set_mode(inode, FOREIGN));
    }
    edits
}
