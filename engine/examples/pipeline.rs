//! Keeps the disk busy from plain threads: each submits transaction after transaction, and asks for outcomes later.
//!
//! Run it with a directory: `cargo run --release --example pipeline -- /tmp/reports`. It says what the same number of
//! commits takes that each wait for their own sync.

use std::error::Error;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use atomtree::{Store, Transaction};

const THREADS: u32 = 4;
const EACH: u32 = 250;

fn report(store: &Store, name: &str) -> Result<Transaction, atomtree::Error> {
    let mut tx = store.begin()?;
    tx.write(format!("{name}.txt"), format!("all about {name}\n"))?;
    Ok(tx)
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".into()));
    let store = Store::open(&root)?;

    let start = Instant::now();
    let submitted = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || -> Result<u32, atomtree::Error> {
                    let tickets: Vec<_> = (0..EACH)
                        .map(|n| report(store, &format!("submitted/{thread}/{n}"))?.submit())
                        .collect::<Result<_, _>>()?;
                    // In the order of submission: once the last one is durable, all before it that did not fail are.
                    for ticket in &tickets {
                        ticket.durable()?;
                    }
                    for ticket in tickets {
                        ticket.applied()?;
                    }
                    Ok(EACH)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum::<Result<u32, _>>()
    })?;
    println!("{submitted} transactions submitted by {THREADS} threads: {:?}", start.elapsed());

    let start = Instant::now();
    for n in 0..EACH {
        report(&store, &format!("committed/{n}"))?.commit()?;
    }
    println!("{EACH} transactions committed one by one: {:?}", start.elapsed());
    store.close()?;
    Ok(())
}
