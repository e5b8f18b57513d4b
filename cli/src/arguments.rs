//! The command line: commands, flags and their defaults.
//!
//! Clap answers misuse itself, with exit status 2. Flags that say how documents are meant are defaults: a document that
//! says otherwise wins.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use atomtree::{Moment, Options, TransactionId};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::answer::Failure;
use crate::color;
use crate::run::RunFlags;
use crate::store_flags::StoreFlags;
use crate::text;
use crate::torture::writer::How;

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
    3 locked by another process; 4 corrupt or poisoned; 5 committed but not applied; 6 outcome unknown, or done and not to \
    be told on standard output; 7 `torture` has found a broken promise. `batch` exits with the highest of its answers.";

/// What every command takes.
#[derive(Args)]
pub(crate) struct Common {
    /// The directory whose files are changed; the store is its `.atomtree`
    #[arg(long, value_name = "DIR", default_value = ".", global = true)]
    pub(crate) root: PathBuf,
    /// Whether it was named.
    #[arg(skip)]
    pub(crate) is_root_given: bool,
    /// Print JSON, errors included
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Let root act on a store that belongs to this user
    #[arg(long, value_name = "UID", global = true)]
    pub(crate) allow_owner: Option<u32>,
    /// When to color what people read; the variable `NO_COLOR` turns it off too
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    color: ColorChoice,
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
    /// Run a command; keep what it has changed in the tree if it succeeds, and roll that back otherwise
    ///
    /// Images of everything under the guard are durable before the command starts. It ends with the command's exit
    /// status, 128 and the signal if one ended it, 124 after --timeout, 126 or 127 if the command could not be started,
    /// and 125 if something else failed, or could not be brought back. Everything that the command has started is ended
    /// before a roll back. If this is killed, the next command that opens the store does both.
    Run {
        #[command(flatten)]
        flags: RunFlags,
        #[command(flatten)]
        store: StoreFlags,
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
    /// Undo transactions, as one new one
    ///
    /// What they made is removed, what they removed or replaced comes back. If any of it has moved on since, that is a
    /// conflict, and nothing is changed.
    Undo {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Redo transactions that were undone, as one new one
    Redo {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Bring files, or the whole tree, back to what they were at a moment, as one transaction
    Restore {
        /// Right behind this transaction, or at this time: 2026-01-31T12:00:00Z, as `log` prints it
        #[arg(long, value_name = "TX|TIME", value_parser = moment)]
        to: Moment,
        /// What is at or below these paths; everything by default
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        how: GoingBack,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Print a file as it was right behind a transaction
    Cat {
        /// The transaction and the path
        #[arg(value_name = "TX:PATH", value_parser = OsStringValueParser::new().try_map(|text| tx_and_path(&text)))]
        what: TxAndPath,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Forget history that is older, or more, than is to be kept; or empty the quarantine
    Prune {
        /// Keep at most so many transactions
        #[arg(long, value_name = "N")]
        keep: Option<u64>,
        /// Keep transactions of the last so many days
        #[arg(long, value_name = "DAYS", value_parser = days)]
        keep_days: Option<Duration>,
        /// Keep at most so many bytes of history
        #[arg(long, value_name = "BYTES")]
        keep_bytes: Option<u64>,
        /// Remove what other programs wrote and had to give way, instead
        #[arg(long, conflicts_with_all = ["keep", "keep_days", "keep_bytes"])]
        quarantine: bool,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Remove what the store keeps of a path for good, as far as the storage allows
    ///
    /// For when a secret was committed. Its originals, the log, and what guards have left are overwritten. What stands in the
    /// tree stays, and so does what the answer names. Commits wait meanwhile.
    Scrub {
        /// The file or directory
        path: PathBuf,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Check the store, changing nothing
    Verify,
    /// Count what the history adds up to and what the store takes
    Stats,
    /// Finish what a crash interrupted; without a store there is nothing to do, and none is made
    Recover {
        /// Recover every store at or below these directories instead, one after the other; symlinks are not followed,
        /// other file systems not entered. Exits with the highest status of all
        #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with = "adopt")]
        all: Vec<PathBuf>,
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Make everything committed so far durable in place; without a store there is nothing to do
    Checkpoint {
        #[command(flatten)]
        store: StoreFlags,
    },
    /// Kill a writer again and again on a scratch tree, check every recovery, then measure speed
    Demo {
        /// Where the scratch tree is made; the root by default
        #[arg(long)]
        dir: Option<PathBuf>,
        /// How often the writer is killed
        #[arg(long, value_name = "N", default_value = "20")]
        rounds: u32,
    },
    /// Kill writers again and again on your own disk, and check that no promise is broken
    ///
    /// Several threads do everything that transactions can do in a directory of their own, and are killed at random
    /// instants: while they commit, while they recover, and while they make a store. After that everything that was
    /// acknowledged must be there, every transaction whole or absent, and nothing else. The directory is --root, which
    /// must be empty or is made; without --root one is made in the current directory. What was made is removed when all
    /// is well, also after Ctrl-C, and kept for a report when a promise is broken. It takes up to 128 MiB.
    ///
    /// The power is not cut. To test that, cut it while this runs, and look at the same directory with --check.
    Torture {
        /// How long; 0.5 is half a minute
        #[arg(long, value_name = "N", default_value = "1", value_parser = minutes)]
        minutes: Duration,
        /// What the transactions are; a random number by default, which is printed
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Leave everything in place at the end
        #[arg(long)]
        keep: bool,
        /// Only recover and check what an earlier run has left in --root, because of --keep or of a power cut
        #[arg(long, conflicts_with_all = ["minutes", "seed", "keep"])]
        check: bool,
    },
    /// Print what makes a shell complete this command line
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man {
        /// Write the page of the program and of each command into this directory instead
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// What `run` starts, and what becomes the command.
    #[command(hide = true)]
    RunChild {
        /// The guard
        id: String,
        /// The control group
        #[arg(long)]
        group: Option<PathBuf>,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// The writer that the demo kills.
    #[command(hide = true)]
    DemoWriter,
    /// The writer that `torture` kills.
    #[command(hide = true)]
    TortureWriter(How),
}

/// Transactions to go back or forth over.
#[derive(Args)]
pub(crate) struct Which {
    /// Their numbers
    #[arg(value_name = "TX", required = true)]
    pub(crate) transactions: Vec<u64>,
    #[command(flatten)]
    pub(crate) how: GoingBack,
}

/// How to go about it.
#[derive(Args)]
pub(crate) struct GoingBack {
    /// Put names back that have moved on since too; their newer content comes back by undoing this
    #[arg(long)]
    pub(crate) force: bool,
    /// Say why, in the history
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Say on whose behalf, in the history
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
}

/// A transaction and a path.
#[derive(Clone)]
pub(crate) struct TxAndPath(pub(crate) u64, pub(crate) PathBuf);

fn tx_and_path(text: &OsStr) -> Result<TxAndPath, String> {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':').ok_or("a colon parts transaction and path")?;
    let tx = std::str::from_utf8(&bytes[..colon]).ok().and_then(|tx| tx.parse().ok());
    let tx = tx.ok_or("what stands before the colon is no transaction's number")?;
    Ok(TxAndPath(tx, PathBuf::from(OsStr::from_bytes(&bytes[colon + 1..]))))
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(tx) = text.parse() {
        return Ok(Moment::After(TransactionId(tx)));
    }
    let time = text::parse_utc(text);
    time.map(Moment::At).ok_or_else(|| {
        "it is neither a transaction's number nor a time such as 2026-01-31T12:00:00Z".to_owned()
    })
}

fn days(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(days) if (0.0..=1_000_000.0).contains(&days) => Ok(Duration::from_secs_f64(days * 86_400.0)),
        _ => Err("it is no number of days".to_owned()),
    }
}

/// A span of time in minutes, from a hundredth of a second to a year.
fn minutes(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())? * 60.0;
    if (0.01..=31_536_000.0).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err("it must be more than nothing, and no more than a year".to_owned())
}

/// What documents mean unless they say otherwise.
#[derive(Args, Clone, Copy, Default)]
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

impl Arguments {
    /// Reads the command line; misuse ends the process.
    pub(crate) fn read() -> Self {
        // Clap colors its own messages, and has to know before it has read the flag that says how.
        let words = || std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let joined = words().find_map(|word| word.strip_prefix("--color=").map(str::to_owned));
        let choice = joined
            .or_else(|| words().skip_while(|word| word != "--color").nth(1))
            .and_then(|word| word.parse().ok());
        let mut command = Self::command().color(choice.unwrap_or_default());
        let matches = command.get_matches_mut();
        // Of a global flag before the command, clap's rules for the command's flags know nothing.
        let has_root = matches.value_source("root") == Some(ValueSource::CommandLine);
        if has_root && matches.subcommand().is_some_and(|(_, recover)| has_all(recover)) {
            let message = "the argument '--all <DIR>...' cannot be used with '--root <DIR>'";
            command.error(clap::error::ErrorKind::ArgumentConflict, message).exit();
        }
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        arguments.common.is_root_given = has_root;
        arguments
    }
}

fn has_all(command: &ArgMatches) -> bool {
    matches!(command.try_get_many::<PathBuf>("all"), Ok(Some(_)))
}

impl Common {
    /// Whether what people read on standard output is colored.
    pub(crate) fn is_colored(&self) -> bool {
        color::is_wanted(self.color)
    }

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
                let what = format!("open the root {} (see --root)", self.root.display());
                let failure = Failure::of_io(&what, &error);
                Err(Failure { path: Some(self.root.clone()), ..failure })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
