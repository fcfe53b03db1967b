//! What a byte is worth to the VM that has it.
//!
//! Every VM has a *worth* of what it holds that grows ever more slowly, and the price of a byte is
//! its slope. Whoever needs memory revokes the cheapest bytes, whoever gives back gives to the
//! dearest: for concave worths both leave the sum of the worths as high as it can be (B. L. Fox,
//! Discrete optimization via marginal analysis, Management Science 13(3), 1966).
//!
//! - **By shares** (`burstable`): a page costs S / (P (f + k (1 - f))), the min-funding revocation of
//!   Waldspurger with his idle-memory tax (OSDI'02, 5.1 and 5.2): f is the part of the P pages in
//!   use, k = 1 / (1 - tax). With W = f P pages in use that is S / (W + k (P - W)), which is the slope
//!   of S log P as far as the working set goes and of a log that is k times as flat beyond.
//!   S is shares times what was promised, so that equal shares keep equal parts of the promises.
//! - **By utility** (`deflatable`): shares times the slope of the concave envelope of the VM's
//!   curve, and of that one k-th for what exceeds the working set.
//!
//! Both are shares times performance over allocation, in shares of the promise, so that the two
//! classes meet in one market. A price is handled as its inverse, the *level*: bytes become affordable
//! as it rises, and what a VM holds at a level is a sum of whole numbers, without divisions.

use plimsoll_model::{Fraction, UtilityCurve, UtilityPoint};

/// The level of a price of one share: high enough for fine levels, and low enough for a level to be
/// found with divisions of 64 bits, which are many times as fast as those of 128.
const SCALE: u64 = 1 << 33;
/// No level is higher: 2^64 bytes by 10^4 shares by this fit in 128 bits.
pub(crate) const MAX_LEVEL: u64 = 1 << 50;
const WHOLE: u64 = 1_000_000;

const fn point(allocation: u32, utility: u32) -> UtilityPoint {
    UtilityPoint {
        allocation: Fraction::millionths(allocation),
        utility: Fraction::millionths(utility),
    }
}

/// What is assumed of a deflatable VM without a curve for memory: half of it costs little, the last
/// quarter most of the performance. An assumption, not a measurement.
pub(crate) const TYPICAL_MEMORY: [UtilityPoint; 5] = [
    point(0, 0),
    point(250_000, 500_000),
    point(500_000, 850_000),
    point(750_000, 960_000),
    point(1_000_000, 1_000_000),
];
/// The same for CPU, where less is lost by waiting than by lack of memory.
pub(crate) const TYPICAL_CPU: [UtilityPoint; 4] =
    [point(0, 0), point(500_000, 700_000), point(750_000, 900_000), point(1_000_000, 1_000_000)];

/// From a level on, what is affordable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Affordable {
    level: u64,
    up_to: u64,
}

/// What bytes (or thousandths of a core) are worth to one VM.
#[derive(Clone, Debug)]
pub(crate) enum Worth {
    /// By its shares.
    Shares {
        promised: u64,
        shares: u32,
        /// How much it uses.
        active: u64,
        /// 1,000 less the tax per mille: what an idle byte counts.
        idle_worth: u64,
    },
    /// By a curve: its pieces, by rising level.
    Curve(Vec<Affordable>),
}

impl Worth {
    /// By a curve's concave points, whose slopes fall.
    pub(crate) fn by_points(
        points: &[UtilityPoint],
        promised: u64,
        shares: u32,
        active: u64,
        idle_worth: u64,
    ) -> Self {
        let mut pieces = Vec::with_capacity(points.len() + 1);
        for (one, next) in points.iter().zip(points.iter().skip(1)) {
            // At most 2^20, as 2^20 by 2^14 by 2^10 is below; so no product exceeds 64 bits.
            let run = u64::from(next.allocation.get() - one.allocation.get());
            let rise = u64::from(next.utility.get() - one.utility.get());
            let level = |worth_per_mille: u64| {
                let worth = rise * u64::from(shares) * worth_per_mille;
                let cost = run * SCALE * 1000;
                if worth == 0 { MAX_LEVEL } else { cost.div_ceil(worth).min(MAX_LEVEL) }
            };
            let up_to = part(promised, next.allocation);
            let in_use = active.min(up_to);
            if part(promised, one.allocation) < in_use {
                pieces.push(Affordable { level: level(1000), up_to: in_use });
            }
            if in_use < up_to {
                pieces.push(Affordable { level: level(idle_worth), up_to });
            }
        }
        Self::Curve(pieces)
    }

    /// By a curve, or where there is none by these points.
    pub(crate) fn by_curve(
        curve: Option<&UtilityCurve>,
        typical: &[UtilityPoint],
        promised: u64,
        shares: u32,
        active: u64,
        idle_worth: u64,
    ) -> Self {
        match curve {
            Some(curve) => Self::by_points(&curve.envelope(), promised, shares, active, idle_worth),
            None => Self::by_points(typical, promised, shares, active, idle_worth),
        }
    }

