//! Workloads with somebody in the way: other programs that change what a transaction changes, and storage that refuses
//! some things.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atomtree::vfs::Identity;
use atomtree::vfs::faults::{Call, Fault, Verb};
use atomtree::vfs::sim::Sim;
use atomtree::{Error, Options, Store, Transaction};

use super::{BY_REFERENCE, SETTINGS, THEIRS, bytes, dir, file, of};
use crate::crash::Crash;
use crate::history::{Entry, Operation as Op, Settings, Tree};
use crate::workload::{Act, Workload, names_in};

/// Operation not permitted.
const EPERM: i32 = 1;
/// No such file or directory.
const ENOENT: i32 = 2;
/// Permission denied.
const EACCES: i32 = 13;
/// No space left on device.
const ENOSPC: i32 = 28;

const WITHOUT_EXCHANGE: Settings = Settings { can_exchange: false, ..SETTINGS };

pub(super) fn all() -> Vec<Workload> {
    [rivals(), newer_edits(), storage(), disks()].concat()
}

/// Whether the call is about this name.
fn is_about(call: &Call, name: &str) -> bool {
    [&call.name, &call.other].into_iter().flatten().any(|found| found == name)
}

/// Whether this is asked for the first time.
fn is_first(flag: &AtomicBool) -> bool {
    !flag.swap(true, Ordering::Relaxed)
}

/// Other programs that change what a transaction changes, after its check.
fn rivals() -> Vec<Workload> {
    fn is_apply(call: &Call) -> bool {
        matches!(call.verb, Verb::Exchange | Verb::Rename | Verb::Link) && is_about(call, "a")
    }
    fn replaces(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        if is_apply(call) && sim.read_file("/tree/a") == Some(bytes(300)) {
            sim.replace_file("/tree/a", THEIRS);
            has_meddled.store(true, Ordering::Relaxed);
        }
        None
    }
    fn makes(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        if is_apply(call)
            && sim.read_file("/tree/a").is_none()
            && names_in(sim, "/tree/.atomtree/quarantine").is_empty()
        {
            sim.write_file("/tree/a", THEIRS);
            has_meddled.store(true, Ordering::Relaxed);
        }
        None
    }
    /// Changes what a transaction has read, while it is staged.
    fn is_early(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        let is_staged = call.verb == Verb::WriteAt && call.name.as_ref().is_some_and(|name| name.len() == 1);
        if is_staged && is_first(has_meddled) {
            sim.replace_file("/tree/a", THEIRS);
        }
        None
    }
    fn reads(tx: &mut Transaction) -> Result<(), Error> {
        tx.read("a")?;
        tx.write("b", bytes(40))
    }
    fn read(tree: &mut Tree) {
        Op::Write("b", bytes(40)).perform_on(tree);
    }
    /// Makes the directory that a transaction is about to make.
    fn is_faster(sim: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        if call.verb == Verb::CreateDir && is_about(call, "made") {
            sim.create_dir("/tree/made");
        }
        None
    }
    /// Removes the directory that a transaction is about to put something into.
    fn removes_the_parent(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        if call.verb == Verb::Rename && is_about(call, "in") && is_first(has_meddled) {
            sim.remove("/tree/made");
        }
        None
    }
    /// Makes the store that this process is about to make.
    fn creates(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        if call.verb == Verb::CreateDir && is_about(call, ".atomtree.new") && is_first(has_meddled) {
            let store = crate::crash::open(Arc::new(sim.another_process()), &SETTINGS);
            drop(store.and_then(Store::close));
        }
        None
    }
    let initial = [("a", file(300)), ("b", file(20))];
    let write = vec![
        Act::Commit(vec![Op::Write("a", bytes(50)), Op::Write("b", bytes(5))]),
        Act::Checkpoint,
        Act::Look,
    ];
    let remove = vec![Act::Commit(vec![Op::Remove("a"), Op::Write("b", bytes(5))]), Act::Reopen];
    vec![
        of("a rival replaces", SETTINGS, &initial, write.clone()).shared(replaces),
        of("a rival replaces what is removed", SETTINGS, &initial, remove.clone()).shared(replaces),
        of("a rival replaces, without exchange", WITHOUT_EXCHANGE, &initial, write.clone()).shared(replaces),
        of("a rival comes first", SETTINGS, &initial[1..], write.clone()).shared(makes),
        of("a rival comes first, without exchange", WITHOUT_EXCHANGE, &initial[1..], write).shared(makes),
        of("a rival before the check", SETTINGS, &initial, vec![Act::Transact(reads, read), Act::Reopen])
            .shared(is_early),
        of(
            "a rival makes a directory",
            SETTINGS,
            &initial,
            vec![Act::Commit(vec![Op::CreateDir("made"), Op::Write("made/in", bytes(3))]), Act::Reopen],
        )
        .meddled(is_faster),
        of(
            "a rival creates the store",
            SETTINGS,
            &initial,
            vec![Act::Commit(vec![Op::Write("a", bytes(5))])],
        )
        .meddled(creates),
        of(
            "a rival removes a directory",
            SETTINGS,
            &[("made", Entry::Dir(0o700))],
            vec![Act::Commit(vec![Op::WriteWithMode("made/in", bytes(3), 0o600)]), Act::Crash(Crash::Kill)],
        )
        // What is made again gets its mode last, and may be left as it was made.
        .prepared(|sim| sim.set_identity(Identity { uid: 1000, gid: 1000, umask: 0o077 }))
        .meddled(removes_the_parent)
        .unlike_others(),
    ]
}

