use std::{collections::BTreeMap, time::Duration};

use plimsoll_api::{
    cluster::Wanted,
    v1::{SetVmRequest, StopVmRequest},
};
use plimsoll_model::{
    Bytes, Constraint, HostPhase, MilliCores, Quota, Rule, Scope, StoragePool, Strength, VmPhase,
};

use super::rig::{Rig, cordon, name, request, resources, spec};
use crate::app::{self, AppError};

mod balance;
mod chaos;
mod draining;
mod durable;
mod failure;
mod migration;
mod overcommit;
mod reservations;
mod tenancy;

fn shared() -> StoragePool {
    StoragePool::Shared { pool: name("pool") }
}

#[tokio::test]
async fn a_vm_is_created_runs_stops_starts_and_goes() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let mut vm = spec(resources(1000, 512));
    vm.networks = vec![name("net")];
    let created = rig.create(request("web", Some(2), vm)).await.unwrap();
    assert_eq!(created.vms.len(), 2);
    assert_eq!(created.vms[0].name, name("web-1"));
    assert_eq!(created.vms[0].state, VmPhase::Starting);
    assert_eq!(created.vms[0].resources.disk, Bytes::gib(1), "the image's size");
    assert_eq!(created.vms[0].addresses.len(), 1);
    assert_ne!(created.vms[0].addresses, created.vms[1].addresses);

    host.exchange(&rig.core).await;
    assert_eq!(rig.show("web-1").state, VmPhase::Running);
    assert_eq!(rig.show("web-1").observed_generation, 1);
    rig.check_consistent().await;

    let (core, admin, p, web) = (&rig.core, &rig.admin, name("p"), name("web-1"));
    let stopped = app::vm_stop(core, admin, &p, &web, StopVmRequest::default()).await.unwrap();
    assert_eq!(stopped.state, VmPhase::Stopping);
    let used = |rig: &Rig| app::project_show(&rig.core, &rig.admin, &name("p")).unwrap().used;
    assert_eq!(used(&rig).cpu, MilliCores(2000), "held until the host confirms");
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("web-1").state, VmPhase::Stopped);
    assert_eq!(used(&rig).cpu, MilliCores(1000));
    assert_eq!(used(&rig).disk, Bytes::gib(2), "the disk is kept");

    app::vm_start(core, admin, &p, &web).await.unwrap();
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("web-1").state, VmPhase::Running);

    let gone = app::vm_delete(core, admin, &p, &web).await.unwrap();
    assert_eq!(gone.state, VmPhase::Deleting);
    assert!(app::vm_show(core, admin, &p, &web).is_ok());
    host.exchange(&rig.core).await;
    assert!(matches!(app::vm_show(core, admin, &p, &web), Err(AppError::NotFound { .. })));
    host.exchange(&rig.core).await;
    assert_eq!(host.vms.len(), 1, "the host no longer reports it");
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_off() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let id = rig.create(request("a", None, spec(resources(1000, 512)))).await.unwrap().vms[0].id;
    host.exchange(&rig.core).await;
    host.power_off(id);
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").state, VmPhase::Stopped);
    host.exchange(&rig.core).await;
    assert!(!host.vms[&id].running);
    assert_eq!(rig.show("a").power, plimsoll_model::Power::Stopped);
    app::vm_start(&rig.core, &rig.admin, &name("p"), &name("a")).await.unwrap();
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
}

#[tokio::test]
async fn a_refused_group_leaves_nothing() {
    let rig = Rig::new().await;
    let _h1 = rig.host("h1", StoragePool::Local).await;
    let before = rig.core.snapshot();
    let mut apart = spec(resources(1000, 512));
    apart.groups = [name("g")].into();
    apart.constraints = vec![Constraint {
        strength: Strength::Required,
        rule: Rule::AntiAffinity { group: name("g"), scope: Scope::Host },
    }];
    let error = rig.create(request("a", Some(2), apart.clone())).await.unwrap_err();
    assert!(matches!(error, AppError::NoCapacityForGroup { .. }), "{error}");
    assert!(!error.to_body().details.is_empty());
    assert_eq!(rig.core.snapshot().vms, before.vms);
    assert_eq!(rig.core.snapshot().addresses, before.addresses);
    assert_eq!(rig.core.snapshot().events, before.events);
    rig.check_consistent().await;

    let mut some = request("a", Some(2), apart);
    some.all_or_nothing = false;
    let created = rig.create(some).await.unwrap();
    assert_eq!(created.vms.len(), 1);
    assert_eq!(created.refused.keys().collect::<Vec<_>>(), ["a-2"]);
    rig.check_consistent().await;
}

