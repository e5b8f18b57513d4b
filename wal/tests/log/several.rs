//! Several processes with one log: each takes it over where the last one left it, and reads on.

use std::collections::BTreeMap;

use atomtree_vfs::Access;
use atomtree_vfs::faults::{Call, Fault, Faults, Verb};
use atomtree_vfs::sim::Sim;
use atomtree_wal::{Error, Record, Tail};

use crate::*;

/// A second process on the machine, with the log open.
fn join(sim: &Sim) -> (Sim, Log) {
    let process = sim.another_process();
    let (log, _) = Log::join(dir(&process), ID, OPTIONS).unwrap();
    (process, log)
}

fn news(log: &mut Log, sim: &Sim) -> Result<Option<Scan>, Error> {
    log.news(sim.now(), sim.timestamp_granularity_ns())
}

/// What has come since, taken up.
#[track_caller]
fn read_on(log: &mut Log, sim: &Sim) -> Vec<(u64, Vec<u8>)> {
    let Some(scan) = news(log, sim).unwrap() else { return Vec::new() };
    assert!(!scan.tail().is_torn(), "{:?}", scan.tail());
    let found = frames(&scan);
    log.go_on(&scan).unwrap();
    found
}

/// Time enough that a name that comes later shows in its directory's time.
fn wait(sim: &Sim) {
    sim.advance(2 * sim.timestamp_granularity_ns());
}

#[track_caller]
fn assert_set_back(result: Result<Option<Scan>, Error>) {
    match result {
        Err(Error::SetBack { .. }) => {}
        Err(error) => panic!("another error: {error}"),
        Ok(None) => panic!("nothing was noticed"),
        Ok(Some(scan)) => panic!("accepted {:?}, {:?}", frames(&scan), scan.tail()),
    }
}

#[test]
fn what_another_appends_is_read_once() {
    let sim = machine();
    let mut one = create(&sim);
    append_synced(&mut one, &[b"first"]);
    let (other_sim, mut other) = join(&sim);
    assert_eq!((other.next_lsn(), other.synced_lsn() <= one.synced_lsn()), (Lsn(2), true));
    append_synced(&mut one, &[b"second", b"third"]);
    append(&mut one, &[b"fourth"]).unwrap();
    let expected = [(2, b"second".to_vec()), (3, b"third".to_vec()), (4, b"fourth".to_vec())];
    assert_eq!(read_on(&mut other, &other_sim), expected);
    assert_eq!(read_on(&mut other, &other_sim), []);
    append_synced(&mut other, &[b"fifth"]);
    assert_eq!(read_on(&mut one, &sim), [(5, b"fifth".to_vec())]);
    // What they know to be synced, others know as soon as a frame says so.
    assert_eq!(payloads(&scan(&sim).unwrap()).len(), 5);
    for seed in 0..10 {
        assert_eq!(payloads(&scan(&sim.power_cut(seed)).unwrap()).len(), 5, "seed {seed}");
    }
}

/// Nothing is listed or read twice while nothing changes.
#[test]
fn without_news_nothing_is_read() {
    let sim = machine();
    let mut one = create(&sim);
    append_synced(&mut one, &[b"payload"]);
    let (other_sim, mut other) = join(&sim);
    wait(&sim);
    read_on(&mut other, &other_sim);
    assert!(news(&mut other, &other_sim).unwrap().is_none());
    append_synced(&mut other, &[b"its own"]);
    assert!(news(&mut other, &other_sim).unwrap().is_none(), "its own frames are no news");
    assert_eq!(read_on(&mut one, &sim), [(2, b"its own".to_vec())]);
}

/// One frame more, of which nothing but the header of the next segment tells.
#[test]
fn a_rotation_is_news() {
    let sim = machine();
    let mut one = create(&sim);
    (0..2).for_each(|_| add_spare(&mut one));
    append_synced(&mut one, &[b"payload"]);
    let (other_sim, mut other) = join(&sim);
    wait(&sim);
    read_on(&mut other, &other_sim);
    one.rotate().unwrap();
    assert!(news(&mut other, &other_sim).unwrap().is_some());
    assert_eq!(read_on(&mut other, &other_sim), []);
    append_synced(&mut other, &[b"behind it"]);
    assert_eq!(places(&scan(&sim).unwrap())[1].0, SegmentId(1));
    assert_eq!(read_on(&mut one, &sim), [(2, b"behind it".to_vec())]);
}

