//! Breaks the engine on purpose, one way after another, and shows that a test notices each.
//!
//! `cargo run -p atomtree-mutants` runs all, `-- NAME...` some, `-- --list` tells which there are. Works on a
//! copy of the checkout below the target directory, so that nothing here is ever broken. Exits with 1 if one survives.

mod list;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use self::list::{MUTANTS, Mutant, Suite};

/// Whoever waits longer waits for ever: the slowest of the tests takes a quarter of this.
const HANG_AFTER: Duration = Duration::from_mins(10);

/// What a test run came to.
#[derive(PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Hung,
    /// It could not be built, or there is no such test.
    Broken(String),
}

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if asked.iter().any(|argument| argument == "--list") {
        MUTANTS.iter().for_each(|mutant| println!("{:<40} {}", mutant.name, mutant.suite.name()));
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = asked.iter().find(|name| !MUTANTS.iter().any(|mutant| mutant.name == **name)) {
        eprintln!("there is no mutant {unknown}; --list shows them");
        return ExitCode::from(2);
    }
    let chosen = |mutant: &&Mutant| asked.is_empty() || asked.iter().any(|name| name == mutant.name);
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(chosen).collect();
    let copy = Copy::make();
    let suites: BTreeSet<Suite> = mutants.iter().map(|mutant| mutant.suite).collect();
    for suite in suites {
        if copy.run(suite) != Verdict::Passed {
            eprintln!("{} does not pass on the code as it is", suite.name());
            return ExitCode::FAILURE;
        }
    }
    let mut survivors = Vec::new();
    for (number, mutant) in mutants.iter().enumerate() {
        let start = Instant::now();
        copy.apply(mutant);
        let verdict = copy.run(mutant.suite);
        copy.restore(mutant);
        let word = match &verdict {
            Verdict::Failed => "killed",
            Verdict::Hung => "killed (it hung)",
            Verdict::Passed => "SURVIVED",
            Verdict::Broken(reason) => reason,
        };
        println!(
            "{:>3}/{} {:<40} {word} by {} in {:.0?}",
            number + 1,
            mutants.len(),
            mutant.name,
            mutant.suite.name(),
            start.elapsed()
        );
        if !matches!(verdict, Verdict::Failed | Verdict::Hung) {
            survivors.push(mutant.name);
        }
    }
    if survivors.is_empty() {
        println!("all {} mutants were killed", mutants.len());
        return ExitCode::SUCCESS;
    }
    println!("not killed: {}", survivors.join(", "));
    ExitCode::FAILURE
}

impl Suite {
    fn name(self) -> String {
        match self {
            Self::It(_) => format!("it::{}", self.test()),
            Self::In(package, ..) | Self::Loom(package, _) => format!("{package} {}", self.test()),
        }
    }

    /// Which build it needs.
    fn cfg(self) -> &'static str {
        if matches!(self, Self::Loom(..)) { "loom" } else { "plain" }
    }

    /// What `cargo test` is told.
    fn arguments(self) -> Vec<&'static str> {
        match self {
            Self::It(test) => vec!["-p", "atomtree-tests", "--test", "it", "--", "--exact", test],
            Self::In(package, target, test) => vec!["-p", package, target, "--", "--exact", test],
            Self::Loom(package, test) => vec!["-p", package, "--release", "--lib", "--", "--exact", test],
        }
    }
}

/// The root of the checkout.
fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this package lies two below it")
}

