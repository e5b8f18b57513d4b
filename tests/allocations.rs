//! What decoding costs in memory: at its peak twice the input and 1 MiB, whatever the input claims. A binary of its own,
//! because it counts every allocation.

#![expect(unsafe_code, reason = "a global allocator can't be had otherwise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroU8;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Kind, Timestamp, Vfs};
use atomtree::{TransactionId, TreePath};
use atomtree_recovery::guards::{Manifest, note};
use atomtree_recovery::image::{Attribute, Attributes, Content, Digest, Image, Slot};
use atomtree_recovery::manifest;
use atomtree_recovery::patched::{Patch, Patched};
use atomtree_recovery::places::StoreFile;
use atomtree_recovery::plan::{After, Begin, Change, Moved, Plan, Who, decode};
use atomtree_wal::{Log, LogOptions, Lsn};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unused_imports, reason = "most targets are replayed elsewhere")]
mod targets;

/// Counts what is allocated, and the most that was at once.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator, and only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps what `GlobalAlloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // What is large grows in place, by moving pages.
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that was allocated at once while `run` ran, above what was before.
fn peak_of<T>(run: impl FnOnce() -> T) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    drop(run());
    PEAK.load(Ordering::Relaxed) - before
}

/// Each decoder: decodes the input, and says how long it was and what was allocated.
const DECODERS: [(&str, fn(&[u8]) -> (usize, usize)); 9] = [
    ("frame", |bytes| (bytes.len(), peak_of(|| targets::frame(bytes)))),
    ("log", open_log),
    ("record", decode_record),
    ("tree_path", |bytes| (bytes.len(), peak_of(|| TreePath::from_bytes(bytes)))),
    ("document", |bytes| (bytes.len(), peak_of(|| atomtree_cli::check_document(bytes)))),
    ("store file", |bytes| read(bytes, "store", |dir| drop(StoreFile::read(dir)))),
    ("manifest", read_manifest),
    ("guard", decode_guard),
    ("note", decode_note),
];

/// A machine with a file of this content, and what reading it allocates.
fn read(bytes: &[u8], name: &str, decode: impl FnOnce(&dyn atomtree::vfs::Dir)) -> (usize, usize) {
    let sim = Sim::new(0);
    sim.write_file(Path::new("/store").join(name), bytes);
    let dir = sim.open_root(Path::new("/store")).unwrap();
    (bytes.len(), peak_of(|| decode(&*dir)))
}

fn read_manifest(bytes: &[u8]) -> (usize, usize) {
    let name = "0000000000000001-0000000000000001.manifest";
    read(bytes, name, |dir| drop(manifest::read(dir, OsStr::new(name))))
}

/// A guard's list, or the body of one: the index of the images has the same form.
fn decode_guard(bytes: &[u8]) -> (usize, usize) {
    let sealed = targets::guard::sealed(bytes);
    let (raw, body) = (peak_of(|| Manifest::decode(bytes)), peak_of(|| Manifest::decode(&sealed)));
    (sealed.len(), raw.max(body))
}

fn decode_note(bytes: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(bytes);
    let decode = || (note::from_text(&text), note::group_from_text(&text));
    (text.len(), peak_of(decode))
}

fn open_log(bytes: &[u8]) -> (usize, usize) {
    let sim = Sim::new(0);
    sim.create_dir("/wal");
    targets::log::plant_segments(&sim, bytes);
    let planted = sim.tree("/wal").into_keys();
    let length = planted.map(|name| sim.read_file(Path::new("/wal").join(name)).unwrap().len()).sum();
    let dir = sim.open_root(Path::new("/wal")).unwrap();
    let options = LogOptions { segment_bytes: 64 << 10, log_bytes_max: 1 << 20 };
    let open =
        || Log::open(dir.clone(), targets::log::ID, options).map(|(_, scan)| scan.frames().map(drop).count());
    (length, peak_of(open))
}

fn decode_record(bytes: &[u8]) -> (usize, usize) {
    let Some((kind, payload)) = bytes.split_first() else { return (0, 0) };
    let kind = NonZeroU8::new(*kind).unwrap_or(NonZeroU8::MIN);
    let borrowed = peak_of(|| decode(Lsn(1), kind, Cow::Borrowed(payload)).is_ok());
    let owned = peak_of(|| decode(Lsn(1), kind, Cow::Owned(payload.to_vec())).is_ok());
    (payload.len(), borrowed.max(owned))
}

/// Claims of a length or count that is not there, as heads are encoded: arrays, maps, bytes and text of 4 GiB.
const CLAIMS: [[u8; 5]; 4] = [
    [0xdd, 0xff, 0xff, 0xff, 0xff],
    [0xdf, 0xff, 0xff, 0xff, 0xff],
    [0xc6, 0xff, 0xff, 0xff, 0xff],
    [0xdb, 0xff, 0xff, 0xff, 0xff],
];

