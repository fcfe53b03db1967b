//! Vectors of sizes as lanes of machine words, so that "does it fit" costs one subtraction for
//! four dimensions instead of four comparisons.
//!
//! A lane is 16 bits wide if every capacity is below 2^15, else 32 bits, and its top bit is always
//! clear. Setting the top bits of what is free before subtracting a size keeps a borrow inside its
//! lane: the top bit survives exactly where the size is not larger (Lamport: *Multiple byte
//! processing with full-word instructions*, CACM 1975).

use super::instance::Instance;

/// An instance with `W` words for each vector.
#[derive(Clone, Debug)]
pub(super) struct Lanes<const W: usize> {
    /// Every single item, in the order of [`Instance::items`].
    pub(super) items: Vec<[u64; W]>,
    pub(super) capacity: [u64; W],
    /// The top bit of each lane.
    high: u64,
}

/// How the vectors of an instance go into words.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Sizes are divided by this, per dimension: sizes up, capacities down. It is a common divisor
    /// wherever the capacity then is below 2^31, so that nothing is lost.
    divisors: Vec<u64>,
    /// Dimensions in which all items together fit into one bin need no lane.
    dimensions: Vec<usize>,
    bits: u32,
}

const NARROW: u64 = 1 << 15;
const WIDE: u64 = 1 << 31;

impl Layout {
    pub(super) fn new(instance: &Instance) -> Self {
        let capacity = instance.capacity();
        let mut divisors = capacity.to_vec();
        let mut totals = vec![0_u64; capacity.len()];
        for kind in instance.kinds() {
            for (dimension, &size) in kind.sizes.iter().enumerate() {
                divisors[dimension] = gcd(divisors[dimension], size);
                totals[dimension] += size * kind.count;
            }
        }
        let dimensions: Vec<_> = (0..capacity.len())
            .filter(|&dimension| totals[dimension] > capacity[dimension])
            .collect();
        for (divisor, &capacity) in divisors.iter_mut().zip(capacity) {
            *divisor = (*divisor).max(1);
            // Rounding sizes up may refuse what fits, by less than 1 in 10^9; never the reverse.
            if capacity / *divisor >= WIDE {
                *divisor = capacity / (WIDE - 1) + 1;
            }
        }
        let narrow =
            dimensions.iter().all(|&dimension| capacity[dimension] / divisors[dimension] < NARROW);
        Self { divisors, dimensions, bits: if narrow { 16 } else { 32 } }
    }

    /// How many words a vector needs.
    pub(super) fn words(&self) -> usize {
        self.dimensions.len().div_ceil((64 / self.bits) as usize)
    }

    /// The instance in words.
    ///
    /// # Panics
    /// If `W` is less than [`Self::words`].
    pub(super) fn lanes<const W: usize>(&self, instance: &Instance) -> Lanes<W> {
        let lanes_per_word = (64 / self.bits) as usize;
        let capacity = instance.capacity();
        let place = |vector: &[u64]| {
            let mut words = [0_u64; W];
            for (lane, &dimension) in self.dimensions.iter().enumerate() {
                let divisor = self.divisors[dimension];
                // Rounded up, an item of the size of a bin would be larger than the bin; as large
                // as the bin it still keeps out everything that has a size in this dimension.
                let value = vector[dimension].div_ceil(divisor).min(capacity[dimension] / divisor);
                words[lane / lanes_per_word] |=
                    value << (self.bits as usize * (lane % lanes_per_word));
            }
            words
        };
        let high = if self.bits == 16 { 0x8000_8000_8000_8000 } else { 0x8000_0000_8000_0000 };
        let mut items = Vec::with_capacity(instance.len());
        for kind in instance.kinds() {
            let words = place(&kind.sizes);
            items.extend((0..kind.count).map(|_| words));
        }
        Lanes { items, capacity: place(capacity), high }
    }
}

impl<const W: usize> Lanes<W> {
    /// Whether something of this size fits into what is free.
    #[inline]
    pub(super) fn fits(&self, free: &[u64; W], size: &[u64; W]) -> bool {
        let mut top = self.high;
        for word in 0..W {
            top &= (free[word] | self.high).wrapping_sub(size[word]);
        }
        top == self.high
    }
}

/// What is left; the size must fit.
#[inline]
pub(super) fn minus<const W: usize>(free: &[u64; W], size: &[u64; W]) -> [u64; W] {
    std::array::from_fn(|word| free[word] - size[word])
}

/// What is free once something of this size has left.
#[inline]
pub(super) fn plus<const W: usize>(free: &[u64; W], size: &[u64; W]) -> [u64; W] {
    std::array::from_fn(|word| free[word] + size[word])
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
