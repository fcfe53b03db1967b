//! The policies that `CloudSim` 3.0.3 is published with (Beloglazov and Buyya, CCPE 24(13), 2012,
//! sections 5.1 to 5.3), told as they are there, with their oddities: they are what is compared with.
//!
//! Overloaded hosts give away the VMs that move fastest (those with the least memory) until they are
//! no longer overloaded; these are placed by power-aware best fit decreasing. Then hosts are emptied
//! from the one that is used least on, if all its VMs find a place.

use super::{Experiment, Host, Policy, fleet::Fleet};

/// Samples that a VM's history has.
const HISTORY: usize = 30;

/// Samples that local regression looks at.
const REGRESSION: usize = 10;

/// Leading samples that statistics of a host need.
const LEAST_SAMPLES: usize = 12;

/// The threshold where a history is too short for another way.
const FALLBACK: f64 = 0.7;

/// One of the reference policies.
pub(super) struct Reference {
    policy: Policy,
}

/// Hosts as a plan in the making would have them.
struct Draft<'a> {
    policy: Policy,
    experiment: &'a Experiment,
    round: usize,
    loads: Vec<Load>,
}

/// A host in a draft.
#[derive(Clone, Debug)]
struct Load {
    /// What its VMs ask for, in MIPS.
    asked: f64,
    /// What they have been given.
    given: f64,
    /// What was used when the round began, in % of all: what the host's own power is reckoned from.
    share: f64,
    /// MIPS asked for by those that are on it, the newest first.
    history: [f64; HISTORY],
    vms: Vec<usize>,
}

impl Reference {
    pub(super) const fn new(policy: Policy) -> Self {
        Self { policy }
    }

    pub(super) fn decide(
        &self,
        experiment: &Experiment,
        round: usize,
        fleet: &Fleet,
    ) -> Vec<(usize, usize)> {
        let mut draft = Draft::new(self.policy, experiment, round, fleet);
        let hosts = experiment.hosts.len();
        let over: Vec<_> = (0..hosts).map(|host| draft.is_over(host, None)).collect();
        let off: Vec<_> = draft.loads.iter().map(|load| load.share <= 0.0).collect();
        let leaving = draft.leaving(&over);
        let mut moves = draft.place(leaving, &over, false).unwrap_or_default();
        // Hosts that are not emptied, and those that do not take VMs of an emptied one.
        let mut stays: Vec<_> = (0..hosts).map(|host| over[host] || off[host]).collect();
        let mut takes_none = stays.clone();
        while let Some(host) = draft.least_used(&stays) {
            stays[host] = true;
            takes_none[host] = true;
            let vms = draft.loads[host].vms.clone();
            if let Some(placed) = draft.place(vms, &takes_none, true) {
                placed.iter().for_each(|(_, to)| stays[*to] = true);
                moves.extend(placed);
            }
        }
        moves
    }
}

impl<'a> Draft<'a> {
    fn new(policy: Policy, experiment: &'a Experiment, round: usize, fleet: &Fleet) -> Self {
        let empty =
            Load { asked: 0.0, given: 0.0, share: 0.0, history: [0.0; HISTORY], vms: Vec::new() };
        let loads = vec![empty; experiment.hosts.len()];
        let mut draft = Self { policy, experiment, round, loads };
        for host in 0..experiment.hosts.len() {
            for vm in fleet.vms_of(host) {
                draft.put(*vm, host);
            }
            let mips = experiment.hosts[host].mips;
            let load = &mut draft.loads[host];
            load.given = load.given.min(mips);
            load.share = load.given / mips;
        }
        draft
    }

    fn asked(&self, vm: usize) -> f64 {
        self.experiment.vms[vm].asked[self.round]
    }

