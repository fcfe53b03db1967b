//! Which VMs move where so that few hosts run, none of them overloaded for long.
//!
//! ```text
//!   CPU samples of each VM --> forecast (mean, deviation)
//!                                 |
//!   hosts, VMs, who is where --> relieve: hosts that will be short give VMs away (wake one if need be)
//!                                 |
//!                             empty: a host whose VMs fit elsewhere, if the watts are worth the moves
//!                                 |
//!                                plan: moves with reasons, hosts to wake and to put to sleep
//! ```
//!
//! A host's *level* is what its VMs will ask for together: the sum of their means and so many
//! deviations of the sum (VMs are taken to be independent; what they do together shows in the means,
//! which follow quickly). It has to be relieved when its level is above its capacity; a VM is only
//! put where the level stays a margin below it, with more deviations. Between the two nothing moves:
//! that is the hysteresis. A VM that has just moved is left where it is.
//!
//! Emptying a host has a price in memory moved and a gain in energy over a stated horizon; it is done
//! only when the gain is larger. Two thresholds and the choice of few moves are after Beloglazov and
//! Buyya (CCPE 24(13), 2012, section 5); that overloads are judged by what is expected, not by a
//! sample, is after Wood et al. (Sandpiper, NSDI 2007, section 4).
//!
//! Invariants: a move goes to a host that has room for the VM's memory while *all* VMs that leave
//! in the same plan are still counted where they were, so that the moves can be made in any order and
//! at the same time; no host takes and gives in one plan; a plan for the same input is the same; the
//! predicted power after a plan that only empties hosts is below the one before.

mod books;
mod empty;
mod forecast;
mod power;
mod relieve;
#[cfg(test)]
mod tests;

use plimsoll_model::{Bytes, MilliCores};
use serde::Serialize;

use books::Books;
pub use forecast::{Forecast, Sight};
pub use power::{InvalidPowerCurve, PowerCurve};

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// CPU in all.
    pub cpu: MilliCores,
    /// The most CPU that one VM can have here.
    pub cpu_of_one: MilliCores,
    /// Memory.
    pub memory: Bytes,
    /// What it takes from the wall while it is awake.
    pub power: PowerCurve,
    /// Whether it is awake.
    pub awake: bool,
}

/// A VM.
#[derive(Clone, Copy, Debug)]
pub struct Vm<'a> {
    /// The CPU that it can ask for at most.
    pub cpu: MilliCores,
    /// The memory that it takes on a host, and that a move carries over.
    pub memory: Bytes,
    /// The host that it is on.
    pub host: usize,
    /// What it asked for, one sample a round, the last one last.
    pub recent: &'a [MilliCores],
    /// Rounds since it moved; none if it never did.
    pub moved_ago: Option<u32>,
}

/// What else decides on where a VM may be: affinity, hosts in maintenance, CPU features.
pub trait Constraints {
    /// Whether the host may take the VM as things are now.
    fn may_hold(&self, vm: usize, host: usize) -> bool;
    /// The VM is to be on this host from now on.
    fn moved(&mut self, vm: usize, host: usize);
}

/// No constraints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconstrained;

impl Constraints for Unconstrained {
    fn may_hold(&self, _: usize, _: usize) -> bool {
        true
    }

    fn moved(&mut self, _: usize, _: usize) {}
}

/// What is wanted. The defaults are for rounds of five minutes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// How VMs' demand is foreseen.
    pub sight: Sight,
    /// Deviations above the mean that a host must have room for; with less it is relieved.
    pub deviations_at_least: f64,
    /// Deviations above the mean that there must be room for after a VM was put on a host.
    pub deviations_wanted: f64,
    /// The share of a host's CPU that the mean demand of its VMs may fill.
    pub fill: f64,
    /// Rounds that a VM stays where it went, except that its host has to be relieved and has no other.
    pub cooldown: u32,
    /// For how long a host that is emptied is taken to sleep, in hours.
    pub horizon_hours: f64,
    /// The energy that moving one GiB of memory must save at least, in Wh.
    pub watt_hours_per_gib: f64,
    /// The most moves of one plan.
    pub most_moves: usize,
}

impl Default for Aim {
    fn default() -> Self {
        Self {
            sight: Sight::default(),
            deviations_at_least: 1.75,
            deviations_wanted: 2.25,
            fill: 0.9,
            cooldown: 6,
            horizon_hours: 1.0,
            watt_hours_per_gib: 5.0,
            most_moves: usize::MAX,
        }
    }
}

/// Why a VM moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// Its host is expected to be short of CPU.
    Overload {
        /// What the host's VMs will ask for, in the mean and with the least room for deviations.
        level: MilliCores,
        /// What it has.
        capacity: MilliCores,
    },
    /// Its host is emptied so that it can sleep.
    Empty {
        /// The power that all moves away from the host save together, in W.
        watts: f64,
        /// The memory that they carry over together.
        memory: Bytes,
    },
}

/// A VM goes from a host to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Move {
    /// Which VM.
    pub vm: usize,
    /// Where it is.
    pub from: usize,
    /// Where it goes.
    pub to: usize,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
}

/// What to do now. Hosts to wake come first, then the moves in any order, then hosts may sleep.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Who moves.
    pub moves: Vec<Move>,
    /// Hosts that must be awake for that and are not.
    pub wake: Vec<usize>,
    /// Hosts that are awake and will have no VM.
    pub sleep: Vec<usize>,
    /// Hosts that are expected to be short and for whose VMs there is no other place.
    pub stuck: Vec<usize>,
    /// The power that is expected as VMs are now, in W.
    pub watts_before: f64,
    /// The same after the plan.
    pub watts_after: f64,
    /// The memory that all moves carry over.
    pub memory_moved: Bytes,
}

/// Decides what moves now. VMs on hosts that there are not are left alone.
#[must_use]
pub fn plan(hosts: &[Host], vms: &[Vm<'_>], constraints: &mut dyn Constraints, aim: &Aim) -> Plan {
    let mut books = Books::new(hosts, vms, aim);
    let watts_before = books.watts();
    let mut stuck = Vec::new();
    relieve::relieve(&mut books, constraints, &mut stuck);
    empty::empty(&mut books, constraints);
    let watts_after = books.watts();
    let awake_and = |used: bool| {
        let books = &books;
        (0..hosts.len())
            .filter(move |host| hosts[*host].awake != used && books.is_used(*host) == used)
            .collect()
    };
    Plan {
        wake: awake_and(true),
        sleep: awake_and(false),
        stuck,
        watts_before,
        watts_after,
        memory_moved: books.moves.iter().map(|one| vms[one.vm].memory).sum(),
        moves: books.moves,
    }
}
