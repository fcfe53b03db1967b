//! What decides how many VMs a host can take.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use thiserror::Error;

/// A policy of overcommitment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// What was promised fits into each host.
    None,
    /// So many times what a host has may be promised. VMs never move.
    Fixed(f64),
    /// Each VM is booked with so many times the 95th percentile of its last week.
    P95(f64),
    /// Each VM is booked with so many times the most of its last week.
    Peak(f64),
    /// Each host's peak is predicted from its VMs' histories together, at the stated risk.
    Plimsoll,
}

impl Policy {
    /// Those that a comparison has, with usual ratios.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Fixed(1.5),
        Self::Fixed(2.0),
        Self::Fixed(3.0),
        Self::P95(1.0),
        Self::P95(1.1),
        Self::Peak(1.0),
        Self::Plimsoll,
    ];
}

/// The text is not a policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a policy of overcommitment: use none, fixed:X (such as fixed:2), p95, peak, \
     p95:X or peak:X (booked X times), plimsoll, or all; X is from 0.1 to 100"
)]
pub struct InvalidPolicy {
    text: String,
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (name, times) = match text.split_once(':') {
                Some((name, times)) => (name, Some(ratio(times)?)),
                None => (text, None),
            };
            match (name, times) {
                ("none", None) => Some(Self::None),
                ("fixed", Some(ratio)) => Some(Self::Fixed(ratio)),
                ("p95", times) => Some(Self::P95(times.unwrap_or(1.0))),
                ("peak", times) => Some(Self::Peak(times.unwrap_or(1.0))),
                ("plimsoll", None) => Some(Self::Plimsoll),
                _ => None,
            }
        };
        parse().ok_or_else(|| InvalidPolicy { text: text.chars().take(64).collect() })
    }
}

fn ratio(text: &str) -> Option<f64> {
    text.parse().ok().filter(|ratio| (0.1..=100.0).contains(ratio))
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let booked = |f: &mut fmt::Formatter<'_>, name: &str, times: f64| {
            // What is not said is 1.
            if (times - 1.0).abs() < f64::EPSILON {
                f.pad(name)
            } else {
                f.pad(&format!("{name}:{times}"))
            }
        };
        match self {
            Self::None => f.pad("none"),
            Self::Fixed(ratio) => f.pad(&format!("fixed:{ratio}")),
            Self::P95(times) => booked(f, "p95", *times),
            Self::Peak(times) => booked(f, "peak", *times),
            Self::Plimsoll => f.pad("plimsoll"),
        }
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
