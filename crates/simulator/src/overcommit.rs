//! Recorded VMs on fewer hosts than they were promised: how many hosts a policy needs, and how often
//! those are short of CPU or of memory.
//!
//! ```text
//!   week 1: history     -> VMs are placed in the order of their ids, first fit, by what the policy
//!                          books for them or predicts of them together
//!   then, every slot:   decide (what was used up to the slot before is known, nothing of this one)
//!                       -> moves, new hosts -> what is used now -> short or not
//! ```
//!
//! All policies run through the same replay, use the same admission ([`plimsoll_reclaim::predict`])
//! and the same search for moves; they differ in what they expect of VMs, and in when they act.
//!
//! A host is *short* in a slot when its VMs use more than it has; what is above that is *unmet*. A
//! VM cannot use more CPU than its cores at the clock of these hosts, nor more memory than it was
//! promised. A slot without a sample counts as the one before it. A move takes effect within its
//! slot: migrations take seconds, a slot five minutes.

mod booked;
mod elastic;
mod fleet;
mod foresight;
mod policy;
#[cfg(test)]
mod tests;

use plimsoll_model::{Amount, Bytes, MilliCores, VmId};
use plimsoll_reclaim::predict::{Outlook, Risk, WEEK, admit::Room};
use serde::Serialize;
use thiserror::Error;
use uuid::Uuid;

pub use policy::{InvalidPolicy, Policy};

use crate::readers::bitbrains;
use booked::Booked;
use elastic::Elastic;
use fleet::Fleet;
use foresight::Foresight;

/// Slots of history before the replay begins.
const HISTORY: usize = 2016;

/// Slots in a day.
const DAY: usize = 288;

/// The hosts, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores and memory.
    pub capacity: Amount,
    /// The clock of a core, in MHz: by it, MHz of the trace become cores.
    pub mhz: u32,
}

/// What a policy made of the trace. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: Policy,
    /// VMs that were replayed.
    pub vms: usize,
    /// VMs among them that were promised more than a host has. Without overcommitment each has a host
    /// of its own.
    pub larger_than_host: usize,
    /// The most hosts that were in use at the same time: what one must own.
    pub hosts: usize,
    /// Hosts in use in the mean over time.
    pub mean_hosts: f64,
    /// Hosts needed without overcommitment, by `hosts`.
    pub density: f64,
    /// Pairs of a slot and a host in use then, in which the host was short of CPU, in % of all.
    pub cpu_short_percent: f64,
    /// The same of memory.
    pub memory_short_percent: f64,
    /// Slots in which any host was short of CPU, in % of all.
    pub cpu_short_slots_percent: f64,
    /// What `cpu_short_percent` would be at least with one host less, whatever decided and however
    /// much it knew: more is asked for then than all hosts have, so that one of them is short.
    pub one_less_cpu_short_percent: f64,
    /// CPU that was asked for and not there, in % of what was asked for.
    pub unmet_cpu_percent: f64,
    /// The same of memory.
    pub unmet_memory_percent: f64,
    /// How often the memory that a VM has was made smaller or larger.
    pub resizes: u64,
    /// How often a VM moved.
    pub migrations: u64,
    /// The same by VM and day.
    pub migrations_per_vm_day: f64,
}

/// Why an experiment cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OvercommitError {
    /// Nothing would be left to replay.
    #[error("there are {slots} slots: more than a week ({HISTORY}) of five minutes are needed")]
    TooShort {
        /// How many there are.
        slots: usize,
    },
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Slots that were replayed.
    pub done: u64,
    /// Slots that will be.
    pub of: u64,
    /// Hosts in use now.
    pub hosts: usize,
}

/// A VM and what it used, in the units of these hosts.
#[derive(Clone, Debug)]
struct Vm {
    id: VmId,
    size: Amount,
    used: Vec<Amount>,
}

/// VMs on hosts, to be tried with one policy after the other.
#[derive(Clone, Debug)]
pub struct Experiment {
    vms: Vec<Vm>,
    host: Host,
    slots: usize,
}

impl Experiment {
    /// Puts recorded VMs on hosts of a kind.
    ///
    /// # Errors
    /// There is nothing to replay.
    pub fn new(recorded: &[bitbrains::Vm], host: Host) -> Result<Self, OvercommitError> {
        let slots = recorded.iter().map(|vm| vm.cpu_mhz.len()).min().unwrap_or(0);
        if slots <= HISTORY {
            return Err(OvercommitError::TooShort { slots });
        }
        let vms = recorded.iter().map(|recorded| Vm::new(recorded, host.mhz)).collect();
        Ok(Self { vms, host, slots })
    }

