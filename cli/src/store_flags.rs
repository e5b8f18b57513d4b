//! The flags of every command that opens a store for writing: one for each option of the library.
//!
//! A new option with a number is one line in [`NUMBERS`]; the rest of this file does not know how many there are.

use std::time::Duration;

use atomtree::{Options, Store};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::answer::{Failure, complain};
use crate::arguments::Common;
use crate::duration;
use crate::upkeep::Recovered;

/// An option that is a number; its name ends in its unit.
struct Number {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    set: fn(Options, u64) -> Options,
}

/// Set in this order: a later one may take back what an earlier one implied.
#[rustfmt::skip]
const NUMBERS: &[Number] = &[
    Number { name: "segment-bytes", unit: "BYTES", help: "Length of a log segment, fixed when the store is created: 65536 to 1073741824, a multiple of 4096 [default: 16777216]", set: segment_bytes },
    Number { name: "log-bytes-max", unit: "BYTES", help: "What all segments together may take, at least three [default: 268435456]", set: Options::log_bytes_max },
    Number { name: "inline-bytes-max", unit: "BYTES", help: "Contents up to this long travel in the log, so that their files need no sync of their own [default: 1048576]", set: Options::inline_bytes_max },
    Number { name: "image-bytes-max", unit: "BYTES", help: "Originals up to this long are kept whole in the log until the checkpoint [default: 4096]", set: Options::image_bytes_max },
    Number { name: "ballast-bytes", unit: "BYTES", help: "Space kept back for putting durable transactions in place on a full disk [default: 1048576]", set: Options::ballast_bytes },
    Number { name: "settle-after-ms", unit: "MS", help: "How long after the first unsettled commit a checkpoint starts in the background [default: 1000]", set: |options, ms| options.settle_after(Duration::from_millis(ms)) },
    Number { name: "history-bytes-max", unit: "BYTES", help: "What the history may take, originals included, by which transactions can be undone [default: 1073741824]", set: Options::history_bytes_max },
    Number { name: "history-age-max-days", unit: "DAYS", help: "How old a transaction gets before the history forgets it [default: 30]", set: |options, days| options.history_age_max(Some(Duration::from_secs(days.saturating_mul(86_400)))) },
    Number { name: "history-transactions-max", unit: "N", help: "How many settled transactions the history keeps, but for some that were settled together [default: any number]", set: Options::history_transactions_max },
    Number { name: "quarantine-bytes-max", unit: "BYTES", help: "What the quarantine may take before commits are refused until `prune --quarantine` empties it [default: 1073741824]", set: |options, bytes| options.quarantine_bytes_max(Some(bytes)) },
    Number { name: "guard-cache-bytes-max", unit: "BYTES", help: "What the images may take that guards leave for the next one, which then copies only what has changed [default: 1073741824]", set: Options::guard_cache_bytes_max },
];

/// The log's bound counts at least three segments, and the default one would refuse large segments.
fn segment_bytes(options: Options, bytes: u64) -> Options {
    options.segment_bytes(bytes).log_bytes_max(bytes.saturating_mul(3).max(256 << 20))
}

const ADOPT: &str = "adopt";
const ADOPT_HELP: &str = "Accept a store with unsettled transactions although it was copied or restored; only for the tree that they belong to";
const ALLOW_REMOTE: &str = "allow-remote";
const ALLOW_REMOTE_HELP: &str =
    "Open a store on a network or user-space file system, where none of the promises is known to hold";

const EXCLUSIVE: &str = "exclusive";
const EXCLUSIVE_HELP: &str = "Let no other process have the store open meanwhile";
const WAIT: &str = "wait";
const WAIT_HELP: &str =
    "How long to wait for other processes, each time: 500ms, 30s, 2m; 0 doesn't wait [default: 30s]";

/// How a store is opened for writing.
pub(crate) struct StoreFlags {
    /// What was given for each of [`NUMBERS`].
    numbers: Vec<Option<u64>>,
    adopt: bool,
    allow_remote: bool,
    exclusive: bool,
    wait: Option<Duration>,
}

