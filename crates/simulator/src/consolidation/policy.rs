//! What decides who moves.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use thiserror::Error;

use super::{Aim, Experiment, fleet::Fleet, plimsoll::Plimsoll, reference::Reference};

/// A policy of consolidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Hosts above 80 % are relieved of the VMs that move fastest; the emptiest hosts are emptied.
    ThresholdMmt,
    /// The threshold is 1 - 1.5 times the interquartile range of the host's use.
    InterquartileMmt,
    /// The threshold is 1 - 2.5 times the median absolute deviation of the host's use.
    MedianDeviationMmt,
    /// A host is relieved when 1.2 times what a straight line through its last ten uses foretells is
    /// above what it has.
    LocalRegressionMmt,
    /// [`plimsoll_balance::consolidate`].
    Plimsoll,
}

impl Policy {
    /// All, in the order of a comparison.
    pub const ALL: [Self; 5] = [
        Self::ThresholdMmt,
        Self::InterquartileMmt,
        Self::MedianDeviationMmt,
        Self::LocalRegressionMmt,
        Self::Plimsoll,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::ThresholdMmt => "thr-mmt",
            Self::InterquartileMmt => "iqr-mmt",
            Self::MedianDeviationMmt => "mad-mmt",
            Self::LocalRegressionMmt => "lr-mmt",
            Self::Plimsoll => "plimsoll",
        }
    }

    /// Who decides.
    pub(super) fn decider(self, experiment: &Experiment, aim: &Aim) -> Decider {
        match self {
            Self::Plimsoll => Decider::Plimsoll(Box::new(Plimsoll::new(experiment, aim))),
            reference => Decider::Reference(Reference::new(reference)),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The text is not a policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a policy of consolidation: use thr-mmt, iqr-mmt, mad-mmt, lr-mmt, plimsoll, or all"
)]
pub struct InvalidPolicy {
    text: String,
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|policy| policy.name() == text);
        known.ok_or_else(|| InvalidPolicy { text: text.chars().take(40).collect() })
    }
}

/// A policy with what it remembers.
pub(super) enum Decider {
    Reference(Reference),
    Plimsoll(Box<Plimsoll>),
}

impl Decider {
    /// Which VM moves to which host; nothing after this round's sample is looked at.
    pub(super) fn decide(
        &mut self,
        experiment: &Experiment,
        round: usize,
        fleet: &Fleet,
    ) -> Vec<(usize, usize)> {
        match self {
            Self::Reference(reference) => reference.decide(experiment, round, fleet),
            Self::Plimsoll(plimsoll) => plimsoll.decide(experiment, round, fleet),
        }
    }
}
