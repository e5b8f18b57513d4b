//! The fields of one operation as they stand in a document, before it is known which of them belong to it.
//!
//! One flat type for all operations, read straight from the text: a tagged union would first hold every line as a tree
//! of values, many times its size. Each operation takes its own fields, and what is left over is refused.

use std::fmt;
use std::path::PathBuf;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::document::{Content, Expected, Op};
use crate::path::{Base64, JsonPath};

/// What an operation can say. The order is that of complaints about fields that do not belong.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fields {
    #[serde(deserialize_with = "given")]
    op: Option<Word>,
    #[serde(deserialize_with = "given")]
    path: Option<JsonPath>,
    #[serde(deserialize_with = "given")]
    from: Option<JsonPath>,
    #[serde(deserialize_with = "given")]
    to: Option<JsonPath>,
    #[serde(deserialize_with = "given")]
    target: Option<JsonPath>,
    #[serde(deserialize_with = "given")]
    text: Option<String>,
    #[serde(deserialize_with = "given")]
    base64: Option<Base64>,
    #[serde(deserialize_with = "given")]
    file: Option<JsonPath>,
    #[serde(deserialize_with = "given")]
    mode: Option<Mode>,
    #[serde(deserialize_with = "given")]
    offset: Option<u64>,
    #[serde(deserialize_with = "given")]
    parents: Option<bool>,
    #[serde(deserialize_with = "given")]
    recursive: Option<bool>,
    #[serde(deserialize_with = "given")]
    blake3: Option<Blake3>,
    #[serde(deserialize_with = "given")]
    absent: Option<bool>,
}

/// A field that is there has a value: `null` is none, and would make a slip look like an omission.
pub(crate) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl TryFrom<Fields> for Op {
    type Error = String;

    fn try_from(mut fields: Fields) -> Result<Self, String> {
        let Word(name) = need(fields.op.take(), "an operation", "op")?;
        let op = match name.as_str() {
            "write" => {
                Op::Write { path: fields.path(&name)?, content: fields.content(&name)?, mode: fields.mode() }
            }
            "append" => {
                Op::Append { path: fields.path(&name)?, content: fields.content(&name)?, mode: fields.mode() }
            }
            "patch" => Op::Patch {
                path: fields.path(&name)?,
                offset: need(fields.offset.take(), &name, "offset")?,
                content: fields.content(&name)?,
            },
            "patch_in_place" => Op::PatchInPlace {
                path: fields.path(&name)?,
                offset: need(fields.offset.take(), &name, "offset")?,
                content: fields.content(&name)?,
            },
            "remove" => Op::Remove { path: fields.path(&name)? },
            "rename" => Op::Rename {
                from: need(fields.from.take(), &name, "from")?.0,
                to: need(fields.to.take(), &name, "to")?.0,
            },
            "mkdir" => Op::Mkdir {
                path: fields.path(&name)?,
                parents: fields.parents.take().unwrap_or(false),
                mode: fields.mode(),
            },
            "rmdir" => {
                Op::Rmdir { path: fields.path(&name)?, recursive: fields.recursive.take().unwrap_or(false) }
            }
            "symlink" => Op::Symlink {
                path: fields.path(&name)?,
                target: need(fields.target.take(), &name, "target")?.0,
            },
            "chmod" => {
                let path = fields.path(&name)?;
                Op::Chmod { path, mode: need(fields.mode(), &name, "mode")? }
            }
            "expect" => Op::Expect { path: fields.path(&name)?, expected: fields.expected()? },
            _ => {
                return Err(format!(
                    "unknown op {name:?}; it is one of write, append, patch, patch_in_place, remove, rename, mkdir, rmdir, symlink, chmod, expect"
                ));
            }
        };
        match fields.left_over() {
            Some(field) => Err(format!("`{field}` does not belong to {name}")),
            None => Ok(op),
        }
    }
}

fn need<T>(field: Option<T>, whose: &str, name: &str) -> Result<T, String> {
    field.ok_or_else(|| format!("{whose} needs `{name}`"))
}

