//! No rival is faked: what each has written can be read back, by another handle, with the bytes that went in.

use std::fs;

use atomtree_rivals::batch::{Batch, random_bytes};
use atomtree_rivals::failure::Failure;
use atomtree_rivals::rivals::{self, Opening, Rival, Role, Writer};
use atomtree_tests::history::Random;

fn assert_holds(writer: &dyn Writer, batch: &Batch, rival: &dyn Rival) {
    for file in batch.files() {
        assert!(writer.get(file.path).unwrap() == file.content, "{}: {}", rival.name(), file.path);
    }
}

/// New files, some of them replaced, and one patched; then the same from a store that is opened again.
#[test]
fn every_rival_leaves_its_bytes_readable() {
    let scratch = tempfile::tempdir().unwrap();
    for rival in rivals::ALL.into_iter().filter(|rival| rival.role() != Role::Floor) {
        let dir = scratch.path().join(rival.name());
        fs::create_dir(&dir).unwrap();
        let mut random = Random::new(1);
        let kept = Batch::new(&mut random, "kept", "old-", 5, 1000, false);
        let first = Batch::new(&mut random, "kept", "", 10, 1024, false);
        let second = Batch::new(&mut random, "kept", "", 10, 5000, true);
        let large = Batch::of("kept", "large", random_bytes(&mut random, 2_000_000), false);

        let writer = rival.open(&dir, Opening::QUIET).unwrap();
        writer.create_dir("kept").unwrap();
        writer.put(&kept).unwrap();
        writer.put(&first).unwrap();
        assert_holds(&*writer, &first, rival);
        writer.put(&second).unwrap();
        writer.put(&large).unwrap();
        assert_holds(&*writer, &second, rival);
        writer.tidy().unwrap();
        let mut expected = large.all().to_vec();
        match writer.patch("kept/large", 12_345, b"patched") {
            Ok(()) => expected[12_345..12_352].copy_from_slice(b"patched"),
            Err(failure) => assert!(matches!(failure, Failure::Unsupported(_)), "{failure}"),
        }
        writer.close().unwrap();

        // LIMIT and BARE keep nothing that could be opened again.
        if rival.role() == Role::Limit {
            for file in kept.files().chain(second.files()) {
                assert!(fs::read(dir.join(file.path)).unwrap() == file.content, "{}", file.path);
            }
            continue;
        }
        let writer = rival.open(&dir, Opening::QUIET).unwrap();
        assert_holds(&*writer, &kept, rival);
        assert_holds(&*writer, &second, rival);
        assert!(writer.get("kept/large").unwrap() == expected, "{}: the large file", rival.name());
        writer.close().unwrap();
    }
}

/// The floor writes what the others write.
#[test]
fn the_floor_writes_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let writer = rivals::BareFloor.open(scratch.path(), Opening::QUIET).unwrap();
    let batch = Batch::new(&mut Random::new(2), "dir", "", 10, 1024, false);
    writer.put(&batch).unwrap();
    assert!(writer.get("").unwrap().starts_with(batch.all()));
}

/// Whoever counts counts right, and says otherwise that it doesn't.
#[test]
fn counters_count() {
    let scratch = tempfile::tempdir().unwrap();
    let mut counting = Vec::new();
    for rival in rivals::ALL.into_iter().filter(|rival| matches!(rival.role(), Role::Ours | Role::Rival)) {
        let dir = scratch.path().join(rival.name());
        fs::create_dir(&dir).unwrap();
        let writer = rival.open(&dir, Opening::QUIET).unwrap();
        writer.create_dir("dir").unwrap();
        writer.put(&Batch::of("dir", "counter", b"9".to_vec(), false)).unwrap();
        let batch = Batch::new(&mut Random::new(3), "dir", "", 3, 100, false);
        match writer.count("dir/counter", &batch) {
            Ok(()) => {
                assert_eq!(writer.get("dir/counter").unwrap(), b"10", "{}", rival.name());
                assert_holds(&*writer, &batch, rival);
                counting.push(rival.name());
            }
            Err(failure) => assert!(matches!(failure, Failure::Unsupported(_)), "{failure}"),
        }
        writer.close().unwrap();
    }
    let expected = ["atomtree", "fstx", "sqlite-wal", "sqlite-delete", "sqlite-delete-extra", "redb"];
    assert_eq!(counting, expected);
}
