//! How fast the scanner goes.
//!
//! ```text
//!          a mergeable VM starts                    two whole passes, the last found little
//!   Off -------------------------> Converging ----------------------------------------> Idle
//!    ^                              ^                                                  |  |
//!    |                              +--- VMs grew; pages change; the trickle finds ----+  |
//!    +------------------------- no mergeable VM is left ----------------------------------+
//! ```
//!
//! The kernel looks at `pages_to_scan` pages, sleeps for `sleep_ms`, and goes on; a page is merged at
//! its second look at the earliest, as it must not have changed between two. So whatever became
//! equal before a pass began is merged when the next one ends, and two passes decide. With a cost of
//! c per page, a batch of N pages and a sleep of S take the share f = Nc / (Nc + S) of a core;
//! hence N = fS / (c (1 - f)). The cost is measured, as it depends on the machine and on what is
//! found, from 0.2 us for a page that is merged already to 10 us for one that becomes so: a rise is
//! believed at once, a fall slowly. What is left of the budget for all that, because the scanner had to
//! wait for a processor or the cost fell, is made good within seconds, and so is what was overdrawn.
//!
//! VMs whose memory swings and has nothing in common would wake it again and again: searches that
//! found little take no more than a hundredth of a core in the long run.

use plimsoll_model::Bytes;

/// What the scanner may take while it converges, in thousandths of a core.
pub const CONVERGING_SHARE: u16 = 205;
/// What it may take when there is nothing to find.
pub const IDLE_SHARE: u16 = 5;

/// Between two batches, in milliseconds.
const CONVERGING_SLEEP: u32 = 20;
const IDLE_SLEEP: u32 = 200;
/// A batch holds at least this much, or counters never move; and at most this much, or a wrong cost
/// takes a core for long.
const LEAST_BATCH: u64 = 8;
const LARGEST_BATCH: u64 = 5_000;
/// What a page costs before that was measured, and in what bounds it is believed, in nanoseconds.
const FIRST_COST: u64 = 3_000;
const LEAST_COST: u64 = 100;
const LARGEST_COST: u64 = 200_000;
/// So many pages are measured at least.
const LEAST_MEASURED: u64 = 200;
/// A new, lower cost counts for one part in so many.
const COST_INERTIA: u64 = 2;
/// Within how long a budget that was not kept is made good, and at what part of it, in thousandths,
/// the scanner goes at least and at most meanwhile.
const BALANCE_MS: u64 = 1_500;
const LEAST_PART: u64 = 250;
const LARGEST_PART: u64 = 1_400;
/// A pass that merges less than one page in so many has found little.
const LITTLE: u64 = 200;
/// A trickle that merges more than one page in so many has found something.
const FOUND: u64 = 20;
/// A trickle that comes upon one page in so many that has changed since the last look at it has come
/// to where something new was written.
const REWRITTEN: u64 = 4;
/// Fewer pages than this say nothing.
const LEAST_FOUND: u64 = 256;
/// Growth of the mergeable memory by one part in so many is news, if it is this much at least.
const GROWTH: u64 = 32;
const LEAST_GROWTH: u64 = 16 << 20;
/// One page in so many that has begun to change is news, if they are this many at least.
const CHANGE: u64 = 10;
const LEAST_CHANGE: u64 = 4_096;
/// What searches for growth and change that found little may take in the long run, in thousandths of
/// a core; what they may have taken beyond it before the next one waits; and what is remembered of
/// that at most, in nanoseconds.
const IN_VAIN_SHARE: u64 = 10;
const IN_VAIN_AT_ONCE: u64 = 3_000_000_000;
const IN_VAIN_MOST: u64 = 9_000_000_000;

