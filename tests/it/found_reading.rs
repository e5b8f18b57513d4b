//! What a cold reading of the engine found: each was wrong once.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use atomtree::Store;
use atomtree::vfs::sim::Sim;
use atomtree::vfs::{Access, Dir, Vfs};
use atomtree::{ErrorKind, Expectation};

use crate::basics::{commit, manual, opened};

struct Block(Mutex<mpsc::Receiver<()>>);
impl Wake for Block {
    fn wake(self: Arc<Self>) {
        let _ = self.0.lock().unwrap().recv();
    }
}

fn machine() -> (Sim, Store) {
    let sim = Sim::new(5);
    sim.create_dir("/tree");
    let store = manual().vfs(Arc::new(sim.clone())).open("/tree").unwrap();
    (sim, store)
}

fn stands(sim: &Sim, dir: &str, name: &str) -> bool {
    let root = sim.open_root(Path::new("/tree")).unwrap();
    let dir: Arc<dyn Dir> = match root.open_dir(Path::new(dir)) {
        Ok(d) => d,
        Err(_) => return false,
    };
    dir.metadata(name.as_ref()).is_ok()
}

/// Goal: the checkpoint that one transaction of a batch needs does not settle another that is logged and not applied.
/// Method: three submitted together, the last of which lies below what the first moved; then power cuts.
#[test]
fn a_checkpoint_for_a_barrier_settles_nothing_that_is_not_applied() {
    let (sim, store) = machine();
    commit(&store, |tx| tx.write("d/f", "1")).unwrap();
    store.checkpoint().unwrap();
    let (go, stop) = mpsc::channel();
    let waker = Waker::from(Arc::new(Block(Mutex::new(stop))));
    let mut n = 0;
    let mut held;
    loop {
        let mut tx = store.begin().unwrap();
        tx.write(format!("p{n}"), "p").unwrap();
        held = tx.submit().unwrap();
        n += 1;
        let polled = Pin::new(&mut held).poll(&mut Context::from_waker(&waker));
        if matches!(polled, Poll::Pending) {
            break;
        }
    }
    let submit = |change: &dyn Fn(&mut atomtree::Transaction)| {
        let mut tx = store.begin().unwrap();
        change(&mut tx);
        tx.submit().unwrap()
    };
    let t0 = submit(&|tx| tx.rename("d", "e").unwrap());
    let a = submit(&|tx| tx.write("x", "precious").unwrap());
    let b = submit(&|tx| tx.write("e/g", "2").unwrap());
    go.send(()).unwrap();
    t0.applied().unwrap();
    a.applied().unwrap();
    b.applied().unwrap();
    assert!(stands(&sim, "", "x"));
    let mut lost = 0;
    for seed in 0..20 {
        let cut = sim.power_cut(seed);
        let again = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
        if !stands(&cut, "", "x") {
            lost += 1;
        }
        drop(again);
    }
    assert_eq!(lost, 0, "acknowledged as durable and lost, of 20");
}

/// Goal: two names of one inode are two names. Method: one moves, the other is removed.
#[test]
fn a_link_is_removed_although_another_one_moves() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "one").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    commit(&store, |tx| {
        tx.rename("a", "c")?;
        tx.remove("b")
    })
    .unwrap();
    let names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!root.join("b").exists(), "b was to be removed: {names:?}");
}

/// Goal: two names of one inode are two names. Method: one moves, the other gets a new content.
#[test]
fn a_link_is_written_although_another_one_moves() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "one").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    let receipt = commit(&store, |tx| {
        tx.set_hard_links(atomtree::HardLinks::Break);
        tx.rename("a", "c")?;
        tx.write("b", "new")
    });
    assert!(receipt.unwrap().displaced().is_empty());
}

/// Goal: two names of one inode are two names. Method: one moves to where the other stood.
#[test]
fn links_are_shifted() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "one").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    commit(&store, |tx| {
        tx.rename("a", "c")?;
        tx.rename("b", "a")
    })
    .unwrap();
    let names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!root.join("b").exists(), "{names:?}");
}

