//! What a host takes from the wall.

use thiserror::Error;

/// The power of a host at each share of its CPU in use.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerCurve {
    watts: Vec<f64>,
}

/// Why numbers are no power curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidPowerCurve {
    /// Two are needed at least: idle and full.
    #[error("a power curve has at least two values, idle and full")]
    TooShort,
    /// One is negative, no number or less than the one before it.
    #[error(
        "value {at} of a power curve, counted from 0, is negative, no number, or below the one before"
    )]
    NotRising {
        /// Which one.
        at: usize,
    },
}

impl PowerCurve {
    /// A curve through values in W at equal steps from idle to full, straight in between.
    ///
    /// # Errors
    /// The values do not rise, or are too few.
    pub fn new(watts: &[f64]) -> Result<Self, InvalidPowerCurve> {
        if watts.len() < 2 {
            return Err(InvalidPowerCurve::TooShort);
        }
        let mut before = 0.0;
        for (at, value) in watts.iter().enumerate() {
            if !value.is_finite() || *value < before {
                return Err(InvalidPowerCurve::NotRising { at });
            }
            before = *value;
        }
        Ok(Self { watts: watts.to_vec() })
    }

    /// The power with this share of the CPU in use, in W; what is above 1 counts as 1.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a short list's length, cut to it"
    )]
    pub fn watts(&self, share: f64) -> f64 {
        let last = self.watts.len() - 1;
        let at = share.clamp(0.0, 1.0) * last as f64;
        let below = (at as usize).min(last - 1);
        let part = at - below as f64;
        self.watts[below] + (self.watts[below + 1] - self.watts[below]) * part
    }
}
