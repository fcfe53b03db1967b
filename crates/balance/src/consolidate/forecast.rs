//! What a VM will ask for in the rounds that come.

use plimsoll_model::MilliCores;

/// What is expected of a VM's demand, in thousandths of cores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// In the mean.
    pub mean: f64,
    /// The square of the usual distance from the mean.
    pub variance: f64,
}

/// How far back a forecast looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sight {
    /// Samples that are looked at, at most.
    pub samples: usize,
    /// How much each sample counts for the mean, in shares of the one after it.
    pub mean_memory: f64,
    /// The same for the variance.
    pub variance_memory: f64,
    /// How many samples what is presumed of a VM counts for: with few samples of its own, its
    /// deviation is taken to be a share of its size.
    pub presumed_samples: f64,
    /// That share.
    pub presumed_deviation: f64,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            samples: 36,
            mean_memory: 0.8,
            variance_memory: 0.95,
            presumed_samples: 2.0,
            presumed_deviation: 0.1,
        }
    }
}

impl Forecast {
    /// What is expected of a VM of a size with these samples, the last one last. A VM without any is
    /// expected to ask for all that it may.
    #[must_use]
    pub fn of(recent: &[MilliCores], size: MilliCores, sight: &Sight) -> Self {
        let size = float(size);
        if recent.is_empty() {
            return Self { mean: size, variance: 0.0 };
        }
        let newest = || recent.iter().rev().take(sight.samples.max(1)).map(|one| float(*one));
        let (mut sum, mut weights, mut weight) = (0.0, 0.0, 1.0);
        for sample in newest() {
            sum += sample * weight;
            weights += weight;
            weight *= sight.mean_memory;
        }
        let mean = sum / weights;
        // Distances from the plain mean, not from what was foreseen each time: that would need more
        // samples to be as steady.
        let presumed = (size * sight.presumed_deviation).powi(2);
        let (mut sum, mut weights, mut weight) =
            (presumed * sight.presumed_samples, sight.presumed_samples, 1.0);
        for sample in newest() {
            sum += (sample - mean).powi(2) * weight;
            weights += weight;
            weight *= sight.variance_memory;
        }
        Self { mean, variance: if weights > 0.0 { sum / weights } else { 0.0 } }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 thousandths of a core are more than there are"
)]
pub(super) const fn float(cpu: MilliCores) -> f64 {
    cpu.0 as f64
}