/// A copy of the checkout.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Copies what git knows or would; files that are the same stay, so that little is built again. What it copied
    /// formerly and git has no longer goes.
    fn make() -> Self {
        let here = checkout();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| here.join("target"), PathBuf::from);
        let place = target.join("mutants");
        let copy = Self { tree: place.join("tree"), target: place.join("target") };
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(here)
            .output()
            .expect("git is there");
        assert!(listed.status.success(), "{} is a git checkout", here.display());
        let names = String::from_utf8(listed.stdout).expect("our names are plain");
        let names = names.split('\0').filter(|name| !name.is_empty() && here.join(name).is_file());
        let names: BTreeSet<&Path> = names.map(Path::new).collect();
        copy.remove_others(&names, Path::new(""));
        for name in names {
            let (from, to) = (here.join(name), copy.tree.join(name));
            let content = fs::read(&from).expect("it was listed");
            if fs::read(&to).ok().as_ref() != Some(&content) {
                fs::create_dir_all(to.parent().expect("it lies in the tree")).expect("the target directory");
                fs::copy(&from, &to).expect("there is room for a copy");
            }
        }
        copy
    }

    /// Removes files that are none of these from a directory of the tree, and directories that are empty then.
    fn remove_others(&self, names: &BTreeSet<&Path>, dir: &Path) {
        // The first time nothing is there.
        let Ok(entries) = fs::read_dir(self.tree.join(dir)) else { return };
        for entry in entries.map(|entry| entry.expect("it is a copy")) {
            let name = dir.join(entry.file_name());
            if entry.file_type().expect("it is a copy").is_dir() {
                self.remove_others(names, &name);
                // Most are not empty.
                let _ = fs::remove_dir(entry.path());
            } else if !names.contains(name.as_path()) {
                fs::remove_file(entry.path()).expect("it is a copy");
            }
        }
    }

    fn apply(&self, mutant: &Mutant) {
        for edit in mutant.edits {
            let path = self.tree.join(edit.file);
            let text = fs::read_to_string(&path).expect("the list names files that are there");
            assert_eq!(text.matches(edit.from).count(), 1, "{}: {}", mutant.name, edit.from);
            fs::write(&path, text.replace(edit.from, edit.to)).expect("it is a copy");
        }
    }

    fn restore(&self, mutant: &Mutant) {
        for edit in mutant.edits {
            let content = fs::read(checkout().join(edit.file)).expect("it is there");
            fs::write(self.tree.join(edit.file), content).expect("it is a copy");
        }
    }

    fn output(&self) -> PathBuf {
        self.target.with_extension("output")
    }

    /// `cargo test`, with further arguments before those of the suite.
    fn cargo_test(&self, arguments: &[&str], suite: Suite) -> Command {
        let sink = fs::File::create(self.output()).expect("the target directory");
        let mut command = Command::new("cargo");
        command
            .arg("test")
            .args(arguments)
            .args(suite.arguments())
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", self.target.join(suite.cfg()))
            .env("CARGO_PROFILE_TEST_DEBUG", "0")
            .env("RUSTFLAGS", if suite.cfg() == "loom" { "--cfg loom" } else { "" })
            .stdout(sink.try_clone().expect("a second handle"))
            .stderr(Stdio::from(sink));
        command
    }

    fn run(&self, suite: Suite) -> Verdict {
        let broken = |what| Verdict::Broken(format!("{what}: see {}", self.output().display()));
        // By itself: its time is not the test's, and a compiler that is killed for want of memory looks like such a test.
        if !self.cargo_test(&["--no-run"], suite).status().expect("cargo is there").success() {
            return broken("NOT BUILT");
        }
        let mut child = self.cargo_test(&[], suite).process_group(0).spawn().expect("cargo is there");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                break status;
            }
            if start.elapsed() > HANG_AFTER {
                // The tests' own children too.
                let group = format!("-{}", child.id());
                Command::new("kill").args(["-KILL", "--", &group]).status().expect("kill is there");
                child.wait().expect("it is our child");
                return Verdict::Hung;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let text = String::from_utf8_lossy(&fs::read(self.output()).expect("it was written")).into_owned();
        let says = |word: &str| text.contains(&format!("test {} ... {word}", suite.test()));
        match status.code() {
            Some(0) if says("ok") => Verdict::Passed,
            // A panic within a panic, or a signal, ends the process before it says anything.
            Some(101) if says("FAILED") || text.contains("(signal: ") => Verdict::Failed,
            _ => broken("THERE IS NO SUCH TEST"),
        }
    }
}
