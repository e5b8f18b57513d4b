//! Carries out one document on a store; `apply` does it once, `batch` for every line.
//!
//! A transaction that met another one is tried again, so that blind writes never fail by an accident of timing. What an
//! `expect` did not find will not come back by trying, and ends it at once.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use atomtree::{Error, ErrorKind, Expectation, Receipt, Store, Transaction};

use crate::answer::{self, Asked, Done, Failure, answer, complain, exit_status, print_done, print_refusal};
use crate::arguments::{Common, Durability, HardLinks, Policies, Symlinks};
use crate::document::{Content, Document, Expected, Op};
use crate::progress::Progress;
use crate::store_flags::StoreFlags;
use crate::text::{counted, printable, span_of_ms};

/// Runs `atomtree apply`.
pub(crate) fn apply(
    common: &Common,
    flags: &StoreFlags,
    policies: Policies,
    file: &Path,
) -> Result<u8, Failure> {
    // Whoever types the document needs the line.
    let is_typed = file == Path::new("-") && io::stdin().is_terminal();
    let progress = Progress::unless(is_typed, "reading the document");
    let text = read_document(file)?;
    let mut asked = Asked::Line(1);
    // The document is read before the store is opened: one that can't be read makes no store.
    let opened = Document::parse(&text).and_then(|mut document| {
        asked = document.id.take().map_or(Asked::Line(1), Asked::Id);
        progress.say("opening the store");
        Ok((document, flags.open(common)?))
    });
    drop(text);
    let (result, store) = match opened {
        Ok((document, store)) => {
            progress.say("carrying out the transaction");
            (carry_out(&store, &Turns::default(), &document, policies, asked.clone()), Some(store))
        }
        Err(failure) => (Err(failure), None),
    };
    drop(progress);
    let status = if common.json {
        let (line, status) = answer(&asked, &result);
        match &result {
            Ok(_) => print_done(&line)?,
            Err(failure) => print_refusal(&line, failure),
        }
        status
    } else {
        tell(&result)?
    };
    if let Some(store) = store {
        close(store);
    }
    Ok(status)
}

fn read_document(file: &Path) -> Result<Vec<u8>, Failure> {
    let (read, name) = if file == Path::new("-") {
        let mut text = Vec::new();
        (io::stdin().lock().read_to_end(&mut text).map(|_| text), "standard input".to_owned())
    } else {
        (fs::read(file), file.display().to_string())
    };
    read.map_err(|error| {
        let failure = Failure::of_io(&format!("read the document {name}"), &error);
        match error.kind() {
            io::ErrorKind::NotFound => {
                Failure { message: failure.message + "; `-` stands for standard input", ..failure }
            }
            _ => failure,
        }
    })
}

pub(crate) fn tell(result: &Result<Done, Failure>) -> Result<u8, Failure> {
    let done = match result {
        Ok(done) => done,
        Err(failure) => {
            answer::tell(failure);
            return Ok(exit_status(failure.kind));
        }
    };
    let mut lines = vec![match done.files {
        0 => "nothing to change".to_owned(),
        files => {
            let (files, took) = (counted(files as u64, "name"), span_of_ms(done.ms));
            format!("transaction {}: {files} changed in {took}", done.tx)
        }
    }];
    lines.extend(done.lost.iter().map(|path| {
        let path = printable(&path.0.to_string_lossy());
        format!("{path}: another program took away what was to be moved there, and it has got nothing")
    }));
    lines.extend(done.displaced.iter().map(|displaced| {
        let path = printable(&displaced.path.0.to_string_lossy());
        let kept = printable(&displaced.kept);
        format!("{path}: another program's edit gave way, and is kept in .atomtree/{kept}")
    }));
    print_done(&lines.join("\n")).map(|()| 0)
}

/// Carries out `document` and answers when it is durable and applied, or settled if it asks for that.
pub(crate) fn carry_out(
    store: &Store,
    turns: &Turns,
    document: &Document,
    policies: Policies,
    asked: Asked,
) -> Result<Done, Failure> {
    let started = Instant::now();
    let receipt = transact(store, turns, document, policies)?;
    Ok(Done::new(Some(asked), &receipt, started.elapsed()))
}

/// Carries out the document on a line, and says which one it was.
pub(crate) fn carry_out_line(
    store: &Store,
    turns: &Turns,
    policies: Policies,
    number: u64,
    line: &[u8],
) -> (Asked, Result<Done, Failure>) {
    let mut asked = Asked::Line(number);
    let result = Document::parse(line).and_then(|mut document| {
        asked = document.id.take().map_or(Asked::Line(number), Asked::Id);
        carry_out(store, turns, &document, policies, asked.clone())
    });
    (asked, result)
}

/// How long a transaction that keeps meeting others is tried.
const RETRY_TIME: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The line in which transactions of this process wait that met another one. Tried again all at once they would meet
/// each other: of many that append to one file only one can win at a time, and the rest would run out of attempts. So
/// the first attempt is free, and repeated ones take turns.
#[derive(Default)]
pub(crate) struct Turns(Mutex<()>);

/// Why an attempt ended.
enum Stop {
    /// Something has changed meanwhile; another attempt sees it as it is.
    Met(Failure),
    /// Another attempt would end in the same way.
    Final(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Final(failure)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Conflict => Self::Met(error.into()),
            _ => Self::Final(error.into()),
        }
    }
}

