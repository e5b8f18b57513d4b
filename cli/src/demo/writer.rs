//! The process that the demo kills: it moves the set of files from version to version, as fast as it can.
//!
//! It says `ready` when the store is open, and each version once its commit has returned. It ends when nobody listens,
//! so it doesn't outlive the demo.

use std::io::{self, Write};
use std::time::Duration;

use atomtree::ErrorKind;

use crate::answer::Failure;
use crate::arguments::Common;
use crate::demo::set;

/// Runs the hidden command `atomtree demo-writer`.
pub(crate) fn write(common: &Common) -> Result<u8, Failure> {
    // Checkpoints come often, so that kills hit them as well.
    let store = common.options().settle_after(Duration::from_millis(10)).open(&common.root)?;
    let found = set::version(&common.root).map_err(|error| Failure::of_io("read the set", &error))?;
    let Some(mut version) = found else {
        return Err(Failure::new(ErrorKind::Conflict, "the files of the set do not agree"));
    };
    let mut out = io::stdout().lock();
    let mut say = |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let mut is_heard = say("ready\n").is_ok();
    while is_heard {
        version += 1;
        store.transact(|transaction| set::write(transaction, version))?;
        is_heard = say(&format!("{version}\n")).is_ok();
    }
    Ok(0)
}
