//! Whatever users, networks, clocks, guests and crashes do, in whatever order: no VM runs twice, no
//! host and no quota is exceeded, no required rule is broken, memory and disk agree, and once the
//! trouble ends everything comes to rest as it was wanted.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_api::v1::{DrainRequest, MigrateRequest, SetVmRequest, StopVmRequest};
use plimsoll_model::{
    Constraint, MilliCores, OnHostFailure, Power, Quota, Rule, Scope, StoragePool, Strength, VmId,
    VmPhase,
};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::super::rig::{Rig, Said, SimHost, name, request, resources, spec};
use crate::{app, reconcile};

const HOSTS: usize = 3;
const QUOTA_CPU: u64 = 20_000;

#[derive(Clone, Debug)]
enum Step {
    Create {
        vm: u8,
        count: u8,
        cpu: u64,
        apart: bool,
        mode: u8,
        time: u8,
    },
    Delete(u8),
    Start(u8),
    Stop(u8),
    Reboot(u8),
    Resize(u8, u64),
    Mode(u8, u8),
    Lease(bool),
    Report {
        host: usize,
        answered: bool,
    },
    Fetch(usize),
    Act(usize),
    Exchange(usize),
    PowerOff(u8),
    RestartAgent(usize),
    RebootHost(usize),
    Drain(usize, bool),
    Migrate(u8, Option<usize>),
    Cancel(u8),
    /// The hosts of a VM that moves talk to each other.
    Talk {
        vm: u8,
        go: bool,
        heard: bool,
    },
    FenceForReal(usize),
    Pass(u16),
    RestartManager,
    /// The store fails all commits of the next step.
    FailStore,
    Reconcile(u8),
    /// Half a minute in which all hosts but one talk.
    Silence(Option<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let vm = 0..6u8;
    let host = 0..HOSTS;
    let target = proptest::option::of(0..HOSTS);
    let talk = (vm.clone(), proptest::bool::weighted(0.8), proptest::bool::weighted(0.8));
    prop_oneof![
        6 => (vm.clone(), 1..4u8, 100..4000u64, any::<bool>(), 0..3u8, 0..10u8).prop_map(
            |(vm, count, cpu, apart, mode, time)| {
                Step::Create { vm, count, cpu, apart, mode, time }
            }
        ),
        2 => vm.clone().prop_map(Step::Delete),
        2 => vm.clone().prop_map(Step::Start),
        2 => vm.clone().prop_map(Step::Stop),
        1 => vm.clone().prop_map(Step::Reboot),
        2 => (vm.clone(), 100..6000u64).prop_map(|(vm, cpu)| Step::Resize(vm, cpu)),
        1 => (vm.clone(), 0..3u8).prop_map(|(vm, mode)| Step::Mode(vm, mode)),
        1 => proptest::bool::weighted(0.7).prop_map(Step::Lease),
        4 => (host.clone(), any::<bool>())
            .prop_map(|(host, answered)| Step::Report { host, answered }),
        3 => host.clone().prop_map(Step::Fetch),
        3 => host.clone().prop_map(Step::Act),
        8 => host.clone().prop_map(Step::Exchange),
        6 => (vm.clone(), target).prop_map(|(vm, to)| Step::Migrate(vm, to)),
        1 => vm.clone().prop_map(Step::Cancel),
        12 => talk.prop_map(|(vm, go, heard)| Step::Talk { vm, go, heard }),
        1 => vm.prop_map(Step::PowerOff),
        1 => host.clone().prop_map(Step::RestartAgent),
        1 => host.clone().prop_map(Step::RebootHost),
        1 => (host.clone(), any::<bool>()).prop_map(|(host, on)| Step::Drain(host, on)),
        2 => host.prop_map(Step::FenceForReal),
        6 => (1..12_000u16).prop_map(Step::Pass),
        1 => Just(Step::RestartManager),
        1 => Just(Step::FailStore),
        4 => any::<u8>().prop_map(Step::Reconcile),
        6 => proptest::option::of(0..HOSTS).prop_map(Step::Silence),
    ]
}

const fn mode(mode: u8) -> OnHostFailure {
    match mode {
        0 => OnHostFailure::Restart,
        1 => OnHostFailure::Recreate,
        _ => OnHostFailure::Wait,
    }
}

struct World {
    rig: Rig,
    hosts: Vec<SimHost>,
    generations: BTreeMap<VmId, (u64, u64)>,
    boots: u32,
}

impl World {
    async fn new(shared: bool) -> Self {
        let rig = Rig::new().await;
        let mut hosts = Vec::new();
        for i in 1..=HOSTS {
            let storage = if shared {
                StoragePool::Shared { pool: name("pool") }
            } else {
                StoragePool::Local
            };
            hosts.push(rig.host(&format!("h{i}"), storage).await);
        }
        let quota = Quota { cpu: Some(MilliCores(QUOTA_CPU)), ..Quota::default() };
        let set = plimsoll_api::v1::SetProjectRequest { quota: Some(quota), ..Default::default() };
        app::project_set(&rig.core, &rig.admin, &name("p"), set).await.unwrap();
        for how in 0..3 {
            let mut first = spec(resources(500, 128));
            first.on_host_failure = mode(how);
            let wanted = request(&format!("first{how}"), Some(2), first);
            app::vm_create(&rig.core, &rig.admin, &name("p"), wanted).await.unwrap();
        }
        for host in &mut hosts {
            host.exchange(&rig.core).await;
        }
        Self { rig, hosts, generations: BTreeMap::new(), boots: 1 }
    }

