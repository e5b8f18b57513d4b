//! What the program answers: JSON for machines, a line for people, and the exit status for both.
//!
//! The order of the fields is part of the contract, and serde writes them in the order they are declared in. A field
//! that may be missing is left out, never null.

use std::io::{self, Write};
use std::path::PathBuf;

use atomtree::{Displaced, Error, ErrorKind};
use serde::Serialize;

use crate::arguments::Common;
use crate::path::JsonPath;
use crate::text::printable;

/// Why something was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) path: Option<PathBuf>,
    /// All paths, where there are several.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, path: None, paths: Vec::new(), message: message.into() }
    }

    /// The same, said of a path of the tree.
    pub(crate) fn about(self, path: &std::path::Path) -> Self {
        Self { path: Some(path.to_owned()), ..self }
    }

    /// That something outside the store could not be read or written.
    pub(crate) fn of_io(what: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::IsADirectory => ErrorKind::IsADirectory,
            io::ErrorKind::NotADirectory => ErrorKind::NotADirectory,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("could not {what}: {error}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let paths = match &error {
            Error::MovedOn { paths, .. } => paths.clone(),
            _ => Vec::new(),
        };
        let path = error.path().map(std::path::Path::to_owned);
        Self { kind: error.kind(), path, paths, message: error.to_string() }
    }
}

/// The exit status of an error.
pub(crate) fn exit_status(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Locked => 3,
        ErrorKind::Corrupt | ErrorKind::Poisoned => 4,
        ErrorKind::CommittedNotApplied => 5,
        ErrorKind::OutcomeUnknown => 6,
        _ => 1,
    }
}

/// Which document an answer is for.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Asked {
    /// The one that calls itself so.
    Id(String),
    /// The one on this line, counted from 1: it has no `id`, or could not be read.
    Line(u64),
}

/// A transaction that was carried out.
#[derive(Serialize)]
pub(crate) struct Done {
    #[serde(flatten)]
    pub(crate) asked: Option<Asked>,
    ok: bool,
    pub(crate) tx: u64,
    pub(crate) files: usize,
    pub(crate) ms: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) displaced: Vec<Kept>,
    /// Names that got nothing, because another program took away what was to be moved there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) lost: Vec<JsonPath>,
}

/// Content of another program that had to give way.
#[derive(Serialize)]
pub(crate) struct Kept {
    pub(crate) path: JsonPath,
    pub(crate) kept: String,
}

impl Kept {
    pub(crate) fn all(displaced: &[Displaced]) -> Vec<Self> {
        let kept =
            |one: &Displaced| Self { path: JsonPath::from(one.path.as_path()), kept: one.kept.clone() };
        displaced.iter().map(kept).collect()
    }
}

impl Done {
    pub(crate) fn new(asked: Option<Asked>, receipt: &atomtree::Receipt, took: std::time::Duration) -> Self {
        // Two decimals: ten microseconds are less than any sync takes.
        let ms = (took.as_secs_f64() * 100_000.0).round() / 100.0;
        let displaced = Kept::all(receipt.displaced());
        let lost = receipt.lost().iter().map(|path| JsonPath::from_bytes(path.as_bytes())).collect();
        Self { asked, ok: true, tx: receipt.tx().0, files: receipt.files(), ms, displaced, lost }
    }
}

#[derive(Serialize)]
struct Refusal<'a> {
    #[serde(flatten)]
    asked: Option<&'a Asked>,
    ok: bool,
    error: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<JsonPath>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<JsonPath>,
    message: &'a str,
}

/// A refusal that says which store it is about.
#[derive(Serialize)]
struct RefusalAt<'a> {
    root: JsonPath,
    #[serde(flatten)]
    refusal: Refusal<'a>,
}

/// The line that says why the store at `root` was not served.
pub(crate) fn refusal_at(root: &std::path::Path, failure: &Failure) -> String {
    json(&RefusalAt { root: JsonPath::from(root), refusal: Refusal::new(None, failure) })
}

/// The line that answers a document, and the exit status that goes with it.
pub(crate) fn answer(asked: &Asked, result: &Result<Done, Failure>) -> (String, u8) {
    match result {
        Ok(done) => (json(done), 0),
        Err(failure) => (refusal(Some(asked), failure), exit_status(failure.kind)),
    }
}

fn refusal(asked: Option<&Asked>, failure: &Failure) -> String {
    json(&Refusal::new(asked, failure))
}

