//! Small workloads that reach what generated histories don't.

mod beside;
mod in_place;
mod rivals;
mod undoing;

use atomtree::vfs::Identity;
use atomtree::vfs::faults::Verb;
use atomtree::vfs::sim::Sim;
use atomtree::{Error, Expectation, Options, Transaction};

use crate::crash::Crash;
use crate::history::{Entry, Operation as Op, Random, Settings, Tree};
use crate::workload::{Act, Meddler, Workload, names_in};

/// All settings as they are most of the time.
const SETTINGS: Settings = Settings {
    inline_bytes_max: 1 << 20,
    can_exchange: true,
    inode_reuse: false,
    cache_pinned: false,
    sync_keeps_names: false,
    settled: false,
};
/// What does not travel in the log.
const BY_REFERENCE: Settings = Settings { inline_bytes_max: 100, ..SETTINGS };
/// What other programs write.
const THEIRS: &[u8] = b"written by another program";

fn bytes(length: usize) -> Vec<u8> {
    Random::new(length as u64).bytes(length)
}

fn file(length: usize) -> Entry {
    Entry::file(bytes(length), 0o644)
}

fn tree(entries: &[(&str, Entry)]) -> Tree {
    entries.iter().map(|(path, entry)| ((*path).to_owned(), entry.clone())).collect()
}

fn dir() -> Entry {
    Entry::Dir(0o755)
}

fn of(name: &str, settings: Settings, initial: &[(&str, Entry)], acts: Vec<Act>) -> Workload {
    Workload {
        name: name.to_owned(),
        settings,
        tune: |options| options,
        initial: tree(initial),
        prepare: |_| {},
        acts,
        meddler: None,
        theirs: None,
        is_ordinary: true,
    }
}

impl Workload {
    fn tuned(self, tune: fn(Options) -> Options) -> Self {
        Self { tune, ..self }
    }

    fn prepared(self, prepare: fn(&Sim)) -> Self {
        Self { prepare, ..self }
    }

    fn unlike_others(self) -> Self {
        Self { is_ordinary: false, ..self }
    }

    fn meddled(self, meddler: Meddler) -> Self {
        Self { meddler: Some(meddler), ..self }
    }

    fn shared(self, meddler: Meddler) -> Self {
        Self { meddler: Some(meddler), theirs: Some(THEIRS), ..self }
    }
}

/// All of them.
pub fn all() -> Vec<Workload> {
    [
        files(),
        contents(),
        directories(),
        owners(),
        logs(),
        spares(),
        stores(),
        rivals::all(),
        undoing::all(),
        beside::all(),
        in_place::all(),
    ]
    .concat()
}

fn files() -> Vec<Workload> {
    let initial = [("a", file(300)), ("b", file(9000)), ("dir", dir()), ("dir/x", file(20))];
    let first = vec![
        Op::Write("a", bytes(500)),
        Op::WriteWithMode("new/deep/z", bytes(5000), 0o600),
        Op::Append("dir/x", bytes(30)),
        Op::Rename("b", "c"),
        Op::SetMode("dir", 0o700),
        Op::Symlink("link", "a"),
    ];
    let second = vec![
        Op::Remove("a"),
        Op::Patch("c", 10, bytes(100)),
        Op::Symlink("link", "c"),
        Op::SetMode("dir/x", 0o600),
        Op::Write("empty", Vec::new()),
    ];
    let acts = vec![
        Act::Commit(first.clone()),
        Act::Wait,
        Act::Commit(second.clone()),
        Act::Look,
        Act::Checkpoint,
        Act::Submit(vec![Op::Write("e", bytes(40))]),
        Act::Reopen,
        Act::Commit(vec![Op::Write("a", bytes(70)), Op::Remove("link")]),
        Act::Crash(Crash::Kill),
        Act::Submit(vec![Op::Write("f", bytes(600))]),
        Act::Crash(Crash::Cut(3)),
        Act::OpenTwice,
        Act::Look,
    ];
    let halted = |at, crash| {
        vec![
            Act::Commit(first.clone()),
            Act::Halted(second.clone(), at),
            Act::Crash(crash),
            Act::Commit(vec![Op::Write("dir/x", bytes(90))]),
        ]
    };
    let without_exchange = Settings { can_exchange: false, ..SETTINGS };
    let pinned = Settings { cache_pinned: true, ..SETTINGS };
    let settled = Settings { settled: true, ..SETTINGS };
    let nested = vec![
        Act::Commit(first.clone()),
        Act::Halted(second.clone(), 20),
        Act::HaltedOpen(Crash::Kill, 30),
        Act::HaltedOpen(Crash::Cut(1), 40),
        Act::Crash(Crash::Cut(2)),
    ];
    let mut all = vec![
        of("files, crashed in recovery", SETTINGS, &initial, nested),
        of("files", SETTINGS, &initial, acts.clone()),
        of("files without exchange", without_exchange, &initial, acts.clone()),
        of("settled files", settled, &initial, acts),
    ];
    for (number, settings) in [SETTINGS, without_exchange, pinned, BY_REFERENCE].into_iter().enumerate() {
        for at in [12, 16, 20, 24, 28] {
            let name = format!("files {number}, halted at {at}");
            all.push(of(&name, settings, &initial, halted(at, Crash::Kill)));
            all.push(of(&name, settings, &initial, halted(at, Crash::Cut(at))));
        }
    }
    all
}

