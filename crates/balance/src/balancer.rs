//! What is remembered of hosts and VMs, and what a plan is asked with.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_model::{Amount, Bytes, HostId, Policy, Resources, VmId};
use plimsoll_placement::Cluster;

use crate::{
    observe::{Usage, VmSample},
    past::Overloads,
    plan::Fixed,
    resource::{Amounts, RESOURCES, Resource, capacities},
    series::{Marks, Series},
    settings::Settings,
};

/// The share of a VM's memory below which what its guest has available is next to nothing.
const NEXT_TO_NOTHING: f64 = 0.05;

/// Remembers what was seen, and plans. Times are since any fixed instant of the caller's.
#[derive(Clone, Debug)]
pub struct Balancer {
    pub(crate) settings: Settings,
    pub(crate) hosts: BTreeMap<HostId, HostRecord>,
    pub(crate) vms: BTreeMap<VmId, VmRecord>,
}

/// What is remembered of a host.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostRecord {
    pub(crate) capacity: Amounts,
    pub(crate) series: Series,
    pub(crate) marks: [Marks; RESOURCES],
    pub(crate) overloads: Overloads,
}

/// What is remembered of a VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct VmRecord {
    pub(crate) series: Series,
    /// Whether its application was too slow.
    pub(crate) slow: Marks,
    /// Whether its guest stood still for want of memory.
    pub(crate) pinched: Marks,
    pub(crate) overloads: Overloads,
    pub(crate) last: VmSample,
    /// When it came to its host by a move.
    pub(crate) moved_at: Option<Duration>,
    /// What it had before it had to do with less for a while.
    pub(crate) lowered_from: Option<Amount>,
}

/// What can be done with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmState {
    /// What it can use now.
    pub has: Amount,
    /// What it must have at least; equal to what it has if it is not elastic.
    pub least: Amount,
    /// What it may be given where it is, which is at most what it was promised.
    pub most: Amount,
    /// What a move sends: the memory that its host holds of it, and its disks that are not shared.
    pub to_send: Bytes,
    /// Why it cannot be moved; none if it can.
    pub fixed: Option<Fixed>,
}

/// The cluster at the instant of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Where VMs are and what rules bind them. What moves at this time should be counted on both
    /// hosts.
    pub cluster: &'a Cluster,
    /// What can be done with each VM. One that is missing stays as it is.
    pub vms: &'a BTreeMap<VmId, VmState>,
    /// How many moves run.
    pub moves_running: u32,
    /// By which policy hosts are told apart where several would do as well.
    pub policy: Policy,
    /// Now.
    pub now: Duration,
}

impl Balancer {
    /// Knows nothing yet. Settings that contradict themselves ([`Settings::check`]) give plans that
    /// keep all invariants, but make little sense.
    #[must_use]
    pub const fn new(settings: Settings) -> Self {
        Self { settings, hosts: BTreeMap::new(), vms: BTreeMap::new() }
    }

    /// Other settings from now on; what is remembered stays.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// States what was seen of a host, and what VMs and the host itself can use of it.
    pub fn observe_host(&mut self, now: Duration, host: HostId, has: &Resources, seen: &Usage) {
        let capacity = capacities(has);
        let asked = seen.asked();
        let record = self.hosts.entry(host).or_default();
        record.capacity = capacity;
        record.series.add(&asked);
        let settings = &self.settings;
        let mut any = false;
        for resource in Resource::ALL {
            let at = resource.index();
            let share = asked[at].zip(capacity[at]).map(|(asked, capacity)| asked / capacity);
            let above = share.is_some_and(|share| share > settings.threshold_of(resource).share());
            let high = above && (resource != Resource::Memory || settings.is_felt(seen));
            record.marks[at].add(high);
            any |= high;
        }
        record.overloads.add(now, any);
    }

