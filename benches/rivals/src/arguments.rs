//! The command line.

use std::path::PathBuf;

use atomtree_tests::volume::Kind;
use clap::Parser;

use crate::children;

/// Measures atomtree beside its rivals, each at its own best durable setting.
#[derive(Debug, Parser)]
#[command(name = "atomtree-rivals", version)]
pub struct Arguments {
    /// Measure on the file system of this directory; default: one in a loop device, which takes root
    #[arg(long, value_name = "DIR", conflicts_with = "fs")]
    pub volume: Option<PathBuf>,

    /// Kind of the file system that is made: ext4, xfs or btrfs
    #[arg(long, value_name = "KIND", default_value = "ext4", value_parser = kind)]
    pub fs: Kind,

    /// Run only this workload; may be given several times
    #[arg(long, value_name = "NAME")]
    pub workload: Vec<String>,

    /// Only this rival, beside BARE, LIMIT and atomtree; may be given several times
    #[arg(long, value_name = "RIVAL")]
    pub only: Vec<String>,

    /// At most so many rounds for each case of small commits; the slow ones take part in fewer
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,

    /// Be done in two minutes: fewer cases and rounds, and figures that are no more than an impression
    #[arg(long)]
    pub quick: bool,

    /// Write what was found to this file as well, after each case
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Files in a commit, for the workloads `files` and `committers`
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = count)]
    pub files: Vec<usize>,

    /// Bytes of a file, for the same
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = count)]
    pub bytes: Vec<usize>,

    /// Threads that commit, for the workload `committers`
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = count)]
    pub committers: Vec<usize>,

    /// Say which workloads and rivals there are
    #[arg(long)]
    pub list: bool,

    /// What a child of this program is.
    #[command(subcommand)]
    pub role: Option<children::Role>,
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| "ext4, xfs and btrfs can be made".into())
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 would be nothing to measure".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}
