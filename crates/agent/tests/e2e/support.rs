//! A host of one test: real QEMU, guards, cgroups and disks below a temporary directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use plimsoll_agent::config::DeduplicationMode;
use plimsoll_agent::disk::{self, Base, ImageFormat};
use plimsoll_agent::ksm::{Deduplication, Place};
use plimsoll_agent::limits::CpuGroups;
use plimsoll_agent::limits::memory::MemoryGroups;
use plimsoll_agent::server::{Listener, ServerState};
use plimsoll_agent::vm::adopt::is_alive;
use plimsoll_agent::vm::argv::Accelerator;
use plimsoll_agent::vm::guard::record::{GuardRecord, ProcessId, VmDirectory};
use plimsoll_agent::vm::{
    BootTime, DiskFiles, Disks, Environment, HostError, Images, LeaseKeeper, Networks, QemuUser,
    Reach, Tap, Vms,
};
use plimsoll_api::cluster::{
    DesiredImage, DesiredPresent, DesiredVm, DiskOrigin, ObservedPhase, ObservedVm, Wanted,
};
use plimsoll_api::guest::ExecRequest;
use plimsoll_api::tls::Identity;
use plimsoll_model::{
    BitsPerSecond, Bytes, Elasticity, HostId, ImageFile, ImageFileKind, Interface, MilliCores,
    Power, ProjectId, Resources, RestartPolicy, VmId,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::authority::Authority;

/// A boot on a busy machine takes a while; nothing here takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);
pub(crate) const MIB: u64 = 1 << 20;

/// Files of the tiny image, by their file names.
pub(crate) fn image_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.build/images/tiny")
}

/// Whether real VMs can run here; says aloud why not.
pub(crate) fn can_run() -> bool {
    for (what, there) in [
        ("root", nix::unistd::geteuid().is_root()),
        ("the tiny image (images/build tiny)", image_directory().join("image.toml").exists()),
        ("QEMU", Path::new("/usr/bin/qemu-system-x86_64").exists()),
    ] {
        if !there {
            // A proof that proved nothing must not look like one.
            assert!(std::env::var_os("CI").is_none(), "no real VMs without {what}");
            eprintln!("SKIPPED: needs {what}");
            return false;
        }
    }
    true
}

struct TestImages;

impl Images for TestImages {
    fn file<'a>(&'a self, file: &'a ImageFile) -> BoxFuture<'a, Result<PathBuf, HostError>> {
        let name = match file.kind {
            ImageFileKind::Disk => "disk.qcow2",
            ImageFileKind::Kernel => "vmlinuz",
            ImageFileKind::Initrd => "initrd.img",
        };
        async move { Ok(image_directory().canonicalize()?.join(name)) }.boxed()
    }
}

struct TestDisks(disk::Disks);

impl Disks for TestDisks {
    fn prepare<'a>(
        &'a self,
        vm: VmId,
        wanted: &'a DesiredPresent,
        image: Option<PathBuf>,
    ) -> BoxFuture<'a, Result<DiskFiles, HostError>> {
        async move {
            let path = image.ok_or("no image")?;
            let overlay = self.0.disk_path(vm, 0);
            if !overlay.exists() {
                let base = Base { path: path.clone(), format: ImageFormat::Qcow2 };
                self.0.create(vm, 0, Some(&base), wanted.resources.disk).await?;
            }
            let base = Some((path, "qcow2".to_owned()));
            Ok(DiskFiles { overlay, base, seed: None, size: wanted.resources.disk, direct: true })
        }
        .boxed()
    }

    fn exists(&self, vm: VmId) -> bool {
        self.0.disk_path(vm, 0).exists()
    }

    fn delete(&self, vm: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        async move { Ok(self.0.delete_all(vm)?) }.boxed()
    }
}

struct NoNetworks;

impl Networks for NoNetworks {
    fn attach<'a>(
        &'a self,
        _: VmId,
        _: usize,
        _: &'a Interface,
    ) -> BoxFuture<'a, Result<Tap, HostError>> {
        async { Err("there are no networks here".into()) }.boxed()
    }

    fn limit(
        &self,
        _: VmId,
        _: usize,
        rate: BitsPerSecond,
    ) -> BoxFuture<'_, Result<BitsPerSecond, HostError>> {
        async move { Ok(rate) }.boxed()
    }

    fn detach(&self, _: VmId) -> BoxFuture<'_, Result<(), HostError>> {
        async { Ok(()) }.boxed()
    }
}

