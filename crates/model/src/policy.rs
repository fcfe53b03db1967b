//! The names of the placement policies; their formulas are in the `placement` crate.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How the best among the hosts that can hold a request is chosen. Vectors are compared as shares
/// of the host's own capacity and ties go to the lowest host id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Policy {
    /// The lowest host id.
    FirstFit,
    /// The highest mean free share ("worst fit" in the packing literature): spreads.
    #[default]
    MostFree,
    /// The lowest mean free share ("best fit" in the packing literature): packs.
    LeastFree,
    /// The highest cosine of the angle between request and availability.
    Cosine,
    /// The highest sum of request times availability.
    DotProduct,
    /// The lowest squared distance between request and availability.
    L2Diff,
    /// The highest sum of request over availability: the tightest.
    L2Ratio,
    /// The steepest fall of what typical requests could not use of the free accelerators, in steps
    /// of a percent of the logistic function: fragmentation gradient descent.
    Fgd,
    /// The least loss of what typical requests could fill of the free accelerators, or of the free
    /// cores where nobody asks for accelerators.
    LeastStranding,
    /// A batch is sorted by the product of its shares, largest first, then first-fit.
    FfdProd,
    /// A batch is sorted by the sum of its shares, largest first, then first-fit.
    FfdSum,
}

impl Policy {
    /// Every policy, in the order in which help texts list them.
    pub const ALL: [Self; 11] = [
        Self::FirstFit,
        Self::MostFree,
        Self::LeastFree,
        Self::Cosine,
        Self::DotProduct,
        Self::L2Diff,
        Self::L2Ratio,
        Self::Fgd,
        Self::LeastStranding,
        Self::FfdProd,
        Self::FfdSum,
    ];

    /// The name on the command line, in files and on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstFit => "first-fit",
            Self::MostFree => "most-free",
            Self::LeastFree => "least-free",
            Self::Cosine => "cosine",
            Self::DotProduct => "dot-product",
            Self::L2Diff => "l2-diff",
            Self::L2Ratio => "l2-ratio",
            Self::Fgd => "fgd",
            Self::LeastStranding => "least-stranding",
            Self::FfdProd => "ffd-prod",
            Self::FfdSum => "ffd-sum",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a placement policy: use first-fit, most-free, least-free, cosine, \
     dot-product, l2-diff, l2-ratio, fgd, least-stranding, ffd-prod or ffd-sum"
)]
pub struct UnknownPolicy {
    text: String,
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| UnknownPolicy { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_on_the_wire() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(
                serde_json::to_string(&policy).ok(),
                Some(format!("\"{}\"", policy.as_str()))
            );
        }
    }
}
