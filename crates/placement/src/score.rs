//! The policies' formulas; `docs/algorithms.md` has them with their sources.
//!
//! All arithmetic is IEEE 754 addition, multiplication, division and square root in a fixed order
//! (scalar elements, then accelerators by model), which gives the same bits on every machine.
//! Scores are rounded to 12 decimal digits: what differs by less is a tie, so that two hosts that
//! are equal on paper are equal here, whatever their rounding errors.

use plimsoll_model::Policy;

use crate::{
    filter::Asked,
    row::{Row, SCALARS, share},
};

/// Which end of the scores wins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wins {
    Lowest,
    Highest,
}

pub(crate) const fn wins(policy: Policy) -> Wins {
    match policy {
        Policy::FirstFit
        | Policy::LeastFree
        | Policy::L2Diff
        | Policy::LeastStranding
        | Policy::FfdProd
        | Policy::FfdSum => Wins::Lowest,
        Policy::MostFree | Policy::Cosine | Policy::DotProduct | Policy::L2Ratio | Policy::Fgd => {
            Wins::Highest
        }
    }
}

/// What hosts that can hold a request are compared by: the preferred rules that are broken, then
/// the score, then the host's id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) broken: u32,
    pub(crate) score: f64,
}

impl Standing {
    /// Less is better.
    pub(crate) fn compare(&self, other: &Self, policy: Policy) -> std::cmp::Ordering {
        let by_score = match wins(policy) {
            Wins::Lowest => self.score.total_cmp(&other.score),
            Wins::Highest => other.score.total_cmp(&self.score),
        };
        self.broken.cmp(&other.broken).then(by_score)
    }
}

/// The score of a host that can hold the request.
pub(crate) fn score(policy: Policy, asked: &Asked<'_>, row: &Row) -> f64 {
    let score = match policy {
        Policy::FirstFit | Policy::FfdProd | Policy::FfdSum => return f64::from(row.id.0),
        Policy::MostFree | Policy::LeastFree => row.mean_free,
        Policy::Cosine => {
            let (mut product, mut requested, mut available) = (0.0, 0.0, 0.0);
            elements(asked, row, |r, a| {
                product += r * a;
                requested += r * r;
                available += a * a;
            });
            let norms = f64::sqrt(requested) * f64::sqrt(available);
            // An angle with nothing is not defined: no host is better than another then.
            if norms > 0.0 { product / norms } else { 0.0 }
        }
        Policy::DotProduct => {
            let mut product = 0.0;
            elements(asked, row, |r, a| product += r * a);
            product
        }
        Policy::Fgd | Policy::LeastStranding => {
            return asked.judge().score(policy, row, &asked.demand_on(row));
        }
        Policy::L2Diff => {
            let mut sum = 0.0;
            elements(asked, row, |r, a| sum += (r - a) * (r - a));
            sum
        }
        Policy::L2Ratio => {
            let mut sum = 0.0;
            elements(asked, row, |r, a| {
                // A host that can hold the request has a > 0 wherever r > 0.
                if r > 0.0 {
                    sum += r / a;
                }
            });
            sum
        }
    };
    round(score)
}

/// Calls `f` with the share requested and the share available of every element of which the host
/// has a capacity.
fn elements(asked: &Asked<'_>, row: &Row, mut f: impl FnMut(f64, f64)) {
    for i in 0..SCALARS {
        if row.capacity[i] > 0 {
            f(share(asked.need[i], row.capacity[i]), row.free_share(i));
        }
    }
    let demand = asked.demand_on(row);
    for pool in row.pools().iter().filter(|pool| pool.capacity > 0) {
        let need = demand.accelerators.get(&pool.model);
        f(share(need, pool.capacity), share(pool.free(), pool.capacity));
    }
}

/// To 12 decimal digits.
pub(crate) fn round(score: f64) -> f64 {
    const DIGITS: f64 = 1e12;
    // Adding zero turns a negative zero into zero, which prints and compares otherwise.
    (score * DIGITS).round() / DIGITS + 0.0
}
