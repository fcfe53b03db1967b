//! The machine reassignment problem of the ROADEF/EURO challenge 2012: what a cluster costs before
//! and after it was rebalanced as a whole.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use plimsoll_balance::reassign::{self, Cost, MachineId, Problem, Progress, Solution, Violation};
use serde::Serialize;
use thiserror::Error;

/// How long and how a problem is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// The time.
    pub limit: Duration,
    /// What random choices start from.
    pub seed: u64,
    /// How many searches go on side by side.
    pub threads: usize,
}

/// What came of it. The names of these fields are those of the JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The problem.
    pub instance: String,
    /// What the initial assignment costs.
    pub initial_cost: i64,
    /// What the new one costs.
    pub cost: i64,
    /// The parts of that.
    pub parts: Cost,
    /// Processes that move.
    pub moved: usize,
    /// Whether the new assignment, read back, keeps every constraint and costs what it should.
    pub valid: bool,
    /// How long the search took.
    pub seconds: f64,
    /// Changes that were looked at.
    pub steps: u64,
    /// What random choices started from.
    pub seed: u64,
    /// Searches side by side.
    pub threads: usize,
}

/// A result that is none: a mistake of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WrongResult {
    /// It breaks a constraint.
    #[error("the new assignment is not allowed")]
    NotAllowed(#[source] Violation),
    /// It is not as good as the search said.
    #[error("the new assignment costs {cost}, and the search found {found}")]
    Cost {
        /// What it costs.
        cost: i64,
        /// What the search said.
        found: i64,
    },
}

/// What a search found, and how long it took.
#[derive(Clone, Debug)]
pub struct Found {
    solution: Solution,
    seconds: f64,
    effort: Effort,
}

/// Looks for a better assignment.
///
/// # Errors
/// The search was led astray: a mistake of ours.
pub fn rebalance(
    problem: &Problem,
    effort: Effort,
    progress: &mut dyn FnMut(Duration, Progress),
) -> Result<Found, WrongResult> {
    let start = Instant::now();
    let limit = effort.limit.as_secs_f64();
    let solution = reassign::solve(problem, problem.initial(), effort.seed, &mut |at| {
        let spent = start.elapsed();
        progress(spent, at);
        spent.as_secs_f64() / limit
    });
    let solution = solution.map_err(WrongResult::NotAllowed)?;
    Ok(Found { solution, seconds: start.elapsed().as_secs_f64(), effort })
}

impl Found {
    /// The machine of each process.
    #[must_use]
    pub fn assignment(&self) -> &[MachineId] {
        &self.solution.assignment
    }

    /// The assignment as the challenge writes it.
    #[must_use]
    pub fn written(&self) -> String {
        let mut text = String::new();
        for (at, machine) in self.solution.assignment.iter().enumerate() {
            let before = if at == 0 { "" } else { " " };
            // Writing to a string does not fail.
            let _ = write!(text, "{before}{machine}");
        }
        text.push('\n');
        text
    }

    /// The result, after an assignment that should be what was found was reckoned anew.
    ///
    /// # Errors
    /// It breaks a constraint, or costs something else.
    pub fn checked(
        &self,
        problem: &Problem,
        instance: String,
        assignment: &[MachineId],
    ) -> Result<Outcome, WrongResult> {
        let cost = |assignment| problem.cost(assignment).map_err(WrongResult::NotAllowed);
        let (initial, parts) = (cost(problem.initial())?, cost(assignment)?);
        if parts.total() != self.solution.cost {
            return Err(WrongResult::Cost { cost: parts.total(), found: self.solution.cost });
        }
        let pairs = assignment.iter().zip(problem.initial());
        Ok(Outcome {
            instance,
            initial_cost: initial.total(),
            cost: parts.total(),
            parts,
            moved: pairs.filter(|(now, then)| now != then).count(),
            valid: true,
            seconds: self.seconds,
            steps: self.solution.steps,
            seed: self.effort.seed,
            threads: self.effort.threads,
        })
    }
}
