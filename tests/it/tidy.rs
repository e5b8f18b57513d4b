//! House rules as tests: who may name what, how files begin, and that what the documents say is so.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../mutants/list.rs"]
mod mutants;

/// The repository; tests run in its root package.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below the root with this extension, as paths relative to it. Build output, wherever it was put, and what
/// git keeps are left out.
fn files(extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![repository().to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                let is_output =
                    path.join("CACHEDIR.TAG").exists() || ["target", "corpus"].contains(&name.as_str());
                if !is_output && !name.starts_with('.') {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The code of a file without its unit tests, comments and string contents that would look like code.
fn code(file: &str) -> String {
    let text = text(file);
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(|line| match line.find("//") {
        Some(at) if !line[..at].contains('"') => &line[..at],
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Source files of the library and program, without tests, benchmarks and examples.
fn sources() -> Vec<String> {
    files("rs")
        .into_iter()
        .filter(|file| file.contains("/src/") && !file.ends_with("tests.rs") && !file.starts_with("fuzz/"))
        .filter(|file| !file.starts_with("benches/"))
        .collect()
}

/// The program's input files, and the demo and the torture, which play the foreign program and the rival.
const OUTSIDE_ANY_TREE: [&str; 8] = [
    "cli/src/apply.rs",
    "cli/src/arguments.rs",
    "cli/src/demo/set.rs",
    "cli/src/demo/speed.rs",
    "cli/src/history.rs",
    "cli/src/run/save.rs",
    "cli/src/torture/found.rs",
    "cli/src/torture/place.rs",
];

/// Goal: only `vfs` reaches storage; the rest goes through its traits. Method: the names of the ways around it, in the
/// sources without their tests. The program touches what lies outside any tree in a few files, each named here.
#[test]
fn only_vfs_names_the_ways_to_storage() {
    let ways = ["std::fs", "rustix", "memmap2", "libc::", "File::open("];
    for file in sources().into_iter().filter(|file| !file.starts_with("vfs/")) {
        let code = code(&file);
        let named: Vec<&str> = ways.into_iter().filter(|way| code.contains(way)).collect();
        let is_outside = OUTSIDE_ANY_TREE.contains(&file.as_str());
        let is_fine = |way: &&&str| is_outside && ["std::fs", "File::open("].contains(way);
        assert!(named.iter().all(|way| is_fine(&way)), "{file} names {named:?}");
    }
}

/// Goal: unsafe code stays where it is argued for. Method: the keyword, in all sources but three files: what maps
/// segments, what runs in forked children, and a test's allocator that counts.
#[test]
fn unsafe_code_is_in_three_files() {
    // In two parts, so that this file does not have it.
    let word = ["un", "safe"].concat();
    for file in files("rs") {
        if ["vfs/src/map.rs", "vfs/src/fork.rs", "tests/allocations.rs"].contains(&file.as_str()) {
            continue;
        }
        let is_word = |at: usize, code: &str| {
            let byte = |at: usize| code.as_bytes().get(at).copied().unwrap_or(b' ');
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            !is_part(byte(at + 6)) && (at == 0 || !is_part(byte(at - 1)))
        };
        let code: String =
            text(&file).lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect();
        let count = code.match_indices(&word).filter(|(at, _)| is_word(*at, &code)).count();
        assert_eq!(count, 0, "{file} has {word} code");
    }
}

/// Goal: format, plan, analysis and decisions do no I/O. Method: they name no handle's type and none of its verbs.
#[test]
fn what_decides_does_no_io() {
    let verbs = [
        "Dir>",
        "dyn Dir",
        "dyn File",
        "dyn Vfs",
        ".open_file(",
        ".create_file(",
        ".open_dir(",
        ".rename(",
        ".exchange(",
        ".read_at(",
        ".write_at(",
        ".sync_data(",
        ".sync_all(",
        ".sync(",
        ".set_len(",
        ".remove_file(",
        "OpenOptions",
    ];
    for file in
        ["recovery/src/decision.rs", "recovery/src/plan.rs", "recovery/src/analyze.rs", "wal/src/format.rs"]
    {
        let code = code(file);
        for verb in verbs {
            assert!(!code.contains(verb), "{file} names {verb}");
        }
    }
}

/// Goal: `engine` leaves the log's bytes to those who know them. Method: it names no frame, and no decoder.
#[test]
fn the_engine_never_decodes_a_frame() {
    for file in sources().into_iter().filter(|file| file.starts_with("engine/")) {
        let code = code(&file);
        for word in
            ["FrameHeader", "wal::format", ".frames()", "plan::decode", "decode(", "rmp_serde", "crc32fast"]
        {
            assert!(!code.contains(word), "{file} names {word}");
        }
    }
}

/// Goal: dependencies point one way: cli, engine, recovery, wal, vfs. Method: each manifest names only what is below.
#[test]
fn dependencies_point_one_way() {
    let order = ["atomtree-vfs", "atomtree-wal", "atomtree-recovery", "atomtree"];
    for (index, dir) in ["vfs", "wal", "recovery", "engine"].into_iter().enumerate() {
        let manifest = text(&format!("{dir}/Cargo.toml"));
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or("").split("\n[").next().unwrap();
        for above in &order[index..] {
            let is_named = dependencies
                .lines()
                .any(|line| line.strip_prefix(above).is_some_and(|rest| rest.starts_with(['.', ' ', '='])));
            assert!(!is_named, "{dir} depends on {above}");
        }
    }
}

/// Goal: every source file says first what it is for.
#[test]
fn every_source_file_opens_with_its_purpose() {
    for file in files("rs") {
        // A fuzz target is one macro call; its purpose stands at the function that it calls.
        if file.starts_with("fuzz/fuzz_targets/") {
            continue;
        }
        let text = text(&file);
        let first = text.lines().find(|line| !line.is_empty() && !line.starts_with("#!")).unwrap_or_default();
        assert!(first.starts_with("//! "), "{file} opens with {first:?}");
        assert!(!first.contains("To be written"), "{file} is still to be written");
    }
}

/// Goal: nothing unfinished is left lying about, and no source needs more than ASCII. Method: the usual marks.
#[test]
fn nothing_unfinished_is_left() {
    // Put together here, so that this file does not hold them.
    let marks =
        [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"], ["dbg", "!("], ["to", "do!("], ["unimpl", "emented!("]];
    for file in files("rs") {
        let text = text(&file);
        for mark in marks.map(|parts| parts.concat()) {
            assert!(!text.contains(&mark), "{file} holds {mark}");
        }
        for (number, line) in text.lines().enumerate() {
            assert!(line.is_ascii(), "{file}:{}: not ASCII: {line}", number + 1);
            assert!(line.trim_end() == line, "{file}:{}: blanks at the end", number + 1);
        }
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{file} does not end with one newline");
    }
}

/// Goal: a test that is left out of the ordinary run is run by CI. Method: each says why it is left out; `.ci/run` runs
/// the ignored tests of its package, unless the reason is that it is never to run again.
#[test]
fn ignored_tests_are_run_by_ci() {
    let mark = ["#[ig", "nore"].concat();
    let run = repository().join(".ci/run");
    if !run.exists() {
        println!("skipped: there is no .ci/run yet");
        return;
    }
    let script = fs::read_to_string(run).unwrap();
    for file in files("rs") {
        for line in text(&file).lines().map(str::trim).filter(|line| line.starts_with(&mark)) {
            assert!(line.contains(" = \""), "{file}: an ignored test without a reason");
            let package = match file.split('/').next().unwrap() {
                "tests" => "atomtree-tests".to_owned(),
                "engine" => "atomtree".to_owned(),
                dir => format!("atomtree-{dir}"),
            };
            let is_run = script.lines().any(|command| {
                command.contains("-- --ignored") && command.contains(&format!("-p {package} "))
            });
            assert!(is_run || line.contains("never"), "{file}: .ci/run leaves this out: {line}");
        }
    }
}

/// Goal: users find the present version in the changelog.
#[test]
fn the_changelog_knows_this_version() {
    if !repository().join("CHANGELOG.md").exists() {
        println!("skipped: there is no CHANGELOG.md yet");
        return;
    }
    let manifest = text("Cargo.toml");
    let version = manifest
        .split("[workspace.package]")
        .nth(1)
        .and_then(|rest| rest.split("version = \"").nth(1))
        .and_then(|rest| rest.split('"').next())
        .expect("the workspace has a version");
    assert!(text("CHANGELOG.md").contains(version), "CHANGELOG.md does not mention {version}");
}

/// Goal: a promise in DESIGN.md that names its test names one that exists. Method: what stands in backticks and looks
/// like a module of this binary followed by a test's name, with or without `it::` or `tests/it/` before it.
#[test]
fn tests_that_the_design_names_exist() {
    if !repository().join("DESIGN.md").exists() {
        println!("skipped: there is no DESIGN.md yet");
        return;
    }
    let design = text("DESIGN.md");
    let mut checked = 0;
    for quoted in design.split('`').skip(1).step_by(2) {
        let path = quoted.trim_start_matches("tests/").trim_start_matches("it::").trim_start_matches("it/");
        if quoted.starts_with("it::") && !path.contains("::") {
            assert!(repository().join(format!("tests/it/{path}.rs")).exists(), "DESIGN.md names {quoted}");
            checked += 1;
        }
        let Some((module, name)) = path.split_once("::") else { continue };
        let module = module.trim_end_matches(".rs");
        let file = format!("tests/it/{module}.rs");
        if !repository().join(&file).exists() || module == "main" {
            continue;
        }
        let name = name.split([' ', '(']).next().unwrap();
        let is_pattern = name.is_empty() || name.contains(['*', '.']);
        if !is_pattern {
            assert!(
                text(&file).contains(&format!("fn {name}(")),
                "DESIGN.md names {quoted}, which is not in {file}"
            );
            checked += 1;
        }
    }
    println!("{checked} names checked");
}

/// Goal: the list of mutants is true to the code. Method: what each replaces stands exactly once in its file, nothing
/// replaces itself, and the test that is to notice exists.
#[test]
fn the_list_of_mutants_is_true() {
    let mut names = std::collections::BTreeSet::new();
    for mutant in mutants::MUTANTS {
        assert!(names.insert(mutant.name), "{} is there twice", mutant.name);
        for edit in mutant.edits {
            assert_eq!(text(edit.file).matches(edit.from).count(), 1, "{}: {:?}", mutant.name, edit.from);
            assert_ne!(edit.from, edit.to, "{}", mutant.name);
        }
        let function = format!("fn {}(", mutant.suite.test().rsplit("::").next().unwrap());
        let exists = files("rs").iter().any(|file| text(file).contains(&function));
        assert!(exists, "{}: there is no test {}", mutant.name, mutant.suite.test());
    }
    assert!(names.len() >= 12);
}
