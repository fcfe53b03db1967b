//! Moves of a running VM: as they should go, and whatever dies on the way.

use std::time::Duration;

use plimsoll_api::{
    cluster::Wanted,
    migration::{DesiredMigration, MigrationLimits, MigrationStage},
    v1::{DeflateVmRequest, MigrateRequest, MigrationOutcome, SetVmRequest, StopVmRequest},
};
use plimsoll_model::{
    Constraint, EventKind, HostPhase, MilliCores, OnHostFailure, Power, Resources, Rule, Scope,
    StoragePool, Strength, VmId, VmPhase,
};

use super::{
    super::rig::{Rig, Said, SimHost, host_spec, name, request, resources, spec},
    shared,
};
use crate::app::{self, AppError};

const SECOND: Duration = Duration::from_secs(1);
const GO: Said = Said { go: true, heard: true };
const NO: Said = Said { go: false, heard: true };
const UNHEARD: Said = Said { go: true, heard: false };

/// A VM `a` on the first of two hosts.
struct Scene {
    rig: Rig,
    h1: SimHost,
    h2: SimHost,
    vm: VmId,
}

/// Who is cut off from the manager.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nobody,
    Source,
    Target,
}

impl Scene {
    async fn new(storage: StoragePool, mode: OnHostFailure) -> Self {
        let rig = Rig::new().await;
        let mut h1 = rig.host("h1", storage.clone()).await;
        let h2 = rig.host("h2", storage).await;
        let mut vm = spec(resources(1000, 512));
        vm.networks = vec![name("net")];
        vm.on_host_failure = mode;
        let mut wanted = request("a", None, vm);
        wanted.policy = Some(plimsoll_model::Policy::FirstFit);
        let vm = rig.create(wanted).await.unwrap().vms[0].id;
        h1.exchange(&rig.core).await;
        h1.exchange(&rig.core).await;
        assert_eq!(rig.show("a").state, VmPhase::Running);
        Self { rig, h1, h2, vm }
    }

    async fn migrate(&self) -> Result<(), AppError> {
        let (core, admin) = (&self.rig.core, &self.rig.admin);
        let wanted = MigrateRequest::default();
        app::vm_migrate(core, admin, &name("p"), &name("a"), wanted).await.map(|_| ())
    }

    /// Begins a move, and goes on with it until the source has come to this stage.
    async fn begin(&mut self, stage: MigrationStage) {
        self.migrate().await.unwrap();
        self.h1.exchange(&self.rig.core).await;
        self.h2.exchange(&self.rig.core).await;
        let steps = match stage {
            MigrationStage::Preparing => 0,
            MigrationStage::CopyingMemory => 1,
            _ => 2,
        };
        for _ in 0..steps {
            self.talk(GO);
        }
        assert_eq!(self.part(), Some(stage));
    }

    fn part(&self) -> Option<MigrationStage> {
        self.h1.vms.get(&self.vm).and_then(|vm| vm.part).map(|part| part.stage)
    }

    fn talk(&mut self, said: Said) {
        self.h1.talk(&mut self.h2, self.vm, self.rig.core.monotonic(), said);
    }

    /// Time passes in seconds, without a word between the hosts.
    async fn pass(&mut self, cut: Cut, seconds: u32) {
        for _ in 0..seconds {
            self.rig.clock.advance(SECOND);
            let core = self.rig.core.clone();
            for (who, host) in [(Cut::Source, &mut self.h1), (Cut::Target, &mut self.h2)] {
                if who == cut {
                    host.guard(core.monotonic());
                } else {
                    host.exchange(&core).await;
                }
            }
            self.rig.reconcile().await;
            self.check();
        }
    }

    fn check(&self) {
        let running = [&self.h1, &self.h2].map(|host| host.running().count());
        assert!(running.iter().sum::<usize>() <= 1, "it runs twice");
    }

    fn on(&self) -> Option<String> {
        self.rig.show("a").host.map(|host| host.to_string())
    }

