//! What the engine does when nothing goes wrong: every operation, alone and one upon another, small and large, through
//! many segments, and what closing and opening again leaves. Also the helpers that the modules beside it share.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as ErrorKindOfIo;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use atomtree::vfs::{Access, Vfs, os::Os};
use atomtree::{
    Checkpoints, Error, ErrorKind, Expectation, Inspection, Options, Receipt, RecoveryReport, Store,
    Transaction,
};
use tempfile::TempDir;

// Helpers of this binary's modules.

/// Options whose log is small and cheap to create.
pub(crate) fn small() -> Options {
    Options::new().segment_bytes(64 << 10).log_bytes_max(4 << 20)
}

/// As [`small`], without a thread that checkpoints when it pleases.
pub(crate) fn manual() -> Options {
    small().checkpoints(Checkpoints::Manual)
}

/// An empty tree with an open store.
pub(crate) fn opened(options: Options) -> (TempDir, Store) {
    let scratch = tempfile::tempdir().unwrap();
    let store = options.open(scratch.path()).unwrap();
    (scratch, store)
}

/// Commits what `change` puts together.
pub(crate) fn commit(
    store: &Store,
    change: impl FnOnce(&mut Transaction) -> Result<(), Error>,
) -> Result<Receipt, Error> {
    let mut tx = store.begin()?;
    change(&mut tx)?;
    tx.commit()
}

/// The kind of the error.
#[track_caller]
pub(crate) fn kind_of<T>(result: Result<T, Error>) -> ErrorKind {
    result.map(|_| ()).expect_err("it fails").kind()
}

/// All that can be seen of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Kind and permission bits, as `stat` has them.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Content of a file, target of a symlink.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) modified: (i64, i64),
    pub(crate) inode: u64,
}

/// Everything below `root` but the store itself.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKindOfIo::PermissionDenied => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            if relative.starts_with(".atomtree") {
                continue;
            }
            let seen = look(&path);
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                dirs.push(path);
            }
            found.insert(relative, seen);
        }
    }
    found
}

/// All that can be seen of one name.
pub(crate) fn look(path: &Path) -> Seen {
    let metadata = fs::symlink_metadata(path).unwrap();
    let xattrs = |xattrs: Vec<atomtree::vfs::Xattr>| {
        xattrs.into_iter().map(|x| (x.name.into_string().unwrap(), x.value)).collect()
    };
    let (content, xattrs) = if metadata.is_file() {
        let dir = Os.open_root(path.parent().unwrap()).unwrap();
        match dir.open_file(path.file_name().unwrap(), Access::Read) {
            Err(error) if error.kind() == ErrorKindOfIo::PermissionDenied => {
                (b"unreadable".into(), Vec::new())
            }
            file => (fs::read(path).unwrap(), xattrs(file.unwrap().xattrs().unwrap())),
        }
    } else if metadata.is_dir() {
        (Vec::new(), xattrs(Os.open_root(path).unwrap().xattrs().unwrap()))
    } else if metadata.is_symlink() {
        (fs::read_link(path).unwrap().into_os_string().into_encoded_bytes(), Vec::new())
    } else {
        (Vec::new(), Vec::new())
    };
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        content,
        xattrs,
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
    }
}

/// Random numbers that a seed repeats.
pub(crate) struct Random(u64);

impl Random {
    /// With the seed from the environment (`SEED`), else a new one; printed, for whoever sees the test fail.
    pub(crate) fn from_environment() -> Self {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => Os.random().unwrap() as u64,
        };
        println!("SEED={seed}");
        Self(seed)
    }

    /// With this seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// This binary again, running only the test with this path, which acts as a child when `ATOMTREE_CHILD` is set.
pub(crate) fn child(test: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads", "1"]).env("ATOMTREE_CHILD", root);
    command
}

/// The root that a child was given; `None` in the parent, where its test does nothing.
pub(crate) fn child_root() -> Option<PathBuf> {
    std::env::var_os("ATOMTREE_CHILD").map(PathBuf::from)
}

/// Whether this process is root; says so where a test is skipped without.
pub(crate) fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        atomtree_tests::volume::skip("what comes next", "it takes root");
    }
    root
}

