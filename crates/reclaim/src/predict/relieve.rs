//! Which VM moves where, so that hosts are short as little as can be.
//!
//! A host's *excess* is what its VMs ask for above what it should be filled to, as a share of its
//! capacity, in the mean over all scenarios; that of CPU and that of memory are added, each with
//! its weight. The host with the largest excess is looked at first: of all its VMs and all other
//! hosts the move that takes the most from the sum of all excesses is made, and where no move is
//! worth it, the best swap of two VMs. A host for which nothing is worth it is left as it is.
//!
//! That prefers few moves (the most is gained by each), takes VMs apart that peak together, and
//! never makes the sum of excesses larger. A VM is only moved to where its memory fits in all
//! scenarios, and a swap can be made in one order at least without memory for both on one host
//! being short in between.
//!
//! A pure function of what is predicted: it knows neither time nor where predictions come from.
//! Cost: `O(VMs of a host x hosts x scenarios)` a move, `O(CANDIDATES x VMs x scenarios)` a swap.

use super::{Outlook, history::mib, outlook::millicores};
use plimsoll_model::Amount;

/// How many of a host's VMs are looked at for a swap: those that ask for most.
const CANDIDATES: usize = 64;

/// VMs that never ask for more than this share of a host are not moved: it would not be felt.
const FELT: f64 = 0.005;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// The share of a host's capacity above which excess begins.
    pub fill: f64,
    /// The least that a move must take from the sum of excesses.
    pub least_gain: f64,
    /// The most moves; a swap is two.
    pub most_moves: usize,
    /// How much worse excess of memory is than excess of CPU.
    pub memory_weight: f64,
}

/// A VM goes from a host to another; all are numbers from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which VM.
    pub vm: usize,
    /// Where it was.
    pub from: usize,
    /// Where it goes.
    pub to: usize,
}

/// The moves that relieve hosts, in an order in which they can be made. `at` says on which host each
/// VM is, and afterwards where it will be. VMs on hosts that there are not are left alone.
pub fn relieve(hosts: &[Amount], vms: &[Outlook], at: &mut [usize], aim: &Aim) -> Vec<Move> {
    let mut books = Books::new(hosts, vms, at, aim);
    let mut moves = Vec::new();
    let mut hopeless = vec![false; hosts.len()];
    while moves.len() < aim.most_moves {
        let Some(from) = books.worst(&hopeless) else { break };
        let room_for_two = aim.most_moves - moves.len() >= 2;
        let step = books
            .best_move(from)
            .map(|(vm, to)| vec![Move { vm, from, to }])
            .or_else(|| room_for_two.then(|| books.best_swap(from)).flatten());
        match step {
            Some(step) => {
                for one in &step {
                    books.apply(*one);
                }
                moves.extend(step);
                hopeless.fill(false);
            }
            None => hopeless[from] = true,
        }
    }
    for one in &moves {
        at[one.vm] = one.to;
    }
    moves
}

/// What a host is asked for.
#[derive(Clone, Debug)]
struct Load {
    cpu: Line,
    memory: Line,
    excess: f64,
    vms: Vec<usize>,
}

/// One resource of a host: what is asked for, above what excess begins, and what it weighs.
#[derive(Clone, Debug)]
struct Line {
    asked: Vec<f64>,
    most: f64,
    capacity: f64,
    limit: f64,
    weight: f64,
}

impl Line {
    fn new(scenarios: usize, capacity: f64, aim: &Aim, weight: f64) -> Self {
        let scale = capacity.max(1.0) * length(scenarios.max(1));
        Self {
            asked: vec![0.0; scenarios],
            most: 0.0,
            capacity,
            limit: capacity * aim.fill,
            weight: weight / scale,
        }
    }

    fn change(&mut self, by: impl Iterator<Item = f64>) {
        for (asked, by) in self.asked.iter_mut().zip(by) {
            *asked += by;
        }
        self.most = most(&self.asked);
    }

