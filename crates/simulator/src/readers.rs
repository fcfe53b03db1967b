//! Reads recorded workloads.
//!
//! A file comes from outside and may be anything. It is read as a stream: what is held is one line
//! and the typed records, and both have limits ([`Limits`]), as has what a compressed file may
//! unpack to. Whatever is wrong is a [`ReadError`] that names the file, the line and the column
//! (each from 1, columns in bytes) and what was expected there.

mod archive;
pub mod azure;
pub mod bitbrains;
pub mod bytedance;
mod csv;
mod lines;
pub mod openb;
pub mod planetlab;
pub mod roadef;
mod source;
#[cfg(test)]
mod tests;
pub mod vbp;

use std::{fmt, io};

use plimsoll_balance::reassign::InvalidProblem;
use plimsoll_placement::packing::InstanceError;
use thiserror::Error;

pub use lines::Lines;

/// How much is read before a file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one line.
    pub line_bytes: usize,
    /// Bytes of one file, after it was unpacked; of an archive, in all.
    pub bytes: u64,
    /// Bytes that unpacking may need for itself. `xz -9` needs 65 MiB.
    pub unpacking_bytes: u64,
    /// Records of one file: items, pods, VMs. Of an archive: files.
    pub records: usize,
    /// Dimensions of a packing instance.
    pub dimensions: usize,
    /// Hosts or nodes.
    pub hosts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line_bytes: 4 << 20,
            bytes: 1 << 30,
            unpacking_bytes: 128 << 20,
            records: 10_000_000,
            dimensions: 256,
            hosts: 1_000_000,
        }
    }
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file, as the user named it; of one in an archive, the archive's name, `/` and its own.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// In bytes, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}, column {}", self.file, self.line, self.column)
    }
}

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It could not be opened.
    #[error("cannot open {file}")]
    Open {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading failed: a broken disk, or a compressed file that is damaged or cut off.
    #[error("{place}: cannot read on")]
    Read {
        /// How far it went.
        place: Place,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is something else than was expected.
    #[error("{place}: expected {expected}, found {found}")]
    Unexpected {
        /// Where.
        place: Place,
        /// What belongs there.
        expected: String,
        /// What is there, shortened.
        found: Found,
    },
    /// A limit is exceeded.
    #[error("{place}: more than {limit} {what}")]
    TooMuch {
        /// Where.
        place: Place,
        /// Of what.
        what: &'static str,
        /// How much is read at most.
        limit: u64,
    },
    /// An archive is damaged, cut off or too large.
    #[error("{file}, file {number} in it: cannot read the archive")]
    Archive {
        /// The archive.
        file: String,
        /// Which of the files in it was being looked for, from 1.
        number: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A packing instance that is well written and cannot be packed.
    #[error("{file}: cannot pack it")]
    Instance {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: InstanceError,
    },
    /// It is not JSON, or not with what belongs in it.
    #[error("{place}: this is not the JSON that belongs here")]
    Json {
        /// Where.
        place: Place,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A cluster, host or VM is not as it can be.
    #[error("{file}: {kind} `{name}`: {wrong}")]
    Record {
        /// The file.
        file: String,
        /// What kind of thing.
        kind: &'static str,
        /// Its name, shortened.
        name: String,
        /// What is wrong with it.
        wrong: &'static str,
    },
    /// There are fewer clusters.
    #[error("{file}: there is no cluster {cluster}, counted from 0: it has {clusters}")]
    NoCluster {
        /// The file.
        file: String,
        /// Which one was asked for.
        cluster: usize,
        /// How many there are.
        clusters: usize,
    },
    /// A reassignment problem that is well written and is none.
    #[error("{file}: it is not a sound problem")]
    Reassignment {
        /// The file of the model.
        file: String,
        /// Why.
        #[source]
        source: InvalidProblem,
    },
    /// There is nothing of what was looked for.
    #[error("{file}: there is no {wanted} in it")]
    Nothing {
        /// The file, archive or directory.
        file: String,
        /// What was looked for.
        wanted: &'static str,
    },
}

/// What stands in a file in place of what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This text.
    Text(String),
    /// Nothing more on the line.
    EndOfLine,
    /// Nothing more in the file.
    EndOfFile,
    /// Bytes that are no text.
    NotText,
}

impl Found {
    /// The start of a text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::Text(text.chars().take(40).collect())
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.is_empty() => f.write_str("nothing"),
            Self::Text(text) => write!(f, "`{}`", text.escape_debug()),
            Self::EndOfLine => f.write_str("the end of the line"),
            Self::EndOfFile => f.write_str("the end of the file"),
            Self::NotText => f.write_str("bytes that are not UTF-8 text"),
        }
    }
}
