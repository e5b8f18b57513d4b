//! The places in the sources that call storage: found in the text, and seen on the stack of a call.
//!
//! A place is found in the text by a method's name and its number of arguments, both as the traits declare them. What
//! has the same name and number and is no storage stands in a list; anything else from which no call is ever seen to
//! come is a place that no workload reaches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use atomtree::vfs::faults::Verb;

/// The sources that call storage, without `vfs` itself.
const SOURCES: [&str; 3] = ["engine/src", "recovery/src", "wal/src"];

/// Methods on top of the traits, with those that they call.
const HELPERS: [(&str, usize, &[Verb]); 2] =
    [("read_exact_at", 2, &[Verb::ReadAt]), ("read_all", 1, &[Verb::FileMetadata, Verb::ReadAt])];

/// What looks like a call of storage and is none: methods of the log, of a segment, of a transaction and of its view, and of
/// what can be waited for, which calls a file's in one place.
const NO_STORAGE: [&str; 9] = [
    "log.sync()",
    "self.sync()?",
    "self.view.remove_dir(",
    "transaction.read(",
    "self.read(spot.path",
    "segment.map()",
    "self.0.file.unlock()",
    "queue.unlock()",
    "self.file.unlock()",
];

/// A line of the sources and what it calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The file, as a path from the repository.
    pub file: String,
    /// The line, from 1 on.
    pub line: u32,
    /// What is called.
    pub verb: Verb,
}

/// A call at the end of a function can leave no trace of its own on the stack: whoever called the function seems to make
/// it. Each with the verb, the line that seems to make it, and the one that does.
const TAIL_CALLS: [(Verb, &str, &str); 5] = [
    (Verb::RemoveFile, "keep_original(places, applier,", "dir.remove_file(slot_name)"),
    (Verb::SyncDir, "self.sync_staged(", ".and_then(|()| self.places.stage.sync())"),
    (Verb::SyncFilesystem, "self.sync_staged(", "self.places.stage.sync_filesystem()"),
    (Verb::Unlock, "self.stage().remove(", "self.lock.unlock()"),
    (Verb::SetMode, "attributes.set_on_fresh_file(", "file.set_mode(self.mode)?;"),
];

/// What is left out, each with the reason above it.
static EXCEPTIONS: LazyLock<Vec<[String; 4]>> = LazyLock::new(|| {
    let text = include_str!("exceptions.txt");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let fields = |line: &str| {
        let fields: Vec<_> = line.splitn(4, ' ').map(str::to_owned).collect();
        <[String; 4]>::try_from(fields).expect("what, a file, a verb, and a part of the line")
    };
    lines.map(fields).collect()
});

/// Whether a place is left out of something: of being `unreached`, or of having every failure `shown`.
pub fn is_excepted(what: &str, file: &str, line: u32, verbs: &[Verb]) -> bool {
    let is_about = |[of, at, verb, _]: &&[String; 4]| {
        of == what && at == file && verbs.iter().any(|one| format!("{one:?}") == *verb)
    };
    let mut listed = EXCEPTIONS.iter().filter(is_about).peekable();
    if listed.peek().is_none() {
        return false;
    }
    let text = fs::read_to_string(repository().join(file)).expect("a source can be read");
    let text = text.lines().nth(line as usize - 1).expect("the line is there");
    listed.any(|[_, _, _, part]| text.contains(part.as_str()))
}

/// The place that a call was made from, given the one on the stack and all that there are.
pub fn true_place(seen: Site, mentions: &[Mention]) -> Site {
    let text = |site: &Site| {
        let text = fs::read_to_string(repository().join(&site.file)).expect("a source can be read");
        text.lines().nth(site.line as usize - 1).expect("the line is there").to_owned()
    };
    if mentions.iter().any(|mention| mention.is(&seen)) {
        return seen;
    }
    let seems = text(&seen);
    let does = TAIL_CALLS.iter().find(|(verb, line, _)| *verb == seen.verb && seems.contains(line));
    let Some((verb, _, line)) = does else { return seen };
    // The last one, where there are several.
    let is_it = |mention: &&Mention| mention.verbs.contains(verb) && mention.text.contains(line);
    match mentions.iter().rfind(is_it) {
        Some(mention) => Site { file: mention.file.clone(), line: mention.line, verb: *verb },
        None => seen,
    }
}

impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{} {:?}", self.file, self.line, self.verb)
    }
}

/// A place in the text that calls something of a storage method's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mention {
    /// The file, as a path from the repository.
    pub file: String,
    /// The line, from 1 on.
    pub line: u32,
    /// What it may call: a name can be one of a directory and of a file.
    pub verbs: Vec<Verb>,
    /// The line's text.
    pub text: String,
}