impl StoreFlags {
    /// Opens the store, and tells people what a recovery that came with it has moved, left or lost: only `recover` is asked.
    pub(crate) fn open(&self, common: &Common) -> Result<Store, Failure> {
        let store = self.set_on(common.options()).open(&common.root)?;
        Recovered::notable(store.recovery()).iter().for_each(|line| complain(line));
        Ok(store)
    }

    pub(crate) fn set_on(&self, options: Options) -> Options {
        let options =
            NUMBERS.iter().zip(&self.numbers).fold(options, |options, (number, given)| match given {
                Some(value) => (number.set)(options, *value),
                None => options,
            });
        let options = options.adopt(self.adopt).allow_remote(self.allow_remote).exclusive(self.exclusive);
        match self.wait {
            Some(wait) => options.lock_timeout(wait),
            None => options,
        }
    }
}

impl FromArgMatches for StoreFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            numbers: NUMBERS.iter().map(|number| matches.get_one(number.name).copied()).collect(),
            adopt: matches.get_flag(ADOPT),
            allow_remote: matches.get_flag(ALLOW_REMOTE),
            exclusive: matches.get_flag(EXCLUSIVE),
            wait: matches.get_one(WAIT).copied(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        Self::from_arg_matches(matches).map(|flags| *self = flags)
    }
}

impl Args for StoreFlags {
    fn augment_args(command: Command) -> Command {
        let heading = "Store options";
        let numbers = NUMBERS.iter().map(|number| {
            Arg::new(number.name)
                .long(number.name)
                .value_name(number.unit)
                .value_parser(value_parser!(u64))
                .help(number.help)
                .help_heading(heading)
        });
        let switches = [(ADOPT, ADOPT_HELP), (ALLOW_REMOTE, ALLOW_REMOTE_HELP), (EXCLUSIVE, EXCLUSIVE_HELP)];
        let switches = switches.map(|(name, help)| {
            Arg::new(name).long(name).action(ArgAction::SetTrue).help(help).help_heading(heading)
        });
        let wait = Arg::new(WAIT).long(WAIT).value_name("D").value_parser(duration::parse).help(WAIT_HELP);
        command.args(numbers).args(switches).arg(wait.help_heading(heading))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(arguments: &[&str]) -> Result<(), String> {
        let command = StoreFlags::augment_args(Command::new("test"));
        let matches = command.try_get_matches_from([&["test"], arguments].concat()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let options = StoreFlags::from_arg_matches(&matches).unwrap().set_on(Options::new());
        let store = options.open(scratch.path()).map_err(|error| error.to_string())?;
        store.close().map_err(|error| error.to_string())
    }

    /// Goal: each flag reaches its option. Method: values that the library refuses, or that meet another's bound.
    #[test]
    fn flags_reach_the_options() {
        assert_eq!(opened(&["--segment-bytes", "65536", "--inline-bytes-max", "0"]), Ok(()));
        assert!(opened(&["--segment-bytes", "5"]).unwrap_err().contains("segment_bytes is 5"));
        let bounded = opened(&["--log-bytes-max", "65536", "--segment-bytes", "65536"]);
        assert!(bounded.unwrap_err().contains("log_bytes_max is 65536"), "the explicit bound wins");
        let others = [
            "--exclusive",
            "--wait=2s",
            "--settle-after-ms=1",
            "--history-transactions-max=1",
            "--adopt",
            "--allow-remote",
        ];
        assert_eq!(opened(&[&others[..], &["--segment-bytes", "65536"]].concat()), Ok(()));
    }

    #[test]
    fn each_number_says_its_default_and_its_unit() {
        for Number { name, unit, help, .. } in NUMBERS {
            assert!(help.contains("[default: "), "{name}");
            let is_named = match *unit {
                "BYTES" => name.contains("bytes"),
                "MS" => name.ends_with("-ms"),
                _ => true,
            };
            assert!(is_named, "{name} in {unit}");
        }
    }
}