    fn outcome(&self) -> Option<MigrationOutcome> {
        self.rig.show("a").last_migration.map(|last| last.outcome)
    }

    fn events(&self, kind: EventKind) -> usize {
        self.rig.core.snapshot().events.iter().filter(|event| event.kind == kind).count()
    }

    async fn fence(&mut self, host: &str) {
        let fenced = app::host_fence(&self.rig.core, &self.rig.admin, &name(host)).await;
        assert_eq!(fenced.unwrap().state, HostPhase::Fenced);
    }

    async fn lease(&self, lease_ms: u64) {
        let set =
            plimsoll_api::v1::SetSettingsRequest { lease_ms: Some(lease_ms), ..Default::default() };
        app::settings_set(&self.rig.core, &self.rig.admin, set).await.unwrap();
    }

    /// All is as it should be: the VM runs there, and nothing is left over.
    async fn settled_on(&mut self, host: &str) {
        self.pass(Cut::Nobody, 5).await;
        let shown = self.rig.show("a");
        assert_eq!((shown.state, shown.host), (VmPhase::Running, Some(name(host))));
        assert_eq!(shown.migration, None);
        let (here, other) = if host == "h1" { (&self.h1, &self.h2) } else { (&self.h2, &self.h1) };
        assert!(here.vms[&self.vm].running);
        assert!(other.vms.is_empty(), "something is left over");
        assert_eq!(shown.observed_generation, shown.generation);
        self.rig.check_consistent().await;
    }
}

#[tokio::test]
async fn a_vm_moves_and_its_project_sees_what_it_cost() {
    for storage in [shared(), StoragePool::Local] {
        let mut scene = Scene::new(storage.clone(), OnHostFailure::Restart).await;
        scene.begin(MigrationStage::Preparing).await;
        let shown = scene.rig.show("a").migration.unwrap();
        assert_eq!((shown.from.as_str(), shown.to.as_str()), ("h1", "h2"));
        assert_eq!(shown.copy_disk, storage == StoragePool::Local);
        let committed = |host: &str| {
            app::host_show(&scene.rig.core, &scene.rig.admin, &name(host)).unwrap().committed.cpu
        };
        assert_eq!(["h1", "h2"].map(committed), [MilliCores(1000); 2], "both hold room");
        let state = scene.rig.core.snapshot();
        let network = state.vm(scene.vm).unwrap().vm.interfaces[0].network;
        assert_eq!(state.hosts_of_network(network).count(), 2, "both are told of each other");
        scene.rig.check_consistent().await;

        scene.talk(GO);
        scene.pass(Cut::Nobody, 1).await;
        assert_eq!(scene.rig.show("a").migration.unwrap().stage, MigrationStage::CopyingMemory);
        scene.talk(GO);
        scene.pass(Cut::Nobody, 2).await;
        assert_eq!(scene.on().as_deref(), Some("h1"), "nobody has said that it runs elsewhere");
        assert_eq!(scene.rig.show("a").state, VmPhase::Running);
        scene.talk(GO);
        scene.settled_on("h2").await;
        let last = scene.rig.show("a").last_migration.unwrap();
        assert_eq!(last.outcome, MigrationOutcome::Moved);
        assert_eq!(last.figures.unwrap().downtime_ms, 50);
        assert_eq!(last.predicted.unwrap().total_ms, 900);
        for kind in [EventKind::VmMigrating, EventKind::VmMigrated, EventKind::VmMigrationMeasured]
        {
            assert_eq!(scene.events(kind), 1, "{kind}");
        }
        // And nothing was taken for a start, a crash or a loss.
        for kind in [EventKind::VmStarted, EventKind::VmPlaced] {
            assert_eq!(scene.events(kind), 1, "{kind}");
        }
        assert_eq!(scene.events(EventKind::VmCrashed) + scene.events(EventKind::VmLost), 0);
    }
}

