//! Pauses between attempts: growing, bounded, and never the same on all hosts.

use std::time::Duration;

/// The longest pause: short beside a lease, so that a manager that is back is soon noticed.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(200);

/// The pauses of one loop.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt succeeded.
    pub(super) const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// An attempt failed: how long to wait before the next, at most `longest`. `chance` is from 0
    /// to 1: half of the pause depends on it, so that hosts do not come back all at once.
    pub(super) fn failed(&mut self, longest: Duration, chance: f64) -> Duration {
        let full = SHORTEST.saturating_mul(1 << self.failures.min(10)).min(longest.min(LONGEST));
        self.failures = self.failures.saturating_add(1);
        full / 2 + (full / 2).mul_f64(chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.failed(LONGEST, 1.0)).collect();
        assert_eq!(pauses[0], SHORTEST);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[39], LONGEST);
        assert_eq!(backoff.failed(LONGEST, 0.0), LONGEST / 2);
        assert_eq!(backoff.failed(Duration::from_secs(1), 1.0), Duration::from_secs(1));
        backoff.succeeded();
        assert_eq!(backoff.failed(LONGEST, 1.0), SHORTEST);
    }
}
