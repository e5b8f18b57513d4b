//! Calls that fail: appends are void, syncs are final.

use std::sync::Mutex;

use atomtree_vfs::faults::{Call, Fault, Faults, Verb, fail_nothing};
use atomtree_wal::Error;

use crate::*;

const EIO: i32 = 5;

fn faulty(sim: &Sim) -> Faults {
    Faults::new(Arc::new(sim.clone()), fail_nothing())
}

/// Fails the call of this verb that comes as number `number`, counted from now.
fn fail_once(faults: &Faults, verb: Verb, number: u32, fault: Fault) {
    let seen = Mutex::new(0);
    faults.set_rule(Arc::new(move |call: &Call| {
        let mut seen = seen.lock().unwrap();
        *seen += u32::from(call.verb == verb);
        (call.verb == verb && *seen == number).then_some(fault)
    }));
}

/// Goal: an append that fails, anywhere in a run over several segments and after any number of bytes, is void, and the
/// log goes on with the same positions. Method: fail each write of the run, torn at several lengths; write again; read
/// after a power cut.
#[test]
fn a_failed_append_is_void_wherever_it_fails() {
    let large = vec![1; ROOM_BYTES - 40];
    let half = vec![2; ROOM_BYTES / 2];
    for write in 1..=5 {
        for bytes in [0, 1, 39, 40, 512, 1000, 30_000] {
            let sim = machine();
            let faults = faulty(&sim);
            let mut log = create(&faults);
            (0..4).for_each(|_| add_spare(&mut log));
            append_synced(&mut log, &[b"one", b"two"]);
            // Three writes of frames with two of headers between them.
            fail_once(&faults, Verb::WriteAt, write, Fault::ShortWrite(bytes));
            let result = append(&mut log, &[&half, &large, &half]);
            if write % 2 == 0 && bytes > 0 {
                // A header: whether it counts is unknown. A sector's worth is never written by halves. Where nothing was
                // taken for want of space, the log goes on below.
                if (1..512).contains(&bytes) {
                    continue;
                }
                assert!(result.is_err() && log.is_poisoned());
                assert_eq!(payloads(&scan(&sim).unwrap())[..2], [b"one".to_vec(), b"two".to_vec()]);
                continue;
            }
            assert!(matches!(result, Err(Error::Io { .. })), "write {write}: {result:?}");
            assert_eq!((log.next_lsn(), log.synced_lsn()), (Lsn(3), Lsn(2)));
            // A reader finds the beginning of the run, never its last record.
            let found = payloads(&scan(&sim).unwrap());
            assert!((2..5).contains(&found.len()));
            assert_eq!(append(&mut log, &[b"three"]).unwrap(), Lsn(3));
            log.sync().unwrap();
            append_synced(&mut log, &[b"four"]);
            let expected: Vec<Vec<u8>> =
                ["one", "two", "three", "four"].map(|text| text.as_bytes().to_vec()).into();
            for seed in 0..5 {
                let cut = sim.power_cut(seed);
                let (mut log, scanned) = open(&cut).unwrap();
                assert_eq!(payloads(&scanned), expected, "write {write}, {bytes} bytes, seed {seed}");
                append_synced(&mut log, &[b"five"]);
                assert_eq!(payloads(&scan(&cut).unwrap()).len(), 5);
            }
            assert!(log.retire(Lsn(3)).unwrap() >= 1);
            assert_eq!(frames(&scan(&sim).unwrap()).last().unwrap().1, b"four");
        }
    }
}

/// P7. A sync that failed is final: nothing later succeeds although the device has healed, nothing is acknowledged,
/// and what had been synced before is all there after a power cut.
#[test]
fn a_failed_sync_poisons_for_ever() {
    for verb_fails_in in ["sync", "rotate", "retire", "append", "rewrite"] {
        let sim = machine();
        let faults = faulty(&sim);
        let mut log = create(&faults);
        (0..3).for_each(|_| add_spare(&mut log));
        append_synced(&mut log, &[b"one"]);
        log.rotate().unwrap();
        append_synced(&mut log, &[b"two"]);
        append(&mut log, &[b"unsynced"]).unwrap();
        // For writing, as `Log::open` reads it.
        let (_, before) = open(&faults).unwrap();
        fail_once(&faults, Verb::SyncData, 1, Fault::LoseData(EIO));
        let result = match verb_fails_in {
            "sync" => log.sync().map(drop),
            "rotate" => log.rotate(),
            "retire" => log.retire(Lsn(2)).map(drop),
            "append" => append(&mut log, &[&vec![0; ROOM_BYTES - 40]]).map(drop),
            _ => log.rewrite(&before, Lsn(1)),
        };
        assert!(result.is_err(), "{verb_fails_in}");
        if verb_fails_in != "retire" {
            assert!(matches!(result, Err(Error::OutcomeUnknown { .. })), "{verb_fails_in}: {result:?}");
        }
        faults.set_rule(fail_nothing());
        let is_poisoned = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Poisoned { .. })), "{verb_fails_in}: {result:?}");
        };
        let operations = sim.operations();
        for _ in 0..3 {
            assert!(log.is_poisoned());
            assert_eq!(log.synced_lsn(), Lsn(2), "{verb_fails_in}");
            is_poisoned(log.sync().map(drop));
            is_poisoned(append(&mut log, &[b"more"]).map(drop));
            is_poisoned(log.append_reserved(&[]).map(drop));
            is_poisoned(log.close());
            is_poisoned(log.rotate());
            is_poisoned(log.retire(Lsn(9)).map(drop));
            is_poisoned(log.rewrite(&before, Lsn(1)));
        }
        assert_eq!(sim.operations(), operations);
        for seed in 0..20 {
            let found = frames(&scan(&sim.power_cut(seed)).unwrap());
            assert!(found.contains(&(2, b"two".to_vec())), "{verb_fails_in}, seed {seed}: {found:?}");
        }
    }
}

