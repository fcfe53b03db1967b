//! Packs items with several sizes each into as few identical bins as it can: offline vector bin
//! packing. It answers how many hosts a batch needs, and tries policies on published instances.
//!
//! [`pack`] takes an [`Instance`], which is checked once, and gives a [`Packing`]: a bin for every
//! item, and how many bins there must be at least ([`lower_bound`]), so that one sees how far from
//! the optimum it may be. [`Method::Policy`] packs one item after the other as the policy of that
//! name places VMs; [`Method::Best`] tries many [`Heuristic`]s and then searches for something
//! better until nothing can be better or it is told to stop.
//!
//! Nothing here knows the time. The caller's `keep_going` is asked every few thousand steps, and
//! says no when the time is over; what is there by then is completed and returned. The result is a
//! function of the instance, the seed and how often `keep_going` said yes.
//!
//! Invariants: a packing is never over the capacity in any dimension ([`Packing::verify`]); its
//! number of bins is never below its `lower_bound`; every bin holds something.

mod bound;
mod heuristic;
mod instance;
mod lanes;
mod progress;
mod random;
mod search;
#[cfg(test)]
mod tests;

use plimsoll_model::Policy;
use progress::Progress;
use thiserror::Error;

pub use bound::lower_bound;
pub use heuristic::{Choice, Heuristic, Order, Weights};
pub use instance::{Instance, InstanceError, Item, MAX_DIMENSIONS, MAX_ITEMS, MAX_SIZES};

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One item after the other, in the given order or for the `ffd` policies by size, into the
    /// open bin that the policy likes best; a new bin is opened when it fits into none.
    Policy(Policy),
    /// The best of many heuristics, improved by a search.
    Best {
        /// What the search's random choices start from.
        seed: u64,
    },
}

/// What found a packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// One of the heuristics, alone.
    Heuristic(Heuristic),
    /// The search that takes what the heuristics found and empties one bin after the other.
    Search,
}

/// A bin for every item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// The bin of each item, in the order of [`Instance::items`]; bins are counted from 0.
    pub assignment: Vec<u32>,
    /// How many bins are in use.
    pub bins: u32,
    /// No packing has fewer bins than this.
    pub lower_bound: u32,
    /// What found it.
    pub found_by: FoundBy,
    /// Whether `keep_going` said no before the method was through. What was left then went into the
    /// newest bin as long as it fitted (next-fit).
    pub stopped: bool,
}

/// Marks an item that is in no bin yet.
const UNPLACED: u32 = u32::MAX;

/// Why a [`Packing`] is not one of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WrongPacking {
    /// It has more or fewer items than the instance.
    #[error("the packing has {packed} items, the instance {items}")]
    Items {
        /// How many the packing has.
        packed: usize,
        /// How many the instance has.
        items: usize,
    },
    /// A bin whose number is not below the number of bins.
    #[error("item {item} is in bin {bin} of {bins}")]
    NoSuchBin {
        /// The item.
        item: usize,
        /// The bin in which it is said to be.
        bin: u32,
        /// How many bins the packing says that it has.
        bins: u32,
    },
    /// A bin that holds more than it can.
    #[error("bin {bin} holds more than its capacity in dimension {dimension}")]
    Over {
        /// The bin.
        bin: u32,
        /// The dimension.
        dimension: usize,
    },
    /// A bin that holds nothing.
    #[error("bin {bin} is empty")]
    Empty {
        /// The bin.
        bin: u32,
    },
    /// Fewer bins than there must be at least.
    #[error("{bins} bins are fewer than the lower bound of {lower_bound}")]
    BelowBound {
        /// How many bins the packing has.
        bins: u32,
        /// How many there must be.
        lower_bound: u32,
    },
}