    /// The `n`th VM there is.
    fn vm(&self, n: u8) -> Option<(VmId, plimsoll_model::Name)> {
        let state = self.rig.core.snapshot();
        let count = state.vms.len();
        let record = state.vms.values().nth(usize::from(n) % count.max(1))?;
        Some((record.vm.id, record.vm.name.clone()))
    }

    async fn take(&mut self, step: &Step) {
        let (core, admin, p) = (&self.rig.core, &self.rig.admin, name("p"));
        let named = |n: u8| self.vm(n);
        match *step {
            Step::Create { vm, count, cpu, apart, mode: how, time } => {
                let mut wanted = spec(resources(cpu, cpu / 10 + 64));
                wanted.networks = vec![name("net")];
                wanted.on_host_failure = mode(how);
                if apart {
                    wanted.groups = [name("g")].into();
                    wanted.constraints = vec![Constraint {
                        strength: Strength::Required,
                        rule: Rule::AntiAffinity { group: name("g"), scope: Scope::Host },
                    }];
                }
                let now = core.now();
                match time {
                    5 => wanted.end_at = Some(now + Duration::from_secs(25)),
                    6 | 7 => wanted.duration_ms = Some(15_000 * u64::from(time - 5)),
                    8 => {
                        wanted.start_after = Some(now + Duration::from_secs(20));
                        wanted.duration_ms = Some(20_000);
                        wanted.deadline = Some(now + Duration::from_secs(90));
                    }
                    9 => wanted.start_after = Some(now + Duration::from_secs(8)),
                    _ => {}
                }
                let mut wanted = request(&format!("v{vm}"), Some(count.into()), wanted);
                wanted.all_or_nothing = cpu % 2 == 0;
                let _ = app::vm_create(core, admin, &p, wanted).await;
            }
            Step::Delete(n) => {
                if let Some((_, vm)) = named(n) {
                    let _ = app::vm_delete(core, admin, &p, &vm).await;
                }
            }
            Step::Start(n) => {
                if let Some((_, vm)) = named(n) {
                    let _ = app::vm_start(core, admin, &p, &vm).await;
                }
            }
            Step::Stop(n) => {
                if let Some((_, vm)) = named(n) {
                    let _ = app::vm_stop(core, admin, &p, &vm, StopVmRequest::default()).await;
                }
            }
            Step::Reboot(n) => {
                if let Some((_, vm)) = named(n) {
                    let _ = app::vm_reboot(core, admin, &p, &vm).await;
                }
            }
            Step::Resize(n, cpu) => {
                if let Some((_, vm)) = named(n) {
                    let set =
                        SetVmRequest { cpu: Some(MilliCores(cpu)), ..SetVmRequest::default() };
                    let _ = app::vm_set(core, admin, &p, &vm, set).await;
                }
            }
            Step::Mode(n, how) => {
                if let Some((_, vm)) = named(n) {
                    let set = SetVmRequest {
                        on_host_failure: Some(mode(how)),
                        ..SetVmRequest::default()
                    };
                    let _ = app::vm_set(core, admin, &p, &vm, set).await;
                }
            }
            Step::Lease(on) => {
                let lease_ms = Some(if on { 20_000 } else { 0 });
                let set = plimsoll_api::v1::SetSettingsRequest { lease_ms, ..Default::default() };
                let _ = app::settings_set(core, admin, set).await;
            }
            Step::Drain(host, on) => {
                let host = name(&format!("h{}", host + 1));
                if on {
                    let _ = app::host_drain(core, admin, &host, DrainRequest::default()).await;
                } else {
                    let _ = app::host_undrain(core, admin, &host).await;
                }
            }
            Step::Migrate(n, to) => {
                if let Some((_, vm)) = named(n) {
                    let to = to.map(|host| name(&format!("h{}", host + 1)));
                    let wanted = MigrateRequest { to, ..MigrateRequest::default() };
                    let _ = app::vm_migrate(core, admin, &p, &vm, wanted).await;
                }
            }
            Step::Cancel(n) => {
                if let Some((_, vm)) = named(n) {
                    let _ = app::vm_migrate_cancel(core, admin, &p, &vm).await;
                }
            }
            Step::Talk { vm, go, heard } => {
                // Those that are in a move talk most.
                let moving = self.moving();
                if let Some(id) = moving.get(usize::from(vm) % moving.len().max(1)) {
                    self.talk(*id, Said { go, heard });
                }
            }
            Step::FailStore => self.rig.store.fail_after(Some(0)),
            Step::Pass(ms) => self.rig.clock.advance(Duration::from_millis(ms.into())),
            Step::Reconcile(which) => self.reconcile(which).await,
            Step::Silence(silent) => self.silence(silent).await,
            Step::RestartManager => {
                self.rig.store.fail_after(None);
                self.rig.restart().await;
            }
            Step::PowerOff(n) => {
                if let Some((id, _)) = named(n) {
                    for host in &mut self.hosts {
                        host.power_off(id);
                    }
                }
            }
            Step::Report { host, .. }
            | Step::Fetch(host)
            | Step::Act(host)
            | Step::Exchange(host)
            | Step::RestartAgent(host)
            | Step::RebootHost(host)
            | Step::FenceForReal(host) => self.host_step(host, step).await,
        }
    }

