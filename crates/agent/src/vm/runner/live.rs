//! A VM that runs: making its limits what they should be, and reading them back.

mod memory;

use std::time::Duration;

use plimsoll_api::ErrorChain;
use plimsoll_api::cluster::{ActualLimits, DeflationOutcome, DesiredPresent};
use plimsoll_api::guest::{Answer, Call, Facts};
use plimsoll_model::{Bytes, BytesPerSecond, IoPerSecond, VmId};
use plimsoll_qmp::{EventKind, EventReceiver, Qmp, QmpError, RunState};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::deflation::{self, Aim, Cascade, Held, Sight};
use super::hold::Holder;
use super::launch::vcpus_for;
use super::record::LaunchedMachine;
use crate::limits::{CpuLimits, CpuWeight};
use crate::vm::argv::{
    BALLOON_PATH, GUEST_STATS_SECONDS, ROOT_NODE, THROTTLE_PATH, throttle_limits,
};
use crate::vm::guard::record::GuardRecord;
use crate::vm::guest_channel::{GuestChannel, GuestStatus};
use crate::vm::registry::Environment;

/// A guest takes a new vCPU within 50 ms; one that has not booted yet never answers.
const PLUG_LIMIT: Duration = Duration::from_secs(5);
const ONLINE_LIMIT: Duration = Duration::from_secs(15);
/// How long a smaller limit of CPU time waits for the guest to leave its vCPUs.
const OFFLINE_LIMIT: Duration = Duration::from_secs(3);

/// A running QEMU and what we know of it.
pub(super) struct Live {
    pub record: GuardRecord,
    pub qmp: Qmp,
    pub guest: GuestChannel,
    /// What the guest's agent told last.
    pub facts: watch::Receiver<Option<Facts>>,
    /// Asks the guest for them, and ends with this.
    _gather: AbortOnDropHandle<()>,
    pub since: Instant,
    /// What was last asked of the guest's memory.
    pub memory: memory::Asked,
    /// For which boot of the guest, and how many, CPUs were last made to run.
    online: Option<(String, u32)>,
    /// What is taken from it, and how far that is.
    cascade: Option<Cascade>,
    /// What QEMU says happened.
    pub events: EventReceiver,
    /// Lets it go on where it stands still at a limit of its memory.
    relief: Option<AbortOnDropHandle<()>>,
}

/// Ends when a guest takes memory back by itself, which it does when it has none left.
pub(super) async fn taken_back(events: &mut EventReceiver, asked: &memory::Asked) {
    loop {
        match events.recv().await {
            Ok(event) => {
                if let EventKind::BalloonChange { actual } = event.kind()
                    && asked.is_more_than_asked(actual)
                {
                    return;
                }
            }
            Err(RecvError::Closed) => std::future::pending().await,
            Err(RecvError::Lagged(_)) => {}
        }
    }
}

/// What a running VM is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal<'a> {
    pub present: &'a DesiredPresent,
    /// What of it it is to have now.
    pub aim: Aim,
    /// What was launched.
    pub machine: &'a LaunchedMachine,
}

/// What could not be made so yet: a sentence for people each.
#[derive(Debug, Default)]
pub(super) struct Outstanding(pub Vec<String>);

impl Outstanding {
    fn add(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    pub(super) fn failed(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        self.add(format!("{what}: {}", ErrorChain(error)));
    }
}

impl Live {
    pub(super) fn new(
        record: GuardRecord,
        qmp: Qmp,
        guest: GuestChannel,
        facts: watch::Receiver<Option<Facts>>,
        gather: AbortOnDropHandle<()>,
        held: Option<Held>,
    ) -> Self {
        let since = Instant::now();
        let events = qmp.subscribe();
        Self {
            record,
            qmp,
            guest,
            facts,
            _gather: gather,
            since,
            memory: memory::Asked::default(),
            online: None,
            cascade: held.map(Cascade::recall),
            events,
            relief: None,
        }
    }

