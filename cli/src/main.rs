//! The `atomtree` program: atomic, durable changes to many files from a shell.
//!
//! Everything that is promised is promised by the library; this crate turns documents into transactions and results
//! into answers. What programs read, the JSON and the exit status, is made in `answer.rs` and frozen by golden tests.

mod answer;
mod apply;
mod arguments;
mod batch;
mod color;
mod demo;
mod document;
mod fields;
mod lines;
mod look;
mod manual;
mod path;
mod progress;
mod recover_all;
mod stats;
mod store_flags;
mod table;
mod text;
mod torture;
mod upkeep;

use std::process::ExitCode;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let Arguments { common, command } = Arguments::read();
    let result = match command {
        Command::Apply { file, store, policies } => apply::apply(&common, &store, policies, &file),
        Command::Batch { jobs, line_bytes_max, store, policies } => {
            batch::batch(&common, &store, policies, jobs, line_bytes_max)
        }
        Command::Status => look::status(&common),
        Command::Log { count } => look::log(&common, count),
        Command::Show { tx } => look::show(&common, tx),
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