    /// The VMs that a host has a part in moving away.
    fn moving(&self) -> Vec<VmId> {
        let vms = self.hosts.iter().flat_map(|host| &host.vms);
        vms.filter(|(_, vm)| vm.part.is_some()).map(|(id, _)| *id).collect()
    }

    /// Every host that moves the VM away talks to every other.
    fn talk(&mut self, vm: VmId, said: Said) {
        let now = self.rig.core.monotonic();
        for source in 0..HOSTS {
            for target in (0..HOSTS).filter(|target| *target != source) {
                if let Ok([source, target]) = self.hosts.get_disjoint_mut([source, target])
                    && source.knows_target(vm, target.id)
                {
                    source.talk(target, vm, now, said);
                }
            }
        }
    }

    async fn silence(&mut self, silent: Option<usize>) {
        let core = self.rig.core.clone();
        for _ in 0..6 {
            self.rig.clock.advance(Duration::from_secs(5));
            for (i, host) in self.hosts.iter_mut().enumerate() {
                host.guard(core.monotonic());
                if Some(i) != silent {
                    host.exchange(&core).await;
                }
            }
            for which in 0..7 {
                self.reconcile(which).await;
            }
            self.check();
        }
    }

    async fn reconcile(&self, which: u8) {
        let core = self.rig.core.clone();
        // The store may fail at any of them.
        let _ = match which % 7 {
            0 => reconcile::hosts::reconcile(core).await,
            6 => reconcile::draining::reconcile(core).await,
            5 => reconcile::migration::reconcile(core).await,
            1 => reconcile::failover::reconcile(core).await,
            2 => reconcile::pending::reconcile(core).await,
            3 => reconcile::reservations::reconcile(core).await,
            _ => reconcile::ending::reconcile(core).await,
        };
    }

