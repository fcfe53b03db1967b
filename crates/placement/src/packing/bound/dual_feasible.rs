//! Bounds from one dimension at a time.
//!
//! A dual feasible function maps sizes so that whatever fitted into a bin still fits. So a bound
//! for the mapped sizes is a bound for the true ones, and it is often larger, as the functions
//! count the room that large items make useless.

use std::collections::BTreeMap;

use crate::packing::instance::Instance;

/// How many thresholds are tried in one dimension. More thresholds only help if they are sizes.
const THRESHOLDS: usize = 100;

/// How many different sizes are kept apart; above, sizes are rounded down to fewer.
const SIZES: usize = 4096;

/// The largest parameter of the rounding function.
const PARTS: u128 = 12;

/// Items of one dimension: how many there are of each size, and the capacity.
struct Dimension {
    capacity: u128,
    sizes: Vec<(u128, u128)>,
}

pub(super) fn bound(instance: &Instance) -> u128 {
    let capacity = instance.capacity();
    let plain = (0..capacity.len()).map(|dimension| {
        Dimension::new(u128::from(capacity[dimension]), instance, |sizes| {
            u128::from(sizes[dimension])
        })
    });
    // Whole weights that make all capacities nearly the same; any weights are right.
    let largest = u128::from(capacity.iter().copied().max().unwrap_or(0));
    let weights: Vec<u128> = capacity
        .iter()
        .map(|&capacity| if capacity == 0 { 0 } else { (largest << 16) / u128::from(capacity) })
        .collect();
    let weighted = |sizes: &[u64]| -> u128 {
        sizes.iter().zip(&weights).map(|(&size, weight)| u128::from(size) * weight).sum()
    };
    let surrogate = Dimension::new(weighted(capacity), instance, weighted);
    plain.chain([surrogate]).map(|dimension| dimension.bound()).max().unwrap_or(0)
}

impl Dimension {
    fn new(capacity: u128, instance: &Instance, size: impl Fn(&[u64]) -> u128) -> Self {
        let mut counts = BTreeMap::new();
        for kind in instance.kinds() {
            *counts.entry(size(&kind.sizes)).or_insert(0) += u128::from(kind.count);
        }
        counts.remove(&0);
        let mut sizes: Vec<(u128, u128)> = counts.into_iter().collect();
        if sizes.len() > SIZES {
            let step = sizes.len().div_ceil(SIZES);
            sizes = sizes
                .chunks(step)
                .map(|chunk| (chunk[0].0, chunk.iter().map(|(_, count)| count).sum()))
                .collect();
        }
        Self { capacity, sizes }
    }

    fn bound(&self) -> u128 {
        let capacity = self.capacity;
        if capacity == 0 {
            return 0;
        }
        let mut best = self.bins(capacity, |size| size);
        let below_half: Vec<u128> = self
            .sizes
            .iter()
            .map(|(size, _)| *size)
            .take_while(|size| 2 * size <= capacity)
            .collect();
        let step = below_half.len().div_ceil(THRESHOLDS).max(1);
        // The threshold 1 leaves all sizes as they are.
        for threshold in below_half.into_iter().step_by(step).chain([1]) {
            let extremes = |size| extremes(size, threshold, capacity);
            best = best.max(self.bins(capacity, extremes));
            for parts in 1..=PARTS {
                let rounded = |size| round(extremes(size), parts, capacity);
                best = best.max(self.bins(capacity * parts, rounded));
            }
            let parts = capacity / threshold;
            best = best.max(self.bins(parts, |size| complements(size, threshold, capacity)));
        }
        best
    }

    /// The bins that hold the mapped sizes if they could be cut; 0 for a bin of no capacity.
    fn bins(&self, capacity: u128, map: impl Fn(u128) -> u128) -> u128 {
        let total: u128 = self.sizes.iter().map(|&(size, count)| map(size) * count).sum();
        if capacity == 0 { 0 } else { total.div_ceil(capacity) }
    }
}

/// U: what leaves no room for the threshold counts as a whole bin, what is below it as nothing.
fn extremes(size: u128, threshold: u128, capacity: u128) -> u128 {
    if size < threshold {
        0
    } else if size > capacity - threshold.min(capacity) {
        capacity
    } else {
        size
    }
}

/// u: sizes become multiples of 1 / `parts` of the capacity, which is `parts` times as large.
fn round(size: u128, parts: u128, capacity: u128) -> u128 {
    let scaled = size * (parts + 1);
    if scaled.is_multiple_of(capacity) { size * parts } else { scaled / capacity * capacity }
}

/// phi: a bin has room for `capacity / threshold` of the threshold; what is above one half takes
/// all but those that still fit beside it.
fn complements(size: u128, threshold: u128, capacity: u128) -> u128 {
    if 2 * size > capacity {
        (capacity / threshold) - (capacity - size) / threshold
    } else {
        u128::from(size >= threshold)
    }
}
