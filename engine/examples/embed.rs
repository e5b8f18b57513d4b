//! Embeds atomtree: a config, the schema that it names, and the migration that leads there change together.
//!
//! Run it with a directory: `cargo run --example embed -- /tmp/project`. Run it again, and kill it whenever you like.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".into()));
    let store = atomtree::Store::open(&root)?;
    if store.recovery().redone > 0 {
        println!("finished {} transactions that a crash had interrupted", store.recovery().redone);
    }

    // Runs again if another program changes one of these files meanwhile: nothing that it did is overwritten unseen.
    let (version, receipt) = store.transact(|tx| {
        let config = if tx.exists("config.json")? { tx.read("config.json")? } else { b"0".to_vec() };
        let version = String::from_utf8_lossy(&config).trim().parse::<u32>().unwrap_or(0) + 1;
        tx.set_label(format!("migrate to version {version}"));
        tx.write("config.json", format!("{version}\n"))?;
        tx.append("schema.sql", format!("-- version {version}\n"))?;
        tx.write(format!("migrations/{version:04}.sql"), format!("-- leads to version {version}\n"))?;
        Ok(version)
    })?;

    println!(
        "version {version} is in place and durable: transaction {}, {} names",
        receipt.tx(),
        receipt.files()
    );
    store.close()?;
    Ok(())
}
