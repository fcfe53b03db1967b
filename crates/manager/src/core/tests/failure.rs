use std::time::Duration;

use plimsoll_model::{EventKind, Fencing, HostPhase, OnHostFailure, StoragePool, VmPhase};

use super::{
    super::rig::{Rig, SimHost, name, request, resources, spec},
    shared,
};
use crate::{
    app,
    reconcile::{FencingCommand, fencing::Fencer},
};

const SECOND: Duration = Duration::from_secs(1);

/// Time passes in seconds: the hosts that are connected talk, guards look, reconcilers work.
async fn run(rig: &Rig, connected: &mut [&mut SimHost], cut: &mut [&mut SimHost], seconds: u32) {
    for _ in 0..seconds {
        rig.clock.advance(SECOND);
        for host in cut.iter_mut() {
            host.guard(rig.core.monotonic());
        }
        for host in connected.iter_mut() {
            host.exchange(&rig.core).await;
        }
        rig.reconcile().await;
        let all = connected.iter().chain(cut.iter());
        let mut running: Vec<_> = all.flat_map(|host| host.running()).collect();
        running.sort_unstable();
        let count = running.len();
        running.dedup();
        assert_eq!(running.len(), count, "a VM runs twice");
    }
}

async fn two_hosts(
    rig: &Rig,
    storage: StoragePool,
    on_host_failure: OnHostFailure,
) -> (SimHost, SimHost) {
    let (mut h1, mut h2) = (rig.host("h1", storage.clone()).await, rig.host("h2", storage).await);
    let mut vm = spec(resources(1000, 512));
    vm.on_host_failure = on_host_failure;
    let mut wanted = request("a", None, vm);
    wanted.policy = Some(plimsoll_model::Policy::FirstFit);
    rig.create(wanted).await.unwrap();
    h1.exchange(&rig.core).await;
    h2.exchange(&rig.core).await;
    assert_eq!(rig.show("a").host, Some(name("h1")));
    assert_eq!(rig.show("a").state, VmPhase::Running);
    (h1, h2)
}

#[tokio::test]
async fn vms_of_a_host_that_is_cut_off_run_elsewhere_once_its_lease_is_over() {
    for (storage, mode) in [
        (shared(), OnHostFailure::Restart),
        (shared(), OnHostFailure::Recreate),
        (StoragePool::Local, OnHostFailure::Recreate),
    ] {
        let rig = Rig::new().await;
        let (mut h1, mut h2) = two_hosts(&rig, storage, mode).await;
        run(&rig, &mut [&mut h1, &mut h2], &mut [], 5).await;
        run(&rig, &mut [&mut h2], &mut [&mut h1], 12).await;
        assert_eq!(rig.show("a").state, VmPhase::Unknown);
        run(&rig, &mut [&mut h2], &mut [&mut h1], 25).await;
        assert_eq!(rig.show("a").state, VmPhase::Running);
        assert_eq!(rig.show("a").host, Some(name("h2")));
        let fenced = app::host_show(&rig.core, &rig.admin, &name("h1")).unwrap();
        assert_eq!((fenced.state, fenced.fencing), (HostPhase::Fenced, Some(Fencing::Lease)));
        // It comes back, cleans up, and takes VMs again.
        run(&rig, &mut [&mut h1, &mut h2], &mut [], 5).await;
        assert!(h1.vms.is_empty());
        let up = app::host_show(&rig.core, &rig.admin, &name("h1")).unwrap();
        assert_eq!((up.state, up.fencing), (HostPhase::Up, None));
        assert_eq!(rig.show("a").host, Some(name("h2")));
        rig.check_consistent().await;
    }
}

#[tokio::test]
async fn vms_with_a_local_disk_wait_for_their_host_and_say_so() {
    for mode in [OnHostFailure::Restart, OnHostFailure::Wait] {
        let rig = Rig::new().await;
        let (mut h1, mut h2) = two_hosts(&rig, StoragePool::Local, mode).await;
        run(&rig, &mut [&mut h1, &mut h2], &mut [], 5).await;
        run(&rig, &mut [&mut h2], &mut [&mut h1], 60).await;
        let shown = rig.show("a");
        assert_eq!((shown.state, shown.host), (VmPhase::Unknown, Some(name("h1"))));
        assert!(shown.message.unwrap().contains("h1"));
        assert_eq!(h1.running().count(), 1, "nothing told its guard to end it");
        run(&rig, &mut [&mut h1, &mut h2], &mut [], 3).await;
        assert_eq!(rig.show("a").state, VmPhase::Running);
        assert_eq!(rig.show("a").message, None);
        rig.check_consistent().await;
    }
}