    /// States what was seen of a VM that can use so much.
    pub fn observe_vm(&mut self, now: Duration, vm: VmId, has: Amount, seen: &VmSample) {
        let record = self.vms.entry(vm).or_default();
        let asked = seen.usage.asked();
        record.series.add(&asked);
        record.last = *seen;
        let slow = seen.guest.latency.is_some_and(|latency| latency.is_broken());
        let limit = self.settings.pressure;
        let guest = &seen.guest;
        let pinched = match (guest.memory_pressure, guest.memory_available) {
            (Some(pressure), _) => pressure >= limit,
            (None, Some(free)) => (free.0 as f64) < has.memory.0 as f64 * NEXT_TO_NOTHING,
            (None, None) => false,
        };
        record.slow.add(slow);
        record.pinched.add(pinched);
        let cpu = asked[Resource::Cpu.index()];
        let busy = cpu.is_some_and(|cpu| cpu > has.cpu.0 as f64 * self.settings.threshold.share());
        record.overloads.add(now, slow || pinched || busy);
    }

    /// States that a VM has moved. What is remembered of both hosts is as if it had always been so,
    /// and their samples begin to count anew: those before tell of another load.
    pub fn moved(&mut self, now: Duration, vm: VmId, from: HostId, to: HostId) {
        let record = self.vms.entry(vm).or_default();
        record.moved_at = Some(now);
        record.slow.clear();
        record.pinched.clear();
        let asked = record.series.next();
        for (host, sign) in [(from, -1.0), (to, 1.0)] {
            if let Some(host) = self.hosts.get_mut(&host) {
                host.series.shift(&asked, sign);
                host.marks.iter_mut().for_each(Marks::clear);
            }
        }
    }

    /// States that a VM's limits were changed by a step of a plan: what was seen of its guest before
    /// tells of others. What it had before it did with less is remembered, so that it gets it back.
    pub fn resized(&mut self, vm: VmId, from: Amount, to: Amount) {
        let record = self.vms.entry(vm).or_default();
        record.slow.clear();
        record.pinched.clear();
        let full = record.lowered_from.map_or(from, |full| most(full, from));
        let lower = to.cpu < full.cpu || to.memory < full.memory;
        record.lowered_from = lower.then_some(full);
    }

    /// Whether none of a host's last samples was too high.
    pub(crate) fn is_calm(&self, host: HostId) -> bool {
        let record = self.hosts.get(&host);
        record.is_some_and(|host| {
            host.marks.iter().all(|marks| marks.of_last(self.settings.samples) == 0)
        })
    }

    /// Forgets hosts and VMs that are gone.
    pub fn retain(&mut self, host: impl Fn(HostId) -> bool, vm: impl Fn(VmId) -> bool) {
        self.hosts.retain(|id, _| host(*id));
        self.vms.retain(|id, _| vm(*id));
    }

    /// Whether a VM is spared since it has moved lately.
    pub(crate) fn is_cooling(&self, vm: VmId, now: Duration) -> bool {
        let moved = self.vms.get(&vm).and_then(|record| record.moved_at);
        moved.is_some_and(|moved| now.saturating_sub(moved) < self.settings.cooldown)
    }

    /// What a VM is expected to ask for, as far as it is measured.
    pub(crate) fn asked(&self, vm: VmId) -> Amounts {
        self.vms.get(&vm).map(|record| record.series.next()).unwrap_or_default()
    }

    /// What it may ask for: where it is not measured, what it was promised.
    pub(crate) fn may_ask(&self, vm: VmId, promised: &Resources) -> Amounts {
        let mut amounts = self.asked(vm);
        for (amount, promised) in amounts.iter_mut().zip(capacities(promised)) {
            *amount = amount.or(promised);
        }
        amounts
    }
}

fn most(one: Amount, other: Amount) -> Amount {
    Amount { cpu: one.cpu.max(other.cpu), memory: one.memory.max(other.memory) }
}

impl Settings {
    /// Whether a lack of memory is felt, as far as it is measured.
    fn is_felt(&self, seen: &Usage) -> bool {
        let pressure = seen.memory_pressure.map(|pressure| pressure.some >= self.pressure);
        let swap = seen.swap.map(|swap| swap >= self.swap);
        match (pressure, swap) {
            (None, None) => true,
            (pressure, swap) => pressure.unwrap_or(false) || swap.unwrap_or(false),
        }
    }
}