/// Goal: a reader whose segment was freed goes on at the oldest that is left, also if that very segment is in use again.
/// Method: the other rotates through all segments, up to twice, while the reader looks away.
#[test]
fn a_segment_may_be_freed_and_used_again_under_its_reader() {
    for rotations in 1..10_u8 {
        let sim = machine();
        let mut one = create(&sim);
        (0..2).for_each(|_| add_spare(&mut one));
        append_synced(&mut one, &[b"payload"]);
        let (other_sim, mut other) = join(&sim);
        let mut kept = Vec::new();
        for number in 0..rotations {
            one.rotate().unwrap();
            let lsn = append_synced(&mut one, &[&[number; 600]]);
            // As after a checkpoint: all but the active segment is done with.
            one.retire(lsn).unwrap();
            kept = vec![(lsn.0, vec![number; 600])];
        }
        let found = read_on(&mut other, &other_sim);
        assert!(found.ends_with(&kept), "{rotations} rotations: {found:?}");
        assert!(found.len() == 1 || rotations == 1 && found.len() <= 1, "{rotations} rotations: {found:?}");
        assert_eq!(other.next_lsn(), one.next_lsn());
        append_synced(&mut other, &[b"goes on"]);
        assert_eq!(read_on(&mut one, &sim), [(u64::from(rotations) + 2, b"goes on".to_vec())]);
        assert_eq!(scan(&sim).unwrap().tail(), Tail::Clean);
    }
}

/// A spare that one makes is there for the other, and counted once by both.
#[test]
fn spares_are_known_to_all_and_counted_once() {
    let sim = machine();
    let mut one = create(&sim);
    let (other_sim, mut other) = join(&sim);
    wait(&sim);
    read_on(&mut other, &other_sim);
    let largest = vec![1; ROOM_BYTES - 40];
    let parts = [largest.as_slice()];
    let run = |count| vec![Record { kind: kind(), parts: &parts }; count];
    for made in 1..=3_usize {
        let spare = one.spare_builder().build().unwrap();
        // The lock was not held meanwhile: the log is looked at again before the spare is taken.
        assert_eq!(read_on(&mut one, &sim), []);
        one.add_spare(spare);
        assert_eq!(read_on(&mut other, &other_sim), []);
        for log in [&mut one, &mut other] {
            // One segment is active, one was there from the beginning.
            let result = log.append_reserved(&run(made + 3));
            assert!(matches!(result, Err(Error::Full { .. })), "{made} made: {result:?}");
        }
        assert_eq!(scan(&sim).unwrap().usage().0, made + 2);
    }
    assert_eq!(other.append_reserved(&run(5)).unwrap(), Lsn(5));
    other.sync().unwrap();
    assert_eq!(read_on(&mut one, &sim).len(), 5);
    assert_eq!(payloads(&scan(&sim).unwrap()), vec![largest.clone(); 5]);
}

/// Goal: what is committed to a segment that another process has made survives, wherever that one died while it made it.
/// Method: it dies at each of its calls; the other fills all the segments that it finds, and the power is cut.
#[test]
fn what_is_committed_to_a_segment_outlives_its_maker() {
    let largest = vec![1; ROOM_BYTES - 40];
    let record = [Record { kind: kind(), parts: &[&largest] }];
    let mut counts = Vec::new();
    for left in 0.. {
        let sim = machine();
        let mut other = create(&sim);
        let faults = Faults::new(Arc::new(sim.another_process()), Arc::new(|_: &Call| None));
        let (mut maker, _) = Log::join(dir(&faults), ID, OPTIONS).unwrap();
        let begun = faults.calls();
        faults.set_rule(Arc::new(move |call: &Call| (call.number > begun + left).then_some(Fault::Error(5))));
        let is_made = maker.spare_builder().build().is_ok();
        drop(maker);
        wait(&sim);
        read_on(&mut other, &sim);
        let mut count = 0;
        while other.append_reserved(&record).is_ok() {
            other.sync().unwrap();
            count += 1;
        }
        for seed in 0..20 {
            let found = payloads(&scan(&sim.power_cut(seed)).unwrap()).len();
            assert_eq!(found, count, "{left} calls, seed {seed}");
        }
        counts.push(count);
        if is_made {
            break;
        }
    }
    assert_eq!((counts.first(), counts.last()), (Some(&2), Some(&3)), "{counts:?}");
}

