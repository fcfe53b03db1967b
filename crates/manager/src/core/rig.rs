//! For tests: a manager with a clock that stands still, and hosts that behave as agents must.

mod host;
mod moving;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use plimsoll_api::v1::{
    CreateImageRequest, CreateNetworkRequest, CreateProjectRequest, CreateVmsRequest,
    CreateVmsResponse, DrainRequest, VmRequest, VmView,
};
use plimsoll_model::{
    Bytes, HostId, HostSpec, ImageFile, ImageFileKind, MilliCores, Name, Quota, Resources, Role,
    StoragePool, Timestamp, TokenId, VmId, VmSpec,
};
use plimsoll_placement::Devices;
use plimsoll_store::{MemoryStore, Store};

use crate::{
    app::{self, AppError, Caller, DiskFacts},
    core::{Core, CoreConfig, ManualClock},
    reconcile,
};

pub(crate) use host::SimHost;
pub(crate) use moving::Said;

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

/// Takes a host out of placement, and moves nothing.
pub(crate) fn cordon() -> DrainRequest {
    DrainRequest { cordon_only: true, ..DrainRequest::default() }
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
        reconcile::migration::reconcile(core()).await.expect("reconciles");
        reconcile::failover::reconcile(core()).await.expect("reconciles");
        reconcile::draining::reconcile(core()).await.expect("reconciles");
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
        assert_eq!(state.migrating, stored.migrating);
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
            .flat_map(|record| {
                let own =
                    record.entry().map(|entry| (record.vm.id, (entry, record.devices.clone())));
                let arrival = record.arrival_entry();
                let arrival = arrival.map(|entry| (entry.1.vm, (entry, Devices::default())));
                own.into_iter().chain(arrival)
            })
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
