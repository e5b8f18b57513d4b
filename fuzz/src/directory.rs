//! Recovery of a hostile store directory: any names, kinds, links and contents in `.atomtree`, and in the place of it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use atomtree::vfs::sim::{Node, Sim};
use atomtree::vfs::{Access, Dir, Kind, Vfs};
use atomtree::{Checkpoints, Inspection, Options};

use super::{Input, SEGMENT_BYTES};

/// Whatever stands in the store's directory, nothing beside the root changes, looking changes nothing, and a store that
/// opens works.
pub fn directory(bytes: &[u8]) {
    static VICTIMS: LazyLock<[Sim; 3]> =
        LazyLock::new(|| [victim(None), victim(Some(false)), victim(Some(true))]);
    let mut input = Input(bytes);
    let sim = VICTIMS[usize::from(input.byte()) % VICTIMS.len()].kill();
    let outside = outside_of(&sim);
    plant(&sim, Path::new("/root"), &mut input);
    let operations = sim.operations();
    look(Arc::new(sim.clone()), Path::new("/root"));
    assert_eq!(sim.operations(), operations, "looking changes nothing");
    open(&(Arc::new(sim.clone()) as Arc<dyn Vfs>), Path::new("/root"));
    assert_eq!(outside_of(&sim), outside);
}

/// The same on a directory of a real file system, which holds a tree and a store already. The caller compares what stands
/// beside it.
pub fn directory_on(vfs: &Arc<dyn Vfs>, root: &Path, bytes: &[u8]) {
    let mut input = Input(bytes);
    input.byte();
    plant(&**vfs, root, &mut input);
    look(vfs.clone(), root);
    open(vfs, root);
}

fn options(vfs: Arc<dyn Vfs>) -> Options {
    let options = Options::new().segment_bytes(SEGMENT_BYTES).log_bytes_max(1 << 20).ballast_bytes(4096);
    options.vfs(vfs).checkpoints(Checkpoints::Manual).adopt(true)
}

fn look(vfs: Arc<dyn Vfs>, root: &Path) {
    if let Ok(inspection) = Inspection::open(root, &options(vfs)) {
        let _ = (inspection.verify(), inspection.status(), inspection.stats(), inspection.holder());
        for past in inspection.log(10).unwrap_or_default() {
            let _ = inspection.transaction(past.tx);
        }
    }
}

/// Opens the store twice; where it opens, it takes a commit.
fn open(vfs: &Arc<dyn Vfs>, root: &Path) {
    for round in 0..2_u8 {
        let store = match options(vfs.clone()).open(root) {
            Ok(store) => store,
            Err(error) => {
                assert!(!error.to_string().is_empty(), "a refusal says why");
                continue;
            }
        };
        let committed = store.begin().and_then(|mut tx| {
            tx.write("by the fuzzer", [round])?;
            tx.commit()
        });
        if committed.is_ok() {
            let dir = vfs.open_root(root).expect("it was opened just now");
            let file = dir.open_file(OsStr::new("by the fuzzer"), Access::Read).expect("it was committed");
            assert_eq!(file.read_all(10).expect("it is a file"), [round]);
        }
        let _ = store.close();
    }
}

/// A tree beside things that are none of its business: without a store, with one that was not closed, or one that was.
fn victim(closed: Option<bool>) -> Sim {
    let sim = Sim::new(2);
    sim.write_file("/outside/canary", b"untouched");
    sim.write_file("/outside/wal/0000.seg", b"untouched");
    sim.write_file("/canary", b"untouched");
    sim.write_file("/root/a", b"first");
    sim.create_symlink("/root/link", "/outside");
    let Some(closed) = closed else { return sim };
    let store = options(Arc::new(sim.clone())).open("/root").expect("an empty tree");
    fill(&store);
    if closed {
        store.close().expect("nothing fails");
    }
    sim.kill()
}

/// Some commits, half of them settled.
pub fn fill(store: &atomtree::Store) {
    for content in [b"second", b"third!"] {
        let mut tx = store.begin().expect("the store is open");
        tx.write("a", content).expect("it is a file");
        tx.write("dir/new", content).expect("it is a new name");
        tx.commit().expect("nothing is in the way");
        if content == b"second" {
            store.checkpoint().expect("nothing fails");
        }
    }
}

fn outside_of(sim: &Sim) -> BTreeMap<PathBuf, Node> {
    let mut tree = sim.tree("/outside");
    let dir = sim.open_root(Path::new("/")).expect("it is there");
    for entry in dir.list().expect("it can be listed") {
        if entry.name != "root" {
            let path = PathBuf::from(&entry.name);
            let bytes = sim.read_file(Path::new("/").join(&path)).unwrap_or_default();
            let body = atomtree::vfs::sim::NodeBody::File(bytes);
            tree.insert(path, Node { body, mode: 0, uid: 0, gid: 0, xattrs: Vec::new() });
        }
    }
    tree
}