#[tokio::test]
async fn quota_is_kept_on_every_element() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let quota = Quota { cpu: Some(MilliCores(2000)), vms: Some(3), ..Quota::default() };
    let set = plimsoll_api::v1::SetProjectRequest { quota: Some(quota), ..Default::default() };
    app::project_set(&rig.core, &rig.admin, &name("p"), set).await.unwrap();
    rig.create(request("a", Some(2), spec(resources(1000, 128)))).await.unwrap();
    let error = rig.create(request("b", None, spec(resources(1, 128)))).await.unwrap_err();
    assert!(matches!(error, AppError::Quota { would: 2001, limit: 2000, .. }), "{error}");
    host.exchange(&rig.core).await;
    let p = name("p");
    app::vm_stop(&rig.core, &rig.admin, &p, &name("a-1"), StopVmRequest::default()).await.unwrap();
    host.exchange(&rig.core).await;
    rig.create(request("b", None, spec(resources(500, 128)))).await.unwrap();
    let error = rig.create(request("c", None, spec(resources(100, 128)))).await.unwrap_err();
    assert!(matches!(error, AppError::QuotaOfVms { would: 4, limit: 3, .. }), "{error}");
    let error = app::vm_start(&rig.core, &rig.admin, &p, &name("a-1")).await.unwrap_err();
    assert!(matches!(error, AppError::Quota { would: 2500, .. }), "{error}");
    let set = SetVmRequest { cpu: Some(MilliCores(1001)), ..SetVmRequest::default() };
    app::vm_set(&rig.core, &rig.admin, &p, &name("b"), set).await.unwrap_err();
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_change_must_fit_and_names_its_generation() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    rig.create(request("a", None, spec(resources(1000, 512)))).await.unwrap();
    host.exchange(&rig.core).await;
    let (core, admin, p, a) = (&rig.core, &rig.admin, name("p"), name("a"));
    let set = |f: fn(&mut SetVmRequest)| {
        let mut request = SetVmRequest::default();
        f(&mut request);
        app::vm_set(core, admin, &p, &a, request)
    };
    let error = set(|r| r.cpu = Some(MilliCores(9000))).await.unwrap_err();
    assert!(matches!(error, AppError::NoCapacity { .. }), "{error}");
    let error = set(|r| r.memory = Some(Bytes::mib(513))).await.unwrap_err();
    assert!(error.hint().contains("stop it first"), "{error}");
    set(|r| r.disk = Some(Bytes::mib(10))).await.unwrap_err();
    let error = set(|r| r.if_generation = Some(7)).await.unwrap_err();
    assert!(matches!(error, AppError::Conflict { expected: 7, actual: 1, .. }), "{error}");
    let shown = set(|r| r.cpu = Some(MilliCores(500))).await.unwrap();
    assert_eq!((shown.generation, shown.observed_generation), (2, 1));
    let same = set(|r| r.cpu = Some(MilliCores(500))).await.unwrap();
    assert_eq!(same.generation, 2, "what changes nothing makes no generation");
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").observed_generation, 2);
    set(|r| r.memory = Some(Bytes::mib(256))).await.unwrap();
    set(|r| r.memory = Some(Bytes::mib(512))).await.unwrap();
    app::host_drain(core, admin, &name("h1"), cordon()).await.unwrap();
    set(|r| r.cpu = Some(MilliCores(2000))).await.expect("a drained host keeps what it has");
    rig.check_consistent().await;
}

