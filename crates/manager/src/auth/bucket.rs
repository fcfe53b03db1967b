//! Token buckets by key.

use std::{collections::HashMap, hash::Hash};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many keys are remembered. Above, full buckets are forgotten: they say nothing.
const MOST_KEYS: usize = 10_000;

struct Bucket {
    level: f64,
    at: Instant,
}

/// A bucket for each key: `depth` at once, `rate` a second in the long run.
pub(super) struct Buckets<K> {
    depth: f64,
    rate: f64,
    by_key: Mutex<HashMap<K, Bucket>>,
}

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(depth: f64, rate: f64) -> Self {
        Self { depth, rate, by_key: Mutex::new(HashMap::new()) }
    }

    /// Takes one; false: there is none.
    pub(super) fn take(&self, key: K, now: Instant) -> bool {
        let mut by_key = self.by_key.lock();
        let fill = |bucket: &Bucket| {
            let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.level + elapsed * self.rate).min(self.depth)
        };
        if by_key.len() >= MOST_KEYS && !by_key.contains_key(&key) {
            by_key.retain(|_, bucket| fill(bucket) < self.depth);
            if by_key.len() >= MOST_KEYS {
                return false;
            }
        }
        let bucket = by_key.entry(key).or_insert(Bucket { level: self.depth, at: now });
        bucket.level = fill(bucket);
        bucket.at = now;
        let there = bucket.level >= 1.0;
        if there {
            bucket.level -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let buckets = Buckets::new(3.0, 2.0);
        let start = Instant::now();
        let taken = (0..10).filter(|_| buckets.take("a", start)).count();
        assert_eq!(taken, 3);
        assert!(buckets.take("b", start), "others have their own");
        assert!(buckets.take("a", start + Duration::from_millis(500)));
        assert!(!buckets.take("a", start + Duration::from_millis(510)));
    }

    #[test]
    fn many_keys_do_not_fill_the_memory() {
        let buckets = Buckets::new(1.0, 1000.0);
        let start = Instant::now();
        for key in 0..MOST_KEYS {
            assert!(buckets.take(key, start));
        }
        assert!(!buckets.take(MOST_KEYS, start), "all are in use");
        let later = start + Duration::from_secs(1);
        assert!(buckets.take(MOST_KEYS, later), "all are full again, and forgotten");
        assert_eq!(buckets.by_key.lock().len(), 1);
    }
}
