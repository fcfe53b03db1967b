//! What is to be packed, checked once: everything behind it may rely on every item fitting into an
//! empty bin and on sums that do not overflow.

use thiserror::Error;

/// The most dimensions that an instance may have.
pub const MAX_DIMENSIONS: usize = 64;

/// The most items, copies counted one by one. A packing needs about 100 bytes for each.
pub const MAX_ITEMS: u64 = 1 << 20;

/// The most sizes in all (kinds of items times dimensions): 128 MiB.
pub const MAX_SIZES: usize = 1 << 24;

/// Some items that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// One size for each dimension, in the unit of the capacity of that dimension.
    pub sizes: Vec<u64>,
    /// How many of them there are; zero is allowed.
    pub count: u64,
}

/// Items and the bins into which they go, all alike; as many bins as are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    capacity: Vec<u64>,
    kinds: Vec<Item>,
    len: usize,
}

/// Why something cannot be packed at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// A bin without dimensions.
    #[error("a bin has no dimensions")]
    NoDimensions,
    /// A bin with more than [`MAX_DIMENSIONS`].
    #[error("a bin has {dimensions} dimensions; at most {MAX_DIMENSIONS} are supported")]
    TooManyDimensions {
        /// How many it has.
        dimensions: usize,
    },
    /// An item whose number of sizes is not that of the capacities.
    #[error("item {item} has {sizes} sizes, but a bin has {dimensions} dimensions")]
    Dimensions {
        /// Its index in the list of items.
        item: usize,
        /// How many sizes it has.
        sizes: usize,
        /// How many dimensions a bin has.
        dimensions: usize,
    },
    /// An item that is larger than an empty bin.
    #[error(
        "item {item} fits into no bin: it asks for {size} in dimension {dimension} of {capacity}"
    )]
    TooLarge {
        /// Its index in the list of items.
        item: usize,
        /// The first dimension in which it is too large.
        dimension: usize,
        /// Its size there.
        size: u64,
        /// The capacity of a bin there.
        capacity: u64,
    },
    /// More than [`MAX_ITEMS`] items, or more than [`MAX_SIZES`] sizes.
    #[error("{items} items with {sizes} sizes are too many: at most {MAX_ITEMS} with {MAX_SIZES}")]
    TooManyItems {
        /// How many items there are, copies counted one by one, up to the first that is too many.
        items: u64,
        /// How many sizes all kinds of items have up to there.
        sizes: usize,
    },
    /// The sizes of all items in one dimension do not fit into 64 bits together.
    #[error("the sizes in dimension {dimension} add up to more than {}", u64::MAX)]
    Overflow {
        /// That dimension.
        dimension: usize,
    },
}

impl Instance {
    /// Checks that every item fits into an empty bin.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the items.
    pub fn new(capacity: Vec<u64>, items: Vec<Item>) -> Result<Self, InstanceError> {
        let dimensions = capacity.len();
        if dimensions == 0 {
            return Err(InstanceError::NoDimensions);
        }
        if dimensions > MAX_DIMENSIONS {
            return Err(InstanceError::TooManyDimensions { dimensions });
        }
        let mut totals = vec![0_u64; dimensions];
        let mut count = 0_u64;
        for (index, item) in items.iter().enumerate() {
            let sizes = item.sizes.len();
            if sizes != dimensions {
                return Err(InstanceError::Dimensions { item: index, sizes, dimensions });
            }
            count = count.saturating_add(item.count);
            let sizes = (index + 1).saturating_mul(dimensions);
            if count > MAX_ITEMS || sizes > MAX_SIZES {
                return Err(InstanceError::TooManyItems { items: count, sizes });
            }
            for (dimension, (&size, &capacity)) in item.sizes.iter().zip(&capacity).enumerate() {
                if size > capacity {
                    return Err(InstanceError::TooLarge { item: index, dimension, size, capacity });
                }
                totals[dimension] = size
                    .checked_mul(item.count)
                    .and_then(|all| all.checked_add(totals[dimension]))
                    .ok_or(InstanceError::Overflow { dimension })?;
            }
        }
        let len = usize::try_from(count).expect("checked above to be at most MAX_ITEMS");
        Ok(Self { capacity, kinds: items, len })
    }

    /// What a bin holds in each dimension.
    #[must_use]
    pub fn capacity(&self) -> &[u64] {
        &self.capacity
    }

    /// The kinds of items, as they were given.
    #[must_use]
    pub fn kinds(&self) -> &[Item] {
        &self.kinds
    }

    /// How many items there are, copies counted one by one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to pack.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The sizes of every single item: kinds in the given order, the copies of one side by side.
    /// An item's place in this order is its number in a packing.
    pub fn items(&self) -> impl Iterator<Item = &[u64]> {
        self.kinds.iter().flat_map(|kind| (0..kind.count).map(|_| kind.sizes.as_slice()))
    }
}
