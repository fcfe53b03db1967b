//! What is held for some time: VMs that are booked, and VMs that have a host and an end.

use plimsoll_api::v1::{Reservation, ReservationState};
use plimsoll_model::{Name, VmPhase};

use crate::{
    app::{AppError, Caller, vm},
    core::{
        Core, State,
        record::{Claim, VmRecord},
    },
};

/// The reservations of a project: what has not begun by start, then what has begun by end.
///
/// # Errors
/// There is no such project for the caller.
pub fn reservation_list(
    core: &Core,
    caller: &Caller,
    project: &Name,
) -> Result<Vec<Reservation>, AppError> {
    let state = core.snapshot();
    let project = caller.project(&state, project)?;
    let records = state.vms.values().filter(|record| record.vm.project == project.id);
    let mut reservations: Vec<_> =
        records.filter_map(|record| view(core, &state, record)).collect();
    reservations.sort_by_key(|reservation| {
        let begun = reservation.state == ReservationState::Begun;
        let at = if begun { reservation.ends_at } else { reservation.starts_at };
        (begun, at, reservation.vm.clone())
    });
    Ok(reservations)
}

fn view(core: &Core, state: &State, record: &VmRecord) -> Option<Reservation> {
    let now = core.now();
    let spec = &record.vm.spec;
    let begun = record.vm.placement.as_ref().filter(|_| {
        spec.end_at.is_some() && record.claim == Claim::Full && record.vm.phase != VmPhase::Deleting
    });
    let (host, starts_at, ends_at, at) = match (&record.booking, begun) {
        (Some(booking), _) => {
            let late = booking.from <= now;
            let at = if late { ReservationState::Waiting } else { ReservationState::Booked };
            (Some(booking.host), Some(booking.from), booking.until, at)
        }
        (None, Some(placement)) => {
            (Some(placement.host), Some(placement.since), spec.end_at, ReservationState::Begun)
        }
        (None, None) if record.may_be_booked(now) => {
            (None, None, spec.end_at, ReservationState::Waiting)
        }
        (None, None) => return None,
    };
    let shown = vm::view(core, state, record);
    Some(Reservation {
        id: shown.id,
        vm: shown.name,
        project: shown.project,
        state: at,
        host: host.and_then(|host| state.host(host)).map(|host| host.host.name.clone()),
        starts_at,
        ends_at,
        deadline: spec.deadline,
        resources: shown.resources,
        message: shown.message,
    })
}
