//! Utility curves: how well a VM performs with a share of what it was promised.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// The whole, in millionths.
const WHOLE: u32 = 1_000_000;
const MIN_POINTS: usize = 2;
const MAX_POINTS: usize = 33;

/// A share from 0 to 1, kept in millionths, so that it can be compared and hashed; a plain number
/// (`0.25`) in files and on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fraction(u32);

/// A number that is no share.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("{number} is not a share from 0 to 1")]
pub struct InvalidFraction {
    number: f64,
}

impl Fraction {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The whole.
    pub const ONE: Self = Self(WHOLE);

    /// So many millionths, at most the whole.
    #[must_use]
    pub const fn millionths(count: u32) -> Self {
        Self(if count > WHOLE { WHOLE } else { count })
    }

    /// In millionths.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As a number from 0 to 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// The share that `part` is of `whole`, rounded down and at most 1; of nothing, 1.
    #[must_use]
    pub fn of(part: u64, whole: u64) -> Self {
        if part >= whole {
            return Self::ONE;
        }
        let millionths = u128::from(part) * u128::from(WHOLE) / u128::from(whole);
        Self(u32::try_from(millionths).unwrap_or(WHOLE))
    }
}

impl TryFrom<f64> for Fraction {
    type Error = InvalidFraction;

    fn try_from(number: f64) -> Result<Self, InvalidFraction> {
        if !(0.0..=1.0).contains(&number) {
            return Err(InvalidFraction { number });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to a million"
        )]
        let millionths = (number * f64::from(WHOLE)).round() as u32;
        Ok(Self(millionths))
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.as_f64().to_string())
    }
}

impl Serialize for Fraction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_f64())
    }
}

impl<'de> Deserialize<'de> for Fraction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// One point of a curve: with `allocation` of what it was promised, the VM performs at `utility` of
/// its best. A pair of numbers in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(Fraction, Fraction)", into = "(Fraction, Fraction)")]
pub struct UtilityPoint {
    /// The share of what was promised.
    pub allocation: Fraction,
    /// The share of its best performance.
    pub utility: Fraction,
}

impl From<(Fraction, Fraction)> for UtilityPoint {
    fn from((allocation, utility): (Fraction, Fraction)) -> Self {
        Self { allocation, utility }
    }
}

impl From<UtilityPoint> for (Fraction, Fraction) {
    fn from(point: UtilityPoint) -> Self {
        (point.allocation, point.utility)
    }
}

/// How well a VM performs with a share of what it was promised: straight lines between 2 to 33
/// points, the last at the whole promise. Before the first point the line comes from nothing for
/// nothing. Utility never falls as the allocation rises.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<UtilityPoint>", into = "Vec<UtilityPoint>")]
pub struct UtilityCurve {
    points: Vec<UtilityPoint>,
}

/// Points that make no curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidCurve {
    /// Too few or too many.
    #[error("a utility curve has {MIN_POINTS} to {MAX_POINTS} points, not {count}")]
    Count {
        /// How many there are.
        count: usize,
    },
    /// Two of the same allocation, or out of order.
    #[error("the allocations of a utility curve rise: {after} does not follow {before}")]
    Allocation {
        /// The allocation before.
        before: Fraction,
        /// The one that is not above it.
        after: Fraction,
    },
    /// More of a resource is said to be worse.
    #[error("the utility of a curve never falls: {after} does not follow {before}")]
    Utility {
        /// The utility before.
        before: Fraction,
        /// The one that is below it.
        after: Fraction,
    },
    /// The curve does not reach the promise.
    #[error("a utility curve ends at an allocation of 1, not {last}")]
    End {
        /// Where it ends.
        last: Fraction,
    },
}

