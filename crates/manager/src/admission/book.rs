//! Advance reservations: when there will be room.
//!
//! A VM that may not start yet, or has a duration and finds no room now, is *booked*: its record
//! names a host and an interval, and placement's books hold room for it there. It stays pending until
//! its start; from then on it holds its host like any other, until its end. Intervals in the books
//! end a shutdown's grace after the VM's own end ([`gone_by`]); what users are told is without it.
//!
//! Only a VM that was never placed is booked. Where a booking moves to is decided here; when it is
//! looked for, in [`crate::reconcile::reservations`].

use std::time::Duration;

use plimsoll_model::{EventKind, HostId, HostPhase, Policy, Severity, Timestamp, VmSpec};
use plimsoll_placement::{self as placement, BookRefusal, Earliest, Interval, Refusals, Request};

use crate::{
    admission::place,
    app::AppError,
    core::{
        record::{self, Booking, SHUTDOWN_GRACE, VmRecord, gone_by},
        txn::Txn,
    },
};

/// The least step of time.
const TICK: Duration = Duration::from_nanos(1);

/// When a VM may be booked.
pub(crate) fn earliest(spec: &VmSpec, now: Timestamp) -> Earliest {
    let after = spec.start_after.map_or(now, |start| start.max(now));
    if let Some(duration) = record::duration(spec) {
        let duration = Some(duration.saturating_add(SHUTDOWN_GRACE));
        return Earliest { after, duration, deadline: spec.deadline.map(gone_by) };
    }
    // Its end stands: it starts as early as it may, or never.
    let end = spec.end_at.map(gone_by);
    let duration = end.map(|end| Duration::try_from(end.duration_since(after)).unwrap_or_default());
    Earliest { after, duration, deadline: end }
}

/// The interval that a VM would have if there were room as soon as it may start.
pub(crate) fn soonest(spec: &VmSpec, now: Timestamp) -> Interval {
    let wanted = earliest(spec, now);
    let interval = Interval::starting(wanted.after, wanted.duration);
    if wanted.after > now { interval } else { Interval { from: None, ..interval } }
}

/// Starts a VM that has no host, if it may start and there is room; otherwise books it, if it may be
/// booked.
///
/// # Errors
/// Credits, quota or hosts do not allow it, or there is no interval before its deadline.
pub(crate) fn start_or_book(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    start_or_move(txn, record, None)
}

/// [`start_or_book`] for a VM whose booking is given up, for this reason.
fn start_or_move(
    txn: &mut Txn<'_>,
    record: &VmRecord,
    moved: Option<&str>,
) -> Result<(), AppError> {
    let record = VmRecord { booking: None, ..record.clone() };
    if !record.may_be_booked(txn.now) {
        return place::start(txn, &record);
    }
    let wanted = earliest(&record.vm.spec, txn.now);
    if wanted.after <= txn.now && is_in_time(&wanted) {
        match place::start(txn, &record) {
            Err(AppError::NoCapacity { .. }) => {}
            done => return done,
        }
    }
    place::check_project(txn, &record)?;
    let booking = find(txn, &record, &wanted)?;
    put(txn, record, booking, moved);
    Ok(())
}

/// Whether it can have its duration before its deadline if it begins as early as it may.
fn is_in_time(wanted: &Earliest) -> bool {
    let interval = Interval::starting(wanted.after, wanted.duration);
    match (interval.until, wanted.deadline) {
        (Some(until), Some(deadline)) => until <= deadline,
        _ => true,
    }
}

fn request(txn: &Txn<'_>, record: &VmRecord, interval: Interval) -> Request {
    record.request_for(record.demand(txn.state.settings().vm_memory_overhead), interval)
}

fn policy(txn: &Txn<'_>, record: &VmRecord) -> Policy {
    record.vm.policy.unwrap_or(txn.state.settings().policy)
}

/// Finds the first interval and the best host for it.
fn find(
    txn: &Txn<'_>,
    record: &VmRecord,
    wanted: &Earliest,
) -> Result<placement::Booking, AppError> {
    let request = request(txn, record, Interval::starting(wanted.after, wanted.duration));
    txn.cluster().book(&request, wanted, policy(txn, record)).map_err(|refusal| {
        AppError::NoInterval { vm: record.vm.name.clone(), refusal: as_users_see_it(refusal) }
    })
}

