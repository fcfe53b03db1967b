//! Few moves that make the free CPU of hosts usable again for VMs of a typical size.
//!
//! A VM of 16 cores needs 16 free cores on one NUMA node; what is left of a node's free CPU after as
//! many such VMs as fit is a *fragment*. The fragment rate is the share of all free CPU that is
//! fragments ([`Problem::fragment_rate`]); with at most so many moves it is to be as low as can be
//! (the measure and the problem: Ding et al., *Towards VM Rescheduling Optimization Through Deep
//! Reinforcement Learning*, EuroSys 2025).
//!
//! ```text
//!   problem, seed --> search: simulated annealing over which VMs are elsewhere in the end, and where
//!                       |  a state with less fragments than any before
//!                     order: is there an order in which each move is feasible when it is made?
//!                       |  yes
//!                     the best plan so far; the search goes on until it is told to stop
//! ```
//!
//! Simulated annealing (Kirkpatrick et al., Science 220, 1983) suits since most gains take two moves or
//! more of which the first alone gains nothing, such as filling a hole so that another node becomes
//! whole: a greedy search does not see them. States in between are valued by whole units and, a
//! little, by the squares of fragments, so that fragments gather.
//!
//! Invariants: each move of a plan is feasible when it is made, with the VM counted on both sides while
//! it moves; no VM moves twice; a plan is never worse than doing nothing; the same problem, seed and
//! number of steps give the same plan.

mod order;
mod problem;
mod search;
#[cfg(test)]
mod tests;

pub use problem::{Host, Infeasible, InvalidProblem, Node, Part, Place, Problem, Vm};
use serde::Serialize;

use search::Search;

/// A VM goes from NUMA nodes to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Which VM.
    pub vm: usize,
    /// Where it is.
    pub from: Place,
    /// Where it goes.
    pub to: Place,
}

/// How far a search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps that were made.
    pub steps: u64,
    /// Units of the typical size that fit, with the best plan so far.
    pub units: u64,
}

/// The best that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Solution {
    /// What to do, in this order.
    pub moves: Vec<Move>,
    /// The fragment rate as things are.
    pub initial: f64,
    /// The fragment rate when all moves are made.
    pub reached: f64,
    /// No number of moves gets it below this.
    pub at_least: f64,
    /// Steps that the search made.
    pub steps: u64,
}

/// Steps between two questions whether to go on.
const STEPS_AT_ONCE: u64 = 1024;

/// Searches for a plan of at most so many moves until `keep_going` says no, or until as much fits as can
/// fit with any number of moves. `may_hold` says whether a host may take a VM at all.
pub fn solve(
    problem: &Problem,
    most_moves: usize,
    seed: u64,
    may_hold: &dyn Fn(usize, usize) -> bool,
    keep_going: &mut dyn FnMut(Progress) -> bool,
) -> Solution {
    let mut search = Search::new(problem, most_moves, seed, may_hold);
    let mut best = Vec::new();
    let mut units = problem.units();
    let mut steps = 0;
    let most = problem.most_units();
    // With nothing to do there is nothing to search.
    let useful = most_moves > 0 && search.can_move();
    while useful && units < most && keep_going(Progress { steps, units }) {
        for _ in 0..STEPS_AT_ONCE {
            steps += 1;
            if !search.step() || search.units() <= units {
                continue;
            }
            if let Some(ordered) = order::order(problem, &search.moves()) {
                units = search.units();
                best = ordered;
            }
        }
    }
    Solution {
        initial: problem.fragment_rate(),
        reached: problem.rate_of(units),
        at_least: problem.rate_of(most),
        moves: order::without_needless(problem, best, units),
        steps,
    }
}
