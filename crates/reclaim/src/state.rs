//! How short of memory a host is.
//!
//! The states and their thresholds are those of Waldspurger, OSDI'02, section 6.3:
//!
//! ```text
//!  free memory    7 %      6.5     6     4.5   4     2.5   2     1.5   1 %
//!       high  ----|---------------------------->|
//!       soft      |<-- above 6.5 %               |---------->|
//!       hard                              above 4.5 % -->    |---------->|
//!       low                                           above 2.5 % -->     |---->
//! ```
//!
//! A state is entered as soon as free memory falls below its threshold, and left one step at a time
//! when free memory is above the threshold of the next better state and half a percent more.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::view::Pressure;

/// How short of memory a host is, and so by which means memory is taken.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is enough: nothing is taken for the host's sake. VMs that need more get it from what
    /// is free, and then from those whose pages cost least.
    #[default]
    High,
    /// Below 4 %: guests are asked (balloon).
    Soft,
    /// Below 2 %: the host pages out as well.
    Hard,
    /// Below 1 %: nobody may grow either, but for guaranteed VMs and up to a minimum.
    Low,
}

/// Below these per mille of the memory a state is entered; the first is what `High` is left for.
const ENTER_SOFT: u64 = 40;
const ENTER_HARD: u64 = 20;
const ENTER_LOW: u64 = 10;
/// Above this per mille `High` is entered again.
const HIGH: u64 = 60;
/// How much above a threshold free memory must be for the state to become better.
const MARGIN: u64 = 5;
/// What is to be free when memory is taken or given, per mille: enough for `High`.
pub(crate) const GOAL: u64 = HIGH + 2 * MARGIN;
/// What may be free at least while the state is `High`, per mille.
pub(crate) const LEAST: u64 = ENTER_SOFT;
/// A host that stands still for want of memory for so many per mille of the time is short of it,
/// whatever is free.
const FULL_PRESSURE: u16 = 200;

impl State {
    /// The state after this one, with so much free of so much memory.
    pub(crate) fn next(self, free: u64, memory: u64, pressure: Pressure) -> Self {
        let above =
            |per_mille: u64| u128::from(free) * 1000 > u128::from(memory) * u128::from(per_mille);
        let below =
            |per_mille: u64| u128::from(free) * 1000 < u128::from(memory) * u128::from(per_mille);
        let fallen = if below(ENTER_LOW) {
            Self::Low
        } else if below(ENTER_HARD) {
            Self::Hard
        } else if below(ENTER_SOFT) {
            Self::Soft
        } else {
            Self::High
        };
        let mut state = self;
        loop {
            let (better, threshold) = match state {
                Self::Low => (Self::Hard, ENTER_HARD),
                Self::Hard => (Self::Soft, ENTER_SOFT),
                Self::Soft => (Self::High, HIGH),
                Self::High => break,
            };
            if !above(threshold + MARGIN) {
                break;
            }
            state = better;
        }
        let stalled = if pressure.full >= FULL_PRESSURE { Self::Soft } else { Self::High };
        state.max(fallen).max(stalled)
    }

    /// Whether guests are asked for memory because the host needs it.
    #[must_use]
    pub fn balloons(self) -> bool {
        self >= Self::Soft
    }

    /// Whether the host pages out.
    #[must_use]
    pub fn pages_out(self) -> bool {
        self >= Self::Hard
    }

    /// Whether VMs may not grow.
    #[must_use]
    pub fn stops_growth(self) -> bool {
        self == Self::Low
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::High => "high",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(percents: &[u64]) -> Vec<State> {
        let mut state = State::High;
        let mut walk = Vec::new();
        for per_mille in percents {
            state = state.next(*per_mille, 1000, Pressure::default());
            walk.push(state);
        }
        walk
    }

    #[test]
    fn states_are_entered_at_their_threshold_and_left_above_the_next() {
        use State::{Hard, High, Low, Soft};
        let falling = walk(&[60, 40, 39, 20, 19, 10, 9]);
        assert_eq!(falling, [High, High, Soft, Soft, Hard, Hard, Low]);
        let rising = walk(&[9, 10, 25, 26, 45, 46, 65, 66]);
        assert_eq!(rising, [Low, Low, Low, Hard, Hard, Soft, Soft, High]);
        assert_eq!(walk(&[0, 1000]), [Low, High]);
        assert_eq!(walk(&[39, 64, 41, 64, 39]), [Soft; 5], "no flutter between 4 and 6.5 %");
    }

    #[test]
    fn a_host_that_stands_still_is_short_whatever_is_free() {
        let stalled = Pressure { some: 900, full: 200 };
        assert_eq!(State::High.next(500, 1000, stalled), State::Soft);
        assert_eq!(State::Low.next(0, 1000, stalled), State::Low);
        assert_eq!(State::High.next(u64::MAX, u64::MAX, Pressure::default()), State::High);
        // Of nothing, nothing is lacking.
        assert_eq!(State::High.next(0, 0, Pressure::default()), State::High);
    }
}
