//! The log of events.

use plimsoll_api::v1::EventQuery;
use plimsoll_model::Event;

use crate::{
    app::{AppError, Caller},
    core::Core,
};

/// Events that the caller may see, oldest first: those after `query.after`, else the newest.
///
/// # Errors
/// There is no such project or VM for the caller, or a bound is exceeded.
pub async fn event_list(
    core: &Core,
    caller: &Caller,
    query: EventQuery,
) -> Result<Vec<Event>, AppError> {
    let _ = (core, caller, query);
    todo!()
}
