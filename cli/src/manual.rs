//! What shells and manuals are told of the command line, made from its definition.

use std::path::Path;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::answer::{Failure, print};
use crate::arguments::{Arguments, Common};

/// Runs `atomtree completions`.
pub(crate) fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "atomtree", &mut script);
    print_text(script)
}

/// The command line without its hidden commands, which `clap_complete` would offer.
fn visible() -> Command {
    let all = Arguments::command();
    let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Common::augment_args(Command::new("atomtree").version(env!("CARGO_PKG_VERSION"))).subcommands(visible)
}

/// Runs `atomtree man`: the program's page to standard output, or that of the program and of each command into `dir`.
pub(crate) fn man(dir: Option<&Path>) -> Result<u8, Failure> {
    if let Some(dir) = dir {
        let failed = |error| Failure::of_io(&format!("write the pages into {}", dir.display()), &error);
        clap_mangen::generate_to(Arguments::command(), dir).map_err(failed)?;
        return Ok(0);
    }
    let mut page = Vec::new();
    let written = clap_mangen::Man::new(Arguments::command()).render(&mut page);
    written.expect("a vector takes all that is written to it");
    print_text(page)
}

fn print_text(text: Vec<u8>) -> Result<u8, Failure> {
    let text = String::from_utf8(text).expect("it is made of text");
    print(text.trim_end()).map(|()| 0)
}
