//! Kills writers at random instants, one after the other on one tree that is never cleaned, and now and then checks it.
//!
//! Some are killed while they open the store, which recovers it, some while they make one, most while they commit.
//! What the seed decides is what they do and when they shall be killed; how far they get by then is the machine's part.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use atomtree::ErrorKind;
use serde::Serialize;
use signal_hook::consts::SIGKILL;

use crate::answer::{Failure, complain};
use crate::progress::Progress;
use crate::text::counted;
use crate::torture::check::{Checker, Standing, Stop, check_beside};
use crate::torture::place::Place;
use crate::torture::workload::{Random, WORKERS, Workload};
use crate::torture::writer::How;

/// A writer that has not opened the store by then is waited for no longer.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often what a writer does is looked at.
const LISTENING: Duration = Duration::from_micros(500);
/// How long writers commit at most.
const COMMITTING_MAX_US: u64 = 300_000;
/// So many kills follow upon each other at most without a look at what is left.
const UNCHECKED_MAX: u32 = 4;
/// How often a line says how far it is where nobody watches.
const TOLD: Duration = Duration::from_mins(1);
/// How much longer it takes where nothing was acknowledged yet, because then nothing would be shown.
const GRACE: Duration = Duration::from_secs(30);
/// What random numbers are for, besides the workers.
const KILLS: u64 = 1 << 32;

/// What was done so far.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Figures {
    pub(super) rounds: u64,
    pub(super) kills: u64,
    /// Kills of writers that did not have the store open yet: most of them were recovering it.
    pub(super) kills_opening: u64,
    /// Kills of writers that were making a store.
    pub(super) kills_creating: u64,
    pub(super) acknowledged: u64,
}

/// When a writer is killed.
#[derive(Clone, Copy, Debug)]
enum After {
    Start(Duration),
    /// The first name of a store that is being made.
    FirstName(Duration),
    Opening(Duration),
}

/// What a writer had said.
#[derive(Default)]
struct Said {
    acknowledged: Standing,
    count: u64,
    is_open: bool,
    stop: Option<Stop>,
}

pub(super) struct Rounds<'a> {
    pub(super) place: &'a mut Place,
    pub(super) figures: Figures,
    pub(super) checker: Checker,
    /// Set when it shall end.
    pub(super) stop: Arc<AtomicBool>,
    /// How long writers take to open the store, so that kills meet that on slow disks and on fast ones.
    opening: Duration,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(place: &'a mut Place, stop: Arc<AtomicBool>) -> Self {
        let checker = Checker::new(place.workload, place.compares_modes);
        Self { place, figures: Figures::default(), checker, stop, opening: Duration::from_millis(20) }
    }

    /// Goes on for this long, or until it shall end, or until a promise is broken.
    pub(super) fn run(&mut self, time: Duration, progress: &Progress, is_told: bool) -> Result<(), Stop> {
        let started = Instant::now();
        let mut told = started;
        let mut acknowledged = Standing::default();
        let mut unchecked = 0;
        let is_over = |figures: &Figures| {
            let most = if figures.acknowledged > 0 { time } else { time + GRACE };
            started.elapsed() >= most
        };
        while !is_over(&self.figures) && !self.stop.load(Ordering::Relaxed) {
            self.figures.rounds += 1;
            let mut random = Random::new(self.place.workload.seed, KILLS, self.figures.rounds);
            if self.figures.rounds % 8 == 1 {
                self.kill_creating(&mut random)?;
            }
            let tree = self.place.tree();
            let said = self.kill_one(&tree, &mut random, None)?;
            acknowledged.raise(&said);
            unchecked += 1;
            if unchecked == UNCHECKED_MAX || random.below(3) > 0 {
                acknowledged = self.check(&tree, &acknowledged)?;
                unchecked = 0;
            }
            let left = time.saturating_sub(started.elapsed()).as_secs();
            let Figures { rounds, kills, .. } = self.figures;
            let commits = self.checker.last_tx;
            progress.say(format!("{kills} kills, {commits} commits, {left} s left"));
            if is_told && told.elapsed() >= TOLD {
                told = Instant::now();
                complain(&format!(
                    "{}, {kills} kills, {commits} commits, {left} s left",
                    counted(rounds, "round")
                ));
            }
        }
        self.check(&self.place.tree(), &acknowledged)?;
        Ok(())
    }

    fn check(&mut self, tree: &Path, acknowledged: &Standing) -> Result<Standing, Stop> {
        let standing = caught(|| self.checker.check(tree, acknowledged))?;
        self.place.say_checked(&format!("check {} is fine", self.checker.checks), &standing)?;
        Ok(standing)
    }

    /// Makes a tree, kills a few that would make a store in it, and checks what is left.
    fn kill_creating(&mut self, random: &mut Random) -> Result<(), Stop> {
        let mut checker = Checker::new(self.place.workload, self.place.compares_modes);
        let new = self.place.make_tree()?;
        let mut acknowledged = Standing::default();
        for _ in 0..=random.below(3) {
            let after = Duration::from_micros(random.below(40_000));
            acknowledged.raise(&self.kill_one(&new, random, Some(After::FirstName(after)))?);
        }
        caught(|| checker.check(&new, &acknowledged))?;
        if new.join(".atomtree.new").exists() {
            return Err(Stop::Broken("new/.atomtree.new is left of a store that was made".to_owned()));
        }
        self.place.remove_tree(&new)?;
        Ok(())
    }

    fn instant(&self, random: &mut Random) -> After {
        if random.below(3) == 0 {
            let most = self.opening.as_micros() as u64;
            return After::Start(Duration::from_micros(random.below(most.max(1000))));
        }
        // Short ones are as frequent as long ones.
        let most = COMMITTING_MAX_US >> random.below(8);
        After::Opening(Duration::from_micros(random.below(most)))
    }

    /// Starts a writer, kills it, and returns what it had acknowledged.
    fn kill_one(&mut self, tree: &Path, random: &mut Random, kill: Option<After>) -> Result<Standing, Stop> {
        let kill = kill.unwrap_or_else(|| self.instant(random));
        let first = random.below(WORKERS);
        let Workload { seed, moves_dirs } = self.place.workload;
        let how = How {
            seed,
            workers: (0..=random.below(WORKERS)).map(|index| (first + index * 3) % WORKERS).collect(),
            settle_after_ms: [1, 5, 20, 1000][random.below(4) as usize],
            keeps_dirs: !moves_dirs,
            ignores_modes: !self.place.compares_modes,
        };
        let is_looked_at = random.below(8) == 0;
        let mut writer = Writer::start(tree, &how)?;
        let started = Instant::now();
        let mut said = Said::default();
        let until = match kill {
            After::Start(after) => {
                thread::sleep(after);
                Ok(())
            }
            After::FirstName(after) => {
                let has_begun = || tree.join(".atomtree.new").exists() || tree.join(".atomtree").exists();
                let begun = writer.listen(&mut said, &self.stop, |_| has_begun());
                thread::sleep(after);
                begun
            }
            After::Opening(after) => {
                let opened = writer.listen(&mut said, &self.stop, |said| said.is_open);
                self.opening = started.elapsed();
                thread::sleep(after);
                let looked =
                    if is_looked_at && said.is_open { check_beside(tree, writer.child.id()) } else { Ok(()) };
                // One that has ended has the store open no more, and is asked below why.
                opened.and(if writer.has_ended() { Ok(()) } else { looked })
            }
        };
        let status = writer.kill(&mut said)?;
        self.figures.kills += 1;
        self.figures.kills_creating += u64::from(matches!(kill, After::FirstName(_)));
        self.figures.kills_opening += u64::from(!said.is_open && matches!(kill, After::Start(_)));
        self.figures.acknowledged += said.count;
        let (round, name) = (self.figures.rounds, tree.file_name().unwrap_or_default().display());
        let How { workers, settle_after_ms, .. } = how;
        let what = format!(
            "round {round} in {name}: workers {workers:?}, settle after {settle_after_ms} ms, killed after {kill:?}, opened {}",
            said.is_open
        );
        if tree == self.place.tree() {
            self.place.say_acknowledged(&what, &said.acknowledged)?;
        } else {
            self.place.say(&what)?;
        }
        // Why it has ended tells more than that it has.
        if let Some(stop) = said.stop {
            return Err(stop);
        }
        until?;
        if status.signal() != Some(SIGKILL) {
            return Err(Stop::Broken(format!(
                "a writer ended by itself, with {status}, and did not say why"
            )));
        }
        Ok(said.acknowledged)
    }
}