/// Runs a shell command that must succeed.
#[track_caller]
pub(crate) fn shell(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

fn stage_of(root: &Path) -> Vec<PathBuf> {
    let stage = root.join(".atomtree/stage");
    let mut files = Vec::new();
    for dir in fs::read_dir(stage).unwrap() {
        let dir = dir.unwrap().path();
        files.extend(fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()));
    }
    files.retain(|file| file.file_name().unwrap() != "lock");
    files
}

pub(crate) fn inspect(root: &Path) -> Inspection {
    Inspection::open(root, &Options::new()).unwrap()
}

// Operations.

/// Goal: each operation has its effect at once in the tree, and the receipt counts names. Method: one commit each.
#[test]
fn each_operation_does_what_its_name_says() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let receipt = commit(&store, |tx| tx.write("a", "one")).unwrap();
    assert_eq!((receipt.tx().0, receipt.files(), receipt.displaced().len()), (1, 1, 0));
    assert_eq!(fs::read(root.join("a")).unwrap(), b"one");
    let receipt = commit(&store, |tx| tx.write("a", "two")).unwrap();
    assert_eq!((receipt.tx().0, receipt.files()), (2, 1));
    assert_eq!(fs::read(root.join("a")).unwrap(), b"two");
    commit(&store, |tx| tx.append("a", "+three")).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"two+three");
    commit(&store, |tx| tx.append("made", "by append")).unwrap();
    assert_eq!(fs::read(root.join("made")).unwrap(), b"by append");
    commit(&store, |tx| tx.patch("a", 1, "WO+")).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"tWO+three");
    commit(&store, |tx| tx.patch("a", 9, " more")).unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"tWO+three more");
    let receipt = commit(&store, |tx| tx.rename("a", "deep/er/b")).unwrap();
    assert_eq!(receipt.files(), 4, "two names and two directories");
    assert!(!root.join("a").exists());
    assert_eq!(fs::read(root.join("deep/er/b")).unwrap(), b"tWO+three more");
    commit(&store, |tx| tx.remove("deep/er/b")).unwrap();
    assert!(!root.join("deep/er/b").exists());
    assert!(root.join("deep/er").is_dir(), "only the file was removed");
    let receipt = commit(&store, |tx| tx.read("made").map(drop)).unwrap();
    assert_eq!((receipt.tx().0, receipt.files()), (0, 0), "a transaction that only reads has no number");
    store.close().unwrap();
}

/// Goal: operations act on each other's results, exactly as if done one by one. Method: chains, each in one
/// transaction, with reads in between.
#[test]
fn operations_act_on_the_results_of_those_before() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    let content = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    for name in ["a", "b"] {
        fs::write(root.join(name), name).unwrap();
    }

    commit(&store, |tx| {
        tx.write("new", "x")?;
        tx.rename("new", "dir/newer")?;
        tx.append("dir/newer", "y")?;
        tx.patch("dir/newer", 0, "X")?;
        assert_eq!(tx.read("dir/newer")?, b"Xy");
        assert!(!tx.exists("new")?);
        Ok(())
    })
    .unwrap();
    assert_eq!(content("dir/newer"), "Xy");
    assert!(!root.join("new").exists());

    // A swap goes through a third name, which leaves no trace.
    let receipt = commit(&store, |tx| {
        tx.rename("a", "third")?;
        tx.rename("b", "a")?;
        tx.rename("third", "b")
    })
    .unwrap();
    assert_eq!((content("a"), content("b")), ("b".into(), "a".into()));
    assert_eq!(receipt.files(), 2);
    assert!(!root.join("third").exists());

    commit(&store, |tx| {
        tx.rename("a", "c")?;
        assert_eq!(kind_of(tx.read("a")), ErrorKind::NotFound);
        tx.write("a", "new a")
    })
    .unwrap();
    assert_eq!((content("a"), content("c")), ("new a".into(), "b".into()));

    let receipt = commit(&store, |tx| {
        tx.write("gone", "x")?;
        tx.remove("gone")?;
        tx.remove("a")?;
        tx.write("a", "again")?;
        assert_eq!(kind_of(tx.remove("gone")), ErrorKind::NotFound);
        assert_eq!(kind_of(tx.patch("gone", 0, "x")), ErrorKind::NotFound);
        assert_eq!(kind_of(tx.patch("a", 6, "x")), ErrorKind::InvalidInput);
        assert_eq!(kind_of(tx.patch("a", u64::MAX, "x")), ErrorKind::InvalidInput);
        tx.patch("a", 5, "!")
    })
    .unwrap();
    assert_eq!((content("a"), receipt.files()), ("again!".into(), 1));
    assert!(!root.join("gone").exists());

    // A chain that ends where it began.
    commit(&store, |tx| {
        tx.rename("a", "z")?;
        tx.rename("z", "a")
    })
    .unwrap();
    assert_eq!(content("a"), "again!");
    commit(&store, |tx| tx.rename("a", "a")).unwrap();
    assert_eq!(content("a"), "again!");
    store.close().unwrap();
}