#[tokio::test]
async fn vms_start_and_end_when_they_should() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let mut vm = spec(resources(1000, 512));
    let at = |s: i64| rig.core.now() + jiff::SignedDuration::from_secs(s);
    vm.start_after = Some(at(100));
    vm.end_at = Some(at(300));
    let created = rig.create(request("a", None, vm)).await.unwrap();
    assert_eq!(created.vms[0].state, VmPhase::Pending);
    rig.reconcile().await;
    assert_eq!(rig.show("a").state, VmPhase::Pending);
    rig.clock.advance(Duration::from_secs(100));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    rig.clock.advance(Duration::from_secs(150));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    let kinds = |rig: &Rig| {
        let state = rig.core.snapshot();
        state.events.iter().map(|event| event.kind).collect::<Vec<_>>()
    };
    assert!(kinds(&rig).contains(&plimsoll_model::EventKind::VmEndingSoon));
    assert_eq!(rig.show("a").state, VmPhase::Running);
    rig.clock.advance(Duration::from_secs(50));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").state, VmPhase::Stopped);
    let (core, admin) = (&rig.core, &rig.admin);
    app::vm_start(core, admin, &name("p"), &name("a")).await.unwrap_err();
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_guest_is_warned_of_its_end_when_its_user_is() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let mut vm = spec(resources(1000, 512));
    let end = rig.core.now() + jiff::SignedDuration::from_secs(300);
    vm.end_at = Some(end);
    rig.create(request("a", None, vm)).await.unwrap();
    let announced = || {
        let state = rig.core.snapshot();
        state.events.iter().any(|event| event.kind == plimsoll_model::EventKind::VmEndingSoon)
    };
    let mut generation = 0;
    for seconds in [60, 90] {
        let settings = plimsoll_api::v1::SetSettingsRequest {
            end_warning_s: Some(seconds),
            ..Default::default()
        };
        app::settings_set(&rig.core, &rig.admin, settings).await.unwrap();
        host.exchange(&rig.core).await;
        assert!(host.desired.generation > generation, "the host hears of it");
        generation = host.desired.generation;
        let Wanted::Present(present) = &host.desired.vms[0].wanted else { panic!("absent") };
        assert_eq!(present.end_at, Some(end));
        let warning = jiff::SignedDuration::from_secs(seconds.into());
        assert_eq!(present.warn_at, Some(end - warning), "{seconds} s");
    }
    rig.clock.advance(Duration::from_secs(209));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    assert!(!announced(), "91 s before the end");
    rig.clock.advance(Duration::from_secs(1));
    rig.reconcile().await;
    assert!(announced(), "90 s before the end");
    rig.check_consistent().await;
}

#[tokio::test]
async fn credits_are_charged_by_the_second_and_stop_new_starts() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    let settings = plimsoll_api::v1::SetSettingsRequest {
        prices: Some(plimsoll_model::Prices { core_hour: 3_600_000, ..Default::default() }),
        ..Default::default()
    };
    app::settings_set(&rig.core, &rig.admin, settings).await.unwrap();
    let set = plimsoll_api::v1::SetProjectRequest {
        add_credits: Some(plimsoll_model::Credits(10_000)),
        ..Default::default()
    };
    app::project_set(&rig.core, &rig.admin, &name("p"), set).await.unwrap();
    rig.create(request("a", None, spec(resources(1000, 512)))).await.unwrap();
    let left = |rig: &Rig| {
        app::project_show(&rig.core, &rig.admin, &name("p")).unwrap().credits.unwrap().0
    };
    rig.clock.advance(Duration::from_secs(4));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    assert_eq!(left(&rig), 6_000, "1000 a second");
    rig.create(request("b", None, spec(resources(2000, 512)))).await.unwrap();
    rig.clock.advance(Duration::from_secs(2));
    host.exchange(&rig.core).await;
    rig.reconcile().await;
    assert_eq!(left(&rig), 0, "3000 a second");
    let error = rig.create(request("c", None, spec(resources(1, 512)))).await.unwrap_err();
    assert!(matches!(error, AppError::NoCredits { .. }), "{error}");
    assert_eq!(rig.show("a").state, VmPhase::Running, "what runs goes on");
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_total_is_split_over_hosts_with_room_for_the_overhead() {
    let rig = Rig::new().await;
    let mut hosts = Vec::new();
    for i in 1..=3 {
        hosts.push(rig.host(&format!("h{i}"), StoragePool::Local).await);
    }
    let mut total = request("batch", None, spec(resources(18_000, 18 * 1024)));
    total.requests[0].split = Some(plimsoll_api::v1::Split { min_vms: 1, max_vms: 16 });
    let created = rig.create(total).await.unwrap();
    let cpu: u64 = created.vms.iter().map(|vm| vm.resources.cpu.0).sum();
    assert_eq!(cpu, 18_000);
    assert!(created.vms.len() >= 3);
    let on: BTreeMap<_, usize> = created.vms.iter().fold(BTreeMap::new(), |mut on, vm| {
        *on.entry(vm.host.clone().unwrap()).or_default() += 1;
        on
    });
    assert_eq!(on.len(), 3);
    rig.check_consistent().await;
}

