//! The format, frozen: a store made once and kept under `tests/golden/v1`, and each record's bytes. A change here is a
//! change of the format version, with a directory of its own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atomtree::vfs::sim::{NodeBody, Sim};
use atomtree::vfs::{Kind, Timestamp, Vfs};
use atomtree::{Checkpoints, Inspection, Options, TreePath};
use atomtree_recovery::image::{Attribute, Attributes, Bytes, Content, Digest, Image, Slot};
use atomtree_recovery::patched::{Patch, Patched};
use atomtree_recovery::places::StoreFile;
use atomtree_recovery::plan::{
    After, Applied, Begin, Change, Checkpoint, Commit, Moved, Payload, Plan, Record, RecordKind,
    TransactionId, decode,
};
use atomtree_wal::{Lsn, Tail};

const ROOT: &str = "/root";

fn options(sim: &Sim) -> Options {
    let options = Options::new().segment_bytes(64 << 10).log_bytes_max(1 << 20).adopt(true);
    options.vfs(Arc::new(sim.clone())).checkpoints(Checkpoints::Manual)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

/// Makes the store that is frozen: one transaction that is settled, and two that are not.
fn generate() -> Sim {
    let sim = Sim::new(1);
    sim.write_file("/root/config.json", b"{\"version\": 0}\n");
    sim.write_file("/root/obsolete", b"to be removed\n");
    let store = options(&sim).open(ROOT).unwrap();
    let mut tx = store.begin().unwrap();
    tx.set_label("first, settled");
    tx.write("config.json", b"{\"version\": 1}\n").unwrap();
    tx.write("migrations/0001.sql", b"create table one;\n").unwrap();
    tx.commit().unwrap();
    store.checkpoint().unwrap();
    let mut tx = store.begin().unwrap();
    tx.set_label("second");
    tx.write("config.json", b"{\"version\": 2}\n").unwrap();
    tx.write("migrations/0002.sql", b"create table two;\n").unwrap();
    tx.commit().unwrap();
    let mut tx = store.begin().unwrap();
    tx.set_label("third");
    tx.write("config.json", b"{\"version\": 3}\n").unwrap();
    tx.remove("obsolete").unwrap();
    tx.commit().unwrap();
    let killed = sim.kill();
    std::mem::forget(store);
    killed
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A tree as text: a line for each name, and the lines of 32 bytes that are not zero.
fn to_text(sim: &Sim) -> String {
    let mut text = String::new();
    for (path, node) in sim.tree(ROOT) {
        let path = path.display();
        match node.body {
            NodeBody::Dir => writeln!(text, "dir {:04o} {path}", node.mode).unwrap(),
            NodeBody::File(bytes) => {
                writeln!(text, "file {:04o} {path} {}", node.mode, bytes.len()).unwrap();
                for (index, line) in
                    bytes.chunks(32).enumerate().filter(|(_, line)| line.iter().any(|b| *b != 0))
                {
                    writeln!(text, "{} {}", index * 32, hex(line)).unwrap();
                }
            }
            NodeBody::Symlink(_) | NodeBody::Other => panic!("there are none"),
        }
    }
    text
}

fn from_text(text: &str) -> Sim {
    let sim = Sim::new(2);
    let mut file: Option<(PathBuf, u32, Vec<u8>)> = None;
    let finish = |file: Option<(PathBuf, u32, Vec<u8>)>| {
        if let Some((path, mode, bytes)) = file {
            sim.write_file(&path, &bytes);
            sim.set_mode(&path, mode);
        }
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let mode = |word: &str| u32::from_str_radix(word, 8).unwrap();
        match words[..] {
            ["dir", bits, path] => {
                sim.create_dir(Path::new(ROOT).join(path));
                sim.set_mode(Path::new(ROOT).join(path), mode(bits));
            }
            ["file", bits, path, length] => {
                let next = (Path::new(ROOT).join(path), mode(bits), vec![0; length.parse().unwrap()]);
                finish(file.replace(next));
            }
            [offset, bytes] => {
                let (bytes, at) = (unhex(bytes), offset.parse::<usize>().unwrap());
                let content = &mut file.as_mut().expect("a file's line comes first").2;
                content[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            _ => panic!("{line:?}"),
        }
    }
    finish(file);
    sim
}

/// Writes the golden store, once for each format version: `ATOMTREE_WRITE_GOLDEN=1 cargo test --test it golden`. That
/// of a version is never written again.
#[test]
fn write_the_golden_store() {
    if std::env::var_os("ATOMTREE_WRITE_GOLDEN").is_none() {
        return;
    }
    let path = golden("store.txt");
    assert!(!path.exists(), "{} is frozen", path.display());
    let sim = generate();
    std::fs::write(path, to_text(&sim)).unwrap();
    std::fs::write(golden("records.txt"), records_to_text(&sim)).unwrap();
}

/// Goal: today's code reads yesterday's store. Method: load it, look at it, read every record of its log, recover it.
#[test]
fn the_golden_store_is_read_and_recovered() {
    let sim = from_text(&std::fs::read_to_string(golden("store.txt")).unwrap());
    let inspection = Inspection::open(ROOT, &options(&sim)).unwrap();
    let found = inspection.verify().unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert_eq!((found.unsettled, found.settled, found.closed), (2, 1, false));
    let history: Vec<_> = (inspection.log(10).unwrap().into_iter())
        .map(|past| {
            let paths = past.changes.iter().map(|change| String::from_utf8(change.path.clone()).unwrap());
            (past.tx.0, past.lsn.0, past.label.unwrap(), past.is_settled, paths.collect::<Vec<_>>().join(" "))
        })
        .collect();
    let expected = [
        (3, 21, "third".to_owned(), false, "config.json obsolete".to_owned()),
        (2, 14, "second".to_owned(), false, "config.json migrations/0002.sql".to_owned()),
        (1, 7, "first, settled".to_owned(), true, "migrations config.json migrations/0001.sql".to_owned()),
    ];
    assert_eq!(history, expected);
    let expected = std::fs::read_to_string(golden("records.txt")).unwrap();
    let found = records_to_text(&sim);
    found.lines().zip(expected.lines()).for_each(|(found, expected)| assert_eq!(found, expected));
    assert_eq!(found, expected);

    let store = options(&sim).open(ROOT).unwrap();
    assert_eq!(store.recovery().redone, 2);
    assert!(store.recovery().quarantined.is_empty() && store.recovery().superseded.is_empty());
    let tree: BTreeMap<PathBuf, Vec<u8>> = (sim.tree(ROOT).into_iter())
        .filter(|(path, _)| !path.starts_with(".atomtree"))
        .filter_map(|(path, node)| match node.body {
            NodeBody::File(bytes) => Some((path, bytes)),
            _ => None,
        })
        .collect();
    let expected = [
        ("config.json", "{\"version\": 3}\n"),
        ("migrations/0001.sql", "create table one;\n"),
        ("migrations/0002.sql", "create table two;\n"),
    ];
    assert_eq!(tree, expected.map(|(path, text)| (path.into(), text.as_bytes().to_vec())).into());
    let mut tx = store.begin().unwrap();
    tx.write("config.json", b"{\"version\": 4}\n").unwrap();
    assert_eq!(tx.commit().unwrap().tx(), TransactionId(4));
    store.close().unwrap();
    let status = Inspection::open(ROOT, &options(&sim)).unwrap().status().unwrap();
    assert!(status.is_clean);
}

/// The log's records, each with its place, as they are frozen beside the store.
fn records_to_text(sim: &Sim) -> String {
    let store = sim.open_root(Path::new("/root/.atomtree")).unwrap();
    let (file, _) = StoreFile::read(&*store).unwrap();
    let scan = atomtree_wal::scan(&*store.open_dir(Path::new("wal")).unwrap(), file.id).unwrap();
    assert_eq!(scan.tail(), Tail::Clean);
    let mut text = String::new();
    for frame in scan.frames() {
        let frame = frame.unwrap();
        let place = format!("{} {} {} synced {}", frame.segment, frame.offset, frame.lsn, frame.synced_lsn);
        let record = decode(frame.lsn, frame.kind, frame.payload).unwrap();
        // Directories that go, and who it was, were not there yet when the store was written.
        let record = format!("{record:?}").replace("contents: [], ", "").replace(", who: None", "");
        writeln!(text, "{place}: {record}").unwrap();
    }
    text
}

fn attributes() -> Attributes {
    let xattr = Attribute { name: b"user.key".to_vec(), value: b"value".to_vec() };
    Attributes { mode: 0o640, uid: 1000, gid: 100, xattrs: vec![xattr] }
}

/// A plan with each kind of change: a directory, contents in the log and by digest, and a removal.
fn plan() -> Plan<'static> {
    let image = |content| Image {
        kind: Kind::File,
        inode: 77,
        born: Some(Timestamp(1_000_000_007)),
        size: 3,
        modified: Timestamp(2_000_000_007),
        changed: Timestamp(0),
        captured: Timestamp(3_000_000_007),
        links: 1,
        mount: 0,
        is_fixed: false,
        attributes: attributes(),
        content,
    };
    let slot = |name: &str| Some(Slot { dir: "0123456789abcdef".into(), name: name.into() });
    let path = |path: &str| TreePath::new(path).unwrap();
    let file = |size, content| After::File { attributes: attributes(), size, content, inode: 78 };
    let change = |at: &str, before, after, slot| Change {
        path: path(at),
        parent: 5,
        before,
        contents: Vec::new(),
        after,
        slot,
    };
    Plan {
        begin: Begin {
            tx: TransactionId(9),
            time_ns: 1_700_000_000_000_000_000,
            label: Some("why".into()),
            agent: None,
            who: None,
        },
        changes: vec![
            change("d", None, After::Dir { attributes: attributes() }, None),
            change(
                "a",
                Some(image(Content::Inline(Bytes::Borrowed(b"old")))),
                file(4, Content::Inline(Bytes::Borrowed(b"new!"))),
                slot("1"),
            ),
            change(
                "d/b",
                Some(image(Content::Unread)),
                file(1 << 40, Content::Digest(Digest::of(b"large"))),
                slot("2"),
            ),
            change("c", Some(image(Content::Digest(Digest::of(b"old")))), After::Absent, slot("3")),
        ],
    }
}

/// A plan with what moves and removes directories, in the shapes that records had from then on.
fn plan_of_directories() -> Plan<'static> {
    let Plan { begin, changes } = plan();
    let whole = changes[1].before.clone().expect("a file stood there");
    let image = |kind, inode| Image { kind, inode, size: 9, content: Content::Unread, ..whole.clone() };
    let path = |path: &str| TreePath::new(path).unwrap();
    let slot = |name: &str| Some(Slot { dir: "0123456789abcdef".into(), name: name.into() });
    let change = |at: &str, before, contents, after, slot| Change {
        path: path(at),
        parent: 5,
        before,
        contents,
        after,
        slot,
    };
    let moved = Moved {
        from: path("src/old"),
        from_parent: 6,
        kind: Kind::Dir,
        inode: 90,
        born: None,
        size: 4096,
        before: attributes(),
        attributes: Attributes { mode: 0o700, ..attributes() },
    };
    let link =
        || Image { size: 2, content: Content::Inline(Bytes::Borrowed(b"to")), ..image(Kind::Symlink, 93) };
    let below = vec![(path("sub"), image(Kind::Dir, 91)), (path("sub/fifo"), image(Kind::Other, 92))];
    let target = b"releases/8".to_vec();
    Plan {
        begin,
        changes: vec![
            change("new", None, Vec::new(), After::Moved(Box::new(moved)), slot("4")),
            change(
                "gone",
                Some(image(Kind::Dir, 94)),
                below,
                After::Dir { attributes: attributes() },
                slot("5"),
            ),
            change(
                "current",
                Some(link()),
                Vec::new(),
                After::Symlink { target, attributes: attributes(), inode: 95 },
                slot("6"),
            ),
            change(
                "run.sh",
                Some(image(Kind::File, 96)),
                Vec::new(),
                After::Same { attributes: attributes() },
                None,
            ),
        ],
    }
}

/// A plan with a file that is patched in place.
fn plan_of_patches() -> Plan<'static> {
    let Plan { begin, changes } = plan();
    let whole = changes[1].before.clone().expect("a file stood there");
    let patched = Patched::new(3, [Patch { offset: 0, before: b"old", after: b"new" }]);
    let before = Some(Image { inode: 96, content: Content::Unread, ..whole });
    let (path, after) = (TreePath::new("f").unwrap(), After::Patched(patched));
    let change = Change { path, parent: 5, before, contents: Vec::new(), after, slot: None };
    Plan { begin, changes: vec![change] }
}

/// Goal: the payload of each record is what it was. Method: bytes pinned here, encoded and decoded.
#[test]
fn golden_records() {
    let plan = plan();
    let mut payloads = plan.payloads();
    payloads.push(Applied { through: 300 }.payload());
    payloads.push(Checkpoint { watermark: 70_000, next_tx: TransactionId(10) }.payload());
    let decoded = pinned(&payloads, GOLDEN);
    let mut expected = records_of(&plan);
    expected.push(Record::Applied(Applied { through: 300 }));
    expected.push(Record::Checkpoint(Checkpoint { watermark: 70_000, next_tx: TransactionId(10) }));
    assert_eq!(decoded, expected);

    let plan = plan_of_directories();
    assert_eq!(pinned(&plan.payloads(), GOLDEN_DIRECTORIES), records_of(&plan));

    let plan = plan_of_patches();
    assert_eq!(pinned(&plan.payloads(), GOLDEN_PATCHES), records_of(&plan));
}

/// The records of a transaction, as they are read back.
fn records_of(plan: &Plan<'static>) -> Vec<Record<'static>> {
    let mut records = vec![Record::Begin(plan.begin.clone())];
    for change in &plan.changes {
        records.extend(change.before.clone().map(|image| Record::Image(change.path.clone(), image)));
        for (below, image) in &change.contents {
            records.push(Record::ImageBelow(change.path.clone(), below.clone(), image.clone()));
        }
    }
    let images = records.len() as u32 - 1;
    records.extend(
        plan.changes
            .iter()
            .map(|change| Record::Change(Change { before: None, contents: Vec::new(), ..change.clone() })),
    );
    let changes = plan.changes.len() as u32;
    records.push(Record::Commit(Commit { tx: plan.begin.tx, images, changes }));
    records
}

/// Compares the payloads with the pinned ones, and decodes those.
fn pinned(payloads: &[Payload<'_>], golden: &[&str]) -> Vec<Record<'static>> {
    let found: Vec<String> = payloads
        .iter()
        .map(|Payload { kind, head, content }| format!("{kind:?} {} {}", hex(head), hex(content)))
        .collect();
    for (found, expected) in found.iter().zip(golden) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), golden.len(), "{found:#?}");
    golden
        .iter()
        .map(|line| {
            let [name, head, content] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let codes =
                (1..=6).map(|code| RecordKind::from_code(std::num::NonZeroU8::new(code).unwrap()).unwrap());
            let kind = codes.into_iter().find(|kind| format!("{kind:?}") == name).unwrap();
            let payload = [unhex(head), unhex(content)].concat();
            decode(Lsn(1), kind.code(), Cow::Owned(payload)).unwrap()
        })
        .collect()
}

const GOLDEN: &[&str] = &[
    "Begin 100000009409cf17979cfe362a0000a3776879c0 ",
    "Image 3800000099c40161c24dce3b9aca0703ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6496e6c696e65 6f6c64",
    "Image 3a00000099c403642f62c24dce3b9aca0703ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e72656164 ",
    "Image 5b00000099c40163c24dce3b9aca0703ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c756581a6446967657374c42096a4257289f9ebcbc94bfc49276f89ed87f8c951e3fa832d44dceb9b220520a5 ",
    "Change 2700000094c4016405c081a34469729194cd01a0cd03e8649192c408757365722e6b6579c40576616c7565 ",
    "Change 4400000094c401610592b030313233343536373839616263646566a13181a446696c659494cd01a0cd03e8649192c408757365722e6b6579c40576616c756504a6496e6c696e654e 6e657721",
    "Change 7100000094c403642f620592b030313233343536373839616263646566a13281a446696c659494cd01a0cd03e8649192c408757365722e6b6579c40576616c7565cf000001000000000081a6446967657374c4206d7c674e5919ac828992537064a1efe41e7cbcb0505ec07fea06c64c9935a8d44e ",
    "Change 2000000094c401630592b030313233343536373839616263646566a133a6416273656e74 ",
    "Commit 0400000093090304 ",
    "Applied 0400000091cd012c ",
    "Checkpoint 0700000092ce000111700a ",
];

const GOLDEN_PATCHES: &[&str] = &[
    "Begin 100000009409cf17979cfe362a0000a3776879c0 ",
    "Image 3800000099c40166c260ce3b9aca0703ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e72656164 ",
    "Change 1500000094c4016605c081a750617463686564920391920003 6f6c646e6577",
    "Commit 0400000093090101 ",
];

const GOLDEN_DIRECTORIES: &[&str] = &[
    "Begin 100000009409cf17979cfe362a0000a3776879c0 ",
    "Image 410000009ac404676f6e65c25ece3b9aca0709ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e7265616492a3446972c0 ",
    "Image 450000009ac404676f6e65c25bce3b9aca0709ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e7265616492a3446972c403737562 ",
    "Image 4c0000009ac404676f6e65c25cce3b9aca0709ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e7265616492a54f74686572c4087375622f6669666f ",
    "Image 3e00000099c40763757272656e74c35dce3b9aca0702ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6496e6c696e65 746f",
    "Image 3d00000099c40672756e2e7368c260ce3b9aca0709ce77359407ceb2d05e0794cd01a0cd03e8649192c408757365722e6b6579c40576616c7565a6556e72656164 ",
    "Change 6c00000094c4036e65770592b030313233343536373839616263646566a13481a54d6f76656498c4077372632f6f6c6406a34469725ac0cd100094cd01a0cd03e8649192c408757365722e6b6579c40576616c756594cd01c0cd03e8649192c408757365722e6b6579c40576616c7565 ",
    "Change 3d00000094c404676f6e650592b030313233343536373839616263646566a13581a34469729194cd01a0cd03e8649192c408757365722e6b6579c40576616c7565 ",
    "Change 5100000094c40763757272656e740592b030313233343536373839616263646566a13681a753796d6c696e6b93c40a72656c65617365732f3894cd01a0cd03e8649192c408757365722e6b6579c40576616c75655f ",
    "Change 2d00000094c40672756e2e736805c081a453616d659194cd01a0cd03e8649192c408757365722e6b6579c40576616c7565 ",
    "Commit 0400000093090504 ",
];