#[tokio::test]
async fn a_move_that_fails_leaves_the_vm_where_it_is_and_another_one_may_follow() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    for round in 1..=2 {
        scene.begin(MigrationStage::Switching).await;
        assert!(!scene.h1.vms[&scene.vm].running);
        scene.talk(NO);
        scene.settled_on("h1").await;
        assert_eq!(scene.outcome(), Some(MigrationOutcome::Failed));
        assert_eq!(scene.events(EventKind::VmMigrationFailed), round);
        assert_eq!(scene.rig.show("a").last_migration.unwrap().message.unwrap(), "as it happened");
    }
    scene.begin(MigrationStage::Switching).await;
    scene.talk(GO);
    scene.settled_on("h2").await;
    let state = scene.rig.core.snapshot();
    assert_eq!(state.vm(scene.vm).unwrap().vm.incarnation, 6, "each is above all before");
}

#[tokio::test]
async fn a_move_is_cancelled_until_the_vm_is_handed_over() {
    let (p, a) = (name("p"), name("a"));
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    let refused =
        app::vm_migrate_cancel(&scene.rig.core, &scene.rig.admin, &p, &a).await.unwrap_err();
    assert!(matches!(refused, AppError::WrongState { .. }));
    scene.begin(MigrationStage::CopyingMemory).await;
    app::vm_migrate_cancel(&scene.rig.core, &scene.rig.admin, &p, &a).await.unwrap();
    assert!(scene.rig.show("a").migration.unwrap().cancelled);
    scene.settled_on("h1").await;
    assert_eq!(scene.outcome(), Some(MigrationOutcome::Cancelled));
    assert_eq!(scene.events(EventKind::VmMigrationCancelled), 1);

    scene.begin(MigrationStage::Switching).await;
    app::vm_migrate_cancel(&scene.rig.core, &scene.rig.admin, &p, &a).await.unwrap();
    scene.talk(GO);
    scene.settled_on("h2").await;
    assert_eq!(scene.outcome(), Some(MigrationOutcome::Moved));
}

#[tokio::test]
async fn while_it_moves_nothing_else_of_a_vm_changes_but_that_it_may_go() {
    let (p, a) = (name("p"), name("a"));
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    scene.begin(MigrationStage::CopyingMemory).await;
    let (core, admin) = (scene.rig.core.clone(), scene.rig.admin.clone());
    let set = SetVmRequest { cpu: Some(MilliCores(500)), ..SetVmRequest::default() };
    let deflate = DeflateVmRequest { cpu_percent: 10, ..DeflateVmRequest::default() };
    let refused = [
        app::vm_set(&core, &admin, &p, &a, set).await,
        app::vm_stop(&core, &admin, &p, &a, StopVmRequest::default()).await,
        app::vm_reboot(&core, &admin, &p, &a).await,
        app::vm_deflate(&core, &admin, &p, &a, deflate).await,
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(matches!(error, AppError::WrongState { .. }), "{error}");
        assert!(error.hint().contains("--cancel"));
    }
    assert!(matches!(scene.migrate().await, Err(AppError::WrongState { .. })));
    app::vm_delete(&core, &admin, &p, &a).await.unwrap();
    scene.h1.exchange(&core).await;
    assert!(app::vm_show(&core, &admin, &p, &a).is_ok(), "the target has not confirmed");
    scene.rig.check_consistent().await;
    scene.h2.exchange(&core).await;
    assert!(app::vm_show(&core, &admin, &p, &a).is_err());
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn the_end_of_a_vm_that_moves_comes_when_it_is_there() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    let end_at = Some(scene.rig.core.now() + Duration::from_secs(90));
    let set = SetVmRequest { end_at, ..SetVmRequest::default() };
    let (core, admin) = (scene.rig.core.clone(), scene.rig.admin.clone());
    app::vm_set(&core, &admin, &name("p"), &name("a"), set).await.unwrap();
    scene.pass(Cut::Nobody, 2).await;
    scene.begin(MigrationStage::Switching).await;
    scene.pass(Cut::Nobody, 100).await;
    assert_eq!(scene.rig.show("a").power, Power::Running);
    scene.talk(GO);
    scene.pass(Cut::Nobody, 5).await;
    let shown = scene.rig.show("a");
    assert_eq!((shown.power, shown.state), (Power::Stopped, VmPhase::Stopped));
    assert_eq!(scene.on().as_deref(), Some("h2"));
}