/// What the scanner's counters say at one moment. Those that count since the boot may begin anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, on a clock that never goes back, in milliseconds.
    pub at_ms: u64,
    /// CPU time that the scanner has had since the boot, in nanoseconds.
    pub cpu_ns: u64,
    /// Pages that it has looked at since the boot.
    pub scanned: u64,
    /// Passes over all of the memory since the boot.
    pub passes: u64,
    /// Pages that stand for several, and those for which they stand.
    pub merged: u64,
    /// Pages that changed between two looks.
    pub volatile: u64,
    /// Mergeable VMs that run.
    pub vms: u32,
    /// Mergeable VMs that have started since somebody began to count.
    pub starts: u64,
    /// What they hold of the host's memory.
    pub resident: Bytes,
}

/// What the scanner is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Pages in a batch; zero: it stands still.
    pub pages_to_scan: u32,
    /// Between two batches, in milliseconds.
    pub sleep_ms: u32,
}

/// What the scanner is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// There is no mergeable VM.
    #[default]
    Off,
    /// Pages may have become equal: it goes fast.
    Converging,
    /// Nothing is found: it goes on at a trickle.
    Idle,
}

/// The scanner's course, from one look at its counters to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    phase: Phase,
    /// Per page, in nanoseconds; zero before it was measured.
    cost: u64,
    /// CPU time that the scanner had too little of while it converges, in nanoseconds.
    credit: i64,
    last: Sample,
    /// The counters when the pass began that is under way, or when idleness did.
    mark: Sample,
    /// Passes that have ended since it began to converge; the first may have been half a pass.
    passes: u64,
    /// What was merged when it began to converge.
    merged_before: u64,
    scanned_before: u64,
    cpu_before: u64,
    /// CPU time of searches that found little, less what they may take, in nanoseconds.
    in_vain: u64,
}

impl Scan {
    /// The course after another look.
    #[must_use]
    pub fn next(self, sample: &Sample) -> Self {
        let mut next = self;
        next.measure(sample);
        match self.phase {
            _ if sample.vms == 0 => next.phase = Phase::Off,
            Phase::Off => next.converge(sample),
            // All of a new VM's pages are to be looked at.
            _ if sample.starts > self.last.starts => next.converge(sample),
            Phase::Converging => {
                next.balance(sample);
                next.follow(sample);
            }
            Phase::Idle => next.listen(sample),
        }
        next.last = *sample;
        next
    }

    /// What the scanner is at.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// What the scanner is to do until the next look.
    #[must_use]
    pub fn pace(&self) -> Pace {
        match self.phase {
            Phase::Off => Pace { pages_to_scan: 0, sleep_ms: IDLE_SLEEP },
            Phase::Converging => self.batch(self.balanced(), CONVERGING_SLEEP),
            Phase::Idle => self.batch(IDLE_SHARE.into(), IDLE_SLEEP),
        }
    }

    /// The share of a core with which the budget is kept on average.
    fn balanced(&self) -> u64 {
        let share = i64::from(CONVERGING_SHARE);
        let more = self.credit / (BALANCE_MS * 1_000).cast_signed();
        let share = u64::try_from(share.saturating_add(more)).unwrap_or(0);
        let of = |part| u64::from(CONVERGING_SHARE) * part / 1000;
        share.clamp(of(LEAST_PART), of(LARGEST_PART))
    }

    fn batch(&self, share: u64, sleep_ms: u32) -> Pace {
        let cost = if self.cost == 0 { FIRST_COST } else { self.cost };
        let budget_ns = u64::from(sleep_ms) * 1_000_000 * share / (1000 - share);
        let pages = (budget_ns / cost).clamp(LEAST_BATCH, LARGEST_BATCH);
        Pace { pages_to_scan: u32::try_from(pages).unwrap_or(u32::MAX), sleep_ms }
    }