/// Goal: what was read or expected still holds at the commit, though its inode gets another name. Method: another
/// program writes into it meanwhile.
#[test]
fn what_was_read_is_checked_although_it_moves() {
    let (scratch, store) = opened(manual().inline_bytes_max(100));
    let root = scratch.path();
    fs::write(root.join("big"), vec![b'a'; 5000]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let mut tx = store.begin().unwrap();
    let seen = tx.read("big").unwrap();
    tx.expect("big", Expectation::Blake3(*blake3::hash(&seen).as_bytes())).unwrap();
    tx.rename("big", "moved").unwrap();
    tx.write("note", format!("big has {} bytes", seen.len())).unwrap();
    fs::write(root.join("big"), b"other").unwrap();
    let result = tx.commit();
    assert!(result.is_err(), "{result:?}");
}

/// Goal: recovery does not give a new mode to a file that another program has put there since. Method: a private file
/// takes the place of one that was opened to all; kill.
#[test]
fn a_mode_is_not_given_to_somebody_elses_file() {
    let (sim, store) = machine();
    commit(&store, |tx| tx.write_with_mode("f", "public", 0o600)).unwrap();
    store.checkpoint().unwrap();
    commit(&store, |tx| tx.set_mode("f", 0o644)).unwrap();
    let root = sim.open_root(Path::new("/tree")).unwrap();
    let new = root.create_file("tmp".as_ref(), 0o600).unwrap();
    new.write_at(&[std::io::IoSlice::new(b"secret")], 0).unwrap();
    root.rename_over("tmp".as_ref(), &*root, "f".as_ref()).unwrap();
    let cut = sim.kill();
    let store = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
    let root = cut.open_root(Path::new("/tree")).unwrap();
    let file = root.open_file("f".as_ref(), Access::Read).unwrap();
    assert_eq!(file.read_all(100).unwrap(), b"secret");
    assert_eq!(store.recovery().metadata_kept.len(), 1);
    let mode = root.metadata("f".as_ref()).unwrap().mode;
    assert_eq!(mode, 0o600, "another program's new file has been opened to all");
}

/// Goal: a mode that somebody else gave is kept, also where it differs by the owner's rights alone. Method: kill, and look.
#[test]
fn another_programs_mode_of_a_file_is_kept() {
    let (sim, store) = machine();
    commit(&store, |tx| tx.write_with_mode("f", "script", 0o600)).unwrap();
    store.checkpoint().unwrap();
    commit(&store, |tx| tx.set_mode("f", 0o644)).unwrap();
    let root = sim.open_root(Path::new("/tree")).unwrap();
    root.set_mode_of("f".as_ref(), 0o744).unwrap();
    let cut = sim.kill();
    let again = manual().vfs(Arc::new(cut.clone())).open("/tree").unwrap();
    let root = cut.open_root(Path::new("/tree")).unwrap();
    let mode = root.metadata("f".as_ref()).unwrap().mode;
    assert_eq!(mode, 0o744, "{:?}", again.recovery());
}

/// Goal: returning to a later savepoint after an earlier one mixes nothing. Method: another directory is read between.
#[test]
fn savepoints_are_returned_to_in_any_order() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    for dir in ["a", "b"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    fs::write(root.join("a/f"), "in a").unwrap();
    fs::write(root.join("b/f"), "in b").unwrap();
    let mut tx = store.begin().unwrap();
    let one = tx.savepoint();
    tx.write("a/f", "new").unwrap();
    let two = tx.savepoint();
    tx.return_to(&one).unwrap();
    tx.read("b/f").unwrap();
    tx.return_to(&two).unwrap();
    let result = tx.commit();
    result.unwrap();
}

/// Goal: a directory that another program has replaced since it was seen is a conflict. Method: it is removed then.
#[test]
fn a_directory_that_was_replaced_is_no_panic() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir(root.join("d")).unwrap();
    let mut tx = store.begin().unwrap();
    assert!(tx.exists("d").unwrap());
    fs::create_dir(root.join("other")).unwrap();
    fs::remove_dir(root.join("d")).unwrap();
    fs::rename(root.join("other"), root.join("d")).unwrap();
    let result = tx.commit();
    assert!(result.is_err(), "{result:?}");
}

/// Goal: nothing is written into a directory that has gone. Method: moved away before the commit.
#[test]
fn a_directory_that_was_moved_away_is_a_conflict() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir(root.join("d")).unwrap();
    let mut tx = store.begin().unwrap();
    tx.write("d/new", "new").unwrap();
    fs::rename(root.join("d"), root.join("e")).unwrap();
    let result = tx.commit();
    assert!(result.is_err(), "{result:?}");
}

