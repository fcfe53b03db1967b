//! Lets so many pass in a second, in the order in which they come.
//!
//! To tell a host what changed costs the manager an answer, then a report and a commit. In a burst of
//! creations that would be most of its work, for one VM at a time. When hosts are told at a pace, one
//! that waits for its turn hears of all that has come together meanwhile, and what users ask for and
//! the renewal of leases keep their time. At rest nobody waits.
//!
//! The generic cell rate algorithm (ITU-T I.371): one instant is all its state.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pace {
    gap: Duration,
    /// How far the next turn may lie behind the clock: what passes at once after a rest.
    credit: Duration,
    longest: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    /// `per_second` in the long run and `at_once` after a rest; nobody waits for longer than
    /// `longest`, even if more pass then.
    pub(crate) fn new(per_second: u32, at_once: u32, longest: Duration) -> Self {
        let gap = Duration::from_secs(1) / per_second.max(1);
        Self { gap, credit: gap * at_once, longest, next: Mutex::new(None) }
    }

    /// Waits for its turn.
    pub(crate) async fn turn(&self) {
        let at = self.take(Instant::now());
        sleep_until(at).await;
    }

    fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock();
        let rested = now.checked_sub(self.credit).unwrap_or(now);
        let at = next.map_or(rested, |next| next.max(rested));
        let latest = now + self.longest;
        if at >= latest {
            return latest;
        }
        *next = Some(at + self.gap);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn after_a_rest_some_pass_at_once_and_then_one_each_gap() {
        let pace = Pace::new(10, 5, SECOND * 10);
        let start = Instant::now() + SECOND * 100;
        let waits: Vec<u128> =
            (0..8).map(|_| pace.take(start).saturating_duration_since(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 100, 200]);
        // In the long run it is ten a second, whenever they come.
        let passed = (0..1000u32)
            .filter(|i| pace.take(start + SECOND * *i / 100) <= start + SECOND * 9)
            .count();
        assert!((80..=100).contains(&passed), "{passed}");
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let pace = Pace::new(10, 1, SECOND * 2);
        let now = Instant::now() + SECOND * 100;
        let longest = (0..1000).map(|_| pace.take(now) - now).max();
        assert_eq!(longest, Some(SECOND * 2));
        // Those beyond the limit take no turn from those who come later.
        assert!(pace.take(now + SECOND * 3) <= now + SECOND * 3);
    }

    #[tokio::test]
    async fn turns_are_waited_for() {
        let pace = Pace::new(100, 0, SECOND * 10);
        let start = Instant::now();
        for _ in 0..4 {
            pace.turn().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(30), "{:?}", start.elapsed());
    }
}
