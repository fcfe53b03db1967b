//! Bins one by one, each filled with the items that it likes best.

use super::{
    Choice, Order, Weights, fits,
    item_centric::starts,
    next_fit,
    shares::{Shares, share},
    take,
};
use crate::packing::{UNPLACED, instance::Instance, progress::Progress};

pub(super) fn pack(
    instance: &Instance,
    shares: &Shares,
    choice: Choice,
    weights: Weights,
    progress: &mut Progress<'_>,
) -> Vec<u32> {
    let capacity = instance.capacity();
    let mut assignment = vec![UNPLACED; instance.len()];
    let mut next = starts(instance);
    let mut left: Vec<u64> = instance.kinds().iter().map(|kind| kind.count).collect();
    let mut totals = shares.totals().to_vec();
    let mut weight = shares.weights(weights);
    // Largest first, so that of equal scores the largest item wins.
    let mut open = shares.sorted(Order::Sum(Weights::Unit));
    // Those with something in them.
    let mut bins = 0_u32;
    let mut free_shares = vec![0.0; capacity.len()];
    loop {
        open.retain(|&kind| left[kind] > 0);
        if open.is_empty() {
            return assignment;
        }
        if weights == Weights::Remaining {
            weight.clone_from(&totals);
        }
        let mut free = capacity.to_vec();
        let mut fitting = open.clone();
        let bin = bins;
        loop {
            for (index, free_share) in free_shares.iter_mut().enumerate() {
                *free_share = share(free[index], capacity[index]);
            }
            if !progress.spend(2 * fitting.len() + 1) {
                next_fit(instance, &mut assignment, bins);
                return assignment;
            }
            let mut best: Option<(f64, usize)> = None;
            fitting.retain(|&kind| {
                if left[kind] == 0 || !fits(&free, &instance.kinds()[kind].sizes) {
                    return false;
                }
                let score = choice.score(&weight, shares.of(kind), &free_shares);
                if best.is_none_or(|(best, _)| score > best) {
                    best = Some((score, kind));
                }
                true
            });
            let Some((_, kind)) = best else { break };
            take(&mut free, &instance.kinds()[kind].sizes);
            Shares::forget(&mut totals, shares.of(kind));
            left[kind] -= 1;
            assignment[next[kind]] = bin;
            next[kind] += 1;
            bins = bin + 1;
        }
    }
}
