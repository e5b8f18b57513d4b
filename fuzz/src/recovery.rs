//! Recovery of a store whose log holds hostile records in whole frames.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use atomtree::{Checkpoints, Inspection, Options, TreePath};
use atomtree_recovery::image::{Attributes, Bytes, Content, Digest, Image, Slot};
use atomtree_recovery::patched::{Patch, Patched};
use atomtree_recovery::places::StoreFile;
use atomtree_recovery::plan::{After, Applied, Begin, Change, Checkpoint, Moved, Plan, TransactionId};
use atomtree_vfs::sim::{Node, Sim};
use atomtree_vfs::{Kind, Timestamp, Vfs};
use atomtree_wal::{Log, LogOptions, Record};

use super::{Input, SEGMENT_BYTES};

/// Recovery acts on records that are whole and hostile. Whatever it makes of them, nothing outside the root changes,
/// and the store can be looked at and opened again.
pub fn recovery(bytes: &[u8]) {
    static VICTIM: LazyLock<Victim> = LazyLock::new(victim);
    let Victim { killed, outside, slots } = &*VICTIM;
    let sim = killed.kill();
    plant_records(&sim, slots, bytes);
    let options = || {
        let options = Options::new().segment_bytes(SEGMENT_BYTES).log_bytes_max(1 << 20);
        options.vfs(Arc::new(sim.clone())).checkpoints(Checkpoints::Manual).adopt(true)
    };
    let operations = sim.operations();
    if let Ok(inspection) = Inspection::open(ROOT, &options()) {
        let _ = (inspection.verify(), inspection.status(), inspection.log(10));
    }
    assert_eq!(sim.operations(), operations, "looking changes nothing");
    for _ in 0..2 {
        if let Ok(store) = options().open(ROOT) {
            let _ = store.close();
        }
        assert_eq!(outside_of(&sim), *outside);
    }
}

const ROOT: &str = "/root";

struct Victim {
    killed: Sim,
    outside: BTreeMap<PathBuf, Node>,
    /// Name of the directory in `stage/` that holds what the commits replaced.
    slots: String,
}

/// A tree with a store that was not closed, beside things that are none of its business.
fn victim() -> Victim {
    let sim = Sim::new(1);
    sim.write_file("/outside/canary", b"untouched");
    sim.write_file("/canary", b"untouched");
    sim.write_file("/root/a", b"first content of a");
    sim.write_file("/root/dir/b", b"first content of b");
    sim.create_symlink("/root/link", "/outside");
    sim.create_symlink("/root/dir/up", "../..");
    sim.create_symlink("/root/file", "/outside/canary");
    let options = Options::new().segment_bytes(SEGMENT_BYTES).log_bytes_max(1 << 20);
    let options = options.vfs(Arc::new(sim.clone())).checkpoints(Checkpoints::Manual);
    let store = options.open(ROOT).expect("an empty tree");
    for content in [b"second", b"third!"] {
        let mut tx = store.begin().expect("the store is open");
        tx.write("a", content).expect("it is a file");
        tx.write("dir/b", content).expect("it is a file");
        tx.write("dir/new", content).expect("it is a new name");
        tx.commit().expect("nothing is in the way");
    }
    let killed = sim.kill();
    let outside = outside_of(&killed);
    let stage = killed.tree("/root/.atomtree/stage");
    let slots = stage.keys().next().expect("originals are kept until a checkpoint");
    let slots = slots.to_str().expect("names of slots are letters and digits").to_owned();
    Victim { killed, outside, slots }
}

/// What stands beside the root, as far as its own names go.
fn outside_of(sim: &Sim) -> BTreeMap<PathBuf, Node> {
    // The tree itself is left out because reading all of it takes most of a run's time.
    let names = sim.open_root(Path::new("/")).and_then(|root| root.list()).expect("it can be listed");
    let names =
        names.into_iter().map(|entry| PathBuf::from(entry.name)).filter(|name| name != Path::new("root"));
    let mut tree = sim.tree("/outside");
    for name in names {
        let bytes = sim.read_file(Path::new("/").join(&name)).unwrap_or_default();
        let body = atomtree_vfs::sim::NodeBody::File(bytes);
        tree.insert(name, Node { body, mode: 0, uid: 0, gid: 0, xattrs: Vec::new() });
    }
    tree
}

