//! Arrivals drawn from distributions.
//!
//! Each workload has two random streams of the generator ChaCha8, one for when batches arrive and
//! one for what they are, so that nothing that is changed in one place shifts what is drawn in
//! another.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    f64::consts::TAU,
};

use plimsoll_model::{Constraint, Name, Resources, Rule, VmId};
use plimsoll_placement::Request;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp1, LogNormal, weighted::WeightedIndex};
use uuid::Uuid;

use super::{
    Arrivals, Lifetime, Scenario, Workload,
    file::GroupPer,
    values::{Amount, Rate, Spread},
};
use crate::engine::{Arrival, Newcomer, SimTime};

/// A number of milliseconds from a float: floats saturate, and what is not a number is 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats saturate, which is what is wanted"
)]
pub(super) const fn whole(value: f64) -> u64 {
    value as u64
}

#[expect(clippy::cast_precision_loss, reason = "drawn values need no more than 53 bits")]
pub(super) const fn float(value: u64) -> f64 {
    value as f64
}

impl Amount<u64> {
    fn draw(&self, rng: &mut ChaCha8Rng) -> u64 {
        match *self {
            Self::Fixed(value) => value,
            Self::Range { from, to, step, spread } => {
                let step = step.unwrap_or(1).max(1);
                let steps = (to - from) / step;
                match spread {
                    Spread::Uniform => from + rng.random_range(0..=steps) * step,
                    Spread::LogUniform => {
                        let (low, high) = (float(from).ln(), float(to).ln());
                        let drawn = whole((low + (high - low) * rng.random::<f64>()).exp().round());
                        let steps = (drawn.clamp(from, to) - from) / step;
                        from + steps * step
                    }
                }
            }
        }
    }

    /// About the mean: that of a uniform range.
    fn mean(&self) -> f64 {
        let (from, to) = self.ends();
        f64::midpoint(float(from), float(to))
    }
}

impl Lifetime {
    /// In milliseconds, at least one; none when it never ends.
    fn draw(&self, rng: &mut ChaCha8Rng) -> Option<u64> {
        let drawn = match self {
            Self::Forever => return None,
            Self::Fixed(period) => period.0,
            Self::Exponential(mean) => {
                let unit: f64 = Exp1.sample(rng);
                whole(unit * float(mean.0))
            }
            Self::Lognormal { median, sigma } => {
                let distribution = LogNormal::new(float(median.0).ln(), *sigma)
                    .expect("the median is above zero and sigma is checked");
                whole(distribution.sample(rng))
            }
            Self::Uniform { from, to } => rng.random_range(from.0..=to.0),
        };
        Some(drawn.max(1))
    }
}

impl Workload {
    /// About how many VMs arrive.
    pub(super) fn expected_vms(&self) -> f64 {
        let span = float(self.end.0.saturating_sub(self.start.0));
        let batches = match &self.arrivals {
            Arrivals::Poisson(rate) | Arrivals::Constant(rate) | Arrivals::Diurnal { rate, .. } => {
                rate.per_ms() * span
            }
            Arrivals::Bursts { rate, size, .. } => rate.per_ms() * span * size.mean(),
            Arrivals::Once(count) => float(*count),
        };
        batches * self.batch.mean()
    }
}

/// When the batches of one workload arrive.
struct Clock<'a> {
    workload: &'a Workload,
    rng: ChaCha8Rng,
    /// The last instant that was drawn, in milliseconds.
    now: f64,
    /// How many were drawn.
    count: u64,
    /// Batches of bursts that have begun.
    pending: BinaryHeap<Reverse<u64>>,
    /// When the next burst begins.
    burst: f64,
}

impl<'a> Clock<'a> {
    fn new(workload: &'a Workload, rng: ChaCha8Rng) -> Self {
        let now = float(workload.start.0);
        let mut clock =
            Self { workload, rng, now, count: 0, pending: BinaryHeap::new(), burst: now };
        if let Arrivals::Bursts { rate, .. } = &workload.arrivals {
            clock.burst += clock.gap(rate.per_ms());
        }
        clock
    }

    fn gap(&mut self, per_ms: f64) -> f64 {
        let unit: f64 = Exp1.sample(&mut self.rng);
        unit / per_ms
    }

    /// The next instant; none when the workload has ended.
    fn next(&mut self) -> Option<u64> {
        let workload = self.workload;
        let at = match &workload.arrivals {
            Arrivals::Poisson(rate) => {
                self.now += self.gap(rate.per_ms());
                whole(self.now)
            }
            Arrivals::Constant(rate) => {
                whole(float(workload.start.0) + float(self.count) / rate.per_ms())
            }
            Arrivals::Diurnal { rate, swing, peak, period } => {
                self.diurnal(*rate, *swing, (float(peak.0), float(period.0)))?
            }
            Arrivals::Bursts { rate, size, over } => self.bursts(rate.per_ms(), size, over.0)?,
            Arrivals::Once(count) if self.count < *count => workload.start.0,
            Arrivals::Once(_) => return None,
        };
        self.count += 1;
        (at < workload.end.0).then_some(at)
    }

