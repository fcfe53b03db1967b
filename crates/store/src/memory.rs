//! The store for tests: in memory, shared between its clones, with failures on demand.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Batch, CommitError, Contents, Kind, Record, Store, StoreError, StoredEvent};

#[derive(Debug, Default)]
struct Shared {
    revision: u64,
    records: BTreeMap<(Kind, String), (u64, String)>,
    events: BTreeMap<u64, String>,
    fail_in: Option<u64>,
}

/// A store in memory. Clones share their contents, so that a test can "restart" with what an earlier
/// user has left.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// After `commits` more successful commits every further one fails; `None`: none fails.
    pub fn fail_after(&self, commits: Option<u64>) {
        self.lock().fail_in = commits;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let shared = self.lock();
        Ok(Contents {
            revision: shared.revision,
            records: shared
                .records
                .iter()
                .map(|((kind, id), (revision, body))| Record {
                    kind: *kind,
                    id: id.clone(),
                    revision: *revision,
                    body: body.clone(),
                })
                .collect(),
            events: shared
                .events
                .iter()
                .map(|(sequence, body)| StoredEvent { sequence: *sequence, body: body.clone() })
                .collect(),
        })
    }

    fn commit(&mut self, batch: &Batch) -> Result<u64, CommitError> {
        let mut shared = self.lock();
        if shared.revision != batch.based_on {
            return Err(CommitError::Superseded {
                expected: batch.based_on,
                found: shared.revision,
            });
        }
        match &mut shared.fail_in {
            Some(0) => return Err(CommitError::Injected),
            Some(left) => *left -= 1,
            None => {}
        }
        shared.revision += 1;
        let revision = shared.revision;
        for (kind, id) in &batch.deletes {
            shared.records.remove(&(*kind, id.clone()));
        }
        for (kind, id, body) in &batch.puts {
            shared.records.insert((*kind, id.clone()), (revision, body.clone()));
        }
        for event in &batch.events {
            shared.events.insert(event.sequence, event.body.clone());
        }
        if let Some(last) = batch.drop_events_through {
            shared.events = shared.events.split_off(&(last + 1));
        }
        Ok(revision)
    }
}
