//! A production cluster made whole again in few moves: the published experiment of Ding et al.
//! (EuroSys 2025) with [`plimsoll_balance::defragment`].
//!
//! A plan is made again step by step by [`Problem::replay`], which shares nothing with the search, before
//! it is called a result.

use std::time::{Duration, Instant};

use plimsoll_balance::defragment::{self, Infeasible, InvalidProblem, Place, Problem};
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
    /// For how long to search.
    pub limit: Duration,
    /// From which the search draws.
    pub seed: u64,
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
    /// Steps that the search made.
    pub steps: u64,
    /// From which the search drew.
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
    let found = defragment::solve(&problem, task.most_moves, task.seed, &anywhere, &mut |at| {
        let elapsed = begun.elapsed();
        progress(at, elapsed);
        elapsed < task.limit
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
        seed: task.seed,
        plan: plan.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Task, run};
    use crate::{
        data,
        readers::{Limits, bytedance},
    };

    #[test]
    #[ignore = "scratch"]
    fn scratch() {
        let Some(folder) = data::folder("bytedance") else { return };
        let s: u64 = std::env::var("S").map_or(5, |s| s.parse().unwrap());
        for number in 0..2 {
            let file = folder.join("reset_vm_pm_id_clear2.json.xz");
            let cluster = bytedance::read(&file, number, &Limits::default()).unwrap();
            for seed in 1..=3 {
                let task = Task { most_moves: 25, limit: Duration::from_secs(s), seed };
                let o = run(&cluster, number, &task, &mut |_, _| ()).unwrap();
                println!(
                    "R {number} seed {seed} {:.4} -> {:.4} >= {:.4} moves {} steps {} in {:.1}",
                    o.initial, o.reached, o.at_least, o.moves, o.steps, o.seconds
                );
            }
        }
    }
}
