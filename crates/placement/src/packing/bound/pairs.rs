//! A bound from items of which at most two fit into one bin.

use super::{count, matching::maximum_matching};
use crate::packing::instance::Instance;

/// How many items are looked at, the largest first.
const ITEMS: usize = 1024;

/// How many triples are tried in all, about.
const TRIPLES: usize = 4_000_000;

/// Bins hold at most two of the items chosen here, and two only if these fit together. So there
/// are at least as many bins as items, less the pairs of a maximum matching.
pub(super) fn bound(instance: &Instance) -> u32 {
    let capacity = instance.capacity();
    let items = largest(instance);
    let mut neighbours: Vec<Vec<u32>> = vec![Vec::new(); items.len()];
    for (a, first) in items.iter().enumerate() {
        for (b, second) in items.iter().enumerate().skip(a + 1) {
            if fit(capacity, &[first, second]) {
                neighbours[a].push(count(b));
                neighbours[b].push(count(a));
            }
        }
    }
    // Those with few partners first: they are in few triples, so more of the others can follow.
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&item| neighbours[item].len());
    let mut chosen = vec![false; items.len()];
    let mut effort = TRIPLES;
    'items: for item in order {
        let partners: Vec<usize> = neighbours[item]
            .iter()
            .map(|&partner| partner as usize)
            .filter(|&partner| chosen[partner])
            .collect();
        for (index, &a) in partners.iter().enumerate() {
            for &b in &partners[index + 1..] {
                effort = effort.saturating_sub(1);
                if effort == 0 {
                    break 'items;
                }
                if fit(capacity, &[items[item], items[a], items[b]]) {
                    continue 'items;
                }
            }
        }
        chosen[item] = true;
    }
    for (item, partners) in neighbours.iter_mut().enumerate() {
        if chosen[item] {
            partners.retain(|&partner| chosen[partner as usize]);
        } else {
            partners.clear();
        }
    }
    let chosen = chosen.iter().filter(|chosen| **chosen).count();
    count(chosen - maximum_matching(&neighbours))
}

/// The sizes of the items with the largest sums of shares.
fn largest(instance: &Instance) -> Vec<&[u64]> {
    let share = |sizes: &[u64]| -> f64 {
        sizes
            .iter()
            .zip(instance.capacity())
            .filter(|(_, capacity)| **capacity > 0)
            .map(|(&size, &capacity)| size as f64 / capacity as f64)
            .sum()
    };
    let mut kinds: Vec<_> =
        instance.kinds().iter().map(|kind| (share(&kind.sizes), kind)).collect();
    kinds.sort_by(|a, b| b.0.total_cmp(&a.0));
    kinds
        .into_iter()
        .flat_map(|(_, kind)| (0..kind.count).map(|_| kind.sizes.as_slice()))
        .take(ITEMS)
        .collect()
}

/// Whether these fit into one bin. Their sums do not overflow, as those of all items do not.
fn fit(capacity: &[u64], items: &[&[u64]]) -> bool {
    capacity.iter().enumerate().all(|(dimension, &capacity)| {
        items.iter().map(|sizes| sizes[dimension]).sum::<u64>() <= capacity
    })
}
