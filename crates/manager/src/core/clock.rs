//! Time, at the edge: one clock for people and the store, one for measuring silence.

use std::{fmt, time::Duration};

use plimsoll_model::Timestamp;

/// Tells the time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time of day. It may jump.
    fn now(&self) -> Timestamp;

    /// Time since some fixed instant. It never jumps or goes back: leases are measured with it.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock for tests and simulations that moves only when told.
#[derive(Debug)]
pub struct ManualClock {
    start: Timestamp,
    elapsed: parking_lot::Mutex<Duration>,
}

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> Self {
        Self { start, elapsed: parking_lot::Mutex::new(Duration::ZERO) }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let elapsed = jiff::SignedDuration::try_from(*self.elapsed.lock());
        elapsed
            .ok()
            .and_then(|elapsed| self.start.checked_add(elapsed).ok())
            .unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Duration {
        *self.elapsed.lock()
    }
}