/// The name of the group that holds the VMs of a test.
fn parent(directory: &Path) -> String {
    directory.file_name().unwrap().to_str().unwrap().replace('.', "")
}

fn memory_groups(directory: &Path) -> Option<MemoryGroups> {
    MemoryGroups::detect(&parent(directory)).ok()
}

/// One host. Its guards, QEMUs and cgroups end with it.
pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) vms: Vms,
    pub(crate) lease: LeaseKeeper,
    groups: CpuGroups,
    merging: DeduplicationMode,
    /// Drives the kernel's scanner, for as long as the agent lives.
    _scanner: AbortOnDropHandle<()>,
    wanted: BTreeMap<VmId, DesiredVm>,
    member: Member,
    /// The agent's port, for as long as it lives.
    _port: AbortOnDropHandle<()>,
}

/// A cluster's certificate authority, of one test.
pub(crate) type Cluster = Authority;

/// Who a host is in its cluster.
struct Member {
    host: HostId,
    identity: Identity,
    ca_pem: String,
    /// Where its agent listens.
    address: SocketAddr,
}

impl Member {
    fn new(cluster: &Cluster, number: u32) -> Self {
        let host = HostId(number);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let identity = cluster.identity(&host.to_string());
        Self { host, identity, ca_pem: cluster.pem.clone(), address: free }
    }

    fn reach(&self) -> Reach {
        Reach {
            identity: self.identity.clone(),
            ca_pem: self.ca_pem.clone(),
            listen: self.address.ip(),
            tunnel_command: vec![example("vm_tunnel")],
        }
    }

    fn serve(&self, vms: &Vms) -> AbortOnDropHandle<()> {
        let (_, spec) = tokio::sync::watch::channel(
            serde_json::from_value(serde_json::json!({
                "capacity": {}, "agent_address": self.address.to_string(),
                "underlay_address": "127.0.0.1", "storage": {"kind": "local"}, "accelerator": "tcg",
                "qemu_version": "10.0.2", "agent_version": "0", "rack": null, "zone": null,
                "labels": {},
            }))
            .unwrap(),
        );
        let doctor: plimsoll_agent::server::Doctor =
            Arc::new(|| async { serde_json::Value::Null }.boxed());
        let state = ServerState { host: self.host, vms: vms.clone(), spec, doctor };
        let (identity, ca_pem, address) =
            (self.identity.clone(), self.ca_pem.clone(), self.address);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let listener = loop {
                // The one before it lets go of the port in a moment.
                match Listener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            listener.serve(&identity, &ca_pem, state, CancellationToken::new()).await.unwrap();
        }))
    }
}

fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let path = program.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "the example {name} is built with the tests");
    path
}

impl Host {
    /// A host, or `None` (said aloud) where real VMs cannot run.
    pub(crate) fn start() -> Option<Self> {
        Self::start_merging(DeduplicationMode::Off)
    }

    /// The same, with equal pages merged by the kernel of this machine.
    pub(crate) fn start_merging(merging: DeduplicationMode) -> Option<Self> {
        Self::start_in(&Cluster::new(), 1, merging)
    }

