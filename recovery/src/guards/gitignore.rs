//! What a tree's own `.gitignore` files leave out, as patterns of a guard.
//!
//! Each line becomes a pattern anchored to the directory that its file lies in, parents before what lies in them: the last
//! pattern that matches decides, so deeper files win, as with git (gitignore(5)). Files in directories that are left out
//! are not read, as there. Read once, when the guard opens: what becomes of the files later changes nothing.

use std::io;
use std::path::Path;

use atomtree_vfs::{Access, Kind};

use super::patterns::{Cover, PatternTexts, Patterns, compile, is_store_dir};
use crate::apply::is_no_directory;
use crate::error::{Doing, Error, Refusal};
use crate::places::Places;
use crate::tree_path::TreePath;

/// The files' name.
const NAME: &str = ".gitignore";
/// Git's own directories hold files of this name that say nothing of the tree.
const GIT_DIR: &str = ".git";
/// Comments take no room among the patterns, so a file may be longer than those.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the files leave out that lie where `guarded` can reach, from the root on.
///
/// # Errors
/// `InvalidInput`, naming the file, if one is too long or no UTF-8, or if all together are too many patterns: a line that is
/// not read may be one that takes something back, which would not be guarded then.
pub fn read(places: &Places, guarded: &[String]) -> Result<Vec<String>, Error> {
    let mut ignored = Vec::new();
    let mut patterns = with(guarded, &ignored, ".")?;
    let root = places.root.own_metadata().doing("read the metadata of", ".")?;
    let mut dirs: Vec<(Option<TreePath>, Cover)> = vec![(None, Cover::Outside)];
    while let Some((path, cover)) = dirs.pop() {
        let label = path.as_ref().map_or(".".to_owned(), ToString::to_string);
        let opened = places.root.open_dir(path.as_ref().map_or(Path::new(""), TreePath::as_path));
        let dir = match opened {
            // It was there a moment ago.
            Err(error) if is_no_directory(&error) => continue,
            opened => opened.doing("open", &label)?,
        };
        let own = dir.own_metadata().doing("read the metadata of", &label)?;
        if (own.mount, own.device) != (root.mount, root.device) {
            continue;
        }
        let entries = dir.list().doing("list", &label)?;
        // One that is a symlink is not followed, by git neither.
        if entries.iter().any(|entry| entry.name == NAME && matches!(entry.kind, Kind::File | Kind::Other)) {
            let file = path.as_ref().map_or(NAME.to_owned(), |dir| format!("{dir}/{NAME}"));
            let text = match dir.open_file(NAME.as_ref(), Access::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                opened => match opened.and_then(|file| file.read_all(FILE_BYTES_MAX)) {
                    Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                        return Err(unusable(&file, &format!("it has more than {FILE_BYTES_MAX} bytes")));
                    }
                    read => read.doing("read", &file)?,
                },
            };
            let above = path.as_ref().map_or(&b""[..], TreePath::as_bytes);
            let (Ok(above), Ok(text)) = (str::from_utf8(above), str::from_utf8(&text)) else {
                return Err(unusable(&file, "it, or its path, is no UTF-8"));
            };
            let before = ignored.len();
            ignored.extend(patterns_of(above, text));
            if ignored.len() > before {
                patterns = with(guarded, &ignored, &file)?;
            }
        }
        for entry in entries.iter().filter(|entry| matches!(entry.kind, Kind::Dir | Kind::Other)) {
            // What can't be a name in the tree is told by the capture, unless it is left out.
            let below = match &path {
                Some(dir) => dir.join(&entry.name),
                None => TreePath::from_bytes_below(entry.name.as_encoded_bytes()),
            };
            let Ok(below) = below else { continue };
            let cover = patterns.cover(cover, &below, true);
            if cover != Cover::LeftOut && entry.name != GIT_DIR && !is_store_dir(&below) {
                dirs.push((Some(below), cover));
            }
        }
    }
    Ok(ignored)
}

fn with(guarded: &[String], ignored: &[String], file: &str) -> Result<Patterns, Error> {
    let texts = PatternTexts { guarded: guarded.to_vec(), ignored: ignored.to_vec() };
    Patterns::new(texts).map_err(|reason| unusable(file, &reason))
}