    /// Draws at the highest rate and drops so many that the rate is right (Lewis and Shedler,
    /// *Simulation of nonhomogeneous Poisson processes by thinning*, 1979).
    fn diurnal(&mut self, rate: Rate, swing: f64, (peak, period): (f64, f64)) -> Option<u64> {
        let highest = 1.0 + swing;
        while self.now < float(self.workload.end.0) {
            self.now += self.gap(rate.per_ms() * highest);
            let wanted = 1.0 + swing * (TAU * (self.now - peak) / period).cos();
            if self.rng.random::<f64>() * highest < wanted {
                return Some(whole(self.now));
            }
        }
        None
    }

    fn bursts(&mut self, per_ms: f64, size: &Amount<u64>, over: u64) -> Option<u64> {
        let end = float(self.workload.end.0);
        // A burst that begins before the next batch may have earlier ones.
        while self.burst < end
            && self.pending.peek().is_none_or(|Reverse(next)| self.burst <= float(*next))
        {
            let begin = whole(self.burst);
            for _ in 0..size.draw(&mut self.rng) {
                let at = begin.saturating_add(self.rng.random_range(0..=over));
                self.pending.push(Reverse(at));
            }
            self.burst += self.gap(per_ms);
        }
        self.pending.pop().map(|Reverse(at)| at)
    }
}

/// One workload as it is drawn.
struct Stream<'a> {
    workload: &'a Workload,
    /// Its place among the workloads.
    number: u64,
    clock: Clock<'a>,
    rng: ChaCha8Rng,
    weights: WeightedIndex<f64>,
    batches: u64,
    vms: u64,
}

impl<'a> Stream<'a> {
    fn new(workload: &'a Workload, number: usize, seed: u64) -> Self {
        let number = number as u64;
        let rng = |stream: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream);
            rng
        };
        Self {
            workload,
            number,
            clock: Clock::new(workload, rng(2 * number)),
            rng: rng(2 * number + 1),
            weights: WeightedIndex::new(workload.flavors.iter().map(|flavor| flavor.weight))
                .expect("weights are finite and one is above zero: checked"),
            batches: 0,
            vms: 0,
        }
    }

    /// The batch that arrives then. Its VMs are equal; those that stand or fall together also leave
    /// together.
    fn batch(&mut self, at: u64) -> Arrival {
        let workload = self.workload;
        self.batches += 1;
        let flavor = &workload.flavors[self.weights.sample(&mut self.rng)];
        let scalars = flavor.elements.map(|element| element.draw(&mut self.rng));
        let demand = Resources {
            accelerators: flavor.accelerators.clone(),
            ..Resources::from_scalars(scalars)
        };
        let (groups, constraints) = self.groups();
        let together = workload.all_or_nothing.then(|| workload.lifetime.draw(&mut self.rng));
        let count = workload.batch.draw(&mut self.rng);
        let vms = (0..count).map(|_| {
            self.vms += 1;
            let id = u128::from(self.number + 1) << 64 | u128::from(self.vms);
            let mut request =
                Request::new(VmId(Uuid::from_u128(id)), workload.project, demand.clone());
            request.application = Some(workload.application.clone());
            request.groups.clone_from(&groups);
            request.constraints.clone_from(&constraints);
            let lifetime_ms = together.unwrap_or_else(|| workload.lifetime.draw(&mut self.rng));
            Newcomer { request, lifetime_ms }
        });
        let vms = vms.collect();
        Arrival { at: SimTime(at), vms, all_or_nothing: workload.all_or_nothing }
    }

    /// The batch's groups, and the constraints that speak of them.
    fn groups(&self) -> (BTreeSet<Name>, Vec<Constraint>) {
        let workload = self.workload;
        if workload.group_per == GroupPer::Workload {
            return (workload.groups.clone(), workload.constraints.clone());
        }
        let numbered = |group: &Name| -> Name {
            format!("{group}-{}", self.batches)
                .parse()
                .expect("a checked name with a number is a name")
        };
        let own = |group: &mut Name| {
            if workload.groups.contains(group) {
                *group = numbered(group);
            }
        };
        let mut constraints = workload.constraints.clone();
        for constraint in &mut constraints {
            match &mut constraint.rule {
                Rule::Affinity { group, .. } | Rule::AntiAffinity { group, .. } => own(group),
                Rule::Exclusive { .. } | Rule::HostLabel { .. } => {}
            }
        }
        (workload.groups.iter().map(numbered).collect(), constraints)
    }
}

/// All arrivals of a scenario, in the order of their times; of the same time in the order of the
/// workloads.
pub struct Workloads<'a> {
    streams: Vec<Stream<'a>>,
    next: BinaryHeap<Reverse<(u64, usize)>>,
}

impl std::fmt::Debug for Workloads<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workloads").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<'a> Workloads<'a> {
    pub(super) fn new(scenario: &'a Scenario) -> Self {
        let mut streams: Vec<_> = scenario
            .workloads
            .iter()
            .enumerate()
            .map(|(number, workload)| Stream::new(workload, number, scenario.seed))
            .collect();
        let next = streams
            .iter_mut()
            .enumerate()
            .filter_map(|(number, stream)| Some(Reverse((stream.clock.next()?, number))))
            .collect();
        Self { streams, next }
    }
}

impl Iterator for Workloads<'_> {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let Reverse((at, number)) = self.next.pop()?;
        let stream = &mut self.streams[number];
        let arrival = stream.batch(at);
        if let Some(at) = stream.clock.next() {
            self.next.push(Reverse((at, number)));
        }
        Some(arrival)
    }
}
