//! How good a box of availabilities can be for a request, under each policy.
//!
//! A *key* is the policy's score made so that the lowest wins: the score, its negative, or for
//! `cosine` the negative of its square. A bound is never above the key of any point of the box that
//! can hold the request, but for rounding, which [`Goal::slack`] covers. Requests are shares of a
//! capacity that may differ a little within a stratum, so each share is a range.

use plimsoll_model::Policy;

use crate::index::{MAX_DIMS, tree::Traits};

/// What is asked of the hosts of one stratum.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    by: By,
    dims: usize,
    /// The least and the most share requested of each dimension.
    least: [f32; MAX_DIMS],
    most: [f32; MAX_DIMS],
    /// Whether least and most are the same.
    exact: bool,
    /// The request as a vector of length 1; for `cosine`.
    direction: [f32; MAX_DIMS],
    /// One of each of these sets of traits a host must have.
    traits: [Traits; 2],
    /// No host below this id will do.
    floor: u32,
}

/// The families of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Id,
    MostFree,
    LeastFree,
    Cosine,
    DotProduct,
    L2Diff,
    L2Ratio,
    /// Nothing is known of the score: whoever has room must be looked at.
    Room,
}

/// How much less than the share requested may be free by the rounding of coordinates.
const ROOM: f32 = 1e-6;

impl Goal {
    /// A goal from the range of requested shares of each dimension; none of further models
    /// (`partial`) is known. No host below the id `floor` will do.
    pub(crate) fn new(
        policy: Policy,
        shares: &[(f64, f64)],
        partial: bool,
        traits: [Traits; 2],
        floor: u32,
    ) -> Self {
        let by = match policy {
            Policy::FirstFit | Policy::FfdProd | Policy::FfdSum => By::Id,
            _ if partial => By::Room,
            Policy::MostFree => By::MostFree,
            Policy::LeastFree => By::LeastFree,
            Policy::Cosine => By::Cosine,
            Policy::DotProduct => By::DotProduct,
            Policy::L2Diff => By::L2Diff,
            Policy::L2Ratio => By::L2Ratio,
            Policy::Fgd | Policy::LeastStranding => By::Room,
        };
        let (mut least, mut most) = ([0.0; MAX_DIMS], [0.0; MAX_DIMS]);
        for (i, (low, high)) in shares.iter().enumerate().take(MAX_DIMS) {
            (least[i], most[i]) = (super::single(*low), super::single(*high));
        }
        let exact = least == most;
        let length = least.iter().map(|share| share * share).sum::<f32>().sqrt();
        let direction = least.map(|share| if length > 0.0 { share / length } else { 0.0 });
        Self { by, dims: shares.len().min(MAX_DIMS), least, most, exact, direction, traits, floor }
    }

    /// How far a key may be below the true one by rounding.
    pub(crate) fn slack(policy: Policy) -> f64 {
        match policy {
            Policy::FirstFit | Policy::FfdProd | Policy::FfdSum => 0.0,
            _ => 4e-6,
        }
    }

    /// The key of a score.
    pub(crate) fn key_of(policy: Policy, score: f64) -> f64 {
        match policy {
            Policy::FirstFit
            | Policy::FfdProd
            | Policy::FfdSum
            | Policy::LeastFree
            | Policy::L2Diff
            | Policy::LeastStranding => score,
            Policy::MostFree | Policy::DotProduct | Policy::L2Ratio | Policy::Fgd => -score,
            Policy::Cosine => -score * score,
        }
    }

    /// Whether the lowest id wins under a policy.
    pub(crate) const fn is_of_id(policy: Policy) -> bool {
        matches!(policy, Policy::FirstFit | Policy::FfdProd | Policy::FfdSum)
    }

    /// Whether the key is the id, which is known without a look at the availability.
    pub(crate) const fn is_by_id(&self) -> bool {
        matches!(self.by, By::Id)
    }

    /// A lower bound of the key of hosts in a box, the lowest id of which is given; infinite when
    /// none of them has room.
    pub(crate) fn bound(&self, low: &[f32], high: &[f32], first: u32, traits: Traits) -> f64 {
        if self.traits[0] & traits == 0 || self.traits[1] & traits == 0 {
            return f64::INFINITY;
        }
        let (least, most) = (&self.least[..self.dims], &self.most[..self.dims]);
        let (low, high) = (&low[..self.dims], &high[..self.dims]);
        for (high, least) in high.iter().zip(least) {
            if *high + ROOM < *least {
                return f64::INFINITY;
            }
        }
        let each = || low.iter().zip(high).zip(least.iter().zip(most));
        // Where the box reaches below the request, only what is above it counts.
        let floor = |low: f32, high: f32, least: f32| low.max(least).min(high);
        let sum = match self.by {
            By::Id => return f64::from(first.max(self.floor)),
            By::Room => return f64::NEG_INFINITY,
            By::MostFree => -self.mean(high.iter().sum()),
            By::LeastFree => {
                self.mean(each().map(|((low, high), (least, _))| floor(*low, *high, *least)).sum())
            }
            By::DotProduct => -high.iter().zip(most).map(|(high, most)| high * most).sum::<f32>(),
            By::L2Diff => each()
                .map(|((low, high), (least, most))| {
                    let apart = (floor(*low, *high, *least) - most).max(least - high).max(0.0);
                    apart * apart
                })
                .sum(),
            By::L2Ratio => -each()
                .filter(|(_, (_, most))| **most > 0.0)
                .map(|((low, high), (least, most))| (most / floor(*low, *high, *least)).min(2.0))
                .sum::<f32>(),
            By::Cosine => return self.cosine(low, high),
        };
        f64::from(sum)
    }

