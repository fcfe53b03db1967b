//! Items one by one, each to the open bin that it likes best.

use super::{
    Choice, Order, fits, next_fit,
    shares::{Shares, share},
    take,
};
use crate::packing::{UNPLACED, instance::Instance, progress::Progress};

/// The open bins, side by side in memory.
struct Bins<'a> {
    capacity: &'a [u64],
    free: Vec<u64>,
    /// What is free as shares; only kept when a choice looks at it.
    shares: Vec<f64>,
}

impl Bins<'_> {
    fn len(&self) -> usize {
        self.free.len() / self.capacity.len()
    }

    fn free(&self, bin: usize) -> &[u64] {
        &self.free[bin * self.capacity.len()..][..self.capacity.len()]
    }

    fn shares(&self, bin: usize) -> &[f64] {
        &self.shares[bin * self.capacity.len()..][..self.capacity.len()]
    }

    fn put(&mut self, bin: usize, sizes: &[u64]) {
        let dimensions = self.capacity.len();
        if bin == self.len() {
            self.free.extend(self.capacity);
            self.shares.resize(self.free.len(), 0.0);
        }
        let free = &mut self.free[bin * dimensions..][..dimensions];
        take(free, sizes);
        for (index, share_of) in
            self.shares[bin * dimensions..][..dimensions].iter_mut().enumerate()
        {
            *share_of = share(free[index], self.capacity[index]);
        }
    }
}

pub(super) fn pack(
    instance: &Instance,
    shares: &Shares,
    order: Order,
    choice: Choice,
    progress: &mut Progress<'_>,
) -> Vec<u32> {
    let mut bins = Bins { capacity: instance.capacity(), free: Vec::new(), shares: Vec::new() };
    let weights = vec![1.0; instance.capacity().len()];
    let mut assignment = vec![UNPLACED; instance.len()];
    let starts = starts(instance);
    for kind in shares.sorted(order) {
        let item = &instance.kinds()[kind];
        // Copies come one after the other, and bins only get fuller: where one found no room, the
        // next finds none either.
        let mut first = 0;
        for copy in 0..item.count {
            let chosen = if choice == Choice::First {
                let found = (first..bins.len()).find(|&bin| fits(bins.free(bin), &item.sizes));
                let chosen = found.unwrap_or(bins.len());
                progress.spend(chosen - first + 1);
                first = chosen;
                chosen
            } else {
                progress.spend(2 * bins.len() + 1);
                let mut best: Option<(f64, usize)> = None;
                for bin in (0..bins.len()).filter(|&bin| fits(bins.free(bin), &item.sizes)) {
                    let score = choice.score(&weights, shares.of(kind), bins.shares(bin));
                    if best.is_none_or(|(best, _)| score > best) {
                        best = Some((score, bin));
                    }
                }
                best.map_or(bins.len(), |(_, bin)| bin)
            };
            if progress.is_stopped() {
                let used = u32::try_from(bins.len()).expect("no more bins than items");
                next_fit(instance, &mut assignment, used);
                return assignment;
            }
            bins.put(chosen, &item.sizes);
            let copy = usize::try_from(copy).expect("fewer copies than items");
            assignment[starts[kind] + copy] =
                u32::try_from(chosen).expect("no more bins than items");
        }
    }
    assignment
}

/// The number of the first item of each kind.
pub(super) fn starts(instance: &Instance) -> Vec<usize> {
    let mut next = 0;
    let mut starts = Vec::with_capacity(instance.kinds().len());
    for kind in instance.kinds() {
        starts.push(next);
        next += usize::try_from(kind.count).expect("no more copies than items");
    }
    starts
}