/// Paths that lead somewhere, or try to. The placeholder for them in an honest record is as long.
const PATHS: [&[u8]; 12] = [
    b"a",
    b"dir/b",
    b"dir/new",
    b"dir/up/canary",
    b"link/canary",
    b"../outside/canary",
    b"/outside/canary",
    b".atomtree/store",
    b"file",
    b"link",
    b"made/x",
    b"dir",
];

/// Appends records with valid frames. Their payloads are an honest transaction's, with what the input says put in, or
/// the input's bytes.
fn plant_records(sim: &Sim, slots: &str, bytes: &[u8]) {
    let root = sim.open_root(Path::new("/root/.atomtree")).expect("the store is there");
    let (store, _) = StoreFile::read(&*root).expect("it is whole");
    let wal = root.open_dir(Path::new("wal")).expect("the log is there");
    let options = LogOptions { segment_bytes: SEGMENT_BYTES, log_bytes_max: 1 << 20 };
    let (mut log, _) = Log::open(wal, store.id, options).expect("the log is whole");
    let mut input = Input(bytes);
    while !input.is_empty() {
        let records: Vec<(NonZeroU8, Vec<u8>)> = match input.byte() % 6 {
            0 => {
                let kind = NonZeroU8::new(input.byte() % 8).unwrap_or(NonZeroU8::MIN);
                vec![(kind, input.some_bytes().to_vec())]
            }
            1 => {
                let applied = Applied { through: input.number() }.payload();
                vec![(applied.kind.code(), applied.head)]
            }
            2 => {
                let record = Checkpoint { watermark: input.number(), next_tx: TransactionId(input.number()) }
                    .payload();
                vec![(record.kind.code(), record.head)]
            }
            _ => transaction(&mut input, sim, slots),
        };
        for (kind, payload) in &records {
            if log.append(&[Record { kind: *kind, parts: &[payload] }]).is_err() {
                return;
            }
        }
    }
    let _ = log.sync();
}

fn transaction(input: &mut Input<'_>, sim: &Sim, slots: &str) -> Vec<(NonZeroU8, Vec<u8>)> {
    let begin = Begin {
        tx: TransactionId(input.number()),
        time_ns: 5,
        label: Some("fuzzed".into()),
        agent: None,
        who: None,
    };
    let mut hostile = Vec::new();
    let changes =
        (0..=input.byte() % 3).map(|number| change(input, sim, number, slots, &mut hostile)).collect();
    let plan = Plan { begin, changes };
    let mut records: Vec<(NonZeroU8, Vec<u8>)> = (plan.payloads().iter())
        .map(|payload| (payload.kind.code(), [&payload.head, payload.content].concat()))
        .collect();
    for (_, payload) in &mut records {
        for (placeholder, path) in &hostile {
            replace(payload, placeholder, path);
        }
    }
    match input.byte() {
        0 => drop(records.pop()),
        1 => drop(records.remove(0)),
        2 => records.reverse(),
        flip @ 3..40 => {
            let index = usize::from(flip) % records.len();
            let payload = &mut records[index].1;
            let at = input.number() as usize % payload.len();
            payload[at] ^= input.byte();
        }
        _ => {}
    }
    records
}

