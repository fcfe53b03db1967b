//! An agent from its start to its end.
//!
//! ```text
//!   lock data_dir -> swap space -> examine the host -> inventory -> listen -> join or remember
//!     -> find the VMs that run -> serve and link, until told to end -> swap space away
//! ```
//!
//! Nothing is started, stopped or removed before every VM that is here was found and looked at. The
//! end of the agent ends no VM.

mod host_memory;

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fs_err as fs;
use futures_util::FutureExt as _;
use nix::fcntl::{Flock, FlockArg};
use plimsoll_api::{
    ClientError, ClusterClient, ErrorChain, JoinToken,
    doctor::{DoctorAccelerator, DoctorReport},
};
use plimsoll_model::{Bytes, HostSpec, Resources, StoragePool};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Accelerator, AgentConfig, ConfigError},
    disk,
    doctor::{DoctorOptions, examine},
    host::{HostDisks, HostNetworks, HostNetworksError},
    images::{ImageCache, ImageError},
    inventory::{Inventory, inventory},
    join::{JoinError, Membership},
    ksm::{self, Deduplication},
    limits::CpuGroups,
    link::{Link, LinkError},
    net::{Fabric, Underlay, VXLAN_PORT},
    server::{Listener, ServerError, ServerState},
    telemetry::{Divided, UsageSampler},
    vm::{Environment, QemuUser, Reach, Vms, VmsError, argv, reclaim::Reclaimer},
};

/// Most VMs that were found have been looked at after so long. One whose QEMU hangs takes longer: the
/// host's lease, which runs out while nothing is reported, must not wait for it.
const ADOPTION_LIMIT: Duration = Duration::from_secs(4);
/// How often files of images are marked as used, and old ones deleted.
const EVICTION_PERIOD: Duration = Duration::from_secs(300);
/// How often the host is looked at again: disks are replaced, memory is added.
const INVENTORY_PERIOD: Duration = Duration::from_secs(600);
/// Images never fill the file system beyond this.
const IMAGE_RESERVE: Bytes = Bytes::mib(256);
/// As many as QEMU's q35 takes without an interrupt remapper.
const MOST_VCPUS: u64 = 255;