impl Fields {
    fn path(&mut self, op: &str) -> Result<PathBuf, String> {
        need(self.path.take(), op, "path").map(|path| path.0)
    }

    fn mode(&mut self) -> Option<u32> {
        self.mode.take().map(|mode| mode.0)
    }

    fn content(&mut self, op: &str) -> Result<Content, String> {
        match (self.text.take(), self.base64.take(), self.file.take()) {
            (Some(text), None, None) => Ok(Content::Bytes(text.into_bytes())),
            (None, Some(bytes), None) => Ok(Content::Bytes(bytes.0)),
            (None, None, Some(path)) => Ok(Content::OfFile(path.0)),
            (None, None, None) => Err(format!("{op} needs one of `text`, `base64` and `file`")),
            _ => Err(format!("{op} takes only one of `text`, `base64` and `file`")),
        }
    }

    fn expected(&mut self) -> Result<Expected, String> {
        match (self.blake3.take(), self.absent.take()) {
            (Some(digest), None) => Ok(Expected::Blake3(digest.0)),
            (None, Some(true)) => Ok(Expected::Absent),
            (None, Some(false)) => {
                Err("`absent` can only be true; to expect a file give its `blake3`".into())
            }
            (None, None) => Err("expect needs one of `blake3` and `absent`".into()),
            (Some(_), Some(_)) => Err("expect takes only one of `blake3` and `absent`".into()),
        }
    }

    /// A field that no one took.
    fn left_over(&self) -> Option<&'static str> {
        // Taken apart without `..`, so that a new field cannot be forgotten here.
        let Self {
            op,
            path,
            from,
            to,
            target,
            text,
            base64,
            file,
            mode,
            offset,
            parents,
            recursive,
            blake3,
            absent,
        } = self;
        let fields = [
            (op.is_some(), "op"),
            (path.is_some(), "path"),
            (from.is_some(), "from"),
            (to.is_some(), "to"),
            (target.is_some(), "target"),
            (text.is_some(), "text"),
            (base64.is_some(), "base64"),
            (file.is_some(), "file"),
            (mode.is_some(), "mode"),
            (offset.is_some(), "offset"),
            (parents.is_some(), "parents"),
            (recursive.is_some(), "recursive"),
            (blake3.is_some(), "blake3"),
            (absent.is_some(), "absent"),
        ];
        fields.iter().find(|(is_there, _)| *is_there).map(|(_, name)| *name)
    }
}

/// No word of a document is longer; a digest has 64 digits.
const WORD_BYTES_MAX: usize = 100;

/// A short text, which a complaint may quote.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor;
        impl Visitor<'_> for WordVisitor {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                match text.len() {
                    ..=WORD_BYTES_MAX => Ok(Word(text.to_owned())),
                    length => Err(E::custom(format_args!("{length} bytes where a word was expected"))),
                }
            }
        }
        deserializer.deserialize_str(WordVisitor)
    }
}

/// Permission bits, written in octal: a number would be read as decimal by some and as octal by others.
#[derive(Deserialize)]
#[serde(try_from = "Word")]
struct Mode(u32);

impl TryFrom<Word> for Mode {
    type Error = String;

    fn try_from(Word(text): Word) -> Result<Self, String> {
        let is_octal =
            (3..=5).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if is_octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(format!("mode {text:?} is not permission bits in octal, such as \"0644\"")),
        }
    }
}

/// A BLAKE3 digest in hexadecimal.
#[derive(Deserialize)]
#[serde(try_from = "Word")]
struct Blake3([u8; 32]);

impl TryFrom<Word> for Blake3 {
    type Error = String;

    fn try_from(Word(text): Word) -> Result<Self, String> {
        let mut digest = [0; 32];
        let digits = text.as_bytes();
        let is_hexadecimal = digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit);
        if !is_hexadecimal {
            return Err(format!("blake3 {text:?} is not 64 hexadecimal digits"));
        }
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
            *byte = u8::from_str_radix(pair, 16).expect("checked to be hexadecimal digits");
        }
        Ok(Self(digest))
    }
}
