//! What must be known of a departure after a crash of the agent: `departure.json` in the VM's
//! directory, written before it is acted on.

use plimsoll_api::migration::{Departure, MigrationFigures};
use plimsoll_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::vm::files::{self, FileError};
use crate::vm::guard::record::VmDirectory;

const NAME: &str = "departure.json";

/// A departure, from its beginning until the manager lists it no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::vm::runner) struct DepartureRecord {
    pub departure: Departure,
    pub begun_at: Timestamp,
    /// From now on memory is sent: all of the state may be on the target, and this agent, or one
    /// before it, may have told it to go.
    pub may_have_gone: bool,
    /// What became of it, once that is certain.
    pub outcome: Option<Outcome>,
}

/// What became of a departure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::vm::runner) enum Outcome {
    /// The VM runs on the target.
    Gone { figures: MigrationFigures },
    /// The VM is this host's; the target never ran it, and never will for this move.
    Failed { message: String },
}

impl DepartureRecord {
    pub(in crate::vm::runner) fn read(directory: &VmDirectory) -> Result<Option<Self>, FileError> {
        files::read_json(&directory.file(NAME))
    }

    pub(in crate::vm::runner) fn write(&self, directory: &VmDirectory) -> Result<(), FileError> {
        files::write_json(&directory.file(NAME), self)
    }

    pub(in crate::vm::runner) fn remove(directory: &VmDirectory) -> std::io::Result<()> {
        files::remove(&directory.file(NAME))
    }
}