    /// How often its guest took memory back by itself.
    pub(super) fn times_taken_back(&self) -> u64 {
        self.memory.times_taken_back()
    }

    /// `aim`, with no more memory than there is at present.
    pub(super) async fn as_it_is(&self, aim: Aim) -> Aim {
        match self.memory_now().await {
            Ok(memory) => Aim { memory: aim.memory.min(memory), ..aim },
            Err(_) => aim,
        }
    }

    /// Takes a deflation that is asked for as far as it goes at once. `limits` are those of the last
    /// look. Tells what the VM is to have now.
    pub(super) async fn deflate(
        &mut self,
        present: &DesiredPresent,
        limits: Option<&ActualLimits>,
        holder: Holder,
    ) -> Aim {
        let facts = self.facts.borrow().clone();
        let sight = Sight {
            present,
            guest: &self.guest,
            facts: facts.as_ref(),
            limits,
            online: self.online.as_ref().map(|(_, count)| *count),
            known_for: self.since.elapsed(),
            holder,
        };
        deflation::follow(&mut self.cascade, &sight).await
    }

    /// What is held back from it, for an agent to come.
    pub(super) fn held(&self) -> Option<Held> {
        self.cascade.as_ref().and_then(Cascade::held)
    }

    /// Whether something is taken from it, or being taken.
    pub(super) fn is_deflated(&self) -> bool {
        self.cascade.is_some()
    }

    /// Whether a deflation is under way.
    pub(super) fn is_deflating(&self) -> bool {
        self.cascade.as_ref().is_some_and(|cascade| cascade.outcome().is_none())
    }

    /// How the deflation that lasts went.
    pub(super) fn deflation(&self) -> Option<&DeflationOutcome> {
        self.cascade.as_ref().and_then(Cascade::outcome)
    }

    /// Makes every limit what the goal says as far as that is possible on a running machine, and
    /// reads all of them back.
    pub(super) async fn apply(
        &mut self,
        environment: &Environment,
        vm: VmId,
        goal: &Goal<'_>,
    ) -> (ActualLimits, Outstanding) {
        let Goal { present, aim, machine } = *goal;
        let mut actual = ActualLimits::default();
        let mut outstanding = Outstanding::default();
        // First: a QEMU that stands still at its limit answers nothing else.
        let holder = Holder::new(environment.memory_groups.clone(), vm, &self.record);
        holder.keep(aim.hold, &mut actual, &mut outstanding).await;
        self.relief =
            actual.memory_held.and_then(|_| self.relief.take().or_else(|| holder.relieve()));
        self.processors(environment, vm, goal, &mut actual, &mut outstanding).await;
        if let Err(error) =
            self.size_memory(aim.memory, machine, &mut actual, &mut outstanding).await
        {
            outstanding.failed("cannot set memory", &error);
        }
        if let Err(error) = self.throttle(present, &mut actual, &mut outstanding).await {
            outstanding.failed("cannot limit the disk", &error);
        }
        if let Err(error) = self.disk_size(present, &mut actual, &mut outstanding).await {
            outstanding.failed("cannot grow the disk", &error);
        }
        if present.interfaces.len() != machine.interfaces {
            outstanding.add("other interfaces need a reboot");
        }
        if machine.interfaces > 0 {
            let rate = present.resources.network;
            match environment.networks.limit(vm, machine.interfaces, rate).await {
                Ok(rate) => actual.network = Some(rate),
                Err(error) => outstanding.failed("cannot limit the network", &*error),
            }
        }
        match self.qmp.query_status().await {
            Ok(status) if status.running => {}
            Ok(status) => {
                if status.status == RunState::IoError {
                    // The disk may have room again; if not, QEMU pauses at the next write.
                    drop(self.qmp.cont().await);
                }
                outstanding.add(paused(status.status));
            }
            Err(error) => outstanding.failed("cannot ask for the machine's state", &error),
        }
        (actual, outstanding)
    }