/// Goal: a directory that a transaction makes stays when the file that needed it goes again, as if done one by one;
/// and a name that was only a file in passing may become a directory. Method: each in one transaction.
#[test]
fn directories_made_on_the_way_stay() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    commit(&store, |tx| {
        tx.write("d/e/f", "x")?;
        tx.remove("d/e/f")?;
        assert_eq!(kind_of(tx.write("d/e", "x")), ErrorKind::IsADirectory);
        assert_eq!(kind_of(tx.remove("d")), ErrorKind::IsADirectory);
        Ok(())
    })
    .unwrap();
    assert!(root.join("d/e").is_dir());
    commit(&store, |tx| {
        tx.write("passing", "x")?;
        assert_eq!(kind_of(tx.write("passing/below", "x")), ErrorKind::NotADirectory);
        tx.rename("passing", "kept")?;
        tx.write("passing/below", "y")
    })
    .unwrap();
    assert_eq!(fs::read(root.join("passing/below")).unwrap(), b"y");
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"x");
    store.close().unwrap();
}

/// Goal: a name can change from file to directory in one transaction. Method: by a write below it, and by a rename.
#[test]
fn a_file_becomes_a_directory_in_one_transaction() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("file"), "1").unwrap();
    fs::write(root.join("other"), "2").unwrap();
    commit(&store, |tx| {
        tx.remove("file")?;
        assert!(!tx.exists("file/below")?);
        tx.write("file/below", "x")?;
        tx.rename("other", "file/moved")
    })
    .unwrap();
    assert_eq!(fs::read(root.join("file/below")).unwrap(), b"x");
    assert_eq!(fs::read(root.join("file/moved")).unwrap(), b"2");
    assert!(!root.join("other").exists());
    store.close().unwrap();
}

/// Goal: a file that is edited after it was renamed has a new time of modification. Method: renames an old file, alone
/// and followed by an append.
#[test]
fn an_edit_after_a_rename_is_a_modification() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    shell(&format!("cd '{}'; echo x > a; echo x > b; touch -d 2001-02-03 a b", root.display()));
    let old = look(&root.join("a")).modified;
    commit(&store, |tx| {
        tx.rename("a", "c")?;
        tx.rename("b", "d")?;
        tx.append("d", "y")
    })
    .unwrap();
    assert_eq!(look(&root.join("c")).modified, old);
    assert!(look(&root.join("d")).modified.0 > old.0 + 1_000_000);
    store.close().unwrap();
}

/// Goal: `expect` sees the transaction's own view, and failing it leaves the transaction usable. Method: digests and
/// absence, of originals and of what was written.
#[test]
fn expectations_are_about_the_transactions_own_view() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "1").unwrap();
    fs::write(root.join("large"), vec![7; 3 << 20]).unwrap();
    let digest = |bytes: &[u8]| Expectation::Blake3(*blake3::hash(bytes).as_bytes());
    commit(&store, |tx| {
        tx.expect("a", digest(b"1"))?;
        tx.expect("large", digest(&vec![7; 3 << 20]))?;
        tx.expect("new", Expectation::Absent)?;
        assert_eq!(kind_of(tx.expect("a", Expectation::Absent)), ErrorKind::Conflict);
        assert_eq!(kind_of(tx.expect("a", digest(b"2"))), ErrorKind::Conflict);
        assert_eq!(kind_of(tx.expect("new", digest(b""))), ErrorKind::Conflict);
        tx.write("new", "n")?;
        tx.expect("new", digest(b"n"))?;
        tx.remove("a")?;
        tx.expect("a", Expectation::Absent)
    })
    .unwrap();
    assert!(!root.join("a").exists());
    store.close().unwrap();
}

