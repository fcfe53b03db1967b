//! VMs that are booked: when they start, how they move, and what is said of them.

use std::time::Duration;

use plimsoll_api::v1::{Reservation, ReservationState, SetVmRequest, StopVmRequest, VmView};
use plimsoll_model::{
    EventKind, HostPhase, MilliCores, Power, Quota, StoragePool, Timestamp, VmPhase, VmSpec,
};
use plimsoll_placement::BookRefusal;

use super::super::rig::{Rig, SimHost, cordon, host_spec, name, request, resources, spec};
use crate::{
    app::{self, AppError},
    core::record::SHUTDOWN_GRACE,
};

/// The tests' host has 8 cores.
const ALL: u64 = 8000;
const MINUTE: u64 = 60;

/// A VM of so many thousandths of a core for so many minutes.
fn job(cpu: u64, minutes: u64) -> VmSpec {
    let mut job = spec(resources(cpu, 256));
    job.duration_ms = Some(minutes * MINUTE * 1000);
    job
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * MINUTE)
}

/// When the rig's clock says so many minutes from now.
fn at(rig: &Rig, after: u64) -> Timestamp {
    rig.core.now() + minutes(after)
}

async fn create(rig: &Rig, vm: &str, spec: VmSpec) -> Result<VmView, AppError> {
    Ok(rig.create(request(vm, None, spec)).await?.vms.remove(0))
}

fn events(rig: &Rig, kind: EventKind) -> Vec<String> {
    let state = rig.core.snapshot();
    let of_kind = state.events.iter().filter(|event| event.kind == kind);
    of_kind.map(|event| event.message.clone()).collect()
}

fn reservations(rig: &Rig) -> Vec<Reservation> {
    app::reservation_list(&rig.core, &rig.admin, &name("p")).unwrap()
}

/// Lets time pass in steps, so that hosts do not fall silent, and reconciles at each.
async fn pass(rig: &Rig, hosts: &mut [&mut SimHost], time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(Duration::from_secs(5));
        left -= step;
        rig.clock.advance(step);
        for host in &mut *hosts {
            host.exchange(&rig.core).await;
        }
        rig.reconcile().await;
    }
    for host in hosts {
        host.exchange(&rig.core).await;
    }
}

/// The host reports meanwhile, and does nothing that it is told: VMs run on.
async fn stall(rig: &Rig, host: &mut SimHost, time: Duration) {
    for _ in 0..time.as_secs() / 5 {
        rig.clock.advance(Duration::from_secs(5));
        host.send(&rig.core, true).await;
        rig.reconcile().await;
    }
}

