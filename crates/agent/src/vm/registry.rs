//! All VMs of this host: the face that the rest of the agent sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fs_err as fs;
use parking_lot::Mutex;
use plimsoll_api::agent::LogSource;
use plimsoll_api::cluster::{DesiredVm, ObservedPhase, ObservedVm};
use plimsoll_api::guest::{Answer, Call, ExecRequest, ExecResult};
use plimsoll_model::{HostId, VmId};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use super::argv::Accelerator;
use super::console::{Console, ConsoleError, ConsoleSession, LogReader};
use super::guard::record::{UserIds, VmDirectory, name};
use super::guest_channel::GuestCallError;
use super::host::{Disks, Images, Networks};
use super::lease::BootTime;
use super::peer::{PeerAnswer, PeerCall, PeerError, PeerRequest};
use super::runner::{self, Footing, RunnerHandle, Share};
use super::tunnel::Reach;
use crate::ksm::Deduplication;
use crate::limits::memory::MemoryGroups;
use crate::limits::{CpuGroups, LimitsError};

/// A guest that is there is heard within this of the moment from which it is listened to.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// A call to a guest has this long beyond the command's own time.
const EXEC_MARGIN: Duration = Duration::from_secs(5);

/// Whom QEMU runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuUser {
    /// As the agent: where it is not root, or the host has no other users to give.
    Own,
    /// As one user for all VMs.
    Fixed {
        /// Numeric user id.
        uid: u32,
        /// Numeric group id.
        gid: u32,
    },
    /// Each VM as a user of its own, from a range of numbers that nobody else uses; user and group
    /// have the same number.
    Range {
        /// The first number.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl QemuUser {
    /// The range that is used where nothing is configured: above those of containers
    /// (systemd-nspawn ends at 1,879,048,191) and below 2^31.
    pub const DEFAULT_RANGE: Self = Self::Range { first: 1_900_000_000, count: 100_000_000 };

    /// The best that this process can do: [`Self::DEFAULT_RANGE`] if it is root and its user
    /// namespace has those numbers, otherwise [`Self::Own`].
    #[must_use]
    pub fn detect() -> Self {
        let Self::Range { first, count } = Self::DEFAULT_RANGE else { return Self::Own };
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let covered = map.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
            let (Some(Ok(inside)), _, Some(Ok(length))) =
                (fields.next(), fields.next(), fields.next())
            else {
                return false;
            };
            inside <= u64::from(first) && inside + length >= u64::from(first) + u64::from(count)
        });
        if nix::unistd::geteuid().is_root() && covered { Self::DEFAULT_RANGE } else { Self::Own }
    }

    pub(super) fn of(self, vm: VmId) -> Option<UserIds> {
        match self {
            Self::Own => None,
            Self::Fixed { uid, gid } => Some(UserIds { uid, gid }),
            Self::Range { first, count } => {
                // Two VMs with the same number are a little less apart, nothing worse.
                let hash = vm.0.as_u128() % u128::from(count.max(1));
                let uid = first.saturating_add(u32::try_from(hash).unwrap_or(0));
                Some(UserIds { uid, gid: uid })
            }
        }
    }
}

/// What all VMs of a host share.
#[derive(Clone)]
pub struct Environment {
    /// Holds one directory per VM: processes, sockets, logs; not its disk.
    pub directory: PathBuf,
    /// The command that runs [`super::guard_main`] when `--directory DIR` is added to it: this
    /// program's own path and `vm-guard`.
    pub guard_command: Vec<PathBuf>,
    /// QEMU's program, absolute.
    pub qemu: PathBuf,
    /// By the doctor's verdict.
    pub accelerator: Accelerator,
    /// Whom QEMU runs as.
    pub user: QemuUser,
    /// The host's lease, written by a [`super::LeaseKeeper`]. VMs that are fenced by it start only
    /// while it holds.
    pub lease_file: PathBuf,
    /// No VM gets more vCPUs than this plugged in, nor places for more.
    pub max_vcpus: u32,
    /// Where vCPU threads are limited; `None`: this host cannot limit CPU, and every VM says so.
    pub cpu_groups: Option<CpuGroups>,
    /// Where their memory is counted and held; `None`: this host cannot, and what is paged out may
    /// come back.
    pub memory_groups: Option<MemoryGroups>,
    /// The VMs' disks.
    pub disks: Arc<dyn Disks>,
    /// Their networks.
    pub networks: Arc<dyn Networks>,
    /// Their images.
    pub images: Arc<dyn Images>,
    /// Whose equal pages are merged.
    pub deduplication: Deduplication,
    /// How other hosts are reached, for VMs that move.
    pub reach: Reach,
}

