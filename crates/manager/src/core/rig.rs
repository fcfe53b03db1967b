//! For tests: a manager with a clock that stands still, and hosts that behave as agents must.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use plimsoll_api::{
    cluster::{
        AgentReport, DesiredHost, DesiredPresent, DiskOrigin, HostUsage, ObservedPhase, ObservedVm,
        VmUsage, Wanted,
    },
    v1::{
        CreateImageRequest, CreateNetworkRequest, CreateProjectRequest, CreateVmsRequest,
        CreateVmsResponse, VmRequest, VmView,
    },
};
use plimsoll_model::{
    Amount, Bytes, HostId, HostSpec, ImageFile, ImageFileKind, MilliCores, Name, Power, Quota,
    Resources, Role, StoragePool, Timestamp, TokenId, VmId, VmSpec,
};
use plimsoll_store::{MemoryStore, Store};

use crate::{
    app::{self, AppError, Caller, DiskFacts},
    core::{Core, CoreConfig, ManualClock},
    reconcile,
};

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a legal name")
}

/// A manager on a memory store.
pub(crate) struct Rig {
    pub(crate) core: Core,
    pub(crate) store: MemoryStore,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) admin: Caller,
    starts: u64,
}

/// So much of the usual resources.
pub(crate) fn resources(cpu: u64, memory_mib: u64) -> Resources {
    Resources { cpu: MilliCores(cpu), memory: Bytes::mib(memory_mib), ..Resources::default() }
}

pub(crate) fn spec(resources: Resources) -> VmSpec {
    VmSpec::new(resources, name("tiny"))
}

pub(crate) fn request(vm: &str, count: Option<u32>, spec: VmSpec) -> CreateVmsRequest {
    let request = VmRequest { name: name(vm), count, split: None, spec };
    CreateVmsRequest { requests: vec![request], all_or_nothing: true, policy: None }
}

pub(crate) fn host_spec(storage: StoragePool) -> HostSpec {
    HostSpec {
        rack: None,
        zone: None,
        labels: BTreeMap::new(),
        capacity: Resources { disk: Bytes::gib(100), ..resources(8000, 8192) },
        agent_address: "192.0.2.1:7443".to_owned(),
        underlay_address: std::net::IpAddr::from([192, 0, 2, 1]),
        storage,
        accelerator: "tcg".to_owned(),
        qemu_version: "10.0.2".to_owned(),
        agent_version: "0.1.0".to_owned(),
    }
}

fn config(clock: &Arc<ManualClock>, seed: u64) -> CoreConfig {
    CoreConfig { seed: Some(seed), clock: Arc::clone(clock) as _, ..CoreConfig::default() }
}

impl Rig {
    /// A manager with a project `p`, a public image `tiny` and a network `net` of the project.
    pub(crate) async fn new() -> Self {
        let store = MemoryStore::new();
        let mut rig = Self::on(Box::new(store.clone())).await;
        rig.store = store;
        rig
    }

    /// The same on another store; the checks of consistency need the memory store.
    pub(crate) async fn on(store: Box<dyn Store>) -> Self {
        let start = Timestamp::from_second(1_800_000_000).expect("in range");
        let clock = Arc::new(ManualClock::new(start));
        let core = Core::open(config(&clock, 0), store).expect("opens");
        let token = TokenId(uuid::Uuid::from_u128(1));
        let admin = Caller { token, role: Role::Admin, project: None };
        let rig = Self { core, store: MemoryStore::new(), clock, admin, starts: 0 };
        rig.project("p", Quota::default()).await;
        rig.image("tiny").await;
        let request = CreateNetworkRequest { name: name("net"), cidr: None, outside: false };
        app::network_create(&rig.core, &rig.admin, &name("p"), request).await.expect("made");
        rig
    }

    pub(crate) async fn project(&self, project: &str, quota: Quota) {
        let request = CreateProjectRequest { name: name(project), quota, credits: None };
        app::project_create(&self.core, &self.admin, request).await.expect("made");
    }