#[tokio::test]
async fn a_vm_without_room_is_booked_behind_the_one_that_ends_first_and_starts_then() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let begun = rig.core.now();
    let first = create(&rig, "first", job(ALL, 10)).await.unwrap();
    assert_eq!(first.state, VmPhase::Starting);
    assert_eq!(first.spec.end_at, Some(begun + minutes(10)), "its end is known as it starts");
    host.exchange(&rig.core).await;

    let second = create(&rig, "second", job(ALL, 20)).await.unwrap();
    assert_eq!((second.state, second.host.clone()), (VmPhase::Pending, None));
    let booking = second.booking.clone().unwrap();
    let free = begun + minutes(10) + SHUTDOWN_GRACE;
    assert_eq!((booking.starts_at, booking.ends_at), (free, Some(free + minutes(20))));
    assert_eq!(booking.host, name("h1"));
    let message = second.message.unwrap();
    assert!(message.starts_with("booked: on h1 from 2027-01-15T08:11:00Z until "), "{message}");
    assert!(!message.contains('.'), "to the second: {message}");
    rig.check_consistent().await;

    // An immediate request without an end would be in its way; a short one is not.
    let error = create(&rig, "later", spec(resources(1000, 64))).await.unwrap_err();
    assert!(matches!(error, AppError::NoCapacity { .. }), "{error}");

    let listed = reservations(&rig);
    let states: Vec<_> = listed.iter().map(|r| (r.vm.as_str(), r.state)).collect();
    assert_eq!(states, [("second", ReservationState::Booked), ("first", ReservationState::Begun)]);
    assert_eq!(listed[0].starts_at, Some(free));
    assert_eq!(listed[1].ends_at, Some(begun + minutes(10)));

    pass(&rig, &mut [&mut host], minutes(10)).await;
    assert_eq!(rig.show("first").state, VmPhase::Stopped);
    // Its host says at once that it has stopped: the room is there before the grace is over.
    rig.reconcile().await;
    let second = rig.show("second");
    assert_eq!(second.booking, None);
    assert_eq!(second.host, Some(name("h1")));
    pass(&rig, &mut [&mut host], Duration::from_secs(5)).await;
    let second = rig.show("second");
    assert_eq!(second.state, VmPhase::Running);
    assert_eq!(events(&rig, EventKind::VmBookingMoved).len(), 1, "moved up by less than a minute");
    let end = second.spec.end_at.unwrap();
    assert!(end < free + minutes(20) && end >= begun + minutes(30), "all of its duration");
    rig.check_consistent().await;
    pass(&rig, &mut [&mut host], minutes(21)).await;
    assert_eq!(rig.show("second").state, VmPhase::Stopped);
    assert_eq!(reservations(&rig), []);
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_booked_vm_starts_on_time_and_waits_for_who_is_late() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    create(&rig, "first", job(ALL, 10)).await.unwrap();
    host.exchange(&rig.core).await;
    let booked = create(&rig, "second", job(ALL, 20)).await.unwrap().booking.unwrap();
    stall(&rig, &mut host, minutes(11) - Duration::from_secs(5)).await;
    assert_eq!(rig.show("second").message.unwrap().split(':').next(), Some("booked"));
    stall(&rig, &mut host, Duration::from_secs(5)).await;
    let late = rig.show("second");
    assert_eq!(late.state, VmPhase::Pending);
    let message = late.message.unwrap();
    assert!(message.starts_with("waits: ") && message.contains("insufficient cpu"), "{message}");
    assert_eq!(late.booking.as_ref(), Some(&booked), "its place is kept");
    assert_eq!(reservations(&rig)[0].state, ReservationState::Waiting);
    rig.check_consistent().await;
    stall(&rig, &mut host, minutes(5)).await;
    pass(&rig, &mut [&mut host], Duration::from_secs(10)).await;
    let started = rig.show("second");
    assert_eq!(started.state, VmPhase::Running);
    assert_eq!(started.spec.end_at, booked.ends_at, "its end stays");
    assert_eq!(events(&rig, EventKind::VmUnplaceable).len(), 1, "said once");
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_start_in_the_future_is_booked_and_kept_free() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let start = at(&rig, 30);
    let mut wanted = job(5000, 10);
    wanted.start_after = Some(start);
    let booked = create(&rig, "demo", wanted).await.unwrap().booking.unwrap();
    assert_eq!((booked.starts_at, booked.ends_at), (start, Some(start + minutes(10))));
    // Room for 3 cores for ever, and for all until the booking begins.
    let error = create(&rig, "big", spec(resources(4000, 64))).await.unwrap_err();
    assert!(error.to_body().details["h1"].contains("needs 4 cores, 3 cores free"), "{error:?}");
    create(&rig, "short", job(ALL, 29)).await.unwrap();
    let error = create(&rig, "over", job(ALL, 30)).await.map(|vm| vm.state);
    assert_eq!(error.unwrap(), VmPhase::Pending, "booked behind all of them");
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("short").state, VmPhase::Running);
    let mut open = spec(resources(4000, 64));
    open.start_after = Some(start);
    let open = create(&rig, "open", open).await.unwrap().booking.unwrap();
    assert_eq!(open.ends_at, None);
    assert!(open.starts_at > start);
    rig.check_consistent().await;
    pass(&rig, &mut [&mut host], minutes(30)).await;
    assert_eq!(rig.show("demo").host, Some(name("h1")));
    pass(&rig, &mut [&mut host], Duration::from_secs(5)).await;
    assert_eq!(rig.show("demo").state, VmPhase::Running);
    assert_eq!(rig.show("demo").spec.end_at, Some(start + minutes(10)));
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_released_vm_lets_later_ones_move_up_in_order_and_never_before_they_may() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    create(&rig, "long", job(ALL, 600)).await.unwrap();
    host.exchange(&rig.core).await;
    for vm in ["b", "a"] {
        create(&rig, vm, job(6000, 10)).await.unwrap();
    }
    let mut patient = job(6000, 10);
    patient.start_after = Some(at(&rig, 90));
    create(&rig, "patient", patient).await.unwrap();
    let starts = |rig: &Rig, vm: &str| rig.show(vm).booking.map(|booking| booking.starts_at);
    let before: Vec<_> = ["b", "a", "patient"].map(|vm| starts(&rig, vm).unwrap()).into();
    assert!(before.is_sorted() && before[0] > at(&rig, 600), "one after the other");
    pass(&rig, &mut [&mut host], Duration::from_secs(5)).await;
    assert_eq!(events(&rig, EventKind::VmBookingMoved).len(), 0, "nothing was released");

    let (core, admin, p) = (&rig.core, &rig.admin, name("p"));
    app::vm_delete(core, admin, &p, &name("long")).await.unwrap();
    host.exchange(core).await;
    let may = rig.show("patient").spec.start_after.unwrap();
    rig.reconcile().await;
    assert_eq!(rig.show("b").state, VmPhase::Starting, "the first booked starts at once");
    let a = starts(&rig, "a").unwrap();
    assert_eq!(a, rig.show("b").spec.end_at.unwrap() + SHUTDOWN_GRACE);
    assert_eq!(starts(&rig, "patient"), Some(may), "not before it may");
    let moved = events(&rig, EventKind::VmBookingMoved);
    assert_eq!(moved.len(), 3, "{moved:?}");
    assert!(moved[1].starts_with("moved up: on h1 from "), "{moved:?}");
    rig.check_consistent().await;
    rig.reconcile().await;
    rig.reconcile().await;
    assert_eq!(events(&rig, EventKind::VmBookingMoved).len(), 3, "it comes to rest");

    // A booking that is given up is room, too.
    app::vm_delete(core, admin, &p, &name("b")).await.unwrap();
    app::vm_delete(core, admin, &p, &name("patient")).await.unwrap();
    assert!(app::vm_show(core, admin, &p, &name("patient")).is_err(), "gone at once");
    pass(&rig, &mut [&mut host], Duration::from_secs(10)).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_smaller_or_stopped_neighbour_lets_bookings_move_up() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    create(&rig, "one", job(4000, 60)).await.unwrap();
    create(&rig, "two", job(4000, 90)).await.unwrap();
    host.exchange(&rig.core).await;
    create(&rig, "x", job(3000, 10)).await.unwrap();
    create(&rig, "y", job(2000, 10)).await.unwrap();
    assert!(rig.show("x").booking.is_some() && rig.show("y").booking.is_some());
    let (core, admin, p) = (&rig.core, &rig.admin, name("p"));
    let smaller = SetVmRequest { cpu: Some(MilliCores(1000)), ..SetVmRequest::default() };
    app::vm_set(core, admin, &p, &name("one"), smaller).await.unwrap();
    pass(&rig, &mut [&mut host], Duration::from_secs(5)).await;
    assert_eq!(rig.show("x").state, VmPhase::Running);
    assert!(rig.show("y").booking.is_some());
    app::vm_stop(core, admin, &p, &name("two"), StopVmRequest::default()).await.unwrap();
    pass(&rig, &mut [&mut host], Duration::from_secs(10)).await;
    assert_eq!(rig.show("y").state, VmPhase::Running);
    rig.check_consistent().await;
    // A host that joins is room, too.
    create(&rig, "z", job(ALL, 10)).await.unwrap();
    assert!(rig.show("z").booking.is_some());
    let mut other = rig.host("h2", StoragePool::Local).await;
    pass(&rig, &mut [&mut host, &mut other], Duration::from_secs(5)).await;
    assert_eq!(rig.show("z").host, Some(name("h2")));
    rig.check_consistent().await;
}