impl Environment {
    /// Removes a VM's cgroups: those that there are.
    pub(super) fn remove_groups(&self, vm: VmId) -> Result<(), LimitsError> {
        let cpu = self.cpu_groups.as_ref().map_or(Ok(()), |groups| groups.remove(vm));
        let memory = self.memory_groups.as_ref().map_or(Ok(()), |groups| groups.remove(vm));
        cpu.and(memory)
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Why the VMs of this host cannot be looked after.
#[derive(Debug, Error)]
pub enum VmsError {
    #[error("cannot use {} for VMs", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the kernel's boot id")]
    BootId(#[source] std::io::Error),
}

/// Why a request to one VM was not carried out.
#[derive(Debug, Error)]
pub enum VmRequestError {
    #[error("{vm} is not on this host")]
    NotHere { vm: VmId },
    #[error("{vm} does not run")]
    NotRunning { vm: VmId },
    #[error("{vm} has too many requests already")]
    Busy { vm: VmId },
    #[error("cannot ask the guest of {vm}")]
    Guest {
        vm: VmId,
        #[source]
        source: GuestCallError,
    },
    #[error("cannot use the console of {vm}")]
    Console {
        vm: VmId,
        #[source]
        source: ConsoleError,
    },
}

struct Entry {
    runner: RunnerHandle,
    console: Console,
    directory: VmDirectory,
}

/// The VMs of this host.
///
/// ```text
/// let vms = Vms::open(environment)?;             // finds the VMs that run already
/// vms.want(&desired.vms, asked_at);              // at each answer of the manager
/// vms.observed();                                // for each report; vms.changes() says when
/// ```
#[derive(Clone)]
pub struct Vms {
    shared: Arc<Shared>,
}

struct Shared {
    environment: Arc<Environment>,
    entries: Mutex<BTreeMap<VmId, Entry>>,
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for Vms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vms").field("count", &self.shared.entries.lock().len()).finish()
    }
}

impl Vms {
    /// Takes charge of every VM that has a directory here. Call inside a tokio runtime, and only
    /// from one agent per directory at a time. Nothing is started or stopped before
    /// [`Self::want`] says so.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(environment: Environment) -> Result<Self, VmsError> {
        let path = environment.directory.clone();
        let failed = |source| VmsError::Directory { path: path.clone(), source };
        fs::create_dir_all(&path).map_err(failed)?;
        super::files::boot_id().map_err(VmsError::BootId)?;
        let mut found: BTreeSet<VmId> = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Whatever else lies there is not ours.
            if let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                found.insert(vm);
            }
        }
        for vm in &found {
            let directory = VmDirectory::new(path.join(vm.to_string()));
            if let Some((project, merging)) = runner::launched_merging(&directory) {
                environment.deduplication.presume(*vm, project, merging);
            }
        }
        let shared = Shared {
            environment: Arc::new(environment),
            entries: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        let vms = Self { shared: Arc::new(shared) };
        for vm in found {
            vms.entry(vm);
        }
        Ok(vms)
    }

    /// Makes sure that the VM has its runner.
    fn entry(&self, vm: VmId) {
        let mut entries = self.shared.entries.lock();
        entries.entry(vm).or_insert_with(|| {
            let environment = &self.shared.environment;
            let directory = VmDirectory::new(environment.directory.join(vm.to_string()));
            let changes = self.shared.changes.clone();
            Entry {
                runner: runner::spawn(Arc::clone(environment), vm, directory.clone(), changes),
                console: Console::new(directory.clone()),
                directory,
            }
        });
    }

    /// Takes the manager's whole wish: [`plimsoll_api::cluster::DesiredHost::vms`]. `asked_at` is
    /// when the request to which this was the answer was *sent*: a fenced VM starts only on a wish
    /// that was asked for since the lease holds without a gap. Networks must have been told to
    /// [`Environment::networks`] before. Returns at once.
    ///
    /// A VM that is not listed stays as it is. One that was listed as absent, is gone and is not
    /// listed any more is forgotten.
    pub fn want(&self, wanted: &[DesiredVm], asked_at: BootTime) {
        self.shared.environment.deduplication.want(wanted);
        for desired in wanted {
            self.entry(desired.vm);
            let entries = self.shared.entries.lock();
            if let Some(entry) = entries.get(&desired.vm) {
                entry.runner.want(desired.clone(), asked_at);
            }
        }
        let listed: BTreeSet<VmId> = wanted.iter().map(|desired| desired.vm).collect();
        self.shared.entries.lock().retain(|vm, entry| {
            listed.contains(vm) || entry.runner.observed().phase != ObservedPhase::Absent
        });
    }