#[tokio::test]
async fn stopped_vms_start_elsewhere_only_from_a_shared_pool() {
    let rig = Rig::new().await;
    let mut hosts = [rig.host("h1", shared()).await, rig.host("h2", shared()).await];
    let created = rig.create(request("a", None, spec(resources(6000, 512)))).await.unwrap();
    let first = created.vms[0].host.clone().unwrap();
    for host in &mut hosts {
        host.exchange(&rig.core).await;
    }
    let (core, admin, p, a) = (&rig.core, &rig.admin, name("p"), name("a"));
    app::vm_stop(core, admin, &p, &a, StopVmRequest::default()).await.unwrap();
    for host in &mut hosts {
        host.exchange(&rig.core).await;
    }
    app::host_drain(core, admin, &first, cordon()).await.unwrap();
    let moved = app::vm_start(core, admin, &p, &a).await.unwrap();
    assert_ne!(moved.host, Some(first));
    for _ in 0..2 {
        for host in &mut hosts {
            host.exchange(&rig.core).await;
        }
    }
    assert_eq!(rig.show("a").state, VmPhase::Running);
    let copies: usize = hosts.iter().map(|host| host.vms.len()).sum();
    assert_eq!(copies, 1);
    rig.check_consistent().await;
}

#[tokio::test]
async fn failed_commits_leave_nothing_and_the_manager_goes_on() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    rig.store.fail_after(Some(0));
    let error = rig.create(request("a", None, spec(resources(1000, 512)))).await.unwrap_err();
    assert!(matches!(error, AppError::Store(_)), "{error}");
    assert!(error.to_body().causes.is_empty(), "internals stay in the log");
    rig.store.fail_after(None);
    rig.check_consistent().await;
    rig.create(request("a", None, spec(resources(8000, 512)))).await.expect("the books are right");
    host.exchange(&rig.core).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_restart_at_any_commit_finds_the_same_state() {
    let mut rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    for commits in 0..12 {
        rig.store.fail_after(Some(commits));
        let vm = format!("a{commits}");
        let _ = rig.create(request(&vm, None, spec(resources(100, 100)))).await;
        host.exchange(&rig.core).await;
        let _ = app::vm_delete(&rig.core, &rig.admin, &name("p"), &name(&vm)).await;
        host.exchange(&rig.core).await;
        rig.store.fail_after(None);
        rig.restart().await;
        rig.check_consistent().await;
        for _ in 0..3 {
            host.exchange(&rig.core).await;
        }
        let running = host.running().count();
        assert_eq!(running, rig.core.snapshot().vms.len());
    }
}

#[tokio::test]
async fn hosts_are_drained_and_removed() {
    let rig = Rig::new().await;
    let mut host = rig.host("h1", StoragePool::Local).await;
    rig.create(request("a", None, spec(resources(1000, 512)))).await.unwrap();
    host.exchange(&rig.core).await;
    let (core, admin, h1) = (&rig.core, &rig.admin, name("h1"));
    let drained = app::host_drain(core, admin, &h1, cordon()).await.unwrap();
    assert!(!drained.host.schedulable && drained.vms.is_empty());
    assert!(matches!(app::host_remove(core, admin, &h1).await, Err(AppError::InUse { .. })));
    rig.create(request("b", None, spec(resources(1000, 512)))).await.unwrap_err();
    app::vm_delete(core, admin, &name("p"), &name("a")).await.unwrap();
    assert!(app::host_remove(core, admin, &h1).await.is_err(), "not confirmed yet");
    host.exchange(&rig.core).await;
    app::host_remove(core, admin, &h1).await.unwrap();
    assert!(!host.send(core, true).await);
    rig.check_consistent().await;
    let phases = app::cluster_numbers(core).hosts;
    assert_eq!(phases.get(&HostPhase::Up), None);
}