/// A head with each claim in the place of each of its bytes, and before it; and claims and depth alone.
fn with_claims(head: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![vec![0x91; 100_000], vec![0x81; 100_000]];
    for claim in CLAIMS {
        all.push(claim.to_vec());
        all.push(claim.repeat(1000));
        for at in 0..head.len() {
            all.push([&head[..at], &claim, &head[at + 1..]].concat());
            all.push([&head[..at], &claim].concat());
        }
    }
    all
}

fn attributes(xattrs: usize) -> Attributes {
    let xattr = Attribute { name: Vec::new(), value: Vec::new() };
    Attributes { mode: 0o644, uid: 0, gid: 0, xattrs: vec![xattr; xattrs] }
}

/// A transaction that moves a file with so many attributes, and changes another.
fn plan(xattrs: usize) -> Plan<'static> {
    let path = |path: &str| TreePath::new(path).unwrap();
    let slot = || Some(Slot { dir: "0123456789abcdef".into(), name: "1".into() });
    let moved = Moved {
        from: path("a"),
        from_parent: 2,
        kind: Kind::File,
        inode: 3,
        born: None,
        size: 9,
        before: attributes(xattrs),
        attributes: attributes(xattrs),
    };
    let image = Image {
        kind: Kind::File,
        inode: 3,
        born: None,
        size: 9,
        modified: Timestamp(1),
        changed: Timestamp(1),
        captured: Timestamp(2),
        links: 1,
        mount: 0,
        is_fixed: false,
        attributes: attributes(xattrs),
        content: Content::Digest(Digest::of(b"content")),
    };
    let change = |at: &str, before, after| Change {
        path: path(at),
        parent: 2,
        before,
        contents: Vec::new(),
        after,
        slot: slot(),
    };
    let patched = Patched::new(3, [Patch { offset: 0, before: b"old", after: b"new" }]);
    Plan {
        begin: Begin {
            tx: TransactionId(1),
            time_ns: 5,
            label: Some("label".into()),
            agent: Some("agent".into()),
            who: Some(Who { uid: 1, pid: 2, program: "program".into() }),
        },
        changes: vec![
            change("b", None, After::Moved(Box::new(moved))),
            change("c", Some(image.clone()), After::Absent),
            Change { slot: None, ..change("d", Some(image), After::Patched(patched)) },
        ],
    }
}

/// The records of a plan, as the target `record` takes them.
fn records(plan: &Plan<'_>) -> Vec<(u8, Vec<u8>)> {
    let payloads = plan.payloads();
    payloads.iter().map(|payload| (payload.kind.code().get(), payload.head[4..].to_vec())).collect()
}

fn record(kind: u8, head: &[u8]) -> Vec<u8> {
    [&[kind][..], &(head.len() as u32).to_le_bytes(), head].concat()
}

/// A manifest of one summary, with its checksum.
fn summary(body: &[u8]) -> Vec<u8> {
    let head = [&b"ATOMHIST"[..], &1_u32.to_le_bytes(), &(body.len() as u32).to_le_bytes()].concat();
    [&head[..], &targets::guard::crc32(body).to_le_bytes(), body].concat()
}

/// A summary of so many changes, each as short as can be: a name, and nothing before or after.
fn summary_of(changes: u32) -> Vec<u8> {
    let begin = [0x93, 0x94, 0x01, 0x05, 0xc0, 0xc0, 0x07, 0xdd];
    summary(
        &[&begin[..], &changes.to_be_bytes(), &[0x93, 0xc4, 1, b'a', 0xc0, 0xc0].repeat(changes as usize)]
            .concat(),
    )
}

/// The body of a guard's list of so many directories, each as short as can be.
fn list_of(originals: u32) -> Vec<u8> {
    let mut body = [&[0x93, 0x92, 0x90, 0x90, 0x00, 0xdd][..], &originals.to_be_bytes()].concat();
    for number in 0..originals {
        body.extend([0x9b, 0xc4, 4]);
        body.extend(format!("{number:04x}").bytes());
        body.extend(*b"\xa3Dir\xc2\x00\xc0\x00\x00\x00\x94\x00\x00\x00\x90\xc0\xc0");
    }
    body
}