/// Goal: who reads on does not believe in a segment that somebody has cut, also behind what is read. Method: news in a log of
/// which each segment has lost its last byte.
#[test]
fn a_segment_that_was_cut_is_refused() {
    let sim = machine();
    let mut one = create(&sim);
    let (other_sim, mut other) = join(&sim);
    wait(&sim);
    assert_eq!(read_on(&mut other, &other_sim), []);
    append_synced(&mut one, &[b"first"]);
    let wal = dir(&sim);
    for entry in wal.list().unwrap() {
        let segment = wal.open_file(&entry.name, Access::ReadWrite).unwrap();
        segment.set_len(segment.metadata().unwrap().size - 1).unwrap();
    }
    match news(&mut other, &other_sim) {
        Err(Error::Corrupt { found, .. }) => assert!(found.starts_with("a file of "), "{found}"),
        other => panic!("{:?}", other.map(|scan| scan.map(|scan| frames(&scan)))),
    }
}

/// A log behind storage of which the next append stops within, after so many bytes.
fn failing_after(sim: &Sim, bytes: usize) -> (Faults, Log) {
    let faults = Faults::new(Arc::new(sim.another_process()), Arc::new(|_: &Call| None));
    let (log, _) = Log::join(dir(&faults), ID, OPTIONS).unwrap();
    faults.set_rule(Arc::new(move |call: &Call| {
        (call.verb == Verb::WriteAt).then_some(Fault::ShortWrite(bytes))
    }));
    (faults, log)
}

/// Goal: whatever part of a run a dead process leaves, the next one accepts whole frames alone, goes on in another segment,
/// and others follow it there. Method: appends of two frames that stop after each number of bytes.
#[test]
fn a_torn_append_of_the_dead_is_left_behind() {
    for bytes in (0..2200).step_by(40) {
        let sim = machine();
        let mut one = create(&sim);
        add_spare(&mut one);
        append_synced(&mut one, &[b"payload"]);
        let (_, mut dying) = failing_after(&sim, bytes);
        append(&mut dying, &[&[1; 1000], &[2; 1100]]).unwrap_err();
        drop(dying);
        let heir_sim = sim.another_process();
        let found = news(&mut one, &sim).unwrap();
        let torn = found.as_ref().is_some_and(|scan| scan.tail().is_torn());
        let whole = found.as_ref().map_or(0, |scan| frames(scan).len());
        assert_eq!(whole, usize::from(bytes >= 1040), "{bytes} bytes");
        assert_eq!(torn, bytes >= 40 && bytes != 1040, "{bytes} bytes: {:?}", found.map(|scan| scan.tail()));
        // Who takes over reads it all, and writes none of it behind what it found.
        let (mut heir, scan) = Log::open(dir(&heir_sim), ID, OPTIONS).unwrap();
        heir.rewrite(&scan, Lsn(1)).unwrap();
        heir.leave_segment();
        let lsn = append_synced(&mut heir, &[b"heir"]);
        assert_eq!(lsn.0, 2 + whole as u64);
        assert_eq!(places(&crate::scan(&sim).unwrap()).last().unwrap().0, SegmentId(1));
        assert_eq!(read_on(&mut one, &sim).last(), Some(&(lsn.0, b"heir".to_vec())), "{bytes} bytes");
        append_synced(&mut one, &[b"goes on"]);
        for seed in 0..4 {
            let cut = sim.power_cut(seed);
            assert_eq!(payloads(&crate::scan(&cut).unwrap()).len(), whole + 3, "{bytes} bytes, seed {seed}");
        }
    }
}