#[tokio::test]
async fn what_cannot_be_over_in_time_is_refused_with_the_reason() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    create(&rig, "first", job(ALL, 60)).await.unwrap();
    host.exchange(&rig.core).await;
    let before = rig.core.snapshot();
    let by = |minutes: u64, spec: VmSpec| VmSpec { deadline: Some(at(&rig, minutes)), ..spec };
    let error = create(&rig, "late", by(70, job(ALL, 10))).await.unwrap_err();
    let AppError::NoInterval { refusal: BookRefusal::TooLate { interval, .. }, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(interval.until, Some(at(&rig, 71)), "the grace is not users' business");
    let body = error.to_body();
    assert_eq!(body.code, plimsoll_api::ErrorCode::NoCapacity);
    assert!(body.causes[0].contains("from 2027-01-15T09:01:00Z until 2027-01-15T09:11:00Z"));
    assert!(body.causes[1].contains("insufficient cpu"), "{:?}", body.causes);
    assert!(body.hint.unwrap().contains("later deadline"));
    create(&rig, "just", by(71, job(ALL, 10))).await.expect("a minute more will do");

    let error = create(&rig, "huge", job(ALL + 1, 10)).await.unwrap_err();
    let AppError::NoInterval { refusal: BookRefusal::Never { .. }, .. } = &error else {
        panic!("{error}");
    };
    assert!(error.to_body().details["h1"].contains("insufficient cpu"), "{error:?}");

    for (spec, field) in [
        (by(5, job(1, 10)), "deadline"),
        (by(5, spec(resources(1, 64))), "deadline"),
        (VmSpec { end_at: Some(at(&rig, 5)), ..job(1, 1) }, "duration_ms"),
        (VmSpec { duration_ms: Some(0), ..job(1, 1) }, "duration_ms"),
        (VmSpec { duration_ms: Some(u64::MAX), ..job(1, 1) }, "duration_ms"),
    ] {
        let error = create(&rig, "wrong", spec).await.unwrap_err();
        let AppError::Invalid(invalid) = &error else { panic!("{error}") };
        assert_eq!(invalid.field, format!("requests[0].spec.{field}"));
    }
    // A window that is not free is refused as well.
    let window = VmSpec {
        start_after: Some(at(&rig, 30)),
        end_at: Some(at(&rig, 40)),
        ..spec(resources(ALL, 64))
    };
    let error = create(&rig, "window", window).await.unwrap_err();
    assert!(matches!(error, AppError::NoInterval { .. }), "{error}");
    let all = request("all", Some(3), by(200, job(ALL, 60)));
    let error = rig.create(all.clone()).await.unwrap_err();
    assert!(matches!(error, AppError::NoInterval { .. }), "all or nothing: {error}");
    let some = plimsoll_api::v1::CreateVmsRequest { all_or_nothing: false, ..all };
    let created = rig.create(some).await.unwrap();
    assert_eq!((created.vms.len(), created.refused.len()), (2, 1));
    assert_eq!(rig.core.snapshot().vms.len(), before.vms.len() + 3);
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_booking_leaves_a_host_that_is_drained_removed_or_dead() {
    let rig = Rig::new().await;
    let mut h1 = rig.host("h1", StoragePool::Local).await;
    let mut booked = job(6000, 10);
    booked.start_after = Some(at(&rig, 30));
    create(&rig, "a", booked).await.unwrap();
    let _h2 = rig.host("h2", StoragePool::Local).await;
    let _h3 = rig.host("h3", StoragePool::Local).await;
    let (core, admin) = (&rig.core, &rig.admin);
    let host_of = |rig: &Rig| rig.show("a").booking.map(|booking| booking.host.to_string());
    assert_eq!(host_of(&rig).as_deref(), Some("h1"));
    app::host_drain(core, admin, &name("h1"), cordon()).await.unwrap();
    rig.reconcile().await;
    let second = host_of(&rig).unwrap();
    assert_ne!(second, "h1");
    let moved = events(&rig, EventKind::VmBookingMoved);
    assert!(moved[0].starts_with("host h1 is not to be had: on h"), "{moved:?}");
    rig.check_consistent().await;

    // The operator may remove a host on which something is only booked.
    app::host_drain(core, admin, &name(&second), cordon()).await.unwrap();
    app::host_remove(core, admin, &name(&second)).await.unwrap();
    let third = host_of(&rig).unwrap();
    assert!(third != "h1" && third != second, "in the same transaction");
    rig.check_consistent().await;

    // The last one falls silent: nothing moves for a moment, then the host is dead.
    app::host_undrain(core, admin, &name("h1")).await.unwrap();
    let mut steps = 0;
    while app::host_show(core, admin, &name(&third)).unwrap().state != HostPhase::Dead {
        let state = app::host_show(core, admin, &name(&third)).unwrap().state;
        if state == HostPhase::Unreachable {
            assert_eq!(host_of(&rig), Some(third.clone()), "it may come back");
        }
        rig.clock.advance(Duration::from_secs(1));
        h1.exchange(core).await;
        rig.reconcile().await;
        steps += 1;
        assert!(steps < 600);
    }
    rig.reconcile().await;
    assert_eq!(host_of(&rig).as_deref(), Some("h1"));
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_lost_booking_is_tried_again_until_its_deadline() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let mut wanted = job(6000, 10);
    wanted.start_after = Some(at(&rig, 5));
    wanted.deadline = Some(at(&rig, 30));
    create(&rig, "a", wanted.clone()).await.unwrap();
    create(&rig, "b", wanted).await.unwrap();
    let (core, admin) = (&rig.core, &rig.admin);
    app::host_drain(core, admin, &name("h1"), cordon()).await.unwrap();
    rig.reconcile().await;
    let lost = rig.show("a");
    assert_eq!((lost.state, lost.booking.clone()), (VmPhase::Pending, None));
    let message = lost.message.unwrap();
    assert!(message.starts_with("waits: "), "{message}");
    assert_eq!(events(&rig, EventKind::VmBookingLost).len(), 2);
    assert!(events(&rig, EventKind::VmBookingLost)[0].contains("draining"));
    assert_eq!(reservations(&rig)[0].state, ReservationState::Waiting);
    rig.check_consistent().await;
    pass(&rig, &mut [&mut host], minutes(1)).await;
    app::host_undrain(core, admin, &name("h1")).await.unwrap();
    rig.reconcile().await;
    assert!(rig.show("a").booking.is_some() && rig.show("b").booking.is_some(), "booked again");
    app::host_drain(core, admin, &name("h1"), cordon()).await.unwrap();
    pass(&rig, &mut [&mut host], minutes(20)).await;
    let failed = rig.show("a");
    assert_eq!(failed.state, VmPhase::Failed);
    let message = failed.message.unwrap();
    assert!(
        message.contains("it cannot be over by its deadline 2027-01-15T08:30:00Z"),
        "{message}"
    );
    let used = app::project_show(core, admin, &name("p")).unwrap().used;
    assert_eq!(used.cpu, MilliCores(0), "what failed holds nothing");
    rig.check_consistent().await;
    let error = app::vm_start(core, admin, &name("p"), &name("a")).await.unwrap_err();
    assert!(matches!(error, AppError::NoInterval { .. }), "{error}");
    app::vm_delete(core, admin, &name("p"), &name("a")).await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_every_booking_and_makes_none_twice() {
    let mut rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    create(&rig, "first", job(ALL, 10)).await.unwrap();
    host.exchange(&rig.core).await;
    for (vm, cpu) in [("a", 5000), ("b", 3000), ("c", 6000)] {
        create(&rig, vm, job(cpu, 10)).await.unwrap();
    }
    let before = reservations(&rig);
    assert_eq!(before.iter().filter(|r| r.state == ReservationState::Booked).count(), 3);
    for commits in 0..6 {
        rig.store.fail_after(Some(commits));
        let vm = format!("d{commits}");
        let _ = create(&rig, &vm, job(2000, 5)).await;
        let (core, admin, p) = (&rig.core, &rig.admin, name("p"));
        let _ = app::vm_delete(core, admin, &p, &name("b")).await;
        let core = rig.core.clone();
        let _ = crate::reconcile::reservations::reconcile(core.clone()).await;
        let _ = create(&rig, "b", job(3000, 10)).await;
        let _ = crate::reconcile::reservations::reconcile(core).await;
        rig.store.fail_after(None);
        rig.restart().await;
        rig.check_consistent().await;
        host.exchange(&rig.core).await;
        host.exchange(&rig.core).await;
    }
    for vm in ["a", "c"] {
        let of = |all: &[Reservation]| all.iter().find(|r| r.vm == name(vm)).unwrap().starts_at;
        assert!(of(&reservations(&rig)) <= of(&before), "{vm} was moved later");
    }
    pass(&rig, &mut [&mut host], minutes(60)).await;
    rig.check_consistent().await;
    for record in rig.core.snapshot().vms.values() {
        assert_eq!(record.vm.phase, VmPhase::Stopped, "all have run and ended: {record:?}");
        assert!(record.vm.incarnation == 1);
    }
}

#[tokio::test]
async fn booked_vms_can_be_changed_stopped_and_started() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let quota = Quota { cpu: Some(MilliCores(20_000)), ..Quota::default() };
    let set = plimsoll_api::v1::SetProjectRequest { quota: Some(quota), ..Default::default() };
    app::project_set(&rig.core, &rig.admin, &name("p"), set).await.unwrap();
    create(&rig, "first", job(6000, 10)).await.unwrap();
    host.exchange(&rig.core).await;
    create(&rig, "a", job(4000, 10)).await.unwrap();
    let error = create(&rig, "q", job(10_001, 10)).await.unwrap_err();
    assert!(matches!(error, AppError::Quota { would: 20_001, .. }), "bookings count: {error}");
    let (core, admin, p, a) = (&rig.core, &rig.admin, name("p"), name("a"));
    let cpu = |cpu: u64| SetVmRequest { cpu: Some(MilliCores(cpu)), ..SetVmRequest::default() };
    let grown = app::vm_set(core, admin, &p, &a, cpu(7000)).await.unwrap();
    assert!(grown.booking.is_some());
    let error = app::vm_set(core, admin, &p, &a, cpu(9000)).await.unwrap_err();
    assert!(matches!(error, AppError::NoInterval { .. }), "{error}");
    assert_eq!(rig.show("a").resources.cpu, MilliCores(7000));
    let end = SetVmRequest { end_at: Some(at(&rig, 500)), ..SetVmRequest::default() };
    let error = app::vm_set(core, admin, &p, &a, end.clone()).await.unwrap_err();
    assert!(matches!(error, AppError::Invalid(_)), "{error}");
    rig.check_consistent().await;
    // The end of what runs cannot be put behind the start of what is booked.
    let error = app::vm_set(core, admin, &p, &name("first"), end.clone()).await.unwrap_err();
    assert!(matches!(error, AppError::NoCapacity { .. }), "{error}");
    let stopped = app::vm_stop(core, admin, &p, &a, StopVmRequest::default()).await.unwrap();
    assert_eq!((stopped.state, stopped.booking), (VmPhase::Stopped, None));
    app::vm_set(core, admin, &p, &name("first"), end).await.expect("nothing is booked any more");
    rig.check_consistent().await;
    app::vm_set(core, admin, &p, &a, cpu(1000)).await.unwrap();
    let started = app::vm_start(core, admin, &p, &a).await.unwrap();
    assert_eq!((started.state, started.power), (VmPhase::Starting, Power::Running));
    assert_eq!(started.spec.end_at, Some(at(&rig, 10)));
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_vm_that_has_ended_keeps_its_disk_which_no_booking_counts_on() {
    let rig = Rig::new().await;
    let mut capacity = host_spec(StoragePool::Local);
    capacity.capacity.disk = plimsoll_model::Bytes::gib(3);
    let mut host = rig.host_with("h1", capacity).await;
    create(&rig, "first", job(ALL, 10)).await.unwrap();
    create(&rig, "second", job(ALL, 10)).await.unwrap();
    create(&rig, "third", job(ALL, 10)).await.unwrap();
    let error = create(&rig, "fourth", job(ALL, 10)).await.unwrap_err();
    assert!(error.to_body().details["h1"].contains("insufficient disk"), "{error:?}");
    pass(&rig, &mut [&mut host], minutes(40)).await;
    for vm in ["first", "second", "third"] {
        assert_eq!(rig.show(vm).state, VmPhase::Stopped);
    }
    rig.check_consistent().await;
    app::vm_delete(&rig.core, &rig.admin, &name("p"), &name("first")).await.unwrap();
    host.exchange(&rig.core).await;
    create(&rig, "fourth", job(ALL, 10)).await.unwrap();
    rig.check_consistent().await;
}