    /// Learns what a page costs.
    fn measure(&mut self, sample: &Sample) {
        let pages = sample.scanned.saturating_sub(self.last.scanned);
        let spent = sample.cpu_ns.saturating_sub(self.last.cpu_ns);
        // Before the first look everything since the boot would count.
        if self.phase == Phase::Off || pages < LEAST_MEASURED || spent == 0 {
            return;
        }
        let now = (spent / pages).clamp(LEAST_COST, LARGEST_COST);
        let before = if self.cost == 0 { FIRST_COST } else { self.cost };
        self.cost = if now >= before { now } else { before - (before - now) / COST_INERTIA };
    }

    /// Keeps account of the budget.
    fn balance(&mut self, sample: &Sample) {
        let spent = sample.cpu_ns.saturating_sub(self.last.cpu_ns);
        let past_ms = sample.at_ms.saturating_sub(self.last.at_ms);
        let due = |ms: u64| signed(ms.saturating_mul(u64::from(CONVERGING_SHARE) * 1_000));
        let credit = self.credit.saturating_add(due(past_ms)).saturating_sub(signed(spent));
        // What lies further back is forgotten.
        self.credit = credit.clamp(-due(BALANCE_MS), due(BALANCE_MS));
    }

    fn converge(&mut self, sample: &Sample) {
        self.phase = Phase::Converging;
        self.mark = *sample;
        self.passes = 0;
        self.credit = 0;
        self.merged_before = sample.merged;
        self.scanned_before = sample.scanned;
        self.cpu_before = sample.cpu_ns;
    }

    /// Sees whether the passes still find something.
    fn follow(&mut self, sample: &Sample) {
        let passes = sample.passes.saturating_sub(self.mark.passes);
        if passes == 0 {
            return;
        }
        // Several short passes between two looks: what they found together is what one found.
        self.passes = self.passes.saturating_add(passes);
        let looked = sample.scanned.saturating_sub(self.mark.scanned);
        let found = sample.merged.saturating_sub(self.mark.merged);
        let grew = has_grown(self.mark.resident, sample.resident);
        self.mark = *sample;
        if self.passes <= 2 || found > looked / LITTLE || grew {
            return;
        }
        self.phase = Phase::Idle;
        let gained = sample.merged.saturating_sub(self.merged_before);
        let looked = sample.scanned.saturating_sub(self.scanned_before);
        if gained <= looked / LITTLE {
            let spent = sample.cpu_ns.saturating_sub(self.cpu_before);
            self.in_vain = self.in_vain.saturating_add(spent).min(IN_VAIN_MOST);
        }
    }

    /// Sees whether something has happened that makes a search worth while.
    fn listen(&mut self, sample: &Sample) {
        let looked = sample.scanned.saturating_sub(self.last.scanned);
        let found = sample.merged.saturating_sub(self.last.merged);
        if found >= LEAST_FOUND && found > looked / FOUND {
            self.converge(sample);
            return;
        }
        // What shrinks may grow again.
        self.mark.resident = self.mark.resident.min(sample.resident);
        self.mark.volatile = self.mark.volatile.min(sample.volatile);
        let past_ms = sample.at_ms.saturating_sub(self.last.at_ms);
        self.in_vain = self.in_vain.saturating_sub(past_ms.saturating_mul(IN_VAIN_SHARE * 1_000));
        if self.in_vain >= IN_VAIN_AT_ONCE {
            return;
        }
        let rewritten = sample.volatile.saturating_sub(self.last.volatile);
        let pages = sample.resident.get() / 4096;
        let changed = sample.volatile.saturating_sub(self.mark.volatile);
        if has_grown(self.mark.resident, sample.resident)
            || changed >= LEAST_CHANGE.max(pages / CHANGE)
            || (rewritten >= LEAST_FOUND && rewritten > looked / REWRITTEN)
        {
            self.converge(sample);
        }
    }
}

fn signed(nanoseconds: u64) -> i64 {
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

fn has_grown(before: Bytes, now: Bytes) -> bool {
    now.get().saturating_sub(before.get()) >= LEAST_GROWTH.max(before.get() / GROWTH)
}

#[cfg(test)]
mod tests;