/// Without the grace that is in the books.
fn as_users_see_it(mut refusal: BookRefusal) -> BookRefusal {
    let before_grace = |at: &mut Timestamp| *at = at.checked_sub(SHUTDOWN_GRACE).unwrap_or(*at);
    match &mut refusal {
        BookRefusal::Deadline { deadline, .. } => before_grace(deadline),
        BookRefusal::TooLate { interval, deadline, .. } => {
            before_grace(deadline);
            interval.until.iter_mut().for_each(before_grace);
        }
        BookRefusal::Never { .. } => {}
    }
    refusal
}

/// Writes down a booking; `moved` says why it is not the first.
fn put(txn: &mut Txn<'_>, mut record: VmRecord, found: placement::Booking, moved: Option<&str>) {
    let placement::Booking { interval, choice } = found;
    let from = interval.from.unwrap_or(txn.now);
    // A VM whose end stands has that one, to the nanosecond.
    let until =
        record.duration().map_or(record.vm.spec.end_at, |duration| from.checked_add(duration).ok());
    let booking = Booking {
        host: choice.host,
        from,
        until,
        policy: choice.policy,
        reason: choice.reason(),
        since: txn.now,
    };
    record.overhead = txn.state.settings().vm_memory_overhead;
    record.devices = choice.devices;
    let where_and_when = describe(txn, &booking);
    record.vm.message = Some(format!("booked: {where_and_when}"));
    let (kind, message) = match moved {
        Some(why) => (EventKind::VmBookingMoved, format!("{why}: {where_and_when}")),
        None => (EventKind::VmBooked, format!("{where_and_when}: {}", booking.reason)),
    };
    record.booking = Some(booking);
    txn.vm_event(Severity::Info, kind, &record, message);
    txn.put_vm(record);
}

/// A booking in a few words: `on host-3 from ... until ...`.
fn describe(txn: &Txn<'_>, booking: &Booking) -> String {
    let interval = Interval { from: Some(booking.from), until: booking.until };
    format!("on {} {interval}", host_name(txn, booking.host))
}

fn host_name(txn: &Txn<'_>, host: HostId) -> String {
    txn.state.host(host).map(|host| host.host.name.to_string()).unwrap_or_default()
}

/// Starts a VM whose booked time has come: on its host, or, if what was before it has not gone yet,
/// wherever there is room until its end, which stands.
///
/// # Errors
/// Nowhere is room at present, or credits or quota do not allow it.
pub(crate) fn begin(txn: &mut Txn<'_>, record: &VmRecord) -> Result<(), AppError> {
    let Some(booking) = record.booking.clone() else { return start_or_book(txn, record) };
    if booking.until.is_some_and(|until| until <= txn.now) {
        // All of its time was others'. One whose end stands is stopped by that.
        return match record.duration() {
            Some(_) => start_or_move(txn, record, Some("all of its time was taken")),
            None => Ok(()),
        };
    }
    place::check_project(txn, record)?;
    let mut started = VmRecord { booking: None, ..record.clone() };
    started.vm.spec.end_at = booking.until;
    let anywhere = request(txn, &started, Interval { from: None, ..booking.interval() });
    let own = Request { pinned_host: Some(booking.host), ..anywhere.clone() };
    let policy = policy(txn, record);
    let choice = match txn.cluster().decide(&own, policy) {
        Ok(choice) => choice,
        Err(refusals) => txn.cluster().find(&anywhere, policy).ok_or_else(|| {
            let (vm, refusals) = (record.vm.name.clone(), only_of(refusals, booking.host));
            AppError::NoCapacity { vm, refusals }
        })?,
    };
    place::place(txn, started, &choice);
    Ok(())
}

/// Of the reasons against all hosts those against one.
fn only_of(mut refusals: Refusals, host: HostId) -> Refusals {
    if refusals.counts.iter().any(|count| count.example.host == host) {
        refusals.counts.retain(|count| count.example.host == host);
        refusals.hosts = 1;
    }
    refusals
}

/// What came of a look at a booking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reviewed {
    /// It is as good as it can be.
    Stays,
    /// It is at another time, or on another host, or has begun.
    Moved,
    /// There is no interval for it any more.
    Lost,
}