    async fn processors(
        &mut self,
        environment: &Environment,
        vm: VmId,
        goal: &Goal<'_>,
        actual: &mut ActualLimits,
        outstanding: &mut Outstanding,
    ) {
        let Goal { present, aim, machine } = *goal;
        let wanted = vcpus_for(present.resources.cpu);
        if wanted > machine.max_vcpus {
            let most = machine.max_vcpus;
            outstanding
                .add(format!("{wanted} vCPUs need a reboot: this machine has at most {most}"));
        }
        let reachable = wanted.min(machine.max_vcpus);
        if let Err(error) = self.plug(reachable, outstanding).await {
            outstanding.failed("cannot plug vCPUs", &error);
        }
        let cpus = match self.qmp.query_cpus_fast().await {
            Ok(cpus) => cpus,
            Err(error) => return outstanding.failed("cannot ask for the vCPUs", &error),
        };
        let plugged = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        actual.vcpus = Some(plugged);
        let count = reachable.min(aim.vcpus);
        if self.online.as_ref().is_some_and(|(_, online)| *online > count) {
            // A vCPU goes when all of them stand still for a moment, which takes the longer the less
            // they may run.
            self.online(count, plugged, OFFLINE_LIMIT, outstanding).await;
        }
        // The limit, which every guest obeys, before the guest's part.
        let threads: Vec<u32> =
            cpus.iter().filter_map(|cpu| u32::try_from(cpu.thread_id).ok()).collect();
        let promised = present.resources.cpu;
        let limits = CpuLimits {
            quota: (promised.get() > 0).then_some(aim.cpu),
            weight: aim.weight.unwrap_or_else(|| CpuWeight::for_cpu(promised)),
        };
        let qemu = u32::try_from(self.record.qemu.pid).unwrap_or(0);
        match &environment.cpu_groups {
            None => outstanding.add("this host cannot limit CPU: it has no cpu cgroup"),
            Some(groups) => match groups.apply(vm, qemu, &threads, limits) {
                Ok(in_force) => actual.cpu = in_force.quota(),
                Err(error) => outstanding.failed("cannot limit CPU", &error),
            },
        }
        self.online(count, plugged, ONLINE_LIMIT, outstanding).await;
    }

