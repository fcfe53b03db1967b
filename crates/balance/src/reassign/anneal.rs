use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    cost::Violation,
    problem::{MachineId, Problem, ProcessId},
    state::{State, as_float},
};

/// Steps between two questions whether there is time left.
const STEPS: u64 = 1 << 12;

/// How many random numbers the logarithm is known of.
const LOTS: usize = 1 << 12;

/// How far a search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Changes that were looked at.
    pub steps: u64,
    /// What the best assignment so far costs.
    pub best: i64,
}

/// The best assignment that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// The machine of each process.
    pub assignment: Vec<MachineId>,
    /// What it costs, as the search reckoned.
    pub cost: i64,
    /// Changes that were looked at.
    pub steps: u64,
}

pub fn solve(
    problem: &Problem,
    start: &[MachineId],
    seed: u64,
    spent: &mut dyn FnMut(Progress) -> f64,
) -> Result<Solution, Violation> {
    problem.cost(start)?;
    let mut search = Search::new(problem, start, seed);
    search.run(spent);
    Ok(Solution { assignment: search.best, cost: search.best_cost, steps: search.steps })
}

struct Search<'a> {
    state: State<'a>,
    processes: ProcessId,
    machines: MachineId,
    random: ChaCha8Rng,
    best: Vec<MachineId>,
    best_cost: i64,
    steps: u64,
    lots: Vec<f64>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, start: &[MachineId], seed: u64) -> Self {
        let state = State::new(problem, start);
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        Self {
            processes: count(problem.parts.processes.len()),
            machines: count(problem.parts.machines.len()),
            random: ChaCha8Rng::seed_from_u64(seed),
            best: start.to_vec(),
            best_cost: state.cost(),
            state,
            steps: 0,
            lots: (0..LOTS).map(|at| -((as_float(at as i64) + 0.5) / LOTS as f64).ln()).collect(),
        }
    }

    fn run(&mut self, spent: &mut dyn FnMut(Progress) -> f64) {
        let env = |n: &str, d: f64| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
        let (t0, t1, cycles, decay) =
            (env("T0", 1e6), env("T1", 10.0), env("CYC", 1.0), env("DECAY", 0.1));
        let mut last = 0.0;
        loop {
            let share = spent(Progress { steps: self.steps, best: self.best_cost });
            if share >= 1.0 {
                break;
            }
            let cycle = (share * cycles).floor();
            let within = share * cycles - cycle;
            if cycle > last {
                last = cycle;
                let best = self.best.clone();
                self.state = State::new(self.state.problem(), &best);
            }
            let hot: f64 = t0 * f64::powf(decay, cycle);
            let hot = hot.max(t1);
            let temperature = hot * (t1 / hot).powf(within);
            self.steps(temperature);
        }
    }

    fn steps(&mut self, temperature: f64) {
        for _ in 0..STEPS {
            let lot = self.random.random::<u32>();
            let most = temperature * self.lots[lot as usize % LOTS];
            let process = self.random.random_range(0..self.processes);
            if lot >> 31 == 0 {
                let to = self.random.random_range(0..self.machines);
                if let Some(delta) = self.state.try_shift(process, to, most) {
                    self.state.apply_shift(process, to, delta);
                    self.keep();
                }
            } else {
                let other = self.random.random_range(0..self.processes);
                if let Some(delta) = self.state.try_swap(process, other, most) {
                    self.state.apply_swap(process, other, delta);
                    self.keep();
                }
            }
        }
        self.steps += STEPS;
    }

    fn keep(&mut self) {
        if self.state.cost() < self.best_cost {
            self.best_cost = self.state.cost();
            self.best.copy_from_slice(self.state.assignment());
        }
    }
}
