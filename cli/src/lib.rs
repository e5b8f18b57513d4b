//! What the `atomtree` program is made of: atomic, durable changes to many files from a shell.
//!
//! Everything that is promised is promised by the library; this crate turns documents into transactions and results
//! into answers. What programs read, the JSON and the exit status, is made in `answer.rs` and frozen by golden tests.

mod answer;
mod apply;
mod arguments;
mod batch;
mod color;
mod demo;
mod diff;
mod document;
mod duration;
mod fields;
mod history;
mod lines;
mod look;
mod manual;
mod path;
mod progress;
mod recover_all;
mod run;
mod stats;
mod store_flags;
mod table;
mod text;
mod torture;
mod upkeep;

use std::process::ExitCode;

use atomtree::{ErrorKind, Store};

use crate::arguments::{Arguments, Command};

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let Arguments { common, command } = Arguments::read();
    let result = match command {
        Command::Apply { file, store, policies } => apply::apply(&common, &store, policies, &file),
        Command::Batch { jobs, line_bytes_max, store, policies } => {
            batch::batch(&common, &store, policies, jobs, line_bytes_max)
        }
        Command::Run { flags, store } => Ok(run::run(&common, &store, &flags)),
        Command::RunChild { id, group, command } => Ok(run::enter(&common, &id, group.as_ref(), &command)),
        Command::Status => look::status(&common),
        Command::Log { count } => look::log(&common, count),
        Command::Show { tx } => look::show(&common, tx),
        Command::Undo { which, store } => history::undo(&common, &store, &which),
        Command::Redo { which, store } => history::redo(&common, &store, &which),
        Command::Restore { to, paths, how, store } => history::restore(&common, &store, to, &paths, &how),
        Command::Cat { what, store } => history::cat(&common, &store, &what),
        Command::Prune { quarantine: true, store, .. } => history::empty_quarantine(&common, &store),
        Command::Prune { keep, keep_days, keep_bytes, store, .. } => {
            history::prune(&common, &store, keep, keep_days, keep_bytes)
        }
        Command::Scrub { path, store } => history::scrub(&common, &store, &path),
        Command::Verify => look::verify(&common),
        Command::Stats => stats::stats(&common),
        Command::Recover { all, store } if all.is_empty() => upkeep::recover(&common, &store),
        Command::Recover { all, store } => recover_all::recover_all(&common, &store, &all),
        Command::Checkpoint { store } => upkeep::checkpoint(&common, &store),
        Command::Demo { dir, rounds } => demo::demo(&common, dir.as_deref(), rounds),
        Command::Torture { minutes: time, seed, keep, check } => {
            if check {
                torture::check_left(&common)
            } else {
                torture::torture(&common, time, seed, keep)
            }
        }
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man(dir.as_deref()),
        Command::DemoWriter => demo::writer::write(&common),
        Command::TortureWriter(how) => Ok(torture::writer::write(&common, &how)),
    };
    let status = result.unwrap_or_else(|failure| answer::report(&common, &failure));
    ExitCode::from(status)
}

/// Whether a line is a transaction document; otherwise, why not.
///
/// # Errors
/// The kind and the message that the answer would have.
pub fn check_document(line: &[u8]) -> Result<(), (ErrorKind, String)> {
    document::Document::parse(line).map(drop).map_err(|failure| (failure.kind, failure.message))
}

/// Carries out a transaction document as `atomtree batch` does with its first line. Returns the answer and the exit
/// status.
pub fn answer_document(store: &Store, line: &[u8]) -> (String, u8) {
    let (asked, result) =
        apply::carry_out_line(store, &apply::Turns::default(), arguments::Policies::default(), 1, line);
    answer::answer(&asked, &result)
}