/// Goal: contents at the edges of travelling in the log, of a segment and of memory come out whole. Method: sizes
/// around each edge, written, appended to, patched and renamed, with `inline_bytes_max` at its default and at zero.
#[test]
fn contents_of_every_size_come_out_whole() {
    let mut random = Random::from_environment();
    for options in [
        Options::new().segment_bytes(8 << 20).log_bytes_max(64 << 20),
        small().inline_bytes_max(0),
        small().inline_bytes_max(64 << 20),
    ] {
        let (scratch, store) = opened(options);
        let root = scratch.path();
        let mib = 1 << 20;
        for size in [0, 1, 511, 4095, 4096, 4097, 65_535, 65_536, mib - 1, mib, mib + 1, 5 * mib] {
            let mut expected = random.bytes(size);
            commit(&store, |tx| tx.write("f", expected.clone())).unwrap();
            assert!(fs::read(root.join("f")).unwrap() == expected, "written, {size}");
            commit(&store, |tx| {
                tx.append("f", "tail")?;
                tx.patch("f", size as u64 / 2, "half")?;
                tx.append("f", "end")
            })
            .unwrap();
            expected.extend(b"tail");
            expected[size / 2..][..4].copy_from_slice(b"half");
            expected.extend(b"end");
            assert!(fs::read(root.join("f")).unwrap() == expected, "edited, {size}");
            // Across the pieces in which a large content is copied, later patches over earlier ones, to the end and past it.
            let (start, patch) = (expected.len() / 3, random.bytes(expected.len() / 2));
            commit(&store, |tx| {
                tx.patch("f", start as u64, patch.clone())?;
                tx.patch("f", start as u64 + 1, "over")?;
                tx.patch("f", expected.len() as u64 - 1, "past the end")
            })
            .unwrap();
            expected[start..][..patch.len()].copy_from_slice(&patch);
            expected[start + 1..][..4].copy_from_slice(b"over");
            expected.pop();
            expected.extend(b"past the end");
            assert!(fs::read(root.join("f")).unwrap() == expected, "patched, {size}");
            commit(&store, |tx| {
                tx.rename("f", "g")?;
                assert!(tx.read("g")? == expected, "read before commit, {size}");
                Ok(())
            })
            .unwrap();
            assert!(fs::read(root.join("g")).unwrap() == expected, "renamed, {size}");
            commit(&store, |tx| tx.rename("g", "f")).unwrap();
        }
        store.close().unwrap();
        assert_eq!(inspect(root).verify().unwrap().problems.len(), 0);
    }
}

