//! Power cuts and kills, at every operation and again and again: what was synced is there, in order, and nothing else
//! than what was last written at its position.

use std::collections::BTreeMap;

use atomtree_wal::{Error, Record, Tail};

use crate::*;

/// Splitmix64, so that a seed says everything.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What the log may and must hold.
#[derive(Default)]
struct Model {
    /// The last payload written at each position.
    written: BTreeMap<u64, Vec<u8>>,
    /// Up to here nothing may be missing.
    synced: u64,
    /// Below this it may have been retired.
    retired_below: u64,
    /// Positions of closing frames.
    closing: Vec<u64>,
    stamp: u64,
}

impl Model {
    /// A payload that was never used before, mostly small; sometimes over several sectors, seldom half a segment.
    fn payload(&mut self, random: &mut Random) -> Vec<u8> {
        self.stamp += 1;
        let length = match random.below(10) {
            0..6 => 8 + random.below(60),
            6..9 => 8 + random.below(3000),
            _ => 8 + random.below(40_000),
        };
        self.stamp.to_le_bytes().into_iter().cycle().take(length as usize).collect()
    }

    fn check(&mut self, scan: &Scan, what: &str) {
        let found = frames(scan);
        let first = found.first().map_or(scan.end_lsn().0 + 1, |(lsn, _)| *lsn);
        assert!(first <= self.retired_below.max(1), "{what}: begins at {first}, not {}", self.retired_below);
        assert!(found.iter().map(|(lsn, _)| *lsn).eq(first..=scan.end_lsn().0), "{what}: a gap");
        for (lsn, payload) in &found {
            assert_eq!(self.written.get(lsn), Some(payload), "{what}: another payload at {lsn}");
        }
        let end = scan.end_lsn().0;
        assert!(end >= self.synced, "{what}: ends at {end}, {} was synced; {:?}", self.synced, scan.tail());
        assert!(scan.known_synced().0 <= end);
        assert!(scan.tail() != Tail::Closed || self.closing.contains(&end), "{what}: closed at {end}");
        // Positions after the end are given again.
        self.written.retain(|lsn, _| *lsn <= end);
        self.closing.retain(|lsn| *lsn <= end);
    }
}

/// One process's life: opens, makes true what it read, and works until it is halted.
fn live(sim: &Sim, model: &mut Model, random: &mut Random, what: &str) -> Result<(), Error> {
    let (mut log, scan) = open(sim)?;
    model.check(&scan, what);
    log.rewrite(&scan, Lsn(scan.known_synced().0 + 1))?;
    model.synced = scan.end_lsn().0;
    drop(scan);
    for _ in 0..30 {
        match random.below(20) {
            0..9 => {
                let run: Vec<Vec<u8>> = (0..=random.below(4)).map(|_| model.payload(random)).collect();
                let parts: Vec<[&[u8]; 1]> = run.iter().map(|payload| [payload.as_slice()]).collect();
                let records: Vec<_> = parts.iter().map(|parts| Record { kind: kind(), parts }).collect();
                let first = log.next_lsn().0;
                let result = log.append(&records);
                if !matches!(result, Err(Error::Full { .. } | Error::TooLarge { .. })) {
                    model.written.extend((first..).zip(run));
                }
                match result {
                    Err(Error::Full { .. }) => make_room(&mut log, model)?,
                    result => drop(result?),
                }
            }
            9..15 => {
                model.synced = log.sync()?.0;
                assert_eq!(model.synced + 1, log.next_lsn().0);
            }
            15 => match log.rotate() {
                Ok(()) => model.synced = log.next_lsn().0 - 1,
                Err(Error::Full { .. }) => make_room(&mut log, model)?,
                Err(error) => return Err(error),
            },
            16 => {
                let below = random.below(model.synced + 2);
                model.retired_below = model.retired_below.max(below);
                log.retire(Lsn(below))?;
            }
            17 if log.may_grow() => {
                let spare = log.spare_builder().build()?;
                log.add_spare(spare);
            }
            18 => {
                model.closing.push(log.next_lsn().0 - 1);
                log.close()?;
                model.synced = log.next_lsn().0 - 1;
            }
            _ => {}
        }
    }
    Ok(())
}

fn make_room(log: &mut Log, model: &mut Model) -> Result<(), Error> {
    model.synced = log.sync()?.0;
    model.retired_below = model.retired_below.max(model.synced + 1);
    log.retire(Lsn(model.synced + 1))?;
    if log.may_grow() {
        let spare = log.spare_builder().build()?;
        log.add_spare(spare);
    }
    Ok(())
}

/// Goal: P2 and P6 across any number of crashes. Method: chains of 60 lives, each halted at a random operation, then
/// killed or cut off; the model knows what has to be there.
#[test]
fn chains_of_crashes_lose_nothing_synced() {
    let mut torn = 0;
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut model = Model::default();
        let mut sim = machine();
        create(&sim);
        for crash in 0..60 {
            let what = format!("seed {seed}, crash {crash}");
            // Most halts come early: in opening, rewriting and the first steps.
            let halt = 1 + if random.below(3) == 0 { random.below(6) } else { random.below(60) };
            sim.halt_at(halt);
            match live(&sim, &mut model, &mut random, &what) {
                Ok(()) => {}
                Err(_) if sim.is_halted() => {}
                Err(error) => panic!("{what}: {error}"),
            }
            sim = if random.below(4) == 0 { sim.kill() } else { sim.power_cut(random.next()) };
            let scan = scan(&sim).unwrap_or_else(|error| panic!("{what}: {error}"));
            torn += u32::from(scan.tail().is_torn());
        }
        let (_, scan) = open(&sim).unwrap();
        model.check(&scan, "at the end");
    }
    assert!(torn > 100, "only {torn} torn ends: the test is too kind");
}