    pub(crate) async fn image(&self, image: &str) {
        let file =
            ImageFile { kind: ImageFileKind::Disk, sha256: "0".repeat(64), size: Bytes::mib(10) };
        let request = CreateImageRequest {
            name: name(image),
            description: String::new(),
            files: vec![file],
            append: None,
            min_memory: Bytes::mib(64),
            guest_agent: true,
        };
        let (core, admin, image) = (&self.core, &self.admin, name(image));
        app::image_create(core, admin, None, request).await.expect("announced");
        let disk = DiskFacts { format: "qcow2".to_owned(), virtual_size: Bytes::gib(1) };
        app::image_file_done(core, admin, None, &image, ImageFileKind::Disk, Some(disk))
            .await
            .expect("ready");
    }

    /// A host that has joined and reported.
    pub(crate) async fn host(&self, host: &str, storage: StoragePool) -> SimHost {
        self.host_with(host, host_spec(storage)).await
    }

    pub(crate) async fn host_with(&self, host: &str, spec: HostSpec) -> SimHost {
        let request = plimsoll_api::v1::CreateJoinTokenRequest::default();
        let (secret, _) =
            app::join_token_create(&self.core, &self.admin, request).await.expect("made");
        let joined = app::host_join(&self.core, &secret, name(host), spec.clone(), |_| Ok(()));
        let (id, ()) = joined.await.expect("joins");
        let mut sim = SimHost::new(id, spec);
        for _ in 0..5 {
            sim.exchange(&self.core).await;
        }
        sim
    }

    pub(crate) async fn create(
        &self,
        request: CreateVmsRequest,
    ) -> Result<CreateVmsResponse, AppError> {
        app::vm_create(&self.core, &self.admin, &name("p"), request).await
    }

    pub(crate) fn show(&self, vm: &str) -> VmView {
        app::vm_show(&self.core, &self.admin, &name("p"), &name(vm)).expect("there")
    }

    /// Lets time pass and has every reconciler look.
    pub(crate) async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.reconcile().await;
    }

    pub(crate) async fn reconcile(&self) {
        let core = || self.core.clone();
        reconcile::hosts::reconcile(core()).await.expect("reconciles");
        reconcile::failover::reconcile(core()).await.expect("reconciles");
        reconcile::pending::reconcile(core()).await.expect("reconciles");
        reconcile::reservations::reconcile(core()).await.expect("reconciles");
        reconcile::ending::reconcile(core()).await.expect("reconciles");
        reconcile::credits::reconcile(core()).await.expect("reconciles");
        reconcile::tokens::reconcile(core()).await.expect("reconciles");
    }

    /// The manager is killed and started again with what it has left.
    pub(crate) async fn restart(&mut self) {
        self.core.close().await;
        self.starts += 1;
        self.core = Core::open(config(&self.clock, self.starts), Box::new(self.store.clone()))
            .expect("opens");
    }

    /// What is in memory must be what is on disk, in every index and in placement's books.
    pub(crate) async fn check_consistent(&self) {
        let contents = self.store.clone().load().expect("loads");
        let stored = crate::core::load::state(&contents).expect("consistent");
        let state = self.core.snapshot();
        assert_eq!(state.revision, stored.revision);
        assert_eq!(state.vms, stored.vms);
        assert_eq!(state.hosts, stored.hosts);
        assert_eq!(state.projects, stored.projects);
        assert_eq!(state.networks, stored.networks);
        assert_eq!(state.images, stored.images);
        assert_eq!(state.tokens, stored.tokens);
        assert_eq!(state.settings.settings, stored.settings.settings);
        assert_eq!(state.settings.last_event, stored.settings.last_event);
        assert_eq!(state.events, stored.events);
        assert_eq!(state.vm_names, stored.vm_names);
        assert_eq!(state.host_vms, stored.host_vms);
        assert_eq!(state.addresses, stored.addresses);
        assert_eq!(state.network_hosts, stored.network_hosts);
        assert_eq!(state.pending, stored.pending);
        assert_eq!(state.bookings, stored.bookings);
        assert_eq!(state.ends, stored.ends);
        assert_eq!(state.phases, stored.phases);
        assert_eq!(state.vnis, stored.vnis);
        for project in state.projects.keys() {
            assert_eq!(state.usage(*project), stored.usage(*project));
        }
        let entries: BTreeMap<VmId, _> = state
            .vms
            .values()
            .filter_map(|record| Some((record.vm.id, (record.entry()?, record.devices.clone()))))
            .collect();
        let capacity: BTreeMap<HostId, Resources> = state
            .hosts
            .values()
            .map(|record| (record.host.id, record.capacity_with_loan()))
            .collect();
        self.core
            .submit(None, move |txn| {
                for (vm, ((host, request), devices)) in &entries {
                    let placed = txn.cluster().placed(*vm).expect("in the books");
                    assert_eq!((placed.host, &placed.request), (*host, request));
                    assert_eq!(&placed.devices, devices);
                }
                for (host, capacity) in &capacity {
                    let booked = txn.cluster().vms_on(*host).count();
                    assert_eq!(booked, entries.values().filter(|((on, _), _)| on == host).count());
                    let over = txn.cluster().committed(*host).first_above(capacity);
                    assert_eq!(over, None, "{host} is over capacity");
                }
                Ok(())
            })
            .await
            .expect("checked");
    }
}

