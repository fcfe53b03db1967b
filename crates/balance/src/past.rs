//! How long overloads last.
//!
//! Most overloads are over before a move could help: of those of memory 88 % end within two minutes
//! (Williams et al., *Overdriver*, VEE'11). How long one will last is expected from how long those
//! before it did; where too few are known, from that.

use std::time::Duration;

/// Of how many overloads the length is remembered.
const REMEMBERED: usize = 8;

/// With fewer than these nothing is expected from them.
const ENOUGH: usize = 3;

/// An overload ends with so many samples in a row that are calm.
const CALM_SAMPLES: u8 = 2;

/// The present overload, and how long past ones lasted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overloads {
    /// When the present one began, and when it was last seen.
    present: Option<(Duration, Duration)>,
    calm: u8,
    /// In seconds, the newest first.
    past: [u32; REMEMBERED],
    known: u8,
}

impl Overloads {
    pub(crate) fn add(&mut self, now: Duration, high: bool) {
        if high {
            let began = self.present.map_or(now, |(began, _)| began);
            self.present = Some((began, now));
            self.calm = 0;
            return;
        }
        let Some((began, last)) = self.present else { return };
        self.calm += 1;
        if self.calm >= CALM_SAMPLES {
            self.past.rotate_right(1);
            self.past[0] = u32::try_from(last.saturating_sub(began).as_secs()).unwrap_or(u32::MAX);
            self.known = self.known.saturating_add(1);
            self.present = None;
            self.calm = 0;
        }
    }

    pub(crate) const fn is_present(&self) -> bool {
        self.present.is_some()
    }

    /// How long the present one has lasted.
    pub(crate) fn age(&self, now: Duration) -> Duration {
        self.present.map_or(Duration::ZERO, |(began, _)| now.saturating_sub(began))
    }

    /// How much longer the present one is expected to last, if it is expected to be short in all.
    pub(crate) fn left_if_short(&self, now: Duration, short: Duration) -> Option<Duration> {
        let age = self.age(now);
        let known = usize::from(self.known).min(REMEMBERED);
        if known < ENOUGH {
            return short.checked_sub(age).filter(|left| !left.is_zero());
        }
        let past = self.past[..known].iter().map(|seconds| Duration::from_secs((*seconds).into()));
        let mut longer: Vec<_> = past.filter(|length| *length >= age).collect();
        longer.sort_unstable();
        // The upper of two medians: rather a move too many than an overload too long.
        let expected = *longer.get(longer.len() / 2)?;
        (expected <= short).then(|| expected - age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(120);

    /// Overloads of these lengths, a sample every ten seconds, and the one that begins then.
    fn after(lengths: &[u64]) -> (Overloads, Duration) {
        let mut overloads = Overloads::default();
        let mut now = 0;
        for length in lengths {
            for at in (0..=*length).step_by(10) {
                overloads.add(Duration::from_secs(now + at), true);
            }
            now += length;
            for _ in 0..2 {
                now += 10;
                overloads.add(Duration::from_secs(now), false);
            }
        }
        now += 100;
        overloads.add(Duration::from_secs(now), true);
        (overloads, Duration::from_secs(now))
    }

    fn left(lengths: &[u64], age: u64) -> Option<u64> {
        let (overloads, began) = after(lengths);
        let now = began + Duration::from_secs(age);
        overloads.left_if_short(now, SHORT).map(|left| left.as_secs())
    }

    #[test]
    fn an_unknown_overload_is_expected_to_be_short_until_it_is_not() {
        assert_eq!(left(&[], 0), Some(120));
        assert_eq!(left(&[], 110), Some(10));
        assert_eq!(left(&[], 120), None);
        assert_eq!(left(&[600, 600], 0), Some(120));
    }

    #[test]
    fn past_overloads_tell_how_long_it_lasts() {
        assert_eq!(left(&[600, 600, 600], 0), None);
        assert_eq!(left(&[30, 40, 50], 0), Some(40));
        assert_eq!(left(&[30, 40, 50], 45), Some(5));
        assert_eq!(left(&[30, 40, 50], 60), None);
        // Those longer than this one has lasted count.
        assert_eq!(left(&[10, 10, 10, 600, 600], 0), Some(10));
        assert_eq!(left(&[10, 10, 10, 600, 600], 20), None);
    }

    #[test]
    fn one_calm_sample_is_no_end() {
        let mut overloads = Overloads::default();
        for (at, high) in [(0, true), (10, false), (20, true), (30, true)] {
            overloads.add(Duration::from_secs(at), high);
        }
        assert_eq!(overloads.age(Duration::from_secs(30)), Duration::from_secs(30));
    }
}
