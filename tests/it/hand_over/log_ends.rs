//! What a process leaves at the end of the log that failed or died there, and what those do who go on behind it.

use std::sync::Arc;

use atomtree::vfs::Vfs;
use atomtree::vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree::vfs::sim::Sim;
use atomtree::{Checkpoints, Error, ErrorKind, Options, Store};

/// Input/output error, as Linux numbers it.
pub(super) const EIO: i32 = 5;

pub(super) fn machine() -> Sim {
    let sim = Sim::new(7);
    sim.create_dir("/tree");
    sim
}

pub(super) fn open(vfs: impl Vfs + 'static) -> Store {
    let options = Options::new().vfs(Arc::new(vfs)).segment_bytes(64 << 10).log_bytes_max(1 << 20);
    options.checkpoints(Checkpoints::Manual).open("/tree").unwrap()
}

/// Writes a file, and returns the transaction's number.
pub(super) fn write(store: &Store, name: &str, content: &[u8]) -> Result<u64, Error> {
    let mut tx = store.begin()?;
    tx.write(name, content)?;
    tx.commit().map(|receipt| receipt.tx().0)
}

/// Whether it is about a segment of the log.
fn is_of_log(call: &Call) -> bool {
    call.name.as_deref().is_some_and(|name| name.as_encoded_bytes().ends_with(b".seg"))
}

/// A process that dies without another call when it is told to.
fn mortal(sim: &Sim) -> (Sim, Store) {
    let process = sim.another_process();
    let store = open(process.clone());
    (process, store)
}

/// Goal: who failed in an append, and lives, learns of what others have written since, although it takes what stands there
/// for its own. Method: of an append so many bytes are written, then there is no space; another finds a run that was cut
/// short, recovers, and commits; then the one commits again.
#[test]
fn nothing_is_written_behind_an_append_that_failed() {
    let mut take_overs = 0;
    for bytes in (0..400).step_by(8) {
        let sim = machine();
        let faults = Faults::new(Arc::new(sim.another_process()), fail_nothing());
        let (failing, other) = (open(faults.clone()), open(sim.another_process()));
        let first = write(&failing, "before", b"before").unwrap();
        faults.set_rule(Arc::new(move |call| {
            (call.verb == Verb::WriteAt && is_of_log(call)).then_some(Fault::ShortWrite(bytes))
        }));
        let error = write(&failing, "failed", b"failed").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{bytes}: {error}");
        faults.set_rule(fail_nothing());
        let mut numbers = vec![first];
        for (store, name) in [(&other, "other"), (&failing, "again"), (&other, "last")] {
            let number = write(store, name, name.as_bytes());
            numbers.push(number.unwrap_or_else(|error| panic!("{bytes}, {name}: {error}")));
        }
        assert!(numbers.is_sorted_by(|one, next| one < next), "{bytes}: {numbers:?}");
        take_overs += other.take_overs().len();
        other.close().unwrap();
        failing.close().unwrap();
        let log = atomtree::Inspection::open("/tree", &Options::new().vfs(Arc::new(sim.another_process())));
        let log = log.unwrap().log(10).unwrap();
        let known: Vec<u64> = log.iter().rev().map(|past| past.tx.0).collect();
        assert_eq!(known, numbers, "{bytes}");
    }
    assert!(take_overs > 10, "only {take_overs} runs were found cut short");
}

/// How a process comes to read a log whose end others have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// It opens the store.
    Joins,
    /// It has had it open, and somebody else has recovered it from a failed sync meanwhile.
    ReadsAnew,
}

/// Commits behind a note of another that is in the cache alone, the one who could have been told of it being dead. Returns
/// whether the commit survives these power cuts.
fn commit_behind_what_is_lost(reader: Reader, bytes: usize) -> bool {
    let sim = machine();
    let living = open(sim.another_process());
    if reader == Reader::ReadsAnew {
        let process = sim.another_process();
        let faults = Faults::new(Arc::new(process.clone()), fail_nothing());
        let failing = open(faults.clone());
        faults.set_rule(Arc::new(|call| {
            (call.verb == Verb::SyncData && is_of_log(call)).then_some(Fault::LoseData(EIO))
        }));
        write(&failing, "failed", b"failed").unwrap_err();
        process.end_process();
    }
    // What opens now has recovered the store, if there was something to recover from.
    let (process, dying) = mortal(&sim);
    write(&dying, "first", &vec![1; bytes]).unwrap();
    // The note that it is applied is not synced.
    sim.fail_write_back();
    process.end_process();
    drop(dying);
    let store = if reader == Reader::Joins { open(sim.another_process()) } else { living.clone() };
    write(&store, "second", b"second").unwrap();
    (0..4).all(|seed| {
        let cut = sim.power_cut(seed);
        drop(open(cut.clone()));
        let first = cut.read_file("/tree/first");
        assert_eq!(first, Some(vec![1; bytes]), "{reader:?}, {bytes} bytes, seed {seed}");
        cut.read_file("/tree/second").as_deref() == Some(b"second")
    })
}

/// Goal: what is acknowledged does not stand behind what only the cache has. Method: a process dies whose last note in the
/// log could not be written back, wherever in a sector that ends; another joins, or reads the log anew, and commits; the
/// power is cut.
#[test]
fn nothing_is_acknowledged_behind_what_only_the_cache_has() {
    for reader in [Reader::Joins, Reader::ReadsAnew] {
        for bytes in (1..=513).step_by(8) {
            assert!(commit_behind_what_is_lost(reader, bytes), "{reader:?}, {bytes} bytes");
        }
    }
}