/// The names of a store, below the root, and some that it does not have.
const NAMES: [&str; 28] = [
    ".atomtree",
    ".atomtree.new",
    ".atomtree/store",
    ".atomtree/store.new",
    ".atomtree/lock",
    ".atomtree/members",
    ".atomtree/ballast",
    ".atomtree/.gitignore",
    ".atomtree/wal",
    ".atomtree/wal/0000.seg",
    ".atomtree/wal/0001.seg",
    ".atomtree/wal/0002.seg",
    ".atomtree/wal/9999.seg",
    ".atomtree/stage",
    ".atomtree/stage/0123456789abcdef",
    ".atomtree/stage/0123456789abcdef/lock",
    ".atomtree/stage/0123456789abcdef/0",
    ".atomtree/stage/0123456789abcdef/r1",
    ".atomtree/stage/*/0",
    ".atomtree/stage/*/1",
    ".atomtree/stage/*/lock",
    ".atomtree/history",
    ".atomtree/history/new",
    ".atomtree/history/0000000000000001-0000000000000001.manifest",
    ".atomtree/history/0000000000000002-ffffffffffffffff.manifest",
    ".atomtree/images",
    ".atomtree/quarantine",
    ".atomtree/quarantine/x",
];

/// Where symlinks lead.
const TARGETS: [&str; 10] = [
    "/outside",
    "../../outside",
    "../../outside/canary",
    "../outside/wal",
    ".",
    "..",
    "/",
    "self",
    "store",
    "wal/0000.seg",
];

/// Changes the store's directory as a little program says. What can't be done is left out.
fn plant(vfs: &dyn Vfs, root: &Path, input: &mut Input<'_>) {
    let root = vfs.open_root(root).expect("the tree is there");
    while !input.is_empty() {
        let verb = input.byte();
        let Some((dir, name)) = place(&*root, input) else { continue };
        // An attempt that fails leaves what was there, as good as any.
        let _ = act(&*root, &*dir, &name, verb, input);
    }
}

/// A directory in the store, or beside it, and a name in that.
fn place(root: &dyn Dir, input: &mut Input<'_>) -> Option<(Arc<dyn Dir>, OsString)> {
    let number = input.byte();
    let mut path = PathBuf::from(NAMES[usize::from(number) % NAMES.len()]);
    if path.parent() == Some(Path::new(".atomtree/stage/*")) {
        // The slots of the process that is gone.
        let stage = root.open_dir(Path::new(".atomtree/stage")).ok()?;
        let dir = stage.list().ok()?.into_iter().find(|entry| entry.kind == Kind::Dir)?;
        path = Path::new(".atomtree/stage").join(dir.name).join(path.file_name()?);
    }
    if number > 220 {
        // Any name, in the directory of the known one.
        path.set_file_name(OsStr::from_bytes(input.some_bytes()));
    }
    let dir = root.open_dir(path.parent()?).ok()?;
    Some((dir, path.file_name()?.to_owned()))
}

fn act(root: &dyn Dir, dir: &dyn Dir, name: &OsStr, verb: u8, input: &mut Input<'_>) -> io::Result<()> {
    match verb % 12 {
        0 => remove(dir, name),
        1 => {
            let mode = if input.byte() < 200 { 0o700 } else { 0o755 };
            dir.create_dir(name, mode)
        }
        2 => {
            let target = TARGETS[usize::from(input.byte()) % TARGETS.len()];
            remove(dir, name)?;
            dir.create_symlink(name, OsStr::new(target))
        }
        3 | 4 => {
            let file = dir.create_file(name, 0o600)?;
            file.write_at(&[IoSlice::new(input.some_bytes())], 0)
        }
        5 | 6 => {
            let file = dir.open_file(name, Access::ReadWrite)?;
            let offset = input.number().wrapping_mul(if input.byte() < 128 { 1 } else { 64 });
            file.write_at(&[IoSlice::new(input.some_bytes())], offset % (1 << 17))
        }
        7 => dir.open_file(name, Access::ReadWrite)?.set_len(input.number() % (1 << 18)),
        8 => dir.set_mode_of(name, u32::from(input.byte()) << 1),
        9 => {
            let Some((other_dir, other)) = place(root, input) else { return Ok(()) };
            dir.rename_over(name, &*other_dir, &other)
        }
        10 => {
            let Some((other_dir, other)) = place(root, input) else { return Ok(()) };
            dir.exchange(name, &*other_dir, &other)
        }
        _ => {
            let Some((other_dir, other)) = place(root, input) else { return Ok(()) };
            if input.byte() < 128 {
                return dir.link(name, &*other_dir, &other);
            }
            let bytes = dir.open_file(name, Access::Read)?.read_all(1 << 20)?;
            other_dir.create_file(&other, 0o600)?.write_at(&[IoSlice::new(&bytes)], 0)
        }
    }
}

fn remove(dir: &dyn Dir, name: &OsStr) -> io::Result<()> {
    match dir.metadata(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.kind == Kind::Dir => {
            let below = dir.open_dir(Path::new(name))?;
            for entry in below.list()? {
                remove(&*below, &entry.name)?;
            }
            dir.remove_dir(name)
        }
        Ok(_) => dir.remove_file(name),
    }
}
