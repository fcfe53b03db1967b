//! The heuristics that build a packing in one go.
//!
//! Sizes are compared as shares of the capacity: *r* of an item, *a* of what is free in a bin.
//! Only additions, multiplications, divisions and square roots of IEEE 754 are used, in a fixed
//! order, so that the same items give the same packing on every machine.
//!
//! **Item-centric**: items in some order, each into the open bin that its [`Choice`] likes best;
//! a new bin is opened when it fits into none. First-fit decreasing with the sum or the product of
//! the shares as the size is FFDSum and FFDProd of R. Panigrahy, K. Talwar, L. Uyeda, U. Wieder,
//! *Heuristics for Vector Bin Packing*, Microsoft Research, 2011.
//!
//! **Bin-centric**: one open bin; of all items that still fit, the one that its [`Choice`] likes
//! best goes in, until none fits. The dot product and the L2 norm are from the same report. The
//! weights of the dimensions are theirs and those of M. Gabay and S. Zaourar, *Vector bin packing
//! with heterogeneous bins: application to the machine reassignment problem*, Annals of Operations
//! Research 242, 2016; the framework is compared in C. Mommessin, T. Erlebach, N. V. Shakhlevich,
//! *Classification and evaluation of the algorithms for vector bin packing*, Computers &
//! Operations Research 173, 2025.

mod bin_centric;
mod item_centric;
mod shares;

use std::fmt;

use plimsoll_model::Policy;

use super::{instance::Instance, progress::Progress};
use shares::Shares;

/// How items and bins are brought together. Every dimension has a weight *w*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The first that fits.
    First,
    /// The highest sum of *w a*.
    MostFree,
    /// The lowest sum of *w a*.
    LeastFree,
    /// The highest cosine of the angle between *r* and *a*.
    Cosine,
    /// The lowest sum of *w (a - r)²*.
    L2Diff,
    /// The highest sum of *w r / a*: the tightest.
    L2Ratio,
    /// The highest sum of *w r a*.
    DotProduct,
}

/// What the dimensions count for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// All the same.
    Unit,
    /// The mean share that items ask for ("average"): what is asked for most counts most.
    Average,
    /// *e* to the power of that mean ("average exponential").
    Exponential,
    /// One over that mean.
    Reciprocal,
    /// The mean share over the items that are left, renewed for each bin.
    Remaining,
}

/// In which order items come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// As given.
    Given,
    /// The largest weighted sum of shares first.
    Sum(Weights),
    /// The largest product of shares first; of equal products the largest sum.
    Product,
    /// The largest share in any dimension first; of equal ones the largest sum.
    Largest,
}

/// One way to build a packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heuristic {
    /// Items one by one, each to the bin it likes best.
    ItemCentric {
        /// Which item comes next.
        order: Order,
        /// Which bin it takes; all dimensions count the same.
        choice: Choice,
    },
    /// Bins one by one, each filled with the items it likes best.
    BinCentric {
        /// Which item is taken; of equal ones the largest sum of shares.
        choice: Choice,
        /// What the dimensions count for.
        weights: Weights,
    },
    /// A bin for what is next while it fits, then a new one. Nothing is sorted or searched, so
    /// this is what is left to do when time is over.
    NextFit,
}

impl Heuristic {
    /// The heuristic that places items as a policy places VMs on hosts.
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        let given = |choice| Self::ItemCentric { order: Order::Given, choice };
        match policy {
            // To `fgd` and `least-stranding`, which judge by accelerators and by what is usually
            // asked for, all bins are equal, and ties go to the first.
            Policy::FirstFit | Policy::Fgd | Policy::LeastStranding => given(Choice::First),
            Policy::MostFree => given(Choice::MostFree),
            Policy::LeastFree => given(Choice::LeastFree),
            Policy::Cosine => given(Choice::Cosine),
            Policy::DotProduct => given(Choice::DotProduct),
            Policy::L2Diff => given(Choice::L2Diff),
            Policy::L2Ratio => given(Choice::L2Ratio),
            Policy::FfdProd => Self::ItemCentric { order: Order::Product, choice: Choice::First },
            Policy::FfdSum => {
                Self::ItemCentric { order: Order::Sum(Weights::Unit), choice: Choice::First }
            }
        }
    }

    /// Every heuristic that [`super::Method::Best`] tries, the quick ones first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let orders = [
            Order::Sum(Weights::Unit),
            Order::Product,
            Order::Largest,
            Order::Sum(Weights::Average),
            Order::Sum(Weights::Exponential),
            Order::Sum(Weights::Reciprocal),
            Order::Given,
        ];
        let choices = [
            Choice::L2Diff,
            Choice::DotProduct,
            Choice::LeastFree,
            Choice::Cosine,
            Choice::L2Ratio,
            Choice::MostFree,
        ];
        let weights = [
            Weights::Unit,
            Weights::Average,
            Weights::Exponential,
            Weights::Reciprocal,
            Weights::Remaining,
        ];
        let of_bins = |choice| weights.map(|weights| Self::BinCentric { choice, weights });
        let mut all =
            orders.map(|order| Self::ItemCentric { order, choice: Choice::First }).to_vec();
        all.extend(
            [Choice::DotProduct, Choice::L2Diff, Choice::Cosine, Choice::L2Ratio]
                .into_iter()
                .flat_map(of_bins),
        );
        // Fewer orders for these, which take longest: the search uses the time better.
        for order in [Order::Sum(Weights::Unit), Order::Product, Order::Given] {
            all.extend(choices.map(|choice| Self::ItemCentric { order, choice }));
        }
        all
    }

    /// The bin of each item. Bins are numbered from 0 without gaps.
    pub(super) fn run(self, instance: &Instance, progress: &mut Progress<'_>) -> Vec<u32> {
        let shares = Shares::new(instance);
        match self {
            Self::ItemCentric { order, choice } => {
                item_centric::pack(instance, &shares, order, choice, progress)
            }
            Self::BinCentric { choice, weights } => {
                bin_centric::pack(instance, &shares, choice, weights, progress)
            }
            Self::NextFit => {
                let mut assignment = vec![super::UNPLACED; instance.len()];
                next_fit(instance, &mut assignment, 0);
                assignment
            }
        }
    }
}