/// Contents that do not travel in the log, and all that a transaction can be asked.
fn contents() -> Vec<Workload> {
    fn streams(tx: &mut Transaction) -> Result<(), Error> {
        tx.write_from("streamed", &*bytes(9000))?;
        tx.append("streamed", bytes(300))?;
        tx.write_from("other", &*bytes(7000))?;
        assert_eq!(tx.read("other")?, bytes(7000));
        assert_eq!(tx.read("streamed")?.len(), 9300);
        tx.append("b", bytes(10))?;
        tx.patch("b", 5, bytes(200))?;
        tx.read("b").map(drop)
    }
    fn streamed(tree: &mut Tree) {
        let changed = [
            Op::Write("streamed", bytes(9000)),
            Op::Append("streamed", bytes(300)),
            Op::Write("other", bytes(7000)),
            Op::Append("b", bytes(10)),
            Op::Patch("b", 5, bytes(200)),
        ];
        changed.iter().for_each(|operation| operation.perform_on(tree));
    }
    fn given_up(tx: &mut Transaction) -> Result<(), Error> {
        tx.write_from("gone", &*bytes(9000)).map(drop)
    }
    fn asks(tx: &mut Transaction) -> Result<(), Error> {
        tx.expect("a", Expectation::Blake3(*blake3::hash(&bytes(300)).as_bytes()))?;
        tx.expect("b", Expectation::Blake3(*blake3::hash(&bytes(9000)).as_bytes()))?;
        tx.expect("nothing", Expectation::Absent)?;
        assert!(tx.exists("dir/x")? && tx.list("dir")?.len() == 2);
        tx.metadata("a")?;
        tx.metadata("dir")?;
        tx.read("through/x")?;
        tx.read_link("through")?;
        let before = tx.savepoint();
        tx.write("dir/x", "not meant")?;
        tx.return_to(&before)?;
        tx.rename("b", "moved")?;
        tx.expect("moved", Expectation::Blake3(*blake3::hash(&bytes(9000)).as_bytes()))?;
        tx.read("moved")?;
        tx.write("c", "new")
    }
    fn asked(tree: &mut Tree) {
        let b = tree.remove("b").expect("it is there");
        tree.insert("moved".into(), b);
        tree.insert("c".into(), Entry::file(b"new".to_vec(), 0o644));
    }
    let initial = [("a", file(300)), ("b", file(9000)), ("dir", dir()), ("dir/x", file(20))];
    let with_link =
        [&initial[..], &[("through", Entry::Link("dir".into())), ("dir/other", Entry::Other)]].concat();
    let mut all = vec![
        of(
            "large files",
            BY_REFERENCE,
            &initial,
            vec![
                Act::Transact(streams, streamed),
                Act::Abandon(given_up),
                Act::Halted(vec![Op::Write("c", bytes(6000)), Op::Append("b", bytes(3000))], 24),
                Act::Crash(Crash::Kill),
                Act::Checkpoint,
            ],
        ),
        of("large files that share blocks", BY_REFERENCE, &initial, vec![Act::Transact(streams, streamed)])
            .prepared(|sim| sim.set_reflinks_supported(true)),
        of("questions", BY_REFERENCE, &with_link, vec![Act::Transact(asks, asked), Act::Wait, Act::Reopen])
            .tuned(|options| options.symlinks(atomtree::Symlinks::Follow)),
        of(
            "many large files",
            BY_REFERENCE,
            &initial,
            vec![Act::Commit(
                ["a", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s"]
                    .map(|path| Op::Write(path, bytes(200)))
                    .to_vec(),
            )],
        ),
    ];
    for at in [8, 12, 16, 20] {
        for crash in [Crash::Kill, Crash::Cut(1), Crash::Cut(2), Crash::Cut(3)] {
            let acts = vec![
                Act::Halted(vec![Op::Write("a", bytes(6000)), Op::Rename("b", "dir/b")], at),
                Act::Crash(crash),
            ];
            all.push(of(&format!("by reference, halted at {at}, {crash:?}"), BY_REFERENCE, &initial, acts));
        }
    }
    let acts = vec![
        Act::Halted(vec![Op::Write("a", bytes(6000)), Op::Write("b", bytes(6000))], 11),
        Act::Crash(Crash::Kill),
    ];
    // Somebody who clears up takes one of two staged contents away; the other is the same.
    all.push(of("the same content by reference", BY_REFERENCE, &initial, acts).meddled(|sim, call, _| {
        if call.verb == Verb::OpenRoot {
            for dir in names_in(sim, "/tree/.atomtree/stage") {
                sim.remove(format!("/tree/.atomtree/stage/{dir}/0"));
            }
        }
        None
    }));
    all
}

fn directories() -> Vec<Workload> {
    let initial = [
        ("d", dir()),
        ("d/x", file(600)),
        ("d/in", dir()),
        ("d/in/y", file(50)),
        ("d/in/deep", dir()),
        ("d/in/deep/z", file(5000)),
        ("e", dir()),
        ("e/w", file(10)),
        ("a", file(30)),
    ];
    let moves = vec![
        Op::Rename("d/in", "e/in"),
        Op::RemoveDirAll("d"),
        Op::Write("d", bytes(20)),
        Op::Rename("e/in/deep", "n"),
        Op::SetMode("n", 0o500),
    ];
    let swap = vec![Op::Rename("d", "hold"), Op::Rename("e", "d"), Op::Rename("hold", "e")];
    let one = vec![Op::Rename("d", "moved")];
    let removal = vec![Op::RemoveDirAll("d"), Op::CreateDir("made"), Op::CreateDir("made/in")];
    let mut all = Vec::new();
    for can_exchange in [true, false] {
        let settings = Settings { can_exchange, inode_reuse: can_exchange, ..SETTINGS };
        for (number, operations) in [&moves, &swap, &one, &removal].into_iter().enumerate() {
            let whole = vec![
                Act::Commit(operations.clone()),
                Act::Commit(vec![Op::Write("a", bytes(31))]),
                Act::Crash(Crash::Kill),
                Act::Commit(vec![Op::Write("e/w", bytes(31))]),
                Act::Checkpoint,
            ];
            all.push(of(&format!("directories {number}, {can_exchange}"), settings, &initial, whole));
            for at in (4..40).step_by(3) {
                let crash = if at % 2 == 0 { Crash::Kill } else { Crash::Cut(at) };
                let acts = vec![
                    Act::Halted(operations.clone(), at),
                    Act::Crash(crash),
                    Act::Commit(vec![Op::Write("a", bytes(31))]),
                ];
                let name = format!("directories {number}, {can_exchange}, halted at {at}");
                all.push(of(&name, settings, &initial, acts));
                let acts =
                    vec![Act::Halted(operations.clone(), 25), Act::HaltedOpen(crash, at), Act::Crash(crash)];
                let name = format!("directories {number}, {can_exchange}, recovery halted at {at}");
                all.push(of(&name, settings, &initial, acts));
            }
        }
    }
    all
}

/// Owners, attributes and modes.
fn owners() -> Vec<Workload> {
    let root = |sim: &Sim| {
        sim.set_identity(Identity { uid: 0, gid: 0, umask: 0o022 });
        for path in ["/tree/a", "/tree/b", "/tree/link", "/tree/group", "/tree/group/x"] {
            sim.set_owner(path, 1000, 1000);
        }
        for path in ["/tree/a", "/tree/b"] {
            sim.set_xattr(path, "user.comment", b"kept");
        }
        sim.set_mode("/tree/group", 0o2755);
    };
    let initial = [("a", file(300)), ("b", file(9000)), ("group", dir()), ("group/x", file(20))];
    let with_link = [&initial[..], &[("link", Entry::Link("a".into()))]].concat();
    let mut expected = tree(&with_link);
    expected.insert("group".into(), Entry::Dir(0o2755));
    let operations = vec![
        Op::Write("a", bytes(310)),
        Op::Append("b", bytes(10)),
        Op::Symlink("link", "b"),
        Op::Write("group/new/y", bytes(10)),
        // A directory made in one with the setgid bit gets that, and the group.
        Op::SetMode("group/new", 0o2755),
        Op::SetMode("group/x", 0o2755),
    ];
    let mut all = Vec::new();
    for settings in [SETTINGS, BY_REFERENCE, Settings { can_exchange: false, ..SETTINGS }] {
        let whole = vec![
            Act::Commit(operations.clone()),
            Act::Crash(Crash::Cut(1)),
            Act::Commit(vec![Op::Remove("a")]),
        ];
        let mut one = of("owners", settings, &with_link, whole).prepared(root);
        one.initial = expected.clone();
        all.push(one);
        for at in (6..40).step_by(2) {
            for crash in [Crash::Kill, Crash::Cut(at)] {
                let acts = vec![Act::Halted(operations.clone(), at), Act::Crash(crash), Act::Checkpoint];
                let name = format!("owners, halted at {at}");
                let mut one = of(&name, settings, &with_link, acts).prepared(root);
                one.initial = expected.clone();
                all.push(one);
            }
        }
    }
    all.extend(other_owners());
    all
}

/// What has other owners and attributes than a file made now would have.
fn other_owners() -> Vec<Workload> {
    fn root(sim: &Sim) {
        sim.set_identity(Identity { uid: 0, gid: 0, umask: 0o022 });
        sim.set_owner("/tree/a", 1000, 1000);
        sim.set_xattr("/tree/a", "user.comment", b"of the one that goes");
    }
    /// The same user, in another group.
    fn of_another_group(sim: &Sim) {
        sim.set_identity(Identity { uid: 0, gid: 5, umask: 0o022 });
    }
    fn streams(tx: &mut Transaction) -> Result<(), Error> {
        tx.write_from("a", &*bytes(9000)).map(drop)
    }
    fn streamed(tree: &mut Tree) {
        Op::Write("a", bytes(9000)).perform_on(tree);
    }
    let initial = [("a", file(300)), ("b", file(300)), ("pipe", Entry::Other)];
    let makes = vec![Op::CreateDir("made"), Op::Write("made/in/x", bytes(9)), Op::Symlink("link", "a")];
    let moves = vec![Op::Rename("pipe", "piped"), Op::SetMode("piped", 0o600)];
    let mut all = vec![
        of(
            "a stream to another's file",
            BY_REFERENCE,
            &initial,
            vec![Act::Transact(streams, streamed), Act::Crash(Crash::Kill)],
        )
        .prepared(root),
    ];
    for at in 2..24 {
        let acts = vec![
            Act::Halted(makes.clone(), 7),
            Act::Outside(of_another_group),
            Act::HaltedOpen(Crash::Kill, 8 + at),
            Act::Crash(Crash::Kill),
        ];
        all.push(of(&format!("another group, {at}"), SETTINGS, &initial, acts).prepared(root));
        let acts = vec![Act::Halted(moves.clone(), at), Act::Crash(Crash::Kill)];
        all.push(of(&format!("a pipe that moves, {at}"), SETTINGS, &initial, acts).prepared(root));
        let acts = vec![Act::Halted(vec![Op::Rename("b", "a")], at), Act::Crash(Crash::Kill)];
        all.push(of(&format!("the same content, {at}"), SETTINGS, &initial, acts).prepared(root));
    }
    all
}

/// The log: its segments, its end, and what is left of it.
/// Crashes while the log gets another segment, before it has a header too.
fn spares() -> Vec<Workload> {
    let fill = |number: usize| vec![Op::Write("fill", bytes(15_000 + number))];
    let halted = |commits: usize, at: u64| {
        let acts = (0..commits).map(|number| Act::Commit(fill(number)));
        let end = [Act::Halted(fill(commits), at), Act::Crash(Crash::Kill), Act::Commit(fill(9))];
        let name = format!("a spare after {commits} commits, halted at {at}");
        of(&name, SETTINGS, &[], acts.chain(end).collect())
    };
    (3..6).flat_map(|commits| (10..45).map(move |at| halted(commits, at))).collect()
}

fn logs() -> Vec<Workload> {
    fn small_log(options: Options) -> Options {
        options.log_bytes_max(3 * (64 << 10))
    }
    let fill = |count: u64| {
        (0..count).map(|number| Act::Commit(vec![Op::Write("fill", Random::new(number).bytes(15_000))]))
    };
    let mut all = vec![
        of("a log of many segments", SETTINGS, &[], fill(14).chain([Act::Checkpoint, Act::Reopen]).collect()),
        of("a full log", SETTINGS, &[], fill(24).chain([Act::Reopen]).collect())
            .tuned(|options| options.log_bytes_max(3 * (64 << 10)).history_transactions_max(3)),
        of(
            "a history that is pruned",
            SETTINGS,
            &[],
            fill(6).flat_map(|act| [act, Act::Checkpoint]).chain([Act::Look]).collect(),
        )
        .tuned(|options| options.history_transactions_max(2)),
    ];
    for at in [2, 4, 12, 14, 15, 16, 17, 18, 19, 20, 22] {
        let acts = fill(3).chain([
            Act::Halted(vec![Op::Write("fill", bytes(15_000)), Op::Write("a", bytes(900))], at),
            Act::Crash(Crash::Kill),
        ]);
        let acts = acts.chain(fill(6)).collect();
        all.push(of(&format!("a log that grows, halted at {at}"), SETTINGS, &[], acts).tuned(small_log));
    }
    all
}

/// Stores that are half made, copied, restored, or looked at in the middle.
fn stores() -> Vec<Workload> {
    fn half_made(sim: &Sim) {
        sim.create_dir("/tree/.atomtree.new");
        sim.set_mode("/tree/.atomtree.new", 0o755);
        for part in ["wal", "stage"] {
            sim.create_dir(format!("/tree/.atomtree.new/{part}"));
        }
        for name in ["lock", "members", "store", "wal/0001.seg"] {
            sim.write_file(format!("/tree/.atomtree.new/{name}"), b"");
        }
    }
    fn copied(sim: &Sim) {
        let store = sim.read_file("/tree/.atomtree/store").expect("the store stands");
        sim.replace_file("/tree/.atomtree/store", &store);
        sim.set_mode("/tree/.atomtree/store", 0o600);
    }
    fn without_locks(sim: &Sim) {
        sim.remove("/tree/.atomtree/lock");
        sim.remove("/tree/.atomtree/members");
        sim.remove("/tree/.atomtree/ballast");
    }
    let write = || Act::Commit(vec![Op::Write("a", bytes(50)), Op::Write("b/c", bytes(5))]);
    vec![
        of("a half made store", SETTINGS, &[], vec![write()]).prepared(half_made),
        of(
            "a copied store",
            SETTINGS,
            &[],
            vec![
                write(),
                Act::Halted(vec![Op::Write("d", bytes(7))], 8),
                Act::Outside(copied),
                Act::Crash(Crash::Kill),
            ],
        )
        .tuned(|options| options.adopt(true)),
        of(
            "a restored store",
            SETTINGS,
            &[],
            vec![
                write(),
                Act::Halted(vec![Op::Write("d", bytes(7))], 8),
                Act::Crash(Crash::Kill),
                Act::Checkpoint,
            ],
        )
        .meddled(|sim, call, _| {
            // A backup has left them out.
            if call.verb == Verb::OpenRoot && names_in(sim, "/tree/.atomtree").contains("members") {
                without_locks(sim);
            }
            None
        }),
        of(
            "a look at a store that was killed",
            SETTINGS,
            &[("a", file(10))],
            vec![
                write(),
                Act::Halted(vec![Op::Write("d", bytes(7)), Op::Write("a", bytes(8))], 12),
                Act::Down(Crash::Kill),
                Act::Look,
            ],
        ),
    ]
}
