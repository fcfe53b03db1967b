//! How a run fails.

use std::io;
use std::path::PathBuf;

/// Why a load ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// What was read is not what was written: the one failure that no guest may ever see.
    #[error("corrupted: {what} {number}")]
    Corrupted {
        /// What was read: `page`, `value`, `page of file N`, `result`.
        what: String,
        /// Which one.
        number: u64,
    },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The reader of the report went away.
    #[error("cannot write the report")]
    Report(#[source] io::Error),
    /// A thread of the load panicked.
    #[error("a thread ended by itself")]
    Thread,
}
