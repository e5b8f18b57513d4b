//! When output is colored, and with what.
//!
//! Only people get color: never JSON, never a pipe or a file unless `--color always` asks for it.

use std::io::{self, IsTerminal};

use clap::ColorChoice;

/// What a piece of text is, for whoever looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    #[default]
    Plain,
    /// A heading, or what is asked for.
    Strong,
    /// What is there for completeness.
    Faint,
    Good,
    Notice,
    Bad,
}

impl Style {
    /// `text` in this style.
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Strong => 1,
            Self::Faint => 2,
            Self::Bad => 31,
            Self::Good => 32,
            Self::Notice => 33,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Whether standard output is colored.
pub(crate) fn is_wanted(choice: ColorChoice) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            is_capable(&io::stdout()) && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        }
    }
}

/// Whether it is a terminal that understands more than text.
pub(crate) fn is_capable(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