impl Packing {
    /// Checks that this is a packing of the instance: all items, no bin over its capacity or
    /// empty, and no fewer bins than the bound that it states.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self, instance: &Instance) -> Result<(), WrongPacking> {
        if self.assignment.len() != instance.len() {
            return Err(WrongPacking::Items {
                packed: self.assignment.len(),
                items: instance.len(),
            });
        }
        let dimensions = instance.capacity().len();
        // No more bins than items are looked at, whatever the packing says.
        let bins = (self.bins as usize).min(instance.len());
        let mut free = instance.capacity().repeat(bins);
        let mut used = vec![false; bins];
        for (item, (&bin, sizes)) in self.assignment.iter().zip(instance.items()).enumerate() {
            let index = bin as usize;
            if index >= bins {
                return Err(WrongPacking::NoSuchBin { item, bin, bins: self.bins });
            }
            used[index] = true;
            for (dimension, &size) in sizes.iter().enumerate() {
                let free = &mut free[index * dimensions + dimension];
                *free = free.checked_sub(size).ok_or(WrongPacking::Over { bin, dimension })?;
            }
        }
        if let Some(bin) = used.iter().position(|used| !used) {
            return Err(WrongPacking::Empty { bin: count(bin) });
        }
        if self.bins as usize > bins {
            return Err(WrongPacking::Empty { bin: count(bins) });
        }
        if self.bins < self.lower_bound {
            return Err(WrongPacking::BelowBound {
                bins: self.bins,
                lower_bound: self.lower_bound,
            });
        }
        Ok(())
    }
}

/// Packs all items. `keep_going` is asked every few thousand steps whether to go on; a method that
/// is through asks no more. A method that is stopped still packs all items.
///
/// [`Method::Best`] is through when it meets its lower bound, which it may never do: then it goes
/// on until `keep_going` says no. A policy always comes to an end, though for the largest instances
/// after items times bins steps.
pub fn pack(instance: &Instance, method: Method, keep_going: &mut dyn FnMut() -> bool) -> Packing {
    let mut progress = Progress::new(keep_going);
    match method {
        Method::Policy(policy) => {
            let heuristic = Heuristic::of(policy);
            let assignment = heuristic.run(instance, &mut progress);
            let bins = bins_of(&assignment);
            let lower_bound = lower_bound(instance);
            Packing {
                assignment,
                bins,
                lower_bound,
                found_by: FoundBy::Heuristic(heuristic),
                stopped: progress.is_stopped(),
            }
        }
        Method::Best { seed } => best(instance, seed, &mut progress),
    }
}

/// The best of all heuristics, then the search.
fn best(instance: &Instance, seed: u64, progress: &mut Progress<'_>) -> Packing {
    let lower_bound = lower_bound(instance);
    let mut best: Option<(u32, Vec<u32>, Heuristic)> = None;
    for heuristic in Heuristic::all() {
        let assignment = heuristic.run(instance, progress);
        let bins = bins_of(&assignment);
        if best.as_ref().is_none_or(|(fewest, ..)| bins < *fewest) {
            best = Some((bins, assignment, heuristic));
        }
        if progress.is_stopped() || best.as_ref().is_some_and(|(bins, ..)| *bins <= lower_bound) {
            break;
        }
    }
    let (bins, assignment, heuristic) = best.expect("there are heuristics");
    let mut packing = Packing {
        assignment,
        bins,
        lower_bound,
        found_by: FoundBy::Heuristic(heuristic),
        stopped: progress.is_stopped(),
    };
    if bins > lower_bound && !packing.stopped {
        let assignment =
            search::improve(instance, &packing.assignment, lower_bound, seed, progress);
        let bins = bins_of(&assignment);
        if bins < packing.bins {
            packing.assignment = assignment;
            packing.bins = bins;
            packing.found_by = FoundBy::Search;
        }
        packing.stopped = packing.bins > lower_bound;
    }
    packing
}

/// How many bins an assignment uses; they are numbered without gaps.
fn bins_of(assignment: &[u32]) -> u32 {
    assignment.iter().max().map_or(0, |bin| bin + 1)
}

/// A number of items or bins; there are at most [`MAX_ITEMS`] of them.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("at most MAX_ITEMS")
}