/// Goal: a directory that another program moves is not written under its old name. Method: seen before, written after.
#[test]
fn a_directory_that_was_moved_is_not_taken_for_another() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::create_dir(root.join("d")).unwrap();
    let mut tx = store.begin().unwrap();
    assert!(!tx.exists("d/x").unwrap());
    fs::rename(root.join("d"), root.join("e")).unwrap();
    let written = tx.write("e/f", "for e");
    assert_eq!(written.map_err(|error| error.kind()), Err(ErrorKind::Conflict));
    assert!(!root.join("d").exists());
}

/// Goal: two names of one inode that both move are found again after a crash. Method: each operation killed and cut.
#[test]
fn two_links_that_move_survive_every_crash() {
    let make = || {
        let (sim, store) = machine();
        let root = sim.open_root(Path::new("/tree")).unwrap();
        root.create_file("a".as_ref(), 0o644).unwrap();
        root.link("a".as_ref(), &*root, "b".as_ref()).unwrap();
        root.sync_filesystem().unwrap();
        (sim, store)
    };
    let change = |store: &Store| {
        commit(store, |tx| {
            tx.rename("a", "c")?;
            tx.rename("b", "d")
        })
    };
    let (sim, store) = make();
    let before = sim.operations();
    let operations = sim.operations() - before;
    drop(store);
    let mut wrong = Vec::new();
    for number in 1..=operations + 1 {
        let (sim, store) = make();
        sim.halt_at(sim.operations() + number);
        let _ = change(&store);
        drop(store);
        let mut crashed = vec![("kill".to_owned(), sim.kill())];
        for seed in 0..8 {
            crashed.push((format!("cut {seed}"), sim.power_cut(seed)));
        }
        for (how, sim) in crashed {
            match manual().vfs(Arc::new(sim.clone())).open("/tree") {
                Err(error) => wrong.push(format!("{how} at {number}: {error}")),
                Ok(store) => {
                    let names: Vec<_> =
                        ["a", "b", "c", "d"].into_iter().filter(|name| stands(&sim, "", name)).collect();
                    if names != ["a", "b"] && names != ["c", "d"] {
                        wrong.push(format!("{how} at {number}: {names:?} {:?}", store.recovery()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), operations * 9, wrong.join("\n"));
}

/// Goal: what was read of a file before it was moved counts as much as what is read of it afterwards. Method: a file with
/// two names, which moves as an inode, is read, moved, edited by another program, and asked for again.
#[test]
fn a_moved_file_is_still_the_one_that_was_read() {
    for again in ["read", "expect"] {
        let (scratch, store) = opened(manual());
        let root = scratch.path();
        fs::write(root.join("a"), "one").unwrap();
        fs::hard_link(root.join("a"), root.join("other")).unwrap();
        let mut tx = store.begin().unwrap();
        assert_eq!(tx.read("a").unwrap(), b"one");
        tx.rename("a", "b").unwrap();
        fs::write(root.join("other"), "two").unwrap();
        let result = match again {
            "read" => tx.read("b").map(drop),
            _ => tx.expect("b", Expectation::Blake3(*blake3::hash(b"two").as_bytes())),
        };
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Conflict, "{again}");
        assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::Conflict, "{again}");
        assert!(root.join("a").exists());
    }
}

/// Goal: a return to a savepoint forgets no read, also of a name that the savepoint knew. Method: a name that was
/// written, and not any more, is read after one savepoint; another program changes it after a return to the next.
#[test]
fn a_return_to_a_savepoint_forgets_no_read() {
    let (scratch, store) = opened(manual());
    let root = scratch.path();
    fs::write(root.join("a"), "one").unwrap();
    let mut tx = store.begin().unwrap();
    let first = tx.savepoint();
    tx.write("a", "mine").unwrap();
    tx.return_to(&first).unwrap();
    let second = tx.savepoint();
    assert_eq!(tx.read("a").unwrap(), b"one");
    tx.return_to(&second).unwrap();
    fs::write(root.join("a"), "theirs").unwrap();
    tx.write("note", "a is one").unwrap();
    assert_eq!(tx.commit().unwrap_err().kind(), ErrorKind::Conflict);
}