impl<'a> Refusal<'a> {
    fn new(asked: Option<&'a Asked>, failure: &'a Failure) -> Self {
        let path = failure.path.as_deref().map(JsonPath::from);
        let paths = failure.paths.iter().map(|path| JsonPath::from(path.as_path())).collect();
        Self { asked, ok: false, error: failure.kind.code(), path, paths, message: &failure.message }
    }
}

/// One line of JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("answers hold only what JSON can say")
}

/// Says why a command failed, and returns its exit status.
pub(crate) fn report(common: &Common, failure: &Failure) -> u8 {
    if common.json {
        print_refusal(&refusal(None, failure), failure);
    } else {
        tell(failure);
    }
    exit_status(failure.kind)
}

/// Prints the line that says why something was not done; if that can't be, people are told. The exit status stays what it is.
pub(crate) fn print_refusal(line: &str, failure: &Failure) {
    if print(line).is_err() {
        tell(failure);
    }
}

/// Tells people why something was not done, and what they can do where the library's words don't name the command.
pub(crate) fn tell(failure: &Failure) {
    complain(&failure.message);
    if let Some(remedy) = remedy(failure.kind) {
        complain(remedy);
    }
}

fn remedy(kind: ErrorKind) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::Corrupt => {
            "`atomtree verify` lists everything that is damaged, and a backup of the store can replace it"
        }
        ErrorKind::NoSpace => {
            "free some space on the file system, or give the log more room with --log-bytes-max if it is too small"
        }
        ErrorKind::CommittedNotApplied => "when that is mended, `atomtree recover` finishes the transaction",
        ErrorKind::OutcomeUnknown | ErrorKind::Poisoned => {
            "`atomtree recover` opens the store again, and `atomtree log` then shows what was committed"
        }
        _ => return None,
    })
}

/// Says something on standard error. That it could not be said can't be said either.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "atomtree: {}", printable(message));
}

/// Prints `text` and a line's end.
///
/// # Errors
/// Whoever reads it may have left: that is no failure of what was done, and not worth a word.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::of_io("write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// As [`print`], of what is done and can't be taken back: whoever goes by the exit status must not do it again.
///
/// # Errors
/// `outcome_unknown`: so it is, to who could not be told.
pub(crate) fn print_done(text: &str) -> Result<(), Failure> {
    print(text).map_err(|failure| untold(&failure.message))
}

/// That what is done could not be told, and why.
pub(crate) fn untold(reason: &str) -> Failure {
    let message = format!("it is done and durable, and that could not be told: {reason}");
    Failure::new(ErrorKind::OutcomeUnknown, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_the_exit_status_of_the_contract() {
        for (kind, status) in [
            (ErrorKind::Locked, 3),
            (ErrorKind::Corrupt, 4),
            (ErrorKind::Poisoned, 4),
            (ErrorKind::CommittedNotApplied, 5),
            (ErrorKind::OutcomeUnknown, 6),
            (ErrorKind::Conflict, 1),
            (ErrorKind::NoSpace, 1),
            (ErrorKind::Io, 1),
        ] {
            assert_eq!(exit_status(kind), status, "{}", kind.code());
        }
    }

    #[test]
    fn answers_are_spelled_as_in_the_contract() {
        let id = Asked::Id("t1".into());
        let mut done = Done {
            asked: Some(id.clone()),
            ok: true,
            tx: 12,
            files: 3,
            ms: 0.41,
            displaced: Vec::new(),
            lost: Vec::new(),
        };
        assert_eq!(json(&done), r#"{"id":"t1","ok":true,"tx":12,"files":3,"ms":0.41}"#);
        done.displaced.push(Kept { path: JsonPath::from_bytes(b"\xff"), kept: "quarantine/1".into() });
        assert_eq!(
            json(&done),
            r#"{"id":"t1","ok":true,"tx":12,"files":3,"ms":0.41,"displaced":[{"path":{"base64":"/w=="},"kept":"quarantine/1"}]}"#
        );
        let failure = Failure::new(ErrorKind::Conflict, "why").about("schema.sql".as_ref());
        assert_eq!(
            answer(&id, &Err(failure)).0,
            r#"{"id":"t1","ok":false,"error":"conflict","path":"schema.sql","message":"why"}"#
        );
        let failure = Failure::new(ErrorKind::InvalidInput, "why");
        let (line, status) = answer(&Asked::Line(2), &Err(failure));
        assert_eq!(
            (line.as_str(), status),
            (r#"{"line":2,"ok":false,"error":"invalid_input","message":"why"}"#, 1)
        );
        assert_eq!(
            refusal(None, &Failure::new(ErrorKind::Locked, "why")),
            r#"{"ok":false,"error":"locked","message":"why"}"#
        );
    }
}