/// Commits, trying again for as long as it only meets others.
fn transact(
    store: &Store,
    turns: &Turns,
    document: &Document,
    policies: Policies,
) -> Result<Receipt, Failure> {
    match attempt(store, document, policies) {
        Ok(receipt) => return Ok(receipt),
        Err(Stop::Final(failure)) => return Err(failure),
        Err(Stop::Met(_)) => {}
    }
    let _turn = turns.0.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        match attempt(store, document, policies) {
            Ok(receipt) => return Ok(receipt),
            Err(Stop::Met(_)) if started.elapsed() < RETRY_TIME => {}
            Err(Stop::Met(failure) | Stop::Final(failure)) => return Err(failure),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn attempt(store: &Store, document: &Document, policies: Policies) -> Result<Receipt, Stop> {
    let mut transaction = store.begin()?;
    prepare(&mut transaction, document, policies);
    for op in &document.ops {
        act(&mut transaction, op)?;
    }
    Ok(transaction.commit()?)
}

fn prepare(transaction: &mut Transaction, document: &Document, policies: Policies) {
    if let Some(label) = &document.label {
        transaction.set_label(label);
    }
    if let Some(agent) = &document.agent {
        transaction.set_agent(agent);
    }
    transaction.set_symlinks(match document.symlinks.unwrap_or(policies.symlinks) {
        Symlinks::Refuse => atomtree::Symlinks::Refuse,
        Symlinks::Follow => atomtree::Symlinks::Follow,
        Symlinks::Replace => atomtree::Symlinks::Replace,
    });
    transaction.set_durability(match document.durability.unwrap_or(policies.durability) {
        Durability::Synced => atomtree::Durability::Synced,
        Durability::Settled => atomtree::Durability::Settled,
    });
    transaction.set_hard_links(match document.hard_links.unwrap_or(policies.hard_links) {
        HardLinks::Refuse => atomtree::HardLinks::Refuse,
        HardLinks::Break => atomtree::HardLinks::Break,
    });
}

fn act(transaction: &mut Transaction, op: &Op) -> Result<(), Stop> {
    match op {
        Op::Write { path, content: Content::Bytes(bytes), mode: None } => {
            transaction.write(path, bytes.clone())?;
        }
        Op::Write { path, content: Content::Bytes(bytes), mode: Some(mode) } => {
            transaction.write_with_mode(path, bytes.clone(), *mode)?;
        }
        Op::Write { path, content: Content::OfFile(source), mode } => {
            let source = open_source(source).map_err(|failure| failure.about(path))?;
            transaction.write_from_with_mode(path, source, *mode)?;
        }
        Op::Append { path, content: Content::Bytes(bytes), mode } => {
            transaction.append_with_mode(path, bytes, *mode)?;
        }
        Op::Append { path, content, mode } => {
            transaction.append_with_mode(path, &content.read(path)?, *mode)?;
        }
        Op::Patch { path, offset, content: Content::Bytes(bytes) } => {
            transaction.patch(path, *offset, bytes)?;
        }
        Op::Patch { path, offset, content } => transaction.patch(path, *offset, content.read(path)?)?,
        Op::PatchInPlace { path, offset, content: Content::Bytes(bytes) } => {
            transaction.patch_in_place(path, *offset, bytes)?;
        }
        Op::PatchInPlace { path, offset, content } => {
            transaction.patch_in_place(path, *offset, content.read(path)?)?;
        }
        Op::Remove { path } => transaction.remove(path)?,
        Op::Rename { from, to } => transaction.rename(from, to)?,
        Op::Expect { path, expected } => {
            let expectation = match expected {
                Expected::Blake3(digest) => Expectation::Blake3(*digest),
                Expected::Absent => Expectation::Absent,
            };
            transaction.expect(path, expectation).map_err(|error| Stop::Final(error.into()))?;
        }
        Op::Mkdir { path, parents: true, mode } => transaction.create_dir_all_with_mode(path, *mode)?,
        Op::Mkdir { path, parents: false, mode: None } => transaction.create_dir(path)?,
        Op::Mkdir { path, parents: false, mode: Some(mode) } => {
            transaction.create_dir_with_mode(path, *mode)?;
        }
        Op::Rmdir { path, recursive: false } => transaction.remove_dir(path)?,
        Op::Rmdir { path, recursive: true } => transaction.remove_dir_all(path)?,
        Op::Symlink { path, target } => transaction.symlink(path, target)?,
        Op::Chmod { path, mode } => transaction.set_mode(path, *mode)?,
    }
    Ok(())
}

impl Content {
    /// All of it; `path` is the name that it is for.
    fn read(&self, path: &Path) -> Result<Vec<u8>, Stop> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::OfFile(source) => {
                let read = open_source(source).and_then(|mut file| {
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).map_err(|error| unreadable(source, &error))?;
                    Ok(bytes)
                });
                read.map_err(|failure| failure.about(path).into())
            }
        }
    }
}

fn unreadable(source: &Path, error: &io::Error) -> Failure {
    Failure::of_io(&format!("read the content from {}", source.display()), error)
}

fn open_source(source: &Path) -> Result<fs::File, Failure> {
    let failed = |error: io::Error| unreadable(source, &error);
    // A pipe could keep everything waiting, and a device need not end.
    if !fs::metadata(source).map_err(failed)?.is_file() {
        let message = format!("the content is to come from {}, which is no regular file", source.display());
        return Err(Failure::new(ErrorKind::InvalidInput, message));
    }
    fs::File::open(source).map_err(failed)
}

/// Closes a store whose transactions are all answered. They are durable, so a failure is only told: it leaves the next
/// open something to recover, and doesn't change what was answered.
pub(crate) fn close(store: Store) {
    if let Err(error) = store.close() {
        complain(&format!("everything answered is durable, but the store could not be closed: {error}"));
    }
}