    /// Plugs vCPUs until there are `wanted`, one after the other: the guest's firmware must have
    /// taken one before the next comes.
    async fn plug(&mut self, wanted: u32, outstanding: &mut Outstanding) -> Result<(), QmpError> {
        let slots = self.qmp.query_hotpluggable_cpus().await?;
        let plugged = slots.iter().filter(|slot| slot.qom_path.is_some()).count();
        let missing = usize::try_from(wanted).unwrap_or(usize::MAX).saturating_sub(plugged);
        // QEMU lists the highest place first.
        let free = slots.iter().rev().filter(|slot| slot.qom_path.is_none());
        for (slot, number) in free.zip(plugged..).take(missing) {
            let id = format!("cpu{number}");
            let mut events = self.qmp.subscribe();
            self.qmp.plug_cpu(&id, slot).await?;
            let deadline = Instant::now() + PLUG_LIMIT;
            let taken = async {
                while let Ok(event) = events.recv().await {
                    if let EventKind::AcpiDeviceOst { device, status, .. } = event.kind()
                        && device.as_deref() == Some(&id)
                    {
                        return status == 0;
                    }
                }
                false
            };
            match timeout_at(deadline, taken).await {
                Ok(true) => {}
                Ok(false) => outstanding.add(format!("the guest refused vCPU {number}")),
                // Before the guest's kernel runs nobody answers; it finds the vCPU when it boots.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Lets the guest run on `wanted` of its `plugged` vCPUs, if it has an agent. Never unplugs:
    /// QEMU's translator corrupts its memory at that (10.0).
    async fn online(
        &mut self,
        wanted: u32,
        plugged: u32,
        limit: Duration,
        outstanding: &mut Outstanding,
    ) {
        let GuestStatus::Speaking(greeting) = self.guest.now() else {
            return;
        };
        let count = wanted.min(plugged);
        let now = (greeting.boot_id, count);
        if self.online.as_ref() == Some(&now) {
            return;
        }
        match self.guest.call(Call::SetOnlineCpus { count }, limit).await {
            Ok(Answer::Cpus(counts)) if counts.online == count => self.online = Some(now),
            Ok(Answer::Cpus(counts)) => {
                outstanding.add(format!("the guest runs on {} of {count} vCPUs", counts.online));
            }
            Ok(_) => outstanding.add("the guest's agent answered nonsense about vCPUs"),
            Err(error) => outstanding.failed("the guest did not change its vCPUs", &error),
        }
    }

    async fn throttle(
        &self,
        present: &DesiredPresent,
        actual: &mut ActualLimits,
        outstanding: &mut Outstanding,
    ) -> Result<(), QmpError> {
        let resources = &present.resources;
        let wanted = (resources.disk_bandwidth, resources.disk_iops);
        let read = async || -> Result<(BytesPerSecond, IoPerSecond), QmpError> {
            let limits = self.qmp.qom_get(THROTTLE_PATH, "limits").await?;
            let number = |key: &str| limits.get(key).and_then(Value::as_u64).unwrap_or(0);
            Ok((BytesPerSecond(number("bps-total")), IoPerSecond(number("iops-total"))))
        };
        let mut is = read().await?;
        if is != wanted {
            let limits = throttle_limits(wanted.0, wanted.1);
            self.qmp.qom_set(THROTTLE_PATH, "limits", &limits).await?;
            is = read().await?;
            if is != wanted {
                outstanding.add("QEMU holds the disk to other limits than asked for");
            }
        }
        (actual.disk_bandwidth, actual.disk_iops) = (Some(is.0), Some(is.1));
        Ok(())
    }

    async fn disk_size(
        &self,
        present: &DesiredPresent,
        actual: &mut ActualLimits,
        outstanding: &mut Outstanding,
    ) -> Result<(), QmpError> {
        let wanted = present.resources.disk.get();
        let mut is = self.root_size().await?;
        if is.is_some_and(|is| is < wanted) {
            self.qmp.block_resize(ROOT_NODE, wanted).await?;
            is = self.root_size().await?;
        }
        match is {
            None => outstanding.add("QEMU does not tell the disk's size"),
            Some(is) if is < wanted => outstanding.add("the disk did not grow"),
            Some(is) if wanted > 0 && is > wanted => {
                outstanding.add(format!("a disk cannot shrink: it has {}", Bytes(is)));
            }
            Some(_) => {}
        }
        actual.disk = is.map(Bytes);
        Ok(())
    }

    async fn root_size(&self) -> Result<Option<u64>, QmpError> {
        let devices = self.qmp.query_block().await?;
        let mut nodes = devices.iter().filter_map(|device| device.inserted.as_ref());
        let root = nodes.find(|node| node.node_name.as_deref() == Some(ROOT_NODE));
        Ok(root.and_then(plimsoll_qmp::BlockInserted::virtual_size_bytes))
    }

    /// Lets the balloon gather the guest's own statistics.
    pub(super) async fn begin_statistics(&self) {
        let begun = self.qmp.set_guest_stats_interval(BALLOON_PATH, GUEST_STATS_SECONDS).await;
        if let Err(error) = begun {
            tracing::debug!(error = %ErrorChain(&error), "no balloon statistics");
        }
    }
}

fn paused(state: RunState) -> &'static str {
    match state {
        RunState::IoError => "paused: the host's disk has errors or is full",
        RunState::GuestPanicked => "paused: the guest's kernel panicked",
        RunState::InternalError => "paused: QEMU has an internal error",
        RunState::Suspended => "the guest suspended itself",
        RunState::Shutdown => "the guest has shut down",
        _ => "paused",
    }
}
