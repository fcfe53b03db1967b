//! The log of events.

use plimsoll_api::v1::EventQuery;
use plimsoll_model::{Event, EventSequence, ProjectId, Role, Subject, VmId};

use crate::{
    app::{AppError, Caller, Noun},
    core::{Core, State},
};

const MAX_EVENTS: u32 = 1000;
const DEFAULT_EVENTS: u32 = 100;
const MAX_WAIT_MS: u64 = 30_000;

/// Events that the caller may see, oldest first: those after `query.after`, else the newest.
///
/// # Errors
/// There is no such project or VM for the caller, or a bound is exceeded.
pub async fn event_list(
    core: &Core,
    caller: &Caller,
    query: EventQuery,
) -> Result<Vec<Event>, AppError> {
    let limit = query.limit.unwrap_or(DEFAULT_EVENTS);
    if !(1..=MAX_EVENTS).contains(&limit) {
        return Err(AppError::invalid("limit", format!("{limit} events"), "ask for 1 to 1000"));
    }
    let wait_ms = query.wait_ms.unwrap_or(0);
    if wait_ms > MAX_WAIT_MS {
        return Err(AppError::invalid("wait_ms", format!("{wait_ms} ms"), "use at most 30000"));
    }
    let filter = Filter::new(&core.snapshot(), caller, &query)?;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_millis(wait_ms);
    let mut revisions = core.revisions();
    loop {
        revisions.borrow_and_update();
        let events = filter.select(&core.snapshot(), query.after, limit as usize);
        if !events.is_empty() {
            return Ok(events);
        }
        match tokio::time::timeout_at(deadline, revisions.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(events),
        }
    }
}

/// What the caller may see of what was asked for.
struct Filter {
    project: Option<ProjectId>,
    vm: Option<VmId>,
}

impl Filter {
    fn new(state: &State, caller: &Caller, query: &EventQuery) -> Result<Self, AppError> {
        caller.at_least(Role::Viewer)?;
        let project = match &query.project {
            Some(name) => Some(caller.project(state, name)?.id),
            None => caller.project,
        };
        let vm = match &query.vm {
            None => None,
            Some(name) => {
                let project = project.ok_or_else(|| {
                    AppError::invalid("vm", "without a project", "name its project too")
                })?;
                let record = state
                    .vm_by_name(project, name)
                    .ok_or_else(|| AppError::not_found(Noun::Vm, name))?;
                Some(record.vm.id)
            }
        };
        Ok(Self { project, vm })
    }

    fn admits(&self, event: &Event) -> bool {
        self.project.is_none_or(|own| event.project == Some(own))
            && self
                .vm
                .is_none_or(|own| matches!(event.subject, Subject::Vm { id, .. } if id == own))
    }

    /// Sequences have no gaps, so a place in the log is a place in the vector.
    fn select(&self, state: &State, after: Option<EventSequence>, limit: usize) -> Vec<Event> {
        let events = &state.events;
        let Some(after) = after else {
            let mut newest: Vec<Event> = events
                .iter()
                .rev()
                .filter(|event| self.admits(event))
                .take(limit)
                .map(|event| (**event).clone())
                .collect();
            newest.reverse();
            return newest;
        };
        let first = events.front().map_or(0, |event| event.sequence.0);
        let skip = after.0.saturating_add(1).saturating_sub(first);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(events.len());
        events
            .clone()
            .skip(skip)
            .iter()
            .filter(|event| self.admits(event))
            .take(limit)
            .map(|event| (**event).clone())
            .collect()
    }
}
