//! Recorded VMs packed onto few hosts while they run: the experiment with which consolidation is
//! published (Beloglazov and Buyya, CCPE 24(13), 2012; `CloudSim` 3.0.3's `power.planetlab`).
//!
//! ```text
//!   round t (300 s):  demand at t is known, and all before it
//!                       -> the policy says who moves; all moves begin at once
//!                     |<- memory / 0.5 Gbit/s ->|  the VM has 90 % of its CPU where it was, and
//!                     |                         |  takes 10 % of it at the target as well
//!                     t ... demand goes straight from its sample at t to the one at t + 300 s ...
//! ```
//!
//! 800 hosts, HP ML110 G4 and G5 in turn; four kinds of VMs in equal blocks. What is short is judged as
//! `CloudSim` does: a host whose VMs have less than they ask for at an instant when something changes
//! counts as short until the next such instant, and one to which a VM is on its way counts too, since
//! that VM asks there for all of its CPU and has a tenth. Energy is measured with the power at both
//! ends of each such interval.
//!
//! As in `CloudSim`, memory says how long a move takes but does not limit how many VMs a host has (its
//! workload asks for none of it after a VM was made): 1,052 VMs with 1,305 GB are published on some
//! 65 hosts of 4 GB. [`Memory::Enforced`] counts it: then 319 hosts are needed at least.
//!
//! Decisions are as `CloudSim`'s: one at `t` knows the sample at `t` and those before it, and nothing
//! of the time for which it will hold. There is one at every round, the first with one sample, right
//! after the VMs were placed by what they may ask for at most.

mod fleet;
mod measure;
mod plimsoll;
mod policy;
mod reference;
#[cfg(test)]
mod tests;

use plimsoll_balance::consolidate::{InvalidPowerCurve, PowerCurve};
use serde::Serialize;
use thiserror::Error;

pub use plimsoll_balance::consolidate::Aim;
pub use policy::{InvalidPolicy, Policy};

use crate::readers::planetlab;
use fleet::Fleet;
use measure::Measures;

/// How many hosts there are.
const HOSTS: usize = 800;

/// Seconds of a round.
const ROUND_S: f64 = 300.0;

/// MB that a move carries over in a second: half of 1 Gbit/s.
const MOVED_MB_PER_S: f64 = 62.5;

/// MIPS of a VM and its memory in MB, by block.
const VMS: [(u32, u32); 4] = [(2500, 870), (2000, 1740), (1000, 1740), (500, 613)];

/// Memory of a host in MB.
const HOST_MB: u32 = 4096;

/// MIPS of each of a host's two cores, and the power in W at 0, 10 .. 100 % CPU.
const KINDS: [(u32, [f64; 11]); 2] = [
    (1860, [86.0, 89.4, 92.6, 96.0, 99.5, 102.0, 106.0, 108.0, 112.0, 114.0, 117.0]),
    (2660, [93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0]),
];

/// Whether memory limits how many VMs a host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// Only when they are placed at first, as in the published experiment.
    #[default]
    Ignored,
    /// Always.
    Enforced,
}

/// What becomes of a VM that asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// It is there all day, as its trace says.
    #[default]
    Stays,
    /// It ends for good in the first round that begins and ends without any demand of it. `CloudSim`
    /// takes such a VM for one that has done its work; its published figures are of fewer and fewer
    /// VMs as the day goes on.
    Ends,
}

/// What a policy made of a day. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: Policy,
    /// VMs that were replayed,
    pub vms: usize,
    /// and how many of them were still there at the end.
    pub vms_at_end: usize,
    /// Rounds of five minutes.
    pub rounds: usize,
    /// Energy of all hosts, in kWh.
    pub energy_kwh: f64,
    /// Moves.
    pub migrations: u64,
    /// Time in which an active host's VMs had less CPU than they asked for, in % of the active time of
    /// all hosts.
    pub slatah_percent: f64,
    /// CPU that VMs did not have since they were moved, in % of what they asked for.
    pub pdm_percent: f64,
    /// The product of both.
    pub slav_percent: f64,
    /// Energy times that.
    pub esv: f64,
    /// Hosts in use in the mean over time.
    pub mean_hosts: f64,
    /// CPU that VMs did not have for any reason, in % of what they asked for.
    pub unmet_percent: f64,
    /// Memory that moves carried over, in GB.
    pub moved_gb: f64,
}

/// Why an experiment cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConsolidationError {
    /// There are no rounds.
    #[error("there is no VM with a sample")]
    Nothing,
    /// More VMs than hosts have room for when they are placed by what they may ask for.
    #[error("VM {number} of {of} finds no host with room when they are placed at first")]
    Full {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        of: usize,
    },
    /// The power of the hosts is no curve.
    #[error("the hosts' power is no curve")]
    Power(#[source] InvalidPowerCurve),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rounds that were replayed.
    pub done: u64,
    /// Rounds that will be.
    pub of: u64,
    /// Hosts in use now.
    pub hosts: usize,
}

/// A VM and what it asks for.
#[derive(Clone, Debug)]
struct Vm {
    mips: f64,
    memory_mb: u32,
    /// MIPS asked for at the begin of each round.
    asked: Vec<f64>,
}

