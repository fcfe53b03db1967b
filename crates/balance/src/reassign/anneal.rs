//! The search: simulated annealing over single moves, exchanges and ejections.
//!
//! ```text
//!   share of the time   0 ------------------------- 0.5 ------------------------ 1
//!   temperature         hot, falling                 warm, falling to a unit of cost
//!   capacities          may be exceeded at a price   hold
//!                       that rises
//!   moves               move, exchange               move, exchange, ejection
//! ```
//!
//! What decides a tight cluster is where its few large processes are, and between two good places
//! for them lie only assignments that break capacities. In the first half the search may pass through these: units
//! that are lacking cost more and more, until nobody goes there any more (strategic oscillation: Glover &
//! Laguna, Tabu Search, 1997, section 4.4). The second half starts from the best assignment that kept all constraints,
//! and keeps them: there a process is put where it finds no room, and others are moved off until it has (ejection
//! chains; the challenge's winner calls the like big process rearrangement: Gavranović et al., Variable
//! neighborhood search for Google machine reassignment problem, 2012). Annealing with moves and exchanges follows Ritt's and
//! Portal's entry to the challenge; its temperatures are in the instance's own unit, the initial cost of
//! a process.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    cost::Violation,
    problem::{MachineId, Problem, ProcessId},
    state::{State, as_float},
};

/// Steps between two questions how much time is spent.
const STEPS: u64 = 1 << 12;

/// How many random numbers the logarithm is known of.
const LOTS: u16 = 1 << 12;

/// The share of the time in which capacities may be exceeded.
const EASY: f64 = 0.5;

/// The first and the last temperature of that, in costs of a process.
const HOT: (f64, f64) = (3.0, 0.01);

/// The price of what is lacking, at first and in the end, in costs of what a process needs.
const PRICE: (f64, f64) = (10.0, 20_000.0);

/// The first temperature with capacities that hold, in costs of a process, and the last, in units.
const WARM: f64 = 0.3;
const COLD: f64 = 3.0;

/// One of so many steps is an ejection: each takes as long as some hundreds of others.
const EJECTIONS: u32 = 64;

/// The most processes that move in an ejection.
const CHAIN: usize = 8;

/// How many processes are looked at when one must leave.
const LEAVERS: usize = 2;

/// How many machines are looked at for it.
const TARGETS: u32 = 128;

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

/// Looks for an assignment that costs little, beginning with one that keeps all constraints.
///
/// `spent` is asked again and again which share of the time is spent; at 1 the search ends. The search
/// cools down by it, so it should rise evenly: with the clock, or with the number of steps.
/// The same problem, start, seed and answers give the same solution.
///
/// # Errors
/// The constraint that the start breaks.
pub fn solve(
    problem: &Problem,
    start: &[MachineId],
    seed: u64,
    spent: &mut dyn FnMut(Progress) -> f64,
) -> Result<Solution, Violation> {
    problem.cost(start)?;
    let mut search = Search::new(problem, start, seed);
    if !problem.parts.processes.is_empty() {
        search.run(spent);
    }
    Ok(Solution { assignment: search.best, cost: search.best_cost, steps: search.steps })
}