    /// Host number `number` of a cluster.
    pub(crate) fn start_in(
        cluster: &Cluster,
        number: u32,
        merging: DeduplicationMode,
    ) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let member = Member::new(cluster, number);
        let directory = tempfile::Builder::new().prefix("plimsoll-e2e-").tempdir().unwrap();
        let groups = CpuGroups::detect(&parent(directory.path())).unwrap();
        let mut lease = LeaseKeeper::open(directory.path().join("lease.json")).unwrap();
        lease.renew(BootTime::now(), None).unwrap();
        let (vms, scanner) = Self::open(directory.path(), &groups, merging, &member);
        let wanted = BTreeMap::new();
        let _port = member.serve(&vms);
        Some(Self {
            directory,
            vms,
            lease,
            groups,
            merging,
            _scanner: scanner,
            wanted,
            member,
            _port,
        })
    }

    fn open(
        directory: &Path,
        groups: &CpuGroups,
        merging: DeduplicationMode,
        member: &Member,
    ) -> (Vms, AbortOnDropHandle<()>) {
        let deduplication = match merging {
            DeduplicationMode::Off => Deduplication::off(),
            merging => Deduplication::open(merging, Place::of_this_machine()),
        };
        let driven = deduplication.clone();
        let scanner = AbortOnDropHandle::new(tokio::spawn(async move { driven.drive().await }));
        let disks = disk::Disks::new(directory.join("disks"), None, Bytes::ZERO);
        let vms = Vms::open(Environment {
            directory: directory.join("vms"),
            guard_command: vec![example("vm_guard")],
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            user: QemuUser::detect(),
            lease_file: directory.join("lease.json"),
            max_vcpus: 8,
            cpu_groups: Some(groups.clone()),
            memory_groups: memory_groups(directory),
            disks: Arc::new(TestDisks(disks)),
            networks: Arc::new(NoNetworks),
            images: Arc::new(TestImages),
            deduplication,
            reach: member.reach(),
        })
        .unwrap();
        (vms, scanner)
    }

    /// The agent dies, and none takes its place.
    pub(crate) fn kill_agent(&mut self) {
        let nobody = self.directory.path().join("nobody");
        // Its port first: nobody answers any more.
        self._port = AbortOnDropHandle::new(tokio::spawn(async {}));
        let off = DeduplicationMode::Off;
        (self.vms, self._scanner) = Self::open(&nobody, &self.groups, off, &self.member);
    }

    /// The agent dies and another takes its place; VMs go on.
    pub(crate) async fn restart_agent(&mut self) {
        self.kill_agent();
        (self.vms, self._scanner) =
            Self::open(self.directory.path(), &self.groups, self.merging, &self.member);
        self.vms.adopted().await;
        self._port = self.member.serve(&self.vms);
    }

    /// Where its agent listens.
    pub(crate) fn address(&self) -> String {
        self.member.address.to_string()
    }

    /// Which host it is.
    pub(crate) fn id(&self) -> HostId {
        self.member.host
    }

    pub(crate) fn want(&mut self, desired: DesiredVm) {
        self.wanted.insert(desired.vm, desired);
        self.want_again();
    }

    pub(crate) fn want_again(&self) {
        let all: Vec<DesiredVm> = self.wanted.values().cloned().collect();
        self.vms.want(&all, BootTime::now());
    }

    pub(crate) fn observed(&self, vm: VmId) -> Option<ObservedVm> {
        self.vms.observed().into_iter().find(|observed| observed.vm == vm)
    }

    /// Waits until what is observed of the VM is as said.
    pub(crate) async fn until(
        &self,
        vm: VmId,
        what: &str,
        condition: impl Fn(&ObservedVm) -> bool,
    ) -> ObservedVm {
        let deadline = Instant::now() + LIMIT;
        let mut changes = self.vms.changes();
        loop {
            let observed = self.observed(vm);
            if let Some(observed) = observed.as_ref().filter(|observed| condition(observed)) {
                return observed.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let log = |name| {
                    let path = self.vm_directory(vm).join(name);
                    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
                };
                panic!(
                    "not {what}: {observed:?}\nqemu.log: {}\nconsole.log: {}",
                    log("qemu.log"),
                    log("console.log")
                );
            }
            let _ = tokio::time::timeout(left, changes.changed()).await;
        }
    }

    pub(crate) async fn until_phase(&self, vm: VmId, phase: ObservedPhase) -> ObservedVm {
        self.until(vm, &format!("{phase:?}"), |observed| observed.phase == phase).await
    }

    /// Waits until the guest's agent answers.
    pub(crate) async fn until_booted(&self, vm: VmId) -> ObservedVm {
        self.until(vm, "booted", |observed| {
            observed.phase == ObservedPhase::Running && observed.guest.is_some()
        })
        .await
    }

    /// What a command in the guest prints.
    pub(crate) async fn exec(&self, vm: VmId, argv: &[&str]) -> String {
        let request = ExecRequest {
            argv: argv.iter().map(ToString::to_string).collect(),
            env: Vec::new(),
            stdin: Vec::new(),
            timeout_ms: 30_000,
            max_output_bytes: 65_536,
        };
        let result = self.vms.exec(vm, request).await.unwrap();
        assert_eq!(result.exit_code, Some(0), "{argv:?}: {result:?}");
        String::from_utf8(result.stdout).unwrap().trim().to_owned()
    }

    /// Waits until a command in the guest prints this.
    pub(crate) async fn until_exec(&self, vm: VmId, command: &str, wanted: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.exec(vm, &["sh", "-c", command]).await;
            if seen == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "`{command}` prints `{seen}`, not `{wanted}`");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn vm_directory(&self, vm: VmId) -> PathBuf {
        self.directory.path().join("vms").join(vm.to_string())
    }

    pub(crate) fn processes(&self, vm: VmId) -> GuardRecord {
        let text = std::fs::read(self.vm_directory(vm).join("guard.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub(crate) fn kill(&self, process: ProcessId) {
        assert!(process.exists());
        let pid = nix::unistd::Pid::from_raw(process.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // First the agent, or it starts again what is killed here.
        self.kill_agent();
        for vm in self.wanted.keys() {
            let directory = VmDirectory::new(self.vm_directory(*vm));
            let path = self.vm_directory(*vm).join("guard.json");
            // A start that was under way may come to life a moment later: twice dead is dead.
            let mut dead = 0;
            while dead < 2 {
                let record = std::fs::read(&path)
                    .ok()
                    .and_then(|text| serde_json::from_slice::<GuardRecord>(&text).ok());
                if let Some(record) = record.filter(|record| record.guard.exists()) {
                    self.kill(record.guard);
                }
                std::thread::sleep(Duration::from_millis(20));
                dead = if is_alive(&directory).unwrap_or(false) { 0 } else { dead + 1 };
            }
        }
        for vm in self.groups.vms().unwrap_or_default() {
            let _ = self.groups.remove(vm);
        }
        let _ = self.groups.remove_parent();
        if let Some(groups) = memory_groups(self.directory.path()) {
            for vm in groups.vms().unwrap_or_default() {
                let _ = groups.remove(vm);
            }
            let _ = groups.remove_parent();
        }
    }
}

/// A VM that should run: one core, 256 MiB, a disk of 64 MiB, no network.
pub(crate) fn present() -> DesiredPresent {
    let file = |kind| ImageFile { kind, sha256: "0".repeat(64), size: Bytes(1) };
    DesiredPresent {
        generation: 1,
        power: Power::Running,
        shutdown_grace_ms: 30_000,
        name: "vm-1".parse().unwrap(),
        project: ProjectId(uuid::Uuid::from_u128(1)),
        project_name: "shop".parse().unwrap(),
        resources: Resources {
            cpu: MilliCores(1000),
            memory: Bytes(256 * MIB),
            disk: Bytes(64 * MIB),
            ..Resources::default()
        },
        image: DesiredImage {
            files: vec![
                file(ImageFileKind::Disk),
                file(ImageFileKind::Kernel),
                file(ImageFileKind::Initrd),
            ],
            disk_format: "qcow2".into(),
            append: Some(
                "console=ttyS0 panic=1 memhp_default_state=online_movable swiotlb=512 init_on_alloc=0"
                    .into(),
            ),
            guest_agent: true,
        },
        disk: DiskOrigin::Image,
        interfaces: Vec::new(),
        user_data: None,
        ssh_keys: Vec::new(),
        restart: RestartPolicy::OnFailure,
        fenced_by_lease: false,
        reboots: 0,
        deflation: None,
        elasticity: Elasticity::Guaranteed,
        end_at: None,
        warn_at: None,
        migration: None,
    }
}

pub(crate) fn desired(vm: VmId, present: DesiredPresent) -> DesiredVm {
    DesiredVm { vm, incarnation: 1, wanted: Wanted::Present(Box::new(present)) }
}

pub(crate) fn absent(vm: VmId) -> DesiredVm {
    DesiredVm { vm, incarnation: 1, wanted: Wanted::Absent { delete_disk: true } }
}

pub(crate) fn new_vm() -> VmId {
    VmId(uuid::Uuid::new_v4())
}