/// What an append of one's own has left that failed is no news, and others that go on behind it are.
#[test]
fn a_failed_append_of_ones_own_is_no_news() {
    for bytes in [0, 40, 600, 1040, 1500] {
        let sim = machine();
        let mut one = create(&sim);
        (0..2).for_each(|_| add_spare(&mut one));
        append_synced(&mut one, &[b"payload"]);
        let (faults, mut failing) = failing_after(&sim, bytes);
        wait(&sim);
        assert_eq!(read_on(&mut failing, &sim), []);
        append(&mut failing, &[&[1; 1000], &[2; 1000]]).unwrap_err();
        let found = news(&mut failing, &sim).unwrap();
        assert!(found.is_none(), "{bytes} bytes: {:?}", found.map(|scan| (frames(&scan), scan.tail())));
        faults.set_rule(Arc::new(|_: &Call| None));
        assert_eq!(append_synced(&mut failing, &[b"again"]), Lsn(2));
        let found = news(&mut one, &sim).unwrap().unwrap();
        assert_eq!(frames(&found), [(2, b"again".to_vec())], "{bytes} bytes");
        one.go_on(&found).unwrap();
        append_synced(&mut one, &[b"goes on"]);
        assert_eq!(read_on(&mut failing, &sim), [(3, b"goes on".to_vec())]);
        assert_eq!(payloads(&scan(&sim).unwrap()), [&b"payload"[..], b"again", b"goes on"]);
    }
}

/// Goal: where a failed append has left nothing, others go on in the same place, and that is news for whoever failed; so it is
/// in a segment that it had just gone on in. Method: appends that stop before their first byte; the other appends, and
/// whoever failed goes on behind that.
#[test]
fn what_others_write_where_an_append_failed_is_news() {
    for is_next_segment in [false, true] {
        let sim = machine();
        let mut one = create(&sim);
        (0..2).for_each(|_| add_spare(&mut one));
        append_synced(&mut one, &[b"payload"]);
        let (faults, mut failing) = failing_after(&sim, 0);
        wait(&sim);
        faults.set_rule(Arc::new(|_: &Call| None));
        assert_eq!(read_on(&mut failing, &sim), []);
        if is_next_segment {
            failing.rotate().unwrap();
        }
        faults.set_rule(Arc::new(|call: &Call| (call.verb == Verb::WriteAt).then_some(Fault::ShortWrite(0))));
        append(&mut failing, &[b"never"]).unwrap_err();
        faults.set_rule(Arc::new(|_: &Call| None));
        assert_eq!(read_on(&mut one, &sim), []);
        append_synced(&mut one, &[b"acknowledged"]);
        assert_eq!(read_on(&mut failing, &sim), [(2, b"acknowledged".to_vec())], "{is_next_segment}");
        append_synced(&mut failing, &[b"goes on"]);
        assert_eq!(read_on(&mut one, &sim), [(3, b"goes on".to_vec())]);
        assert_eq!(payloads(&scan(&sim).unwrap()), [&b"payload"[..], b"acknowledged", b"goes on"]);
    }
}

/// Goal: that the log is closed is taken back by whoever writes behind it, whoever closed it. Method: the one closes, the
/// other appends; damage behind the mark that was taken back is not the end of the log.
#[test]
fn a_closed_mark_is_taken_back_by_whoever_goes_on() {
    let sim = machine();
    let mut one = create(&sim);
    append_synced(&mut one, &[b"payload"]);
    let (other_sim, mut other) = join(&sim);
    wait(&sim);
    read_on(&mut other, &other_sim);
    one.close().unwrap();
    assert_eq!(scan(&sim).unwrap().tail(), Tail::Closed);
    assert_eq!(read_on(&mut other, &other_sim), []);
    assert!(other.is_closed());
    append_synced(&mut other, &[b"behind"]);
    append_synced(&mut other, &[b"and more"]);
    assert_eq!(scan(&sim).unwrap().tail(), Tail::Clean);
    assert_eq!(read_on(&mut one, &sim).len(), 2);
    assert!(!one.is_closed());
}

