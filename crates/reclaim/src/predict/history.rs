//! What one VM used: every slot of the last half day, and the highest of each half hour of the last
//! week.

use plimsoll_model::{Amount, Bytes, MilliCores};

use super::{CHANGES, PERIODS, SLOTS_IN_PERIOD, WEEK};

/// Slots that are kept one by one: a change needs the slot before it.
const RECENT: u64 = CHANGES + 1;

const MIB: u64 = 1 << 20;

/// CPU and memory in little room: thousandths of cores, and MiB rounded up. 4 million cores and
/// 4 PiB are the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) cpu: u32,
    pub(super) memory: u32,
}

impl Cell {
    pub(super) fn of(usage: Amount) -> Self {
        let fit = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        Self { cpu: fit(usage.cpu.0), memory: fit(usage.memory.0.div_ceil(MIB)) }
    }

    pub(super) fn within(self, size: Self) -> Self {
        Self { cpu: self.cpu.min(size.cpu), memory: self.memory.min(size.memory) }
    }

    pub(super) fn max(self, other: Self) -> Self {
        Self { cpu: self.cpu.max(other.cpu), memory: self.memory.max(other.memory) }
    }

    /// This after a change as that from `before` to `after`, never below nothing.
    pub(super) fn changed(self, before: Self, after: Self) -> Self {
        let change = |now: u32, before: u32, after: u32| {
            if after >= before {
                now.saturating_add(after - before)
            } else {
                now.saturating_sub(before - after)
            }
        };
        Self {
            cpu: change(self.cpu, before.cpu, after.cpu),
            memory: change(self.memory, before.memory, after.memory),
        }
    }
}

/// Whole MiB as an amount of memory; `f64` holds them exactly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole numbers from 0 on, and casts of floats saturate"
)]
pub(super) fn usage(cpu: f64, memory: f64) -> Amount {
    Amount { cpu: MilliCores(cpu as u64), memory: Bytes((memory as u64).saturating_mul(MIB)) }
}

/// Bytes in MiB, as outlooks count them.
#[expect(clippy::cast_precision_loss, reason = "less than a byte in 8 PiB")]
pub(super) fn mib(memory: Bytes) -> f64 {
    memory.0 as f64 / MIB as f64
}

/// What one VM used. Rings: a slot's place is its number modulo the length.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// The first slot and the last of which there is a sample.
    first: u64,
    last: u64,
    recent: Box<[Cell]>,
    peaks: Box<[Cell]>,
}

impl History {
    pub(super) fn new(slot: u64, used: Cell) -> Self {
        let ring = |length: u64| (0..length).map(|_| Cell::default()).collect();
        let mut history =
            Self { first: slot, last: slot, recent: ring(RECENT), peaks: ring(PERIODS) };
        history.put(slot, used);
        history
    }

    pub(super) fn observe(&mut self, slot: u64, used: Cell) {
        if slot < self.last {
            return;
        }
        if slot - self.last > WEEK {
            *self = Self::new(slot, used);
            return;
        }
        let before = self.recent[place(self.last, RECENT)];
        for gap in self.last + 1..slot {
            self.put(gap, before);
        }
        let used = if slot == self.last { used.max(before) } else { used };
        self.put(slot, used);
        self.last = slot;
    }

    fn put(&mut self, slot: u64, used: Cell) {
        self.recent[place(slot, RECENT)] = used;
        let period = slot / SLOTS_IN_PERIOD;
        let peak = &mut self.peaks[place(period, PERIODS)];
        let begins = slot == self.first || slot.is_multiple_of(SLOTS_IN_PERIOD);
        *peak = if begins { used } else { peak.max(used) };
    }

    /// What it used in a slot; since its last sample, what that said.
    pub(super) fn at(&self, slot: u64) -> Option<Cell> {
        let slot = slot.min(self.last);
        let known = slot >= self.first && self.last - slot < RECENT;
        known.then(|| self.recent[place(slot, RECENT)])
    }

    /// The most that it used in a period; since its last sample, what that said.
    pub(super) fn peak_of(&self, period: u64) -> Option<Cell> {
        let last = self.last / SLOTS_IN_PERIOD;
        if period > last {
            return self.at(self.last);
        }
        let known = period >= self.first / SLOTS_IN_PERIOD && last - period < PERIODS;
        known.then(|| self.peaks[place(period, PERIODS)])
    }
}

fn place(number: u64, length: u64) -> usize {
    usize::try_from(number % length).expect("less than a ring's length")
}
