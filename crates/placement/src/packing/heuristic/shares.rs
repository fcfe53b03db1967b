//! Sizes as shares of the capacity.

use super::{Order, Weights};
use crate::packing::instance::Instance;

/// The shares of each kind of item, and their mean over all items.
pub(super) struct Shares {
    dimensions: usize,
    of_kinds: Vec<f64>,
    /// The sum over all items, in each dimension.
    totals: Vec<f64>,
    items: f64,
}

impl Shares {
    pub(super) fn new(instance: &Instance) -> Self {
        let dimensions = instance.capacity().len();
        let mut of_kinds = Vec::with_capacity(instance.kinds().len() * dimensions);
        let mut totals = vec![0.0; dimensions];
        for kind in instance.kinds() {
            for (total, (&size, &capacity)) in
                totals.iter_mut().zip(kind.sizes.iter().zip(instance.capacity()))
            {
                let share = share(size, capacity);
                of_kinds.push(share);
                *total += share * kind.count as f64;
            }
        }
        Self { dimensions, of_kinds, totals, items: instance.len() as f64 }
    }

    pub(super) fn of(&self, kind: usize) -> &[f64] {
        &self.of_kinds[kind * self.dimensions..][..self.dimensions]
    }

    /// The weight of each dimension.
    pub(super) fn weights(&self, weights: Weights) -> Vec<f64> {
        let mean = |total: &f64| if self.items > 0.0 { total / self.items } else { 0.0 };
        let means = self.totals.iter().map(mean);
        match weights {
            Weights::Unit => vec![1.0; self.dimensions],
            Weights::Average | Weights::Remaining => means.collect(),
            Weights::Exponential => means.map(exponential).collect(),
            Weights::Reciprocal => {
                means.map(|mean| if mean > 0.0 { 1.0 / mean } else { 0.0 }).collect()
            }
        }
    }

    /// States that an item of this kind is in a bin, for [`Weights::Remaining`].
    pub(super) fn forget(totals: &mut [f64], shares: &[f64]) {
        for (total, share) in totals.iter_mut().zip(shares) {
            *total = (*total - share).max(0.0);
        }
    }

    /// What all items ask for in each dimension.
    pub(super) fn totals(&self) -> &[f64] {
        &self.totals
    }

    /// The kinds in this order; equal ones stay as they were given.
    pub(super) fn sorted(&self, order: Order) -> Vec<usize> {
        let kinds = 0..self.of_kinds.len() / self.dimensions;
        let sum = |kind: usize| self.of(kind).iter().sum::<f64>();
        let keys: Vec<(f64, f64)> = match order {
            Order::Given => return kinds.collect(),
            Order::Sum(weights) => {
                let weights = self.weights(weights);
                let weighted = |kind| weights.iter().zip(self.of(kind)).map(|(w, r)| w * r).sum();
                kinds.clone().map(|kind| (weighted(kind), sum(kind))).collect()
            }
            Order::Product => {
                kinds.clone().map(|kind| (self.of(kind).iter().product(), sum(kind))).collect()
            }
            Order::Largest => kinds
                .clone()
                .map(|kind| (self.of(kind).iter().copied().fold(0.0, f64::max), sum(kind)))
                .collect(),
        };
        let mut sorted: Vec<usize> = kinds.collect();
        sorted.sort_by(|&a, &b| {
            let (a, b) = (keys[a], keys[b]);
            b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1))
        });
        sorted
    }
}

/// A size as a share; a dimension of no capacity has no items either.
pub(super) fn share(size: u64, capacity: u64) -> f64 {
    if capacity == 0 { 0.0 } else { size as f64 / capacity as f64 }
}

/// *e* to the power of a share. The libraries' own differ in the last bit from one machine to the
/// next; 20 terms of the series are exact enough for 0 to 1.
fn exponential(x: f64) -> f64 {
    (1..=20).rev().fold(1.0, |sum, n| 1.0 + x / f64::from(n) * sum)
}
