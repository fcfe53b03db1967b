//! Water-filling: divides an amount so that what everybody holds has the same price, as far as
//! bounds allow.
//!
//! What a VM can afford never falls as the level rises ([`crate::price`]), so the sum has one level
//! at which it meets the budget; it is found by a search that follows a straight line between two
//! levels and halves the interval where that does not help. Between that level and the next all
//! go the same fraction of the way, so that the sum is met to the byte and the order by shares
//! holds.

use crate::price::{MAX_LEVEL, Worth, clamp};

/// One that takes part: it gets from `least` to `most`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) least: u64,
    /// Not below `least`.
    pub(crate) most: u64,
    pub(crate) worth: &'a Worth,
    /// What it has at present: of what has the same price, nothing is taken from one to be given to
    /// another.
    pub(crate) held: u64,
    /// Of equals, who has more of them gets a last odd byte first.
    pub(crate) shares: u32,
}

/// What each claim gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) grants: Vec<u64>,
    /// The level that the budget came up to.
    pub(crate) level: u64,
}

impl Claim<'_> {
    /// What it gets at a level: everything at the highest, the least at 0.
    fn at(&self, level: u64) -> u64 {
        match level {
            0 => self.least,
            MAX_LEVEL => self.most,
            level => self.worth.at(level).clamp(self.least, self.most),
        }
    }
}

/// One whose grant differs at the two levels that enclose the solution.
struct Open {
    index: usize,
    low: u64,
    high: u64,
    middle: u64,
}