    fn of(&self, host: usize) -> &'a Host {
        &self.experiment.hosts[host]
    }

    fn put(&mut self, vm: usize, host: usize) {
        let asked = self.asked(vm);
        let core = self.of(host).core_mips;
        let load = &mut self.loads[host];
        load.asked += asked;
        load.given += asked.min(core);
        load.vms.push(vm);
        remember(&mut load.history, self.experiment, self.round, vm, 1.0);
    }

    fn take(&mut self, vm: usize, host: usize) {
        let asked = self.asked(vm);
        let load = &mut self.loads[host];
        load.asked -= asked;
        load.vms.retain(|one| *one != vm);
        remember(&mut load.history, self.experiment, self.round, vm, -1.0);
    }

    /// Whether the host is overloaded, with one VM more perhaps.
    fn is_over(&self, host: usize, more: Option<usize>) -> bool {
        let mips = self.of(host).mips;
        let load = &self.loads[host];
        let share = (load.asked + more.map_or(0.0, |vm| self.asked(vm))) / mips;
        if matches!(self.policy, Policy::ThresholdMmt) {
            return share > 0.8;
        }
        let mut history = load.history;
        if let Some(vm) = more {
            remember(&mut history, self.experiment, self.round, vm, 1.0);
        }
        history.iter_mut().for_each(|mips_then| *mips_then /= mips);
        // What is left of sums after taking away is no sample.
        let length = history.iter().rposition(|share| *share > 1e-9).map_or(0, |last| last + 1);
        let seen = &mut history[..length];
        match self.policy {
            Policy::LocalRegressionMmt if length >= REGRESSION => foretold(seen) * 1.2 >= 1.0,
            Policy::InterquartileMmt if length >= LEAST_SAMPLES => {
                share > 1.0 - 1.5 * interquartile_range(seen)
            }
            Policy::MedianDeviationMmt if length >= LEAST_SAMPLES => {
                share > 1.0 - 2.5 * median_deviation(seen)
            }
            _ => share > FALLBACK,
        }
    }

    /// Takes the VMs that move fastest from hosts until these are no longer overloaded.
    fn leaving(&mut self, over: &[bool]) -> Vec<usize> {
        let mut leaving = Vec::new();
        for host in (0..over.len()).filter(|host| over[*host]) {
            loop {
                let vms = self.loads[host].vms.iter().copied();
                let Some(vm) = vms.min_by_key(|vm| self.experiment.vms[*vm].memory_mb) else {
                    break;
                };
                self.take(vm, host);
                leaving.push(vm);
                if !self.is_over(host, None) {
                    break;
                }
            }
        }
        leaving
    }

    /// Places VMs, those that ask for most first. If all must be placed and one cannot be, none is.
    fn place(
        &mut self,
        mut vms: Vec<usize>,
        without: &[bool],
        all: bool,
    ) -> Option<Vec<(usize, usize)>> {
        vms.sort_by(|a, b| self.asked(*b).total_cmp(&self.asked(*a)));
        let mut placed: Vec<(usize, usize, f64)> = Vec::new();
        for vm in vms {
            match self.best_fit(vm, without) {
                Some(host) => {
                    placed.push((vm, host, self.loads[host].given));
                    self.put(vm, host);
                }
                None if all => {
                    for (vm, host, given) in placed.into_iter().rev() {
                        self.take(vm, host);
                        self.loads[host].given = given;
                    }
                    return None;
                }
                None => {}
            }
        }
        Some(placed.into_iter().map(|(vm, host, _)| (vm, host)).collect())
    }

    /// The host whose power would be least above what it was when the round began.
    fn best_fit(&self, vm: usize, without: &[bool]) -> Option<usize> {
        let asked = self.asked(vm);
        let mut best: Option<(f64, usize)> = None;
        for (host, load) in self.loads.iter().enumerate() {
            let of = self.of(host);
            let fits = !without[host] && asked <= of.core_mips && load.given + asked <= of.mips;
            if !fits || load.given > 0.0 && self.is_over(host, Some(vm)) {
                continue;
            }
            let watts = of.power.watts((load.given + asked) / of.mips) - of.power.watts(load.share);
            if best.is_none_or(|(least, _)| watts < least) {
                best = Some((watts, host));
            }
        }
        best.map(|(_, host)| host)
    }

    fn least_used(&self, stays: &[bool]) -> Option<usize> {
        let hosts = (0..stays.len()).filter(|host| !stays[*host] && self.loads[*host].share < 1.0);
        hosts.min_by(|a, b| self.loads[*a].share.total_cmp(&self.loads[*b].share))
    }
}

/// Adds the VM's samples to a history, the newest first, or takes them away.
fn remember(
    history: &mut [f64; HISTORY],
    experiment: &Experiment,
    round: usize,
    vm: usize,
    times: f64,
) {
    let samples = experiment.vms[vm].asked[..=round].iter().rev();
    for (sum, asked) in history.iter_mut().zip(samples) {
        *sum += asked * times;
    }
}

/// What the straight line of least squares through the newest samples (newest first) says of the
/// next but one round's end: CloudSim's weights of local regression are without effect.
fn foretold(newest_first: &[f64]) -> f64 {
    let count = f64::from(u32::try_from(REGRESSION).unwrap_or(0));
    let mean_x = (count + 1.0) / 2.0;
    let mean_y = newest_first[..REGRESSION].iter().sum::<f64>() / count;
    let (mut both, mut square, mut x) = (0.0, 0.0, 0.0);
    for y in newest_first[..REGRESSION].iter().rev() {
        x += 1.0;
        both += (x - mean_x) * (y - mean_y);
        square += (x - mean_x) * (x - mean_x);
    }
    mean_y + both / square * (count + 1.0 - mean_x)
}

fn interquartile_range(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    // 0.25 and 0.75 of n + 1, rounded half up, counted from 1.
    let first = samples.len().div_ceil(4) - 1;
    let third = (3 * (samples.len() + 1) + 2) / 4 - 1;
    samples[third] - samples[first]
}

fn median_deviation(samples: &mut [f64]) -> f64 {
    let middle = median(samples);
    samples.iter_mut().for_each(|sample| *sample = (*sample - middle).abs());
    median(samples)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let half = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[half] } else { (samples[half - 1] + samples[half]) / 2.0 }
}
