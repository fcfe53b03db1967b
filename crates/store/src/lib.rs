//! Keeps the cluster's state.
//!
//! State is a set of records, each a JSON body under a kind and an id with the revision of the
//! commit that wrote it last, and the log of events. A [`Batch`] becomes visible as a whole or not
//! at all, and once [`Store::commit`] has returned it survives a crash of the process and of the
//! machine. Every commit makes the next revision and names the one on which it builds, so that a
//! writer that has lost its place (another leader wrote) is refused: the same compare-and-put works
//! on a replicated store such as etcd.
//!
//! [`SqliteStore`] is the one for use, [`MemoryStore`] the one for tests.

use std::{fmt, path::PathBuf};

use thiserror::Error;

mod memory;
mod sqlite;

pub use memory::MemoryStore;
pub use sqlite::{SCHEMA_VERSION, SqliteStore};

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A VM.
    Vm,
    /// A host.
    Host,
    /// A project.
    Project,
    /// A network.
    Network,
    /// An image.
    Image,
    /// A user's token.
    Token,
    /// A token with which a host joins.
    JoinToken,
    /// The cluster's settings and counters: one record.
    Settings,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Vm,
        Self::Host,
        Self::Project,
        Self::Network,
        Self::Image,
        Self::Token,
        Self::JoinToken,
        Self::Settings,
    ];

    /// The name in the store. Never changed: it is on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Host => "host",
            Self::Project => "project",
            Self::Network => "network",
            Self::Image => "image",
            Self::Token => "token",
            Self::JoinToken => "join_token",
            Self::Settings => "settings",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A record as it is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is of.
    pub kind: Kind,
    /// Its id, unique within the kind.
    pub id: String,
    /// The revision of the commit that wrote it last.
    pub revision: u64,
    /// JSON.
    pub body: String,
}

/// An event as it is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the log, from 1 without gaps.
    pub sequence: u64,
    /// JSON.
    pub body: String,
}

/// All that is in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The revision of the last commit; 0 for a new store.
    pub revision: u64,
    /// Every record, by kind and id.
    pub records: Vec<Record>,
    /// The events that are kept, in order.
    pub events: Vec<StoredEvent>,
}

/// What one commit changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The revision on which it builds: the commit is refused if the store has another.
    pub based_on: u64,
    /// Records to write, each whole, at most once per record: kind, id, JSON.
    pub puts: Vec<(Kind, String, String)>,
    /// Records to remove; one that is not there is no error.
    pub deletes: Vec<(Kind, String)>,
    /// Events to append.
    pub events: Vec<StoredEvent>,
    /// Events up to and including this place are dropped.
    pub drop_events_through: Option<u64>,
}

/// Where the cluster's state is kept.
pub trait Store: Send {
    /// Reads everything.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this version does not know.
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Makes a batch durable, as a whole or not at all, and returns the new revision.
    ///
    /// # Errors
    /// See [`CommitError`].
    fn commit(&mut self, batch: &Batch) -> Result<u64, CommitError>;
}

/// A store that cannot be opened or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store {path} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a later version.
    #[error("the store {path} has schema version {found}, this version knows up to {known}")]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The version known.
        known: i64,
    },
    /// The file is not a store of ours.
    #[error("{path} is not a store of Plimsoll")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open the store {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// It cannot be read.
    #[error("cannot read the store")]
    Read(#[source] rusqlite::Error),
    /// A record is of a kind that this version does not know.
    #[error("the store holds a record of the unknown kind `{kind}`")]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// A record does not decode.
    #[error("{kind} `{id}` in the store cannot be understood")]
    Decode {
        /// What it is of.
        kind: Kind,
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An event does not decode.
    #[error("event {sequence} in the store cannot be understood")]
    DecodeEvent {
        /// Its place.
        sequence: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record cannot be encoded.
    #[error("{kind} `{id}` cannot be encoded")]
    Encode {
        /// What it is of.
        kind: Kind,
        /// Its id.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A commit that did not succeed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Nothing was written, for sure.
    #[error("the commit was refused by the store")]
    NotWritten(#[source] rusqlite::Error),
    /// Nothing was written: the store has another revision.
    #[error("the store is at revision {found}, not {expected}: somebody else wrote")]
    Superseded {
        /// The revision on which the batch built.
        expected: u64,
        /// The store's.
        found: u64,
    },
    /// It may or may not have been written: only reading the store again tells.
    #[error("it is not known whether the commit was written")]
    Unknown(#[source] rusqlite::Error),
    /// Nothing was written: a record cannot be encoded.
    #[error("the commit could not be prepared")]
    Encode(#[source] StoreError),
    /// A test asked for this failure; nothing was written.
    #[error("the test's store fails this commit")]
    Injected,
}

impl CommitError {
    /// Whether the batch may nevertheless have been written.
    #[must_use]
    pub const fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }
}

#[cfg(test)]
mod tests;
