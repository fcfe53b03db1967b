//! Improves a packing: empties one bin after the other, by ejections that learn which items are
//! hard to place.
//!
//! One bin is taken away and its items go into a pool. Then, until the pool is empty: an item of
//! the pool goes into a bin where it fits; if there is none, into the bin from which the items of
//! the least penalty have to be ejected for it, up to three of them, and these go into the pool.
//! An item that fitted nowhere gets a higher penalty, so that hard items are less and less often
//! ejected. Between two steps items change their bins at random, as far as these have room, so
//! that the same ejection is not tried again under the same circumstances.
//!
//! This is the ejection pool that Y. Nagata and O. Bräysy, *A powerful route minimization heuristic
//! for the vehicle routing problem with time windows*, Operations Research Letters 37, 2009, use to
//! do with fewer vehicles. What differs here: penalties begin with, and grow by, the squared sum of
//! the item's shares, as a small item is more easily placed again than a large one; they are kept
//! from one bin to the next; and the item to be placed is a random one of the pool. Searching with
//! some items left out rather than with bins that are too full is also what M. Buljubašić and
//! M. Vasquez, *Consistent neighborhood search for one-dimensional bin packing and two-dimensional
//! vector packing*, Computers & Operations Research 76, 2016, found to work best.

use super::{
    bins_of, count,
    instance::Instance,
    lanes::{Lanes, Layout, minus, plus},
    progress::Progress,
    random::Random,
};

/// Of how many items of a bin the ejection is chosen; of fuller bins some are taken at random.
const WINDOW: usize = 16;

/// How many random changes are tried between two steps.
const CHANGES: usize = 20;

/// The largest weight of an item.
const WEIGHTS: f64 = 100.0;

/// Above this, all penalties are halved: three of them are added in 32 bits.
const PENALTIES: u32 = 1 << 28;

/// A packing of no more bins than `assignment`, with bins numbered from 0 without gaps. The search
/// ends at the lower bound or when `progress` says so, and not before.
pub(super) fn improve(
    instance: &Instance,
    assignment: &[u32],
    lower_bound: u32,
    seed: u64,
    progress: &mut Progress<'_>,
) -> Vec<u32> {
    let layout = Layout::new(instance);
    let weights = weights(instance);
    let random = Random::new(seed);
    // One copy of the search for some widths; the last is enough for MAX_DIMENSIONS.
    macro_rules! search {
        ($($words:literal),*) => {
            $(if layout.words() <= $words {
                let lanes = layout.lanes::<$words>(instance);
                return Search::new(lanes, weights, assignment, random).run(lower_bound, progress);
            })*
        };
    }
    search!(1, 2, 3, 4, 8, 32);
    assignment.to_vec()
}

/// How hard items are to place at first: the squared sum of their shares, from 1 to 101.
fn weights(instance: &Instance) -> Vec<u32> {
    let share = |(&size, &capacity): (&u64, &u64)| {
        if capacity == 0 { 0.0 } else { size as f64 / capacity as f64 }
    };
    let square = |sizes: &[u64]| {
        let sum: f64 = sizes.iter().zip(instance.capacity()).map(share).sum();
        sum * sum
    };
    let squares: Vec<f64> = instance.items().map(square).collect();
    let largest = squares.iter().copied().fold(0.0, f64::max);
    let scale = if largest > 0.0 { WEIGHTS / largest } else { 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and WEIGHTS"
    )]
    squares.into_iter().map(|square| 1 + (square * scale) as u32).collect()
}

struct Search<const W: usize> {
    lanes: Lanes<W>,
    weights: Vec<u32>,
    penalties: Vec<u32>,
    /// The last packing of all items.
    best: Vec<u32>,
    /// The items in each bin.
    bins: Vec<Vec<u32>>,
    /// What is free in each bin.
    free: Vec<[u64; W]>,
    /// The items in no bin.
    pool: Vec<u32>,
    random: Random,
}