/// Divides the budget. All claims get their most where that is enough; their least, even if it is
/// more than the budget, where it is not; otherwise the grants sum to the budget.
///
/// The search begins about the level `near`, such as that of the last time; what comes of it does
/// not depend on that.
pub(crate) fn fill(claims: &[Claim<'_>], budget: u128, near: u64) -> Filled {
    let sum = |get: fn(&Claim<'_>) -> u64| claims.iter().map(|c| u128::from(get(c))).sum::<u128>();
    let (least, most) = (sum(|claim| claim.least), sum(|claim| claim.most));
    if least >= budget {
        return Filled { grants: claims.iter().map(|claim| claim.least).collect(), level: 0 };
    }
    if most <= budget {
        return Filled {
            grants: claims.iter().map(|claim| claim.most).collect(),
            level: MAX_LEVEL,
        };
    }
    let mut grants: Vec<u64> = claims.iter().map(|claim| claim.least).collect();
    let mut open: Vec<Open> = (claims.iter().enumerate())
        .filter(|(_, claim)| claim.least < claim.most)
        .map(|(index, claim)| Open { index, low: claim.least, high: claim.most, middle: 0 })
        .collect();
    let mut settled = least - open.iter().map(|open| u128::from(open.low)).sum::<u128>();
    let (mut low, mut high) = (0, MAX_LEVEL);
    let mut halve = false;
    let mut probes = [near - near / 64, near.saturating_add(near / 64)].into_iter();
    while high - low > 1 {
        let middle = match probes.next() {
            Some(probe) => probe.clamp(low + 1, high - 1),
            None => next_level(&open, settled, budget, (low, high), halve),
        };
        let mut sum = settled;
        for open in &mut open {
            open.middle = claims[open.index].at(middle);
            sum += u128::from(open.middle);
        }
        let before = high - low;
        if sum <= budget {
            low = middle;
            open.iter_mut().for_each(|open| open.low = open.middle);
        } else {
            high = middle;
            open.iter_mut().for_each(|open| open.high = open.middle);
        }
        // A straight line that did not halve the interval has been of no use.
        halve = (high - low) * 2 > before;
        open.retain(|open| {
            let goes_on = open.low < open.high;
            if !goes_on {
                grants[open.index] = open.low;
                settled += u128::from(open.low);
            }
            goes_on
        });
    }
    divide(claims, &mut open, budget - settled, &mut grants);
    Filled { grants, level: low }
}

/// A level inside of the interval to try.
fn next_level(
    open: &[Open],
    settled: u128,
    budget: u128,
    (low, high): (u64, u64),
    halve: bool,
) -> u64 {
    // Far apart, the interval is halved on a scale of powers of two.
    if high / 2 > low {
        let (least, most) = (low.max(1).ilog2(), high.ilog2());
        return (1 << (least + most).div_ceil(2)).clamp(low + 1, high - 1);
    }
    if halve {
        return low + (high - low) / 2;
    }
    let (below, above) = open.iter().fold((settled, settled), |(below, above), open| {
        (below + u128::from(open.low), above + u128::from(open.high))
    });
    let along = (budget - below).saturating_mul(u128::from(high - low)) / (above - below).max(1);
    low.saturating_add(clamp(along)).clamp(low + 1, high - 1)
}

/// Divides what is left between two neighbouring levels: from what each has now, the same fraction
/// of the way up or down for all, then a byte each for those with the most shares.
fn divide(claims: &[Claim<'_>], open: &mut [Open], left: u128, grants: &mut [u64]) {
    let has = |open: &Open| claims[open.index].held.clamp(open.low, open.high);
    if open.iter().map(|open| u128::from(has(open))).sum::<u128>() <= left {
        open.iter_mut().for_each(|open| open.low = has(open));
    } else {
        open.iter_mut().for_each(|open| open.high = has(open));
    }
    let sum = |get: fn(&Open) -> u64| open.iter().map(|o| u128::from(get(o))).sum::<u128>();
    let (low, high) = (sum(|open| open.low), sum(|open| open.high));
    let (part, whole) = (left - low, (high - low).max(1));
    let mut rest = part;
    for open in open.iter_mut() {
        let step = scaled(open.high - open.low, part, whole);
        open.middle = open.low + step;
        rest -= u128::from(step);
    }
    if rest > 0 {
        open.sort_by_key(|open| (std::cmp::Reverse(claims[open.index].shares), open.index));
    }
    for open in open.iter_mut() {
        if rest > 0 && open.middle < open.high {
            open.middle += 1;
            rest -= 1;
        }
    }
    for open in open.iter_mut() {
        // More than a byte each is left only of sums that do not fit in 64 bits.
        let more = clamp(rest).min(open.high - open.middle);
        grants[open.index] = open.middle + more;
        rest -= u128::from(more);
    }
}

/// Divides a total, at most the sum of the amounts, in proportion to them: to the byte, and to
/// nobody more than its amount.
pub(crate) fn in_proportion(amounts: &[u64], total: u128) -> Vec<u64> {
    let whole = amounts.iter().map(|amount| u128::from(*amount)).sum::<u128>().max(1);
    let mut rest = total;
    let mut parts: Vec<u64> = Vec::with_capacity(amounts.len());
    for amount in amounts {
        let part = scaled(*amount, total, whole);
        rest -= u128::from(part);
        parts.push(part);
    }
    for (part, amount) in parts.iter_mut().zip(amounts) {
        let odd = clamp(rest.min(1)).min(amount - *part);
        *part += odd;
        rest -= u128::from(odd);
    }
    for (part, amount) in parts.iter_mut().zip(amounts) {
        // More than a byte each is left only of sums that do not fit in 64 bits.
        let more = clamp(rest).min(amount - *part);
        *part += more;
        rest -= u128::from(more);
    }
    parts
}

/// `amount * part / whole` rounded down, with `part <= whole`, also where the product is too large:
/// then it is a little less.
fn scaled(amount: u64, part: u128, whole: u128) -> u64 {
    clamp(match u128::from(amount).checked_mul(part) {
        Some(product) => product / whole,
        None => {
            let shift = 64 - whole.leading_zeros().min(64);
            u128::from(amount) * (part >> shift) / ((whole >> shift) + 1)
        }
    })
}

#[cfg(test)]
mod tests;