    /// How much is affordable at a level below [`MAX_LEVEL`]. Never less at a higher level, nor
    /// with more shares.
    pub(crate) fn at(&self, level: u64) -> u64 {
        match self {
            Self::Shares { promised, shares, active, idle_worth } => {
                let funded = u128::from(*promised) * u128::from(*shares) * u128::from(level);
                let funded = clamp(funded / u128::from(SCALE));
                if funded <= *active {
                    return funded;
                }
                active.saturating_add(per_mille(funded - active, *idle_worth))
            }
            Self::Curve(pieces) => {
                let affordable = pieces.partition_point(|piece| piece.level <= level);
                affordable.checked_sub(1).and_then(|last| pieces.get(last)).map_or(0, |p| p.up_to)
            }
        }
    }

    /// The price of the last of `held` bytes, in thousandths of a share.
    pub(crate) fn price(&self, held: u64) -> u64 {
        match self {
            Self::Shares { promised, shares, active, idle_worth } => {
                let in_use = u128::from(held.min(*active));
                let idle = u128::from(held.saturating_sub(*active)) * 1000
                    / u128::from((*idle_worth).max(1));
                let worth = u128::from(*promised) * u128::from(*shares) * 1000;
                clamp(worth / (in_use + idle).max(1))
            }
            Self::Curve(pieces) => {
                let piece = pieces.iter().find(|piece| held <= piece.up_to).or(pieces.last());
                piece.map_or(0, |piece| price(piece.level))
            }
        }
    }
}

/// A level as a price in thousandths of a share.
pub(crate) fn price(level: u64) -> u64 {
    if level >= MAX_LEVEL { 0 } else { SCALE * 1000 / level.max(1) }
}

fn part(promised: u64, share: Fraction) -> u64 {
    scale(promised, share.get().into(), WHOLE)
}

fn per_mille(amount: u64, part: u64) -> u64 {
    scale(amount, part, 1000)
}

/// `amount * part / whole`, in 64 bits where they do.
fn scale(amount: u64, part: u64, whole: u64) -> u64 {
    match amount.checked_mul(part) {
        Some(product) => product / whole,
        None => clamp(u128::from(amount) * u128::from(part) / u128::from(whole)),
    }
}

/// The number, or the largest there is.
pub(crate) fn clamp(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_shares(shares: u32, active: u64) -> Worth {
        Worth::Shares { promised: 1000, shares, active, idle_worth: 250 }
    }

    #[test]
    fn an_idle_page_costs_what_waldspurger_says() {
        // S / (P (f + k (1 - f))) with S = 100 shares of 1,000 bytes, P = 800, f = 1/4, k = 4.
        let price = 100.0 * 1000.0 / (800.0 * (0.25 + 4.0 * 0.75));
        assert!((by_shares(100, 200).price(800) as f64 - price * 1000.0).abs() < 1.0);
        // All in use: S / P.
        assert_eq!(by_shares(100, 800).price(800), 125_000);
        // With a tax of nothing too.
        let untaxed = Worth::Shares { promised: 1000, shares: 100, active: 0, idle_worth: 1000 };
        assert_eq!(untaxed.price(800), 125_000);
    }

    #[test]
    fn what_is_affordable_has_the_price_of_its_level() {
        for worth in [by_shares(100, 200), by_shares(7, 0), by_shares(10_000, 1000)] {
            for held in [50, 199, 201, 640, 1000] {
                let level = SCALE * 1000 / worth.price(held);
                assert!(worth.at(level).abs_diff(held) <= 1, "{worth:?} {held}");
            }
        }
        let curve = Worth::by_points(&TYPICAL_MEMORY, 1000, 100, 600, 250);
        // Slopes 2, 1.4, 0.44 and 0.16 of 100 shares; a quarter of that beyond 600.
        let pieces = [(250, 200_000), (500, 140_000), (600, 44_000), (750, 11_000), (1000, 4_000)];
        for (held, price) in pieces {
            assert!(curve.price(held).abs_diff(price) <= 1, "{held}");
            assert_eq!(curve.at(SCALE * 1000 / (price - 2)), held);
        }
        assert_eq!(curve.at(SCALE / 201), 0);
    }

    #[test]
    fn a_flat_piece_is_worth_nothing() {
        let points = [point(0, 0), point(500_000, 1_000_000), point(1_000_000, 1_000_000)];
        let worth = Worth::by_points(&points, 1000, 1, 1000, 250);
        assert_eq!((worth.price(501), worth.price(500)), (0, 2000));
        assert_eq!(worth.at(MAX_LEVEL - 1), 500);
    }
}