/// A host.
#[derive(Clone, Debug)]
struct Host {
    /// Of one core: the most that a VM can have.
    core_mips: f64,
    mips: f64,
    power: PowerCurve,
}

/// VMs of a day, to be tried with one policy after the other.
#[derive(Clone, Debug)]
pub struct Experiment {
    vms: Vec<Vm>,
    hosts: Vec<Host>,
    rounds: usize,
    memory: Memory,
    idle: Idle,
}

impl Experiment {
    /// Puts recorded VMs on the published hosts.
    ///
    /// # Errors
    /// There is nothing to replay.
    pub fn new(
        recorded: &[planetlab::Vm],
        memory: Memory,
        idle: Idle,
    ) -> Result<Self, ConsolidationError> {
        let rounds = recorded.iter().map(|vm| vm.cpu_percent.len()).min().unwrap_or(0);
        if rounds == 0 {
            return Err(ConsolidationError::Nothing);
        }
        let block = recorded.len().div_ceil(VMS.len());
        let vms = recorded.iter().enumerate().map(|(row, recorded)| {
            let (mips, memory_mb) = VMS[row / block];
            let asked = |percent: &u8| f64::from(mips) * f64::from(*percent) / 100.0;
            let asked = recorded.cpu_percent[..rounds].iter().map(asked).collect();
            Vm { mips: f64::from(mips), memory_mb, asked }
        });
        let hosts = (0..HOSTS).map(|number| {
            let (core_mips, watts) = &KINDS[number % KINDS.len()];
            let power = PowerCurve::new(watts).map_err(ConsolidationError::Power)?;
            let core_mips = f64::from(*core_mips);
            Ok(Host { core_mips, mips: 2.0 * core_mips, power })
        });
        let hosts = hosts.collect::<Result<_, _>>()?;
        Ok(Self { vms: vms.collect(), hosts, rounds, memory, idle })
    }

    /// Tries a policy; `aim` is what [`Policy::Plimsoll`] wants.
    ///
    /// # Errors
    /// The VMs cannot even be placed.
    pub fn run(
        &self,
        policy: Policy,
        aim: &Aim,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, ConsolidationError> {
        let mut fleet = Fleet::placed(self)?;
        let mut measures = Measures::new(self);
        let mut decider = policy.decider(self, aim);
        for round in 0..self.rounds {
            if self.idle == Idle::Ends && round > 0 {
                fleet.end(|vm| self.vms[vm].is_idle(round));
            }
            let moves = decider.decide(self, round, &fleet);
            fleet.begin(&moves);
            measures.begin(moves.len(), moves.iter().map(|(vm, _)| self.vms[*vm].memory_mb));
            for (from, to) in self.intervals(&moves) {
                measures.interval(self, &fleet, round, from, to);
                fleet.finish(|vm| self.vms[vm].move_s() <= to);
            }
            let done = (round + 1) as u64;
            progress(Progress { done, of: self.rounds as u64, hosts: fleet.used() });
        }
        Ok(self.outcome(policy, &fleet, &measures))
    }

    /// The intervals of a round in which nothing changes, in seconds: they end where a move does.
    fn intervals(&self, moves: &[(usize, usize)]) -> Vec<(f64, f64)> {
        let mut ends: Vec<_> = moves.iter().map(|(vm, _)| self.vms[*vm].move_s()).collect();
        ends.push(ROUND_S);
        ends.sort_by(f64::total_cmp);
        ends.dedup();
        let begins = std::iter::once(0.0).chain(ends.iter().copied());
        begins.zip(ends.iter().copied()).collect()
    }

    fn outcome(&self, policy: Policy, fleet: &Fleet, measures: &Measures) -> Outcome {
        let slatah = measures.short_s / measures.active_s;
        let pdm = measures.lost_by_moves / measures.asked;
        let energy_kwh = measures.joules / 3_600_000.0;
        let slav_percent = 100.0 * slatah * pdm;
        let seconds = float(self.rounds) * ROUND_S;
        Outcome {
            policy,
            vms: self.vms.len(),
            vms_at_end: fleet.vms(),
            rounds: self.rounds,
            energy_kwh,
            migrations: measures.migrations,
            slatah_percent: 100.0 * slatah,
            pdm_percent: 100.0 * pdm,
            slav_percent,
            esv: energy_kwh * slav_percent,
            mean_hosts: measures.active_s / seconds,
            unmet_percent: 100.0 * measures.lost / measures.asked,
            moved_gb: measures.moved_mb / 1000.0,
        }
    }
}

impl Vm {
    /// MIPS asked for at so many seconds into a round.
    fn asked_at(&self, round: usize, seconds: f64) -> f64 {
        let now = self.asked[round];
        let then = self.asked.get(round + 1).copied().unwrap_or(now);
        now + (then - now) * (seconds / ROUND_S)
    }

    /// Whether it asks for nothing in all of a round.
    fn is_idle(&self, round: usize) -> bool {
        self.asked_at(round, 0.0) <= 0.0 && self.asked_at(round, ROUND_S) <= 0.0
    }

    /// How long a move of it takes.
    fn move_s(&self) -> f64 {
        f64::from(self.memory_mb) / MOVED_MB_PER_S
    }
}

#[expect(clippy::cast_precision_loss, reason = "shares are rounded anyway")]
const fn float(count: usize) -> f64 {
    count as f64
}
