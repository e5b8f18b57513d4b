//! Real input: a source tree of more than a thousand files, migrated in one transaction that edits files, renames
//! directories, removes files and directories, makes symlinks and changes modes. Shell tools do the same to a copy, and
//! the two are compared attribute by attribute; whole, killed and without power, on ext4, xfs and btrfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use atomtree::{Error, Options, Transaction};
use atomtree_tests::interrupted::{Interrupted, say, wait_for_parent};
use atomtree_tests::volume::{Kind, Volume, or_skip};

use crate::alike::{Times, Trees, differences};
use crate::basics::{child, child_root, tree};

const FILES_MIN: usize = 1000;
const SED: (&str, &str) = ("pub const", "pub(crate) const");

/// One step of the migration; paths are as the steps before leave them.
enum Step {
    /// Replaces a text in a file.
    Edit(String),
    Write(String, String),
    Rename(String, String),
    Remove(String),
    RemoveTree(String),
    MakeDir(String, Option<u32>),
    Symlink(String, String),
    Mode(String, u32),
}

impl Step {
    fn in_shell(&self) -> String {
        match self {
            // Not `sed -i`, which loses extended attributes.
            Self::Edit(path) => {
                format!(
                    "sed 's/{}/{}/g' '{path}' > .edited; cat .edited > '{path}'; rm .edited",
                    SED.0, SED.1
                )
            }
            Self::Write(path, text) => format!("printf '%s' '{text}' > '{path}'"),
            Self::Rename(from, to) => format!("mv -T '{from}' '{to}'"),
            Self::Remove(path) => format!("rm '{path}'"),
            Self::RemoveTree(path) => format!("rm -r '{path}'"),
            Self::MakeDir(path, None) => format!("mkdir '{path}'"),
            Self::MakeDir(path, Some(mode)) => format!("mkdir -m {mode:o} '{path}'"),
            Self::Symlink(path, target) => format!("ln -sfn '{target}' '{path}'"),
            Self::Mode(path, mode) => format!("chmod {mode:o} '{path}'"),
        }
    }

    fn in_transaction(&self, tx: &mut Transaction) -> Result<(), Error> {
        match self {
            Self::Edit(path) => {
                let content = String::from_utf8(tx.read(path)?).expect("Rust sources are UTF-8");
                tx.write(path, content.replace(SED.0, SED.1))
            }
            Self::Write(path, text) => tx.write(path, text.as_str()),
            Self::Rename(from, to) => tx.rename(from, to),
            Self::Remove(path) => tx.remove(path),
            Self::RemoveTree(path) => tx.remove_dir_all(path),
            Self::MakeDir(path, None) => tx.create_dir(path),
            Self::MakeDir(path, Some(mode)) => tx.create_dir_with_mode(path, *mode),
            Self::Symlink(path, target) => tx.symlink(path, target),
            Self::Mode(path, mode) => tx.set_mode(path, *mode),
        }
    }
}

