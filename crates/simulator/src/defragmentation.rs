//! A production cluster made whole again in few moves: the published experiment of Ding et al.
//! (EuroSys 2025) with [`plimsoll_balance::defragment`].
//!
//! A plan is made again step by step by [`Problem::replay`], which shares nothing with the search, before
//! it is called a result.

use std::{
    thread,
    time::{Duration, Instant},
};

use plimsoll_balance::defragment::{self, Infeasible, InvalidProblem, Place, Problem, Solution};
use plimsoll_model::MilliCores;
use serde::Serialize;
use thiserror::Error;

pub use plimsoll_balance::defragment::Progress;

use crate::readers::bytedance::Cluster;

/// The CPU of a typical VM on a NUMA node.
const UNIT: MilliCores = MilliCores::cores(16);

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The most moves.
    pub most_moves: usize,
    /// For how long to search,
    pub limit: Duration,
    /// and how many steps at most; the same number of them finds the same.
    pub most_steps: u64,
    /// From which the first search draws; the others from the numbers after it.
    pub seed: u64,
    /// How many searches go on side by side.
    pub threads: usize,
}

/// What came of it. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Which cluster of the file, from 0.
    pub cluster: usize,
    /// Hosts in it.
    pub hosts: usize,
    /// VMs on them.
    pub vms: usize,
    /// The fragment rate as it was.
    pub initial: f64,
    /// The fragment rate after all moves.
    #[serde(rename = "final")]
    pub reached: f64,
    /// No number of moves gets it below this.
    pub at_least: f64,
    /// How many there are.
    pub moves: usize,
    /// How long it took.
    pub seconds: f64,
    /// Steps that the best search made.
    pub steps: u64,
    /// From which it drew.
    pub seed: u64,
    /// The moves, in the order in which they can be made.
    pub plan: Vec<Step>,
}

/// A VM moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The VM's name.
    pub vm: String,
    /// Where it is.
    pub from: Spot,
    /// Where it goes.
    pub to: Spot,
}

/// NUMA nodes of a host, one for each part of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// The host's name.
    pub host: String,
    /// Numbers of its nodes.
    pub numa: Vec<usize>,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DefragmentationError {
    /// The cluster is not one.
    #[error("the cluster cannot be looked at")]
    Problem(#[source] InvalidProblem),
    /// A plan was made that cannot be carried out: a mistake of the search.
    #[error("the plan that was found cannot be carried out")]
    Plan(#[source] Infeasible),
}

/// Searches for moves.
///
/// # Errors
/// The cluster is not as it must be.
pub fn run(
    cluster: &Cluster,
    number: usize,
    task: &Task,
    progress: &mut dyn FnMut(Progress, Duration),
) -> Result<Outcome, DefragmentationError> {
    let problem = Problem::new(UNIT, &cluster.hosts, cluster.vms.clone())
        .map_err(DefragmentationError::Problem)?;
    let anywhere = |_: usize, _: usize| true;
    let begun = Instant::now();
    let others = 1..task.threads.max(1) as u64;
    let search = |seed: u64, progress: &mut dyn FnMut(Progress, Duration)| {
        let found = defragment::solve(&problem, task.most_moves, seed, &anywhere, &mut |at| {
            let elapsed = begun.elapsed();
            progress(at, elapsed);
            elapsed < task.limit && at.steps < task.most_steps
        });
        (seed, found)
    };
    // Less in fragments, then fewer moves, then the first seed.
    let better = |a: &Solution, b: &Solution| {
        a.reached.total_cmp(&b.reached).then(a.moves.len().cmp(&b.moves.len())).is_lt()
    };
    let (seed, found) = thread::scope(|scope| {
        let search = &search;
        let others: Vec<_> = others
            .map(|at| scope.spawn(move || search(task.seed.wrapping_add(at), &mut |_, _| ())))
            .collect();
        let mut best = search(task.seed, progress);
        for other in others {
            match other.join() {
                Ok(other) if better(&other.1, &best.1) => best = other,
                Ok(_) => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        best
    });
    let reached = problem.replay(&found.moves, &anywhere).map_err(DefragmentationError::Plan)?;
    let spot = |place: &Place| Spot {
        host: cluster.host_names[place.host].clone(),
        numa: place.nodes.clone(),
    };
    let plan = found.moves.iter().map(|one| Step {
        vm: cluster.vm_names[one.vm].clone(),
        from: spot(&one.from),
        to: spot(&one.to),
    });
    Ok(Outcome {
        cluster: number,
        hosts: problem.hosts(),
        vms: problem.vms(),
        initial: found.initial,
        reached,
        at_least: found.at_least,
        moves: found.moves.len(),
        seconds: begun.elapsed().as_secs_f64(),
        steps: found.steps,
        seed,
        plan: plan.collect(),
    })
}

#[cfg(test)]
mod tests;