impl UtilityCurve {
    /// A curve through these points.
    ///
    /// # Errors
    /// The first thing for which they make none.
    pub fn new(points: Vec<UtilityPoint>) -> Result<Self, InvalidCurve> {
        let count = points.len();
        if !(MIN_POINTS..=MAX_POINTS).contains(&count) {
            return Err(InvalidCurve::Count { count });
        }
        for (one, next) in points.iter().zip(points.iter().skip(1)) {
            if next.allocation <= one.allocation {
                let (before, after) = (one.allocation, next.allocation);
                return Err(InvalidCurve::Allocation { before, after });
            }
            if next.utility < one.utility {
                let (before, after) = (one.utility, next.utility);
                return Err(InvalidCurve::Utility { before, after });
            }
        }
        match points.last() {
            Some(last) if last.allocation == Fraction::ONE => Ok(Self { points }),
            last => Err(InvalidCurve::End {
                last: last.map_or(Fraction::ZERO, |point| point.allocation),
            }),
        }
    }

    /// Its points, by rising allocation.
    #[must_use]
    pub fn points(&self) -> &[UtilityPoint] {
        &self.points
    }

    /// The utility of an allocation, rounded down.
    #[must_use]
    pub fn at(&self, allocation: Fraction) -> Fraction {
        let mut before = UtilityPoint { allocation: Fraction::ZERO, utility: Fraction::ZERO };
        for point in &self.points {
            if allocation == point.allocation {
                return point.utility;
            }
            if allocation < point.allocation {
                let along = u64::from(allocation.0 - before.allocation.0);
                let length = u64::from(point.allocation.0 - before.allocation.0);
                // A curve may begin with a jump: at no allocation at all nothing is done.
                let height = u64::from(point.utility.0.saturating_sub(before.utility.0));
                let rise = u32::try_from(height * along / length).unwrap_or(0);
                return Fraction(before.utility.0 + rise);
            }
            before = *point;
        }
        before.utility
    }

    /// The least concave curve that is nowhere below this one, from an allocation of 0 to 1:
    /// slopes fall from point to point. Where this curve is concave, it is the curve itself.
    #[must_use]
    pub fn envelope(&self) -> Vec<UtilityPoint> {
        let mut hull: Vec<UtilityPoint> = Vec::with_capacity(self.points.len() + 1);
        let origin = UtilityPoint { allocation: Fraction::ZERO, utility: Fraction::ZERO };
        let begins = self.points.first().is_some_and(|p| p.allocation == Fraction::ZERO);
        let points = (!begins).then_some(&origin).into_iter().chain(&self.points);
        for point in points {
            while let [.., a, b] = hull.as_slice()
                && !falls(a, b, point)
            {
                hull.pop();
            }
            hull.push(*point);
        }
        hull
    }
}

/// Whether the slope from `a` to `b` is steeper than that from `b` to `c`.
fn falls(a: &UtilityPoint, b: &UtilityPoint, c: &UtilityPoint) -> bool {
    let step = |one: &UtilityPoint, next: &UtilityPoint| {
        let run = u64::from(next.allocation.0 - one.allocation.0);
        (u64::from(next.utility.0 - one.utility.0), run)
    };
    let ((rise, run), (next_rise, next_run)) = (step(a, b), step(b, c));
    rise * next_run > next_rise * run
}

impl TryFrom<Vec<UtilityPoint>> for UtilityCurve {
    type Error = InvalidCurve;

    fn try_from(points: Vec<UtilityPoint>) -> Result<Self, InvalidCurve> {
        Self::new(points)
    }
}

impl From<UtilityCurve> for Vec<UtilityPoint> {
    fn from(curve: UtilityCurve) -> Self {
        curve.points
    }
}

#[cfg(feature = "openapi")]
mod schema {
    use utoipa::openapi::{ArrayBuilder, ObjectBuilder, RefOr, schema};

