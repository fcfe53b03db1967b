//! How far a VM gives back what it was promised while the host needs it for others.
//!
//! The class is a part of what the user wants of a VM; who gives how much, and when, is decided by
//! the `reclaim` crate. A minimum is a promise: no decision goes below it.

mod utility;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    resources::{Element, Resources},
    units::{Bytes, MilliCores},
};

pub use utility::{Fraction, InvalidCurve, InvalidFraction, UtilityCurve, UtilityPoint};

/// The shares of a VM that names none.
pub const DEFAULT_SHARES: u32 = 100;
/// The most shares that a VM can have; the least is one.
pub const MAX_SHARES: u32 = 10_000;
/// No minimum is less memory than this: a Linux guest does not live in less. (A VM that was promised
/// less has all of it as its minimum.)
pub const LEAST_MEMORY: Bytes = Bytes::mib(64);
/// No minimum is less CPU than this, the least quota that the kernel takes.
pub const LEAST_CPU: MilliCores = MilliCores(10);

const fn default_shares() -> u32 {
    DEFAULT_SHARES
}

/// How far a VM gives back what it was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Elasticity {
    /// It has what it was promised. Only memory that its guest reports as free is lent to others,
    /// and it is there again when the guest touches it.
    #[default]
    Guaranteed,
    /// What it was promised is its most. When the host is short it is cut by shares and by how
    /// much of its memory lies idle, down to the minimum.
    Burstable {
        /// The memory that it always has.
        memory_min: Bytes,
        /// The CPU that it always gets when it wants it.
        cpu_min: MilliCores,
        /// Its weight, from 1 to 10,000, for each byte and core that it was promised: of two VMs
        /// with equal shares, the one that was promised twice as much keeps twice as much.
        #[serde(default = "default_shares")]
        shares: u32,
    },
    /// It is cut where that costs the least performance, by its utility curves, down to the
    /// minimum.
    Deflatable {
        /// The memory that it always has.
        memory_min: Bytes,
        /// The CPU that it always gets when it wants it.
        cpu_min: MilliCores,
        /// Its weight, as with `burstable`: what a loss of its performance counts.
        #[serde(default = "default_shares")]
        shares: u32,
        /// Its performance against what it has; without, a typical curve.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        utility: Option<UtilityCurves>,
    },
}

/// The curves of a VM, declared or measured. A resource without one has a typical curve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UtilityCurves {
    /// Against the share of its memory that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<UtilityCurve>,
    /// Against the share of its CPU that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<UtilityCurve>,
}

/// An elasticity that cannot be had with what the VM is promised.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ElasticityError {
    /// The minimum is more than the promise.
    #[error("a minimum of {} is more than the {} promised", element.print(*minimum), element.print(*promised))]
    MinimumAbovePromise {
        /// Memory or CPU.
        element: Element,
        /// The minimum, in the element's base unit.
        minimum: u64,
        /// What is promised, in the element's base unit.
        promised: u64,
    },
    /// A guest cannot live with the minimum.
    #[error("a minimum of {} is less than the {} without which no guest lives", element.print(*minimum), element.print(*least))]
    MinimumTooSmall {
        /// Memory or CPU.
        element: Element,
        /// The minimum, in the element's base unit.
        minimum: u64,
        /// The least that it can be, in the element's base unit.
        least: u64,
    },
    /// The shares are none or too many.
    #[error("{shares} shares: from 1 to {MAX_SHARES} are possible")]
    Shares {
        /// How many were asked for.
        shares: u32,
    },
}

impl Elasticity {
    /// What the VM always has: memory and CPU, never more than it was promised.
    #[must_use]
    pub fn minimum(&self, memory: Bytes, cpu: MilliCores) -> (Bytes, MilliCores) {
        match self {
            Self::Guaranteed => (memory, cpu),
            Self::Burstable { memory_min, cpu_min, .. }
            | Self::Deflatable { memory_min, cpu_min, .. } => {
                ((*memory_min).min(memory), (*cpu_min).min(cpu))
            }
        }
    }

    /// Its shares; those of a VM that is never cut are the most that there are.
    #[must_use]
    pub fn shares(&self) -> u32 {
        match self {
            Self::Guaranteed => MAX_SHARES,
            Self::Burstable { shares, .. } | Self::Deflatable { shares, .. } => {
                (*shares).clamp(1, MAX_SHARES)
            }
        }
    }

