//! From a request to a VM that runs, and back.

use plimsoll_api::{
    ErrorCode,
    cluster::ObservedPhase,
    v1::{EventQuery, ReservationState, SetVmRequest, StopVmRequest},
};
use plimsoll_model::{EventKind, MilliCores, VmPhase};
use plimsoll_testkit::wait_for;

use crate::cluster::{Cluster, LIMIT, name, refusal, vms};

#[tokio::test]
async fn a_vm_is_created_runs_changes_stops_starts_and_goes() {
    let (cluster, agents) = Cluster::furnished(2).await;
    let shop = name("shop");
    let created = cluster.admin.create_vms(&shop, &vms("web", 2)).await.unwrap();
    assert_eq!(created.vms.len(), 2);
    cluster.wait_phase("web-1", VmPhase::Running).await;
    cluster.wait_phase("web-2", VmPhase::Running).await;
    let running: usize = agents.iter().map(|agent| agent.vms().len()).sum();
    assert_eq!(running, 2);

    let set = SetVmRequest { cpu: Some(MilliCores(250)), ..SetVmRequest::default() };
    let web = name("web-1");
    let changed = cluster.admin.set_vm(&shop, &web, &set).await.unwrap();
    assert_eq!(changed.resources.cpu, MilliCores(250));
    wait_for(LIMIT, "the change to reach the host", async || {
        let vm = cluster.admin.vm(&shop, &web).await.ok()?;
        (vm.observed_generation == changed.generation).then_some(())
    })
    .await
    .unwrap();

    let stop = StopVmRequest { grace_s: 0 };
    cluster.admin.stop_vm(&shop, &web, &stop).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Stopped).await;
    cluster.admin.start_vm(&shop, &web).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;

    for vm in ["web-1", "web-2"] {
        cluster.admin.delete_vm(&shop, &name(vm)).await.unwrap();
    }
    cluster.wait_gone("web-1").await;
    cluster.wait_gone("web-2").await;
    let left = async || agents.iter().all(|agent| agent.vms().is_empty()).then_some(());
    wait_for(LIMIT, "the hosts to hold nothing", left).await.unwrap();

    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    let events = cluster.admin.events(&query).await.unwrap();
    for kind in [EventKind::VmCreated, EventKind::VmStarted, EventKind::VmDeleted] {
        assert!(events.iter().any(|event| event.kind == kind), "no {kind} in the log");
    }
    let asked = events.iter().find(|event| event.kind == EventKind::VmCreated).unwrap();
    assert!(asked.actor.is_some(), "a change says who asked for it");
}

#[tokio::test]
async fn a_vm_without_room_is_booked_and_moves_up_when_there_is_some() {
    let (cluster, _agents) = Cluster::furnished(1).await;
    let (shop, admin) = (name("shop"), &cluster.admin);
    // The host has four cores, and room for one of these.
    let job = |vm: &str, hours: u64| {
        let mut request = vms(vm, 1);
        request.requests[0].count = None;
        let spec = &mut request.requests[0].spec;
        spec.resources.cpu = MilliCores::cores(3);
        spec.duration_ms = Some(hours * 3_600_000);
        request
    };
    admin.create_vms(&shop, &job("day", 12)).await.unwrap();
    cluster.wait_phase("day", VmPhase::Running).await;
    let day = admin.vm(&shop, &name("day")).await.unwrap();

    let night = admin.create_vms(&shop, &job("night", 2)).await.unwrap().vms.remove(0);
    assert_eq!((night.state, night.host.as_ref()), (VmPhase::Pending, None));
    let booking = night.booking.unwrap();
    assert_eq!(booking.host, name("h-1"));
    assert!(booking.starts_at > day.spec.end_at.unwrap());
    let mut late = job("late", 2);
    late.requests[0].spec.deadline = day.spec.end_at;
    let refused = refusal(admin.create_vms(&shop, &late).await);
    assert_eq!(refused.code, ErrorCode::NoCapacity);
    assert!(refused.causes[0].contains("its deadline is"), "{refused:?}");

    let viewer = cluster.role(plimsoll_model::Role::Viewer, Some("shop")).await;
    let listed = viewer.reservations(&shop).await.unwrap();
    let states: Vec<_> = listed.iter().map(|r| (r.vm.as_str(), r.state)).collect();
    assert_eq!(states, [("night", ReservationState::Booked), ("day", ReservationState::Begun)]);
    cluster.project("other").await;
    let stranger = cluster.role(plimsoll_model::Role::Admin, Some("other")).await;
    assert_eq!(refusal(stranger.reservations(&shop).await).code, ErrorCode::NotFound);

    admin.delete_vm(&shop, &name("day")).await.unwrap();
    cluster.wait_phase("night", VmPhase::Running).await;
    let night = admin.vm(&shop, &name("night")).await.unwrap();
    assert!(night.booking.is_none() && night.spec.end_at < booking.ends_at, "it moved up");
}

#[tokio::test]
async fn a_manager_that_starts_again_knows_everything() {
    let (cluster, agents) = Cluster::furnished(1).await;
    let shop = name("shop");
    cluster.admin.create_vms(&shop, &vms("db", 3)).await.unwrap();
    for i in 1..=3 {
        cluster.wait_phase(&format!("db-{i}"), VmPhase::Running).await;
    }
    let before = cluster.ca_pem();
    // Its agents' port is another afterwards, so the agents are of no use to it any more.
    drop(agents);
    let cluster = cluster.restart().await;
    assert_eq!(cluster.ca_pem(), before);
    let mut names: Vec<_> =
        cluster.admin.vms(&shop).await.unwrap().iter().map(|vm| vm.name.to_string()).collect();
    names.sort();
    assert_eq!(names, ["db-1", "db-2", "db-3"]);
    assert_eq!(cluster.admin.hosts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_crashes_is_seen_and_can_be_started_again() {
    let (cluster, agents) = Cluster::furnished(1).await;
    let shop = name("shop");
    let created = cluster.admin.create_vms(&shop, &vms("job", 1)).await.unwrap();
    let vm = created.vms[0].id;
    cluster.wait_phase("job-1", VmPhase::Running).await;
    agents[0].crash(vm);
    cluster.wait_phase("job-1", VmPhase::Failed).await;
    cluster.admin.start_vm(&shop, &name("job-1")).await.unwrap();
    cluster.wait_phase("job-1", VmPhase::Running).await;
    assert_eq!(agents[0].vms()[&vm].phase, ObservedPhase::Running);
}

#[tokio::test]
async fn what_no_host_can_hold_is_refused_whole_and_explained() {
    let (cluster, _agents) = Cluster::furnished(2).await;
    let shop = name("shop");
    let mut request = vms("big", 3);
    request.requests[0].spec.resources.cpu = MilliCores::cores(3);
    let error = refusal(cluster.admin.create_vms(&shop, &request).await);
    assert_eq!(error.code, ErrorCode::NoCapacity);
    assert!(!error.details.is_empty() && error.hint.is_some(), "{error:?}");
    assert!(cluster.admin.vms(&shop).await.unwrap().is_empty(), "nothing is half done");
}