    impl utoipa::PartialSchema for super::UtilityCurve {
        fn schema() -> RefOr<schema::Schema> {
            let number = ObjectBuilder::new()
                .schema_type(schema::Type::Number)
                .minimum(Some(0.0))
                .maximum(Some(1.0));
            let point = ArrayBuilder::new().items(number).min_items(Some(2)).max_items(Some(2));
            ArrayBuilder::new()
                .items(point)
                .min_items(Some(super::MIN_POINTS))
                .max_items(Some(super::MAX_POINTS))
                .description(Some(
                    "Pairs of the share of what was promised and the share of the best performance, \
                     by rising allocation; the last is at 1",
                ))
                .into()
        }
    }
    impl utoipa::ToSchema for super::UtilityCurve {}
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec,
        prelude::{ProptestConfig, proptest},
    };

    use super::*;

    fn curve(points: &[(f64, f64)]) -> Result<UtilityCurve, InvalidCurve> {
        let fraction = |number| Fraction::try_from(number).unwrap();
        let points = points.iter().map(|(a, u)| (fraction(*a), fraction(*u)).into()).collect();
        UtilityCurve::new(points)
    }

    #[test]
    fn points_that_make_no_curve_are_refused() {
        assert_eq!(curve(&[(1.0, 1.0)]), Err(InvalidCurve::Count { count: 1 }));
        assert!(matches!(curve(&[(0.5, 0.1); 34]), Err(InvalidCurve::Count { count: 34 })));
        assert!(matches!(curve(&[(0.5, 0.1), (0.5, 0.2)]), Err(InvalidCurve::Allocation { .. })));
        assert!(matches!(curve(&[(0.5, 0.3), (1.0, 0.2)]), Err(InvalidCurve::Utility { .. })));
        assert!(matches!(curve(&[(0.2, 0.3), (0.9, 0.4)]), Err(InvalidCurve::End { .. })));
        for number in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(Fraction::try_from(number).is_err(), "{number}");
        }
    }

    #[test]
    fn utility_lies_on_the_lines_between_points() {
        let curve = curve(&[(0.5, 0.8), (1.0, 1.0)]).unwrap();
        for (allocation, utility) in [(0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (0.75, 0.9), (1.0, 1.0)]
        {
            let at = curve.at(Fraction::try_from(allocation).unwrap());
            assert_eq!(at, Fraction::try_from(utility).unwrap(), "{allocation}");
        }
        assert_eq!(Fraction::of(1, 3), Fraction::millionths(333_333));
        assert_eq!(Fraction::of(5, 0), Fraction::ONE);
        assert_eq!(Fraction::of(u64::MAX - 1, u64::MAX), Fraction::millionths(999_999));
    }

    #[test]
    fn the_envelope_spans_what_is_not_concave() {
        let knee = curve(&[(0.25, 0.1), (0.5, 0.9), (0.75, 0.92), (1.0, 1.0)]).unwrap();
        let hull: Vec<_> = knee.envelope().iter().map(|p| (p.allocation.0, p.utility.0)).collect();
        assert_eq!(hull, [(0, 0), (500_000, 900_000), (1_000_000, 1_000_000)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn the_envelope_is_concave_and_nowhere_below(steps in vec((1u32..100_000, 0u32..100_000), 1..30)) {
            let (run, rise) = steps.iter().fold((0, 0), |(x, y), (dx, dy)| (x + dx, y + dy));
            let scale = |value: u32, whole: u32| Fraction::of(value.into(), whole.max(1).into());
            let mut sum = (0, 0);
            let mut points = vec![UtilityPoint { allocation: Fraction(0), utility: Fraction(0) }];
            for (dx, dy) in &steps {
                sum = (sum.0 + dx, sum.1 + dy);
                let utility = if rise == 0 { Fraction(0) } else { scale(sum.1, rise) };
                points.push(UtilityPoint { allocation: scale(sum.0, run), utility });
            }
            points.dedup_by_key(|point| point.allocation);
            let curve = UtilityCurve::new(points).unwrap();
            let hull = curve.envelope();
            for three in hull.windows(3) {
                assert!(falls(&three[0], &three[1], &three[2]));
            }
            let smooth = UtilityCurve { points: hull.clone() };
            for point in curve.points() {
                assert!(smooth.at(point.allocation) >= Fraction(point.utility.0.saturating_sub(1)));
            }
            assert_eq!(smooth.envelope(), hull, "an envelope is its own");
        }
    }
}
