//! Loom model of the ballast, which a checkpoint may give up while a committer takes it. Every schedule, without a bound.
//! `RUSTFLAGS="--cfg loom" cargo test -p atomtree-recovery --release --lib models` runs it.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use atomtree_vfs::Vfs;
use atomtree_vfs::faults::Faults;
use atomtree_vfs::sim::Sim;
use atomtree_wal::sync::explore;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::*;

const BYTES: u64 = 8192;

/// Whatever comes first, the ballast says that it is full when it is, and only then.
#[test]
fn released_beside_a_fill() {
    explore("ballast released beside a fill", None, |taken_again| {
        let sim = Sim::new(0);
        // Loom knows nothing of storage, so that each verb touches something that it knows.
        let touched = AtomicUsize::new(0);
        let judge = Arc::new(move |_: &_| {
            touched.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
            None
        });
        let disk = Faults::new(Arc::new(sim.clone()), judge);
        let ballast = Ballast::open(&*disk.open_root(Path::new("/")).unwrap(), BYTES).unwrap();
        ballast.fill().unwrap();
        let ballast = Arc::new(ballast);
        let releasing = {
            let ballast = Arc::clone(&ballast);
            thread::spawn(move || assert!(ballast.release().unwrap(), "it was full"))
        };
        ballast.fill().unwrap();
        releasing.join().unwrap();
        let bytes = sim.read_file("/ballast").unwrap().len() as u64;
        assert_eq!(ballast.is_full(), bytes == BYTES, "it holds {bytes} bytes");
        taken_again.fetch_add(usize::from(ballast.is_full()), Relaxed);
    });
}
