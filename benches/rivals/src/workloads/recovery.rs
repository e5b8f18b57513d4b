//! Opening a store whose process was killed: with everything still in place, which recovery compares and skips; and with
//! the files gone, as a power cut would have them, which it writes again.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use atomtree::Store;
use rustix::fs::syncfs;

use crate::bench::Bench;
use crate::children::{Actor, VICTIM_COMMITS, VICTIM_FILES_EACH, victims_path};
use crate::failure::{Failure, On};
use crate::rivals::Role;
use crate::rounds::{self, Case, Effort, Lane, Sample};

const FILE_BYTES: usize = 1 << 10;

pub(super) fn run(bench: &Bench) -> Result<(), Failure> {
    let case = format!("{VICTIM_COMMITS} commits x {VICTIM_FILES_EACH} new x 1 KiB");
    let title = ("recovery", case.as_str());
    let dir = bench.place.fresh("recovery")?;
    let lane = |who: &str, role, what| Lane {
        who: who.to_owned(),
        role,
        state: Opened { what, root: dir.join(who.replace(' ', "-")) },
    };
    let mut lanes = vec![
        lane("creating them, one syncfs", Role::Floor, What::Creating),
        lane("atomtree, files lost", Role::Ours, What::Redoing),
        lane("atomtree, files in place", Role::Rival, What::Comparing),
    ];
    let rounds = bench.either(1, bench.effort.rounds.min(7));
    let effort = Effort { rounds, warms_up: false, ..bench.effort };
    let until = bench.allowance(1).next_case();
    bench.report.add(rounds::run(bench, title, effort, until, &mut lanes, &mut Recovery)?)?;
    bench.place.remove(&dir)
}

struct Opened {
    what: What,
    root: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Creating,
    Redoing,
    Comparing,
}

struct Recovery;

impl Case<Opened> for Recovery {
    type Input = ();

    fn input(&mut self, _: usize) {}

    fn prepare(&self, opened: &mut Opened, (): &()) -> Result<(), Failure> {
        let root = &opened.root;
        fs::create_dir_all(root).on("make", root)?;
        if opened.what == What::Creating {
            for commit in 0..VICTIM_COMMITS {
                fs::create_dir_all(root.join(victims_path(commit).0)).on("make a directory in", root)?;
            }
            return Ok(());
        }
        Actor::start("victim", &[root.display().to_string()])?.kill()?;
        if opened.what == What::Redoing {
            for commit in 0..VICTIM_COMMITS {
                let (dir, prefix) = victims_path(commit);
                for file in 0..VICTIM_FILES_EACH {
                    let path = root.join(&dir).join(format!("{prefix}{file}"));
                    fs::remove_file(&path).on("remove", path)?;
                }
            }
        }
        Ok(())
    }

    fn measure(&self, opened: &mut Opened, (): &()) -> Result<Sample, Failure> {
        if opened.what == What::Creating {
            return Sample::time(0, || create_all(&opened.root));
        }
        let root = &opened.root;
        let start = Instant::now();
        let store = Store::open(root).on("recover", root)?;
        let mut sample = Sample { time: start.elapsed(), ..Sample::default() };
        let redone = store.recovery().redone;
        sample.figures.insert("transactions", redone as f64);
        store.close().on("close the store of", root)?;
        for commit in 0..VICTIM_COMMITS {
            let (dir, prefix) = victims_path(commit);
            let path = root.join(dir).join(format!("{prefix}{}", VICTIM_FILES_EACH - 1));
            let bytes = fs::metadata(&path).on("look at", &path)?.len();
            if bytes != FILE_BYTES as u64 {
                return Err(Failure::new("find all of", path.display(), format!("it has {bytes} bytes")));
            }
        }
        Ok(sample)
    }

    fn clear(&self, opened: &mut Opened) -> Result<(), Failure> {
        fs::remove_dir_all(&opened.root).on("remove", &opened.root)
    }
}

/// What recovery can't avoid if nothing is there: the files, and one sync of the file system.
fn create_all(root: &PathBuf) -> Result<(), Failure> {
    let content = [7; FILE_BYTES];
    for commit in 0..VICTIM_COMMITS {
        let (dir, prefix) = victims_path(commit);
        for file in 0..VICTIM_FILES_EACH {
            let path = root.join(&dir).join(format!("{prefix}{file}"));
            fs::write(&path, content).on("write", path)?;
        }
    }
    let handle = fs::File::open(root).on("open", root)?;
    syncfs(handle).on("sync the file system of", root)
}