    /// Every VM of which this host holds anything, and those that were made absent; in ascending
    /// order. VMs that were found and not yet looked at are left out, see [`Self::adopted`].
    #[must_use]
    pub fn observed(&self) -> Vec<ObservedVm> {
        let entries = self.shared.entries.lock();
        let runners = entries.values().filter(|entry| entry.runner.is_adopted());
        let deduplication = &self.shared.environment.deduplication;
        runners
            .map(|entry| entry.runner.observed())
            .map(|vm| ObservedVm { deduplication: deduplication.of(vm.vm), ..vm })
            .collect()
    }

    /// How each VM that runs stands.
    pub(super) fn footings(&self) -> BTreeMap<VmId, Footing> {
        let entries = self.shared.entries.lock();
        entries.iter().filter_map(|(vm, entry)| Some((*vm, entry.runner.footing()?))).collect()
    }

    /// Where vCPUs are limited.
    pub(super) fn cpu_groups(&self) -> Option<CpuGroups> {
        self.shared.environment.cpu_groups.clone()
    }

    /// Tells a VM what it is to have.
    pub(super) fn give(&self, vm: VmId, share: Option<Share>) {
        if let Some(entry) = self.shared.entries.lock().get(&vm) {
            entry.runner.give(share);
        }
    }

    /// Changes whenever [`Self::observed`] does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Waits until every VM that was found was looked at (at most some seconds): the first report
    /// must not leave out VMs that run.
    pub async fn adopted(&self) {
        let mut changes = self.changes();
        loop {
            let adopted =
                self.shared.entries.lock().values().all(|entry| entry.runner.is_adopted());
            if adopted || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Runs a program in the guest.
    ///
    /// # Errors
    /// [`VmRequestError`]; `Busy` when the VM's agent has too many calls already.
    pub async fn exec(&self, vm: VmId, request: ExecRequest) -> Result<ExecResult, VmRequestError> {
        let guest = {
            let entries = self.shared.entries.lock();
            let entry = entries.get(&vm).ok_or(VmRequestError::NotHere { vm })?;
            entry.runner.guest().ok_or(VmRequestError::NotRunning { vm })?
        };
        guest.first_word(FIRST_WORD).await;
        let limit = Duration::from_millis(request.timeout_ms) + EXEC_MARGIN;
        match guest.call(Call::Exec(request), limit).await {
            Ok(Answer::Exec(result)) => Ok(result),
            Ok(_) => Err(VmRequestError::Guest { vm, source: GuestCallError::WrongAnswer }),
            Err(GuestCallError::Busy) => Err(VmRequestError::Busy { vm }),
            Err(source) => Err(VmRequestError::Guest { vm, source }),
        }
    }

    /// Asks a VM's task what its source asks. The task checks that this host expects it from there.
    ///
    /// # Errors
    /// [`PeerError`].
    pub async fn ask_for_peer(
        &self,
        vm: VmId,
        from: HostId,
        id: Uuid,
        request: PeerRequest,
    ) -> Result<PeerAnswer, PeerError> {
        let (reply, answer) = oneshot::channel();
        {
            let entries = self.shared.entries.lock();
            let entry = entries.get(&vm).ok_or(PeerError::NotExpected)?;
            entry.runner.ask(PeerCall { from, id, request, reply })?;
        }
        answer.await.unwrap_or(Err(PeerError::NotNow))
    }

    /// Attaches to the serial console: every session sees what the guest writes from now on, the
    /// first one that is attached may write.
    ///
    /// # Errors
    /// [`VmRequestError`].
    pub async fn console(&self, vm: VmId) -> Result<ConsoleSession, VmRequestError> {
        let console = {
            let entries = self.shared.entries.lock();
            entries.get(&vm).ok_or(VmRequestError::NotHere { vm })?.console.clone()
        };
        console.attach().await.map_err(|source| VmRequestError::Console { vm, source })
    }

    /// Opens one of the VM's logs at most `tail_bytes` before its end. The reader then gives what
    /// is there, and what is written later when asked to follow.
    ///
    /// # Errors
    /// [`VmRequestError`].
    pub fn log(
        &self,
        vm: VmId,
        source: LogSource,
        tail_bytes: u64,
    ) -> Result<LogReader, VmRequestError> {
        let entries = self.shared.entries.lock();
        let entry = entries.get(&vm).ok_or(VmRequestError::NotHere { vm })?;
        let file = match source {
            LogSource::Console => name::CONSOLE_LOG,
            LogSource::Qemu => name::QEMU_LOG,
        };
        Ok(LogReader::open(entry.directory.file(file), tail_bytes))
    }
}
