//! The cluster in numbers.

use plimsoll_api::v1::{ClusterStatus, WhoAmI};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// The cluster in numbers; for a project's token only its own VMs.
///
/// # Errors
/// None at present.
pub fn cluster_status(core: &Core, caller: &Caller) -> Result<ClusterStatus, AppError> {
    let _ = (core, caller);
    todo!()
}

/// The whole cluster in numbers, for metrics.
#[must_use]
pub fn cluster_numbers(core: &Core) -> ClusterStatus {
    let _ = core;
    todo!()
}

/// Who the caller is.
#[must_use]
pub fn whoami(core: &Core, caller: &Caller) -> WhoAmI {
    caller.who(&core.snapshot())
}