/// Whatever fails in a rotation, writing or syncing the header, the log goes on only after it was opened again.
#[test]
fn a_failed_rotation_poisons() {
    for (verb, number) in [(Verb::WriteAt, 1), (Verb::SyncData, 1), (Verb::SyncData, 2)] {
        let sim = machine();
        let faults = faulty(&sim);
        let mut log = create(&faults);
        append(&mut log, &[b"one"]).unwrap();
        fail_once(&faults, verb, number, Fault::LoseData(EIO));
        log.rotate().unwrap_err();
        faults.set_rule(fail_nothing());
        assert!(matches!(log.rotate(), Err(Error::Poisoned { .. })));
        let synced = (verb, number) != (Verb::SyncData, 1);
        for seed in 0..10 {
            let cut = sim.power_cut(seed);
            let (mut log, scanned) = open(&cut).unwrap();
            let found = payloads(&scanned);
            assert!(found == [b"one".to_vec()] || (!synced && found.is_empty()));
            append_synced(&mut log, &[b"next"]);
            assert_eq!(payloads(&scan(&cut).unwrap()).len(), found.len() + 1);
        }
    }
}

/// Goal: where a segment's new header may have been written, the log does not go on in the old one, whose later frames a
/// scan would not count. Method: the write finds no space, and what stands there can't be read either.
#[test]
fn a_header_that_cannot_be_read_back_poisons() {
    let sim = machine();
    let faults = faulty(&sim);
    let mut log = create(&faults);
    append_synced(&mut log, &[b"one"]);
    faults.set_rule(Arc::new(|call: &Call| match call.verb {
        Verb::WriteAt => Some(Fault::ShortWrite(511)),
        Verb::ReadAt => Some(Fault::Error(EIO)),
        _ => None,
    }));
    log.rotate().unwrap_err();
    faults.set_rule(fail_nothing());
    assert!(matches!(append(&mut log, &[b"two"]), Err(Error::Poisoned { .. })));
    let (_, scanned) = open(&sim.kill()).unwrap();
    assert_eq!(payloads(&scanned), [b"one".to_vec()]);
}

/// An unreadable sector is an error that names segment and what was tried, in the scan and in what reads afterwards.
#[test]
fn unreadable_sectors_are_errors() {
    let sim = machine();
    let faults = faulty(&sim);
    let mut log = create(&faults);
    append_synced(&mut log, &[b"one"]);
    let good = scan(&faults).unwrap();
    for verb in [Verb::ReadAt, Verb::Map, Verb::List, Verb::OpenFile, Verb::FileMetadata] {
        fail_once(&faults, verb, 1, Fault::Error(EIO));
        let error = scan(&faults).err().unwrap();
        assert!(matches!(error, Error::Io { .. } | Error::Directory { .. }), "{verb:?}: {error}");
    }
    fail_once(&faults, Verb::ReadMap, 1, Fault::Error(EIO));
    let read: Vec<_> = good.frames().take(3).collect();
    assert!(matches!(read[..], [Err(Error::Io { segment: SegmentId(0), .. })]));
}

/// A spare that could not be made is not added; a later attempt, of the same log or the next, makes one.
#[test]
fn a_spare_that_could_not_be_made_is_made_later() {
    let counted = faulty(&machine());
    let mut log = create(&counted);
    let before = counted.calls();
    add_spare(&mut log);
    let calls = counted.calls() - before;
    for number in 1..=calls {
        let sim = machine();
        let faults = faulty(&sim);
        let mut log = create(&faults);
        append_synced(&mut log, &[b"one"]);
        let first = faults.calls() + number;
        faults.set_rule(Arc::new(move |call| (call.number >= first).then_some(Fault::Error(28))));
        assert!(log.spare_builder().build().is_err(), "call {number}");
        faults.set_rule(fail_nothing());
        add_spare(&mut log);
        log.rotate().unwrap();
        let (mut log, scanned) = open(&sim.power_cut(number)).unwrap();
        assert_eq!(payloads(&scanned).len(), 1);
        add_spare(&mut log);
        append_synced(&mut log, &[b"two"]);
    }
}
