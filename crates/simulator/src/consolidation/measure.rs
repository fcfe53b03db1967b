//! What VMs get, what hosts take from the wall, and who was short.

use super::{Experiment, Host, fleet::Fleet};

/// The share of its CPU that a VM has at its old host while it moves.
const WHILE_LEAVING: f64 = 0.9;

/// The share that it takes at its new host meanwhile.
const WHILE_COMING: f64 = 0.1;

/// Less is not short: sums of floats are not exact. In MIPS.
const NOTHING: f64 = 1e-6;

/// Adds up what the outcome says; CPU in MIPS times seconds.
#[derive(Debug, Default)]
pub(super) struct Measures {
    pub(super) joules: f64,
    pub(super) migrations: u64,
    pub(super) moved_mb: f64,
    pub(super) active_s: f64,
    pub(super) short_s: f64,
    pub(super) asked: f64,
    pub(super) lost: f64,
    pub(super) lost_by_moves: f64,
    /// What VMs ask for at the instant that is looked at.
    now: Vec<f64>,
}

/// What a host's VMs have at an instant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    /// What the host works, by which its power is reckoned. What a VM loses by leaving is work too.
    pub(super) used: f64,
    /// Its VMs, without those that are coming: what they ask for,
    pub(super) asked: f64,
    /// what of it they do not get,
    pub(super) lost: f64,
    /// and what of that those do not get who are leaving.
    pub(super) lost_by_moves: f64,
    /// Whether anything is asked for that is not given, to those that are coming too.
    pub(super) short: bool,
}

impl Measures {
    pub(super) fn new(experiment: &Experiment) -> Self {
        Self { now: vec![0.0; experiment.vms.len()], ..Self::default() }
    }

    /// Moves begin.
    pub(super) fn begin(&mut self, moves: usize, memory_mb: impl Iterator<Item = u32>) {
        self.migrations += moves as u64;
        self.moved_mb += memory_mb.map(f64::from).sum::<f64>();
    }

    /// An interval of a round, in seconds from its begin, in which nobody sets out or arrives.
    pub(super) fn interval(
        &mut self,
        experiment: &Experiment,
        fleet: &Fleet,
        round: usize,
        from: f64,
        to: f64,
    ) {
        let seconds = to - from;
        self.look(experiment, round, from);
        let used = |host: &usize| !fleet.vms_of(*host).is_empty();
        let hosts: Vec<_> = (0..experiment.hosts.len()).filter(used).collect();
        let mut watts = 0.0;
        for host in &hosts {
            let of = &experiment.hosts[*host];
            let given = given(of, *host, fleet, &self.now);
            watts += of.power.watts(given.used / of.mips);
            self.active_s += seconds;
            self.short_s += if given.short { seconds } else { 0.0 };
            self.asked += given.asked * seconds;
            self.lost += given.lost * seconds;
            self.lost_by_moves += given.lost_by_moves * seconds;
        }
        self.look(experiment, round, to);
        for host in &hosts {
            let of = &experiment.hosts[*host];
            watts += of.power.watts(given(of, *host, fleet, &self.now).used / of.mips);
        }
        self.joules += watts / 2.0 * seconds;
    }

    fn look(&mut self, experiment: &Experiment, round: usize, seconds: f64) {
        for (now, vm) in self.now.iter_mut().zip(&experiment.vms) {
            *now = vm.asked_at(round, seconds);
        }
    }
}

/// Shares a host's CPU out: all have what they ask for, or all the same share of it. No VM has more
/// than a core; one that leaves has 90 % of its CPU, and one that comes takes 10 %.
pub(super) fn given(of: &Host, host: usize, fleet: &Fleet, asked: &[f64]) -> Given {
    let weight = |vm: usize| if fleet.is_coming(vm, host) { WHILE_COMING } else { 1.0 };
    let most = |vm: usize| asked[vm].min(of.core_mips);
    let vms = fleet.vms_of(host);
    let wanted: f64 = vms.iter().map(|vm| most(*vm) * weight(*vm)).sum();
    let scale = if wanted > of.mips { of.mips / wanted } else { 1.0 };
    let mut sum = Given::default();
    let mut lacks = 0.0;
    for vm in vms {
        let works = most(*vm) * weight(*vm) * scale;
        sum.used += works;
        lacks += asked[*vm] - works;
        if fleet.is_coming(*vm, host) {
            continue;
        }
        let leaving = fleet.is_leaving(*vm, host);
        let lost = asked[*vm] - if leaving { works * WHILE_LEAVING } else { works };
        sum.asked += asked[*vm];
        sum.lost += lost;
        sum.lost_by_moves += if leaving { lost } else { 0.0 };
    }
    sum.short = lacks > NOTHING;
    sum
}
