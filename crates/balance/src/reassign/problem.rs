//! What is to be reassigned, and the checks that make it safe to reckon with.

use std::collections::BTreeMap;

use thiserror::Error;

use super::cost::Violation;

/// The index of a machine.
pub type MachineId = u32;

/// The index of a process.
pub type ProcessId = u32;

/// The most that any sum may come to: sums of a few of them do not overflow 64 bits.
const MOST: u128 = 1 << 61;

/// Something that machines have and processes need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Whether a process that has moved goes on holding it on its old machine too.
    pub transient: bool,
    /// What a unit of use above the safety capacity costs.
    pub load_weight: u64,
}

/// What processes run on: a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Machines of one number are near each other; see [`Service::depends_on`].
    pub neighbourhood: u32,
    /// Machines of one number fail together; see [`Service::spread_min`].
    pub location: u32,
    /// How much of each resource may be used.
    pub capacity: Vec<u64>,
    /// How much of each may be used at no cost.
    pub safety: Vec<u64>,
}

/// Processes that do the same. No two of them are on one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// In how many locations its processes must be.
    pub spread_min: u32,
    /// Services of which one process must be in the neighbourhood of each of this one's.
    pub depends_on: Vec<u32>,
}

/// What is on one machine and may be on another: a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The index of its service.
    pub service: u32,
    /// How much it needs of each resource.
    pub requirement: Vec<u64>,
    /// What moving it costs, before it is weighed.
    pub move_cost: u64,
}

/// What is free of one resource should go with so much free of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// The index of the resource that calls for the other.
    pub of: usize,
    /// The index of the other.
    pub against: usize,
    /// How much of the other should be free for each free unit of the first.
    pub target: u64,
    /// What each missing unit costs.
    pub weight: u64,
}

/// What moves cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Of the sum of the moved processes' own costs.
    pub process: u64,
    /// Of the largest number of moved processes of one service.
    pub service: u64,
    /// Of the sum of the costs between old and new machines.
    pub machine: u64,
}

/// All that a [`Problem`] is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The resources.
    pub resources: Vec<Resource>,
    /// The machines.
    pub machines: Vec<Machine>,
    /// What a move costs between two machines, a row for each old one, before it is weighed. None: nothing.
    pub between: Option<Vec<u32>>,
    /// The services.
    pub services: Vec<Service>,
    /// The processes.
    pub processes: Vec<Process>,
    /// What should be free together.
    pub balances: Vec<Balance>,
    /// What moves cost.
    pub weights: Weights,
    /// Where each process is now. It must keep every constraint.
    pub initial: Vec<MachineId>,
}

/// A problem that is sound: indices are in range, sums fit, and what is now is allowed.
#[derive(Clone, Debug)]
pub struct Problem {
    pub(super) parts: Parts,
    /// Locations and neighbourhoods, numbered from 0 without gaps.
    pub(super) location_of: Vec<u32>,
    pub(super) neighbourhood_of: Vec<u32>,
    pub(super) locations: usize,
    pub(super) neighbourhoods: usize,
    /// The processes of each service.
    pub(super) members: Vec<Vec<ProcessId>>,
    /// The services each depends on but itself, and those that depend on it, each once.
    pub(super) needs: Vec<Vec<u32>>,
    pub(super) needed_by: Vec<Vec<u32>>,
}

/// Why a problem is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidProblem {
    /// There is nowhere to be.
    #[error("there is no machine")]
    NoMachine,
    /// There are too many of something to count.
    #[error("there are too many {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// A list has another length than it must.
    #[error("{what} {index} has {found} {entries} in place of {expected}")]
    Length {
        /// Whose list.
        what: &'static str,
        /// Which one of them.
        index: usize,
        /// Of what.
        entries: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Something names what is not there.
    #[error("{what} {index} names {named} {name}, and there are {count}")]
    Unknown {
        /// What names it.
        what: &'static str,
        /// Which one of them.
        index: usize,
        /// What kind of thing is named.
        named: &'static str,
        /// Which one.
        name: u64,
        /// How many there are.
        count: usize,
    },
    /// Sums would overflow.
    #[error("{what} may come to more than 2^61")]
    TooLarge {
        /// Of what.
        what: &'static str,
    },
    /// What is now breaks a constraint.
    #[error("the initial assignment is not allowed")]
    Initial {
        /// Which.
        #[source]
        source: Violation,
    },
}

impl Problem {
    /// Checks a problem.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(parts: Parts) -> Result<Self, InvalidProblem> {
        check_counts(&parts)?;
        check_indices(&parts)?;
        check_sums(&parts)?;
        let (location_of, locations) = numbered(parts.machines.iter().map(|it| it.location));
        let (neighbourhood_of, neighbourhoods) =
            numbered(parts.machines.iter().map(|it| it.neighbourhood));
        let mut members = vec![Vec::new(); parts.services.len()];
        for (id, process) in (0..).zip(&parts.processes) {
            members[process.service as usize].push(id);
        }
        let mut needs = vec![Vec::new(); parts.services.len()];
        let mut needed_by = vec![Vec::new(); parts.services.len()];
        for (id, service) in (0_u32..).zip(&parts.services) {
            let own = &mut needs[id as usize];
            own.extend(service.depends_on.iter().copied().filter(|other| *other != id));
            own.sort_unstable();
            own.dedup();
            for other in own {
                needed_by[*other as usize].push(id);
            }
        }
        let problem = Self {
            parts,
            location_of,
            neighbourhood_of,
            locations,
            neighbourhoods,
            members,
            needs,
            needed_by,
        };
        problem
            .cost(&problem.parts.initial)
            .map_err(|source| InvalidProblem::Initial { source })?;
        Ok(problem)
    }

    /// What it is made of.
    #[must_use]
    pub const fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Where each process is now.
    #[must_use]
    pub fn initial(&self) -> &[MachineId] {
        &self.parts.initial
    }

    /// What a move from one machine to another costs beyond the process's own cost.
    pub(super) fn between(&self, from: MachineId, to: MachineId) -> u64 {
        let count = self.parts.machines.len();
        self.parts
            .between
            .as_ref()
            .map_or(0, |between| u64::from(between[from as usize * count + to as usize]))
    }
}

