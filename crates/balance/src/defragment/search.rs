//! Simulated annealing over where VMs are in the end.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Move, Place, Problem};

/// Steps from hot to cold.
const CYCLE: u64 = 1_000_000;

/// The temperatures between which a cycle cools down, in units.
const HOT: f64 = 0.1;
const COLD: f64 = 0.03;

/// Steps after which the temperature is reckoned anew.
const COOLED_EVERY: u64 = 256;

/// How much a fragment of nearly a unit counts, in units; smaller ones with their square.
const FRAGMENT: f64 = 0.2;

/// Of a hundred changes, those that look at a VM that is elsewhere already, and those of these that bring
/// it home.
const OF_MOVED: u32 = 40;
const HOME: u32 = 30;

/// Where a VM would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    /// Where it is.
    Home,
    /// Its first part on this node of a host, the others on the next ones in turn.
    At { host: usize, first: usize },
}

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
    spots: Vec<Spot>,
    movable: Vec<usize>,
    /// VMs that are not where they were.
    moved: Listed,
    /// Nodes with free CPU.
    open: Listed,
    units: u64,
    value: f64,
    /// The change that is tried: who goes where,
    change: Vec<(usize, Spot)>,
    /// and where they come from.
    undo: Vec<(usize, Spot)>,
}

/// Numbers in a list from which one can be drawn and taken at once.
#[derive(Debug)]
struct Listed {
    list: Vec<usize>,
    at: Vec<Option<usize>>,
}

impl Listed {
    fn new(most: usize) -> Self {
        Self { list: Vec::new(), at: vec![None; most] }
    }

    fn set(&mut self, number: usize, is_in: bool) {
        match (is_in, self.at[number]) {
            (true, None) => {
                self.at[number] = Some(self.list.len());
                self.list.push(number);
            }
            (false, Some(at)) => {
                self.list.swap_remove(at);
                self.at[number] = None;
                if let Some(other) = self.list.get(at) {
                    self.at[*other] = Some(at);
                }
            }
            _ => {}
        }
    }

