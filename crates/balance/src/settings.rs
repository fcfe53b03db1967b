//! When a host is hot, and what may be done about it.

use std::time::Duration;

use plimsoll_model::BytesPerSecond;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    resource::{Permille, Resource},
    series::MOST_MARKS,
};

/// When a host is hot, and what may be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The share of a host's CPU, disk and network above which it is overloaded.
    pub threshold: Permille,
    /// The share of its memory above which it can be: higher, for what guests were given they fill
    /// with their page caches, and that costs nobody anything before it is needed.
    pub memory_threshold: Permille,
    /// From this share of time on, in which some task stood still, pressure counts. Where it is
    /// measured, a host is short of memory only if it counts.
    pub pressure: Permille,
    /// From here on swapping counts. Where it is measured, a host is short of memory only if it, or
    /// pressure, counts.
    pub swap: BytesPerSecond,
    /// How much below the threshold a target has to stay after a move.
    pub margin: Permille,
    /// From this share on a host is in an emergency, in which no VM is spared for having moved.
    pub emergency: Permille,
    /// So many of the last samples (k of n) have to be above the threshold.
    pub high_samples: u32,
    /// Of so many samples.
    pub samples: u32,
    /// The least that a move must take from the sum of overloads, as a share of one host.
    pub least_gain: Permille,
    /// A VM that moved is not moved again for so long.
    pub cooldown: Duration,
    /// What is over within this time is short: it is met by changing limits first.
    pub short_overload: Duration,
    /// How many moves may run at once in the cluster.
    pub moves_at_once: u32,
    /// What one move can send a second.
    pub bandwidth: BytesPerSecond,
    /// How many times a plan may ask placement about a host: it bounds how long a plan takes.
    pub most_looks: u32,
}

impl Default for Settings {
    /// Sandpiper's k, n and threshold; the rest is argued for in `docs/balance.md`.
    fn default() -> Self {
        Self {
            threshold: Permille(750),
            memory_threshold: Permille(900),
            pressure: Permille(100),
            swap: BytesPerSecond(1 << 20),
            margin: Permille(100),
            emergency: Permille(950),
            high_samples: 3,
            samples: 5,
            least_gain: Permille(10),
            cooldown: Duration::from_secs(300),
            short_overload: Duration::from_secs(120),
            moves_at_once: 8,
            bandwidth: BytesPerSecond(1 << 30),
            most_looks: 200_000,
        }
    }
}

/// Settings that contradict themselves.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidSettings {
    /// A share that must be above zero and at most one is not.
    #[error("{setting} is {value}: it must be more than 0 and at most 100 %")]
    NoShare {
        /// Which setting.
        setting: &'static str,
        /// What it is.
        value: Permille,
    },
    /// No target could stay below the threshold by the margin.
    #[error("the margin of {margin} is not below the threshold of {threshold}")]
    Margin {
        /// The margin.
        margin: Permille,
        /// The lower of the two thresholds.
        threshold: Permille,
    },
    /// An emergency would begin before the overload.
    #[error("an emergency from {emergency} on begins below the threshold of {threshold}")]
    Emergency {
        /// Where it begins.
        emergency: Permille,
        /// The threshold.
        threshold: Permille,
    },
    /// k of n is not between 1 of 1 and 32 of 32.
    #[error("{high} of the last {samples} samples: it must be 1 to n, of at most {MOST_MARKS}")]
    Samples {
        /// k.
        high: u32,
        /// n.
        samples: u32,
    },
    /// Nothing can be sent.
    #[error("moves need a bandwidth above zero")]
    NoBandwidth,
}

impl Settings {
    /// Checks that they do not contradict themselves.
    ///
    /// # Errors
    /// The first that does.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        let shares = [
            ("the threshold", self.threshold),
            ("the memory threshold", self.memory_threshold),
            ("the pressure", self.pressure),
            ("the least gain", self.least_gain),
        ];
        for (setting, value) in shares {
            if value.0 == 0 || value.0 > 1000 {
                return Err(InvalidSettings::NoShare { setting, value });
            }
        }
        let (margin, lower) = (self.margin, self.threshold.min(self.memory_threshold));
        if margin >= lower {
            return Err(InvalidSettings::Margin { margin, threshold: lower });
        }
        if self.emergency < self.threshold {
            let (emergency, threshold) = (self.emergency, self.threshold);
            return Err(InvalidSettings::Emergency { emergency, threshold });
        }
        let (high, samples) = (self.high_samples, self.samples);
        if high == 0 || high > samples || samples > MOST_MARKS {
            return Err(InvalidSettings::Samples { high, samples });
        }
        if self.bandwidth == BytesPerSecond::ZERO {
            return Err(InvalidSettings::NoBandwidth);
        }
        Ok(())
    }

    /// Above this share of a resource a host is overloaded.
    #[must_use]
    pub const fn threshold_of(&self, resource: Resource) -> Permille {
        match resource {
            Resource::Memory => self.memory_threshold,
            Resource::Cpu | Resource::Disk | Resource::DiskOperations | Resource::Network => {
                self.threshold
            }
        }
    }

    /// Up to this share of a resource a host may be filled by moves.
    #[must_use]
    pub const fn limit_of(&self, resource: Resource) -> Permille {
        Permille(self.threshold_of(resource).0.saturating_sub(self.margin.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_contradict_themselves_are_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert_eq!(Settings::default().check(), Ok(()));
        insta::assert_snapshot!(
            [
                refused(|s| s.threshold = Permille(0)),
                refused(|s| s.memory_threshold = Permille(1001)),
                refused(|s| s.margin = Permille(750)),
                refused(|s| s.emergency = Permille(700)),
                refused(|s| s.high_samples = 6),
                refused(|s| (s.high_samples, s.samples) = (1, 33)),
                refused(|s| s.bandwidth = BytesPerSecond(0)),
            ]
            .join("\n"),
            @r"
        the threshold is 0.0 %: it must be more than 0 and at most 100 %
        the memory threshold is 100.1 %: it must be more than 0 and at most 100 %
        the margin of 75.0 % is not below the threshold of 75.0 %
        an emergency from 70.0 % on begins below the threshold of 75.0 %
        6 of the last 5 samples: it must be 1 to n, of at most 32
        1 of the last 33 samples: it must be 1 to n, of at most 32
        moves need a bandwidth above zero
        "
        );
    }
}