/// Which items to take out of a bin.
#[derive(Clone, Copy, Default)]
struct Ejection {
    penalty: u32,
    bin: usize,
    /// Their places in the bin, ascending; the first `len` count.
    places: [usize; 3],
    len: usize,
}

/// The ejection of the least penalty so far.
struct Least {
    best: Ejection,
    /// How many of this penalty there were; 0 before the first.
    ties: usize,
}

impl Least {
    /// `penalty` is not above that of the best so far.
    fn offer(
        &mut self,
        penalty: u32,
        bin: usize,
        places: [usize; 3],
        len: usize,
        random: &mut Random,
    ) {
        self.ties = if penalty < self.best.penalty { 1 } else { self.ties + 1 };
        if random.below(self.ties) == 0 {
            self.best = Ejection { penalty, bin, places, len };
        }
    }
}

impl<const W: usize> Search<W> {
    fn new(lanes: Lanes<W>, weights: Vec<u32>, assignment: &[u32], random: Random) -> Self {
        let bins = bins_of(assignment) as usize;
        let mut search = Self {
            bins: vec![Vec::new(); bins],
            free: vec![lanes.capacity; bins],
            lanes,
            penalties: weights.clone(),
            weights,
            best: assignment.to_vec(),
            pool: Vec::new(),
            random,
        };
        for (item, &bin) in (0..).zip(assignment) {
            // Only lanes that were rounded can make a bin too full, and then some items wait.
            if search.fits(item, &search.free[bin as usize]) {
                search.put(item, bin as usize);
            } else {
                search.pool.push(item);
            }
        }
        search
    }

    fn run(mut self, lower_bound: u32, progress: &mut Progress<'_>) -> Vec<u32> {
        while self.bins.len() > lower_bound.max(1) as usize {
            self.dissolve();
            while !self.pool.is_empty() {
                if !progress.spend(4 * self.bins.len() + CHANGES) {
                    return self.best;
                }
                self.step();
            }
            // Bins that have become empty get no number.
            let used = self.bins.iter().filter(|items| !items.is_empty());
            for (bin, items) in used.enumerate() {
                for &item in items {
                    self.best[item as usize] = count(bin);
                }
            }
        }
        self.best
    }

    /// Takes the bin away in which the least is, by weight.
    fn dissolve(&mut self) {
        let weight = |items: &Vec<u32>| -> u64 {
            items.iter().map(|&item| u64::from(self.weights[item as usize])).sum()
        };
        let lightest = (0..self.bins.len()).min_by_key(|&bin| weight(&self.bins[bin]));
        let bin = lightest.expect("there is more than one bin");
        self.free.swap_remove(bin);
        self.pool.append(&mut self.bins.swap_remove(bin));
    }

    fn size(&self, item: u32) -> &[u64; W] {
        &self.lanes.items[item as usize]
    }

    fn fits(&self, item: u32, free: &[u64; W]) -> bool {
        self.lanes.fits(free, self.size(item))
    }

    fn put(&mut self, item: u32, bin: usize) {
        self.free[bin] = minus(&self.free[bin], self.size(item));
        self.bins[bin].push(item);
    }

    fn remove(&mut self, bin: usize, place: usize) -> u32 {
        let item = self.bins[bin].swap_remove(place);
        self.free[bin] = plus(&self.free[bin], self.size(item));
        item
    }

    /// Puts an item of the pool into a bin, whatever has to leave it.
    fn step(&mut self) {
        let place = self.random.below(self.pool.len());
        let item = self.pool.swap_remove(place);
        if let Some(bin) = self.roomy(item) {
            self.put(item, bin);
        } else {
            self.punish(item);
            if let Some(ejection) = self.least(item) {
                for &place in ejection.places[..ejection.len].iter().rev() {
                    let ejected = self.remove(ejection.bin, place);
                    self.pool.push(ejected);
                }
                self.put(item, ejection.bin);
            } else {
                // Nowhere are three enough: a whole bin makes way.
                let bin = self.random.below(self.bins.len());
                self.pool.append(&mut self.bins[bin]);
                self.free[bin] = self.lanes.capacity;
                self.put(item, bin);
            }
        }
        for _ in 0..CHANGES {
            self.change();
        }
    }

