//! Puts this crate's records into the log.

use atomtree_wal::{Error, Log, Lsn, Record};

use crate::plan::{Applied, Checkpoint, Payload};

/// The parts of each payload, as the log takes them.
pub fn with_records<R>(payloads: &[Payload<'_>], then: impl FnOnce(&[Record<'_>]) -> R) -> R {
    let parts: Vec<[&[u8]; 2]> =
        payloads.iter().map(|payload| [payload.head.as_slice(), payload.content]).collect();
    let records: Vec<Record<'_>> = payloads
        .iter()
        .zip(&parts)
        .map(|(payload, parts)| Record { kind: payload.kind.code(), parts })
        .collect();
    then(&records)
}

/// Appends a checkpoint, from the log's reserve if need be. Not durable yet.
pub fn append_checkpoint(log: &mut Log, checkpoint: Checkpoint) -> Result<Lsn, Error> {
    with_records(&[checkpoint.payload()], |records| log.append_reserved(records))
}

/// Appends a note that commits have been applied. It need not become durable: without it, recovery finds out.
pub fn append_applied(log: &mut Log, applied: Applied) -> Result<Lsn, Error> {
    with_records(&[applied.payload()], |records| log.append(records))
}