    /// The excess without what leaves and with what comes.
    fn excess(&self, leaves: Option<&[f64]>, comes: Option<(&[f64], f64)>) -> f64 {
        let coming = comes.map_or(0.0, |(_, most)| most);
        if self.most + coming <= self.limit {
            return 0.0;
        }
        let over = |asked: f64| if asked > self.limit { asked - self.limit } else { 0.0 };
        let asked = self.asked.iter();
        let sum: f64 = match (leaves, comes) {
            (None, None) => asked.map(|asked| over(*asked)).sum(),
            (Some(leaves), None) => asked.zip(leaves).map(|(a, l)| over(a - l)).sum(),
            (None, Some((comes, _))) => asked.zip(comes).map(|(a, c)| over(a + c)).sum(),
            (Some(leaves), Some((comes, _))) => {
                asked.zip(leaves).zip(comes).map(|((a, l), c)| over(a - l + c)).sum()
            }
        };
        sum * self.weight
    }

    /// Whether what comes fits in all scenarios, once this has left.
    fn fits(&self, leaves: Option<&[f64]>, comes: &[f64], most: f64) -> bool {
        if self.most + most <= self.capacity {
            return true;
        }
        let asked = self.asked.iter().zip(comes);
        match leaves {
            None => asked.into_iter().all(|(a, c)| a + c <= self.capacity),
            Some(leaves) => asked.zip(leaves).all(|((a, c), l)| a + c - l <= self.capacity),
        }
    }
}

/// The state of a search.
struct Books<'a> {
    loads: Vec<Load>,
    vms: &'a [Outlook],
    /// The most that each VM asks for of CPU and of memory.
    most: Vec<[f64; 2]>,
    least_gain: f64,
}

impl<'a> Books<'a> {
    fn new(hosts: &[Amount], vms: &'a [Outlook], at: &[usize], aim: &Aim) -> Self {
        let scenarios = vms.first().map_or(0, |outlook| outlook.cpu.len());
        let loads = hosts.iter().map(|capacity| Load {
            cpu: Line::new(scenarios, millicores(*capacity), aim, 1.0),
            memory: Line::new(scenarios, mib(capacity.memory), aim, aim.memory_weight),
            excess: 0.0,
            vms: Vec::new(),
        });
        let mut books = Self {
            loads: loads.collect(),
            vms,
            most: vms.iter().map(|vm| [most(&vm.cpu), most(&vm.memory)]).collect(),
            least_gain: aim.least_gain,
        };
        for (vm, host) in at.iter().enumerate().take(vms.len()) {
            if let Some(load) = books.loads.get_mut(*host) {
                load.vms.push(vm);
                add(&mut load.cpu.asked, &vms[vm].cpu);
                add(&mut load.memory.asked, &vms[vm].memory);
            }
        }
        for load in &mut books.loads {
            load.cpu.change(std::iter::empty());
            load.memory.change(std::iter::empty());
            load.weigh();
        }
        books
    }

    /// The host with the largest excess of those for which there is hope.
    fn worst(&self, hopeless: &[bool]) -> Option<usize> {
        let mut worst: Option<usize> = None;
        for (host, load) in self.loads.iter().enumerate() {
            let hope = load.excess > self.least_gain && !hopeless[host];
            if hope && worst.is_none_or(|known| load.excess > self.loads[known].excess) {
                worst = Some(host);
            }
        }
        worst
    }

    /// Whether moving this VM would be felt on a host.
    fn felt(&self, vm: usize, host: &Load) -> bool {
        let [cpu, memory] = self.most[vm];
        cpu > FELT * host.cpu.capacity || memory > FELT * host.memory.capacity
    }

    /// The excess of a host without one VM and with another.
    fn excess(&self, host: usize, leaves: Option<usize>, comes: Option<usize>) -> f64 {
        let load = &self.loads[host];
        let cpu = load.cpu.excess(
            leaves.map(|vm| &self.vms[vm].cpu[..]),
            comes.map(|vm| (&self.vms[vm].cpu[..], self.most[vm][0])),
        );
        let memory = load.memory.excess(
            leaves.map(|vm| &self.vms[vm].memory[..]),
            comes.map(|vm| (&self.vms[vm].memory[..], self.most[vm][1])),
        );
        cpu + memory
    }

    fn memory_fits(&self, host: usize, leaves: Option<usize>, comes: usize) -> bool {
        let leaves = leaves.map(|vm| &self.vms[vm].memory[..]);
        let Outlook { memory, .. } = &self.vms[comes];
        self.loads[host].memory.fits(leaves, memory, self.most[comes][1])
    }

