//! `stats`: figures of a store, without opening or changing it.

use serde::Serialize;

use crate::answer::{Failure, json, print};
use crate::arguments::Common;
use crate::look::inspect;
use crate::progress::Progress;
use crate::table::Table;
use crate::text::{ago, counted, moment, size, utc};

/// What programs are told.
#[derive(Serialize)]
struct Stats {
    ok: bool,
    /// Those that the history still knows.
    transactions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<Moment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Moment>,
    unsettled: u64,
    files: u64,
    created: u64,
    replaced: u64,
    removed: u64,
    content_bytes: u64,
    log_segments: usize,
    log_segments_free: usize,
    segment_bytes: u64,
    log_bytes: u64,
    checkpoint_lsn: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_time: Option<String>,
    manifests: u64,
    manifest_bytes: u64,
    staged: u64,
    quarantined: u64,
    quarantined_bytes: u64,
    guard_images: u64,
    guard_image_bytes: u64,
}

#[derive(Serialize)]
struct Moment {
    tx: u64,
    time: String,
}

/// Runs `atomtree stats`.
pub(crate) fn stats(common: &Common) -> Result<u8, Failure> {
    let progress = Progress::of("reading the history");
    let found = inspect(common)?.stats()?;
    drop(progress);
    if common.json {
        let moment = |past: &atomtree::PastTransaction| Moment { tx: past.tx.0, time: utc(past.time_ns) };
        let ends = found.oldest_and_newest.as_ref();
        print(&json(&Stats {
            ok: true,
            transactions: found.transactions,
            first: ends.map(|(oldest, _)| moment(oldest)),
            last: ends.map(|(_, newest)| moment(newest)),
            unsettled: found.status.unsettled,
            files: found.created + found.replaced + found.removed,
            created: found.created,
            replaced: found.replaced,
            removed: found.removed,
            content_bytes: found.content_bytes,
            log_segments: found.status.log_segments,
            log_segments_free: found.status.log_segments_free,
            segment_bytes: found.segment_bytes,
            log_bytes: found.status.log_bytes,
            checkpoint_lsn: found.status.checkpoint_lsn.0,
            checkpoint_time: found.settled_ns.map(utc),
            manifests: found.manifests,
            manifest_bytes: found.manifest_bytes,
            staged: found.staged,
            quarantined: found.status.quarantined,
            quarantined_bytes: found.quarantined_bytes,
            guard_images: found.guard_images,
            guard_image_bytes: found.guard_image_bytes,
        }))?;
    } else {
        print(&table(&found).text(common.is_colored()))?;
    }
    Ok(0)
}

fn table(found: &atomtree::Stats) -> Table {
    let mut table = Table::of_facts();
    let status = &found.status;
    let unsettled = status.unsettled;
    table.fact("transactions", format!("{} in the history, {unsettled} unsettled", found.transactions));
    if let Some((oldest, newest)) = &found.oldest_and_newest {
        for (name, past) in [("first", oldest), ("last", newest)] {
            let (time, ago) = (moment(past.time_ns), ago(past.time_ns));
            table.fact(name, format!("transaction {}, {time} UTC, {ago}", past.tx));
        }
    }
    let (created, replaced, removed) = (found.created, found.replaced, found.removed);
    let names = counted(created + replaced + removed, "name");
    table.fact("changed", format!("{names}: {created} created, {replaced} replaced, {removed} removed"));
    table.fact("content", format!("{} written", size(found.content_bytes)));
    let segments = counted(status.log_segments as u64, "segment");
    let (each, all) = (size(found.segment_bytes), size(found.segment_bytes * status.log_segments as u64));
    let (free, used) = (status.log_segments_free, size(status.log_bytes));
    table.fact("log", format!("{segments} of {each} ({free} free), {used} of {all} used"));
    let settled =
        found.settled_ns.map_or_else(String::new, |time| format!(", {} UTC, {}", moment(time), ago(time)));
    table.fact("checkpoint", format!("lsn {}{settled}", status.checkpoint_lsn));
    table
        .fact("history", format!("{}, {}", counted(found.manifests, "manifest"), size(found.manifest_bytes)));
    table.fact("staged", counted(found.staged, "file"));
    let (quarantined, bytes) = (counted(status.quarantined, "file"), size(found.quarantined_bytes));
    table.fact("quarantine", format!("{quarantined}, {bytes}"));
    let (images, bytes) = (counted(found.guard_images, "image"), size(found.guard_image_bytes));
    table.fact("guards", format!("{images}, {bytes}"));
    table
}