    fn has(&self, number: usize) -> bool {
        self.at[number].is_some()
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Option<usize> {
        draw(&self.list, rng)
    }
}

fn draw(list: &[usize], rng: &mut ChaCha8Rng) -> Option<usize> {
    (!list.is_empty()).then(|| list[rng.random_range(0..list.len())])
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
            spots: vec![Spot::Home; problem.vms.len()],
            movable: (0..problem.vms.len()).filter(|vm| problem.vms[*vm].may_move).collect(),
            moved: Listed::new(problem.vms.len()),
            open: Listed::new(nodes),
            units: problem.units(),
            value: 0.0,
            change: Vec::new(),
            undo: Vec::new(),
        };
        for node in 0..nodes {
            search.value += search.worth(search.free_cpu[node]);
            search.open.set(node, search.free_cpu[node] > 0);
        }
        search
    }

    /// Whether there is anything that could go anywhere.
    pub(super) fn can_move(&self) -> bool {
        !self.movable.is_empty() && !self.open.list.is_empty()
    }

    /// How many typical VMs fit.
    pub(super) const fn units(&self) -> u64 {
        self.units
    }

    /// Who is elsewhere, in no order.
    pub(super) fn moves(&self) -> Vec<Move> {
        let one = |vm: &usize| {
            let from = &self.problem.vms[*vm].place;
            let to = match self.spots[*vm] {
                Spot::Home => from.clone(),
                Spot::At { host, .. } => {
                    let begin = self.problem.begins[host];
                    let parts = 0..self.problem.vms[*vm].parts.len();
                    Place {
                        host,
                        nodes: parts.map(|part| self.node_of(*vm, part) - begin).collect(),
                    }
                }
            };
            Move { vm: *vm, from: from.clone(), to }
        };
        self.moved.list.iter().map(one).collect()
    }

    /// Tries one change, and says whether it was made.
    pub(super) fn step(&mut self) -> bool {
        self.cool();
        self.change.clear();
        if !self.propose() || !self.send_home_what_is_too_much() {
            return false;
        }
        let before = self.value;
        let is_made = self.make();
        let gain = self.value - before;
        if is_made && (gain >= 0.0 || self.rng.random::<f64>() < (gain / self.temperature).exp()) {
            return true;
        }
        self.take_back();
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

    /// One VM goes somewhere, or home.
    fn propose(&mut self) -> bool {
        let of_moved = self.rng.random_range(0..100) < OF_MOVED;
        let list = if of_moved { &self.moved.list } else { &self.movable };
        let Some(vm) = draw(list, &mut self.rng).or_else(|| draw(&self.movable, &mut self.rng))
        else {
            return false;
        };
        if self.moved.has(vm) && self.rng.random_range(0..100) < HOME {
            self.change.push((vm, Spot::Home));
            return true;
        }
        let Some(spot) = self.draw_spot(vm) else { return false };
        self.change.push((vm, spot));
        true
    }

    /// Adds to the change VMs that go home so that not too many are elsewhere.
    fn send_home_what_is_too_much(&mut self) -> bool {
        let adds = |(vm, spot): &&(usize, Spot)| *spot != Spot::Home && !self.moved.has(*vm);
        let mut moved = self.moved.list.len() + self.change.iter().filter(adds).count();
        let mut draws = 4 * self.most_moves;
        while moved > self.most_moves {
            let other = self.moved.draw(&mut self.rng);
            let Some(other) = other.filter(|_| draws > 0) else { return false };
            draws -= 1;
            if self.change.iter().all(|(vm, _)| *vm != other) {
                self.change.push((other, Spot::Home));
                moved -= 1;
            }
        }
        true
    }

    /// A place elsewhere where the VM's first part may fit.
    fn draw_spot(&mut self, vm: usize) -> Option<Spot> {
        let node = self.open.draw(&mut self.rng)?;
        let host = self.host_of[node];
        let of = &self.problem.vms[vm];
        // On its own host the room that it leaves may do.
        if of.parts[0].cpu.0 > self.free_cpu[node] && host != self.host_now(vm) {
            return None;
        }
        if of.parts.len() > self.problem.nodes_of(host) || !(self.may_hold)(vm, host) {
            return None;
        }
        let first = node - self.problem.begins[host];
        let spot = self.at_home_or(vm, Spot::At { host, first });
        (spot != self.spots[vm]).then_some(spot)
    }

    /// A place that is where the VM was is its home.
    fn at_home_or(&self, vm: usize, spot: Spot) -> Spot {
        let mut parts = 0..self.problem.vms[vm].parts.len();
        let is_home =
            parts.all(|part| self.node_at(vm, spot, part) == self.node_at(vm, Spot::Home, part));
        if is_home { Spot::Home } else { spot }
    }

    fn node_at(&self, vm: usize, spot: Spot, part: usize) -> usize {
        match spot {
            Spot::Home => {
                let place = &self.problem.vms[vm].place;
                self.problem.begins[place.host] + place.nodes[part]
            }
            Spot::At { host, first } => {
                self.problem.begins[host] + (first + part) % self.problem.nodes_of(host)
            }
        }
    }

    fn node_of(&self, vm: usize, part: usize) -> usize {
        self.node_at(vm, self.spots[vm], part)
    }

    fn host_now(&self, vm: usize) -> usize {
        match self.spots[vm] {
            Spot::Home => self.problem.vms[vm].place.host,
            Spot::At { host, .. } => host,
        }
    }

    /// Makes the change, as far as it goes.
    fn make(&mut self) -> bool {
        self.undo.clear();
        for at in 0..self.change.len() {
            let vm = self.change[at].0;
            self.undo.push((vm, self.spots[vm]));
            self.lift(vm);
        }
        for at in 0..self.change.len() {
            let (vm, spot) = self.change[at];
            if !self.fits(vm, spot) {
                // What was put is lifted again, that all are in the air.
                for before in 0..at {
                    self.lift(self.change[before].0);
                }
                for at in 0..self.undo.len() {
                    let (vm, spot) = self.undo[at];
                    self.put(vm, spot);
                }
                self.undo.clear();
                return false;
            }
            self.put(vm, spot);
        }
        true
    }

    fn take_back(&mut self) {
        for at in 0..self.undo.len() {
            self.lift(self.undo[at].0);
        }
        for at in 0..self.undo.len() {
            let (vm, spot) = self.undo[at];
            self.put(vm, spot);
        }
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
        self.open.set(node, cpu > 0);
    }

    /// Takes a VM from where it is.
    fn lift(&mut self, vm: usize) {
        for (part, of) in self.problem.vms[vm].parts.iter().enumerate() {
            let node = self.node_of(vm, part);
            self.free_memory[node] += of.memory.0;
            self.set_free(node, self.free_cpu[node] + of.cpu.0);
        }
    }

    fn fits(&self, vm: usize, spot: Spot) -> bool {
        self.problem.vms[vm].parts.iter().enumerate().all(|(part, of)| {
            let node = self.node_at(vm, spot, part);
            of.cpu.0 <= self.free_cpu[node] && of.memory.0 <= self.free_memory[node]
        })
    }

    /// Puts a VM that was lifted where it fits.
    fn put(&mut self, vm: usize, spot: Spot) {
        self.spots[vm] = spot;
        self.moved.set(vm, spot != Spot::Home);
        for (part, of) in self.problem.vms[vm].parts.iter().enumerate() {
            let node = self.node_of(vm, part);
            self.free_memory[node] -= of.memory.0;
            self.set_free(node, self.free_cpu[node] - of.cpu.0);
        }
    }
}
