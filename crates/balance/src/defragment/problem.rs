//! What there is: hosts, their NUMA nodes and VMs, and what a plan makes of them.

use plimsoll_model::{Bytes, MilliCores};
use serde::Serialize;
use thiserror::Error;

use super::Move;

/// The most NUMA nodes of a host.
const MOST_NODES: usize = 64;

/// What is free of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// CPU.
    pub free_cpu: MilliCores,
    /// Memory.
    pub free_memory: Bytes,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its NUMA nodes.
    pub nodes: Vec<Node>,
}

/// What a VM takes of one NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// CPU.
    pub cpu: MilliCores,
    /// Memory.
    pub memory: Bytes,
}

/// Where a VM is: a node of the host for each of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The host's number.
    pub host: usize,
    /// Numbers of the host's nodes, each at most once.
    pub nodes: Vec<usize>,
}

/// A VM. Its parts stay as they are wherever it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its parts, one or more.
    pub parts: Vec<Part>,
    /// Where they are.
    pub place: Place,
    /// Whether it may be moved.
    pub may_move: bool,
}

/// Why there is nothing to solve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidProblem {
    /// The typical size is nothing.
    #[error("the size that is to fit is 0 cores")]
    NoUnit,
    /// A host has no NUMA node or too many.
    #[error("host {host} has not from 1 to {MOST_NODES} NUMA nodes")]
    Nodes {
        /// Its number.
        host: usize,
    },
    /// A VM is where no VM can be: on no host, on no node, or with two parts on one.
    #[error("VM {vm} is not on different NUMA nodes of a host, one for each part")]
    Place {
        /// Its number.
        vm: usize,
    },
    /// Numbers that cannot be added up.
    #[error("VM {vm} and what is free beside it are more than can be counted")]
    TooMuch {
        /// Its number.
        vm: usize,
    },
    /// Numbers that cannot be added up.
    #[error("the free CPU of all hosts is more than can be counted")]
    TooMuchFree,
}

/// Why a plan cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("move {number} cannot be made: {why}")]
pub struct Infeasible {
    /// Which move, from 0.
    pub number: usize,
    /// Why.
    pub why: &'static str,
}

/// Hosts and VMs on them.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The CPU of a typical VM.
    pub(super) unit: u64,
    /// Where the nodes of each host begin in [`free`](Self::free), and where the last ones end.
    pub(super) begins: Vec<usize>,
    /// What is free of each node.
    pub(super) free: Vec<Node>,
    pub(super) vms: Vec<Vm>,
    free_cpu: u64,
}

impl Problem {
    /// Takes over hosts and VMs; free CPU is to be usable for VMs with so much on one node.
    ///
    /// # Errors
    /// Something is not as it must be.
    pub fn new(unit: MilliCores, hosts: &[Host], vms: Vec<Vm>) -> Result<Self, InvalidProblem> {
        if unit.0 == 0 {
            return Err(InvalidProblem::NoUnit);
        }
        let mut begins = vec![0];
        let mut free = Vec::new();
        for (host, of) in hosts.iter().enumerate() {
            if !(1..=MOST_NODES).contains(&of.nodes.len()) {
                return Err(InvalidProblem::Nodes { host });
            }
            free.extend_from_slice(&of.nodes);
            begins.push(free.len());
        }
        let cpu = free.iter().try_fold(0_u64, |sum, node| sum.checked_add(node.free_cpu.0));
        let mut problem = Self {
            unit: unit.0,
            begins,
            free,
            vms,
            free_cpu: cpu.ok_or(InvalidProblem::TooMuchFree)?,
        };
        problem.check()?;
        // Only so many steps are needed to count that no sum ever overflows.
        let most = problem.vms.iter().enumerate().try_fold(
            (problem.free_cpu, 0_u64),
            |(cpu, memory), (vm, of)| {
                of.parts.iter().try_fold((cpu, memory), |(cpu, memory), part| {
                    let cpu = cpu.checked_add(part.cpu.0).ok_or(InvalidProblem::TooMuch { vm })?;
                    let memory = memory.checked_add(part.memory.0);
                    Ok((cpu, memory.ok_or(InvalidProblem::TooMuch { vm })?))
                })
            },
        )?;
        // Free memory beyond that is as good as that.
        let enough = u64::MAX - most.1;
        for node in &mut problem.free {
            node.free_memory.0 = node.free_memory.0.min(enough);
        }
        Ok(problem)
    }

    fn check(&self) -> Result<(), InvalidProblem> {
        for (vm, of) in self.vms.iter().enumerate() {
            if !self.is_place(of, &of.place) {
                return Err(InvalidProblem::Place { vm });
            }
        }
        Ok(())
    }