fn hostile(decoder: &str) -> Vec<Vec<u8>> {
    match decoder {
        "record" => {
            let mut all = Vec::new();
            for (kind, head) in records(&plan(1)) {
                all.extend(with_claims(&head).iter().map(|head| record(kind, head)));
                let lengths = [u32::MAX, u32::MAX - 3, 1 << 31, 1 << 20];
                all.extend(lengths.map(|length| [&[kind][..], &length.to_le_bytes(), &head].concat()));
            }
            // As many attributes as a file can have, and more.
            for xattrs in [9000, 9362, 9363, 100_000, 1_000_000] {
                all.extend(records(&plan(xattrs)).iter().map(|(kind, head)| record(*kind, head)));
            }
            all
        }
        "manifest" => {
            let head = summary_of(3)[20..].to_vec();
            let mut all: Vec<_> = with_claims(&head).iter().map(|body| summary(body)).collect();
            all.push([&b"ATOMHIST\x01\0\0\0"[..], &[0xff; 8]].concat());
            all
        }
        "guard" => {
            let body = list_of(2);
            let lengths = [u64::MAX, 1 << 40, 1 << 30].map(u64::to_le_bytes);
            let claiming = lengths.map(|length| [b"ATOMGUAR\x01\0\0\0", &length[..], &body].concat());
            // A list that claims four billion names, and the beginning of one.
            let begun =
                b"\x93\x92\x91\xa2**\x90\xcfId\x03\x94\x9bd\xc4\xbf\xdc\xdc\xdc\xdc\xdc\xcc\xdc\xdc\xcd";
            with_claims(&body).into_iter().chain(claiming).chain([begun.to_vec()]).collect()
        }
        "note" => vec![b"pid 1\n".repeat(100_000), [b"group /", &[b'x'; 2 << 20][..]].concat()],
        "document" => {
            let op = r#"{"op":"write","path":"a","base64":""#;
            let texts = [
                "[".repeat(100_000),
                r#"{"ops":"#.repeat(100_000),
                format!(r#"{{"ops":[{op}{}"}}]}}"#, "AAAA".repeat(500_000)),
                format!(r#"{{"ops":[{op}{}"}}]}}"#, "\\u0041".repeat(500_000)),
                format!(
                    r#"{{"ops":[{{"op":"patch","path":"a","offset":{},"text":""}}]}}"#,
                    "9".repeat(1 << 20)
                ),
                format!(r#"{{"id":"{}","ops":[]}}"#, "x".repeat(2 << 20)),
                format!(r#"{{"ops":[{{"op":"{}","path":"a"}}]}}"#, "x".repeat(2 << 20)),
                format!(r#"{{"ops":[{{"op":"chmod","path":"a","mode":"{}"}}]}}"#, "7".repeat(2 << 20)),
                format!(r#"{{"ops":[{{"{}":"write","path":"a"}}]}}"#, "x".repeat(2 << 20)),
                format!(r#"{{"ops":[],"durability":"{}"}}"#, "x".repeat(2 << 20)),
                format!(r#"{{"ops":"{}"}}"#, "\n".repeat(2 << 20)),
            ];
            texts.into_iter().map(String::into_bytes).collect()
        }
        "tree_path" => vec![b"a/".repeat(1 << 20), vec![b'a'; 2 << 20]],
        "store file" => vec![vec![b'x'; 8 << 20], b"atomtree store 1\n".repeat(100_000)],
        "log" => vec![
            // Segments and frames that claim more than there is.
            [&[0_u8, 0, 1, 0, 0, 0, 77, 254][..], &[3, 64, 4, 1, 2, 3, 4, 0, 254].repeat(50)].concat(),
            [
                &[0_u8, 0, 1, 0, 0, 0, 0][..],
                &[3, 64, 4, 1, 2, 3, 4, 0, 255, 0, 0, 0, 0, 0, 0, 255, 0].repeat(50),
            ]
            .concat(),
        ],
        _ => vec![vec![0xff; 4096]],
    }
}

/// What a claimed length may take before anything shows that it is a lie: serde reserves a megabyte for a list at most, and
/// an item of it takes a little.
const CLAIMED_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Goal: nothing that is read makes its reader run out of memory. Method: every saved input of every fuzz target, and
/// inputs made to claim what is not there, through each decoder. And a document, manifest or list of many tiny items, each of
/// which takes what an operation or a change takes: a bound for each item instead.
#[test]
fn decoders_allocate_no_more_than_their_input_is_worth() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut saved = Vec::new();
    for target in fs::read_dir(corpus).unwrap() {
        for input in fs::read_dir(target.unwrap().path()).unwrap() {
            saved.push(fs::read(input.unwrap().path()).unwrap());
        }
    }
    assert!(saved.len() > 150, "{} saved inputs", saved.len());
    for (name, decoder) in DECODERS {
        let hostile = hostile(name);
        assert!(!hostile.is_empty());
        let mut most = (0, 0);
        for input in saved.iter().chain(&hostile) {
            let (length, peak) = decoder(input);
            assert!(
                peak <= 2 * length + CLAIMED_BYTES_MAX,
                "{name}: {peak} bytes for {length}: {}",
                input[..input.len().min(100)].escape_ascii()
            );
            most = most.max((peak, length));
        }
        println!("{name}: {} inputs, at most {} bytes, for {}", saved.len() + hostile.len(), most.0, most.1);
    }
    let count = 100_000;
    let ops = vec![r#"{"op":"remove","path":"a"}"#; count].join(",");
    let (length, peak) = DECODERS[4].1(format!(r#"{{"ops":[{ops}]}}"#).as_bytes());
    println!("document of {count} operations: {peak} bytes for {length}");
    assert!(peak <= 300 * count);
    let (length, peak) = read_manifest(&summary_of(count as u32));
    println!("manifest of {count} changes: {peak} bytes for {length}");
    assert!(peak <= 500 * count);
    let count = 50_000;
    let list = list_of(count as u32);
    assert!(Manifest::decode(&targets::guard::sealed(&list)).is_ok());
    let (length, peak) = decode_guard(&list);
    println!("guard's list of {count} names: {peak} bytes for {length}");
    assert!(peak <= 600 * count);
}
