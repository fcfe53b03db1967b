//! Water-filling against every possible division of small cases.

use plimsoll_model::{Fraction, UtilityCurve, UtilityPoint};
use proptest::{
    collection::vec,
    prelude::{
        Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
    },
};

use super::*;

/// Into so many parts the amount of each VM is divided when all divisions are tried.
const PARTS: u64 = 8;
const PART: u64 = 1_000_000;
const PROMISED: u64 = PARTS * PART;

/// A VM of a small case; bounds and working set in parts of the promise.
#[derive(Clone, Debug)]
struct Small {
    shares: u32,
    least: u64,
    most: u64,
    active: u64,
    idle_worth: u64,
    /// How far utility rises in each of four quarters; none: by shares.
    rises: Option<Vec<u32>>,
}

fn small() -> impl Strategy<Value = Small> {
    let shares = prop_oneof![Just(100u32), 1u32..=10_000];
    let bounds = (0..=PARTS, 0..=PARTS, 0..=PARTS);
    let rises = proptest::option::of(vec(0u32..=1000, 4));
    let idle_worth = prop_oneof![Just(250u64), Just(1000u64), 10u64..=1000];
    (shares, bounds, idle_worth, rises).prop_map(|(shares, (a, b, active), idle_worth, rises)| {
        Small { shares, least: a.min(b), most: a.max(b), active, idle_worth, rises }
    })
}

fn curve(rises: &[u32]) -> UtilityCurve {
    let all = u64::from(rises.iter().sum::<u32>().max(1));
    let mut risen = 0;
    let points = (1u32..).zip(rises).map(|(quarter, rise)| {
        risen += u64::from(*rise);
        UtilityPoint {
            allocation: Fraction::millionths(quarter * 250_000),
            utility: Fraction::of(risen, all.max(risen)),
        }
    });
    // Nothing of nothing is the whole.
    let points: Vec<_> = if rises.iter().all(|rise| *rise == 0) {
        points.map(|p| UtilityPoint { utility: Fraction::ZERO, ..p }).collect()
    } else {
        points.collect()
    };
    UtilityCurve::new(points).unwrap()
}

impl Small {
    fn worth(&self) -> Worth {
        let (shares, active, idle_worth) = (self.shares, self.active * PART, self.idle_worth);
        match &self.rises {
            None => Worth::Shares { promised: PROMISED, shares, active, idle_worth },
            Some(rises) => {
                let curve = curve(rises);
                Worth::by_points(&curve.envelope(), PROMISED, shares, active, idle_worth)
            }
        }
    }

    /// What it is worth to hold so much, straight from the definition: the price, summed.
    fn value(&self, held: u64) -> f64 {
        let (held, active) = (held as f64, (self.active * PART) as f64);
        let scale = f64::from(self.shares) * PROMISED as f64;
        let idle_worth = self.idle_worth as f64 / 1000.0;
        let Some(rises) = &self.rises else {
            // The slope S / (W + k (P - W)), from one byte on.
            let (held, active) = (held.max(1.0), active.max(1.0));
            let idle = ((active + (held - active).max(0.0) / idle_worth) / active).ln();
            return scale * (held.min(active).ln() + idle_worth * idle);
        };
        let hull = curve(rises).envelope();
        let utility = |held: f64| {
            let share = held / PROMISED as f64 * 1e6;
            let next = hull.iter().position(|p| f64::from(p.allocation.get()) >= share).unwrap();
            let to = hull[next];
            let from = hull[next.saturating_sub(1)];
            let run = f64::from(to.allocation.get() - from.allocation.get()).max(1.0);
            let along = (share - f64::from(from.allocation.get())) / run;
            let (low, high) = (f64::from(from.utility.get()), f64::from(to.utility.get()));
            if next == 0 { high / 1e6 } else { (low + (high - low) * along) / 1e6 }
        };
        let in_use = utility(held.min(active));
        scale * (in_use + (utility(held) - in_use) * idle_worth)
    }
}

fn filled(vms: &[Small], budget: u128) -> Vec<u64> {
    let worths: Vec<Worth> = vms.iter().map(Small::worth).collect();
    let claims: Vec<Claim<'_>> = (vms.iter().zip(&worths))
        .map(|(vm, worth)| Claim {
            least: vm.least * PART,
            most: vm.most * PART,
            worth,
            held: vm.least * PART,
            shares: vm.shares,
        })
        .collect();
    let filled = fill(&claims, budget, 0);
    for near in [1, 1 << 20, filled.level, filled.level * 2, MAX_LEVEL, u64::MAX] {
        assert_eq!(fill(&claims, budget, near), filled, "from {near}");
    }
    filled.grants
}