#[tokio::test]
async fn a_vm_that_ends_on_the_way_is_the_sources_until_the_move_is_over() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    scene.begin(MigrationStage::CopyingMemory).await;
    let vm = scene.vm;
    scene.h1.power_off(vm);
    // What it reports first is only that: the move is not over yet.
    scene.h1.send(&scene.rig.core, true).await;
    assert_eq!(scene.rig.show("a").state, VmPhase::Running);
    scene.pass(Cut::Nobody, 5).await;
    let shown = scene.rig.show("a");
    assert_eq!(scene.outcome(), Some(MigrationOutcome::Failed));
    assert_eq!((shown.power, shown.state), (Power::Stopped, VmPhase::Stopped));
    assert_eq!(scene.on().as_deref(), Some("h1"));
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn a_manager_that_restarts_goes_on_with_the_move() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    scene.begin(MigrationStage::Switching).await;
    scene.rig.restart().await;
    scene.rig.check_consistent().await;
    scene.talk(GO);
    scene.rig.restart().await;
    scene.settled_on("h2").await;
}

#[tokio::test]
async fn a_source_that_falls_silent_is_waited_for_and_the_targets_word_is_enough() {
    let mut scene = Scene::new(shared(), OnHostFailure::Wait).await;
    scene.begin(MigrationStage::Switching).await;
    scene.pass(Cut::Source, 60).await;
    let shown = scene.rig.show("a");
    assert_eq!(shown.state, VmPhase::Unknown);
    assert!(shown.migration.unwrap().message.unwrap().contains("h1"));
    scene.talk(GO);
    scene.pass(Cut::Source, 2).await;
    assert_eq!(scene.on().as_deref(), Some("h2"));
    assert_eq!(scene.rig.show("a").state, VmPhase::Running);
    scene.settled_on("h2").await;
    assert_eq!(scene.rig.show("a").last_migration.unwrap().figures.map(|f| f.passes), Some(3));
}

#[tokio::test]
async fn a_target_that_falls_silent_is_not_needed_when_the_source_says_that_it_has_it() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    scene.begin(MigrationStage::Switching).await;
    scene.pass(Cut::Target, 2).await;
    scene.talk(GO);
    scene.pass(Cut::Target, 2).await;
    assert_eq!(scene.on().as_deref(), Some("h2"));
    scene.settled_on("h2").await;
}

#[tokio::test]
async fn a_vm_of_a_fenced_source_is_placed_elsewhere_only_once_the_target_has_nothing_of_it() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    let mut h3 = scene.rig.host("h3", shared()).await;
    scene.begin(MigrationStage::Switching).await;
    // Cut off from the manager, and the lease ends what it had of the VM.
    for _ in 0..60 {
        scene.rig.clock.advance(SECOND);
        scene.h1.guard(scene.rig.core.monotonic());
        h3.exchange(&scene.rig.core).await;
        // The target reports, but hears nothing new.
        scene.h2.send(&scene.rig.core, true).await;
        scene.rig.reconcile().await;
        assert_eq!(scene.on().as_deref(), Some("h1"));
    }
    let h1 = app::host_show(&scene.rig.core, &scene.rig.admin, &name("h1")).unwrap();
    assert_eq!(h1.state, HostPhase::Fenced);
    assert!(scene.rig.show("a").migration.unwrap().message.unwrap().contains("h2"));
    for _ in 0..3 {
        scene.h2.exchange(&scene.rig.core).await;
        scene.rig.reconcile().await;
        h3.exchange(&scene.rig.core).await;
    }
    assert_eq!(scene.outcome(), Some(MigrationOutcome::Failed));
    assert_eq!(scene.rig.show("a").state, VmPhase::Running);
    assert_ne!(scene.on().as_deref(), Some("h1"));
    // The source is back, and still believes that it may say go.
    scene.talk(GO);
    let all = [&scene.h1, &scene.h2, &h3].map(|host| host.running().count());
    assert_eq!(all.iter().sum::<usize>(), 1);
    scene.pass(Cut::Nobody, 3).await;
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn a_vm_that_had_arrived_when_its_source_was_fenced_is_the_targets() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    scene.begin(MigrationStage::Switching).await;
    scene.pass(Cut::Source, 10).await;
    scene.talk(UNHEARD);
    assert_eq!(scene.part(), Some(MigrationStage::Switching));
    scene.pass(Cut::Source, 60).await;
    assert_eq!(scene.on().as_deref(), Some("h2"));
    assert_eq!(scene.outcome(), Some(MigrationOutcome::Moved));
    scene.settled_on("h2").await;
}

