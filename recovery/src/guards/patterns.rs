//! Which names a guard covers: patterns as in a `.gitignore`, for what is guarded and for what is left out.
//!
//! No I/O. A pattern that covers a directory covers everything below it; what is left out is left out with everything
//! below it, whatever covers that.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use serde::{Deserialize, Serialize};

use crate::tree_path::{STORE_DIR, STORE_DIR_NEW, TreePath};

/// The pattern that covers everything.
pub const EVERYTHING: &str = "/**";

/// Patterns are matched with every name, so there is a bound to them, all together.
const PATTERN_BYTES_MAX: usize = 64 << 10;

/// The patterns as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatternTexts {
    /// What is guarded.
    pub guarded: Vec<String>,
    /// What is left out.
    pub ignored: Vec<String>,
}

/// Patterns, ready to be matched.
#[derive(Clone, Debug)]
pub struct Patterns {
    texts: PatternTexts,
    guarded: Gitignore,
    ignored: Gitignore,
    /// For each pattern that covers something, the path without wildcards at or below which all that lies; empty if it
    /// can lie anywhere.
    tops: Vec<Vec<u8>>,
}

/// What a guard says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// It is guarded.
    Guarded,
    /// It is not, but what lies below it may be.
    Outside,
    /// Neither it is nor anything below it.
    LeftOut,
}

impl Patterns {
    /// Reads the patterns.
    ///
    /// # Errors
    /// Which one is no pattern, and why.
    pub fn new(texts: PatternTexts) -> Result<Self, String> {
        let bytes: usize = texts.guarded.iter().chain(&texts.ignored).map(String::len).sum();
        if bytes > PATTERN_BYTES_MAX {
            return Err(format!("the patterns are {bytes} bytes long, and may be {PATTERN_BYTES_MAX}"));
        }
        let (guarded, ignored) = (compile(&texts.guarded)?, compile(&texts.ignored)?);
        let covering = texts.guarded.iter().filter(|text| !text.starts_with('!'));
        let tops: Vec<Vec<u8>> = covering.map(|text| top_of(text)).collect();
        if tops.is_empty() {
            return Err("there is no pattern that covers anything".into());
        }
        Ok(Self { texts, guarded, ignored, tops })
    }

    /// The patterns as they were given.
    pub fn texts(&self) -> &PatternTexts {
        &self.texts
    }

    /// What is said of a name whose directory is covered like that. The root counts as `Cover::Outside`.
    pub fn cover(&self, above: Cover, path: &TreePath, is_dir: bool) -> Cover {
        self.cover_path(above, path.as_path(), is_dir)
    }

    fn cover_path(&self, above: Cover, path: &Path, is_dir: bool) -> Cover {
        if above == Cover::LeftOut || self.ignored.matched(path, is_dir).is_ignore() {
            return Cover::LeftOut;
        }
        match self.guarded.matched(path, is_dir) {
            Match::Ignore(_) => Cover::Guarded,
            Match::Whitelist(_) => Cover::Outside,
            Match::None if above == Cover::Guarded => Cover::Guarded,
            Match::None if !is_dir || self.reaches(path.as_os_str().as_bytes()) => Cover::Outside,
            Match::None => Cover::LeftOut,
        }
    }

    /// What is said of a name, from the root on.
    pub fn cover_of(&self, path: &TreePath, is_dir: bool) -> Cover {
        let bytes = path.as_bytes();
        let mut cover = Cover::Outside;
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            cover = self.cover_path(cover, Path::new(OsStr::from_bytes(&bytes[..at])), true);
        }
        self.cover(cover, path, is_dir)
    }

    /// Whether the name is guarded; of a directory, whether anything at or below it may be.
    pub fn concerns(&self, path: &TreePath, is_dir: bool) -> bool {
        match self.cover_of(path, is_dir) {
            Cover::Guarded => true,
            Cover::Outside => is_dir,
            Cover::LeftOut => false,
        }
    }

    /// Whether something at or below the directory can match.
    fn reaches(&self, dir: &[u8]) -> bool {
        self.tops.iter().any(|top| is_at_or_below(top, dir) || is_at_or_below(dir, top))
    }

    /// Whether a name may be guarded by both. Says yes where that can't be told from the patterns.
    pub fn may_overlap(&self, other: &Self) -> bool {
        self.tops.iter().any(|top| other.reaches(top))
    }
}

/// Whether the name is the store's own directory, or one that is being made.
pub fn is_store_dir(path: &TreePath) -> bool {
    [STORE_DIR, STORE_DIR_NEW].iter().any(|dir| path.as_bytes().eq_ignore_ascii_case(dir.as_bytes()))
}

fn is_at_or_below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

