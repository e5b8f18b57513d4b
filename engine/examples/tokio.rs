//! Awaits tickets in tasks. atomtree knows no runtime: a ticket is an ordinary future, and this is one way to run it.
//!
//! Run it with a directory: `cargo run --example tokio -- /tmp/inbox`.

use std::error::Error;
use std::path::PathBuf;

use atomtree::{Receipt, Store};
use tokio::task::{self, JoinSet};

/// Stores one message and its place in the index, together.
async fn deliver(store: Store, n: u32) -> Result<Receipt, atomtree::Error> {
    // Staging writes files, and submitting blocks while too many wait: neither is for the thread that runs tasks.
    let submit = move || {
        let mut tx = store.begin()?;
        tx.set_label(format!("message {n}"));
        tx.write(format!("inbox/{n}.txt"), format!("hello {n}\n"))?;
        tx.write(format!("index/{n}"), format!("inbox/{n}.txt\n"))?;
        tx.submit()
    };
    let ticket = task::spawn_blocking(submit).await.expect("it does not panic")?;
    ticket.await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".into()));
    let store = Store::open(&root)?;
    let mut deliveries = JoinSet::new();
    for n in 0..100 {
        deliveries.spawn(deliver(store.clone(), n));
    }
    let mut names = 0;
    while let Some(delivered) = deliveries.join_next().await {
        names += delivered??.files();
    }
    println!("{names} names changed, each message with its place in the index");
    task::spawn_blocking(|| store.close()).await??;
    Ok(())
}