    /// A lower bound of the key of hosts at a point.
    pub(crate) fn key(&self, at: &[f32], first: u32, traits: Traits) -> f64 {
        if self.by != By::Cosine || !self.exact {
            return self.bound(at, at, first, traits);
        }
        if self.traits[0] & traits == 0 || self.traits[1] & traits == 0 {
            return f64::INFINITY;
        }
        let (mut product, mut requested, mut available) = (0.0, 0.0, 0.0);
        for (a, r) in at[..self.dims].iter().zip(&self.least) {
            if *a + ROOM < *r {
                return f64::INFINITY;
            }
            product += r * a;
            requested += r * r;
            available += a * a;
        }
        let norms = requested * available;
        if norms > 0.0 { f64::from(-product * product / norms) } else { -1.0 }
    }

    fn mean(&self, sum: f32) -> f32 {
        if self.dims == 0 { 0.0 } else { sum / u16::try_from(self.dims).map_or(1.0, f32::from) }
    }

    fn cosine(&self, low: &[f32], high: &[f32]) -> f64 {
        let cosine = if self.exact { self.tangent(low, high) } else { self.planes(low, high) };
        -f64::from(cosine.clamp(0.0, 1.0))
    }

    /// The square of the cosine at most, for a request that is one direction.
    ///
    /// Let *p* be the point of the box with (nearly) the smallest angle to the request *r*, and
    /// *c* its cosine. As |a| >= a.p/|p|, the cosine of any *a* is at most r.a / (a.p/|p|), which
    /// is at most c + F / (least a.p/|p|), where F is the most that (r - c p/|p|).a can be in the
    /// box: the sum of what each dimension can be. At the best *p* itself F is zero.
    fn tangent(&self, low: &[f32], high: &[f32]) -> f32 {
        let direction = &self.direction[..self.dims];
        let floor = |i: usize| low[i].max(self.least[i]).min(high[i]);
        // The best point is where the ray along the request, at the right length, is clamped to
        // the box. Any length gives a bound; two rounds come near to the right one.
        let mut length: f32 =
            (0..self.dims).map(|i| direction[i] * (floor(i) + high[i]) / 2.0).sum();
        let (mut square, mut along) = (0.0, 0.0);
        let mut point = [0.0_f32; MAX_DIMS];
        for _ in 0..2 {
            (square, along) = (0.0, 0.0);
            for (i, direction) in direction.iter().enumerate() {
                let at = (length * direction).max(floor(i)).min(high[i]);
                point[i] = at;
                square += at * at;
                along += at * direction;
            }
            if along <= 0.0 {
                return 1.0;
            }
            length = square / along;
        }
        let norm = square.sqrt();
        let cosine = along / norm;
        let (mut most, mut least) = (0.0_f32, 0.0_f32);
        for (i, direction) in direction.iter().enumerate() {
            let slope = direction - cosine * point[i] / norm;
            most += (slope * floor(i)).max(slope * high[i]);
            least += point[i] / norm * floor(i);
        }
        if least <= 0.0 {
            return 1.0;
        }
        let bound = cosine + most.max(0.0) / least;
        bound * bound
    }

    /// The square of the cosine at most, for a request that differs a little from host to host.
    ///
    /// Of every two dimensions: how far the box is, seen in their plane, from the line along the
    /// request; no point of it is nearer to that line in all dimensions. Its sine is at least that
    /// distance over the length of the box's far corner.
    fn planes(&self, low: &[f32], high: &[f32]) -> f32 {
        let (mut distance, mut length) = (0.0_f32, 0.0_f32);
        for i in 0..self.dims {
            length += high[i] * high[i];
            let low_i = low[i].max(self.least[i]).min(high[i]);
            for (j, high) in high.iter().enumerate() {
                let apart = low_i * self.least[j] - high * self.most[i];
                if apart > 0.0 {
                    let along = self.most[i] * self.most[i] + self.most[j] * self.most[j];
                    distance = distance.max(apart * apart / along);
                }
            }
        }
        if length > 0.0 { 1.0 - distance / length } else { 1.0 }
    }
}
