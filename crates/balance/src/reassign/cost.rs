//! The full evaluation of an assignment: slow, and written only after the definition, so that it can
//! tell whether the search reckons rightly. It shares no reckoning with the search.

use std::collections::BTreeSet;

use serde::Serialize;
use thiserror::Error;

use super::problem::{MachineId, Problem, ProcessId};

/// What an assignment costs, each part weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Use above the safety capacities.
    pub load: i64,
    /// Free resources that lack others beside them.
    pub balance: i64,
    /// The moved processes' own costs.
    pub process_moves: i64,
    /// The most moved processes of one service.
    pub service_moves: i64,
    /// The costs between old and new machines.
    pub machine_moves: i64,
}

impl Cost {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> i64 {
        self.load + self.balance + self.process_moves + self.service_moves + self.machine_moves
    }
}

/// A hard constraint that an assignment breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// It is of other processes, or on machines that are not there.
    #[error("it is not an assignment of {processes} processes to {machines} machines")]
    Shape {
        /// How many processes there are.
        processes: usize,
        /// How many machines there are.
        machines: usize,
    },
    /// More is used than there is.
    #[error("machine {machine} has {capacity} of resource {resource}, and {used} are used")]
    Capacity {
        /// The machine.
        machine: MachineId,
        /// The resource.
        resource: usize,
        /// How much it has.
        capacity: u64,
        /// How much is used, with what moved processes go on holding.
        used: u128,
    },
    /// Two processes of a service are on one machine.
    #[error("processes {one} and {other} of service {service} are both on machine {machine}")]
    Conflict {
        /// The service.
        service: u32,
        /// One of them.
        one: ProcessId,
        /// The other.
        other: ProcessId,
        /// The machine.
        machine: MachineId,
    },
    /// A service is in too few locations.
    #[error("service {service} is in {locations} locations in place of {spread_min}")]
    Spread {
        /// The service.
        service: u32,
        /// In how many it is.
        locations: usize,
        /// In how many it must be.
        spread_min: u32,
    },
    /// A process lacks one of a service that it depends on in its neighbourhood.
    #[error("process {process} has no process of service {needed} in its neighbourhood")]
    Dependency {
        /// The process.
        process: ProcessId,
        /// The service that it depends on.
        needed: u32,
    },
}

impl Problem {
    /// What an assignment costs.
    ///
    /// # Errors
    /// The first hard constraint that it breaks.
    pub fn cost(&self, assignment: &[MachineId]) -> Result<Cost, Violation> {
        let parts = self.parts();
        let (processes, machines) = (parts.processes.len(), parts.machines.len());
        if assignment.len() != processes || assignment.iter().any(|at| *at as usize >= machines) {
            return Err(Violation::Shape { processes, machines });
        }
        self.check_services(assignment)?;
        let mut on = vec![Vec::new(); machines];
        let mut left = vec![Vec::new(); machines];
        for (process, (now, then)) in assignment.iter().zip(self.initial()).enumerate() {
            on[*now as usize].push(process);
            if now != then {
                left[*then as usize].push(process);
            }
        }
        let (mut load, mut balance) = (0_i128, 0_i128);
        for (id, machine) in (0..).zip(&parts.machines) {
            let mut free = Vec::new();
            for (at, resource) in parts.resources.iter().enumerate() {
                let sum = |of: &[usize]| {
                    let needed = of.iter().map(|it| parts.processes[*it].requirement[at]);
                    needed.map(u128::from).sum::<u128>()
                };
                let used = sum(&on[id as usize]);
                let held = if resource.transient { sum(&left[id as usize]) } else { 0 };
                let capacity = machine.capacity[at];
                if used + held > u128::from(capacity) {
                    let used = used + held;
                    return Err(Violation::Capacity { machine: id, resource: at, capacity, used });
                }
                let above = used.saturating_sub(u128::from(machine.safety[at]));
                load += signed(above) * i128::from(resource.load_weight);
                free.push(i128::from(capacity) - signed(used));
            }
            for triple in &parts.balances {
                let wanted = i128::from(triple.target) * free[triple.of];
                balance += (wanted - free[triple.against]).max(0) * i128::from(triple.weight);
            }
        }
        let moves = self.moves(assignment);
        Ok(Cost { load: narrow(load), balance: narrow(balance), ..moves })
    }

    /// What the moves cost.
    fn moves(&self, assignment: &[MachineId]) -> Cost {
        let parts = self.parts();
        let (mut own, mut between) = (0_i128, 0_i128);
        let mut of_service = vec![0_i128; parts.services.len()];
        for (process, (now, then)) in assignment.iter().zip(self.initial()).enumerate() {
            if now != then {
                between += i128::from(self.between(*then, *now));
                own += i128::from(parts.processes[process].move_cost);
                of_service[parts.processes[process].service as usize] += 1;
            }
        }
        let most = of_service.into_iter().max().unwrap_or(0);
        Cost {
            process_moves: narrow(own * i128::from(parts.weights.process)),
            service_moves: narrow(most * i128::from(parts.weights.service)),
            machine_moves: narrow(between * i128::from(parts.weights.machine)),
            ..Cost::default()
        }
    }

    fn check_services(&self, assignment: &[MachineId]) -> Result<(), Violation> {
        let parts = self.parts();
        let mut places = vec![Vec::new(); parts.services.len()];
        for ((id, process), machine) in (0..).zip(&parts.processes).zip(assignment) {
            places[process.service as usize].push((*machine, id));
        }
        let mut neighbourhoods = Vec::new();
        for ((id, service), places) in (0..).zip(&parts.services).zip(&mut places) {
            places.sort_unstable();
            if let Some(pair) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let (machine, one) = pair[0];
                return Err(Violation::Conflict { service: id, one, other: pair[1].1, machine });
            }
            let machines = || places.iter().map(|(machine, _)| &parts.machines[*machine as usize]);
            let locations = machines().map(|it| it.location).collect::<BTreeSet<_>>().len();
            let spread_min = service.spread_min;
            if !places.is_empty() && locations < spread_min as usize {
                return Err(Violation::Spread { service: id, locations, spread_min });
            }
            neighbourhoods.push(machines().map(|it| it.neighbourhood).collect::<BTreeSet<_>>());
        }
        for ((id, process), machine) in (0..).zip(&parts.processes).zip(assignment) {
            let near = parts.machines[*machine as usize].neighbourhood;
            for needed in &parts.services[process.service as usize].depends_on {
                if !neighbourhoods[*needed as usize].contains(&near) {
                    return Err(Violation::Dependency { process: id, needed: *needed });
                }
            }
        }
        Ok(())
    }
}

/// A sum that [`Problem::new`] found to be small.
fn signed(sum: u128) -> i128 {
    i128::try_from(sum).unwrap_or(i128::MAX)
}

/// A cost that [`Problem::new`] found to be small.
fn narrow(cost: i128) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX)
}