fn change(
    input: &mut Input<'_>,
    sim: &Sim,
    number: u8,
    slots: &str,
    hostile: &mut Vec<(Vec<u8>, Vec<u8>)>,
) -> Change<'static> {
    let mut path = PATHS[usize::from(input.byte()) % PATHS.len()].to_vec();
    if input.byte() > 200 {
        path = input.some_bytes().to_vec();
    }
    let honest = TreePath::from_bytes(&path).unwrap_or_else(|_| {
        let placeholder = vec![b'P' + number; path.len().clamp(1, 200)];
        path.resize(placeholder.len(), b'.');
        hostile.push((placeholder.clone(), path.clone()));
        TreePath::from_bytes(&placeholder).expect("letters are a path")
    });
    let attributes = Attributes { mode: 0o644, uid: 1000, gid: 1000, xattrs: Vec::new() };
    let contents: [&'static [u8]; 5] =
        [b"third!", b"second", b"first content of a", b"", b"content of the fuzzer"];
    let content = contents[usize::from(input.byte()) % contents.len()];
    let by_digest = input.byte().is_multiple_of(4);
    let kept = if by_digest {
        Content::Digest(Digest::of(content))
    } else {
        Content::Inline(Bytes::Borrowed(content))
    };
    let size = content.len() as u64;
    let kind = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Other][usize::from(input.byte() % 4)];
    let below = |input: &mut Input<'_>| {
        let path = PATHS[usize::from(input.byte()) % PATHS.len()];
        TreePath::from_bytes_below(path)
            .unwrap_or_else(|_| TreePath::from_bytes(b"below").expect("it is one"))
    };
    let choice = input.byte();
    let after = match choice % 8 {
        _ if choice >= 248 && size > 0 => {
            let new = vec![b'!'; content.len()];
            After::Patched(Patched::new(size, [Patch { offset: 0, before: content, after: &new }]))
        }
        0 => After::Absent,
        1 => After::Dir { attributes: attributes.clone() },
        2 => After::Symlink {
            target: below(input).as_bytes().to_vec(),
            attributes: attributes.clone(),
            inode: input.number(),
        },
        3 => {
            let from = below(input);
            After::Moved(Box::new(Moved {
                from: TreePath::from_bytes(from.as_bytes()).unwrap_or_else(|_| honest.clone()),
                from_parent: input.number(),
                kind,
                inode: input.number(),
                born: None,
                size,
                before: attributes.clone(),
                attributes: attributes.clone(),
            }))
        }
        4 => After::Same { attributes: attributes.clone() },
        _ => {
            After::File { attributes: attributes.clone(), size, content: kept.clone(), inode: input.number() }
        }
    };
    let image = |input: &mut Input<'_>, kind| Image {
        kind,
        inode: input.number(),
        born: None,
        size,
        modified: Timestamp(0),
        changed: Timestamp(0),
        captured: Timestamp(0),
        links: 1,
        mount: 0,
        is_fixed: false,
        attributes: attributes.clone(),
        content: kept.clone(),
    };
    let mut before = input.byte().is_multiple_of(2).then(|| image(input, kind));
    // Mostly the inode that stands there, which alone is written into.
    if matches!(after, After::Patched(_)) && input.byte() < 200 {
        let found = sim.open_root(Path::new(ROOT)).and_then(|root| root.metadata("a".as_ref()));
        let found = found.expect("it stands");
        before = Some(Image { kind: Kind::File, inode: found.inode, born: found.born, ..image(input, kind) });
    }
    let contents = match &before {
        Some(Image { kind: Kind::Dir, .. }) => {
            (0..input.byte() % 3).map(|_| (below(input), image(input, Kind::File))).collect()
        }
        _ => Vec::new(),
    };
    // As long as a real one's directory, so that it can be put in the place of one.
    let names: [&[u8]; 4] = [b"../../outside", b"../../../root", b"/outside/dir.", b"............."];
    if input.byte() > 128 {
        hostile.push((slots.as_bytes()[..13].to_vec(), names[usize::from(input.byte()) % 4].to_vec()));
    }
    let slot = Slot { dir: slots.into(), name: (input.byte() % 4).to_string() };
    let slot = (!matches!(after, After::Dir { .. } | After::Same { .. } | After::Patched(_))).then_some(slot);
    Change { path: honest, parent: input.number(), before, contents, after, slot }
}

/// Puts `to` in the place of `from`, which is as long.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    for at in 0..bytes.len().saturating_sub(from.len() - 1) {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len().min(from.len())].copy_from_slice(&to[..to.len().min(from.len())]);
        }
    }
}