    /// One of the bins in which the item fits, each as likely as the others.
    fn roomy(&mut self, item: u32) -> Option<usize> {
        let size = *self.size(item);
        let mut chosen = None;
        let mut ties = 0;
        for (bin, free) in self.free.iter().enumerate() {
            if self.lanes.fits(free, &size) {
                ties += 1;
                if self.random.below(ties) == 0 {
                    chosen = Some(bin);
                }
            }
        }
        chosen
    }

    fn punish(&mut self, item: u32) {
        let penalty = &mut self.penalties[item as usize];
        *penalty += self.weights[item as usize];
        if *penalty > PENALTIES {
            for (penalty, weight) in self.penalties.iter_mut().zip(&self.weights) {
                *penalty = (*penalty / 2).max(*weight);
            }
        }
    }

    /// The ejection of the least penalty after which the item fits; of equal ones any.
    fn least(&mut self, item: u32) -> Option<Ejection> {
        let size = *self.size(item);
        let mut least =
            Least { best: Ejection { penalty: u32::MAX, ..Ejection::default() }, ties: 0 };
        for bin in 0..self.bins.len() {
            let items = &self.bins[bin];
            let spare = items.len().saturating_sub(WINDOW);
            let first = if spare > 0 { self.random.below(spare + 1) } else { 0 };
            let last = items.len().min(first + WINDOW);
            let ejected = |place: usize, free: &[u64; W], penalty: u32| {
                let item = items[place] as usize;
                (plus(free, &self.lanes.items[item]), penalty + self.penalties[item])
            };
            // Once enough has left, more need not; and what is worse than the best so far only
            // gets worse.
            for x in first..last {
                let (free, penalty) = ejected(x, &self.free[bin], 0);
                if penalty > least.best.penalty {
                    continue;
                }
                if self.lanes.fits(&free, &size) {
                    least.offer(penalty, bin, [x, 0, 0], 1, &mut self.random);
                    continue;
                }
                for y in x + 1..last {
                    let (free, penalty) = ejected(y, &free, penalty);
                    if penalty > least.best.penalty {
                        continue;
                    }
                    if self.lanes.fits(&free, &size) {
                        least.offer(penalty, bin, [x, y, 0], 2, &mut self.random);
                        continue;
                    }
                    for z in y + 1..last {
                        let (free, penalty) = ejected(z, &free, penalty);
                        if penalty <= least.best.penalty && self.lanes.fits(&free, &size) {
                            least.offer(penalty, bin, [x, y, z], 3, &mut self.random);
                        }
                    }
                }
            }
        }
        (least.ties > 0).then_some(least.best)
    }

    /// Moves a random item into another bin, or swaps two, if there is room.
    fn change(&mut self) {
        let (a, b) = (self.random.below(self.bins.len()), self.random.below(self.bins.len()));
        if a == b || self.bins[a].is_empty() {
            return;
        }
        let place_a = self.random.below(self.bins[a].len());
        let item_a = self.bins[a][place_a];
        if self.fits(item_a, &self.free[b]) {
            self.remove(a, place_a);
            self.put(item_a, b);
            return;
        }
        if self.bins[b].is_empty() {
            return;
        }
        let place_b = self.random.below(self.bins[b].len());
        let item_b = self.bins[b][place_b];
        let free_a = plus(&self.free[a], self.size(item_a));
        let free_b = plus(&self.free[b], self.size(item_b));
        if self.fits(item_b, &free_a) && self.fits(item_a, &free_b) {
            self.bins[a][place_a] = item_b;
            self.bins[b][place_b] = item_a;
            self.free[a] = minus(&free_a, self.size(item_b));
            self.free[b] = minus(&free_b, self.size(item_a));
        }
    }
}
