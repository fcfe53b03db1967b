//! Simulated annealing over where VMs are in the end.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Move, Place, Problem};

/// Steps from hot to cold.
const CYCLE: u64 = 400_000;

/// The temperatures between which a cycle cools down, in units.
const HOT: f64 = 0.5;
const COLD: f64 = 0.02;

/// Steps after which the temperature is reckoned anew.
const COOLED_EVERY: u64 = 256;

/// How much a fragment of nearly a unit counts, in units; smaller ones with their square.
const FRAGMENT: f64 = 0.3;

/// Of a hundred steps, those that look at a VM that is elsewhere already, and those of these that bring
/// it home.
const OF_MOVED: u32 = 40;
const HOME: u32 = 30;

/// A state of the search: VMs as they would be in the end.
pub(super) struct Search<'a> {
    problem: &'a Problem,
    may_hold: &'a dyn Fn(usize, usize) -> bool,
    most_moves: usize,
    rng: ChaCha8Rng,
    steps: u64,
    temperature: f64,
    free_cpu: Vec<u64>,
    free_memory: Vec<u64>,
    host_of: Vec<usize>,
    places: Vec<Place>,
    movable: Vec<usize>,
    /// VMs that are not where they were, and where they are in this list.
    moved: Vec<usize>,
    at: Vec<Option<usize>>,
    /// Nodes with free CPU, the same way.
    open: Vec<usize>,
    open_at: Vec<Option<usize>>,
    units: u64,
    value: f64,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        problem: &'a Problem,
        most_moves: usize,
        seed: u64,
        may_hold: &'a dyn Fn(usize, usize) -> bool,
    ) -> Self {
        let nodes = problem.free.len();
        let mut host_of = Vec::with_capacity(nodes);
        for host in 0..problem.hosts() {
            host_of.resize(problem.begins[host + 1], host);
        }
        let mut search = Self {
            problem,
            may_hold,
            most_moves,
            rng: ChaCha8Rng::seed_from_u64(seed),
            steps: 0,
            temperature: HOT,
            free_cpu: problem.free.iter().map(|node| node.free_cpu.0).collect(),
            free_memory: problem.free.iter().map(|node| node.free_memory.0).collect(),
            host_of,
            places: problem.vms.iter().map(|vm| vm.place.clone()).collect(),
            movable: (0..problem.vms.len()).filter(|vm| problem.vms[*vm].may_move).collect(),
            moved: Vec::new(),
            at: vec![None; problem.vms.len()],
            open: Vec::new(),
            open_at: vec![None; nodes],
            units: problem.units(),
            value: 0.0,
        };
        for node in 0..nodes {
            search.value += search.worth(search.free_cpu[node]);
            search.sort_in(node);
        }
        search
    }

    /// Whether there is anything that could go anywhere.
    pub(super) fn can_move(&self) -> bool {
        !self.movable.is_empty() && !self.open.is_empty()
    }

    /// How many typical VMs fit.
    pub(super) const fn units(&self) -> u64 {
        self.units
    }

    /// Who is elsewhere, in no order.
    pub(super) fn moves(&self) -> Vec<Move> {
        let one = |vm: &usize| Move {
            vm: *vm,
            from: self.problem.vms[*vm].place.clone(),
            to: self.places[*vm].clone(),
        };
        self.moved.iter().map(one).collect()
    }

    /// Tries one change, and says whether it was made.
    pub(super) fn step(&mut self) -> bool {
        self.cool();
        let Some((vm, to)) = self.propose() else { return false };
        // One more would be too many: another one goes home for it.
        let is_new = self.at[vm].is_none();
        let instead = (is_new && self.moved.len() >= self.most_moves)
            .then(|| self.moved[self.rng.random_range(0..self.moved.len())]);
        let before = self.value;
        let (was, other_was) =
            (self.places[vm].clone(), instead.map(|other| (other, self.places[other].clone())));
        self.lift(vm);
        if let Some((other, _)) = &other_was {
            self.lift(*other);
        }
        if self.put(vm, to) {
            let done = match &other_was {
                Some((other, _)) => self.put(*other, self.problem.vms[*other].place.clone()),
                None => true,
            };
            if done {
                let gain = self.value - before;
                if gain >= 0.0 || self.rng.random::<f64>() < (gain / self.temperature).exp() {
                    return true;
                }
                if let Some((other, _)) = &other_was {
                    self.lift(*other);
                }
            }
            self.lift(vm);
        }
        let back = self.put(vm, was);
        let other_back = other_was.is_none_or(|(other, was)| self.put(other, was));
        debug_assert!(back && other_back, "what was there fits there");
        false
    }

    #[expect(clippy::cast_precision_loss, reason = "a share of a cycle")]
    fn cool(&mut self) {
        let at = self.steps % CYCLE;
        if at.is_multiple_of(COOLED_EVERY) {
            self.temperature = HOT * (COLD / HOT).powf(at as f64 / CYCLE as f64);
        }
        self.steps += 1;
    }

    /// A VM and where it might go.
    fn propose(&mut self) -> Option<(usize, Place)> {
        let roll = self.rng.random_range(0..100);
        let vm = if roll < OF_MOVED && !self.moved.is_empty() {
            self.moved[self.rng.random_range(0..self.moved.len())]
        } else {
            self.movable[self.rng.random_range(0..self.movable.len())]
        };
        if self.at[vm].is_some() && self.rng.random_range(0..100) < HOME {
            return Some((vm, self.problem.vms[vm].place.clone()));
        }
        if self.open.is_empty() {
            return None;
        }
        let node = self.open[self.rng.random_range(0..self.open.len())];
        let parts = &self.problem.vms[vm].parts;
        if parts[0].cpu.0 > self.free_cpu[node] && self.host_of[node] != self.places[vm].host {
            return None;
        }
        let host = self.host_of[node];
        let count = self.problem.nodes_of(host);
        if parts.len() > count {
            return None;
        }
        // The first part goes to the node, the others to the host's next ones in turn.
        let first = node - self.problem.begins[host];
        let nodes: Vec<_> = (0..parts.len()).map(|part| (first + part) % count).collect();
        let to = Place { host, nodes };
        (to != self.places[vm] && (self.may_hold)(vm, host)).then_some((vm, to))
    }

    /// What a node with so much free is worth, in units.
    #[expect(clippy::cast_precision_loss, reason = "what a state is worth is rounded anyway")]
    fn worth(&self, free: u64) -> f64 {
        let unit = self.problem.unit;
        let fragment = (free % unit) as f64 / unit as f64;
        (free / unit) as f64 + FRAGMENT * fragment * fragment
    }

    fn set_free(&mut self, node: usize, cpu: u64) {
        let before = self.free_cpu[node];
        self.value += self.worth(cpu) - self.worth(before);
        self.units = self.units + cpu / self.problem.unit - before / self.problem.unit;
        self.free_cpu[node] = cpu;
        self.sort_in(node);
    }

    /// Keeps the list of open nodes.
    fn sort_in(&mut self, node: usize) {
        match (self.free_cpu[node] > 0, self.open_at[node]) {
            (true, None) => {
                self.open_at[node] = Some(self.open.len());
                self.open.push(node);
            }
            (false, Some(at)) => {
                self.open.swap_remove(at);
                self.open_at[node] = None;
                if let Some(other) = self.open.get(at) {
                    self.open_at[*other] = Some(at);
                }
            }
            _ => {}
        }
    }

    /// Takes a VM from where it is.
    fn lift(&mut self, vm: usize) {
        let problem = self.problem;
        let begin = problem.begins[self.places[vm].host];
        for (part, of) in problem.vms[vm].parts.iter().enumerate() {
            let node = begin + self.places[vm].nodes[part];
            self.free_memory[node] += of.memory.0;
            self.set_free(node, self.free_cpu[node] + of.cpu.0);
        }
        if let Some(at) = self.at[vm].take() {
            self.moved.swap_remove(at);
            if let Some(other) = self.moved.get(at) {
                self.at[*other] = Some(at);
            }
        }
    }

    /// Puts a VM that was lifted somewhere, if it fits.
    fn put(&mut self, vm: usize, place: Place) -> bool {
        let problem = self.problem;
        let parts = &problem.vms[vm].parts;
        let begin = problem.begins[place.host];
        let fits = parts.iter().zip(&place.nodes).all(|(part, node)| {
            let node = begin + node;
            part.cpu.0 <= self.free_cpu[node] && part.memory.0 <= self.free_memory[node]
        });
        if !fits {
            return false;
        }
        for (part, node) in parts.iter().zip(&place.nodes) {
            let node = begin + node;
            self.free_memory[node] -= part.memory.0;
            self.set_free(node, self.free_cpu[node] - part.cpu.0);
        }
        if place != problem.vms[vm].place {
            self.at[vm] = Some(self.moved.len());
            self.moved.push(vm);
        }
        self.places[vm] = place;
        true
    }
}
