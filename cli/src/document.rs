//! A transaction document: what it may say, and how it is read from hostile text.
//!
//! The shape is fixed by the contract. Everything that is not in it is an error, double and null fields included, so
//! that a slip never turns into another transaction than the one that was meant.

use std::fmt;
use std::fmt::Write;
use std::path::PathBuf;

use atomtree::ErrorKind;
use serde::Deserialize;

use crate::answer::Failure;
use crate::arguments::{Durability, HardLinks, Symlinks};
use crate::fields::{Fields, given};

/// One transaction.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    #[serde(default, deserialize_with = "given")]
    pub(crate) id: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) label: Option<String>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) agent: Option<String>,
    pub(crate) ops: Vec<Op>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) symlinks: Option<Symlinks>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) hard_links: Option<HardLinks>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) durability: Option<Durability>,
}

/// One operation; they act in order, each on the result of those before it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub(crate) enum Op {
    Write { path: PathBuf, content: Content, mode: Option<u32> },
    Append { path: PathBuf, content: Content, mode: Option<u32> },
    Patch { path: PathBuf, offset: u64, content: Content },
    PatchInPlace { path: PathBuf, offset: u64, content: Content },
    Remove { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Mkdir { path: PathBuf, parents: bool, mode: Option<u32> },
    Rmdir { path: PathBuf, recursive: bool },
    Symlink { path: PathBuf, target: PathBuf },
    Chmod { path: PathBuf, mode: u32 },
    Expect { path: PathBuf, expected: Expected },
}

/// New content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Bytes(Vec<u8>),
    /// That of a file outside the store, relative to the current directory.
    OfFile(PathBuf),
}

/// What a name must hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Blake3([u8; 32]),
    Absent,
}

impl Document {
    /// Reads one document, with nothing behind it.
    ///
    /// # Errors
    /// `invalid_input`, saying where.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(text).map_err(|error| {
            let message = format!("not a transaction document: {}", placed(&error));
            Failure::new(ErrorKind::InvalidInput, message)
        })
    }
}

/// What is wrong and where: the parser counts lines from the start of the document, which in a batch is always
/// the first, and would read there like the number of the line.
fn placed(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    // A complaint may quote as much as the document holds.
    let mut message = Beginning(String::new());
    let is_whole = write!(message, "{error}").is_ok();
    let Beginning(message) = message;
    let reason = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
    let reason = if is_whole { reason.to_owned() } else { format!("{reason}...") };
    match line {
        0 => reason,
        1 => format!("{reason}, at column {column}"),
        _ => format!("{reason}, at line {line}, column {column}"),
    }
}

/// The beginning of a text; writing more is an error.
struct Beginning(String);