#[tokio::test]
async fn a_fenced_target_with_a_shared_disk_leaves_the_vm_to_its_source() {
    for stage in [MigrationStage::CopyingMemory, MigrationStage::Switching, MigrationStage::Gone] {
        let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
        scene.lease(0).await;
        scene.pass(Cut::Nobody, 2).await;
        let gone = stage == MigrationStage::Gone;
        scene.begin(if gone { MigrationStage::Switching } else { stage }).await;
        if gone {
            scene.talk(UNHEARD);
        }
        scene.pass(Cut::Target, 90).await;
        assert_eq!(scene.on().as_deref(), Some("h1"));
        assert!(scene.rig.show("a").migration.is_some(), "nothing is known");
        scene.h2.reboot("boot-2");
        scene.fence("h2").await;
        scene.pass(Cut::Target, 5).await;
        assert_eq!(scene.outcome(), Some(MigrationOutcome::Failed));
        assert!(scene.h1.vms[&scene.vm].running);
        scene.settled_on("h1").await;
        let back = app::host_show(&scene.rig.core, &scene.rig.admin, &name("h2")).unwrap();
        assert_eq!(back.state, HostPhase::Up);
    }
}

#[tokio::test]
async fn a_fenced_target_that_may_have_the_only_disk_is_waited_for() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    scene.lease(0).await;
    scene.pass(Cut::Nobody, 2).await;
    scene.begin(MigrationStage::Switching).await;
    scene.talk(UNHEARD);
    scene.pass(Cut::Target, 90).await;
    scene.h2.reboot("boot-2");
    scene.fence("h2").await;
    scene.pass(Cut::Target, 30).await;
    let shown = scene.rig.show("a");
    assert!(shown.migration.unwrap().message.unwrap().contains("so is its disk"));
    let (core, admin) = (scene.rig.core.clone(), scene.rig.admin.clone());
    for host in ["h1", "h2"] {
        let refused = app::host_remove(&core, &admin, &name(host)).await.unwrap_err();
        assert!(matches!(refused, AppError::InUse { .. }), "{refused}");
    }
    scene.settled_on("h2").await;
}

