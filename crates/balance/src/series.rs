//! What is remembered of samples: an estimate of the next one, and which of the last were too high.
//!
//! Sandpiper (Wood et al., NSDI'07, section 4) predicts the next sample by an autoregressive model of
//! order 1 over a window: `x' = m + phi (x - m)`, with the mean `m` and the correlation `phi` of one
//! sample with the one before. Here the window has no edge: mean, variance and covariance are
//! exponentially weighted, so that a series takes the same few bytes however long it is, and 10^5 VMs
//! are remembered in a few tens of MiB. After a step up the samples deviate one after the other in the
//! same direction, `phi` goes towards 1, and the prediction follows within three samples; noise without
//! memory has a `phi` near 0, and the prediction stays at the mean, however high one sample is.

use crate::resource::{Amounts, RESOURCES};

/// What a new sample weighs against all before it.
const WEIGHT: f64 = 0.2;

/// Of how many samples it is remembered whether they were too high.
pub(crate) const MOST_MARKS: u32 = 32;

/// The samples of one resource.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    last: f64,
    mean: f64,
    variance: f64,
    covariance: f64,
}

impl Level {
    const fn new(sample: f64) -> Self {
        Self { last: sample, mean: sample, variance: 0.0, covariance: 0.0 }
    }

    fn add(&mut self, sample: f64) {
        self.mean += WEIGHT * (sample - self.mean);
        let (deviation, before) = (sample - self.mean, self.last - self.mean);
        self.variance += WEIGHT * (deviation * deviation - self.variance);
        self.covariance += WEIGHT * (deviation * before - self.covariance);
        self.last = sample;
    }

    /// The next sample, never below zero.
    fn next(&self) -> f64 {
        let phi = if self.variance > 0.0 { self.covariance / self.variance } else { 0.0 };
        (self.mean + phi.clamp(0.0, 1.0) * (self.last - self.mean)).max(0.0)
    }
}

/// The samples of all resources of one host or VM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Series {
    levels: [Option<Level>; RESOURCES],
}

impl Series {
    /// Adds a sample. Of what it does not have nothing is known from then on: an old value is no
    /// measurement.
    pub(crate) fn add(&mut self, sample: &Amounts) {
        for (level, sample) in self.levels.iter_mut().zip(sample) {
            match (level.as_mut(), sample) {
                (Some(level), Some(sample)) => level.add(*sample),
                (None, Some(sample)) => *level = Some(Level::new(*sample)),
                (_, None) => *level = None,
            }
        }
    }

    /// The last sample.
    pub(crate) fn last(&self) -> Amounts {
        self.levels.map(|level| level.map(|level| level.last))
    }

    /// The sample that is expected next.
    pub(crate) fn next(&self) -> Amounts {
        self.levels.map(|level| level.map(|level| level.next()))
    }

    /// Something came (`sign` 1) or left (-1) that asks for so much: as if it had always been there,
    /// or never.
    pub(crate) fn shift(&mut self, by: &Amounts, sign: f64) {
        for (level, by) in self.levels.iter_mut().zip(by) {
            if let (Some(level), Some(by)) = (level, by) {
                level.mean = (level.mean + sign * by).max(0.0);
                level.last = (level.last + sign * by).max(0.0);
            }
        }
    }
}

/// Which of the last samples were too high.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(u32);

impl Marks {
    pub(crate) fn add(&mut self, high: bool) {
        self.0 = self.0 << 1 | u32::from(high);
    }

    /// How many of the last `n` were too high.
    pub(crate) fn of_last(self, n: u32) -> u32 {
        let mask = 1_u32.checked_shl(n).map_or(u32::MAX, |bit| bit - 1);
        (self.0 & mask).count_ones()
    }

    pub(crate) fn last(self) -> bool {
        self.0 & 1 == 1
    }

    pub(crate) fn clear(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[f64]) -> f64 {
        let mut series = Series::default();
        for sample in samples {
            series.add(&[Some(*sample), None, None, None, None]);
        }
        series.next()[0].unwrap()
    }

    #[test]
    fn a_step_is_followed_within_three_samples_and_a_peak_is_not() {
        let calm = [0.3; 20];
        assert!((after(&calm) - 0.3).abs() < 1e-9);
        let step = |high: usize| after(&[&calm[..], &vec![0.95; high]].concat());
        assert!(step(3) > 0.75, "{}", step(3));
        assert!(step(10) > 0.9, "{}", step(10));
        assert!(after(&[&calm[..], &[0.95, 0.3, 0.3]].concat()) < 0.5);
    }

    #[test]
    fn noise_without_memory_is_predicted_by_its_mean() {
        let noise: Vec<_> = (0..60_u32).map(|i| 0.7 + f64::from(i * 7 % 5) * 0.02 - 0.04).collect();
        assert!((after(&noise) - 0.7).abs() < 0.03, "{}", after(&noise));
    }

    #[test]
    fn what_is_not_measured_any_more_is_not_known() {
        let mut series = Series::default();
        series.add(&[Some(1.0), Some(2.0), None, None, None]);
        series.add(&[Some(1.0), None, None, None, None]);
        assert_eq!(series.next(), [Some(1.0), None, None, None, None]);
        series.shift(&[Some(3.0), Some(3.0), None, None, None], -1.0);
        assert_eq!(series.last(), [Some(0.0), None, None, None, None]);
    }

    #[test]
    fn marks_count_the_last_ones() {
        let mut marks = Marks::default();
        for high in [true, true, false, true, false] {
            marks.add(high);
        }
        assert_eq!((marks.of_last(1), marks.of_last(2), marks.of_last(5)), (0, 1, 3));
        for _ in 0..40 {
            marks.add(true);
        }
        assert_eq!(marks.of_last(MOST_MARKS), 32);
    }
}