/// A check that panics is one that fails.
fn caught<T: Send>(check: impl FnOnce() -> Result<T, Stop> + Send) -> Result<T, Stop> {
    let panicked = |_| Stop::Broken("recovery or a check panicked; its message stands above".to_owned());
    thread::scope(|scope| scope.spawn(check).join().map_err(panicked))?
}

/// A process that commits until it is killed.
struct Writer {
    child: Child,
    lines: Receiver<String>,
}

impl Writer {
    fn start(tree: &Path, how: &How) -> Result<Self, Failure> {
        // The program that is running, even if another was put in its place.
        let mut command = Command::new("/proc/self/exe");
        command.arg("--root").arg(tree).args(how.words());
        // Ctrl-C is for the command, which then kills the writer as always.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Failure::of_io("start a writer", &error))?;
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (sender, lines) = channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines })
    }

    /// Listens until something is so, or the writer has ended, or everything shall.
    fn listen(&self, said: &mut Said, stop: &AtomicBool, is_so: impl Fn(&Said) -> bool) -> Result<(), Stop> {
        let started = Instant::now();
        while !is_so(said) && !stop.load(Ordering::Relaxed) {
            match self.lines.recv_timeout(LISTENING) {
                Ok(line) => said.take(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if started.elapsed() < PATIENCE => {}
                Err(RecvTimeoutError::Timeout) => {
                    // No promise says how long it takes, and the disk may be the slow one.
                    let message =
                        format!("a writer has not opened the store within {} s", PATIENCE.as_secs());
                    return Err(Stop::Failed(Failure::new(ErrorKind::Io, message)));
                }
            }
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, unless it has ended by itself.
    fn kill(mut self, said: &mut Said) -> Result<ExitStatus, Failure> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        let status = killed.map_err(|error| Failure::of_io("kill a writer", &error))?;
        // The pipe keeps what was said, and ends with the writer.
        self.lines.iter().for_each(|line| said.take(&line));
        Ok(status)
    }
}

impl Said {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        match words[0] {
            "opened" => self.is_open = true,
            "ack" => {
                if let Some(last) = self.acknowledged.workers.get_mut(number(1) as usize) {
                    *last = number(2);
                    self.count += 1;
                }
            }
            "shared" => {
                self.acknowledged.shared = self.acknowledged.shared.max(number(1));
                self.count += 1;
            }
            _ if self.stop.is_none() => self.stop = Stop::of_line(line),
            _ => {}
        }
    }
}