/// Why an agent could not start.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The configuration cannot be used.
    #[error("cannot use the agent's configuration")]
    Config(#[source] ConfigError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another agent uses it.
    #[error(
        "another agent{} uses {}: one agent for each data directory",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other agent's process, if it wrote it down.
        pid: Option<u32>,
    },
    /// No VM can run on this host.
    #[error("no VM can run on this host: {reasons} (`plimsoll doctor` tells more)")]
    Unusable {
        /// What is wrong, and what to do.
        reasons: String,
    },
    /// The shared pool is of no use for disks that other hosts take over.
    #[error("the shared pool cannot be used")]
    Pool(#[source] disk::DiskError),
    /// The user that QEMU is to run as is not there.
    #[error("there is no user `{user}` for QEMU to run as")]
    QemuUser {
        /// Who.
        user: String,
    },
    /// The address by which others reach this host is not known.
    #[error("cannot tell by which address others reach this host: set `advertise`")]
    Advertise,
    /// The agent's port cannot be served.
    #[error("cannot serve the agent's port")]
    Server(#[source] ServerError),
    /// The host could not join.
    #[error("cannot be a host of the cluster")]
    Join(#[source] JoinError),
    /// The connection to the manager cannot be set up.
    #[error("cannot set up the connection to the manager")]
    Client(#[source] ClientError),
    /// The networks cannot be looked after.
    #[error("cannot look after the VMs' networks")]
    Networks(#[source] HostNetworksError),
    /// The image cache cannot be used.
    #[error("cannot use the image cache")]
    Images(#[source] ImageError),
    /// The VMs cannot be looked after.
    #[error("cannot look after the VMs")]
    Vms(#[source] VmsError),
    /// The link cannot be set up.
    #[error("cannot set up the link to the manager")]
    Link(#[source] LinkError),
}

/// What an agent is started with beside its configuration.
#[derive(Clone)]
pub struct Start {
    /// A join token, the first time.
    pub join: Option<String>,
    /// The command that runs [`crate::vm::guard_main`] with the directory that follows
    /// `--directory`: this program's own path and `vm-guard`.
    pub guard_command: Vec<PathBuf>,
    /// The same of [`crate::vm::tunnel_main`]: `vm-tunnel`.
    pub tunnel_command: Vec<PathBuf>,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("guard_command", &self.guard_command).finish_non_exhaustive()
    }
}

/// Runs an agent until `shutdown`; VMs go on.
///
/// # Errors
/// [`AgentError`]: it could not start. Once it has started it goes on whatever fails.
pub async fn run(
    config: AgentConfig,
    start: Start,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    config.check().map_err(AgentError::Config)?;
    let _lock = lock(&config.data_dir)?;
    host_memory::set_up_swap(&config).await;
    let (data_dir, groups) = (config.data_dir.clone(), host_memory::groups(&config.cgroup));
    let ended = live(config, start, shutdown).await;
    host_memory::remove_swap(data_dir, groups).await;
    ended
}

/// All that an agent does while it holds its directory.
async fn live(
    config: AgentConfig,
    start: Start,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let token = parse_token(start.join.as_deref())?;
    let (report, host) = look_at_host(&config).await?;
    let listener = Listener::bind(config.listen).await.map_err(AgentError::Server)?;
    let remembered = Membership::load(&config.data_dir).map_err(AgentError::Join)?;
    let manager = remembered.map(|member| member.cluster_address);
    let manager = manager.or_else(|| token.map(|token| token.address));
    let spec = host_spec(&config, &report, &host, listener.address(), manager.as_deref())?;
    let name = config.host_name().map_err(AgentError::Config)?;
    let membership =
        Membership::load_or_join(&config.data_dir, start.join.as_deref(), &name, &spec)
            .await
            .map_err(AgentError::Join)?;
    Running::prepare(config, start, spec, &report, &host, membership)
        .await?
        .go_on(listener, shutdown)
        .await
}

fn parse_token(text: Option<&str>) -> Result<Option<JoinToken>, AgentError> {
    let parse =
        |text: &str| text.parse().map_err(|error| AgentError::Join(JoinError::Token(error)));
    text.map(parse).transpose()
}

/// Holds the data directory for as long as the value lives, whatever ends the process.
fn lock(data_dir: &Path) -> Result<Flock<File>, AgentError> {
    let failed = |source| AgentError::DataDir { path: data_dir.to_owned(), source };
    let mut builder = std::fs::DirBuilder::new();
    // What lies in it is nobody else's business: QEMU gets its files already open.
    builder.recursive(true).mode(0o700).create(data_dir).map_err(failed)?;
    let path = data_dir.join("agent.lock");
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                writeln!(file, "{}", std::process::id())
            };
            write(&mut lock).map_err(failed)?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let text = fs::read_to_string(&path).unwrap_or_default();
            Err(AgentError::Locked { path: data_dir.to_owned(), pid: text.trim().parse().ok() })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

fn doctor_options(config: &AgentConfig) -> DoctorOptions {
    DoctorOptions {
        qemu: config.qemu.clone(),
        data_dir: config.storage_path(),
        qemu_user: config.qemu_user.clone(),
        deduplication: config.deduplication.mode,
    }
}

async fn look_at_host(config: &AgentConfig) -> Result<(DoctorReport, Inventory), AgentError> {
    let report = examine(&doctor_options(config)).await;
    if !report.usable {
        let fatal = report.checks.iter().filter(|check| check.is_fatal()).map(|check| {
            let remedy = check.remedy.as_ref().map(|remedy| format!("; {remedy}"));
            format!("{}: {}{}", check.name, check.evidence, remedy.unwrap_or_default())
        });
        let reasons = fatal.collect::<Vec<_>>().join("; ");
        return Err(AgentError::Unusable { reasons });
    }
    let host = inventory(config.storage_path()).await;
    for note in &host.notes {
        tracing::debug!(note, "inventory");
    }
    Ok((report, host))
}

fn accelerator(config: &AgentConfig, report: &DoctorReport) -> Accelerator {
    let found = match report.accelerator {
        DoctorAccelerator::Kvm => Accelerator::Kvm,
        DoctorAccelerator::Tcg => Accelerator::Tcg,
    };
    let chosen = config.accelerator.unwrap_or(found);
    if chosen == Accelerator::Kvm && found == Accelerator::Tcg {
        tracing::warn!("KVM is configured, but was found unusable: VMs may not boot");
    }
    chosen
}

fn capacity(config: &AgentConfig, host: &Inventory) -> Resources {
    let reserve = config.reserve.over(&host.reserve);
    let mut usable = host.usable(&reserve);
    // Nobody plans with bytes, and whole numbers read better.
    usable.memory = whole(usable.memory, Bytes::mib(1));
    usable.disk = whole(usable.disk, Bytes::gib(1));
    let mut capacity = config.capacity.over(&usable);
    for (model, amount) in &config.accelerators.0 {
        let slot = capacity.accelerators.0.entry(model.clone()).or_default();
        *slot = slot.saturating_add(*amount);
    }
    capacity
}

const fn whole(amount: Bytes, unit: Bytes) -> Bytes {
    Bytes(amount.get() - amount.get() % unit.get())
}

fn host_spec(
    config: &AgentConfig,
    report: &DoctorReport,
    host: &Inventory,
    listens: SocketAddr,
    manager: Option<&str>,
) -> Result<HostSpec, AgentError> {
    let listened = Some(listens.ip()).filter(|ip| !ip.is_unspecified());
    let advertised = config
        .advertise
        .or(listened)
        .or_else(|| manager.and_then(source_address))
        .ok_or(AgentError::Advertise)?;
    Ok(HostSpec {
        rack: config.rack.clone(),
        zone: config.zone.clone(),
        labels: config.labels.clone(),
        capacity: capacity(config, host),
        agent_address: SocketAddr::new(advertised, listens.port()).to_string(),
        underlay_address: config.underlay.unwrap_or(advertised),
        storage: config.storage_pool(),
        accelerator: accelerator(config, report).as_str().to_owned(),
        qemu_version: report.qemu_version.clone().unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// The address from which this machine reaches another: asked of the routing table, nothing is sent.
fn source_address(manager: &str) -> Option<IpAddr> {
    let any = |v6: bool| if v6 { "[::]:0" } else { "0.0.0.0:0" };
    let targets = std::net::ToSocketAddrs::to_socket_addrs(manager).ok()?;
    targets
        .filter_map(|target| {
            let socket = UdpSocket::bind(any(target.is_ipv6())).ok()?;
            socket.connect(target).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .find(|ip| !ip.is_unspecified())
}

fn qemu_user(config: &AgentConfig) -> Result<QemuUser, AgentError> {
    let Some(name) = &config.qemu_user else { return Ok(QemuUser::detect()) };
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(QemuUser::Fixed { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        _ => Err(AgentError::QemuUser { user: name.clone() }),
    }
}

/// An absolute path of a program that is named or in the search path.
fn program(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| name.to_owned())
}

/// An agent whose host was looked at and whose VMs were found.
struct Running {
    config: AgentConfig,
    membership: Membership,
    client: ClusterClient,
    spec: watch::Sender<HostSpec>,
    vms: Vms,
    networks: Arc<HostNetworks>,
    images: ImageCache,
    disks: disk::Disks,
    deduplication: Deduplication,
}

impl Running {
    async fn prepare(
        config: AgentConfig,
        start: Start,
        spec: HostSpec,
        report: &DoctorReport,
        host: &Inventory,
        membership: Membership,
    ) -> Result<Self, AgentError> {
        let client = ClusterClient::new(
            &membership.cluster_address,
            &membership.ca_pem,
            &membership.identity(),
        )
        .map_err(AgentError::Client)?;
        let underlay = Underlay { address: spec.underlay_address, port: VXLAN_PORT };
        let networks = HostNetworks::open(
            Fabric::prepare(Some(underlay)).await,
            Some(spec.underlay_address),
            config.data_dir.join("networks.json"),
        )
        .map_err(AgentError::Networks)?;
        let networks = Arc::new(networks);
        let images = ImageCache::open(
            config.data_dir.join("images"),
            IMAGE_RESERVE,
            Arc::new(client.clone()),
        )
        .map_err(AgentError::Images)?;
        let reserve = config.reserve.over(&host.reserve).disk;
        let disks = disk::Disks::new(config.storage_path(), None, reserve);
        let shared = matches!(spec.storage, StoragePool::Shared { .. });
        if shared {
            disk::require_direct_writes(&config.storage_path()).map_err(AgentError::Pool)?;
        }
        let cpu_groups = match CpuGroups::detect(&config.cgroup) {
            Ok(groups) => Some(groups),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "CPU cannot be limited on this host");
                None
            }
        };
        let place = ksm::Place::of_this_machine();
        let deduplication = Deduplication::open(config.deduplication.mode, place);
        let vcpus = host.total.cpu.max(spec.capacity.cpu).vcpus().min(MOST_VCPUS);
        let memory_groups = host_memory::groups(&config.cgroup);
        memory_groups.iter().for_each(host_memory::relieve);
        let vms = Vms::open(Environment {
            directory: config.data_dir.join("vms"),
            guard_command: start.guard_command,
            qemu: program(&config.qemu),
            accelerator: match accelerator(&config, report) {
                Accelerator::Kvm => argv::Accelerator::Kvm,
                Accelerator::Tcg => argv::Accelerator::Tcg,
            },
            user: qemu_user(&config)?,
            lease_file: lease_path(&config.data_dir),
            max_vcpus: u32::try_from(vcpus).unwrap_or(1),
            cpu_groups,
            memory_groups,
            disks: Arc::new(HostDisks::new(disks.clone(), Arc::clone(&networks), shared)),
            networks: Arc::clone(&networks) as _,
            images: Arc::new(images.clone()),
            deduplication: deduplication.clone(),
            reach: Reach {
                identity: membership.identity(),
                ca_pem: membership.ca_pem.clone(),
                listen: config.listen.ip(),
                tunnel_command: start.tunnel_command,
            },
        })
        .map_err(AgentError::Vms)?;
        if timeout(ADOPTION_LIMIT, vms.adopted()).await.is_err() {
            tracing::warn!("some VMs could not be looked at yet; they are not reported until then");
        }
        tracing::info!(vms = vms.observed().len(), "found the VMs of this host");
        let spec = watch::Sender::new(spec);
        Ok(Self { config, membership, client, spec, vms, networks, images, disks, deduplication })
    }

    async fn go_on(
        self,
        listener: Listener,
        shutdown: CancellationToken,
    ) -> Result<(), AgentError> {
        let options = doctor_options(&self.config);
        let state = ServerState {
            host: self.membership.host,
            vms: self.vms.clone(),
            spec: self.spec.subscribe(),
            doctor: Arc::new(move || {
                let options = options.clone();
                async move { serde_json::to_value(examine(&options).await).unwrap_or_default() }
                    .boxed()
            }),
        };
        let (division, divided) = watch::channel(Divided::default());
        let reclaimer = Reclaimer::new(self.vms.clone(), self.spec.subscribe(), division);
        let link = Link {
            client: self.client.clone(),
            vms: Arc::new(self.vms.clone()),
            networks: Arc::clone(&self.networks) as _,
            spec: self.spec.subscribe(),
            usage: UsageSampler::new(
                self.config.storage_path(),
                self.spec.borrow().underlay_address,
                &self.config.capacity,
                divided,
                self.deduplication.clone(),
            ),
            lease_path: lease_path(&self.config.data_dir),
            state_path: self.config.data_dir.join("link.json"),
        };
        let identity = self.membership.identity();
        let address = listener.address();
        tracing::info!(host = %self.membership.host, %address, "the agent runs");
        let server = listener.serve(&identity, &self.membership.ca_pem, state, shutdown.clone());
        // Whichever cannot go on ends the other.
        let _ended = shutdown.clone().drop_guard();
        let ended = tokio::select! {
            ended = async {
                tokio::try_join!(
                    async { server.await.map_err(AgentError::Server) },
                    async { link.run(shutdown.clone()).await.map_err(AgentError::Link) },
                )
            } => ended.map(|_| ()),
            () = self.keep_house() => Ok(()),
            () = reclaimer.run() => Ok(()),
            () = self.deduplication.drive() => Ok(()),
        };
        self.deduplication.give_back();
        ended
    }

    /// What has to be done now and then.
    async fn keep_house(&self) {
        let ticker = |period| {
            let mut ticker = interval_at(Instant::now() + period, period);
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticker
        };
        let mut evictions = ticker(EVICTION_PERIOD);
        let mut inventories = ticker(INVENTORY_PERIOD);
        loop {
            tokio::select! {
                _ = evictions.tick() => self.evict_images(),
                _ = inventories.tick() => {
                    let capacity =
                        capacity(&self.config, &inventory(self.config.storage_path()).await);
                    self.spec.send_if_modified(|spec| {
                        let changed = spec.capacity.accelerators != capacity.accelerators
                            || spec.capacity.cpu != capacity.cpu
                            || spec.capacity.memory != capacity.memory;
                        if changed {
                            // Disk space moves all the time with what others write; a capacity that
                            // flutters would make every placement stale.
                            let disk = spec.capacity.disk;
                            spec.capacity = Resources { disk, ..capacity };
                        }
                        changed
                    });
                }
            }
        }
    }

    fn evict_images(&self) {
        let bases = match self.disks.vms() {
            Ok(vms) => vms.into_iter().filter_map(|vm| self.disks.facts(vm, 0).ok()?.base),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot tell which images are in use");
                return;
            }
        };
        let names = bases.filter_map(|base| Some(base.file_name()?.to_str()?.to_owned()));
        let unused = Duration::from_secs(self.config.image_unused_s);
        if let Err(error) = self.images.evict(unused, &names.collect()) {
            tracing::warn!(error = %ErrorChain(&error), "cannot delete old images");
        }
    }
}

/// Where the lease is; every VM's guard reads it.
fn lease_path(data_dir: &Path) -> PathBuf {
    data_dir.join("lease.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_agent() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("agent");
        let held = lock(&data_dir).unwrap();
        let error = lock(&data_dir).unwrap_err();
        let own = Some(std::process::id());
        assert!(matches!(error, AgentError::Locked { pid, .. } if pid == own), "{error}");
        drop(held);
        lock(&data_dir).unwrap();
    }

    #[test]
    fn declared_values_and_accelerators_are_added_to_what_was_found() {
        let config: AgentConfig = toml::from_str(
            "capacity = { cpu = 4 }\nreserve = { memory = \"1GiB\" }\naccelerators = { a100 = 2 }",
        )
        .unwrap();
        let host = Inventory {
            total: Resources { memory: Bytes::gib(8), ..Resources::default() },
            reserve: Resources::default(),
            gpus: Vec::new(),
            notes: Vec::new(),
        };
        let capacity = capacity(&config, &host);
        assert_eq!(capacity.cpu.get(), 4000);
        assert_eq!(capacity.memory, Bytes::gib(7));
        assert_eq!(capacity.accelerators.get(&"a100".parse().unwrap()), 2000);
    }

    #[test]
    fn the_own_address_is_the_one_towards_the_manager() {
        assert_eq!(source_address("127.0.0.1:7"), Some([127, 0, 0, 1].into()));
        assert_eq!(source_address("nonsense"), None);
    }

    #[test]
    fn a_program_is_found_in_the_search_path() {
        assert!(program(Path::new("sh")).is_absolute());
        assert_eq!(program(Path::new("/x/y")), Path::new("/x/y"));
    }
}