/// Goal: one transaction of 2,000 files, larger than its share of the log, commits, even where few descriptors are to
/// be had. Method: 4 KiB each, in ten directories; the whole test once more in a child with 256 descriptors.
#[test]
fn two_thousand_files_in_one_transaction() {
    let is_child = child_root().is_some();
    let (scratch, store) = opened(Options::new().segment_bytes(4 << 20).log_bytes_max(32 << 20));
    let receipt = commit(&store, |tx| {
        (0..2000).try_for_each(|n| tx.write(format!("d{}/{n}", n % 10), format!("{n:>4096}")))
    })
    .unwrap();
    assert_eq!(receipt.files(), 2010);
    for n in 0..2000 {
        let content = fs::read_to_string(scratch.path().join(format!("d{}/{n}", n % 10))).unwrap();
        assert_eq!(content, format!("{n:>4096}"));
    }
    let receipt =
        commit(&store, |tx| (0..2000).try_for_each(|n| tx.remove(format!("d{}/{n}", n % 10)))).unwrap();
    assert_eq!(receipt.files(), 2000);
    store.close().unwrap();
    assert_eq!(tree(scratch.path()).len(), 10);
    if !is_child {
        let exe = std::env::current_exe().unwrap();
        let script = format!(
            "ulimit -n 256; exec '{}' --exact basics::two_thousand_files_in_one_transaction",
            exe.display()
        );
        let output = Command::new("sh").args(["-c", &script]).env("ATOMTREE_CHILD", "/").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

// The log.

/// Goal: commits go on through many rotations, recycled segments and a log that is full again and again, and all of
/// them are in the history. Method: 600 commits of up to 20 KiB through a log of three or four 64 KiB segments, by
/// background checkpoints and by those that a full log forces.
#[test]
fn commits_go_on_through_a_log_that_is_always_full() {
    for (checkpoints, segments) in
        [(Checkpoints::Manual, 3), (Checkpoints::Background, 3), (Checkpoints::Manual, 4)]
    {
        let mut random = Random::from_environment();
        let options = small().log_bytes_max(segments * (64 << 10)).checkpoints(checkpoints);
        let (scratch, store) = opened(options);
        let root = scratch.path();
        let mut expected = BTreeMap::new();
        for n in 0..200 {
            let name = format!("f{}", random.below(7));
            // At the largest, a transaction takes almost two segments.
            let count = if n % 50 == 49 { 5 } else { 1 };
            let length = random.below(16_000) as usize;
            let content = random.bytes(length);
            commit(&store, |tx| {
                (0..count).try_for_each(|copy| tx.write(format!("{name}-{copy}"), content.clone()))
            })
            .unwrap_or_else(|error| panic!("commit {n}, {checkpoints:?}, {segments} segments: {error}"));
            for copy in 0..count {
                expected.insert(format!("{name}-{copy}"), content.clone());
            }
        }
        for (name, content) in &expected {
            assert!(fs::read(root.join(name)).unwrap() == *content, "{name}");
        }
        let status = inspect(root).status().unwrap();
        assert!(status.log_segments as u64 <= segments, "{status:?}");
        store.close().unwrap();
        let history: Vec<u64> = inspect(root).log(1000).unwrap().iter().map(|past| past.tx.0).collect();
        assert_eq!(history, (1..=200).rev().collect::<Vec<_>>());
    }
}

/// Goal: a transaction that fits into an empty log commits however full the log happens to be; one that never fits is
/// refused before anything changes, and the next one commits. Method: 3,000 bytes a commit through three segments with
/// one of 90 KB every so often; then names enough for ten segments.
#[test]
fn a_transaction_that_fits_into_the_log_is_never_refused() {
    let (scratch, store) = opened(manual().log_bytes_max(3 * (64 << 10)).inline_bytes_max(3000));
    for n in 0..60 {
        commit(&store, |tx| tx.write("small", vec![b's'; 3000 - n])).unwrap();
        if n % 4 == 0 {
            commit(&store, |tx| (0..24).try_for_each(|f| tx.write(format!("f{f}"), vec![b'x'; 2900])))
                .unwrap_or_else(|error| panic!("after {n}: {error}"));
        }
    }
    let before = tree(scratch.path());
    let too_large = commit(&store, |tx| {
        (0..2500)
            .try_for_each(|f| tx.write(format!("dir/{f:0>200}"), "a name and its attributes count as well"))
    });
    assert_eq!(kind_of(too_large), ErrorKind::NoSpace);
    assert_eq!(tree(scratch.path()), before);
    // What was staged is gone, and so are the originals: making room had settled what was before.
    assert_eq!(stage_of(scratch.path()), Vec::<PathBuf>::new());
    commit(&store, |tx| tx.write("small", "fits")).unwrap();
    store.close().unwrap();
}

// Opening, closing, abandoning.

/// Goal: after a clean close nothing is left to do or to clear. Method: status, the names in the store and the next
/// recovery's report, after commits of every kind; then an open without commits leaves the store closed too.
#[test]
fn a_clean_close_leaves_nothing_to_replay() {
    let (scratch, store) = opened(small());
    let root = scratch.path();
    assert_eq!(*store.recovery(), RecoveryReport::default(), "a new store recovers nothing");
    commit(&store, |tx| tx.write("d/a", "1")).unwrap();
    commit(&store, |tx| tx.write("d/a", "2")).unwrap();
    commit(&store, |tx| tx.rename("d/a", "b")).unwrap();
    commit(&store, |tx| tx.write("large", vec![1; 2 << 20])).unwrap();
    store.close().unwrap();
    for round in 0..3 {
        let status = inspect(root).status().unwrap();
        assert!(status.is_clean, "round {round}");
        assert_eq!((status.unsettled, status.last_tx.0, status.quarantined), (0, 4, 0));
        assert!(status.holder.is_none());
        assert_eq!(fs::read_dir(root.join(".atomtree/stage")).unwrap().count(), 0, "round {round}");
        let store = small().open(root).unwrap();
        assert_eq!(*store.recovery(), RecoveryReport::default());
        drop(store);
    }
    let verification = inspect(root).verify().unwrap();
    assert!(verification.closed && verification.problems.is_empty());
    assert_eq!((verification.settled, verification.slots), (4, 0));
}

/// Goal: dropping the last handle closes as `close` does; a handle that was cloned keeps the store open; `close` closes
/// for all clones, and the tree can be opened again while they live.
#[test]
fn the_last_handle_closes_and_close_is_for_all() {
    let (scratch, store) = opened(small());
    let root = scratch.path();
    commit(&store, |tx| tx.write("a", "1")).unwrap();
    let clone = store.clone();
    drop(store);
    commit(&clone, |tx| tx.write("a", "2")).unwrap();
    drop(clone);
    assert!(inspect(root).status().unwrap().is_clean);

    let store = small().open(root).unwrap();
    assert_eq!(*store.recovery(), RecoveryReport::default());
    let (clone, mut tx) = (store.clone(), store.begin().unwrap());
    tx.write("a", "3").unwrap();
    store.close().unwrap();
    assert_eq!(kind_of(clone.begin().map(drop)), ErrorKind::InvalidInput);
    assert_eq!(kind_of(tx.commit()), ErrorKind::InvalidInput);
    clone.clone().close().unwrap();
    let again = small().open(root).unwrap();
    assert_eq!(*again.recovery(), RecoveryReport::default());
    assert_eq!(fs::read(root.join("a")).unwrap(), b"2");
    drop(clone);
    commit(&again, |tx| tx.write("a", "4")).unwrap();
    again.close().unwrap();
}

/// Goal: a transaction may outlive every handle of its store; committing it is what closes the store then.
#[test]
fn a_transaction_outlives_the_handle() {
    let (scratch, store) = opened(small());
    let mut tx = store.begin().unwrap();
    tx.write("a", "1").unwrap();
    drop(store);
    assert_eq!(kind_of(alone().open(scratch.path()).map(drop)), ErrorKind::Locked);
    tx.commit().unwrap();
    assert_eq!(fs::read(scratch.path().join("a")).unwrap(), b"1");
    let store = small().open(scratch.path()).unwrap();
    assert_eq!(*store.recovery(), RecoveryReport::default(), "it was closed");
    let tx = store.begin().unwrap();
    drop(store);
    drop(tx);
    assert!(inspect(scratch.path()).status().unwrap().is_clean);
}

/// Goal: commits that race with `close` either fail or are as safe as any other: what was acknowledged is in the tree,
/// and nothing that close did not settle is called settled. Method: threads commit until they are refused.
#[test]
fn close_while_others_commit() {
    for _ in 0..10 {
        let (scratch, store) = opened(small());
        let acknowledged: Vec<u64> = std::thread::scope(|scope| {
            let committers: Vec<_> = (0..3)
                .map(|thread| {
                    let store = store.clone();
                    scope.spawn(move || {
                        (1..u64::MAX)
                            .take_while(|n| {
                                let result =
                                    commit(&store, |tx| tx.write(format!("f{thread}"), n.to_string()));
                                if let Err(error) = &result {
                                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                                }
                                result.is_ok()
                            })
                            .last()
                            .unwrap_or(0)
                    })
                })
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(20));
            store.clone().close().unwrap();
            committers.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (thread, last) in acknowledged.iter().enumerate().filter(|(_, last)| **last > 0) {
            let found = fs::read_to_string(scratch.path().join(format!("f{thread}"))).unwrap();
            assert_eq!(found, last.to_string());
        }
        assert!(
            inspect(scratch.path()).status().unwrap().is_clean,
            "no commit comes after the closing record"
        );
        assert_eq!(stage_of(scratch.path()), Vec::<PathBuf>::new());
        let again = small().open(scratch.path()).unwrap();
        assert_eq!(*again.recovery(), RecoveryReport::default());
    }
}

/// Goal: a transaction that is dropped, or refused, leaves nothing in `stage/` nor in the tree.
#[test]
fn what_is_abandoned_leaves_nothing() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "1").unwrap();
    let before = tree(root);
    let mut tx = store.begin().unwrap();
    tx.write("b/c", vec![0; 3 << 20]).unwrap();
    tx.append("a", "x").unwrap();
    drop(tx);
    assert_eq!(tree(root), before);
    assert_eq!(stage_of(root), Vec::<PathBuf>::new());
    let mut tx = store.begin().unwrap();
    tx.write("b/c", vec![0; 3 << 20]).unwrap();
    tx.append("a", "x").unwrap();
    fs::write(root.join("a"), "22").unwrap();
    let before = tree(root);
    assert_eq!(kind_of(tx.commit()), ErrorKind::Conflict);
    assert_eq!(tree(root), before);
    assert_eq!(stage_of(root), Vec::<PathBuf>::new());
    store.close().unwrap();
}

/// Options of who wants the store for himself, and doesn't wait for it.
fn alone() -> Options {
    small().exclusive(true).lock_timeout(Duration::ZERO)
}

/// Goal: who has the store open is told to those who want it for themselves, in this process or another, and a store that
/// was freed opens. Method: a second open here, and one in a child.
#[test]
fn a_second_open_is_told_who_has_the_store() {
    if let Some(root) = child_root() {
        match alone().open(root) {
            Err(error) => eprintln!("refused {} {error}", error.kind().code()),
            Ok(_) => eprintln!("opened"),
        }
        return;
    }
    let (scratch, store) = opened(small());
    let pid = format!("process {} ", std::process::id());
    let error = alone().open(scratch.path()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains(&pid), "{error}");
    let ask = || {
        let output =
            child("basics::a_second_open_is_told_who_has_the_store", scratch.path()).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let answer = ask();
    assert!(answer.contains("refused locked") && answer.contains(&pid), "{answer}");
    assert_eq!(inspect(scratch.path()).holder().unwrap().unwrap().pid, std::process::id());
    commit(&store, |tx| tx.write("a", "still ours")).unwrap();
    store.close().unwrap();
    assert!(ask().contains("opened"));
    assert_eq!(inspect(scratch.path()).holder().unwrap(), None);
}

/// Goal: `transact` returns the closure's value and its own errors, and repeats only conflicts.
#[test]
fn transact_repeats_conflicts_and_nothing_else() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "0").unwrap();
    let mut runs = 0;
    let (value, receipt) = store
        .transact(|tx| {
            runs += 1;
            let seen = tx.read("a")?;
            if runs < 3 {
                fs::write(root.join("a"), format!("foreign {runs}")).unwrap();
            }
            tx.write("a", [&seen[..], b"+"].concat())?;
            Ok(seen)
        })
        .unwrap();
    assert_eq!((runs, value.as_slice(), receipt.files()), (3, b"foreign 2".as_slice(), 1));
    assert_eq!(fs::read(root.join("a")).unwrap(), b"foreign 2+");
    let mut runs = 0;
    let result = store.transact(|tx| {
        runs += 1;
        tx.read("missing")
    });
    assert_eq!((kind_of(result), runs), (ErrorKind::NotFound, 1));
    store.close().unwrap();
}

