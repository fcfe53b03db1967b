//! Who is where while a plan is made, and what is expected of hosts.

use plimsoll_model::{Bytes, MilliCores};

use super::{
    Aim, Constraints, Host, Move, Reason, Vm,
    forecast::{Forecast, float},
};

/// The state of a plan in the making.
pub(super) struct Books<'a> {
    pub(super) hosts: &'a [Host],
    pub(super) vms: &'a [Vm<'a>],
    pub(super) aim: &'a Aim,
    forecasts: Vec<Forecast>,
    at: Vec<usize>,
    loads: Vec<Load>,
    pub(super) moves: Vec<Move>,
}

/// What is on a host.
#[derive(Clone, Debug, Default)]
struct Load {
    vms: Vec<usize>,
    mean: f64,
    variance: f64,
    /// Of all that are here or were when the plan began: memory of who leaves is not to be had yet.
    memory: Bytes,
    gives: bool,
    takes: bool,
}

/// Moves that may be taken back.
pub(super) struct Mark {
    moves: usize,
}

impl<'a> Books<'a> {
    pub(super) fn new(hosts: &'a [Host], vms: &'a [Vm<'a>], aim: &'a Aim) -> Self {
        let forecasts: Vec<_> =
            vms.iter().map(|vm| Forecast::of(vm.recent, vm.cpu, &aim.sight)).collect();
        let mut books = Self {
            hosts,
            vms,
            aim,
            at: vms.iter().map(|vm| vm.host).collect(),
            loads: vec![Load::default(); hosts.len()],
            forecasts,
            moves: Vec::new(),
        };
        for (number, vm) in vms.iter().enumerate() {
            if let Some(load) = books.loads.get_mut(vm.host) {
                load.vms.push(number);
                load.memory = Bytes(load.memory.0.saturating_add(vm.memory.0));
            }
        }
        for host in 0..hosts.len() {
            books.add_up(host);
        }
        books
    }

    /// Sums anew, so that nothing is left of what was added and taken away.
    fn add_up(&mut self, host: usize) {
        let load = &mut self.loads[host];
        let most = float(self.hosts[host].cpu_of_one);
        load.mean = load.vms.iter().map(|vm| self.forecasts[*vm].mean.min(most)).sum();
        load.variance = load.vms.iter().map(|vm| self.forecasts[*vm].variance).sum();
    }

    /// Whether it has VMs.
    pub(super) fn is_used(&self, host: usize) -> bool {
        !self.loads[host].vms.is_empty()
    }

    pub(super) fn vms_of(&self, host: usize) -> &[usize] {
        &self.loads[host].vms
    }

    pub(super) fn mean_of(&self, vm: usize) -> f64 {
        self.forecasts[vm].mean
    }

    pub(super) fn mean_on(&self, host: usize) -> f64 {
        self.loads[host].mean
    }

    pub(super) fn may_give(&self, host: usize) -> bool {
        !self.loads[host].takes
    }

    pub(super) fn has_taken_or_given(&self, host: usize) -> bool {
        self.loads[host].takes || self.loads[host].gives
    }

    /// Whether the VM moved so recently that it should stay.
    pub(super) fn is_cooling(&self, vm: usize) -> bool {
        self.vms[vm].moved_ago.is_some_and(|rounds| rounds < self.aim.cooldown)
    }

    /// What the host's VMs will ask for, with so many deviations.
    pub(super) fn level(&self, host: usize, deviations: f64) -> f64 {
        let load = &self.loads[host];
        load.mean + deviations * load.variance.sqrt()
    }

    /// By how much the host is above what it has; 0 or less if it is not.
    pub(super) fn excess(&self, host: usize) -> f64 {
        self.level(host, self.aim.deviations_at_least) - float(self.hosts[host].cpu)
    }

    /// [`excess`](Self::excess) if the VM were not there.
    pub(super) fn excess_without(&self, host: usize, vm: usize) -> f64 {
        let load = &self.loads[host];
        let one = self.forecasts[vm];
        let variance = (load.variance - one.variance).max(0.0);
        load.mean - one.mean.min(float(self.hosts[host].cpu_of_one))
            + self.aim.deviations_at_least * variance.sqrt()
            - float(self.hosts[host].cpu)
    }

    /// The share of the host's CPU that is left when the VM has come; none if it does not fit.
    pub(super) fn slack(&self, host: usize, vm: usize) -> Option<f64> {
        let (load, of, one) = (&self.loads[host], &self.hosts[host], self.forecasts[vm]);
        let memory = load.memory.0.checked_add(self.vms[vm].memory.0)?;
        if load.gives || memory > of.memory.0 || one.mean > float(of.cpu_of_one) {
            return None;
        }
        let mean = load.mean + one.mean;
        let level = mean + self.aim.deviations_wanted * (load.variance + one.variance).sqrt();
        let capacity = float(of.cpu);
        (level <= capacity && mean <= self.aim.fill * capacity)
            .then(|| (capacity - level) / capacity)
    }

    /// The power of the host with what is expected of it, in W; nothing when it sleeps.
    pub(super) fn watts_of(&self, host: usize) -> f64 {
        if !self.is_used(host) {
            return 0.0;
        }
        self.hosts[host].power.watts(self.loads[host].mean / float(self.hosts[host].cpu).max(1.0))
    }

    /// The power of all.
    pub(super) fn watts(&self) -> f64 {
        (0..self.hosts.len()).map(|host| self.watts_of(host)).sum()
    }

    pub(super) fn has_moves_left(&self) -> bool {
        self.moves.len() < self.aim.most_moves
    }

    /// Moves a VM.
    pub(super) fn apply(
        &mut self,
        vm: usize,
        to: usize,
        reason: Reason,
        constraints: &mut dyn Constraints,
    ) {
        let from = self.at[vm];
        self.moves.push(Move { vm, from, to, reason });
        self.shift(vm, to);
        self.loads[from].gives = true;
        let load = &mut self.loads[to];
        load.takes = true;
        load.memory = Bytes(load.memory.0 + self.vms[vm].memory.0);
        constraints.moved(vm, to);
    }

    fn shift(&mut self, vm: usize, to: usize) {
        let from = self.at[vm];
        self.loads[from].vms.retain(|one| *one != vm);
        self.loads[to].vms.push(vm);
        self.at[vm] = to;
        self.add_up(from);
        self.add_up(to);
    }

    pub(super) const fn mark(&self) -> Mark {
        Mark { moves: self.moves.len() }
    }

    /// Takes back all moves since the mark.
    pub(super) fn take_back(&mut self, mark: &Mark, constraints: &mut dyn Constraints) {
        while self.moves.len() > mark.moves {
            let Some(last) = self.moves.pop() else { return };
            self.shift(last.vm, last.from);
            let load = &mut self.loads[last.to];
            load.memory = Bytes(load.memory.0 - self.vms[last.vm].memory.0);
            load.takes = self.moves.iter().any(|one| one.to == last.to);
            self.loads[last.from].gives = self.moves.iter().any(|one| one.from == last.from);
            constraints.moved(last.vm, last.from);
        }
    }

    /// Writes the reason of all moves since the mark anew.
    pub(super) fn explain(&mut self, mark: &Mark, reason: Reason) {
        for one in &mut self.moves[mark.moves..] {
            one.reason = reason;
        }
    }

    /// The used host on which the VM leaves the least free, of those that `wanted` says; the lowest
    /// number of those that are equal.
    pub(super) fn tightest(
        &self,
        vm: usize,
        constraints: &dyn Constraints,
        wanted: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut best = None;
        for host in 0..self.hosts.len() {
            if host == self.at[vm] || !wanted(host) {
                continue;
            }
            let Some(slack) = self.slack(host, vm) else { continue };
            if best.is_none_or(|(least, _)| slack < least) && constraints.may_hold(vm, host) {
                best = Some((slack, host));
            }
        }
        best.map(|(_, host)| host)
    }

    /// The unused host that does most for its power, of those on which the VM fits.
    pub(super) fn most_efficient_unused(
        &self,
        vm: usize,
        constraints: &dyn Constraints,
    ) -> Option<usize> {
        let mut best = None;
        for (host, of) in self.hosts.iter().enumerate() {
            if self.is_used(host) || self.loads[host].gives || self.slack(host, vm).is_none() {
                continue;
            }
            let efficiency = float(of.cpu) / of.power.watts(self.aim.fill).max(1.0);
            if best.is_none_or(|(most, _)| efficiency > most) && constraints.may_hold(vm, host) {
                best = Some((efficiency, host));
            }
        }
        best.map(|(_, host)| host)
    }
}

/// A level as it is shown.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats saturate"
)]
pub(super) const fn cpu(level: f64) -> MilliCores {
    MilliCores(level.round() as u64)
}
