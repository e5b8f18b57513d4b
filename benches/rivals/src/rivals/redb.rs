//! The database `redb`, the files as values.

use std::path::{Path, PathBuf};

use ::redb::{
    ConcurrencyMode, Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use crate::batch::Batch;
use crate::failure::{Failure, On};
use crate::rivals::{Opening, Rival, Writer, locked_version, rewrite};

const FILES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("files");

/// See the file's head.
pub(super) struct Redb;

impl Rival for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn version(&self) -> String {
        locked_version("redb")
    }

    fn setting(&self) -> &'static str {
        "Durability::Immediate: fdatasync at each commit; several processes with ConcurrencyMode::MultiWriter"
    }

    fn open(&self, dir: &Path, opening: Opening) -> Result<Box<dyn Writer>, Failure> {
        let path = dir.join("files.redb");
        let mut builder = Database::builder();
        if opening.is_shared {
            builder.set_concurrency_mode(ConcurrencyMode::MultiWriter);
        }
        let database = builder.create(&path).on("open", &path)?;
        Ok(Box::new(Open { path, database }))
    }
}

struct Open {
    path: PathBuf,
    database: Database,
}

impl Open {
    fn transact(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), ::redb::Error>,
    ) -> Result<(), Failure> {
        let commit = || {
            let mut tx = self.database.begin_write()?;
            tx.set_durability(Durability::Immediate)?;
            change(&tx)?;
            tx.commit()?;
            Ok(())
        };
        commit().map_err(|error: ::redb::Error| error).on("commit to", &self.path)
    }
}

fn write(tx: &WriteTransaction, batch: &Batch) -> Result<(), ::redb::Error> {
    let mut table = tx.open_table(FILES)?;
    for file in batch.files() {
        table.insert(file.path, file.content)?;
    }
    Ok(())
}

impl Writer for Open {
    fn put(&self, batch: &Batch) -> Result<(), Failure> {
        self.transact(|tx| write(tx, batch))
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let read = || {
            let table = self.database.begin_read()?.open_table(FILES)?;
            Ok(table.get(path)?.map(|content| content.value().to_owned()))
        };
        let content = read().map_err(|error: ::redb::Error| error).on("read from", &self.path)?;
        content.ok_or_else(|| Failure::new("find", path, "there is no such key"))
    }

    fn patch(&self, path: &str, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        rewrite(self, path, offset, bytes)
    }

    fn count(&self, counter: &str, batch: &Batch) -> Result<(), Failure> {
        self.transact(|tx| {
            {
                let mut table = tx.open_table(FILES)?;
                let text = table.get(counter)?.map(|content| content.value().to_owned()).unwrap_or_default();
                let number: u64 = String::from_utf8_lossy(&text).parse().unwrap_or_default();
                table.insert(counter, (number + 1).to_string().as_bytes())?;
            }
            write(tx, batch)
        })
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.database.close().on("close", self.path)
    }
}