/// Looks whether a booking still holds, and whether an earlier one is to be had.
pub(crate) fn review(txn: &mut Txn<'_>, record: &VmRecord) -> Reviewed {
    let Some(booking) = record.booking.clone() else { return Reviewed::Stays };
    if !holds(txn, record, &booking) {
        return book_anew(txn, record, &booking);
    }
    let wanted = earliest(&record.vm.spec, txn.now);
    if wanted.after >= booking.from {
        return Reviewed::Stays;
    }
    let interval = soonest(&record.vm.spec, txn.now);
    if interval.from.is_none() && is_in_time(&wanted) {
        let request = request(txn, record, interval);
        if txn.cluster().find(&request, policy(txn, record)).is_some() && move_to_now(txn, record) {
            return Reviewed::Moved;
        }
    }
    // Only what begins earlier.
    let end = Interval::starting(booking.from, wanted.duration).until.unwrap_or(booking.from);
    let earlier = Earliest { deadline: end.checked_sub(TICK).ok(), ..wanted };
    let request = request(txn, record, booking.interval());
    let Some(found) = txn.cluster().find_booking(&request, &earlier, policy(txn, record)) else {
        return Reviewed::Stays;
    };
    put(txn, record.clone(), found, Some("moved up"));
    Reviewed::Moved
}

/// Starts a booked VM at once, if its project may run it; false if not.
fn move_to_now(txn: &mut Txn<'_>, record: &VmRecord) -> bool {
    let Some(booking) = &record.booking else { return false };
    let mark = txn.mark();
    let message = format!("moved up: it starts now, and not at {:.0}", booking.from);
    txn.vm_event(Severity::Info, EventKind::VmBookingMoved, record, message);
    let started = place::start(txn, &VmRecord { booking: None, ..record.clone() }).is_ok();
    if !started {
        txn.roll_back(mark);
    }
    started
}

/// Whether the booked host still takes the VM. One that is merely silent for a moment does, until
/// the VM is to start.
fn holds(txn: &Txn<'_>, record: &VmRecord, booking: &Booking) -> bool {
    let Some(host) = txn.state.host(booking.host) else { return false };
    let host = &host.host;
    if host.phase == HostPhase::Unreachable && host.schedulable {
        return booking.from > txn.now;
    }
    if host.phase != HostPhase::Up || !host.schedulable {
        return false;
    }
    if booking.from <= txn.now {
        // It waits for those before it: that is known, and no reason to give its place up.
        return true;
    }
    let mut request = request(txn, record, booking.interval());
    request.pinned_host = Some(booking.host);
    txn.cluster().find(&request, policy(txn, record)).is_some()
}

/// Books a VM elsewhere, or notes that it cannot be had: then it waits without a booking.
fn book_anew(txn: &mut Txn<'_>, record: &VmRecord, old: &Booking) -> Reviewed {
    let host = host_name(txn, old.host);
    let mark = txn.mark();
    let moved = format!("host {host} is not to be had");
    let Err(error) = start_or_move(txn, record, Some(&moved)) else { return Reviewed::Moved };
    txn.roll_back(mark);
    let message = format!("waits: its booking on host {host} is lost: {}", error.in_full());
    let mut without = VmRecord { booking: None, ..record.clone() };
    without.vm.message = Some(message.clone());
    txn.vm_event(Severity::Warning, EventKind::VmBookingLost, &without, message);
    txn.put_vm(without);
    Reviewed::Lost
}

/// Brings a booking in step with a changed VM: at its time and on its host if they still do, or
/// anew.
///
/// # Errors
/// There is no interval for it as it is now.
pub(crate) fn change(txn: &mut Txn<'_>, mut record: VmRecord) -> Result<(), AppError> {
    let Some(booking) = record.booking.take() else { return Ok(()) };
    let mut request = request(txn, &record, booking.interval());
    request.pinned_host = Some(booking.host);
    if let Some(choice) = txn.cluster().find(&request, policy(txn, &record)) {
        record.overhead = txn.state.settings().vm_memory_overhead;
        record.devices = choice.devices;
        record.booking = Some(booking);
        txn.put_vm(record);
        return Ok(());
    }
    let found = find(txn, &record, &earliest(&record.vm.spec, txn.now))?;
    put(txn, record, found, Some("changed"));
    Ok(())
}
