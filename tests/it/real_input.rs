//! Real trees: the configuration of this machine, with its odd modes, owners and attributes, and the sources of a real
//! crate; changed in one transaction, and killed or cut off in the middle of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atomtree::{HardLinks, Store};
use atomtree_tests::signals::{Signal, signal};
use atomtree_tests::volume::{Kind, Volume, or_skip, skip};

const CHILD: &str = "ATOMTREE_REAL_INPUT_CHILD";

/// What `stat` and `getfattr` say of each file, without what replacing it must change: inode, size and times.
fn described(root: &Path) -> BTreeMap<PathBuf, String> {
    let files = files_below(root);
    let paths: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let relative = |path: &str| Path::new(path).strip_prefix(root).unwrap().to_owned();
    let stat = run("stat", &[&["-c", "%a %u %g %h"][..], &paths].concat());
    let mut described: BTreeMap<PathBuf, String> =
        paths.iter().zip(stat.lines()).map(|(path, line)| (relative(path), line.to_owned())).collect();
    // One block for each file that has any, headed by its name.
    let attributes = run("getfattr", &[&["-h", "-d", "-m", "-", "--absolute-names"][..], &paths].concat());
    for block in attributes.split_terminator("\n\n") {
        let (head, lines) = block.split_once('\n').unwrap();
        let path = relative(head.trim_start_matches("# file: "));
        described.get_mut(&path).unwrap().push_str(&format!("\n{lines}"));
    }
    described
}