    /// Hosts needed without overcommitment: what was promised fits into each.
    fn hosts_without(&self) -> usize {
        self.filled(&self.promised(), 1.0, Risk::NONE).hosts()
    }

    /// In how many pairs of a slot and a host so many hosts are short of CPU at least, in %.
    fn least_short_percent(&self, hosts: usize) -> f64 {
        let all = self.host.capacity.cpu.0.saturating_mul(hosts as u64);
        let over = (HISTORY..self.slots).filter(|slot| {
            self.vms.iter().map(|vm| vm.used[*slot].cpu).sum::<MilliCores>().0 > all
        });
        let pairs = (self.slots - HISTORY) as u64 * hosts as u64;
        if hosts == 0 { 100.0 } else { 100.0 * float(over.count() as u64) / float(pairs) }
    }

    fn is_larger(&self, vm: &Vm) -> bool {
        let capacity = self.host.capacity;
        vm.size.cpu > capacity.cpu || vm.size.memory > capacity.memory
    }

    /// What each VM was promised.
    fn promised(&self) -> Vec<Outlook> {
        self.vms.iter().map(|vm| Outlook::certain(vm.size)).collect()
    }

    /// The VMs placed in their order, first fit, where the peak of what is expected is at most
    /// `times` what a host has. A host's memory that is promised beyond what it has is taken to have
    /// a place in swap.
    fn filled(&self, expected: &[Outlook], times: f64, risk: Risk) -> Fleet {
        let room = Room { capacity: scaled(self.host.capacity, times), refuge: Bytes(u64::MAX) };
        let sizes: Vec<_> = self.vms.iter().map(|vm| vm.size).collect();
        Fleet::filled(self.host.capacity, &room, &sizes, expected, risk)
    }

    /// Tries a policy.
    pub fn run(&self, policy: Policy, risk: Risk, progress: &mut dyn FnMut(Progress)) -> Outcome {
        let (mut fleet, mut decider) = self.begin(policy, risk);
        let mut elastic = Elastic::new(&self.vms);
        let mut tally = Tally { most_hosts: fleet.hosts(), ..Tally::default() };
        for slot in HISTORY..self.slots {
            decider.decide(&self.vms, slot, &mut fleet);
            elastic.before(&self.vms, slot, &fleet);
            let short = tally.add(&self.vms, slot, &fleet);
            elastic.after(&self.vms, slot);
            decider.observe(&self.vms, slot, short);
            let done = slot + 1 - HISTORY;
            if done.is_multiple_of(DAY) || slot + 1 == self.slots {
                progress(Progress {
                    done: done as u64,
                    of: (self.slots - HISTORY) as u64,
                    hosts: fleet.hosts(),
                });
            }
        }
        self.outcome(policy, &fleet, &elastic, &tally)
    }

    /// The hosts after the first week, and who decides from then on.
    fn begin(&self, policy: Policy, risk: Risk) -> (Fleet, Decider) {
        match policy {
            Policy::None => (self.filled(&self.promised(), 1.0, Risk::NONE), Decider::Still),
            Policy::Fixed(ratio) => {
                (self.filled(&self.promised(), ratio, Risk::NONE), Decider::Still)
            }
            Policy::P95(times) | Policy::Peak(times) => {
                let share = if matches!(policy, Policy::P95(_)) { 0.95 } else { 1.0 };
                let booked = Booked::new(&self.vms, share, times);
                (self.filled(booked.expected(), 1.0, Risk::NONE), Decider::Booked(booked))
            }
            Policy::Plimsoll => {
                let foresight = Foresight::new(&self.vms, risk);
                let fleet = self.filled(&foresight.week(&self.vms), 1.0, risk);
                (fleet, Decider::Foresight(Box::new(foresight)))
            }
        }
    }