/// The best value of all divisions of so many parts.
fn best(vms: &[Small], parts: u64) -> Option<f64> {
    let Some((first, others)) = vms.split_first() else { return (parts == 0).then_some(0.0) };
    (first.least..=first.most.min(parts))
        .filter_map(|part| Some(first.value(part * PART) + best(others, parts - part)?))
        .max_by(f64::total_cmp)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_division_is_worth_more(vms in vec(small(), 1..5), parts in 0..=4 * PARTS) {
        let grants = filled(&vms, u128::from(parts * PART));
        if let Some(best) = best(&vms, parts) {
            let sum: u64 = grants.iter().sum();
            prop_assert_eq!(sum, parts * PART, "{:?}", grants);
            let value: f64 = vms.iter().zip(&grants).map(|(vm, held)| vm.value(*held)).sum();
            // What a few odd bytes are worth, and the rounding of the levels.
            let odd = 1e-6 * vms.iter().map(|vm| f64::from(vm.shares)).sum::<f64>() * PROMISED as f64;
            prop_assert!(value >= best - odd, "{:?}: {} below {}", grants, value, best);
        }
    }

    #[test]
    fn the_budget_is_met_within_bounds_to_the_byte(
        vms in vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), 1u32..=10_000, 10u64..=1000), 0..12),
        part in any::<u64>(),
        small in any::<bool>(),
    ) {
        let cut = |amount: u64| if small { amount % 5000 } else { amount };
        let worths: Vec<Worth> = vms.iter().map(|(promised, active, _, _, shares, idle_worth)| {
            Worth::Shares {
                promised: cut(*promised),
                active: cut(*active),
                shares: *shares,
                idle_worth: *idle_worth,
            }
        }).collect();
        let claims: Vec<Claim<'_>> = vms.iter().zip(&worths).map(|((promised, _, a, b, shares, _), worth)| {
            let (a, b) = (cut(*a), cut(*b));
            Claim { least: a.min(b), most: a.max(b), worth, held: cut(promised / 2), shares: *shares }
        }).collect();
        let sum = |get: fn(&Claim<'_>) -> u64| claims.iter().map(|c| u128::from(get(c))).sum::<u128>();
        let (least, most) = (sum(|c| c.least), sum(|c| c.most));
        let budget = most / 1000 * u128::from(part % 1250) + u128::from(part % 1000);
        let filled = fill(&claims, budget, 0);
        let granted: u128 = filled.grants.iter().map(|grant| u128::from(*grant)).sum();
        prop_assert_eq!(granted, budget.clamp(least, most.max(least)));
        for (claim, grant) in claims.iter().zip(&filled.grants) {
            prop_assert!((claim.least..=claim.most).contains(grant));
        }
    }

    #[test]
    fn parts_are_in_proportion(amounts in vec(any::<u64>(), 0..12), part in any::<u64>(), shift in 0u32..60) {
        let amounts: Vec<u64> = amounts.iter().map(|amount| amount >> shift).collect();
        let whole: u128 = amounts.iter().map(|amount| u128::from(*amount)).sum();
        let total = (whole / 1000 * u128::from(part % 1001) + u128::from(part % 1000)).min(whole);
        let parts = in_proportion(&amounts, total);
        prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), total);
        for (part, amount) in parts.iter().zip(&amounts) {
            prop_assert!(part <= amount);
            if shift > 8 {
                let exact = *amount as f64 * (total as f64 / whole.max(1) as f64);
                prop_assert!((*part as f64 - exact).abs() <= 1.0 + exact * 1e-9, "{} {}", part, exact);
            }
        }
    }

    #[test]
    fn with_more_shares_nobody_gets_less(vms in vec(small(), 1..6), who in 0usize..6, more in 1u32..10_000, budget in 0..=6 * PROMISED) {
        let who = who % vms.len();
        let before = filled(&vms, budget.into());
        let mut richer = vms.clone();
        richer[who].shares = (richer[who].shares + more).min(10_000);
        let after = filled(&richer, budget.into());
        // A byte may fall to another when what is odd is dealt out.
        prop_assert!(after[who] + vms.len() as u64 >= before[who], "{} {}", before[who], after[who]);
        for (i, other) in vms.iter().enumerate() {
            let same = Small { shares: other.shares, ..vms[who].clone() };
            if i != who && format!("{same:?}") == format!("{other:?}") && vms[who].shares >= other.shares {
                prop_assert!(before[who] + u64::from(vms[who].shares == other.shares) >= before[i], "twins");
            }
        }
    }
}

#[test]
fn equal_shares_keep_equal_parts_of_the_promise() {
    let (small, large) = (4_000_000, 16_000_000);
    let worth =
        |promised| Worth::Shares { promised, shares: 100, active: promised, idle_worth: 250 };
    let worths = [worth(small), worth(large)];
    let claim = |worth, most| Claim { least: 0, most, worth, held: 0, shares: 100 };
    let claims = [claim(&worths[0], small), claim(&worths[1], large)];
    assert_eq!(fill(&claims, 10_000_000, 0).grants, [2_000_000, 8_000_000]);
}

#[test]
fn idle_pages_are_taxed_but_shares_still_count() {
    // Both have 1,000 pages; one uses all of them. Of 1,200 pages the idle one keeps the 400 for
    // which S / (0 + 4 * 200) = S / 800.
    let worth = |shares, active| Worth::Shares { promised: 1000, shares, active, idle_worth: 250 };
    let divide = |worths: &[Worth; 2], budget| {
        let claim = |worth| Claim { least: 0, most: 1000, worth, held: 0, shares: 1 };
        fill(&[claim(&worths[0]), claim(&worths[1])], budget, 0).grants
    };
    assert_eq!(divide(&[worth(100, 1000), worth(100, 0)], 1000), [800, 200]);
    assert_eq!(divide(&[worth(100, 1000), worth(400, 0)], 1000), [500, 500]);
}

#[test]
fn of_what_has_the_same_price_nothing_is_moved() {
    // A flat curve: all of it has one price.
    let points = [0, 1_000_000].map(Fraction::millionths);
    let points = points.map(|share| UtilityPoint { allocation: share, utility: share });
    let worth = Worth::by_points(&points, 1000, 100, 1000, 250);
    let claim = |held| Claim { least: 0, most: 1000, worth: &worth, held, shares: 100 };
    let divide = |budget| fill(&[claim(700), claim(100)], budget, 0).grants;
    assert_eq!(divide(800), [700, 100]);
    assert_eq!(divide(400), [350, 50], "taken in proportion");
    assert_eq!(divide(1400), [850, 550], "given in proportion to what is lacking");
}
