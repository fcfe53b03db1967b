use super::*;

fn event(sequence: u64) -> StoredEvent {
    StoredEvent { sequence, body: format!("{{\"n\":{sequence}}}") }
}

/// What every store must do.
fn exercise(store: &mut dyn Store) {
    assert_eq!(store.load().unwrap(), Contents::default());
    let first = Batch {
        puts: vec![(Kind::Vm, "a".into(), "1".into()), (Kind::Host, "h".into(), "2".into())],
        events: vec![event(1), event(2)],
        ..Batch::default()
    };
    assert_eq!(store.commit(&first).unwrap(), 1);
    assert!(matches!(store.commit(&first), Err(CommitError::Superseded { expected: 0, found: 1 })));
    let second = Batch {
        based_on: 1,
        puts: vec![(Kind::Vm, "b".into(), "3".into())],
        deletes: vec![(Kind::Vm, "a".into()), (Kind::Vm, "not there".into())],
        events: vec![event(3)],
        drop_events_through: Some(1),
    };
    assert_eq!(store.commit(&second).unwrap(), 2);
    let contents = store.load().unwrap();
    assert_eq!(contents.revision, 2);
    let records: Vec<_> =
        contents.records.iter().map(|r| (r.kind, r.id.as_str(), r.revision, &*r.body)).collect();
    assert_eq!(records, [(Kind::Vm, "b", 2, "3"), (Kind::Host, "h", 1, "2")]);
    assert_eq!(contents.events, [event(2), event(3)]);
}

#[test]
fn the_memory_store_keeps_what_it_is_given() {
    exercise(&mut MemoryStore::new());
}

#[test]
fn the_sqlite_store_keeps_what_it_is_given_when_reopened_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let before = {
        let mut store = SqliteStore::open(&path).unwrap();
        exercise(&mut store);
        store.load().unwrap()
    };
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap(), before);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_opener_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let first = SqliteStore::open(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::InUse { .. })));
    drop(first);
    assert!(SqliteStore::open(&path).is_ok());
}

#[test]
fn a_newer_schema_and_a_foreign_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    drop(SqliteStore::open(&path).unwrap());
    {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    }
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::NewerSchema { found, .. }) if found == SCHEMA_VERSION + 1
    ));

    let other = directory.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(SqliteStore::open(&other), Err(StoreError::Foreign { .. })));
    let text = directory.path().join("text");
    std::fs::write(&text, "x".repeat(4096)).unwrap();
    assert!(matches!(SqliteStore::open(&text), Err(StoreError::Foreign { .. })));
}

#[test]
fn a_batch_that_fails_in_the_middle_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("state.db")).unwrap();
    store.commit(&Batch { events: vec![event(1)], ..Batch::default() }).unwrap();
    let before = store.load().unwrap();
    let doubled = Batch {
        based_on: 1,
        puts: vec![(Kind::Vm, "a".into(), "1".into())],
        events: vec![event(1)],
        ..Batch::default()
    };
    assert!(matches!(store.commit(&doubled), Err(CommitError::NotWritten(_))));
    assert_eq!(store.load().unwrap(), before);
}

#[test]
fn injected_failures_write_nothing() {
    let store = MemoryStore::new();
    store.fail_after(Some(1));
    let mut user = store.clone();
    user.commit(&Batch::default()).unwrap();
    assert!(matches!(
        user.commit(&Batch { based_on: 1, ..Batch::default() }),
        Err(CommitError::Injected)
    ));
    assert_eq!(store.clone().load().unwrap().revision, 1);
}