fn unusable(file: &str, reason: &str) -> Error {
    let reason = format!(
        "{reason}; guard without --gitignore, which guards ignored files too, and name what to leave out (--ignore)"
    );
    Error::Refused { kind: Refusal::InvalidInput, path: file.to_owned(), reason }
}

/// The lines of one file as patterns from the root on. Those that say nothing, or are no pattern, match nothing with git
/// either.
fn patterns_of(dir: &str, text: &str) -> Vec<String> {
    let dir = if dir.is_empty() { String::new() } else { format!("/{}", escaped(dir)) };
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    let says_something = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
    let anchored = lines.filter(says_something).map(|line| {
        let (not, pattern) = line.strip_prefix('!').map_or(("", line), |pattern| ("!", pattern));
        let pattern = without_alternatives(pattern);
        match pattern.strip_prefix('/') {
            Some(below) => format!("{not}{dir}/{below}"),
            None if pattern.trim_end().trim_end_matches('/').contains('/') => format!("{not}{dir}/{pattern}"),
            None => format!("{not}{dir}/**/{pattern}"),
        }
    });
    anchored.filter(|pattern| compile(std::slice::from_ref(pattern)).is_ok()).collect()
}

/// A path as a pattern that matches only that.
fn escaped(path: &str) -> String {
    let is_special = |char: &char| matches!(char, '*' | '?' | '[' | ']' | '{' | '}' | '\\');
    path.chars().flat_map(|char| is_special(&char).then_some('\\').into_iter().chain([char])).collect()
}

/// Braces mean themselves in a `.gitignore`, and alternatives to the matcher.
fn without_alternatives(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let (mut is_escaped, mut is_in_class) = (false, false);
    for char in pattern.chars() {
        if matches!(char, '{' | '}') && !is_escaped && !is_in_class {
            plain.push('\\');
        }
        plain.push(char);
        match char {
            '[' if !is_escaped => is_in_class = true,
            ']' if !is_escaped => is_in_class = false,
            _ => {}
        }
        is_escaped = char == '\\' && !is_escaped;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each line becomes the pattern that says the same from the root on.
    #[test]
    fn lines_are_anchored_to_the_directory_of_their_file() {
        let text = "\u{feff}# a comment\r\n\r\n*.log\r\n/top\nsub/file\nbuild/\n!kept.log\n!/kept\n\\#x\n[z-a]\n  \nx{1,2}\n[{]\n";
        let expected = [
            "/a[b/**/*.log",
            "/a[b/top",
            "/a[b/sub/file",
            "/a[b/**/build/",
            "!/a[b/**/kept.log",
            "!/a[b/kept",
            "/a[b/**/\\#x",
            "/a[b/**/x\\{1,2\\}",
            "/a[b/**/[{]",
        ];
        let expected: Vec<_> = expected.iter().map(|text| text.replace("a[b", "a\\[b")).collect();
        assert_eq!(patterns_of("a[b", text), expected);
        assert_eq!(patterns_of("", "*.log\n/top\n!x/y"), ["/**/*.log", "/top", "!/x/y"]);
    }

    /// Goal: what git leaves out is left out, and nothing else: a name that is left out is not guarded.
    #[test]
    fn patterns_match_what_git_ignores() {
        let mut ignored = patterns_of("", "*.log\n/target\n!kept.log\nx{1,2}\ndocs/*.html\ncache/\n");
        ignored.extend(patterns_of("sub", "!*.log\n/only\n"));
        let patterns = Patterns::new(PatternTexts { guarded: vec!["/**".into()], ignored }).unwrap();
        for (name, is_dir, is_left_out) in [
            ("a.log", false, true),
            ("deep/a.log", false, true),
            ("deep/kept.log", false, false),
            ("sub/a.log", false, false),
            ("target", true, true),
            ("target/debug/x", false, true),
            ("sub/target", true, false),
            ("x1", false, false),
            ("x{1,2}", false, true),
            ("docs/a.html", false, true),
            ("docs/deep/a.html", false, false),
            ("sub/docs/a.html", false, false),
            ("cache", true, true),
            ("cache", false, false),
            ("sub/only", false, true),
            ("sub/deep/only", false, false),
        ] {
            let cover = patterns.cover_of(&TreePath::new(name).unwrap(), is_dir);
            assert_eq!(cover == Cover::LeftOut, is_left_out, "{name}: {cover:?}");
        }
    }
}
