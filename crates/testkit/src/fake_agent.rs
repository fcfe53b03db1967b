//! An agent without a host: it says what an agent says, and runs nothing.
//!
//! One task with one connection does all the talking of an agent: wait for a newer desired state (not
//! longer than until the next report is due), make it so at once, report. Losing the manager is no
//! error: it tries again until it is stopped.

mod moving;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use plimsoll_api::{
    Client, ClusterClient, JoinToken,
    client::join,
    cluster::{
        AgentReport, DesiredHost, DesiredPresent, HostUsage, JoinRequest, ObservedPhase,
        ObservedVm, Wanted,
    },
    migration::{DesiredMigration, MigrationStage},
    tls::Identity,
    v1::CreateJoinTokenRequest,
};
use plimsoll_model::{HostId, HostSpec, Label, Name, Power, Resources, StoragePool, VmId};
use tokio::{sync::watch, task::JoinSet};
use uuid::Uuid;

use crate::{endpoint, wait_for};

pub use moving::FakeMove;

/// After a failure: as long until the next try.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a step of a move takes.
const STEP: Duration = Duration::from_millis(20);
const FIRST_REPORT: Duration = Duration::from_secs(60);
const REPORT_LIMIT: Duration = Duration::from_secs(20);

/// What a fake agent says of its host.
#[derive(Clone, Debug)]
pub struct FakeHost {
    /// The name that it asks for.
    pub name: Name,
    /// What VMs can use of it.
    pub capacity: Resources,
    /// The rack.
    pub rack: Option<Label>,
    /// The zone.
    pub zone: Option<Label>,
    /// Labels.
    pub labels: BTreeMap<Label, Label>,
    /// Where disks are kept.
    pub storage: StoragePool,
    /// Whether it answers calls by the manager (exec, logs, console), on a port of the loopback.
    pub serves: bool,
}

impl FakeHost {
    /// A host of this name and capacity, without rack or labels, that answers no calls.
    #[must_use]
    pub const fn new(name: Name, capacity: Resources) -> Self {
        Self {
            name,
            capacity,
            rack: None,
            zone: None,
            labels: BTreeMap::new(),
            storage: StoragePool::Local,
            serves: false,
        }
    }
}

/// A VM that a fake agent pretends to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeVm {
    /// Its incarnation.
    pub incarnation: u64,
    /// The generation carried out.
    pub generation: u64,
    /// Where it stands.
    pub phase: ObservedPhase,
    /// Its promise.
    pub resources: Resources,
    /// Reboots carried out.
    pub reboots: u64,
    /// Its part in a move.
    pub part: Option<FakeMove>,
}

/// How a fake agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Live,
    /// It says and hears nothing, and its VMs go on.
    Silent,
    /// As it should, but VMs that should run fail.
    Failing,
}

struct Shared {
    host: Mutex<FakeState>,
    mode: watch::Sender<Mode>,
}

struct FakeState {
    spec: HostSpec,
    boot_id: String,
    session: Uuid,
    sequence: u64,
    generation: u64,
    desired: DesiredHost,
    vms: BTreeMap<VmId, FakeVm>,
    last_error: Option<String>,
    reported: bool,
}