/// Other programs that replace what a transaction wrote, before recovery.
fn newer_edits() -> Vec<Workload> {
    fn replace(sim: &Sim) {
        sim.replace_file("/tree/a", THEIRS);
    }
    let initial = [("a", file(300)), ("b", file(200))];
    let mut all = Vec::new();
    for (number, settings) in [SETTINGS, BY_REFERENCE, WITHOUT_EXCHANGE].into_iter().enumerate() {
        let new = vec![
            Act::Commit(vec![Op::Write("b", bytes(6000))]),
            Act::Commit(vec![Op::Write("b", bytes(7000))]),
        ];
        let writes: [&[Op]; 3] =
            [&[Op::Write("a", bytes(6000))], &[Op::Write("a", bytes(50))], &[Op::Symlink("a", "b")]];
        for (which, write) in writes.into_iter().enumerate() {
            // The original is there, or the name is new.
            for first in [0, usize::from(which == 2)] {
                let tail = |crash| {
                    let again = Act::HaltedOpen(Crash::Kill, 40);
                    vec![
                        Act::Commit(write.to_vec()),
                        Act::Commit(vec![Op::Write("c", bytes(10))]),
                        Act::Outside(replace),
                        Act::HaltedOpen(crash, 31),
                        again,
                        Act::Crash(Crash::Kill),
                    ]
                };
                for crash in [Crash::Kill, Crash::Cut(1), Crash::Cut(2), Crash::Cut(3), Crash::Cut(4)] {
                    for is_new in [false, true] {
                        let initial = &initial[usize::from(is_new).max(first)..];
                        if which == 2 && !is_new {
                            continue;
                        }
                        let acts = [new.clone(), tail(crash)].concat();
                        let name = format!("a newer edit {number} {which} {is_new} {crash:?}");
                        let mut one = of(&name, settings, initial, acts);
                        one.theirs = Some(THEIRS);
                        all.push(one);
                    }
                }
            }
        }
    }
    for seed in 0..6 {
        let acts = vec![
            Act::Commit(vec![Op::Write("a", bytes(6000))]),
            Act::Commit(vec![Op::Write("c", bytes(10))]),
            Act::HaltedOpen(Crash::Cut(seed), 1),
            Act::Outside(replace),
            Act::HaltedOpen(Crash::Kill, 31),
            Act::Crash(Crash::Kill),
        ];
        let mut one = of(&format!("an edit after a cut, {seed}"), BY_REFERENCE, &initial[1..], acts);
        one.theirs = Some(THEIRS);
        all.push(one);
    }
    all
}

/// Storage that refuses some things.
fn storage() -> Vec<Workload> {
    fn refuses_links(_: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        (call.verb == Verb::Link).then_some(Fault::Error(EPERM))
    }
    /// No space until the ballast is given up.
    fn is_full(sim: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        let ballast = sim.read_file("/tree/.atomtree/ballast").unwrap_or_default();
        let is_full =
            matches!(call.verb, Verb::Exchange | Verb::Rename) && is_about(call, "a") && !ballast.is_empty();
        is_full.then_some(Fault::Error(ENOSPC))
    }
    /// A file without the right to read, opened by somebody who is not root.
    fn is_closed(sim: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        let is_it = call.verb == Verb::OpenFile && call.name.as_ref().is_some_and(|name| name == "a");
        let mode = sim.tree("/tree").get(Path::new("a")).map_or(0o400, |node| node.mode);
        (is_it && mode & 0o400 == 0).then_some(Fault::Error(EACCES))
    }
    let initial = [
        ("a", file(300)),
        ("b", file(20)),
        ("s", Entry::Dir(0o1777)),
        ("s/x", file(3)),
        ("s/d", Entry::Dir(0o1777)),
        ("s/d/y", file(4)),
    ];
    let write = vec![
        Act::Commit(vec![Op::Write("a", bytes(50)), Op::Write("b", bytes(5))]),
        Act::Crash(Crash::Kill),
        Act::Checkpoint,
    ];
    vec![
        of("links are refused", WITHOUT_EXCHANGE, &initial, write.clone()).meddled(refuses_links),
        of("a full disk", SETTINGS, &initial, write.clone()).meddled(is_full),
        of(
            "a file that is closed",
            SETTINGS,
            &initial,
            vec![
                Act::Commit(vec![Op::WriteWithMode("a", bytes(50), 0o200)]),
                Act::Halted(vec![Op::Write("b", bytes(9))], 9),
                Act::Crash(Crash::Kill),
            ],
        )
        .meddled(is_closed),
        of(
            "sticky directories",
            SETTINGS,
            &initial,
            vec![
                Act::Commit(vec![Op::Write("s/x", bytes(50))]),
                Act::Commit(vec![Op::RemoveDirAll("s/d")]),
                Act::Reopen,
            ],
        ),
    ]
}