/// A VM on a simulated host.
#[derive(Clone, Debug)]
pub(crate) struct SimVm {
    pub(crate) incarnation: u64,
    pub(crate) running: bool,
    pub(crate) powered_off: bool,
    generation: u64,
    disk: bool,
    present: Option<DesiredPresent>,
    gone: bool,
}

/// A host that does what the contract asks of agents and guards, one step at a time.
#[derive(Clone, Debug)]
pub(crate) struct SimHost {
    pub(crate) id: HostId,
    pub(crate) spec: HostSpec,
    pub(crate) boot_id: String,
    session: uuid::Uuid,
    sequence: u64,
    /// When the lease ends; `Some(None)`: it has none to keep.
    lease: Option<Option<Duration>>,
    pub(crate) desired: DesiredHost,
    /// What was heard before a gap in the lease starts nothing that the lease fences.
    stale: bool,
    pub(crate) vms: BTreeMap<VmId, SimVm>,
    pub(crate) highest_generation: u64,
    /// What each of its running VMs uses, by its own word.
    pub(crate) each_uses: Amount,
    pub(crate) swap: Bytes,
}

impl SimHost {
    fn new(id: HostId, spec: HostSpec) -> Self {
        Self {
            id,
            spec,
            boot_id: "boot-1".to_owned(),
            session: uuid::Uuid::from_u128(u128::from(id.0)),
            sequence: 0,
            lease: None,
            desired: DesiredHost::default(),
            stale: true,
            vms: BTreeMap::new(),
            highest_generation: 0,
            each_uses: Amount::default(),
            swap: Bytes::ZERO,
        }
    }

    /// Guards: a marked VM does not outlive the lease.
    pub(crate) fn guard(&mut self, now: Duration) {
        if matches!(self.lease, Some(Some(end)) if now >= end) {
            self.stale = true;
            for vm in self.vms.values_mut() {
                if vm.present.as_ref().is_some_and(|present| present.fenced_by_lease) {
                    vm.running = false;
                }
            }
        }
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = VmId> + '_ {
        self.vms.iter().filter(|(_, vm)| vm.running).map(|(id, _)| *id)
    }

    pub(crate) fn report(&mut self) -> AgentReport {
        self.sequence += 1;
        let vms = self
            .vms
            .iter()
            .map(|(id, vm)| ObservedVm {
                vm: *id,
                incarnation: vm.incarnation,
                generation: vm.generation,
                phase: match vm {
                    SimVm { gone: true, .. } => ObservedPhase::Absent,
                    SimVm { running: true, .. } => ObservedPhase::Running,
                    SimVm { powered_off: true, .. } => ObservedPhase::Stopped,
                    SimVm { present: Some(present), .. } if present.power == Power::Running => {
                        ObservedPhase::Starting
                    }
                    _ => ObservedPhase::Stopped,
                },
                message: None,
                restarts: 0,
                disk_exists: vm.disk,
                guest: None,
                limits: None,
                deflation: None,
                share: None,
                deduplication: None,
                migration: None,
            })
            .collect();
        let Amount { cpu, memory } = self.each_uses;
        let usage = |vm| VmUsage { vm, cpu, memory, resident: memory };
        let vm_usage = self.running().map(usage).collect();
        AgentReport {
            boot_id: self.boot_id.clone(),
            session: self.session,
            sequence: self.sequence,
            spec: self.spec.clone(),
            desired_generation: self.desired.generation,
            vms,
            usage: HostUsage { swap: self.swap, ..HostUsage::default() },
            vm_usage,
        }
    }

