//! How many bins there must be at least.
//!
//! The bound is the largest of:
//!
//! - in each dimension, the sizes of all items over the capacity, after dual feasible functions
//!   have rounded them (S. P. Fekete, J. Schepers, *New classes of fast lower bounds for bin packing
//!   problems*, Mathematical Programming 91, 2001; for vectors A. Caprara, P. Toth, *Lower bounds
//!   and algorithms for the 2-dimensional vector packing problem*, Discrete Applied Mathematics
//!   111, 2001);
//! - the same for the surrogate dimension, the sum of the shares of all dimensions;
//! - for items of which no three fit into one bin together: how many they are, less a maximum
//!   matching of those that fit together in pairs. Items of which no two fit together are the case
//!   without any pair.
//!
//! All of it is exact: whole numbers only, and what bounds the effort leaves items out, which
//! makes the bound smaller and never wrong.

mod dual_feasible;
mod matching;
mod pairs;

use super::{count, instance::Instance};

/// How many bins any packing of the instance has at least. It takes up to some tens of
/// milliseconds, also for the largest instances: what takes long is left out for them.
#[must_use]
pub fn lower_bound(instance: &Instance) -> u32 {
    if instance.is_empty() {
        return 0;
    }
    // Never more than one bin for each item, so this fits.
    let of_sizes = dual_feasible::bound(instance).min(instance.len() as u128);
    let of_sizes = count(usize::try_from(of_sizes).expect("no more than there are items"));
    of_sizes.max(pairs::bound(instance)).max(1)
}