    /// The VM and the host to which it goes that gain most; of equal ones that to the host that is
    /// asked for least.
    fn best_move(&self, from: usize) -> Option<(usize, usize)> {
        let load = &self.loads[from];
        let mut best: Option<(f64, f64, usize, usize)> = None;
        for vm in load.vms.iter().copied().filter(|vm| self.felt(*vm, load)) {
            let freed = load.excess - self.excess(from, Some(vm), None);
            // What the target loses can only make it worse.
            if freed <= self.least_gain || best.is_some_and(|(gain, ..)| freed < gain) {
                continue;
            }
            for (to, target) in self.loads.iter().enumerate().filter(|(to, _)| *to != from) {
                let gain = freed - (self.excess(to, None, Some(vm)) - target.excess);
                let asked = target.cpu.most / target.cpu.capacity.max(1.0);
                let better = gain > self.least_gain
                    && best.is_none_or(|(known, least, ..)| {
                        gain > known || (gain == known && asked < least)
                    });
                if better && self.memory_fits(to, None, vm) {
                    best = Some((gain, asked, vm, to));
                }
            }
        }
        best.map(|(_, _, vm, to)| (vm, to))
    }

    /// The two VMs that gain most when they change places, in the order in which they can move.
    fn best_swap(&self, from: usize) -> Option<Vec<Move>> {
        let mut best: Option<(f64, Vec<Move>)> = None;
        let leaving = self.largest(from);
        for to in (0..self.loads.len()).filter(|to| *to != from) {
            let before = self.loads[from].excess + self.loads[to].excess;
            let coming = self.largest(to);
            for (vm, other) in
                leaving.iter().flat_map(|vm| coming.iter().map(move |other| (*vm, *other)))
            {
                let here = self.excess(from, Some(vm), Some(other));
                let least = best.as_ref().map_or(2.0 * self.least_gain, |(gain, _)| *gain);
                if before - here <= least {
                    continue;
                }
                let gain = before - here - self.excess(to, Some(other), Some(vm));
                if gain <= least
                    || !self.memory_fits(to, Some(other), vm)
                    || !self.memory_fits(from, Some(vm), other)
                {
                    continue;
                }
                let away = Move { vm, from, to };
                let back = Move { vm: other, from: to, to: from };
                if self.memory_fits(to, None, vm) {
                    best = Some((gain, vec![away, back]));
                } else if self.memory_fits(from, None, other) {
                    best = Some((gain, vec![back, away]));
                }
            }
        }
        best.map(|(_, moves)| moves)
    }

    /// The VMs of a host that ask for most, as far as moving them would be felt.
    fn largest(&self, host: usize) -> Vec<usize> {
        let load = &self.loads[host];
        let mut vms: Vec<_> = load.vms.iter().copied().filter(|vm| self.felt(*vm, load)).collect();
        let size = |vm: &usize| {
            let [cpu, memory] = self.most[*vm];
            cpu / load.cpu.capacity.max(1.0) + memory / load.memory.capacity.max(1.0)
        };
        vms.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
        vms.truncate(CANDIDATES);
        vms
    }

    fn apply(&mut self, step: Move) {
        let Outlook { cpu, memory } = &self.vms[step.vm];
        let from = &mut self.loads[step.from];
        from.vms.retain(|vm| *vm != step.vm);
        from.cpu.change(cpu.iter().map(|asked| -asked));
        from.memory.change(memory.iter().map(|asked| -asked));
        from.weigh();
        let to = &mut self.loads[step.to];
        to.vms.push(step.vm);
        to.cpu.change(cpu.iter().copied());
        to.memory.change(memory.iter().copied());
        to.weigh();
    }
}

impl Load {
    fn weigh(&mut self) {
        self.excess = self.cpu.excess(None, None) + self.memory.excess(None, None);
    }
}

fn add(sums: &mut [f64], amounts: &[f64]) {
    for (sum, amount) in sums.iter_mut().zip(amounts) {
        *sum += amount;
    }
}

fn most(amounts: &[f64]) -> f64 {
    amounts.iter().copied().fold(0.0, f64::max)
}

#[expect(clippy::cast_precision_loss, reason = "numbers of scenarios are small")]
const fn length(scenarios: usize) -> f64 {
    scenarios as f64
}