#[tokio::test]
async fn with_both_hosts_fenced_the_vm_is_placed_anew() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    let mut h3 = scene.rig.host("h3", shared()).await;
    scene.begin(MigrationStage::Switching).await;
    for _ in 0..90 {
        scene.rig.clock.advance(SECOND);
        scene.h1.guard(scene.rig.core.monotonic());
        scene.h2.guard(scene.rig.core.monotonic());
        h3.exchange(&scene.rig.core).await;
        scene.rig.reconcile().await;
    }
    assert_eq!(scene.on().as_deref(), Some("h3"));
    scene.talk(GO);
    assert_eq!(scene.h1.running().count() + scene.h2.running().count(), 0);
    scene.pass(Cut::Nobody, 5).await;
    assert!(scene.h1.vms.is_empty() && scene.h2.vms.is_empty());
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn reports_that_are_late_doubled_or_of_another_move_change_nothing() {
    let mut scene = Scene::new(shared(), OnHostFailure::Restart).await;
    scene.begin(MigrationStage::Switching).await;
    let foreign = uuid::Uuid::from_u128(7);
    let (vm, core) = (scene.vm, scene.rig.core.clone());
    let before = core.snapshot().vm(vm).cloned();
    for stage in [MigrationStage::Gone, MigrationStage::Failed, MigrationStage::Arrived] {
        for host in [&mut scene.h1, &mut scene.h2] {
            let mut report = host.report();
            for observed in &mut report.vms {
                if let Some(migration) = &mut observed.migration {
                    (migration.id, migration.stage) = (foreign, stage);
                }
            }
            app::agent_report(&core, host.id, report).await.unwrap();
        }
    }
    // A host that has no part in it.
    let mut h3 = scene.rig.host("h3", shared()).await;
    let mut report = h3.report();
    report.vms = scene.h2.report().vms;
    report.vms[0].migration.as_mut().unwrap().stage = MigrationStage::Arrived;
    app::agent_report(&core, h3.id, report).await.unwrap();
    let after = core.snapshot().vm(vm).cloned();
    assert_eq!(
        before.unwrap().migration.as_ref().map(|m| m.id),
        after.unwrap().migration.as_ref().map(|m| m.id)
    );
    scene.talk(GO);
    scene.settled_on("h2").await;
    let settled = core.snapshot().vm(vm).cloned();
    // Both tell it again.
    for host in [&mut scene.h1, &mut scene.h2] {
        host.exchange(&core).await;
    }
    assert_eq!(settled, core.snapshot().vm(vm).cloned());
}

#[tokio::test]
async fn what_cannot_move_is_refused_with_the_reason() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    let (core, admin) = (scene.rig.core.clone(), scene.rig.admin.clone());
    let wanted = |to: Option<&str>| MigrateRequest { to: to.map(name), ..Default::default() };
    let migrate = async |vm: &str, to: Option<&str>| {
        app::vm_migrate(&core, &admin, &name("p"), &name(vm), wanted(to)).await.unwrap_err()
    };
    assert_eq!(migrate("a", Some("h1")).await.in_full().matches("is on that host").count(), 1);
    assert!(matches!(migrate("a", Some("nowhere")).await, AppError::NotFound { .. }));
    let limits = MigrationLimits { max_downtime_ms: 0, ..MigrationLimits::default() };
    let wrong = MigrateRequest { limits, ..Default::default() };
    let refused = app::vm_migrate(&core, &admin, &name("p"), &name("a"), wrong).await.unwrap_err();
    assert!(matches!(refused, AppError::Invalid(_)));

    let with = async |change: fn(&mut plimsoll_model::HostSpec), host: &mut SimHost| {
        host.spec = host_spec(StoragePool::Local);
        change(&mut host.spec);
        host.exchange(&core).await;
    };
    with(|spec| spec.accelerator = "kvm".into(), &mut scene.h2).await;
    assert!(migrate("a", Some("h2")).await.in_full().contains("run under kvm"));
    with(|spec| spec.qemu_version = "9.2.1".into(), &mut scene.h2).await;
    let refused = migrate("a", None).await;
    assert!(matches!(&refused, AppError::NoMigration { unfit, .. } if unfit.len() == 1));
    assert!(refused.to_body().details["h2"].contains("9.2.1"), "{:?}", refused.to_body());
    with(|spec| spec.agent_version = "0.0.9".into(), &mut scene.h2).await;
    assert!(migrate("a", Some("h2")).await.in_full().contains("its agent 0.0.9"));
    with(|spec| spec.storage = shared(), &mut scene.h2).await;
    assert!(migrate("a", Some("h2")).await.in_full().contains("in pool pool"));
    with(|spec| spec.capacity = Resources { ..resources(500, 8192) }, &mut scene.h2).await;
    assert!(matches!(migrate("a", Some("h2")).await, AppError::NoCapacity { .. }));
    assert!(matches!(migrate("a", None).await, AppError::NoMigration { .. }));
    with(|_| (), &mut scene.h2).await;
    app::vm_stop(&core, &admin, &name("p"), &name("a"), StopVmRequest::default()).await.unwrap();
    scene.pass(Cut::Nobody, 2).await;
    assert!(matches!(migrate("a", None).await, AppError::WrongState { .. }));
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn a_dry_run_says_where_it_would_go_and_moves_nothing() {
    let scene = Scene::new(shared(), OnHostFailure::Restart).await;
    let wanted = MigrateRequest { dry_run: true, ..Default::default() };
    let before = scene.rig.core.snapshot().revision();
    let (core, admin) = (&scene.rig.core, &scene.rig.admin);
    let said = app::vm_migrate(core, admin, &name("p"), &name("a"), wanted).await.unwrap();
    assert_eq!((said.from.as_str(), said.to.as_str()), ("h1", "h2"));
    assert!(!said.copy_disk && said.vm.migration.is_none());
    assert_eq!(scene.rig.core.snapshot().revision(), before);
}

