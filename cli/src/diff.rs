//! What changed under a name: before and after, in a table, and line by line where it is text.

use atomtree::Kind;
use serde::Serialize;

use crate::color::Style;
use crate::path::JsonPath;
use crate::table::{Align, Table, cell};
use crate::text::{printable, size};

/// One name that it changed; nothing before means that it was made, nothing after that it was removed.
#[derive(Serialize)]
pub(crate) struct Change {
    pub(crate) path: JsonPath,
    /// Where it stood before, if it was moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<JsonPath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<State>,
}

#[derive(Serialize)]
pub(crate) struct State {
    kind: &'static str,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

impl State {
    pub(crate) fn new(state: &atomtree::State) -> Self {
        let blake3 = state.digest.map(|digest| digest.to_string());
        Self { blake3, ..Self::of(state.kind, state.attributes.mode, state.size) }
    }

    /// Of what is not known by its digest.
    pub(crate) fn of(kind: Kind, mode: u32, size: u64) -> Self {
        Self {
            kind: match kind {
                Kind::Dir => "directory",
                Kind::Symlink => "symlink",
                Kind::File => "file",
                Kind::Other => "other",
            },
            mode: format!("{mode:04o}"),
            size: (kind != Kind::Dir).then_some(size),
            blake3: None,
        }
    }

    /// Its size, or what it is if it has none.
    fn extent(&self) -> String {
        self.size.map_or_else(|| self.kind.to_owned(), size)
    }
}

/// Longer files are not compared line by line.
pub(crate) const DIFF_BYTES_MAX: u64 = 256 << 10;

/// What changed in a file of text, line by line, or in where a symlink leads; `None` for anything else, and where nothing did.
pub(crate) fn diff_of(change: &Change, (before, after): atomtree::Contents) -> Option<String> {
    let is_text =
        |state: &Option<State>| state.as_ref().is_none_or(|state| matches!(state.kind, "file" | "symlink"));
    let text = |bytes: Option<Vec<u8>>, state: &Option<State>| match (bytes, state) {
        (Some(bytes), _) if !bytes.contains(&0) => String::from_utf8(bytes).ok(),
        (None, None) => Some(String::new()),
        _ => None,
    };
    let is_any = is_text(&change.before) && is_text(&change.after) && change.from.is_none();
    let (before, after) = (text(before, &change.before)?, text(after, &change.after)?);
    let diff = similar::TextDiff::from_lines(&before, &after);
    let name = printable(&change.path.0.to_string_lossy());
    let diff = diff.unified_diff().header(&format!("{name} before"), &format!("{name} after")).to_string();
    let shown = |line: &str| line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
    (is_any && !diff.is_empty()).then(|| diff.lines().map(shown).collect::<Vec<_>>().join("\n"))
}

/// A line for each name: made, changed or removed; its mode and its size, each behind what it was; the name.
pub(crate) fn table_of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Table {
    let [left, right] = [Align::Left, Align::Right];
    let mut table = Table::new([left, left, left, right, right, left]).indented(2);
    for Change { path, from, before, after } in changes {
        let (sign, style) = match (before, after) {
            (None, Some(_)) => ("+", Style::Good),
            (Some(_), None) => ("-", Style::Bad),
            _ => ("~", Style::Notice),
        };
        let was = before.as_ref().filter(|_| after.is_some());
        let is = after.as_ref().or(before.as_ref());
        let mode = |state: Option<&State>| state.map(|state| state.mode.clone()).unwrap_or_default();
        let extent = |state: Option<&State>| state.map(State::extent).unwrap_or_default();
        let arrow = |text: String| if text.is_empty() { text } else { text + " ->" };
        let path = match from {
            Some(from) => format!("{} (was {})", path.0.to_string_lossy(), from.0.to_string_lossy()),
            None => path.0.to_string_lossy().into_owned(),
        };
        table.row([
            cell(sign, style),
            cell(if mode(was) == mode(is) { String::new() } else { arrow(mode(was)) }, Style::Faint),
            mode(is).into(),
            cell(arrow(extent(was)), Style::Faint),
            extent(is).into(),
            cell(path, style),
        ]);
    }
    table
}