    async fn host_step(&mut self, index: usize, step: &Step) {
        let core = self.rig.core.clone();
        let now = core.monotonic();
        let host = &mut self.hosts[index];
        match *step {
            Step::Report { answered, .. } => {
                host.guard(now);
                host.send(&core, answered).await;
            }
            Step::Fetch(_) => host.fetch(&core).await,
            Step::Act(_) => host.act(now),
            Step::RestartAgent(_) => host.restart_agent(),
            Step::RebootHost(_) => {
                self.boots += 1;
                host.reboot(&format!("boot-{}", self.boots));
            }
            // An operator who keeps the word: the machine is off when it is called fenced.
            Step::FenceForReal(_) => {
                let of = name(&format!("h{}", index + 1));
                let shown = app::host_show(&core, &self.rig.admin, &of).unwrap();
                if shown.state != plimsoll_model::HostPhase::Up {
                    self.boots += 1;
                    host.reboot(&format!("boot-{}", self.boots));
                    let _ = app::host_fence(&core, &self.rig.admin, &of).await;
                }
            }
            _ => host.exchange(&core).await,
        }
    }

    fn check(&mut self) {
        let now = self.rig.core.monotonic();
        let mut running = BTreeMap::new();
        for host in &mut self.hosts {
            host.guard(now);
            for vm in host.running() {
                let other = running.insert(vm, host.id);
                assert_eq!(other, None, "{vm} runs on {} too", host.id);
            }
        }
        let state = self.rig.core.snapshot();
        for record in state.vms.values() {
            let vm = &record.vm;
            let before = self.generations.insert(vm.id, (vm.generation, vm.incarnation));
            let (generation, incarnation) = before.unwrap_or_default();
            assert!(vm.generation >= generation && vm.incarnation >= incarnation);
        }
        for project in state.projects.keys() {
            assert!(state.usage(*project).used.cpu.0 <= QUOTA_CPU, "quota exceeded");
        }
        let mut apart = BTreeMap::new();
        for record in state.vms.values().filter(|record| !record.vm.spec.groups.is_empty()) {
            for host in record.host().into_iter().chain(record.destination()) {
                let other = apart.insert(host, record.vm.id);
                assert_eq!(other, None, "anti-affinity broken on {host}");
            }
        }
    }

    /// The trouble is over: what is wanted comes true.
    async fn settle(&mut self) {
        self.rig.store.fail_after(None);
        for i in 1..=HOSTS {
            let host = name(&format!("h{i}"));
            app::host_undrain(&self.rig.core, &self.rig.admin, &host).await.unwrap();
        }
        for round in 0..24 {
            // What ends at the last moment is still stopped.
            if round < 20 {
                self.rig.clock.advance(Duration::from_secs(1));
            }
            for host in &mut self.hosts {
                host.exchange(&self.rig.core).await;
            }
            for vm in self.moving() {
                self.talk(vm, Said { go: true, heard: true });
            }
            self.rig.reconcile().await;
            self.check();
        }
        self.rig.check_consistent().await;
        let state = self.rig.core.snapshot();
        let running: Vec<VmId> = self.hosts.iter().flat_map(SimHost::running).collect();
        for record in state.vms.values() {
            assert_eq!(record.migration, None, "a move does not end");
            let vm = &record.vm;
            let is_there = running.contains(&vm.id);
            match vm.power {
                Power::Stopped => assert!(!is_there && vm.phase == VmPhase::Stopped, "{vm:?}"),
                Power::Running if vm.phase == VmPhase::Pending => assert!(!is_there),
                // Its deadline has passed while it waited.
                Power::Running if vm.phase == VmPhase::Failed && vm.incarnation == 0 => {
                    assert!(!is_there && vm.spec.deadline.is_some());
                }
                Power::Running => {
                    assert!(is_there && vm.phase == VmPhase::Running, "{record:?}");
                }
            }
        }
        assert!(state.hosts.values().all(|host| host.host.phase == plimsoll_model::HostPhase::Up));
        for host in &self.hosts {
            for vm in host.vms.keys() {
                let record = state.vm(*vm).expect("nothing is left over");
                assert_eq!(record.host(), Some(host.id), "something is left over");
            }
        }
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 96,
        max_shrink_iters: 2_000,
        ..proptest::prelude::ProptestConfig::default()
    })]

    #[test]
    fn nothing_runs_twice_and_everything_comes_to_rest(
        shared in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(shared).await;
            for step in &steps {
                world.take(step).await;
                if !matches!(step, Step::FailStore) {
                    world.rig.store.fail_after(None);
                }
                world.check();
            }
            world.settle().await;
            world.rig.core.close().await;
        });
    }
}
