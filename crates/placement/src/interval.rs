//! When a VM holds what it is promised.

use std::{fmt, time::Duration};

use plimsoll_model::{Resources, Timestamp};
use serde::{Deserialize, Serialize};

use crate::request::Request;

/// A stretch of time, half open: its first instant belongs to it, its end does not. One that ends
/// before it begins is empty: nothing is held in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// Its first instant; none when it began before everything that is decided about: what is
    /// there now is there from always.
    #[serde(default)]
    pub from: Option<Timestamp>,
    /// Its end; none when it has none.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

impl Interval {
    /// All of time: what a VM holds that is there now and stays until it is released.
    pub const ALWAYS: Self = Self { from: None, until: None };

    /// From a first instant for so long, or for ever. An end beyond the end of the calendar is
    /// none.
    #[must_use]
    pub fn starting(from: Timestamp, duration: Option<Duration>) -> Self {
        let until = duration.and_then(|duration| from.checked_add(duration).ok());
        Self { from: Some(from), until }
    }

    /// Whether it is all of time.
    #[must_use]
    pub const fn is_always(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }

    /// Whether it has no instant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!((self.from, self.until), (Some(from), Some(until)) if until <= from)
    }

    /// Whether an instant belongs to it.
    #[must_use]
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= instant)
            && self.until.is_none_or(|until| instant < until)
    }

    /// Whether some instant belongs to both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let before = |until: Option<Timestamp>, from: Option<Timestamp>| match (until, from) {
            (Some(until), Some(from)) => until <= from,
            _ => false,
        };
        !self.is_empty()
            && !other.is_empty()
            && !before(self.until, other.from)
            && !before(other.until, self.from)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, "from {from:.0}")?,
            None => f.write_str("from now")?,
        }
        match self.until {
            Some(until) => write!(f, " until {until:.0}"),
            None => f.write_str(" on"),
        }
    }
}

/// The time for which a request is asked, or a commitment holds. Disk space may be held for longer
/// than the rest: a VM that has ended still has its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) interval: Interval,
    /// Whether disk space is held from the first instant on for ever.
    pub(crate) keeps_disk: bool,
}

impl Span {
    pub(crate) const ALWAYS: Self = Self { interval: Interval::ALWAYS, keeps_disk: false };

    /// When the request holds what it asks for.
    pub(crate) const fn of(request: &Request) -> Self {
        Self { interval: request.interval, keeps_disk: request.keeps_disk }
    }

    /// What of a demand ends with the interval.
    pub(crate) fn ending(&self, demand: &Resources) -> [u64; crate::row::SCALARS] {
        let mut ending = demand.scalars();
        if self.keeps_disk {
            ending[DISK] = 0;
        }
        ending
    }
}

/// The place of disk space among the scalars.
pub(crate) const DISK: usize = 2;

#[cfg(test)]
mod tests {
    use plimsoll_model::Element;

    use super::*;

    #[test]
    fn intervals_are_half_open() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let interval = |from: Option<i64>, until: Option<i64>| Interval {
            from: from.map(at),
            until: until.map(at),
        };
        let hour = interval(Some(0), Some(3600));
        assert!(hour.contains(at(0)) && hour.contains(at(3599)) && !hour.contains(at(3600)));
        assert!(!hour.overlaps(&interval(Some(3600), None)), "one begins as the other ends");
        assert!(hour.overlaps(&interval(Some(3599), None)));
        assert!(hour.overlaps(&Interval::ALWAYS));
        assert!(!hour.overlaps(&interval(None, Some(0))));
        assert!(interval(None, Some(0)).overlaps(&interval(None, Some(-9))), "long ago");
        assert!(!Interval::ALWAYS.overlaps(&interval(Some(5), Some(5))), "empty");
        assert_eq!(Interval::starting(at(0), Some(Duration::from_secs(3600))), hour);
        assert_eq!(Interval::starting(at(0), Some(Duration::MAX)), interval(Some(0), None));
        assert_eq!(Element::SCALARS[DISK], Element::Disk);
    }
}
