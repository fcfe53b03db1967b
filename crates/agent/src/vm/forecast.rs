//! How long a live migration will take, and whether it will end at all.
//!
//! Pre-copy sends all of memory while the guest runs, then what was written meanwhile, and so on (Clark
//! et al., Live Migration of Virtual Machines, NSDI'05, section 3.2). With a constant bandwidth `b` and
//! dirty rate `d`, pass `k` sends `m * r^k` with `r = d / b`: a geometric series that ends when what
//! is left fits into the allowed downtime, and never where `r >= 1`.

use std::time::Duration;

use plimsoll_api::migration::MigrationLimits;

/// What the VM stands still for beside sending memory: device state, and the word to go.
const SWITCH: Duration = Duration::from_millis(15);
/// QEMU sends no more passes than this before anybody gives up on convergence.
const PASSES: u32 = 64;
/// A dirty rate above this part of the bandwidth does not converge in any useful time.
const HOPELESS: f64 = 0.9;
/// So many passes show what a guest does.
const TELLING_PASSES: u64 = 3;

/// A copy as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Copying {
    /// Bytes that are left in this pass.
    pub left: u64,
    /// Bytes a second that the guest writes to for the first time in a pass.
    pub dirty_rate: f64,
    /// Bytes a second that are sent.
    pub bandwidth: f64,
    /// Passes that were begun.
    pub passes: u64,
    /// Since the move began.
    pub elapsed: Duration,
}

/// What will come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// From now to the switch; `None`: it does not converge.
    pub left: Option<Duration>,
    /// How long the VM will stand still.
    pub downtime: Duration,
}

/// Looks ahead.
#[must_use]
pub(crate) fn forecast(copying: &Copying, max_downtime: Duration) -> Forecast {
    let Copying { left, dirty_rate, bandwidth, .. } = *copying;
    if bandwidth <= 0.0 {
        return Forecast { left: None, downtime: SWITCH };
    }
    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    let mut pass = left as f64 / bandwidth;
    let ratio = (dirty_rate / bandwidth).max(0.0);
    let mut sum = 0.0;
    for _ in 0..PASSES {
        if pass <= max_downtime.as_secs_f64() {
            let downtime = Duration::from_secs_f64(pass) + SWITCH;
            return Forecast { left: Some(seconds(sum)), downtime };
        }
        sum += pass;
        pass *= ratio;
    }
    Forecast { left: None, downtime: seconds(pass) + SWITCH }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX / 4)
}

/// What to do with a copy that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It goes on.
    GoOn,
    /// The VM is to run on the target now; the rest of its memory follows.
    PostCopy,
    /// It will not be done in time.
    GiveUp,
}

/// Decides. `may_post_copy`: the user and both hosts allow it.
#[must_use]
pub(crate) fn step(copying: &Copying, limits: &MigrationLimits, may_post_copy: bool) -> Step {
    let deadline = Duration::from_millis(limits.deadline_ms);
    if copying.elapsed >= deadline {
        return if may_post_copy { Step::PostCopy } else { Step::GiveUp };
    }
    if !may_post_copy || copying.passes < TELLING_PASSES {
        return Step::GoOn;
    }
    let hopeless = copying.dirty_rate >= HOPELESS * copying.bandwidth;
    let ahead = forecast(copying, Duration::from_millis(limits.max_downtime_ms));
    let too_late = ahead.left.is_none_or(|left| copying.elapsed.saturating_add(left) > deadline);
    if hopeless || too_late { Step::PostCopy } else { Step::GoOn }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;
    const LIMIT: Duration = Duration::from_millis(100);

    fn copying(left_mib: u64, dirty: f64, bandwidth: f64, passes: u64, elapsed_s: u64) -> Copying {
        Copying {
            left: left_mib << 20,
            dirty_rate: dirty * MIB,
            bandwidth: bandwidth * MIB,
            passes,
            elapsed: Duration::from_secs(elapsed_s),
        }
    }

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let ahead = forecast(&copying(1024, 0.0, 128.0, 1, 0), LIMIT);
        assert_eq!(ahead, Forecast { left: Some(Duration::from_secs(8)), downtime: SWITCH });
    }

    #[test]
    fn passes_shrink_by_the_ratio_of_the_rates() {
        // 8 + 4 + 2 + 1 + 0.5 + 0.25 + 0.125 s, and 62.5 ms that are left.
        let ahead = forecast(&copying(1024, 64.0, 128.0, 1, 0), LIMIT);
        assert_eq!(ahead.left, Some(Duration::from_millis(15_875)));
        assert_eq!(ahead.downtime, Duration::from_micros(62_500) + SWITCH);
    }

    #[test]
    fn who_writes_as_fast_as_the_link_never_ends() {
        assert_eq!(forecast(&copying(64, 128.0, 128.0, 9, 0), LIMIT).left, None);
        assert_eq!(forecast(&copying(64, 1.0, 0.0, 9, 0), LIMIT).left, None);
    }

    #[test]
    fn memory_follows_later_where_it_must_and_may() {
        let limits = MigrationLimits { deadline_ms: 60_000, ..MigrationLimits::default() };
        let calm = copying(10, 10.0, 128.0, 5, 10);
        let wild = copying(256, 126.0, 128.0, 5, 10);
        let slow = copying(4096, 100.0, 128.0, 3, 30);
        let step = |copying, may| super::step(&copying, &limits, may);
        assert_eq!(step(calm, true), Step::GoOn);
        assert_eq!(step(wild, true), Step::PostCopy);
        assert_eq!(step(slow, true), Step::PostCopy, "it converges, but too late");
        assert_eq!(step(wild, false), Step::GoOn, "it may calm down until the deadline");
        let young = Copying { passes: 1, ..wild };
        assert_eq!(step(young, true), Step::GoOn, "one pass tells nothing");
        let late = Copying { elapsed: Duration::from_secs(60), ..calm };
        assert_eq!((step(late, true), step(late, false)), (Step::PostCopy, Step::GiveUp));
    }
}
