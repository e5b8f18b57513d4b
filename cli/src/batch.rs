//! Reads a transaction a line, and answers each with a line as soon as it is durable and applied.
//!
//! Nothing is held back: neither does an answer wait for more input, nor input for more answers than there are jobs. So
//! at most one line a job, and one that has just been read, are in memory.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use atomtree::{ErrorKind, Store};

use crate::answer::{Asked, Done, Failure, answer, exit_status, tell, untold};
use crate::apply::{Turns, carry_out_line, close};
use crate::arguments::{Common, Policies};
use crate::lines::{Line, Lines};
use crate::progress::Progress;
use crate::store_flags::StoreFlags;

/// Runs `atomtree batch`.
pub(crate) fn batch(
    common: &Common,
    flags: &StoreFlags,
    policies: Policies,
    jobs: u16,
    line_bytes_max: NonZeroU64,
) -> Result<u8, Failure> {
    // Answers on the same terminal are all the progress that one wants to see, and whoever types needs the line.
    let is_hidden = io::stdout().is_terminal() || io::stdin().is_terminal();
    let progress = Progress::unless(is_hidden, "opening the store");
    let store = flags.open(common)?;
    let batch = Batch {
        store: &store,
        turns: Turns::default(),
        policies,
        line_bytes_max: line_bytes_max.get(),
        reader_left: AtomicBool::new(false),
        status: AtomicU8::new(0),
        write_error: Mutex::new(None),
        answered: AtomicU64::new(0),
        progress,
    };
    let read = if jobs == 1 { batch.in_order() } else { batch.concurrently(jobs) };
    let Batch { status, write_error, progress, .. } = batch;
    drop(progress);
    close(store);
    read?;
    let status = status.into_inner();
    Ok(match write_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // Not as an answer: those can't be written.
        Some(failure) => {
            tell(&failure);
            status.max(exit_status(failure.kind))
        }
        None => status,
    })
}

struct Batch<'a> {
    store: &'a Store,
    turns: Turns,
    policies: Policies,
    line_bytes_max: u64,
    /// Nobody reads the answers any more, so nothing more is asked.
    reader_left: AtomicBool,
    /// The highest exit status of all answers.
    status: AtomicU8,
    /// That an answer could not be written, unless its reader had just left.
    write_error: Mutex<Option<Failure>>,
    /// For the progress line alone.
    answered: AtomicU64,
    progress: Progress,
}

/// A line to be answered, and its number.
type Job = (u64, Vec<u8>);

impl Batch<'_> {
    fn in_order(&self) -> Result<(), Failure> {
        self.read(|(number, line)| self.carry_out(number, &line))
    }

    fn concurrently(&self, jobs: u16) -> Result<(), Failure> {
        thread::scope(|scope| {
            // Without a buffer: a line is handed over when a job is free to take it.
            let (sender, receiver) = sync_channel(0);
            let receiver = Arc::new(Mutex::new(receiver));
            for _ in 0..jobs {
                let receiver = receiver.clone();
                let work = move || {
                    while let Some((number, line)) = next(&receiver) {
                        self.carry_out(number, &line);
                    }
                };
                thread::Builder::new()
                    .spawn_scoped(scope, work)
                    .map_err(|error| Failure::of_io(&format!("start {jobs} threads"), &error))?;
            }
            // From here on only the jobs can receive: were they all to panic, sending would end, not wait for ever.
            drop(receiver);
            let read = self.read(|job| {
                if sender.send(job).is_err() {
                    self.reader_left.store(true, Ordering::Relaxed);
                }
            });
            // Tells the jobs that nothing more comes.
            drop(sender);
            read
        })
    }

    /// Reads to the end, or until nobody listens, and hands on every line that says something.
    fn read(&self, mut hand_on: impl FnMut(Job)) -> Result<(), Failure> {
        let mut lines = Lines::new(io::stdin().lock(), self.line_bytes_max);
        let mut number = 0;
        while !self.reader_left.load(Ordering::Relaxed) {
            let line = lines.next_line().map_err(|error| Failure::of_io("read standard input", &error))?;
            number += 1;
            match line {
                None => break,
                Some(Line::Whole(line)) if line.trim_ascii().is_empty() => {}
                Some(Line::Whole(line)) => hand_on((number, line)),
                Some(Line::TooLong) => {
                    let message = format!(
                        "the line is longer than {} bytes; raise --max-line-bytes, or give large contents as \"file\"",
                        self.line_bytes_max
                    );
                    let failure = Failure::new(ErrorKind::InvalidInput, message);
                    self.answer(&Asked::Line(number), &Err(failure));
                }
            }
        }
        Ok(())
    }

    fn carry_out(&self, number: u64, line: &[u8]) {
        let (asked, result) = carry_out_line(self.store, &self.turns, self.policies, number, line);
        self.answer(&asked, &result);
    }

    fn answer(&self, asked: &Asked, result: &Result<Done, Failure>) {
        let (mut line, status) = answer(asked, result);
        line.push('\n');
        self.status.fetch_max(status, Ordering::Relaxed);
        let answered = self.answered.fetch_add(1, Ordering::Relaxed) + 1;
        self.progress.say(format_args!("{answered} transactions answered"));
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            drop(out);
            self.reader_left.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe {
                let failure = Failure::of_io("write an answer", &error);
                let failure = if result.is_ok() { untold(&failure.message) } else { failure };
                *self.write_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            }
        }
    }
}

/// The next line; the lock is given up before the line is worked on.
fn next(receiver: &Mutex<Receiver<Job>>) -> Option<Job> {
    receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