/// Goal: a log that is not what is known of it any more is refused. Method: all the ways to put an older copy in place.
#[test]
fn an_older_copy_is_refused() {
    type PutBack = fn(&Sim, &[u8]);
    let ways: [(&str, PutBack); 3] = [
        ("another file", |sim, old| sim.replace_file(segment(0), old)),
        ("the same file", |sim, old| sim.write_file(segment(0), old)),
        ("the last frame's header", |sim, _| {
            let mut bytes = sim.read_file(segment(0)).unwrap();
            let (_, offset) = places(&scan(sim).unwrap())[1];
            bytes[offset as usize] ^= 1;
            sim.write_file(segment(0), &bytes);
        }),
    ];
    for (way, put_back) in ways {
        for does_wait in [false, true] {
            let sim = machine();
            let mut one = create(&sim);
            append_synced(&mut one, &[b"payload"]);
            let old = sim.read_file(segment(0)).unwrap();
            append_synced(&mut one, &[b"known"]);
            let (other_sim, mut other) = join(&sim);
            if does_wait {
                wait(&sim);
                read_on(&mut other, &other_sim);
            }
            put_back(&sim, &old);
            for (log, sim) in [(&mut one, &sim), (&mut other, &other_sim)] {
                println!("{way}, {does_wait}");
                assert_set_back(news(log, sim));
            }
        }
    }
}

/// The same, where others have gone on behind the old copy, with as many frames as are known, or in a later segment.
#[test]
fn an_older_copy_that_somebody_has_gone_on_with_is_refused() {
    for rotates in [false, true] {
        let sim = machine();
        let mut one = create(&sim);
        add_spare(&mut one);
        append_synced(&mut one, &[b"payload"]);
        let old = sim.read_file(segment(0)).unwrap();
        append_synced(&mut one, &[b"known"]);
        append_synced(&mut one, &[b"known too"]);
        sim.write_file(segment(0), &old);
        let (_, mut other) = join(&sim);
        if rotates {
            other.rotate().unwrap();
        }
        append_synced(&mut other, &[b"other"]);
        append_synced(&mut other, &[b"other too"]);
        append_synced(&mut other, &[b"and more"]);
        assert_set_back(news(&mut one, &sim));
    }
}

/// All of the log's directory as it was before segments went round.
#[test]
fn a_log_of_earlier_epochs_is_refused() {
    let sim = machine();
    let mut one = create(&sim);
    (0..2).for_each(|_| add_spare(&mut one));
    append_synced(&mut one, &[b"payload"]);
    let old: Vec<_> = (0..4).map(|id| sim.read_file(segment(id)).unwrap()).collect();
    for _ in 0..4 {
        one.rotate().unwrap();
        let lsn = append_synced(&mut one, &[b"known"]);
        one.retire(lsn).unwrap();
    }
    old.iter().zip(0..).for_each(|(bytes, id)| sim.write_file(segment(id), bytes));
    assert_set_back(news(&mut one, &sim));
}

/// Goal: who joins makes true what it reads. Method: what the one has appended is in the cache alone, and that was told to
/// nobody that is left; another joins, appends behind it and syncs; the power is cut.
#[test]
fn the_tail_is_written_again_by_who_joins() {
    let mut holes = 0;
    for rewrites in [true, false] {
        for seed in 0..40 {
            let sim = machine();
            let mut one = create(&sim);
            append_synced(&mut one, &[b"payload"]);
            append(&mut one, &[&[1; 700], &[2; 700]]).unwrap();
            sim.fail_write_back();
            let process = sim.another_process();
            let (mut other, scanned) = Log::join(dir(&process), ID, OPTIONS).unwrap();
            if rewrites {
                other.rewrite_tail(&scanned).unwrap();
                assert_eq!(other.synced_lsn(), Lsn(3));
            }
            assert_eq!(frames(&scanned).len(), 3);
            append_synced(&mut other, &[&[3; 700]]);
            let cut = sim.power_cut(seed);
            match scan(&cut) {
                Ok(scan) if rewrites => assert_eq!(payloads(&scan).len(), 4, "seed {seed}"),
                Err(error) if rewrites => panic!("seed {seed}: {error}"),
                Ok(scan) => holes += u32::from(scan.end_lsn() < Lsn(4)),
                Err(_) => holes += 1,
            }
        }
    }
    assert!(holes > 0, "without writing it again nothing is lost: the test is too kind");
}