fn check_counts(parts: &Parts) -> Result<(), InvalidProblem> {
    let Parts { resources, machines, services, processes, initial, .. } = parts;
    if machines.is_empty() {
        return Err(InvalidProblem::NoMachine);
    }
    let counts = [("machines", machines.len()), ("services", services.len())];
    for (what, count) in counts.into_iter().chain([("processes", processes.len())]) {
        if i32::try_from(count).is_err() {
            return Err(InvalidProblem::TooMany { what });
        }
    }
    let length = |what, index, entries, expected, found| {
        let wrong = InvalidProblem::Length { what, index, entries, expected, found };
        if expected == found { Ok(()) } else { Err(wrong) }
    };
    for (index, machine) in machines.iter().enumerate() {
        length("machine", index, "capacities", resources.len(), machine.capacity.len())?;
        length("machine", index, "safety capacities", resources.len(), machine.safety.len())?;
    }
    for (index, process) in processes.iter().enumerate() {
        length("process", index, "requirements", resources.len(), process.requirement.len())?;
    }
    if let Some(between) = &parts.between {
        let expected = machines.len().saturating_mul(machines.len());
        length("matrix", 0, "costs between machines", expected, between.len())?;
    }
    length("assignment", 0, "processes", processes.len(), initial.len())
}

fn check_indices(parts: &Parts) -> Result<(), InvalidProblem> {
    let Parts { resources, machines, services, processes, balances, initial, .. } = parts;
    let known = |what, index, named, name: u64, count: usize| {
        let wrong = InvalidProblem::Unknown { what, index, named, name, count };
        if name < count as u64 { Ok(()) } else { Err(wrong) }
    };
    for (index, service) in services.iter().enumerate() {
        for other in &service.depends_on {
            known("service", index, "service", u64::from(*other), services.len())?;
        }
    }
    for (index, process) in processes.iter().enumerate() {
        known("process", index, "service", u64::from(process.service), services.len())?;
    }
    for (index, balance) in balances.iter().enumerate() {
        for resource in [balance.of, balance.against] {
            known("balance", index, "resource", resource as u64, resources.len())?;
        }
    }
    for (index, machine) in initial.iter().enumerate() {
        known("process", index, "machine", u64::from(*machine), machines.len())?;
    }
    Ok(())
}

/// Nothing that is reckoned with may overflow: neither sums of what there is and what is needed, nor
/// the greatest cost that an assignment within the capacities can have.
fn check_sums(parts: &Parts) -> Result<(), InvalidProblem> {
    let bounded = |what, sum: u128| {
        if sum < MOST { Ok(()) } else { Err(InvalidProblem::TooLarge { what }) }
    };
    let wide = u128::from;
    let sum = |of: &mut dyn Iterator<Item = u64>| of.map(wide).sum::<u128>();
    let mut capacity = Vec::new();
    let mut cost = 0_u128;
    for (at, resource) in parts.resources.iter().enumerate() {
        let there = sum(&mut parts.machines.iter().map(|machine| machine.capacity[at]));
        let safe = sum(&mut parts.machines.iter().map(|machine| machine.safety[at]));
        let needed = sum(&mut parts.processes.iter().map(|process| process.requirement[at]));
        bounded("a resource of all machines", there.max(safe))?;
        bounded("what all processes need of a resource", needed)?;
        cost = cost.saturating_add(needed.saturating_mul(wide(resource.load_weight)));
        capacity.push(there.max(needed));
    }
    for balance in &parts.balances {
        let wanted = capacity[balance.of].saturating_mul(wide(balance.target));
        bounded("what should be free", wanted)?;
        cost = cost.saturating_add(wanted.saturating_mul(wide(balance.weight)));
    }
    let Weights { process, service, machine } = parts.weights;
    let own = sum(&mut parts.processes.iter().map(|process| process.move_cost));
    cost = cost.saturating_add(own.saturating_mul(wide(process)));
    let count = parts.processes.len() as u128;
    cost = cost.saturating_add(count.saturating_mul(wide(service)));
    let farthest = parts.between.iter().flatten().max().copied().unwrap_or(0);
    let far = count.saturating_mul(u128::from(farthest));
    bounded("the cost", cost.saturating_add(far.saturating_mul(wide(machine))))
}

/// Numbers without gaps in place of any.
fn numbered(numbers: impl Iterator<Item = u32>) -> (Vec<u32>, usize) {
    let mut known = BTreeMap::new();
    let mut next = 0;
    let list = numbers.map(|number| {
        *known.entry(number).or_insert_with(|| {
            next += 1;
            next - 1
        })
    });
    let list = list.collect();
    (list, known.len())
}