#[tokio::test]
async fn without_a_lease_only_an_operator_or_a_command_moves_vms() {
    let rig = Rig::new().await;
    let none = plimsoll_api::v1::SetSettingsRequest { lease_ms: Some(0), ..Default::default() };
    app::settings_set(&rig.core, &rig.admin, none).await.unwrap();
    let (mut h1, mut h2) = two_hosts(&rig, shared(), OnHostFailure::Restart).await;
    let first = name("h1");
    let fence = || app::host_fence(&rig.core, &rig.admin, &first);
    assert!(fence().await.is_err(), "it is up");
    run(&rig, &mut [&mut h2], &mut [&mut h1], 90).await;
    assert_eq!(rig.show("a").state, VmPhase::Unknown);
    // The operator pulls the plug.
    h1.reboot("boot-2");
    fence().await.unwrap();
    run(&rig, &mut [&mut h2], &mut [&mut h1], 2).await;
    assert_eq!(rig.show("a").host, Some(name("h2")));
    assert_eq!(rig.show("a").state, VmPhase::Running);
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 4).await;
    assert!(h1.vms.is_empty());
}

#[tokio::test]
async fn a_lease_that_is_switched_on_counts_only_when_hosts_have_heard_of_it() {
    let rig = Rig::new().await;
    let set = |lease_ms| plimsoll_api::v1::SetSettingsRequest {
        lease_ms: Some(lease_ms),
        ..Default::default()
    };
    app::settings_set(&rig.core, &rig.admin, set(0)).await.unwrap();
    let (mut h1, mut h2) = two_hosts(&rig, shared(), OnHostFailure::Restart).await;
    // Switched on while the host is cut off: its guard will never know.
    app::settings_set(&rig.core, &rig.admin, set(20_000)).await.unwrap();
    run(&rig, &mut [&mut h2], &mut [&mut h1], 120).await;
    assert_eq!(h1.running().count(), 1);
    assert_eq!(rig.show("a").host, Some(name("h1")));
    // Once it has heard, it counts.
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 6).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    run(&rig, &mut [&mut h2], &mut [&mut h1], 40).await;
    assert_eq!(rig.show("a").host, Some(name("h2")));
}

#[tokio::test]
async fn a_manager_that_was_down_counts_every_host_as_just_seen() {
    let mut rig = Rig::new().await;
    let (mut h1, mut h2) = two_hosts(&rig, shared(), OnHostFailure::Restart).await;
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 5).await;
    rig.clock.advance(Duration::from_secs(3600));
    rig.restart().await;
    rig.reconcile().await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    run(&rig, &mut [&mut h2], &mut [&mut h1], 5).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    run(&rig, &mut [&mut h2], &mut [&mut h1], 35).await;
    assert_eq!(rig.show("a").host, Some(name("h2")), "an earlier manager had armed the lease");
}

#[tokio::test]
async fn a_deleted_vm_is_kept_until_its_host_has_confirmed() {
    let rig = Rig::new().await;
    let (mut h1, mut h2) = two_hosts(&rig, StoragePool::Local, OnHostFailure::Wait).await;
    run(&rig, &mut [&mut h2], &mut [&mut h1], 12).await;
    app::vm_delete(&rig.core, &rig.admin, &name("p"), &name("a")).await.unwrap();
    run(&rig, &mut [&mut h2], &mut [&mut h1], 40).await;
    assert_eq!(rig.show("a").state, VmPhase::Deleting);
    app::host_remove(&rig.core, &rig.admin, &name("h1")).await.unwrap_err();
    app::host_fence(&rig.core, &rig.admin, &name("h1")).await.unwrap();
    app::host_remove(&rig.core, &rig.admin, &name("h1")).await.unwrap();
    assert!(rig.core.snapshot().vms.is_empty());
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_reboot_is_noticed_and_its_vms_run_again() {
    let rig = Rig::new().await;
    let (mut h1, mut h2) = two_hosts(&rig, StoragePool::Local, OnHostFailure::Wait).await;
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 3).await;
    h1.reboot("boot-2");
    h1.send(&rig.core, true).await;
    assert_eq!(rig.show("a").state, VmPhase::Unknown);
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 2).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
}

#[tokio::test]
async fn late_and_doubled_reports_do_no_harm() {
    let rig = Rig::new().await;
    let (mut h1, _h2) = two_hosts(&rig, StoragePool::Local, OnHostFailure::Wait).await;
    let late = h1.report();
    h1.send(&rig.core, true).await;
    let revision = rig.core.snapshot().revision();
    let error = app::agent_report(&rig.core, h1.id, late.clone()).await.unwrap_err();
    assert!(matches!(error, app::AppError::StaleReport));
    h1.restart_agent();
    h1.send(&rig.core, true).await;
    let error = app::agent_report(&rig.core, h1.id, late).await.unwrap_err();
    assert!(matches!(error, app::AppError::StaleReport), "of an earlier session");
    assert_eq!(rig.core.snapshot().revision(), revision);
}