impl Mention {
    /// Whether a call that was seen came from here.
    pub fn is(&self, site: &Site) -> bool {
        self.file == site.file && self.line == site.line && self.verbs.contains(&site.verb)
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every place in the sources, without their unit tests and models, that may call storage.
pub fn mentions() -> Vec<Mention> {
    let methods = methods();
    let mut found = Vec::new();
    let mut dirs: Vec<_> = SOURCES.iter().map(|dir| repository().join(dir)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("the sources are there") {
            let path = entry.expect("the sources can be listed").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == "rs") && !is_elsewhere(&path) {
                let file = relative(&path).expect("it was found below the repository");
                mentions_in(&file, &methods, &mut found);
            }
        }
    }
    found.sort();
    found
}

/// Loom's models are tests. Guards have a loop of their own, over every call rather than every place: `guarded.rs`.
fn is_elsewhere(path: &Path) -> bool {
    let is_one = |name: &str| name.starts_with("models") || name.starts_with("guard");
    path.components().any(|part| is_one(&part.as_os_str().to_string_lossy()))
}

/// The names and numbers of arguments of the methods that can fail, with what they stand for.
fn methods() -> BTreeMap<(&'static str, usize), Vec<Verb>> {
    let traits = fs::read_to_string(repository().join("vfs/src/lib.rs")).expect("the traits are there");
    let mut methods: BTreeMap<_, Vec<Verb>> = BTreeMap::new();
    for verb in Verb::ALL {
        let (of_trait, method) = verb.method();
        let body = traits.split(&format!("\npub trait {of_trait}: ")).nth(1).expect("the trait is there");
        let signature = body.split(&format!("    fn {method}(")).nth(1).expect("the trait has the method");
        let arguments = signature.split(')').next().expect("a list of arguments ends").matches(',').count();
        methods.entry((method, arguments)).or_default().push(*verb);
    }
    for (method, arguments, verbs) in HELPERS {
        methods.insert((method, arguments), verbs.to_vec());
    }
    methods
}

fn mentions_in(file: &str, methods: &BTreeMap<(&'static str, usize), Vec<Verb>>, found: &mut Vec<Mention>) {
    let text = fs::read_to_string(repository().join(file)).expect("a source can be read");
    let tests = ["\n#[cfg(test)]\nmod ", "\n#[cfg(all(test, not(loom)))]\nmod "];
    let code =
        tests.iter().fold(&*text, |code, tests| code.split(tests).next().expect("there is a first part"));
    let mut start = 0;
    for (index, line) in code.split_inclusive('\n').enumerate() {
        let is_comment = line.trim_start().starts_with("//");
        for (at, _) in line.match_indices('.').filter(|_| !is_comment) {
            let rest = &code[start + at + 1..];
            let length = rest.find(|end: char| !end.is_ascii_alphanumeric() && end != '_').unwrap_or(0);
            let Some(arguments) = rest[length..].strip_prefix('(').map(count_arguments) else { continue };
            let is_storage = !NO_STORAGE.iter().any(|text| line.contains(text));
            if let Some(verbs) = methods.get(&(&rest[..length], arguments)).filter(|_| is_storage) {
                found.push(Mention {
                    file: file.to_owned(),
                    line: index as u32 + 1,
                    verbs: verbs.clone(),
                    text: line.trim().to_owned(),
                });
            }
        }
        start += line.len();
    }
}

/// Counts what stands between commas up to the closing bracket.
fn count_arguments(text: &str) -> usize {
    let (mut depth, mut arguments, mut is_empty) = (0, 0, true);
    for character in text.chars() {
        match character {
            ')' if depth == 0 => break,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments += 1;
                is_empty = true;
                continue;
            }
            _ => {}
        }
        is_empty &= character.is_whitespace();
    }
    arguments + usize::from(!is_empty)
}

fn relative(path: &Path) -> Option<String> {
    let path = path.strip_prefix(repository()).ok()?.to_str()?;
    SOURCES.iter().any(|dir| path.starts_with(dir)).then(|| path.to_owned())
}

/// What an address on the stack stands for: lines of the sources, the innermost first, where code was inlined.
type Lines = Arc<[(String, u32)]>;

/// Addresses that have been looked up: that is slow, and they are few.
static LOOKED_UP: LazyLock<Mutex<HashMap<usize, Lines>>> = LazyLock::new(Mutex::default);

/// The lines of the sources that the calling thread is in, the innermost first.
pub fn stack() -> Vec<(String, u32)> {
    let mut lines = Vec::new();
    let mut looked_up = LOOKED_UP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    backtrace::trace(|frame| {
        let address = frame.ip();
        lines.extend_from_slice(looked_up.entry(address.addr()).or_insert_with(|| look_up(address)));
        true
    });
    lines
}

fn look_up(address: *mut c_void) -> Lines {
    let mut lines = Vec::new();
    backtrace::resolve(address, |symbol| {
        let file = symbol.filename().and_then(relative);
        lines.extend(file.zip(symbol.lineno()));
    });
    lines.into()
}

/// Those that no call was seen to come from, and the calls that come from nowhere in the list.
pub fn compare<'a>(mentions: &'a [Mention], seen: &'a BTreeSet<Site>) -> (Vec<&'a Mention>, Vec<&'a Site>) {
    let unseen = mentions
        .iter()
        .filter(|mention| !seen.iter().any(|site| mention.is(site)))
        .filter(|mention| !is_excepted("unreached", &mention.file, mention.line, &mention.verbs))
        .collect();
    let unlisted = seen
        .iter()
        .filter(|site| !mentions.iter().any(|mention| mention.is(site)))
        .filter(|site| !is_excepted("unlisted", &site.file, site.line, &[site.verb]))
        .collect();
    (unseen, unlisted)
}