#[tokio::test]
async fn rules_hold_for_the_target_as_if_the_vm_had_left_its_host() {
    let rig = Rig::new().await;
    let mut hosts = Vec::new();
    for host in ["h1", "h2", "h3"] {
        hosts.push(rig.host(host, shared()).await);
    }
    let mut vm = spec(resources(1000, 512));
    vm.groups = [name("g")].into();
    let rule = Rule::AntiAffinity { group: name("g"), scope: Scope::Host };
    vm.constraints = vec![Constraint { strength: Strength::Required, rule }];
    rig.create(request("a", Some(2), vm)).await.unwrap();
    for host in &mut hosts {
        host.exchange(&rig.core).await;
        host.exchange(&rig.core).await;
    }
    let (core, admin, p) = (&rig.core, &rig.admin, name("p"));
    let taken = [rig.show("a-1").host.unwrap(), rig.show("a-2").host.unwrap()];
    let to = |host: &plimsoll_model::Name| MigrateRequest {
        to: Some(host.clone()),
        ..Default::default()
    };
    let refused = app::vm_migrate(core, admin, &p, &name("a-1"), to(&taken[1])).await.unwrap_err();
    assert!(matches!(refused, AppError::NoCapacity { .. }));
    let said = app::vm_migrate(core, admin, &p, &name("a-1"), MigrateRequest::default()).await;
    let free = said.unwrap().to;
    assert!(!taken.contains(&free));
    // The room that is held there counts for the rules too.
    let refused = app::vm_migrate(core, admin, &p, &name("a-2"), to(&free)).await.unwrap_err();
    assert!(matches!(refused, AppError::NoCapacity { .. }));
    rig.check_consistent().await;
}

#[tokio::test]
async fn both_hosts_are_told_what_their_part_is() {
    let mut scene = Scene::new(StoragePool::Local, OnHostFailure::Restart).await;
    scene.begin(MigrationStage::Preparing).await;
    let wish = |host: &SimHost| {
        let wanted = host.desired.vms[0].clone();
        let Wanted::Present(present) = wanted.wanted else { panic!("present") };
        (wanted.incarnation, present)
    };
    let ((from, departs), (to, arrives)) = (wish(&scene.h1), wish(&scene.h2));
    assert!(to > from);
    let Some(DesiredMigration::Departure(departure)) = departs.migration else { panic!("leaves") };
    let Some(DesiredMigration::Arrival(arrival)) = arrives.migration else { panic!("comes") };
    assert_eq!(departure.id, arrival.id);
    assert_eq!((departure.to, arrival.from), (scene.h2.id, scene.h1.id));
    assert_eq!(departure.address, scene.h2.spec.agent_address);
    assert!(departure.copy_disk && !departure.cancel && !departure.target_lost);
    assert_eq!(departs.generation, arrives.generation);
    assert_eq!(scene.h2.desired.networks.len(), 1);
}