/// A fake agent at work, until it is dropped.
pub struct FakeAgent {
    id: HostId,
    name: Name,
    shared: Arc<Shared>,
    client: ClusterClient,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for FakeAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeAgent").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FakeAgent {
    /// Joins the cluster and begins to work.
    ///
    /// # Errors
    /// The manager cannot be reached or refuses.
    pub async fn join(token: &str, host: FakeHost) -> anyhow::Result<Self> {
        let token: JoinToken = token.parse()?;
        let key = rcgen::KeyPair::generate().context("make a key")?;
        let request = rcgen::CertificateParams::new(vec![host.name.to_string()])
            .and_then(|parameters| parameters.serialize_request(&key))
            .and_then(|request| request.pem())
            .context("make a certificate request")?;
        let listener = if host.serves {
            Some(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?)
        } else {
            None
        };
        let agent_address = match &listener {
            Some(listener) => listener.local_addr()?.to_string(),
            // The port of discard: nobody answers.
            None => "127.0.0.1:9".to_owned(),
        };
        let spec = spec(&host, agent_address);
        let request = JoinRequest {
            token: String::new(),
            name: host.name.clone(),
            certificate_request_pem: request,
            spec: spec.clone(),
        };
        let joined = join(&token, request).await.context("join")?;
        let identity =
            Identity { certificate_pem: joined.certificate_pem, key_pem: key.serialize_pem() };
        let client = ClusterClient::new(&joined.cluster_address, &joined.ca_pem, &identity)?;
        let shared = Arc::new(Shared {
            host: Mutex::new(FakeState {
                spec,
                boot_id: Uuid::new_v4().to_string(),
                session: Uuid::new_v4(),
                sequence: 0,
                generation: 0,
                desired: DesiredHost::default(),
                vms: BTreeMap::new(),
                last_error: None,
                reported: false,
            }),
            mode: watch::Sender::new(Mode::Live),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(work(client.clone(), Arc::clone(&shared)));
        if let Some(listener) = listener {
            tasks.spawn(endpoint::serve(listener, &joined.ca_pem, &identity)?);
        }
        Ok(Self { id: joined.host, name: host.name, shared, client, _tasks: tasks })
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> HostId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// Its connection to the manager, for questions of one's own.
    #[must_use]
    pub const fn client(&self) -> &ClusterClient {
        &self.client
    }

    /// What it pretends to run.
    #[must_use]
    pub fn vms(&self) -> BTreeMap<VmId, FakeVm> {
        self.shared.host.lock().vms.clone()
    }

    /// The last failure to talk with the manager.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.shared.host.lock().last_error.clone()
    }

    /// Whether the manager has answered a report: before, the host takes no VMs.
    #[must_use]
    pub fn has_reported(&self) -> bool {
        self.shared.host.lock().reported
    }

    /// Changes its behaviour.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// The host reboots: nothing runs any more, until the agent is told what should.
    pub fn reboot(&self) {
        let mut host = self.shared.host.lock();
        host.boot_id = Uuid::new_v4().to_string();
        host.session = Uuid::new_v4();
        host.sequence = 0;
        host.generation = 0;
        for vm in host.vms.values_mut().filter(|vm| vm.phase == ObservedPhase::Running) {
            vm.phase = ObservedPhase::Stopped;
            vm.generation = 0;
        }
    }

    /// A VM's QEMU crashes and is not restarted.
    pub fn crash(&self, vm: VmId) {
        if let Some(vm) = self.shared.host.lock().vms.get_mut(&vm) {
            vm.phase = ObservedPhase::Failed;
        }
    }
}

/// Has so many hosts join, `parallel` at a time, each with a token of its own, and waits until each
/// has reported.
///
/// # Errors
/// One of them could not join.
pub async fn join_many(
    client: &Client,
    hosts: Vec<FakeHost>,
    parallel: usize,
) -> anyhow::Result<Vec<FakeAgent>> {
    let mut running = JoinSet::new();
    let mut waiting = hosts.into_iter();
    let mut agents = Vec::new();
    loop {
        while running.len() < parallel.max(1) {
            let Some(host) = waiting.next() else { break };
            let client = client.clone();
            running.spawn(async move {
                let request = CreateJoinTokenRequest::default();
                let created = client.create_join_token(&request).await?;
                FakeAgent::join(&created.token, host).await
            });
        }
        let Some(joined) = running.join_next().await else { break };
        agents.push(joined.context("a fake agent panicked")??);
    }
    agents.sort_by_key(FakeAgent::id);
    for agent in &agents {
        let what = format!("a report of {}", agent.name);
        wait_for(FIRST_REPORT, &what, async || agent.has_reported().then_some(())).await?;
    }
    Ok(agents)
}

fn spec(host: &FakeHost, agent_address: String) -> HostSpec {
    HostSpec {
        rack: host.rack.clone(),
        zone: host.zone.clone(),
        labels: host.labels.clone(),
        capacity: host.capacity.clone(),
        agent_address,
        underlay_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        storage: host.storage.clone(),
        accelerator: "tcg".to_owned(),
        qemu_version: "10.0.0".to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Talks until the agent is dropped.
async fn work(client: ClusterClient, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    // The first report tells the manager who this is; its answer tells how often to report.
    let mut interval = Duration::ZERO;
    loop {
        if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
            return;
        }
        let after = shared.host.lock().generation;
        let exchange = async {
            match client.desired(after, shared.patience(interval)).await? {
                Some(desired) => shared.apply(&desired),
                None => shared.go_on(),
            }
            client.report(&shared.report(), REPORT_LIMIT).await
        };
        let answer = tokio::select! {
            answer = exchange => answer,
            () = wait_silent(mode.clone()) => continue,
        };
        match answer {
            Ok(reply) => {
                interval = Duration::from_millis(reply.interval_ms.clamp(50, 60_000));
                let mut host = shared.host.lock();
                host.last_error = None;
                host.reported = true;
            }
            Err(error) => {
                shared.host.lock().last_error = Some(format!("{error:?}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn wait_silent(mut mode: watch::Receiver<Mode>) {
    if mode.wait_for(|mode| *mode == Mode::Silent).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A VM that moves: the source has it until it is gone, the target from its arrival on.
fn take_part(
    mut vm: FakeVm,
    present: &DesiredPresent,
    known: Option<&FakeVm>,
    mode: Mode,
) -> FakeVm {
    let part = match &present.migration {
        Some(DesiredMigration::Departure(wish)) => {
            let before = known.and_then(|known| known.part);
            FakeMove::departs(before, wish, present.resources.memory)
        }
        Some(DesiredMigration::Arrival(wish)) => FakeMove::arrives(wish, mode == Mode::Failing),
        None => return vm,
    };
    vm.phase = match part.stage {
        MigrationStage::Gone | MigrationStage::Waiting => ObservedPhase::Stopped,
        _ => vm.phase,
    };
    vm.part = Some(part);
    vm
}

impl Shared {
    /// How long to wait for a newer desired state: what moves goes on at once.
    fn patience(&self, interval: Duration) -> Duration {
        let host = self.host.lock();
        let moves = host.vms.values().any(|vm| vm.part.is_some_and(|part| part.is_under_way()));
        // The answer takes a moment, and the next report is due by then.
        if moves { STEP } else { interval.mul_f64(0.8) }
    }

    /// What was wanted last, once more: what moves is a step further.
    fn go_on(&self) {
        let desired = self.host.lock().desired.clone();
        self.apply(&desired);
    }

    /// Makes everything so at once.
    fn apply(&self, desired: &DesiredHost) {
        let mode = *self.mode.borrow();
        let mut host = self.host.lock();
        host.generation = desired.generation;
        host.desired = desired.clone();
        let mut listed = BTreeMap::new();
        for wanted in &desired.vms {
            listed.insert(wanted.vm, ());
            let known = host.vms.get(&wanted.vm);
            if known.is_some_and(|known| known.incarnation > wanted.incarnation) {
                continue;
            }
            let vm = match &wanted.wanted {
                Wanted::Absent { .. } => FakeVm {
                    incarnation: wanted.incarnation,
                    generation: known.map_or(0, |known| known.generation),
                    phase: ObservedPhase::Absent,
                    resources: Resources::default(),
                    reboots: 0,
                    part: None,
                },
                Wanted::Present(present) => FakeVm {
                    incarnation: wanted.incarnation,
                    generation: present.generation,
                    phase: match (present.power, mode) {
                        // One that has crashed is started again when something new is wanted.
                        _ if known.is_some_and(|known| {
                            known.phase == ObservedPhase::Failed
                                && known.incarnation == wanted.incarnation
                                && known.generation == present.generation
                        }) =>
                        {
                            ObservedPhase::Failed
                        }
                        (Power::Stopped, _) => ObservedPhase::Stopped,
                        (Power::Running, Mode::Failing) => ObservedPhase::Failed,
                        (Power::Running, _) => ObservedPhase::Running,
                    },
                    resources: present.resources.clone(),
                    reboots: present.reboots,
                    part: None,
                },
            };
            let vm = match &wanted.wanted {
                Wanted::Present(present) => take_part(vm, present, known, mode),
                Wanted::Absent { .. } => vm,
            };
            host.vms.insert(wanted.vm, vm);
        }
        // What is gone is reported until it is no longer listed.
        host.vms.retain(|vm, fake| fake.phase != ObservedPhase::Absent || listed.contains_key(vm));
    }

    fn report(&self) -> AgentReport {
        let mut host = self.host.lock();
        host.sequence += 1;
        let vms: Vec<ObservedVm> = host
            .vms
            .iter()
            .map(|(vm, fake)| ObservedVm {
                vm: *vm,
                incarnation: fake.incarnation,
                generation: fake.generation,
                phase: fake.phase,
                message: (fake.phase == ObservedPhase::Failed)
                    .then(|| "it pretends to fail".to_owned()),
                restarts: 0,
                disk_exists: fake.phase != ObservedPhase::Absent,
                guest: None,
                limits: None,
                deflation: None,
                share: None,
                deduplication: None,
                migration: fake.part.map(|part| part.observed()),
            })
            .collect();
        let running = vms.iter().filter(|vm| vm.phase == ObservedPhase::Running).count();
        let usage = HostUsage {
            running_vms: u32::try_from(running).unwrap_or(u32::MAX),
            ..HostUsage::default()
        };
        AgentReport {
            boot_id: host.boot_id.clone(),
            session: host.session,
            sequence: host.sequence,
            spec: host.spec.clone(),
            desired_generation: host.generation,
            vms,
            usage,
            vm_usage: Vec::new(),
        }
    }
}