/// Puts all items that are in no bin into new bins from `bins` on, each one into the newest if it
/// fits there.
pub(super) fn next_fit(instance: &Instance, assignment: &mut [u32], mut bins: u32) {
    let mut free: Option<Vec<u64>> = None;
    for (bin, sizes) in assignment.iter_mut().zip(instance.items()) {
        if *bin != super::UNPLACED {
            continue;
        }
        let newest = match &mut free {
            Some(free) if fits(free, sizes) => free,
            _ => {
                bins += 1;
                free.insert(instance.capacity().to_vec())
            }
        };
        take(newest, sizes);
        *bin = bins - 1;
    }
}

fn fits(free: &[u64], sizes: &[u64]) -> bool {
    free.iter().zip(sizes).all(|(free, size)| size <= free)
}

/// Takes what fits.
fn take(free: &mut [u64], sizes: &[u64]) {
    for (free, size) in free.iter_mut().zip(sizes) {
        *free -= size;
    }
}

impl Choice {
    /// How well an item of these shares goes with what is free; the highest is best.
    fn score(self, weights: &[f64], r: &[f64], a: &[f64]) -> f64 {
        let terms = weights.iter().zip(r).zip(a).map(|((w, r), a)| (w, r, a));
        match self {
            Self::First => 0.0,
            Self::MostFree => terms.map(|(w, _, a)| w * a).sum(),
            Self::LeastFree => -terms.map(|(w, _, a)| w * a).sum::<f64>(),
            Self::Cosine => {
                let (mut dot, mut rr, mut aa) = (0.0, 0.0, 0.0);
                for (w, r, a) in terms {
                    dot += w * r * a;
                    rr += w * r * r;
                    aa += w * a * a;
                }
                if rr > 0.0 && aa > 0.0 { dot / (rr * aa).sqrt() } else { 0.0 }
            }
            Self::L2Diff => -terms.map(|(w, r, a)| w * (a - r) * (a - r)).sum::<f64>(),
            Self::L2Ratio => terms.filter(|(_, r, _)| **r > 0.0).map(|(w, r, a)| w * r / a).sum(),
            Self::DotProduct => terms.map(|(w, r, a)| w * r * a).sum(),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first-fit",
            Self::MostFree => "most-free",
            Self::LeastFree => "least-free",
            Self::Cosine => "cosine",
            Self::L2Diff => "l2-diff",
            Self::L2Ratio => "l2-ratio",
            Self::DotProduct => "dot-product",
        })
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unit => "unit",
            Self::Average => "average",
            Self::Exponential => "exponential",
            Self::Reciprocal => "reciprocal",
            Self::Remaining => "remaining",
        })
    }
}

impl fmt::Display for Heuristic {
    /// For example `bin-centric dot-product, weights average`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ItemCentric { order, choice } => {
                write!(f, "item-centric {choice}, ")?;
                match order {
                    Order::Given => f.write_str("given order"),
                    Order::Sum(weights) => write!(f, "decreasing sum, weights {weights}"),
                    Order::Product => f.write_str("decreasing product"),
                    Order::Largest => f.write_str("decreasing largest share"),
                }
            }
            Self::BinCentric { choice, weights } => {
                write!(f, "bin-centric {choice}, weights {weights}")
            }
            Self::NextFit => f.write_str("next-fit"),
        }
    }
}