/// A manager on a manual clock whose fencing command is this shell script.
async fn fenced_by(script: &str, timeout: Duration) -> (Rig, SimHost, SimHost) {
    let rig = Rig::new().await;
    let none = plimsoll_api::v1::SetSettingsRequest { lease_ms: Some(0), ..Default::default() };
    app::settings_set(&rig.core, &rig.admin, none).await.unwrap();
    let (h1, mut h2) = two_hosts(&rig, StoragePool::Local, OnHostFailure::Recreate).await;
    run(&rig, &mut [&mut h2], &mut [], 31).await;
    let command = FencingCommand {
        argv: vec![
            "sh".into(),
            "-c".into(),
            script.into(),
            "fence".into(),
            "{host}".into(),
            "{id}".into(),
        ],
        timeout,
    };
    let fencer = Fencer::new(command);
    fencer.reconcile(rig.core.clone()).await.unwrap();
    (rig, h1, h2)
}

#[tokio::test]
async fn a_fencing_command_that_succeeds_moves_the_vms() {
    let second = Duration::from_secs(10);
    let (rig, _h1, mut h2) = fenced_by(r#"test "$1 $2" = "h1 host-1""#, second).await;
    let shown = app::host_show(&rig.core, &rig.admin, &name("h1")).unwrap();
    assert_eq!((shown.state, shown.fencing), (HostPhase::Fenced, Some(Fencing::Command)));
    run(&rig, &mut [&mut h2], &mut [], 2).await;
    assert_eq!(rig.show("a").host, Some(name("h2")));
    assert_eq!(rig.show("a").state, VmPhase::Running);
}

#[tokio::test]
async fn a_fencing_command_that_fails_or_hangs_moves_nothing_and_says_why() {
    for (script, timeout, why) in [
        ("echo no such outlet >&2; exit 3", Duration::from_secs(10), "no such outlet"),
        ("sleep 60", Duration::from_millis(50), "did not end"),
    ] {
        let (rig, _h1, mut h2) = fenced_by(script, timeout).await;
        run(&rig, &mut [&mut h2], &mut [], 2).await;
        assert_eq!(rig.show("a").state, VmPhase::Unknown);
        let state = rig.core.snapshot();
        let failure = state.events.iter().find(|e| e.kind == EventKind::HostFencingFailed).unwrap();
        assert!(failure.message.contains(why), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_store_that_fails_does_not_end_what_runs() {
    let rig = Rig::new().await;
    let (mut h1, mut h2) = two_hosts(&rig, shared(), OnHostFailure::Restart).await;
    rig.store.fail_after(Some(0));
    // Something to write at every report, for longer than the lease.
    for round in 0..60 {
        rig.clock.advance(SECOND);
        h1.spec.qemu_version = format!("10.0.{round}");
        h1.exchange(&rig.core).await;
        h2.exchange(&rig.core).await;
        assert_eq!(h1.running().count(), 1);
    }
    rig.store.fail_after(None);
    run(&rig, &mut [&mut h1, &mut h2], &mut [], 2).await;
    assert_eq!(rig.show("a").state, VmPhase::Running);
    rig.check_consistent().await;
}

#[tokio::test]
async fn a_lease_whose_grants_were_lost_proves_nothing() {
    let rig = Rig::new().await;
    let set = |lease_ms| plimsoll_api::v1::SetSettingsRequest {
        lease_ms: Some(lease_ms),
        ..Default::default()
    };
    app::settings_set(&rig.core, &rig.admin, set(0)).await.unwrap();
    let (mut h1, mut h2) = two_hosts(&rig, shared(), OnHostFailure::Restart).await;
    app::settings_set(&rig.core, &rig.admin, set(20_000)).await.unwrap();
    // The host hears that its guards are to act, but not of the lease by which they act.
    h1.send(&rig.core, false).await;
    h1.fetch(&rig.core).await;
    h1.act(rig.core.monotonic());
    h1.send(&rig.core, false).await;
    run(&rig, &mut [&mut h2], &mut [&mut h1], 120).await;
    assert_eq!(h1.running().count(), 1);
    assert_eq!(rig.show("a").host, Some(name("h1")));
    let dead = app::host_show(&rig.core, &rig.admin, &name("h1")).unwrap();
    assert_eq!(dead.state, HostPhase::Dead);
}

#[tokio::test]
async fn a_vm_that_nobody_knows_is_put_on_record_once_and_left_alone() {
    let rig = Rig::new().await;
    let (mut h1, _h2) = two_hosts(&rig, StoragePool::Local, OnHostFailure::Wait).await;
    let vm = h1.vms.values().next().unwrap().clone();
    let unknown = plimsoll_model::VmId(uuid::Uuid::from_u128(0xdead));
    h1.vms.insert(unknown, vm);
    for _ in 0..3 {
        h1.exchange(&rig.core).await;
    }
    assert!(h1.vms[&unknown].running);
    let state = rig.core.snapshot();
    let on_record = |kind| state.events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(on_record(EventKind::VmUnclaimed), 1);
}
