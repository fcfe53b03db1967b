//! Hosts are emptied, as far as that is possible, and say what is not.

use std::{collections::BTreeSet, time::Duration};

use plimsoll_api::v1::{DrainProspect, DrainRequest, StopVmRequest};
use plimsoll_model::{Constraint, EventKind, Name, Rule, Scope, StoragePool, Strength, VmPhase};

use super::{
    super::rig::{Rig, Said, SimHost, host_spec, name, request, resources, spec},
    shared,
};
use crate::app;

const SECOND: Duration = Duration::from_secs(1);

/// Three hosts, of which the first has VMs.
struct Scene {
    rig: Rig,
    hosts: Vec<SimHost>,
    /// Whether moves get further than their beginning, and whether they succeed.
    said: Option<Said>,
}

impl Scene {
    async fn new(storage: StoragePool, vms: u32) -> Self {
        let rig = Rig::new().await;
        let hosts = vec![rig.host("h1", storage.clone()).await];
        let mut wanted = spec(resources(500, 256));
        wanted.networks = vec![name("net")];
        if vms > 0 {
            rig.create(request("a", Some(vms), wanted)).await.unwrap();
        }
        let said = Some(Said { go: true, heard: true });
        let mut scene = Self { rig, hosts, said };
        scene.pass(2).await;
        for host in ["h2", "h3"] {
            let host = scene.rig.host(host, storage.clone()).await;
            scene.hosts.push(host);
        }
        scene
    }

    async fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.rig.clock.advance(SECOND);
            let core = self.rig.core.clone();
            for host in &mut self.hosts {
                host.exchange(&core).await;
            }
            let ids: Vec<_> = core.snapshot().migrating.iter().copied().collect();
            for (id, said) in ids.into_iter().flat_map(|id| self.said.map(|said| (id, said))) {
                for (source, target) in [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1)] {
                    let [source, target] = self.hosts.get_disjoint_mut([source, target]).unwrap();
                    if source.knows_target(id, target.id) {
                        source.talk(target, id, core.monotonic(), said);
                    }
                }
            }
            self.rig.reconcile().await;
            let mut running = BTreeSet::new();
            for vm in self.hosts.iter().flat_map(|host| host.running()) {
                assert!(running.insert(vm), "it runs twice");
            }
        }
    }

    async fn drain(&self, request: DrainRequest) -> plimsoll_api::v1::DrainResponse {
        let (core, admin) = (&self.rig.core, &self.rig.admin);
        app::host_drain(core, admin, &name("h1"), request).await.unwrap()
    }

    fn vms_of(&self, host: &str) -> u32 {
        app::host_show(&self.rig.core, &self.rig.admin, &name(host)).unwrap().vms
    }

    fn moving(&self) -> usize {
        self.rig.core.snapshot().migrating.len()
    }
}

#[tokio::test]
async fn a_host_is_emptied_a_few_vms_at_once_and_they_spread_within_their_rules() {
    let mut scene = Scene::new(StoragePool::Local, 0).await;
    for (n, apart) in [(0, true), (1, false), (2, false), (3, true), (4, false)] {
        let mut vm = spec(resources(500, 256));
        if apart {
            let rule = Rule::AntiAffinity { group: name("g"), scope: Scope::Host };
            // Only elsewhere: here they may be together until they have to move.
            vm.groups = [name("g")].into();
            vm.constraints = vec![Constraint { strength: Strength::Preferred, rule }];
        }
        let mut wanted = request(&format!("a-{n}"), None, vm);
        wanted.policy = Some(plimsoll_model::Policy::MostFree);
        scene.rig.create(wanted).await.unwrap();
    }
    scene.pass(2).await;
    let on_first = scene.vms_of("h1");
    let said = scene.drain(DrainRequest { parallel: 2, ..DrainRequest::default() }).await;
    assert_eq!(said.vms.len(), usize::try_from(on_first).unwrap());
    assert!(said.vms.iter().all(|vm| vm.prospect == DrainProspect::Moves && vm.to.is_some()));
    assert!(!said.host.schedulable);
    for _ in 0..30 {
        scene.pass(1).await;
        assert!(scene.moving() <= 2);
        scene.rig.check_consistent().await;
    }
    assert_eq!((scene.vms_of("h1"), scene.moving()), (0, 0));
    let hosts: BTreeSet<Name> =
        [0, 3].map(|n| scene.rig.show(&format!("a-{n}")).host.unwrap()).into();
    assert_eq!(hosts.len(), 2, "they are apart");
    // What was said beforehand came true.
    for vm in said.vms {
        assert_eq!(scene.rig.show(vm.vm.as_str()).host, vm.to, "{}", vm.vm);
    }
}

