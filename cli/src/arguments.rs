//! The command line: commands, flags and their defaults.
//!
//! Clap answers misuse itself, with exit status 2. Flags that say how documents are meant are defaults: a document that
//! says otherwise wins.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;

use atomtree::Options;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::answer::Failure;

/// Changes many ordinary files atomically and durably.
///
/// All of a transaction's files change or none does, through errors, kill -9 and power loss.
#[derive(Parser)]
#[command(name = "atomtree", version, after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done; 1 refused or failed, nothing changed; 2 misuse of the command line; \
    3 locked by another process; 4 corrupt or poisoned; 5 committed but not applied; 6 outcome unknown. `batch` exits \
    with the highest of its answers.";

/// What every command takes.
#[derive(Args)]
pub(crate) struct Common {
    /// The directory whose files are changed; the store is its `.atomtree`
    #[arg(long, value_name = "DIR", default_value = ".", global = true)]
    pub(crate) root: PathBuf,
    /// Print JSON, errors included
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Let root act on a store that belongs to this user
    #[arg(long, value_name = "UID", global = true)]
    pub(crate) allow_owner: Option<u32>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Carry out one transaction from a JSON document
    Apply {
        /// The document; `-` is standard input
        file: PathBuf,
        #[command(flatten)]
        store: StoreFlags,
        #[command(flatten)]
        policies: Policies,
    },
    /// Carry out one transaction for each line of standard input, and answer each with a line of JSON
    Batch {
        /// How many transactions may commit at once; answers then come as they finish
        #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1024))]
        jobs: u16,
        /// Longest line in bytes; a longer one is skipped, and answered with `invalid_input`
        #[arg(long = "max-line-bytes", value_name = "BYTES", default_value = "67108864")]
        line_bytes_max: NonZeroU64,
        #[command(flatten)]
        store: StoreFlags,
        #[command(flatten)]
        policies: Policies,
    },
    /// Show the state of the store
    Status,
    /// List transactions, newest first
    Log {
        /// How many
        #[arg(short = 'n', long = "count", value_name = "N", default_value = "20")]
        count: usize,
    },
    /// Show what a transaction changed
    Show {
        /// Its number
        tx: u64,
    },
    /// Check the store, changing nothing
    Verify,
    /// Finish what a crash interrupted; without a store there is nothing to do, and none is made
    Recover {
        /// Accept a store with unsettled transactions although it was copied or restored
        #[arg(long)]
        adopt: bool,
    },
    /// Make everything committed so far durable in place; without a store there is nothing to do
    Checkpoint,
    /// Kill a writer again and again on a scratch tree, check every recovery, then measure speed
    Demo {
        /// Where the scratch tree is made; the root by default
        #[arg(long)]
        dir: Option<PathBuf>,
        /// How often the writer is killed
        #[arg(long, value_name = "N", default_value = "20")]
        rounds: u32,
    },
    /// The writer that the demo kills.
    #[command(hide = true)]
    DemoWriter,
}

/// How a store is opened for writing.
#[derive(Args)]
pub(crate) struct StoreFlags {
    /// Length of a log segment, fixed when the store is created: 65536 to 1073741824, a multiple of 4096
    #[arg(long, value_name = "BYTES")]
    segment_bytes: Option<u64>,
}

/// What documents mean unless they say otherwise.
#[derive(Args, Clone, Copy)]
pub(crate) struct Policies {
    /// What writing through a final symlink does
    #[arg(long, value_enum, default_value_t)]
    pub(crate) symlinks: Symlinks,
    /// What replacing a file with several hard links does
    #[arg(long, value_enum, default_value_t)]
    pub(crate) hard_links: HardLinks,
    /// When a transaction is answered
    #[arg(long, value_enum, default_value_t)]
    pub(crate) durability: Durability,
}

#[derive(Clone, Copy, Default, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Symlinks {
    /// It is refused
    #[default]
    Refuse,
    /// The file that it leads to is written
    Follow,
    /// The link gives way to a file
    Replace,
}

#[derive(Clone, Copy, Default, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HardLinks {
    /// It is refused
    #[default]
    Refuse,
    /// This name gets the new content, the others keep the old one
    Break,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Durability {
    /// When it survives power loss, after which recovery must run before the files are read
    #[default]
    Synced,
    /// When its files themselves are durable, for files that are read at boot
    Settled,
}

impl Common {
    /// How this command line opens a store.
    pub(crate) fn options(&self) -> Options {
        match self.allow_owner {
            Some(uid) => Options::new().allow_owner(uid),
            None => Options::new(),
        }
    }

    /// Whether the root has a store, of whatever kind or state.
    pub(crate) fn has_store(&self) -> bool {
        fs::symlink_metadata(self.root.join(".atomtree"))
            .map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |_| true)
    }

    /// Whether the root is a directory at all, for commands that are content without a store.
    pub(crate) fn check_root(&self) -> Result<(), Failure> {
        match fs::read_dir(&self.root) {
            Ok(_) => Ok(()),
            Err(error) => {
                let failure = Failure::of_io(&format!("open {}", self.root.display()), &error);
                Err(Failure { path: Some(self.root.clone()), ..failure })
            }
        }
    }
}

impl StoreFlags {
    pub(crate) fn set_on(&self, options: Options) -> Options {
        match self.segment_bytes {
            // The log's bound counts at least three segments, and the default one would refuse large segments.
            Some(bytes) => options.segment_bytes(bytes).log_bytes_max(bytes.saturating_mul(3).max(256 << 20)),
            None => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
}