/// Splitmix64, so that a seed says everything.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Goal: any order of hand-overs is one log. Method: three processes take turns at random, read on, and append, sync,
/// rotate, retire, make spares, and close; now and then one dies in an append, joins anew, or the power is cut. Each must
/// find exactly what the others have appended since, but for what was settled meanwhile.
#[test]
fn three_that_take_turns_write_one_log() {
    let (mut taken, mut cuts) = (0, 0);
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut sim = machine();
        drop(create(&sim));
        let mut written: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (mut stamp, mut settled) = (0_u64, 0);
        let mut processes: Vec<(Sim, Log)> = (0..3).map(|_| join(&sim)).collect();
        for turn in 0..80 {
            let what = format!("seed {seed}, turn {turn}");
            if random.below(3) == 0 {
                wait(&sim);
            }
            let (process, log) = &mut processes[random.below(3) as usize];
            let known = log.next_lsn().0;
            let found = match news(log, process) {
                Ok(Some(scan)) => {
                    let found = frames(&scan);
                    assert!(!scan.tail().is_torn(), "{what}");
                    log.go_on(&scan).unwrap();
                    found
                }
                Ok(None) => Vec::new(),
                Err(error) => panic!("{what}: {error}"),
            };
            taken += 1;
            let first = found.first().map_or(log.next_lsn().0, |(lsn, _)| *lsn);
            assert!(first == known || first > known && first <= settled + 1, "{what}: {first} after {known}");
            assert!(found.iter().all(|(lsn, payload)| written.get(lsn) == Some(payload)), "{what}");
            let end = written.keys().next_back().copied().unwrap_or(0);
            assert_eq!(log.next_lsn().0, end + 1, "{what}");
            match random.below(16) {
                0..7 => {
                    let run: Vec<Vec<u8>> = (0..=random.below(3))
                        .map(|_| {
                            stamp += 1;
                            let length = if random.below(8) == 0 { 20_000 } else { 8 + random.below(900) };
                            stamp.to_le_bytes().into_iter().cycle().take(length as usize).collect()
                        })
                        .collect();
                    let payloads: Vec<&[u8]> = run.iter().map(Vec::as_slice).collect();
                    match append(log, &payloads) {
                        Ok(_) => written.extend((end + 1..).zip(run)),
                        Err(Error::Full { .. }) => {
                            settled = log.sync().unwrap().0;
                            log.retire(Lsn(settled + 1)).unwrap();
                            if log.may_grow() {
                                add_spare(log);
                            }
                        }
                        Err(error) => panic!("{what}: {error}"),
                    }
                    if random.below(4) > 0 {
                        log.sync().unwrap();
                    }
                }
                7 | 8 => drop(log.rotate()),
                9 => {
                    settled = log.sync().unwrap().0;
                    log.retire(Lsn(settled + 1)).unwrap();
                }
                10 if log.may_grow() => {
                    let spare = log.spare_builder().build().unwrap();
                    assert!(news(log, process).unwrap().is_none_or(|scan| log.go_on(&scan).is_ok()));
                    log.add_spare(spare);
                }
                11 => log.close().unwrap(),
                12 => {
                    let (process, log) = (process.another_process(), dir(process));
                    drop(log);
                    let (mut log, scan) = Log::join(dir(&process), ID, OPTIONS).unwrap();
                    log.rewrite_tail(&scan).unwrap();
                    let at = random.below(3) as usize;
                    processes[at] = (process, log);
                }
                13 if random.below(4) == 0 => {
                    // All that is appended counts, whoever has synced it: otherwise another may lose what it knows.
                    log.sync().unwrap();
                    sim = sim.power_cut(random.below(1 << 30));
                    cuts += 1;
                    let found = frames(&scan(&sim).unwrap_or_else(|error| panic!("{what}: {error}")));
                    assert!(found.iter().all(|(lsn, payload)| written.get(lsn) == Some(payload)), "{what}");
                    assert_eq!(found.last().map_or(settled.max(end), |(lsn, _)| *lsn), end, "{what}");
                    let (mut log, scanned) = open(&sim).unwrap();
                    log.rewrite(&scanned, Lsn(1)).unwrap();
                    processes = (0..3).map(|_| join(&sim)).collect();
                }
                _ => {}
            }
        }
    }
    println!("{taken} hand-overs, {cuts} power cuts");
}