/// Goal: the history knows every transaction, before and after it is settled, with label, agent and both states.
#[test]
fn history_knows_each_transaction_before_and_after_a_checkpoint() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "old").unwrap();
    commit(&store, |tx| {
        tx.set_label("why");
        tx.set_agent("who");
        tx.write("a", "newer")?;
        tx.write("d/b", "x")
    })
    .unwrap();
    commit(&store, |tx| tx.remove("a")).unwrap();
    for is_settled in [false, true] {
        let past = inspect(root).log(10).unwrap();
        assert_eq!(past.iter().map(|past| past.tx.0).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(inspect(root).log(1).unwrap(), past[..1]);
        let first = inspect(root).transaction(past[1].tx).unwrap().unwrap();
        assert_eq!(first, past[1]);
        assert_eq!((first.label.as_deref(), first.agent.as_deref()), (Some("why"), Some("who")));
        assert!(past.iter().all(|past| past.is_settled == is_settled), "{past:?}");
        let change = |path: &[u8]| first.changes.iter().find(|change| change.path == path).unwrap();
        let (before, after) = (change(b"a").before.as_ref().unwrap(), change(b"a").after.as_ref().unwrap());
        assert_eq!((before.size, after.size), (3, 5));
        assert_eq!(before.digest.unwrap().0, *blake3::hash(b"old").as_bytes());
        assert_eq!(after.digest.unwrap().0, *blake3::hash(b"newer").as_bytes());
        assert!(
            change(b"d").after.as_ref().unwrap().kind == atomtree::Kind::Dir && change(b"d").before.is_none()
        );
        assert!(past[0].changes[0].after.is_none());
        assert!(inspect(root).transaction(atomtree::TransactionId(3)).unwrap().is_none());
        store.checkpoint().unwrap();
    }
    store.close().unwrap();
}

