//! The files that the demo changes together: for each version exactly one state, byte for byte.
//!
//! A config, a schema and the last few migrations. Every line carries the version, so that a file torn in the middle
//! is as visible as one of another version.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use atomtree::{Error, Transaction};

/// How many migrations are kept; an older one is removed in the transaction that adds the newest.
const MIGRATIONS: u64 = 3;

pub(super) type Version = u64;

fn config(version: Version) -> String {
    format!("{{\"version\": {version},\n \"schema\": \"schema.sql of version {version}\"}}\n")
}

fn schema(version: Version) -> String {
    format!("alter table t add c integer; -- version {version}\n").repeat(200)
}

fn migration(version: Version) -> String {
    format!("update t set c = {version}; -- version {version}\n").repeat(20)
}

fn migration_name(version: Version) -> String {
    format!("migrations/{version:06}.sql")
}

/// Brings the set from the version before to this one, which is at least 1.
pub(super) fn write(transaction: &mut Transaction, version: Version) -> Result<(), Error> {
    transaction.set_label(format!("version {version}"));
    transaction.write("config.json", config(version))?;
    transaction.write("schema.sql", schema(version))?;
    transaction.write(migration_name(version), migration(version))?;
    if version > MIGRATIONS {
        transaction.remove(migration_name(version - MIGRATIONS))?;
    }
    Ok(())
}

/// The version that all files of the set at `root` carry; `None` if they don't agree.
pub(super) fn version(root: &Path) -> io::Result<Option<Version>> {
    let Ok(found) = fs::read_to_string(root.join("config.json")) else { return Ok(None) };
    let digits = found.strip_prefix("{\"version\": ").and_then(|rest| rest.split(',').next());
    let Some(version) = digits.and_then(|digits| digits.parse().ok()) else { return Ok(None) };
    let mut expected = BTreeMap::from([
        ("config.json".to_owned(), config(version)),
        ("schema.sql".to_owned(), schema(version)),
    ]);
    for past in version.saturating_sub(MIGRATIONS - 1).max(1)..=version {
        expected.insert(migration_name(past), migration(past));
    }
    let mut found = BTreeMap::new();
    for (prefix, dir) in [("", root.to_owned()), ("migrations/", root.join("migrations"))] {
        for file in fs::read_dir(dir)? {
            let file = file?;
            if file.file_type()?.is_file() {
                let content = String::from_utf8_lossy(&fs::read(file.path())?).into_owned();
                found.insert(format!("{prefix}{}", file.file_name().to_string_lossy()), content);
            }
        }
    }
    Ok((found == expected).then_some(version))
}
