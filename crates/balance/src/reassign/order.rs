//! A way from one assignment to another, move by move.
//!
//! While a process moves it counts with all of its resources on both machines, as a VM in live
//! migration does, and every hard constraint holds before and after each move. Moves that free room
//! where others wait for it make those possible, so rounds are made over what is left until nothing
//! more can be moved. Then some processes wait for each other in a ring: one of them makes a
//! detour, to a third machine that has room for it, and goes on to its own later. What cannot be
//! moved even so stays where it is; as the moves were meant to be taken together, only the first of
//! them are kept then, as many as cost least.

use super::{
    cost::{Cost, Violation},
    problem::{MachineId, Problem, ProcessId},
    state::State,
};

/// One move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What moves.
    pub process: ProcessId,
    /// From where.
    pub from: MachineId,
    /// To where.
    pub to: MachineId,
}

/// Moves in an order in which each may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// The moves.
    pub steps: Vec<Step>,
    /// Processes that do not come to where they should, as there is no way.
    pub dropped: Vec<ProcessId>,
    /// Where every process is after the last move.
    pub assignment: Vec<MachineId>,
    /// What that costs.
    pub cost: Cost,
}

/// Orders the moves from the initial assignment to another. What comes of it costs no more than the
/// initial assignment, or is the other one.
///
/// Transient resources hold as the problem has them: a process that has left its first machine goes
/// on holding them there to the end. While it moves, it holds all resources on both machines.
/// Time is in the square of the number of moves at worst, times the number of machines for detours.
///
/// # Errors
/// The constraint that the assignment to come to breaks.
pub fn order(problem: &Problem, to: &[MachineId]) -> Result<Ordered, Violation> {
    problem.cost(to)?;
    let mut way = Way::new(problem, to);
    loop {
        way.go_on();
        if !way.detour() {
            break;
        }
    }
    if !way.left.is_empty() {
        way.retreat();
        way.cut();
    }
    let mut assignment = problem.initial().to_vec();
    for step in &way.steps {
        assignment[step.process as usize] = step.to;
    }
    let cost = problem.cost(&assignment)?;
    let dropped = (0..).zip(assignment.iter().zip(to)).filter(|(_, (now, then))| now != then);
    let dropped = dropped.map(|(process, _)| process).collect();
    Ok(Ordered { steps: way.steps, dropped, assignment, cost })
}

struct Way<'a> {
    state: State<'a>,
    to: &'a [MachineId],
    /// What is not where it should be.
    left: Vec<ProcessId>,
    /// What has made a detour: each makes one at most, so that the search ends.
    strayed: Vec<bool>,
    steps: Vec<Step>,
    /// What is paid before the first step and after each.
    costs: Vec<i64>,
}

impl<'a> Way<'a> {
    fn new(problem: &'a Problem, to: &'a [MachineId]) -> Self {
        let pairs = (0..).zip(problem.initial().iter().zip(to));
        let left = pairs.filter(|(_, (now, then))| now != then).map(|(process, _)| process);
        let state = State::new(problem, problem.initial());
        Self {
            left: left.collect(),
            costs: vec![state.cost()],
            state,
            to,
            strayed: vec![false; to.len()],
            steps: Vec::new(),
        }
    }

    /// Takes every move that may be taken, until none may.
    fn go_on(&mut self) {
        loop {
            let before = self.left.len();
            let mut left = std::mem::take(&mut self.left);
            left.retain(|process| !self.take(*process, self.to[*process as usize]));
            self.left = left;
            if self.left.len() == before || before == 0 {
                return;
            }
        }
    }

    fn take(&mut self, process: ProcessId, to: MachineId) -> bool {
        let from = self.state.machine_of(process);
        if from == to || !self.state.fits(process, to) || !self.state.may_move(process, to) {
            return false;
        }
        self.state.shift_and_reckon(process, to);
        self.steps.push(Step { process, from, to });
        self.costs.push(self.state.cost());
        true
    }

    /// Sends one process that is left to a third machine, such that another move can be taken.
    fn detour(&mut self) -> bool {
        let machines = self.state.machines();
        for at in 0..self.left.len() {
            let process = self.left[at];
            if self.strayed[process as usize] {
                continue;
            }
            let from = self.state.machine_of(process);
            for third in 0..machines {
                if !self.take(process, third) {
                    continue;
                }
                if self.left.iter().any(|other| self.may_take(*other)) {
                    self.strayed[process as usize] = true;
                    return true;
                }
                // In vain: it has not happened.
                self.state.shift_and_reckon(process, from);
                self.steps.pop();
                self.costs.pop();
            }
        }
        false
    }

    fn may_take(&self, process: ProcessId) -> bool {
        let to = self.to[process as usize];
        self.state.machine_of(process) != to
            && self.state.fits(process, to)
            && self.state.may_move(process, to)
    }

    /// Takes back detours that led nowhere, where that may be: a process that cannot come to where it
    /// should is better off where it was.
    fn retreat(&mut self) {
        for process in std::mem::take(&mut self.left) {
            if self.strayed[process as usize] {
                self.take(process, self.state.home(process));
            }
        }
    }

    /// Leaves out the last moves, when it costs less without them.
    fn cut(&mut self) {
        let cheapest = (0..).zip(&self.costs).min_by_key(|(_, cost)| **cost);
        self.steps.truncate(cheapest.map_or(0, |(at, _)| at));
    }
}
