//! Why something is, or would be, where it is.

use plimsoll_api::v1::{ExplainRequest, Explanation};
use plimsoll_model::Name;

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// How every host would do for a VM that exists, decided anew as if it had left its place.
///
/// # Errors
/// There is no such VM for the caller.
pub async fn vm_explain(
    core: &Core,
    caller: &Caller,
    project: &Name,
    vm: &Name,
) -> Result<Explanation, AppError> {
    let _ = (core, caller, project, vm);
    todo!()
}

/// How every host would do for a request; nothing is created.
///
/// # Errors
/// The request is not valid, or there is no such project for the caller.
pub async fn request_explain(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: ExplainRequest,
) -> Result<Explanation, AppError> {
    let _ = (core, caller, project, request);
    todo!()
}