    /// Whether the nodes are there, and one for each part.
    fn is_place(&self, vm: &Vm, place: &Place) -> bool {
        let nodes = &place.nodes;
        !vm.parts.is_empty()
            && nodes.len() == vm.parts.len()
            && place.host < self.hosts()
            && nodes.iter().all(|node| *node < self.nodes_of(place.host))
            && nodes.iter().enumerate().all(|(at, node)| !nodes[..at].contains(node))
    }

    /// How many hosts there are.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.begins.len() - 1
    }

    /// How many VMs there are.
    #[must_use]
    pub fn vms(&self) -> usize {
        self.vms.len()
    }

    pub(super) fn nodes_of(&self, host: usize) -> usize {
        self.begins[host + 1] - self.begins[host]
    }

    /// How many typical VMs fit as things are.
    pub(super) fn units(&self) -> u64 {
        self.units_in(&self.free)
    }

    /// How many can ever fit: a node has room for so many, and a part of a VM takes the room of as many
    /// as fit into the part, wherever it is.
    pub(super) fn most_units(&self) -> u64 {
        let mut cpu: Vec<_> = self.free.iter().map(|node| node.free_cpu.0).collect();
        let mut taken = 0;
        for vm in &self.vms {
            for (part, node) in vm.parts.iter().zip(&vm.place.nodes) {
                cpu[self.begins[vm.place.host] + node] += part.cpu.0;
                taken += part.cpu.0 / self.unit;
            }
        }
        let room: u64 = cpu.iter().map(|cpu| cpu / self.unit).sum();
        room.saturating_sub(taken).min(self.free_cpu / self.unit)
    }

    pub(super) fn units_in(&self, free: &[Node]) -> u64 {
        free.iter().map(|node| node.free_cpu.0 / self.unit).sum()
    }

    /// The fragment rate when so many typical VMs fit; moves do not change how much is free.
    #[expect(clippy::cast_precision_loss, reason = "a share is rounded anyway")]
    pub(super) fn rate_of(&self, units: u64) -> f64 {
        if self.free_cpu == 0 {
            return 0.0;
        }
        (self.free_cpu - units * self.unit) as f64 / self.free_cpu as f64
    }

    /// The share of the free CPU that is of no use for typical VMs, as things are.
    #[must_use]
    pub fn fragment_rate(&self) -> f64 {
        self.rate_of(self.units())
    }

    /// Makes moves one after the other, and gives the fragment rate afterwards. A VM counts on both
    /// sides while it moves.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub fn replay(
        &self,
        moves: &[Move],
        may_hold: &dyn Fn(usize, usize) -> bool,
    ) -> Result<f64, Infeasible> {
        Ok(self.rate_of(self.units_in(&self.after(moves, may_hold)?)))
    }

    /// What is free after moves.
    pub(super) fn after(
        &self,
        moves: &[Move],
        may_hold: &dyn Fn(usize, usize) -> bool,
    ) -> Result<Vec<Node>, Infeasible> {
        let mut free = self.free.clone();
        let mut places: Vec<_> = self.vms.iter().map(|vm| &vm.place).collect();
        for (number, one) in moves.iter().enumerate() {
            let fail = |why| Infeasible { number, why };
            let vm = self.vms.get(one.vm).ok_or(fail("there is no such VM"))?;
            if !vm.may_move {
                return Err(fail("the VM may not be moved"));
            }
            if *places[one.vm] != one.from {
                return Err(fail("the VM is not there"));
            }
            if !self.is_place(vm, &one.to) || !may_hold(one.vm, one.to.host) {
                return Err(fail("the VM may not be there"));
            }
            for (part, node) in vm.parts.iter().zip(&one.to.nodes) {
                let node = &mut free[self.begins[one.to.host] + node];
                let (cpu, memory) = (node.free_cpu.0, node.free_memory.0);
                let fits = cpu.checked_sub(part.cpu.0).zip(memory.checked_sub(part.memory.0));
                let (cpu, memory) = fits.ok_or(fail("a NUMA node has no room"))?;
                *node = Node { free_cpu: MilliCores(cpu), free_memory: Bytes(memory) };
            }
            for (part, node) in vm.parts.iter().zip(&one.from.nodes) {
                let node = &mut free[self.begins[one.from.host] + node];
                node.free_cpu.0 += part.cpu.0;
                node.free_memory.0 += part.memory.0;
            }
            places[one.vm] = &one.to;
        }
        Ok(free)
    }
}