impl Beginning {
    const BYTES_MAX: usize = 1000;
}

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(Self::BYTES_MAX.saturating_sub(self.0.len()));
        self.0.push_str(&text[..end]);
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(json: &str) -> Result<Vec<Op>, String> {
        let document = Document::parse(format!(r#"{{"ops":[{json}]}}"#).as_bytes());
        document.map(|document| document.ops).map_err(|failure| failure.message)
    }

    #[test]
    fn every_operation_of_the_contract_is_read() {
        let bytes = |text: &str| Content::Bytes(text.into());
        let path = PathBuf::from;
        for (json, op) in [
            (
                r#"{"op":"write","path":"a","text":"b","mode":"0644"}"#,
                Op::Write { path: path("a"), content: bytes("b"), mode: Some(0o644) },
            ),
            (
                r#"{"path":"a","base64":"YmM=","op":"write"}"#,
                Op::Write { path: path("a"), content: bytes("bc"), mode: None },
            ),
            (
                r#"{"op":"write","path":"a","file":"/b"}"#,
                Op::Write { path: path("a"), content: Content::OfFile(path("/b")), mode: None },
            ),
            (
                r#"{"op":"append","path":"a","text":"b","mode":"4755"}"#,
                Op::Append { path: path("a"), content: bytes("b"), mode: Some(0o4755) },
            ),
            (
                r#"{"op":"patch","path":"a","offset":18446744073709551615,"text":""}"#,
                Op::Patch { path: path("a"), offset: u64::MAX, content: bytes("") },
            ),
            (
                r#"{"op":"patch_in_place","path":"a","offset":512,"base64":"Yg=="}"#,
                Op::PatchInPlace { path: path("a"), offset: 512, content: bytes("b") },
            ),
            (r#"{"op":"remove","path":"a"}"#, Op::Remove { path: path("a") }),
            (r#"{"op":"rename","from":"a","to":"b"}"#, Op::Rename { from: path("a"), to: path("b") }),
            (
                r#"{"op":"mkdir","path":"a","parents":true,"mode":"755"}"#,
                Op::Mkdir { path: path("a"), parents: true, mode: Some(0o755) },
            ),
            (r#"{"op":"rmdir","path":"a"}"#, Op::Rmdir { path: path("a"), recursive: false }),
            (
                r#"{"op":"symlink","path":"a","target":"../b"}"#,
                Op::Symlink { path: path("a"), target: path("../b") },
            ),
            (r#"{"op":"chmod","path":"a","mode":"0755"}"#, Op::Chmod { path: path("a"), mode: 0o755 }),
            (
                r#"{"op":"expect","path":"a","absent":true}"#,
                Op::Expect { path: path("a"), expected: Expected::Absent },
            ),
        ] {
            assert_eq!(ops(json).unwrap(), [op], "{json}");
        }
        let digest = format!(r#"{{"op":"expect","path":"a","blake3":"{}"}}"#, "0f".repeat(32));
        let expected = Expected::Blake3([0x0f; 32]);
        assert_eq!(ops(&digest).unwrap(), [Op::Expect { path: path("a"), expected }]);
    }

    #[test]
    fn every_slip_is_named() {
        for (json, complaint) in [
            (r#"{"path":"a"}"#, "needs `op`"),
            (r#"{"op":"touch","path":"a"}"#, "unknown op \"touch\""),
            (r#"{"op":"write","text":"a"}"#, "write needs `path`"),
            (r#"{"op":"write","path":"a"}"#, "write needs one of"),
            (r#"{"op":"write","path":"a","text":"b","base64":"Yg=="}"#, "only one of"),
            (r#"{"op":"write","path":"a","text":"b","file":"c"}"#, "only one of"),
            (r#"{"op":"write","path":"a","text":null}"#, "null"),
            (r#"{"op":"write","path":"a","text":"b","offset":1}"#, "`offset` does not belong to write"),
            (r#"{"op":"write","path":"a","text":"b","text":"c"}"#, "duplicate field `text`"),
            (r#"{"op":"write","path":"a","text":"b","txt":"c"}"#, "unknown field `txt`"),
            (r#"{"op":"write","path":"a","base64":"Yg"}"#, "base64"),
            (r#"{"op":"write","path":"a","text":"b","mode":420}"#, "invalid type"),
            (r#"{"op":"write","path":"a","text":"b","mode":"0o644"}"#, "octal"),
            (r#"{"op":"write","path":"a","text":"b","mode":"+644"}"#, "octal"),
            (r#"{"op":"write","path":"a","text":"b","mode":"17777"}"#, "octal"),
            (r#"{"op":"patch","path":"a","text":"b"}"#, "patch needs `offset`"),
            (r#"{"op":"patch_in_place","path":"a","text":"b"}"#, "patch_in_place needs `offset`"),
            (r#"{"op":"patch","path":"a","offset":-1,"text":"b"}"#, "invalid value"),
            (r#"{"op":"patch","path":"a","offset":1e400,"text":"b"}"#, "number out of range"),
            (r#"{"op":"patch","path":"a","offset":18446744073709551616,"text":"b"}"#, "invalid type"),
            (r#"{"op":"patch","path":"a","offset":1,"text":"b","mode":"0644"}"#, "`mode` does not belong"),
            (r#"{"op":"rename","from":"a","to":"b","path":"c"}"#, "`path` does not belong to rename"),
            (r#"{"op":"chmod","path":"a"}"#, "chmod needs `mode`"),
            (r#"{"op":"expect","path":"a"}"#, "expect needs one of"),
            (r#"{"op":"expect","path":"a","absent":false}"#, "only be true"),
            (r#"{"op":"expect","path":"a","blake3":"00"}"#, "64 hexadecimal digits"),
            (&format!(r#"{{"op":"{}"}}"#, "x".repeat(101)), "101 bytes where a word was expected"),
            (&format!(r#"{{"{}":1}}"#, "x".repeat(5000)), "xxx..., at column"),
        ] {
            let message = ops(json).expect_err(json);
            assert!(message.contains(complaint), "{json}: {message}");
        }
        for json in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"ops":{}}"#,
            r#"{"ops":[]} {}"#,
            r#"{"ops":[],"ops":[]}"#,
            r#"{"ops":[],"id":1}"#,
            r#"{"ops":[],"id":null}"#,
            r#"{"ops":[],"durability":"fast"}"#,
            r#"{"ops":[],"unknown":1}"#,
        ] {
            let Err(failure) = Document::parse(json.as_bytes()) else { panic!("{json}") };
            assert_eq!(failure.kind, ErrorKind::InvalidInput, "{json}");
        }
    }
}
