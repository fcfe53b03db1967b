//! How much of its memory a VM uses: its working set.
//!
//! After Waldspurger (OSDI'02, 5.3): of a few pages, chosen at random, it is counted how many were
//! touched in a period. Two averages are kept that forget at different speeds, and of them and the
//! newest count the largest is believed: a VM that begins to use its memory gets it at once, one that
//! stops loses it slowly. Beside counts of touched pages it takes what a guest says: what it could not
//! give back and the file pages that it used again; and the pressure under which it is, as a guest
//! that waits for memory uses all that it has.

use plimsoll_model::Bytes;
use serde::{Deserialize, Serialize};

use crate::{account::SHORT, view::GuestView};

/// The time constant of the fast average, in milliseconds.
const FAST_MS: u64 = 10_000;
/// That of the slow one: a VM that is idle for a coffee break does not lose its memory.
const SLOW_MS: u64 = 300_000;

/// Pages that were looked at, and how many of them were touched since they were looked at before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accessed {
    /// How many were touched; no more than `sampled` count.
    pub touched: u32,
    /// How many were looked at. Of 100, the estimate is within 10 points of the truth in 95 % of
    /// cases at the worst.
    pub sampled: u32,
    /// Of how much memory they were chosen.
    pub of: Bytes,
}

/// The estimate of one VM's working set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    newest: Option<Bytes>,
    fast: Bytes,
    slow: Bytes,
}

impl WorkingSet {
    /// Takes in what was seen, `elapsed_ms` after the observation before. Of both kinds the larger
    /// counts; without either nothing changes.
    pub fn observe(
        &mut self,
        guest: Option<&GuestView>,
        accessed: Option<Accessed>,
        elapsed_ms: u64,
    ) {
        let said = guest.map(used);
        let touched = accessed.and_then(touched);
        let Some(seen) = said.max(touched) else { return };
        if self.newest.is_none() {
            (self.fast, self.slow) = (seen, seen);
        } else {
            self.fast = follow(self.fast, seen, elapsed_ms, FAST_MS);
            self.slow = follow(self.slow, seen, elapsed_ms, SLOW_MS);
        }
        self.newest = Some(seen);
    }

    /// The working set; `None` while nothing was observed.
    #[must_use]
    pub fn estimate(&self) -> Option<Bytes> {
        self.newest.map(|newest| newest.max(self.fast).max(self.slow))
    }
}

/// What a guest uses by its own account.
fn used(guest: &GuestView) -> Bytes {
    if guest.starved || guest.pressure.some >= SHORT {
        return guest.total;
    }
    let required = guest.total.saturating_sub(guest.available.max(guest.free));
    required.saturating_add(guest.active_file).min(guest.total)
}

fn touched(accessed: Accessed) -> Option<Bytes> {
    let Accessed { touched, sampled, of } = accessed;
    let touched = u128::from(touched.min(sampled));
    let bytes = (u128::from(of.0) * touched).checked_div(u128::from(sampled))?;
    u64::try_from(bytes).ok().map(Bytes)
}

/// An average that has come nearer to a value for so long: by dt / (tau + dt) of the way, which for
/// small steps is exponential.
fn follow(average: Bytes, value: Bytes, elapsed_ms: u64, constant_ms: u64) -> Bytes {
    let way = average.0.abs_diff(value.0);
    let whole = u128::from(constant_ms) + u128::from(elapsed_ms);
    let done = u128::from(way) * u128::from(elapsed_ms) / whole.max(1);
    let done = Bytes(u64::try_from(done).unwrap_or(way));
    if value >= average { average.saturating_add(done) } else { average.saturating_sub(done) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Pressure;

    fn sample(touched: u32) -> Option<Accessed> {
        Some(Accessed { touched, sampled: 100, of: Bytes::gib(1) })
    }

    #[test]
    fn growth_is_believed_at_once_and_decline_slowly() {
        let mut set = WorkingSet::default();
        assert_eq!(set.estimate(), None);
        set.observe(None, sample(20), 1000);
        let low = Bytes(Bytes::gib(1).0 / 5);
        assert_eq!(set.estimate(), Some(low));
        set.observe(None, sample(80), 1000);
        let high = Bytes(Bytes::gib(1).0 / 5 * 4);
        assert!(set.estimate().unwrap() >= high);
        for _ in 0..300 {
            set.observe(None, sample(80), 1000);
        }
        let mut before = set.estimate().unwrap();
        for second in 0..300 {
            set.observe(None, sample(20), 1000);
            let now = set.estimate().unwrap();
            assert!(now <= before, "after {second} s");
            before = now;
        }
        // A third of the way is left after one time constant of the slow average, about.
        let left = (before.0 - low.0) * 100 / (high.0 - low.0);
        assert!((15..45).contains(&left), "{left} %");
    }

    #[test]
    fn a_guest_uses_what_it_cannot_give_back_and_what_it_used_again() {
        let guest = GuestView {
            total: Bytes::mib(1000),
            free: Bytes::mib(100),
            available: Bytes::mib(700),
            active_file: Bytes::mib(150),
            ..GuestView::default()
        };
        let estimate = |guest: GuestView, accessed| {
            let mut set = WorkingSet::default();
            set.observe(Some(&guest), accessed, 1000);
            set.estimate()
        };
        assert_eq!(estimate(guest, None), Some(Bytes::mib(450)));
        let more = Accessed { touched: 60, sampled: 100, of: Bytes::mib(1000) };
        assert_eq!(estimate(guest, Some(more)), Some(Bytes::mib(600)), "the larger");
        let short = GuestView { pressure: Pressure { some: 100, full: 0 }, ..guest };
        assert_eq!(estimate(short, None), Some(Bytes::mib(1000)));
        let starved = GuestView { starved: true, ..guest };
        assert_eq!(estimate(starved, None), Some(Bytes::mib(1000)));
    }

    #[test]
    fn no_number_is_too_large() {
        let mut set = WorkingSet::default();
        set.observe(None, Some(Accessed { touched: 5, sampled: 0, of: Bytes::gib(1) }), 0);
        assert_eq!(set.estimate(), None, "no page was looked at");
        let all = Accessed { touched: u32::MAX, sampled: 1, of: Bytes(u64::MAX) };
        set.observe(None, Some(all), u64::MAX);
        assert_eq!(set.estimate(), Some(Bytes(u64::MAX)));
        let nothing = GuestView { available: Bytes(u64::MAX), ..GuestView::default() };
        set.observe(Some(&nothing), None, u64::MAX);
        set.observe(Some(&nothing), None, u64::MAX);
        assert!(set.estimate() < Some(Bytes(1000)));
    }
}