/// The migration of whatever crates there are, decided by their names alone.
fn steps(old: &Trees) -> Vec<Step> {
    let is_dir = |path: &Path| old[path].mode & 0o170_000 == 0o040_000;
    let is_link = |path: &Path| old[path].mode & 0o170_000 == 0o120_000;
    let depth = |path: &Path| path.components().count();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let files: Vec<&Path> =
        old.keys().map(PathBuf::as_path).filter(|path| !is_dir(path) && !is_link(path)).collect();
    let dirs: Vec<&Path> = old.keys().map(PathBuf::as_path).filter(|path| is_dir(path)).collect();
    let crates: Vec<&Path> = dirs.iter().copied().filter(|path| depth(path) == 1).collect();
    let mut steps = vec![Step::MakeDir("vendor".into(), None)];
    // The first crate moves as a whole; later paths in it are the new ones.
    let (moved, kept) = (crates[0], *crates.last().unwrap());
    let now = |path: &Path| {
        if path.starts_with(moved) { format!("vendor/{}", path.display()) } else { text(path) }
    };
    steps.push(Step::Rename(text(moved), now(moved)));
    // A directory of its sources gets another name, and one that is nested deeper moves to the top.
    let below = |depth_is: usize| dirs.iter().copied().filter(move |path| depth(path) == depth_is);
    let modules: Vec<&Path> = below(3).collect();
    let renamed = modules[0];
    let lifted = modules[modules.len() / 2];
    let is_elsewhere = |path: &Path| path.starts_with(renamed) || path.starts_with(lifted);
    steps.push(Step::Rename(now(renamed), format!("{}-renamed", now(renamed))));
    steps.push(Step::Rename(now(lifted), "lifted".into()));
    // What moved with its directory is edited at its new place.
    let edited_in_moved = files.iter().find(|path| path.starts_with(renamed) && is_rust(path));
    steps.extend(edited_in_moved.map(|path| {
        let rest = path.strip_prefix(renamed).unwrap();
        Step::Edit(format!("{}-renamed/{}", now(renamed), rest.display()))
    }));
    // A directory goes, and its name with another one in its place.
    let removed = *modules.iter().rev().find(|path| !is_elsewhere(path)).expect("there are many");
    steps.push(Step::RemoveTree(now(removed)));
    steps.push(Step::MakeDir(now(removed), Some(0o2750)));
    steps.push(Step::Write(format!("{}/README", now(removed)), "What was here is gone.\n".into()));
    for (index, path) in
        files.iter().filter(|path| !is_elsewhere(path) && !path.starts_with(removed)).enumerate()
    {
        let now = now(path);
        match index % 12 {
            0..=4 if is_rust(path) => steps.push(Step::Edit(now)),
            5 => steps.push(Step::Remove(now)),
            6 => steps.push(Step::Mode(now, 0o640)),
            7 => {
                steps.push(Step::Rename(now.clone(), format!("{now}.moved")));
                steps.push(Step::Symlink(
                    now,
                    path.file_name().unwrap().to_str().unwrap().to_owned() + ".moved",
                ));
            }
            8 if is_rust(path) => {
                steps.push(Step::Edit(now.clone()));
                steps.push(Step::Mode(now, 0o755));
            }
            _ => {}
        }
    }
    steps.extend([
        Step::Symlink("old-link".into(), "vendor".into()),
        Step::Symlink("current".into(), format!("{}/src", kept.display())),
        Step::Symlink("dangling".into(), "../nowhere/at all".into()),
        Step::MakeDir("shared".into(), Some(0o1777)),
        Step::MakeDir("shared/deep".into(), None),
        Step::Write("shared/deep/new".into(), "new\n".into()),
        Step::Mode(now(crates[crates.len() / 2]), 0o700),
    ]);
    steps
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// Directories of crates that have been unpacked, those with most files first, as many as it takes.
fn crates() -> Option<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut found: Vec<(usize, PathBuf)> = registries
        .flat_map(|registry| fs::read_dir(registry.path()).into_iter().flatten().flatten())
        .map(|unpacked| unpacked.path())
        .map(|path| (files_in(&path), path))
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    let mut files = 0;
    let mut chosen = Vec::new();
    for (count, path) in found {
        if files >= FILES_MIN {
            break;
        }
        files += count;
        chosen.push(path);
    }
    if files < FILES_MIN {
        println!("skipped: only {files} files of crates in {}", home.display());
        return None;
    }
    println!("{files} files of {chosen:?}");
    Some(chosen)
}

fn files_in(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_in(&entry.path()) } else { 1 }).sum()
}

/// Copies the crates, with owners, modes, attributes and a link that no registry has.
fn lay_out(original: &Path, crates: &[PathBuf]) {
    fs::create_dir(original).unwrap();
    for path in crates {
        run_in(original, &format!("cp -a '{}' .", path.display()));
    }
    run_in(
        original,
        "ln -s missing old-link
         find . -type f | sort | awk 'NR % 40 == 1' | xargs chmod 600
         find . -type f | sort | awk 'NR % 40 == 2' | xargs chown 1234:4321
         find . -type f | sort | awk 'NR % 40 == 3' | xargs setfattr -n user.origin -v registry
         find . -type d | sort | awk 'NR % 10 == 4' | xargs setfattr -n user.kind -v directory",
    );
}

