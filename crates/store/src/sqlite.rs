//! The store on SQLite: write-ahead log, every commit synchronised to the disk before it returns.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

use crate::{Batch, CommitError, Contents, Kind, Record, Store, StoreError, StoredEvent};

/// The version of the tables, kept in `user_version`.
pub const SCHEMA_VERSION: i64 = 1;

/// "PLSL": tells a store of ours from any other SQLite file.
const APPLICATION_ID: i64 = 0x504c_534c;

const SCHEMA: &str = "
    CREATE TABLE records (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID;
    CREATE TABLE events (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE revision (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        value INTEGER NOT NULL
    );
    INSERT INTO revision (only, value) VALUES (1, 0);
";

/// The cluster's state in one SQLite file, held exclusively by this process.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
}

impl SqliteStore {
    /// Opens a store, or makes a new one. The file is readable by its owner only.
    ///
    /// # Errors
    /// The file is in use, of a later version, not ours, or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::InUse { path: path.to_owned() }
            }
            Some(ErrorCode::NotADatabase) => StoreError::Foreign { path: path.to_owned() },
            _ => StoreError::Open { path: path.to_owned(), source },
        };
        make_private(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
        prepare(&mut connection, path).map_err(|error| match error {
            Prepare::Sqlite(source) => failed(source),
            Prepare::Store(error) => error,
        })?;
        Ok(Self { connection })
    }
}

/// SQLite makes its `-wal` file with the mode of the main file, so that one is made first.
fn make_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    // A failure here shows again, with its cause, when SQLite opens the file.
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

enum Prepare {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Prepare {
    fn from(source: rusqlite::Error) -> Self {
        Self::Sqlite(source)
    }
}

fn prepare(connection: &mut Connection, path: &Path) -> Result<(), Prepare> {
    // Long enough for a predecessor that is just ending.
    connection.busy_timeout(std::time::Duration::from_secs(1))?;
    // Set before the first access: in WAL mode the exclusive lock is then taken at once, no shared
    // memory file is made, and a second process gets SQLITE_BUSY.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    // In pages of 4 KiB. A page that is written again and again goes to the main file once in a while.
    connection.pragma_update(None, "wal_autocheckpoint", 8192)?;
    connection.set_prepared_statement_cache_capacity(32);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = transaction.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = || PathBuf::from(path);
    if tables == 0 && version == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    } else if application != APPLICATION_ID {
        return Err(Prepare::Store(StoreError::Foreign { path: path() }));
    } else if version > SCHEMA_VERSION {
        return Err(Prepare::Store(StoreError::NewerSchema {
            path: path(),
            found: version,
            known: SCHEMA_VERSION,
        }));
    }
    transaction.commit()?;
    Ok(())
}

/// SQLite's integers are signed; revisions and sequences never come near the end of either.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The revision, the records with the text of their kind, and the events.
type Rows = (u64, Vec<(String, Record)>, Vec<StoredEvent>);

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let connection = &self.connection;
        let read = || -> Result<Rows, rusqlite::Error> {
            let revision: i64 =
                connection.query_row("SELECT value FROM revision", [], |row| row.get(0))?;
            let mut statement = connection
                .prepare("SELECT kind, id, revision, body FROM records ORDER BY kind, id")?;
            let records = statement
                .query_map([], |row| {
                    let record = Record {
                        kind: Kind::Settings,
                        id: row.get(1)?,
                        revision: unsigned(row.get(2)?),
                        body: row.get(3)?,
                    };
                    Ok((row.get(0)?, record))
                })?
                .collect::<Result<_, _>>()?;
            let mut statement =
                connection.prepare("SELECT sequence, body FROM events ORDER BY sequence")?;
            let events = statement
                .query_map([], |row| {
                    Ok(StoredEvent { sequence: unsigned(row.get(0)?), body: row.get(1)? })
                })?
                .collect::<Result<_, _>>()?;
            Ok((unsigned(revision), records, events))
        };
        let (revision, rows, events) = read().map_err(StoreError::Read)?;
        let mut records = Vec::with_capacity(rows.len());
        for (kind, mut record) in rows {
            record.kind = Kind::parse(&kind).ok_or(StoreError::UnknownKind { kind })?;
            records.push(record);
        }
        records.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
        Ok(Contents { revision, records, events })
    }

    fn commit(&mut self, batch: &Batch) -> Result<u64, CommitError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(CommitError::NotWritten)?;
        // An error before COMMIT drops the transaction, which rolls it back.
        let found: i64 = transaction
            .query_row("SELECT value FROM revision", [], |row| row.get(0))
            .map_err(CommitError::NotWritten)?;
        let found = unsigned(found);
        if found != batch.based_on {
            return Err(CommitError::Superseded { expected: batch.based_on, found });
        }
        let revision = found + 1;
        write(&transaction, batch, revision).map_err(CommitError::NotWritten)?;
        match transaction.execute_batch("COMMIT") {
            Ok(()) => Ok(revision),
            // Still in the transaction: it did not happen. Otherwise frames may be in the log.
            Err(source) if !transaction.is_autocommit() => Err(CommitError::NotWritten(source)),
            Err(source) => Err(CommitError::Unknown(source)),
        }
    }
}

fn write(
    transaction: &Transaction<'_>,
    batch: &Batch,
    revision: u64,
) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("UPDATE revision SET value = ?1")?
        .execute(params![signed(revision)])?;
    let mut delete =
        transaction.prepare_cached("DELETE FROM records WHERE kind = ?1 AND id = ?2")?;
    for (kind, id) in &batch.deletes {
        delete.execute(params![kind.as_str(), id])?;
    }
    let mut put = transaction.prepare_cached(
        "INSERT INTO records (kind, id, revision, body) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body",
    )?;
    for (kind, id, body) in &batch.puts {
        put.execute(params![kind.as_str(), id, signed(revision), body])?;
    }
    let mut event =
        transaction.prepare_cached("INSERT INTO events (sequence, body) VALUES (?1, ?2)")?;
    for StoredEvent { sequence, body } in &batch.events {
        event.execute(params![signed(*sequence), body])?;
    }
    if let Some(last) = batch.drop_events_through {
        transaction
            .prepare_cached("DELETE FROM events WHERE sequence <= ?1")?
            .execute(params![signed(last)])?;
    }
    Ok(())
}