pub(super) fn compile(texts: &[String]) -> Result<Gitignore, String> {
    let mut builder = GitignoreBuilder::new("");
    for text in texts {
        let is_plain = !text.trim().is_empty() && !text.starts_with('#') && !text.contains(['\0', '\n']);
        if !is_plain {
            return Err(format!("{text:?} is no pattern; it is written as in a .gitignore"));
        }
        builder.add_line(None, text).map_err(|error| format!("{text:?} is no pattern: {error}"))?;
    }
    builder.build().map_err(|error| format!("the patterns can't be used together: {error}"))
}

/// The path without wildcards at or below which everything lies that the pattern covers.
fn top_of(text: &str) -> Vec<u8> {
    let text = text.trim_end();
    // A pattern without a slash, but for one at the end, covers names in every directory.
    if !text.trim_end_matches('/').contains('/') {
        return Vec::new();
    }
    let components = text.split('/').filter(|component| !component.is_empty());
    let plain = components.take_while(|component| !component.contains(['*', '?', '[', '\\', '{']));
    plain.collect::<Vec<_>>().join("/").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(guarded: &[&str], ignored: &[&str]) -> Patterns {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Patterns::new(PatternTexts { guarded: owned(guarded), ignored: owned(ignored) }).unwrap()
    }

    fn path(path: &str) -> TreePath {
        TreePath::new(path).unwrap()
    }

    #[test]
    fn a_directory_is_covered_with_all_that_lies_below() {
        let found = patterns(&["/src", "config/**", "*.lock"], &["*.tmp", "/src/cache/"]);
        for (name, expected) in [
            ("src", Cover::Guarded),
            ("src/a/b", Cover::Guarded),
            ("src/a/b.tmp", Cover::LeftOut),
            ("config/a", Cover::Guarded),
            ("config/a/b/c", Cover::Guarded),
            ("deep/down/a.lock", Cover::Guarded),
            ("other", Cover::Outside),
            ("lib/src", Cover::Outside),
        ] {
            assert_eq!(found.cover_of(&path(name), false), expected, "{name}");
        }
        assert_eq!(found.cover_of(&path("config"), true), Cover::Outside);
        assert_eq!(found.cover_of(&path("src/cache"), true), Cover::LeftOut);
        assert_eq!(found.cover_of(&path("src/cache/x"), false), Cover::LeftOut);
    }

    #[test]
    fn nothing_is_looked_for_where_nothing_can_match() {
        let found = patterns(&["config/**", "a/b/*.rs", "/top.txt"], &[]);
        for (name, expected) in [
            ("config", Cover::Outside),
            ("a", Cover::Outside),
            ("a/b", Cover::Outside),
            ("a/c", Cover::LeftOut),
            ("src", Cover::LeftOut),
        ] {
            assert_eq!(found.cover_of(&path(name), true), expected, "{name}");
        }
        assert!(found.concerns(&path("a"), true), "something below may be guarded");
        assert!(!found.concerns(&path("a"), false));
        assert!(!found.concerns(&path("a/c"), true));
    }

    #[test]
    fn everything_is_everything() {
        let found = patterns(&[EVERYTHING], &[]);
        for name in ["a", "a/b", ".git", ".git/config", "a b", "#x", "!x"] {
            assert_eq!(found.cover_of(&path(name), false), Cover::Guarded, "{name}");
        }
        assert!(is_store_dir(&TreePath::from_bytes_below(b".atomtree").unwrap()));
    }

    #[test]
    fn overlaps_are_told_from_the_patterns_and_in_doubt_assumed() {
        let one = |text: &str| patterns(&[text], &[]);
        for (left, right, expected) in [
            ("config/**", "src/**", false),
            ("config/**", "config/a", true),
            ("config/a", "config/ab", false),
            ("*.rs", "src/**", true),
            ("/src", "/src/deep/**", true),
            (EVERYTHING, "x/y", true),
        ] {
            assert_eq!(one(left).may_overlap(&one(right)), expected, "{left} {right}");
            assert_eq!(one(right).may_overlap(&one(left)), expected, "{right} {left}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "  ", "# a", "a\nb", "[z-a]"] {
            let texts = PatternTexts { guarded: vec![bad.into()], ignored: Vec::new() };
            assert!(Patterns::new(texts).is_err(), "{bad:?}");
        }
        assert!(Patterns::new(PatternTexts::default()).is_err());
        let long = PatternTexts { guarded: vec!["a".repeat(PATTERN_BYTES_MAX + 1)], ..Default::default() };
        assert!(Patterns::new(long).is_err());
        let nothing = PatternTexts { guarded: vec!["!a".into()], ..Default::default() };
        assert!(Patterns::new(nothing).is_err());
    }
}
