//! The `atomtree` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    atomtree_cli::run()
}