/// Disks without room, and names that come and go.
fn disks() -> Vec<Workload> {
    /// No room for another segment.
    fn takes_no_segment(_: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        (call.verb == Verb::Allocate && is_about(call, "0002.seg")).then_some(Fault::Error(ENOSPC))
    }
    /// No room for writing a block of a segment again, at first.
    fn takes_no_header(sim: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        let is_header = call.verb == Verb::WriteAt && is_about(call, "0001.seg");
        (is_header && sim.read_file("/tree/fill").is_some() && is_first(has_meddled))
            .then_some(Fault::Error(ENOSPC))
    }
    /// No room for the last step of an exchange, until the ballast is given up.
    fn is_full_late(sim: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        let is_last = call.verb == Verb::Rename
            && call.name.as_ref().is_some_and(|name| name.to_string_lossy().ends_with("-old"));
        let ballast = sim.read_file("/tree/.atomtree/ballast").unwrap_or_default();
        (is_last && !ballast.is_empty()).then_some(Fault::Error(ENOSPC))
    }
    /// The name is gone for a moment when it is renamed over.
    fn blinks(_: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        let is_it = call.verb == Verb::RenameOver && is_about(call, "a");
        (is_it && is_first(has_meddled)).then_some(Fault::Error(ENOENT))
    }
    /// The same, after the directory there has been taken out.
    fn blinks_late(_: &Sim, call: &Call, has_meddled: &AtomicBool) -> Option<Fault> {
        let is_it = call.verb == Verb::Rename && call.other.as_ref().is_some_and(|name| name == "d");
        (is_it && is_first(has_meddled)).then_some(Fault::Error(ENOENT))
    }
    /// Nobody may be given a symlink, and the first staged file can't be written.
    fn refuses(_: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        let is_first_slot = call.verb == Verb::WriteAt && is_about(call, "0");
        (call.verb == Verb::SetOwnerOf || is_first_slot).then_some(Fault::Error(EPERM))
    }
    /// Files are made with an attribute.
    fn hands_on(sim: &Sim, call: &Call, _: &AtomicBool) -> Option<Fault> {
        if let (Verb::FileXattrs | Verb::WriteAt, Some(name)) = (call.verb, &call.name) {
            for dir in names_in(sim, "/tree/.atomtree/stage") {
                let path = format!("/tree/.atomtree/stage/{dir}/{}", name.to_string_lossy());
                if sim.read_file(&path).is_some() {
                    sim.set_xattr(&path, "user.inherited", b"from above");
                }
            }
        }
        None
    }
    fn small(options: Options) -> Options {
        options.log_bytes_max(3 * (64 << 10))
    }
    let fill =
        |count: u64| (0..count).map(|n| Act::Commit(vec![Op::Write("fill", bytes(15_000 + n as usize))]));
    let initial = [("a", file(300)), ("b", file(20)), ("d", dir()), ("d/x", file(9))];
    let write = || vec![Act::Commit(vec![Op::Write("a", bytes(50))]), Act::Crash(Crash::Kill)];
    let turns = vec![Act::Commit(vec![Op::RemoveDirAll("d"), Op::Write("d", bytes(5))]), Act::Reopen];
    let refused = vec![
        Act::Refused(vec![Op::Write("a", bytes(50))]),
        Act::Outside(|sim| sim.set_identity(Identity { uid: 0, gid: 5, umask: 0o022 })),
        Act::Refused(vec![Op::Symlink("link", "b")]),
        Act::Commit(vec![Op::Write("a", bytes(51))]),
    ];
    let with_link = [&initial[..], &[("link", Entry::Link("a".into()))]].concat();
    vec![
        of("no room for a segment", SETTINGS, &[], fill(14).chain([Act::Reopen]).collect())
            .tuned(small)
            .meddled(takes_no_segment),
        of(
            "no room for a header",
            SETTINGS,
            &[],
            (0..10).map(|n| Act::Refused(vec![Op::Write("fill", bytes(15_000 + n))])).collect(),
        )
        .meddled(takes_no_header),
        of("full late", WITHOUT_EXCHANGE, &initial, write()).meddled(is_full_late),
        of("a name that blinks", WITHOUT_EXCHANGE, &initial, write()).meddled(blinks),
        of("a directory that blinks", WITHOUT_EXCHANGE, &initial, turns).meddled(blinks_late),
        of("refusals", SETTINGS, &with_link, refused)
            .prepared(|sim| sim.set_identity(Identity { uid: 0, gid: 0, umask: 0o022 }))
            .meddled(refuses),
        of("attributes from above", SETTINGS, &initial, write()).meddled(hands_on).unlike_others(),
    ]
}
