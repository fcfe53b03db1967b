//! What is asked for next, drawn by a seed.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Zipf};

use crate::page::mix;

/// Draws of one of `count` things, as popular as Zipf's law says.
///
/// The popular ones are strewn over all of them ("scrambled Zipfian": Cooper et al., Benchmarking
/// cloud serving systems with YCSB, SoCC 2010): neighbours in memory are not alike in popularity.
#[derive(Debug)]
pub(crate) struct Draws {
    random: ChaCha8Rng,
    count: u64,
    zipf: Option<Zipf<f64>>,
    seed: u64,
}

impl Draws {
    /// Of `count` things, at least 1; with a `skew` of 0 all are alike. The seed decides which are
    /// popular; each `stream` of draws is another.
    pub(crate) fn new(seed: u64, count: u64, skew: f64, stream: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let zipf = (skew > 0.0).then(|| Zipf::new(count as f64, skew).ok()).flatten();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self { random, count: count.max(1), zipf, seed }
    }

    /// The next, below the count.
    pub(crate) fn next(&mut self) -> u64 {
        let Some(zipf) = &self.zipf else { return self.random.random_range(0..self.count) };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank is a whole number from 1 to the count"
        )]
        let rank = zipf.sample(&mut self.random) as u64;
        mix(mix(self.seed) ^ rank) % self.count
    }

    /// True once in `of` draws on average.
    pub(crate) fn one_in(&mut self, of: u32) -> bool {
        self.random.random_ratio(1, of.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(skew: f64) -> Vec<u32> {
        let mut draws = Draws::new(1, 64, skew, 0);
        let mut counts = vec![0; 64];
        for _ in 0..64_000 {
            counts[usize::try_from(draws.next()).expect("small")] += 1;
        }
        counts.sort_unstable();
        counts
    }

    #[test]
    fn skew_decides_how_unlike_draws_are() {
        let even = counts(0.0);
        assert!(even[0] > 800 && even[63] < 1200, "{even:?}");
        let skewed = counts(0.99);
        assert!(skewed[63] > 10_000 && skewed[32] < 1_000, "{skewed:?}");
    }

    #[test]
    fn a_seed_decides_the_draws() {
        let draw = |seed, stream| {
            let mut draws = Draws::new(seed, 1000, 0.99, stream);
            (0..100).map(|_| draws.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(5, 1), draw(5, 1));
        assert_ne!(draw(5, 1), draw(6, 1));
        assert_ne!(draw(5, 1), draw(5, 2));
        assert_eq!(Draws::new(1, 1, 0.99, 0).next(), 0);
    }
}
