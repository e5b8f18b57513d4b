//! The process that is tortured: some workers commit, each on a thread of its own, as fast as they can.
//!
//! It says a line for each thing that it acknowledges, after it was acknowledged, in one write, so that no line is torn.
//! It ends when nobody listens, so it doesn't outlive the command.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process;

use atomtree::{Durability, Error, ErrorKind, Store, Ticket, Transaction};
use clap::Args;

use crate::answer::Failure;
use crate::arguments::Common;
use crate::torture::check::{SHARED, Stop, check_report, check_worker, label, options};
use crate::torture::workload::{IN_FLIGHT_MAX, Op, Workload, submits};

/// What a writer does.
#[derive(Args)]
pub(crate) struct How {
    #[arg(long)]
    pub(super) seed: u64,
    #[arg(long, value_delimiter = ',')]
    pub(super) workers: Vec<u64>,
    #[arg(long)]
    pub(super) settle_after_ms: u64,
    #[arg(long)]
    pub(super) keeps_dirs: bool,
    #[arg(long)]
    pub(super) ignores_modes: bool,
}

impl How {
    /// The words of its command line.
    pub(super) fn words(&self) -> Vec<String> {
        let workers: Vec<String> = self.workers.iter().map(u64::to_string).collect();
        let mut words = vec![
            "torture-writer".to_owned(),
            format!("--seed={}", self.seed),
            format!("--workers={}", workers.join(",")),
            format!("--settle-after-ms={}", self.settle_after_ms),
        ];
        let flags = [(self.keeps_dirs, "--keeps-dirs"), (self.ignores_modes, "--ignores-modes")];
        words.extend(flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag.to_owned()));
        words
    }

    fn work(&self, root: &Path) -> Result<(), Stop> {
        let workload = Workload { seed: self.seed, moves_dirs: !self.keeps_dirs };
        let store = options(self.settle_after_ms).open(root)?;
        check_report(store.recovery())?;
        let mut begun = Vec::new();
        for worker in &self.workers {
            begun.push((*worker, check_worker(root, workload, *worker, !self.ignores_modes)?));
        }
        say("opened")?;
        std::thread::scope(|scope| {
            for (worker, last) in begun {
                let store = &store;
                scope.spawn(move || {
                    let thread = Worker { store, workload, number: worker };
                    let ended = if submits(worker) { thread.submit(last) } else { thread.commit(last) };
                    // One that can't go on ends them all, in the middle of what they do.
                    ended.unwrap_or_else(|stop| give_up(&stop));
                });
            }
        });
        Ok(())
    }
}

/// Runs the hidden command `atomtree torture-writer`.
pub(crate) fn write(common: &Common, how: &How) -> u8 {
    // Of a thread that panics the others would know nothing.
    panic::set_hook(Box::new(|panic| give_up(&Stop::Broken(format!("a writer has panicked: {panic}")))));
    how.work(&common.root).unwrap_or_else(|stop| give_up(&stop));
    0
}

fn give_up(stop: &Stop) -> ! {
    let _ = say(&stop.line());
    process::exit(1)
}

/// Says a line, and ends the process if nobody listens.
fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        result => result.map_err(|error| Failure::of_io("say what was done", &error)),
    }
}

struct Worker<'a> {
    store: &'a Store,
    workload: Workload,
    number: u64,
}

impl Worker<'_> {
    /// Commits one transaction after the other.
    fn commit(self, last: u64) -> Result<(), Stop> {
        let mut nodes = self.workload.state(self.number, last);
        for n in last + 1.. {
            let ops = self.workload.step(self.number, n, &mut nodes);
            let mut transaction = self.prepare(n, &ops)?;
            if n % 16 == 5 {
                transaction.set_durability(Durability::Settled);
            }
            transaction.commit()?;
            say(&format!("ack {} {n}", self.number))?;
            if n % 5 == 0 {
                match self.store.transact(count_up) {
                    Ok((count, _)) => say(&format!("shared {count}"))?,
                    // It gives up when the others are faster each time.
                    Err(error) if error.kind() == ErrorKind::Conflict => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if n % 23 == 0 {
                self.store.checkpoint()?;
            }
        }
        Ok(())
    }

    /// Submits one transaction after the other, and waits only for those that touched the same names.
    fn submit(self, last: u64) -> Result<(), Stop> {
        let mut nodes = self.workload.state(self.number, last);
        let mut in_flight: VecDeque<(u64, Ticket)> = VecDeque::new();
        for n in last + 1.. {
            let ops = self.workload.step(self.number, n, &mut nodes);
            in_flight.push_back((n, self.prepare(n, &ops)?.submit()?));
            // The first one makes the directory of the others.
            while in_flight.len() > if n == 1 { 0 } else { IN_FLIGHT_MAX }
                && let Some((n, ticket)) = in_flight.pop_front()
            {
                ticket.durable()?;
                say(&format!("ack {} {n}", self.number))?;
                ticket.applied()?;
            }
        }
        Ok(())
    }

    fn prepare(&self, n: u64, ops: &[Op]) -> Result<Transaction, Error> {
        let mut transaction = self.store.begin()?;
        transaction.set_label(label(self.number, n));
        ops.iter().try_for_each(|op| op.run(&mut transaction))?;
        Ok(transaction)
    }
}

/// Adds one to the file that all workers change; conflicts are repeated.
fn count_up(transaction: &mut Transaction) -> Result<u64, Error> {
    transaction.set_label(SHARED);
    let old = if transaction.exists(SHARED)? { transaction.read(SHARED)? } else { b"0".to_vec() };
    // Something else is no count, and that is for the checks to say.
    let count = str::from_utf8(&old).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
    transaction.write(SHARED, count.to_string())?;
    Ok(count)
}