    /// Sends a report; the answer may be lost.
    pub(crate) async fn send(&mut self, core: &Core, answer_arrives: bool) -> bool {
        let sent = core.monotonic();
        let report = self.report();
        let Ok(reply) = app::agent_report(core, self.id, report).await else { return false };
        if answer_arrives {
            let end = reply.lease_ms.map(|ms| sent + Duration::from_millis(ms));
            self.lease = Some(end);
        }
        answer_arrives
    }

    /// Fetches the desired state.
    pub(crate) async fn fetch(&mut self, core: &Core) {
        let after = self.desired.generation;
        let Ok(desired) = app::agent_desired(core, self.id, after, Duration::ZERO).await else {
            return;
        };
        assert!(desired.generation >= self.highest_generation, "generations never go back");
        self.highest_generation = desired.generation;
        self.desired = desired;
        self.stale = false;
    }

    /// Makes the desired state so.
    pub(crate) fn act(&mut self, now: Duration) {
        self.guard(now);
        let stale = self.stale;
        let lease_over =
            matches!(self.lease, Some(Some(end)) if now >= end) || self.lease.is_none();
        let listed: BTreeSet<VmId> = self.desired.vms.iter().map(|vm| vm.vm).collect();
        self.vms.retain(|id, vm| !vm.gone || listed.contains(id));
        for desired in self.desired.vms.clone() {
            let vm = self.vms.entry(desired.vm).or_insert(SimVm {
                incarnation: desired.incarnation,
                running: false,
                powered_off: false,
                generation: 0,
                disk: false,
                present: None,
                gone: false,
            });
            if desired.incarnation < vm.incarnation {
                continue;
            }
            if desired.incarnation > vm.incarnation {
                vm.generation = 0;
                vm.powered_off = false;
            }
            vm.incarnation = desired.incarnation;
            match desired.wanted {
                Wanted::Absent { delete_disk } => {
                    vm.running = false;
                    vm.gone = true;
                    vm.present = None;
                    vm.disk &= !delete_disk;
                }
                Wanted::Present(present) => {
                    vm.gone = false;
                    let shared = matches!(self.spec.storage, StoragePool::Shared { .. });
                    assert!(
                        vm.disk || shared || present.disk == DiskOrigin::Image,
                        "told to use a disk that is not here"
                    );
                    let newer = present.generation > vm.generation;
                    match present.power {
                        Power::Stopped => {
                            vm.running = false;
                            vm.powered_off = false;
                            vm.generation = present.generation;
                        }
                        Power::Running
                            if present.fenced_by_lease && !vm.running && (stale || lease_over) => {}
                        Power::Running if vm.powered_off && !newer => {}
                        Power::Running => {
                            vm.powered_off = false;
                            vm.running = true;
                            vm.disk = true;
                            vm.generation = present.generation;
                        }
                    }
                    vm.present = Some(*present);
                }
            }
        }
    }

    /// A whole round: report, fetch, act, report.
    pub(crate) async fn exchange(&mut self, core: &Core) {
        self.guard(core.monotonic());
        self.send(core, true).await;
        self.fetch(core).await;
        self.act(core.monotonic());
        self.send(core, true).await;
    }

    /// The guest shuts itself down.
    pub(crate) fn power_off(&mut self, vm: VmId) {
        if let Some(vm) = self.vms.get_mut(&vm)
            && vm.running
        {
            vm.running = false;
            vm.powered_off = true;
        }
    }

    /// The machine is reset: nothing runs.
    pub(crate) fn reboot(&mut self, boot_id: &str) {
        self.boot_id = boot_id.to_owned();
        self.restart_agent();
        for vm in self.vms.values_mut() {
            vm.running = false;
        }
    }

    /// The agent is killed and started again; VMs go on.
    pub(crate) fn restart_agent(&mut self) {
        self.session = uuid::Uuid::from_u128(self.session.as_u128() + (1 << 64));
        self.sequence = 0;
        self.stale = true;
        self.desired = DesiredHost::default();
    }
}