    /// The class's name, as in files.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::Burstable { .. } => "burstable",
            Self::Deflatable { .. } => "deflatable",
        }
    }

    /// Checks that a VM that is promised `promised` can be of this class.
    ///
    /// # Errors
    /// A minimum above the promise or too small to live with, or shares out of range.
    pub fn check(&self, promised: &Resources) -> Result<(), ElasticityError> {
        let (memory, cpu) = match self {
            Self::Guaranteed => return Ok(()),
            Self::Burstable { memory_min, cpu_min, shares }
            | Self::Deflatable { memory_min, cpu_min, shares, .. } => {
                if !(1..=MAX_SHARES).contains(shares) {
                    return Err(ElasticityError::Shares { shares: *shares });
                }
                (memory_min.0, cpu_min.0)
            }
        };
        check_minimum(Element::Memory, memory, promised.memory.0, LEAST_MEMORY.0)?;
        check_minimum(Element::Cpu, cpu, promised.cpu.0, LEAST_CPU.0)
    }
}

impl fmt::Display for Elasticity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())?;
        match self {
            Self::Guaranteed => Ok(()),
            Self::Burstable { memory_min, cpu_min, shares }
            | Self::Deflatable { memory_min, cpu_min, shares, .. } => {
                write!(f, ", at least {cpu_min} cores and {memory_min}, {shares} shares")
            }
        }
    }
}

fn check_minimum(
    element: Element,
    minimum: u64,
    promised: u64,
    least: u64,
) -> Result<(), ElasticityError> {
    let least = least.min(promised);
    if minimum > promised {
        return Err(ElasticityError::MinimumAbovePromise { element, minimum, promised });
    }
    if minimum < least {
        return Err(ElasticityError::MinimumTooSmall { element, minimum, least });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised() -> Resources {
        Resources { cpu: MilliCores::cores(2), memory: Bytes::gib(1), ..Resources::default() }
    }

    fn burstable(mib: u64, cpu: u64, shares: u32) -> Elasticity {
        Elasticity::Burstable { memory_min: Bytes::mib(mib), cpu_min: MilliCores(cpu), shares }
    }

    #[test]
    fn a_minimum_is_possible_and_within_the_promise() {
        for (elasticity, text) in [
            (Elasticity::Guaranteed, None),
            (burstable(64, 10, 1), None),
            (burstable(1024, 2000, MAX_SHARES), None),
            (burstable(1025, 10, 1), Some("a minimum of 1025MiB is more than the 1GiB promised")),
            (
                burstable(63, 10, 1),
                Some("a minimum of 63MiB is less than the 64MiB without which no guest lives"),
            ),
            (
                burstable(64, 2001, 1),
                Some("a minimum of 2001m cores is more than the 2 cores promised"),
            ),
            (
                burstable(64, 9, 1),
                Some(
                    "a minimum of 9m cores is less than the 10m cores without which no guest lives",
                ),
            ),
            (burstable(64, 10, 0), Some("0 shares: from 1 to 10000 are possible")),
            (burstable(64, 10, 10_001), Some("10001 shares: from 1 to 10000 are possible")),
        ] {
            let error = elasticity.check(&promised()).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), text, "{elasticity:?}");
        }
        let tiny = Resources { memory: Bytes::mib(32), ..promised() };
        assert_eq!(burstable(32, 10, 1).check(&tiny), Ok(()), "all of it");
    }

    #[test]
    fn files_name_the_class_and_leave_out_what_is_usual() {
        let read = |text: &str| serde_json::from_str::<Elasticity>(text);
        assert_eq!(read(r#"{"class": "guaranteed"}"#).ok(), Some(Elasticity::Guaranteed));
        let text = r#"{"class": "burstable", "memory_min": "256MiB", "cpu_min": "500m"}"#;
        assert_eq!(read(text).ok(), Some(burstable(256, 500, DEFAULT_SHARES)));
        let text = r#"{"class":"deflatable","memory_min":"256MiB","cpu_min":"500m","shares":7,"utility":{"memory":[[0.25,0.4],[1,1]]}}"#;
        let deflatable = read(text).unwrap();
        assert_eq!(deflatable.shares(), 7);
        let written = serde_json::to_string(&deflatable).unwrap();
        assert_eq!(read(&written).unwrap(), deflatable);
        assert!(written.contains("[[0.25,0.4],[1.0,1.0]]"), "{written}");
        for broken in [
            r#"{"class": "elastic"}"#,
            r#"{"class": "burstable"}"#,
            r#"{"class": "burstable", "memory_min": "1GiB", "cpu_min": 1, "share": 2}"#,
            r#"{"class": "deflatable", "memory_min": "1GiB", "cpu_min": 1, "utility": {"memory": [[0.5, 1]]}}"#,
            r#"{"class": "deflatable", "memory_min": "1GiB", "cpu_min": 1, "utility": {"disk": []}}"#,
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn nobody_has_a_minimum_above_the_promise() {
        let greedy = burstable(4096, 8000, 1);
        let least = greedy.minimum(Bytes::gib(1), MilliCores::cores(2));
        assert_eq!(least, (Bytes::gib(1), MilliCores::cores(2)));
        let all = Elasticity::Guaranteed.minimum(Bytes::gib(1), MilliCores::cores(2));
        assert_eq!(all, (Bytes::gib(1), MilliCores::cores(2)));
    }
}