#[tokio::test]
async fn five_vms_spread_over_the_other_hosts_and_a_new_manager_goes_on() {
    let mut scene = Scene::new(shared(), 5).await;
    assert_eq!(scene.vms_of("h1"), 5);
    scene.drain(DrainRequest::default()).await;
    scene.pass(2).await;
    assert_eq!(scene.moving(), 2);
    scene.rig.restart().await;
    scene.pass(30).await;
    assert_eq!(scene.vms_of("h1"), 0);
    assert!(scene.vms_of("h2") >= 2 && scene.vms_of("h3") >= 2);
    let (core, admin) = (&scene.rig.core, &scene.rig.admin);
    assert!(app::host_show(core, admin, &name("h1")).unwrap().draining.unwrap().waiting.is_empty());
    // What is undrained stays as it is.
    app::host_undrain(core, admin, &name("h1")).await.unwrap();
    scene.pass(10).await;
    let back = app::host_show(&scene.rig.core, &scene.rig.admin, &name("h1")).unwrap();
    assert_eq!((back.vms, back.schedulable, back.draining), (0, true, None));
    scene.rig.check_consistent().await;
}

#[tokio::test]
async fn undraining_lets_moves_that_have_begun_end() {
    let mut scene = Scene::new(shared(), 4).await;
    scene.drain(DrainRequest { parallel: 1, ..DrainRequest::default() }).await;
    scene.pass(1).await;
    assert_eq!(scene.moving(), 1);
    app::host_undrain(&scene.rig.core, &scene.rig.admin, &name("h1")).await.unwrap();
    scene.pass(10).await;
    assert_eq!((scene.vms_of("h1"), scene.moving()), (3, 0));
}

#[tokio::test]
async fn what_cannot_move_says_why_and_moves_once_it_can() {
    let mut scene = Scene::new(StoragePool::Local, 2).await;
    for host in &mut scene.hosts[1..] {
        host.spec.capacity = resources(100, 8192);
    }
    scene.pass(2).await;
    let said = scene.drain(DrainRequest::default()).await;
    for vm in &said.vms {
        assert_eq!((vm.prospect, &vm.to), (DrainProspect::Stays, &None));
        assert!(vm.why.as_ref().unwrap().contains("insufficient cpu"), "{:?}", vm.why);
    }
    scene.pass(5).await;
    let shown = app::host_show(&scene.rig.core, &scene.rig.admin, &name("h1")).unwrap();
    let waiting = shown.draining.unwrap().waiting;
    assert_eq!(waiting.len(), 2);
    assert!(waiting[0].why.as_ref().unwrap().contains("insufficient cpu"));
    for host in &mut scene.hosts[1..] {
        host.spec = host_spec(StoragePool::Local);
    }
    scene.pass(10).await;
    assert_eq!(scene.vms_of("h1"), 2, "not before the pause is over");
    scene.pass(60).await;
    assert_eq!(scene.vms_of("h1"), 0);
}

#[tokio::test]
async fn a_move_that_fails_is_tried_again_after_pauses_that_grow() {
    let mut scene = Scene::new(shared(), 1).await;
    scene.said = Some(Said { go: false, heard: true });
    scene.drain(DrainRequest::default()).await;
    let mut begun = Vec::new();
    for second in 0..400 {
        scene.pass(1).await;
        let state = scene.rig.core.snapshot();
        let count = state.events.iter().filter(|e| e.kind == EventKind::VmMigrating).count();
        if count > begun.len() {
            begun.push(second);
        }
    }
    let pauses: Vec<i32> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 3 && pauses[0] >= 30, "{pauses:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0] * 3 / 2), "{pauses:?}");
    let shown = app::host_show(&scene.rig.core, &scene.rig.admin, &name("h1")).unwrap();
    let waiting = shown.draining.unwrap().waiting;
    assert_eq!(waiting[0].why.as_deref(), Some("as it happened"));
}

#[tokio::test]
async fn vms_that_do_not_run_stay_or_start_elsewhere() {
    for storage in [StoragePool::Local, shared()] {
        let local = storage == StoragePool::Local;
        let mut scene = Scene::new(storage, 1).await;
        let (core, admin) = (scene.rig.core.clone(), scene.rig.admin.clone());
        let (p, vm) = (name("p"), name("a-1"));
        app::vm_stop(&core, &admin, &p, &vm, StopVmRequest::default()).await.unwrap();
        scene.pass(2).await;
        let said = scene.drain(DrainRequest::default()).await;
        let expected = if local { DrainProspect::Stays } else { DrainProspect::StartsElsewhere };
        assert_eq!(said.vms[0].prospect, expected);
        assert_eq!(said.vms[0].why.is_some(), local);
        let started = app::vm_start(&core, &admin, &p, &vm).await;
        scene.pass(3).await;
        assert_eq!(started.is_err(), local);
        let shown = scene.rig.show("a-1");
        let there = shown.host == Some(name("h1"));
        assert_eq!((shown.state == VmPhase::Running, there), (!local, local));
    }
}
