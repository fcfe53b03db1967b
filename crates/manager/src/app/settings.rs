//! The cluster's settings.

use plimsoll_api::v1::{SetSettingsRequest, Settings};

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// The settings.
///
/// # Errors
/// The caller's token is bound to a project.
pub fn settings_show(core: &Core, caller: &Caller) -> Result<Settings, AppError> {
    let _ = (core, caller);
    todo!()
}

/// Changes settings.
///
/// # Errors
/// A value is not allowed, or the caller is not an admin of the cluster.
pub async fn settings_set(
    core: &Core,
    caller: &Caller,
    request: SetSettingsRequest,
) -> Result<Settings, AppError> {
    let _ = (core, caller, request);
    todo!()
}
