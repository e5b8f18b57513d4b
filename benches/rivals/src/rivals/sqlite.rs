//! SQLite, the files as rows. Threads share one connection by turns, which is faster than a connection for each; every
//! process has its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Upkeep, Writer, locked_version};

/// How long a process waits for others.
const BUSY_TIMEOUT: Duration = Duration::from_mins(1);
/// Otherwise a commit of several MiB would checkpoint itself, and atomtree's would not.
const NO_CHECKPOINTS: u32 = 0;

/// See the file's head.
pub(super) struct Sqlite {
    name: &'static str,
    journal: &'static str,
    synchronous: &'static str,
    setting: &'static str,
}

impl Sqlite {
    pub(super) const WAL: Self = Self {
        name: "sqlite-wal",
        journal: "WAL",
        synchronous: "FULL",
        setting: "journal_mode=WAL, synchronous=FULL: fsync of the log at each commit",
    };
    pub(super) const DELETE: Self = Self {
        name: "sqlite-delete",
        journal: "DELETE",
        synchronous: "FULL",
        setting: "journal_mode=DELETE, synchronous=FULL: a power cut may undo the last commit",
    };
    pub(super) const DELETE_EXTRA: Self = Self {
        name: "sqlite-delete-extra",
        journal: "DELETE",
        synchronous: "EXTRA",
        setting: "journal_mode=DELETE, synchronous=EXTRA: as durable as the others",
    };
}

impl Rival for Sqlite {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> String {
        format!("{} (rusqlite {})", rusqlite::version(), locked_version("rusqlite"))
    }

    fn setting(&self) -> &'static str {
        self.setting
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        let path = dir.join("files.sqlite");
        let connection = self.connect(&path, opening).on("open", &path)?;
        let is_wal = self.journal == "WAL";
        Ok(Box::new(Open { path, is_wal, connection: Mutex::new(connection) }))
    }
}

impl Sqlite {
    fn connect(&self, path: &Path, opening: Opening) -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Of several processes that open a new database at once, all but one may have to wait.
        connection.pragma_update(None, "journal_mode", self.journal)?;
        connection.pragma_update(None, "synchronous", self.synchronous)?;
        if opening.upkeep == Upkeep::BetweenSamples {
            connection.pragma_update(None, "wal_autocheckpoint", NO_CHECKPOINTS)?;
        }
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT;",
        )?;
        Ok(connection)
    }
}

struct Open {
    path: PathBuf,
    is_wal: bool,
    connection: Mutex<Connection>,
}

impl Open {
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Failure> {
        let mut connection = self.connection();
        // Immediate: a transaction that reads first could not become a writer once somebody else has written.
        let done = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|tx| {
            let value = change(&tx)?;
            tx.commit()?;
            Ok(value)
        });
        done.on("commit to", &self.path)
    }
}

fn write(tx: &Transaction<'_>, path: &str, content: &[u8]) -> rusqlite::Result<()> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO files VALUES (?1, ?2) ON CONFLICT (path) DO UPDATE SET content = excluded.content",
    )?;
    statement.execute(params![path, content]).map(drop)
}

fn read(connection: &Connection, path: &str) -> rusqlite::Result<Vec<u8>> {
    connection
        .prepare_cached("SELECT content FROM files WHERE path = ?1")?
        .query_row([path], |row| row.get(0))
}

impl Writer for Open {
    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        self.transact(|tx| batch.files().try_for_each(|file| write(tx, file.path, file.content)))
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.connection(), path).on("read from", &self.path)
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.transact(|tx| {
            let row: i64 =
                tx.query_row("SELECT rowid FROM files WHERE path = ?1", [path], |row| row.get(0))?;
            let mut blob = tx.blob_open("main", "files", "content", row, false)?;
            blob.write_all_at(bytes, offset)?;
            blob.flush().expect("there is no buffer");
            Ok(())
        })
    }

    fn count(&self, counter: &str, batch: &Batch) -> Result<(), Failure> {
        self.transact(|tx| {
            let text = read(tx, counter)?;
            let number: u64 = String::from_utf8_lossy(&text).parse().unwrap_or_default();
            write(tx, counter, (number + 1).to_string().as_bytes())?;
            batch.files().try_for_each(|file| write(tx, file.path, file.content))
        })
    }

    fn tidy(&self) -> Result<(), Failure> {
        if self.is_wal {
            // Not TRUNCATE: a log that keeps its length is faster the next time.
            let row = self.connection().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            row.on("checkpoint", &self.path)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let connection = self.connection.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, error)| error).on("close", self.path)
    }
}
