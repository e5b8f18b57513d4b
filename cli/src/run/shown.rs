//! What `--dry-run` shows: each name before and after, and text line by line.

use atomtree::{Guard, Stood, TreePath};

use crate::answer::Failure;
use crate::diff::{Change, DIFF_BYTES_MAX, State, diff_of};
use crate::path::JsonPath;

/// So many names are shown, and so many bytes of differences; the names of all are told besides.
const NAMES_MAX: usize = 1000;
const DIFFS_BYTES_MAX: usize = 4 << 20;

/// The names, each with the difference if it is text.
pub(super) struct Shown {
    pub(super) changes: Vec<(Change, Option<String>)>,
    /// Whether there was too much to show all.
    pub(super) is_cut: bool,
}

impl Shown {
    /// Compares what stands there with the images. Before the roll back.
    pub(super) fn read(guard: &Guard) -> Result<Self, Failure> {
        let changes = guard.changes()?;
        let mut paths: Vec<&TreePath> =
            [&changes.created, &changes.changed, &changes.removed].into_iter().flatten().collect();
        paths.sort();
        let mut shown = Self { changes: Vec::new(), is_cut: paths.len() > NAMES_MAX };
        let mut bytes = 0;
        for path in paths.into_iter().take(NAMES_MAX) {
            let (before, after) = guard.before_and_after(path, DIFF_BYTES_MAX)?;
            let change = Change {
                path: JsonPath::from(path.as_path()),
                from: None,
                before: before.as_ref().map(state),
                after: after.as_ref().map(state),
            };
            let contents = (before.and_then(|stood| stood.content), after.and_then(|stood| stood.content));
            let diff = diff_of(&change, contents);
            bytes += diff.as_ref().map_or(0, String::len);
            let is_shown = bytes <= DIFFS_BYTES_MAX;
            shown.is_cut |= !is_shown;
            shown.changes.push((change, diff.filter(|_| is_shown)));
        }
        Ok(shown)
    }
}

fn state(stood: &Stood) -> State {
    State::of(stood.kind, stood.mode, stood.size)
}