/// Goal: the same at every operation of one life, with many cuts each.
#[test]
fn every_operation_may_be_the_last() {
    for operation in 1.. {
        let mut is_halted = false;
        for seed in 0..12 {
            let sim = machine();
            create(&sim);
            let mut model = Model::default();
            let mut random = Random(7);
            live(&sim, &mut model, &mut random, "first life").unwrap();
            let begun = sim.operations();
            sim.halt_at(begun + operation);
            let _ = live(&sim, &mut model, &mut random, "second life");
            is_halted |= sim.is_halted();
            let cut = sim.power_cut(seed);
            let what = format!("operation {operation}, seed {seed}");
            live(&cut, &mut model, &mut random, &what).unwrap_or_else(|error| panic!("{what}: {error}"));
            model.check(&scan(&cut).unwrap(), &what);
        }
        if !is_halted {
            return;
        }
    }
}

/// Goal: after a failed write-back the cache shows records that the disk does not hold; `rewrite` makes them true.
/// Method: lose what is dirty, kill, open, rewrite, and cut the power: every record that was accepted is there.
#[test]
fn rewrite_makes_true_what_was_read() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let sim = machine();
        let mut log = create(&sim);
        (0..3).for_each(|_| add_spare(&mut log));
        let mut model = Model::default();
        for _ in 0..random.below(12) {
            let payload = model.payload(&mut random);
            match append(&mut log, &[&payload]) {
                Err(Error::Full { .. }) => break,
                result => drop(result.unwrap()),
            }
            if random.below(3) == 0 {
                model.synced = log.sync().unwrap().0;
            }
        }
        match random.below(3) {
            0 => sim.fail_write_back(),
            1 => {
                sim.fail_next_sync();
                let _ = log.rotate();
            }
            _ => {}
        }
        let sim = sim.kill();
        let (mut log, scanned) = open(&sim).unwrap();
        let accepted = frames(&scanned);
        let from = Lsn(1 + random.below(scanned.known_synced().0 + 1));
        let mut halted = false;
        if random.below(2) == 0 {
            // It may be cut off and repeated.
            sim.halt_at(1 + random.below(4));
            halted = log.rewrite(&scanned, from).is_err();
        } else {
            log.rewrite(&scanned, from).unwrap();
        }
        let again = sim.kill();
        let cut = if halted {
            let (mut log, scanned) = open(&again).unwrap();
            assert_eq!(frames(&scanned), accepted);
            log.rewrite(&scanned, from).unwrap();
            again.power_cut(seed)
        } else {
            sim.power_cut(seed)
        };
        let found = scan(&cut).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(frames(&found), accepted, "seed {seed}");
    }
}

/// Creating a log is cut off at every operation: then there is none, or a whole one, or one that `create` makes again.
#[test]
fn creation_may_be_cut_off() {
    for operation in 1.. {
        let sim = machine();
        sim.halt_at(operation);
        let done = Log::create(dir(&sim.another_process()), ID, OPTIONS).is_ok();
        for seed in 0..10 {
            let cut = sim.power_cut(seed);
            match scan(&cut) {
                Ok(scan) => assert_eq!(scan.end_lsn(), Lsn(0)),
                Err(Error::Missing) => assert!(!done),
                Err(error) => panic!("operation {operation}, seed {seed}: {error}"),
            }
            if !done {
                let mut log = create(&cut);
                append_synced(&mut log, &[b"payload"]);
                assert_eq!(payloads(&scan(&cut).unwrap()).len(), 1);
            }
        }
        if done {
            return;
        }
    }
}

/// Goal: segments are freed one after another, the oldest first, so that the log never has a hole. Method: three are freed
/// at once, and the power is cut before each operation of that, in many ways.
#[test]
fn segments_are_freed_without_a_hole() {
    let mut cuts = 0;
    for operation in 1.. {
        let sim = machine();
        let mut log = create(&sim);
        (0..3).for_each(|_| add_spare(&mut log));
        for index in 0..3_u8 {
            append_synced(&mut log, &[&[index; 100]]);
            log.rotate().unwrap();
        }
        let last = append_synced(&mut log, &[b"the last"]);
        sim.halt_at(sim.operations() + operation);
        let freed = log.retire(last);
        for seed in 0..30 {
            let cut = sim.power_cut(seed);
            let scan =
                scan(&cut).unwrap_or_else(|error| panic!("operation {operation}, seed {seed}: {error}"));
            assert_eq!(scan.end_lsn(), last, "operation {operation}, seed {seed}");
            cuts += 1;
        }
        if let Ok(freed) = freed {
            assert_eq!((freed, cuts), (3, 7 * 30), "a header and a sync each");
            return;
        }
    }
}