struct Search<'a> {
    problem: &'a Problem,
    state: State<'a>,
    processes: ProcessId,
    machines: MachineId,
    random: ChaCha8Rng,
    best: Vec<MachineId>,
    best_cost: i64,
    steps: u64,
    /// What waits for an exponential distribution by the hundreds: cheaper than a logarithm each.
    lots: Vec<f64>,
    /// What a process costs at the start, and for each resource what a unit does then.
    unit: f64,
    unit_prices: Vec<f64>,
    highest_prices: Vec<f64>,
    /// What the ejection that is being tried has moved, and from where.
    moved: Vec<(ProcessId, MachineId)>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, start: &[MachineId], seed: u64) -> Self {
        let state = State::new(problem, start);
        // Problem::new has seen to it that there are not more.
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let processes = count(problem.parts.processes.len());
        let unit = (as_float(state.cost()) / f64::from(processes.max(1))).max(1.0);
        let needed = |at| {
            let needs = problem.parts.processes.iter().map(|process| process.requirement[at]);
            needs.map(as_amount).sum::<f64>().max(1.0)
        };
        let resources = problem.parts.resources.len();
        let totals: Vec<f64> = (0..resources).map(needed).collect();
        Self {
            machines: state.machines(),
            random: ChaCha8Rng::seed_from_u64(seed),
            best: start.to_vec(),
            best_cost: state.cost(),
            steps: 0,
            lots: (0..LOTS).map(|at| -((f64::from(at) + 0.5) / f64::from(LOTS)).ln()).collect(),
            unit,
            unit_prices: totals
                .iter()
                .map(|total| unit * f64::from(processes) / total)
                .zip(&problem.parts.resources)
                .map(|(price, resource)| price.max(as_amount(resource.load_weight)))
                .collect(),
            // All that is needed, lacking at these prices, is far from what 64 bits hold.
            highest_prices: totals
                .iter()
                .map(|total| 2_f64.powi(61) / total / as_amount(resources as u64))
                .collect(),
            moved: Vec::new(),
            problem,
            state,
            processes,
        }
    }

    fn run(&mut self, spent: &mut dyn FnMut(Progress) -> f64) {
        let mut ask =
            |search: &Self| spent(Progress { steps: search.steps, best: search.best_cost });
        let before = self.best_cost;
        let mut share = ask(self);
        while share < EASY {
            let within = share / EASY;
            self.set_prices(between(PRICE, within));
            self.anneal(self.unit * between(HOT, within), 0);
            share = ask(self);
        }
        self.state = State::new(self.problem, &self.best);
        // Where the first half has found nothing, there is still all to do.
        let warm = self.unit * if self.best_cost < before { WARM } else { HOT.0 };
        while share < 1.0 {
            let within = (share - EASY) / (1.0 - EASY);
            self.anneal(between((warm.max(COLD), COLD), within), u32::MAX / EJECTIONS);
            share = ask(self);
        }
    }

    fn set_prices(&mut self, price: f64) {
        let prices = self.unit_prices.iter().zip(&self.highest_prices);
        let prices = prices.map(|(unit, highest)| as_price((unit * price).min(*highest)));
        self.state.set_prices(Some(prices.collect()));
    }

    /// Some steps at a temperature, of which `ejections` in 2^32 are ejections.
    fn anneal(&mut self, temperature: f64, ejections: u32) {
        for _ in 0..STEPS {
            let (kind, lot) = (self.random.random::<u32>(), self.random.random::<u16>());
            let most = temperature * self.lots[usize::from(lot % LOTS)];
            let process = self.random.random_range(0..self.processes);
            if kind < ejections {
                self.eject(process, most);
            } else if kind & 1 == 0 {
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

    /// Puts a process on a machine and others off it until there is room, when all of that together
    /// adds no more than `most`.
    fn eject(&mut self, process: ProcessId, most: f64) {
        // Of three, the largest: the small ones find room without this.
        let mut process = process;
        for _ in 0..2 {
            let other = self.random.random_range(0..self.processes);
            if self.size(other) > self.size(process) {
                process = other;
            }
        }
        let to = self.random.random_range(0..self.machines);
        let from = self.state.machine_of(process);
        if from == to || !self.state.may_move(process, to) {
            return;
        }
        let before = self.state.cost();
        self.moved.clear();
        self.moved.push((process, from));
        self.state.shift_and_reckon(process, to);
        while self.state.lacks(to) && self.moved.len() < CHAIN && self.make_room(process, to) {}
        if !self.state.lacks(to) && as_float(self.state.cost() - before) <= most {
            self.keep();
            return;
        }
        for at in (0..self.moved.len()).rev() {
            let (process, from) = self.moved[at];
            self.state.shift_and_reckon(process, from);
        }
    }

    /// What a process needs of all resources, each in the unit of what one costs.
    fn size(&self, process: ProcessId) -> f64 {
        let needs = self.problem.parts.processes[process as usize].requirement.iter();
        needs.zip(&self.unit_prices).map(|(need, price)| as_amount(*need) * price).sum()
    }

    /// Moves one process off a machine that is short of something, to where it costs least; not the newcomer.
    fn make_room(&mut self, newcomer: ProcessId, machine: MachineId) -> bool {
        let held = self.state.held(machine);
        let first = self.random.random_range(0..held.len());
        let ring = held[first..].iter().chain(&held[..first]).copied();
        let relieves = |it: &ProcessId| *it != newcomer && self.state.relieves(*it, machine);
        let first_target = self.random.random_range(0..self.machines);
        let mut best = None;
        for process in ring.filter(relieves).take(LEAVERS) {
            for at in 0..self.machines.min(TARGETS) {
                let to = (first_target + at) % self.machines;
                let least = best.map_or(f64::INFINITY, |(least, _, _)| as_float(least));
                if let Some(delta) = self.state.try_shift(process, to, least) {
                    best = Some((delta, process, to));
                }
            }
        }
        let Some((delta, process, to)) = best else { return false };
        self.moved.push((process, machine));
        self.state.apply_shift(process, to, delta);
        true
    }

    fn keep(&mut self) {
        if self.state.cost() < self.best_cost && !self.state.is_overfull() {
            self.best_cost = self.state.cost();
            self.best.copy_from_slice(self.state.assignment());
        }
    }
}

/// From one number to another by equal factors.
fn between((first, last): (f64, f64), share: f64) -> f64 {
    first * (last / first).powf(share.clamp(0.0, 1.0))
}

#[expect(clippy::cast_precision_loss, reason = "prices and sizes need no 63 bits")]
const fn as_amount(amount: u64) -> f64 {
    amount as f64
}

#[expect(clippy::cast_possible_truncation, reason = "bounded, and a fraction does not matter")]
const fn as_price(price: f64) -> i64 {
    price as i64
}