/// Goal: names that are no UTF-8, or look like options, or are as long as a name can be, are names like others.
#[test]
fn strange_names_are_names() {
    use std::os::unix::ffi::OsStrExt;
    let (scratch, store) = opened(manual());
    let longest = "n".repeat(255);
    let names: Vec<&[u8]> = vec![
        b"\xff\xfe\n",
        b"-rf",
        b" ",
        b"a\\b",
        b"...",
        b"..a",
        b"d/.atomtree",
        b"sub/.gitignore",
        longest.as_bytes(),
        b"~",
        b"atomtree",
    ];
    let paths: Vec<PathBuf> =
        names.iter().map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name))).collect();
    for round in ["1", "22"] {
        for path in &paths {
            commit(&store, |tx| tx.write(path, round)).unwrap();
            assert_eq!(fs::read_to_string(scratch.path().join(path)).unwrap(), round);
        }
    }
    commit(&store, |tx| paths.iter().try_for_each(|path| tx.remove(path))).unwrap();
    store.close().unwrap();
    let files = tree(scratch.path()).into_values().filter(|seen| seen.mode & 0o170_000 != 0o040_000);
    assert_eq!(files.count(), 0);
}

/// Goal: the store's own files are closed to others from the start, whatever the umask and the directory they are made
/// in. Method: a child with umask 0 in a world-writable setgid directory; every mode below `.atomtree`.
#[test]
fn own_files_are_private() {
    if let Some(root) = child_root() {
        let store = small().open(root).unwrap();
        commit(&store, |tx| tx.write("a", "1")).unwrap();
        commit(&store, |tx| tx.write("a", "2")).unwrap();
        std::mem::forget(store);
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o2777)).unwrap();
    let exe = std::env::current_exe().unwrap();
    let script = format!("umask 000; exec '{}' --exact basics::own_files_are_private", exe.display());
    let status =
        Command::new("sh").args(["-c", &script]).env("ATOMTREE_CHILD", scratch.path()).output().unwrap();
    assert!(status.status.success());
    let mut dirs = vec![scratch.path().join(".atomtree")];
    let mut count = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700, "{}", dir.display());
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            count += 1;
            if metadata.is_dir() {
                dirs.push(path);
            } else if !path
                .strip_prefix(scratch.path().join(".atomtree/stage"))
                .is_ok_and(|slot| slot.file_name().unwrap() != "lock")
            {
                // Originals in slots keep their own mode, behind a closed directory.
                assert_eq!(metadata.mode() & 0o7777, 0o600, "{}", path.display());
            }
        }
    }
    assert!(count > 10);
    assert_eq!(fs::metadata(scratch.path().join("a")).unwrap().mode() & 0o7777, 0o666);
}