    fn outcome(&self, policy: Policy, fleet: &Fleet, elastic: &Elastic, tally: &Tally) -> Outcome {
        let slots = float(self.slots as u64 - HISTORY as u64);
        let days = slots / float(DAY as u64);
        let host_slots = float(tally.host_slots);
        let percent = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
        Outcome {
            policy,
            vms: self.vms.len(),
            larger_than_host: self.vms.iter().filter(|vm| self.is_larger(vm)).count(),
            hosts: tally.most_hosts,
            mean_hosts: host_slots / slots,
            density: float(self.hosts_without() as u64) / float(tally.most_hosts as u64),
            cpu_short_percent: percent(float(tally.short[0]), host_slots),
            memory_short_percent: percent(float(tally.short[1]), host_slots),
            cpu_short_slots_percent: percent(float(tally.slots_short), slots),
            one_less_cpu_short_percent: self.least_short_percent(tally.most_hosts - 1),
            unmet_cpu_percent: percent(wide(tally.unmet[0]), wide(tally.asked[0])),
            unmet_memory_percent: percent(wide(tally.unmet[1]), wide(tally.asked[1])),
            resizes: elastic.resizes(),
            migrations: fleet.migrations(),
            migrations_per_vm_day: float(fleet.migrations())
                / (float(self.vms.len() as u64) * days),
        }
    }
}

impl Vm {
    fn new(recorded: &bitbrains::Vm, mhz: u32) -> Self {
        let size = Amount { cpu: recorded.cpu, memory: recorded.memory };
        let mhz = u64::from(mhz.max(1));
        let mut last = Amount::default();
        let samples = recorded.cpu_mhz.iter().zip(&recorded.memory_mib);
        let used = samples.map(|(cpu, memory)| {
            if let Some(cpu) = cpu {
                let cpu = (u64::from(*cpu) * 1000 + mhz / 2) / mhz;
                last.cpu = MilliCores(cpu).min(size.cpu);
            }
            if let Some(memory) = memory {
                last.memory = Bytes::mib(u64::from(*memory)).min(size.memory);
            }
            last
        });
        let used = used.collect();
        Self { id: VmId(Uuid::from_u128(recorded.id.into())), size, used }
    }
}

/// Who decides.
enum Decider {
    /// VMs stay where they were put.
    Still,
    /// VMs are booked with an amount, which is looked at again and again.
    Booked(Booked),
    /// What hosts' VMs will ask for together is predicted.
    Foresight(Box<Foresight>),
}

impl Decider {
    /// Decides for a slot; what is used in it is not known yet.
    fn decide(&mut self, vms: &[Vm], slot: usize, fleet: &mut Fleet) {
        match self {
            Self::Still => {}
            Self::Booked(booked) => booked.decide(vms, slot, fleet),
            Self::Foresight(foresight) => foresight.decide(vms, slot, fleet),
        }
    }

    /// Is told what was used in the slot, and how many hosts were short of CPU.
    fn observe(&mut self, vms: &[Vm], slot: usize, short: u64) {
        if let Self::Foresight(foresight) = self {
            foresight.observe(vms, slot, short);
        }
    }
}

/// Adds up what the outcome says; two numbers are of CPU and of memory.
#[derive(Debug, Default)]
struct Tally {
    most_hosts: usize,
    host_slots: u64,
    slots_short: u64,
    short: [u64; 2],
    unmet: [u128; 2],
    asked: [u128; 2],
}

impl Tally {
    /// Adds a slot, and gives how many hosts were short of CPU in it.
    fn add(&mut self, vms: &[Vm], slot: usize, fleet: &Fleet) -> u64 {
        let mut used = vec![[0_u64; 2]; fleet.hosts()];
        for (vm, host) in vms.iter().zip(fleet.at()) {
            let Amount { cpu, memory } = vm.used[slot];
            used[*host][0] += cpu.0;
            used[*host][1] += memory.0;
        }
        let capacity = fleet.capacity();
        let capacity = [capacity.cpu.0, capacity.memory.0];
        let before = self.short[0];
        for host in &used {
            for resource in 0..2 {
                let unmet = host[resource].saturating_sub(capacity[resource]);
                self.short[resource] += u64::from(unmet > 0);
                self.unmet[resource] += u128::from(unmet);
                self.asked[resource] += u128::from(host[resource]);
            }
        }
        let short = self.short[0] - before;
        self.slots_short += u64::from(short > 0);
        self.host_slots += fleet.hosts() as u64;
        self.most_hosts = self.most_hosts.max(fleet.hosts());
        short
    }
}

/// So many times an amount, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "casts of floats saturate, and less than a byte in 8 PiB is lost"
)]
fn scaled(amount: Amount, times: f64) -> Amount {
    Amount {
        cpu: MilliCores((amount.cpu.0 as f64 * times) as u64),
        memory: Bytes((amount.memory.0 as f64 * times) as u64),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shares are rounded anyway")]
const fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "shares are rounded anyway")]
const fn wide(amount: u128) -> f64 {
    amount as f64
}

const _: () = assert!(HISTORY as u64 == WEEK);