/// Regular files below `root`, the store's own left out.
fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && entry.file_name() != ".atomtree" {
                dirs.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A copy of `/etc` with attributes that packages rarely set.
fn copy_of_etc(root: &Path) {
    run("cp", &["-a", "/etc", root.to_str().unwrap()]);
    let files = files_below(&root.join("etc"));
    assert!(files.len() > 50, "/etc has only {} files", files.len());
    for (index, path) in files.iter().enumerate() {
        let path_arg = path.to_str().unwrap();
        match index % 7 {
            0 => drop(run("setfattr", &["-n", "user.origin", "-v", "a package", path_arg])),
            1 => drop(run("setfacl", &["-m", "u:1234:r", path_arg])),
            2 => fs::set_permissions(path, fs::Permissions::from_mode(0o4751)).unwrap(),
            3 => drop(std::os::unix::fs::chown(path, Some(1000 + index as u32), Some(2000))),
            _ => {}
        }
    }
}

/// Appends a line to every configuration file, in one transaction.
fn edit_etc(store: &Store, root: &Path) -> usize {
    let mut tx = store.begin().unwrap();
    tx.set_hard_links(HardLinks::Break);
    let files = files_below(&root.join("etc"));
    for path in &files {
        let name = path.strip_prefix(root).unwrap();
        let content = tx.read(name).unwrap();
        tx.write(name, [&content[..], b"# changed together\n"].concat()).unwrap();
    }
    tx.commit().unwrap();
    files.len()
}

/// Goal: P10 on a real tree. Method: `stat` and `getfattr` of every file of a copy of `/etc`, before and after.
#[test]
fn replacing_every_file_of_etc_keeps_what_stat_and_getfattr_show() {
    if !is_root_with_tools() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    copy_of_etc(root);
    let (before, contents) = (described(root), contents_below(root));
    let store = Store::open(root).unwrap();
    let count = edit_etc(&store, root);
    store.close().unwrap();
    assert_eq!(count, before.len());
    let added = b"# changed together\n";
    for (name, after) in described(root) {
        assert_eq!(after, before[&name], "{}", name.display());
        let expected = [&contents[&name][..], added].concat();
        assert_eq!(fs::read(root.join(&name)).unwrap(), expected, "{}", name.display());
    }
}

/// The sources of a real crate, from the registry's cache.
fn copy_of_crate(root: &Path) -> bool {
    let home = std::env::var("CARGO_HOME").map_or_else(
        |_| PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let mut crates: Vec<PathBuf> = Vec::new();
    for registry in fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
        crates
            .extend(fs::read_dir(registry.path()).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    crates.sort();
    // libc is a dependency, so it is there, and it has several hundred files.
    let found = crates.iter().rev().find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc-0.2"))
            && rust_files(path).len() >= 200
    });
    let Some(path) = found else {
        println!("skipped: no crate with 200 source files in {}", home.display());
        return false;
    };
    run("cp", &["-r", path.to_str().unwrap(), root.join("crate").to_str().unwrap()]);
    true
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    files_below(root)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn contents_below(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(root)
        .into_iter()
        .map(|path| (path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

/// What `sed s/pub const/pub(crate) const/g` would do, to every source file, in one transaction.
fn search_and_replace(store: &Store, root: &Path) -> Result<usize, atomtree::Error> {
    let mut tx = store.begin()?;
    tx.set_label("narrow the constants");
    let files = rust_files(root);
    for path in &files {
        let name = path.strip_prefix(root).unwrap();
        let content = replaced(&tx.read(name)?);
        tx.write(name, content)?;
    }
    tx.commit()?;
    Ok(files.len())
}

fn replaced(content: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(content).replace("pub const", "pub(crate) const").into_bytes()
}

#[test]
fn a_search_and_replace_over_a_crate_is_one_transaction() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    if !copy_of_crate(root) {
        return;
    }
    let before = contents_below(root);
    let store = Store::open(root).unwrap();
    let count = search_and_replace(&store, root).unwrap();
    store.close().unwrap();
    assert!(count >= 200, "{count} files");
    for (name, content) in contents_below(root) {
        let is_rust = name.extension().is_some_and(|extension| extension == "rs");
        let expected = if is_rust { replaced(&before[&name]) } else { before[&name].clone() };
        assert!(content == expected, "{}", name.display());
    }
}

/// A real tree, and the transaction that changes it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Etc,
    Crate,
}

impl Input {
    const ALL: [Self; 2] = [Self::Etc, Self::Crate];

    fn name(self) -> &'static str {
        match self {
            Self::Etc => "etc",
            Self::Crate => "crate",
        }
    }

    /// Makes the tree; `false` if it can't be had here.
    fn make(self, root: &Path) -> bool {
        match self {
            Self::Etc if is_root_with_tools() => copy_of_etc(root),
            Self::Etc => return false,
            Self::Crate => return copy_of_crate(root),
        }
        true
    }

    fn edit(self, store: &Store, root: &Path) {
        match self {
            Self::Etc => drop(edit_etc(store, root)),
            Self::Crate => drop(search_and_replace(store, root).unwrap()),
        }
    }

    /// What the transaction makes of a file.
    fn edited(self, name: &Path, content: &[u8]) -> Vec<u8> {
        match self {
            Self::Etc => [content, b"# changed together\n"].concat(),
            Self::Crate if name.extension().is_some_and(|extension| extension == "rs") => replaced(content),
            Self::Crate => content.to_vec(),
        }
    }

    /// Opens the store and checks that every file is old or every one is new, and that nothing else has changed.
    /// Returns which.
    fn check_all_or_nothing(self, root: &Path, before: &Before, label: &str) -> bool {
        let label = format!("{} {label}", self.name());
        let store = Store::open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
        let report = store.recovery().clone();
        assert!(report.quarantined.is_empty() && report.superseded.is_empty(), "{label}: {report:?}");
        store.close().unwrap();
        assert_eq!(described(root), before.described, "{label}");
        let after = contents_below(root);
        let is_old = after == before.contents;
        let is_new =
            after.iter().all(|(name, content)| *content == self.edited(name, &before.contents[name]));
        assert!(is_old || is_new, "{label}: a mixture");
        is_new
    }
}

/// A tree before its transaction.
struct Before {
    described: BTreeMap<PathBuf, String>,
    contents: BTreeMap<PathBuf, Vec<u8>>,
}

impl Before {
    fn of(root: &Path) -> Self {
        Self { described: described(root), contents: contents_below(root) }
    }
}

/// Goal: all or nothing when the process is killed in the middle. Method: the time that the transaction takes is cut in
/// thirteen, and a child is killed after each part.
#[test]
fn a_transaction_over_a_real_tree_that_is_killed_leaves_all_or_nothing() {
    for input in Input::ALL {
        let scratch = tempfile::tempdir().unwrap();
        let original = scratch.path().join("original");
        fs::create_dir(&original).unwrap();
        if !input.make(&original) {
            continue;
        }
        let before = Before::of(&original);
        let mut seen = [0, 0];
        let mut whole = None;
        for part in 0..13_u32 {
            let root = scratch.path().join(format!("tree-{part}"));
            run("cp", &["-a", original.to_str().unwrap(), root.to_str().unwrap()]);
            // Creating the store is not what is to be interrupted.
            Store::open(&root).unwrap().close().unwrap();
            let start = Instant::now();
            let mut child = spawn_child(input, &root);
            match whole {
                None => {
                    assert!(child.wait().unwrap().success(), "the child that is not killed succeeds");
                    whole = Some(start.elapsed());
                }
                Some(whole) => {
                    std::thread::sleep(whole * part / 13);
                    let _ = child.kill();
                    child.wait().unwrap();
                }
            }
            let is_new = input.check_all_or_nothing(&root, &before, &format!("part {part}"));
            seen[usize::from(is_new)] += 1;
        }
        println!("{}: {} with nothing, {} with all", input.name(), seen[0], seen[1]);
        assert!(seen[1] > 0, "none was ever committed");
    }
}

/// Goal: all or nothing when the power goes in the middle, on each file system.
#[test]
fn a_transaction_over_a_real_tree_that_loses_power_leaves_all_or_nothing() {
    for (kind, input) in Kind::ALL.into_iter().flat_map(|kind| Input::ALL.map(|input| (kind, input))) {
        let volume = Volume::create(kind, 512 << 20, false);
        let Some(volume) = or_skip(volume, &format!("power cuts on {}", kind.name())) else { continue };
        let root = volume.path().join("tree");
        fs::create_dir(&root).unwrap();
        if !input.make(&root) {
            continue;
        }
        let before = Before::of(&root);
        Store::open(&root).unwrap().close().unwrap();
        run("sync", &["-f", root.to_str().unwrap()]);
        // The child reads all the files first; what is cut is whatever it does by then. Once it was cut off in the
        // middle of its work, the next one starts from what recovery left.
        for step in 0..4 {
            let mut child = spawn_child(input, &root);
            std::thread::sleep(Duration::from_millis(25 + 30 * step));
            if kind == Kind::Btrfs {
                signal(&child, Signal::STOP);
            }
            volume.cut_power().unwrap();
            let _ = child.kill();
            child.wait().unwrap();
            volume.mount_again().unwrap();
            if input.check_all_or_nothing(&root, &before, &format!("{} step {step}", kind.name())) {
                break;
            }
        }
    }
}

/// Not a test by itself: the process that is killed.
#[test]
fn child() {
    let Ok(root) = std::env::var(CHILD) else { return };
    let (input, root) = root.split_once(':').unwrap();
    let input = Input::ALL.into_iter().find(|known| known.name() == input).unwrap();
    let root = PathBuf::from(root);
    let store = Store::open(&root).unwrap();
    input.edit(&store, &root);
    store.close().unwrap();
}

fn spawn_child(input: Input, root: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "real_input::child"])
        .env(CHILD, format!("{}:{}", input.name(), root.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn is_root_with_tools() -> bool {
    let missing: Vec<_> = ["getfattr", "setfattr", "setfacl"].into_iter().filter(|tool| !has(tool)).collect();
    let is_root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !missing.is_empty() || !is_root {
        skip("a real tree", &format!("it needs root and {missing:?}"));
        return false;
    }
    true
}