fn run_in(dir: &Path, script: &str) {
    let output =
        Command::new("sh").args(["-ec", script]).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn options() -> Options {
    Options::new().segment_bytes(4 << 20).log_bytes_max(64 << 20)
}

/// Not a test by itself: the process that migrates the tree.
#[test]
fn child_that_migrates() {
    let Some(root) = child_root() else { return };
    let store = options().open(&root).unwrap();
    let mut tx = store.begin().unwrap();
    tx.set_label("migrate");
    for step in steps(&tree(&root)) {
        step.in_transaction(&mut tx).unwrap_or_else(|error| panic!("{}: {error}", step.in_shell()));
    }
    say("committing");
    tx.commit().unwrap();
    say("acknowledged");
    wait_for_parent();
    store.close().unwrap();
}

/// Opens the store of an interrupted tree, which must then be exactly the old or the new one.
fn is_new(root: &Path, old: &Trees, new: &Trees, second: i64, label: &str) -> bool {
    let store = options().open(root).unwrap_or_else(|error| panic!("{label}: {error}"));
    let report = store.recovery().clone();
    assert!(report.quarantined.is_empty() && report.superseded.is_empty(), "{label}: {report:?}");
    assert!(report.lost.is_empty() && report.metadata_kept.is_empty(), "{label}: {report:?}");
    store.close().unwrap();
    let from_old = differences(old, root, Times::KeptBefore(second));
    if from_old.is_empty() {
        return false;
    }
    let from_new = differences(new, root, Times::UntouchedSince(second, old));
    let shown = |differences: &[String]| differences[..differences.len().min(10)].join("\n  ");
    assert!(
        from_new.is_empty(),
        "{label}: {report:?}\nfrom the old tree:\n  {}\nfrom the new tree:\n  {}",
        shown(&from_old),
        shown(&from_new)
    );
    true
}

fn migrate_on(kind: Kind) {
    let Some(crates) = crates() else { return };
    let volume = Volume::create(kind, 768 << 20, false);
    let Some(volume) = or_skip(volume, &format!("a source tree on {}", kind.name())) else { return };
    let original = volume.path().join("original");
    lay_out(&original, &crates);
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let old = tree(&original);
    let steps = steps(&old);
    // What shell tools make of it.
    let reference = volume.path().join("reference");
    run_in(volume.path(), "cp -a original reference");
    run_in(&reference, &steps.iter().map(Step::in_shell).collect::<Vec<_>>().join("\n"));
    let new = tree(&reference);
    let trial = Interrupted {
        volume: &volume,
        original: &original,
        child: &|root| child("source_tree::child_that_migrates", root),
        is_new: &|root, label| is_new(root, &old, &new, second, label),
    };
    let (took, whole) = trial.uninterrupted();
    let differing = differences(&new, &whole, Times::KeptBefore(second));
    assert!(differing.is_empty(), "{}: {} differ:\n{}", kind.name(), differing.len(), differing.join("\n"));
    fs::remove_dir_all(whole).unwrap();
    let killed = trial.kill(took, 8);
    let cut = trial.cut_power(took, 6);
    println!("{}: {} steps in {took:?}, killed {killed:?}, without power {cut:?}", kind.name(), steps.len());
    assert!(killed.new > 0 && cut.new > 0, "what was acknowledged counts: {killed:?}, {cut:?}");
}

#[test]
fn a_source_tree_is_migrated_wholly_or_not_at_all_on_ext4() {
    migrate_on(Kind::Ext4);
}

#[test]
fn a_source_tree_is_migrated_wholly_or_not_at_all_on_xfs() {
    migrate_on(Kind::Xfs);
}

#[test]
fn a_source_tree_is_migrated_wholly_or_not_at_all_on_btrfs() {
    migrate_on(Kind::Btrfs);
}
