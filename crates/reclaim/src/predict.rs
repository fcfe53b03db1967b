//! How much a host's VMs will ask for at most, at a stated risk.
//!
//! ```text
//!   samples of each VM -> history (short, bounded) -> outlook (what may come, as scenarios)
//!                                                        |
//!              outlooks added up, scenario by scenario: what VMs together may ask for
//!                          |                                   |
//!                 peak at a risk -> admission          relieve: which VM moves where
//! ```
//!
//! A prediction is a list of *scenarios*. The same entry of every VM's list is the same instant of
//! the past, so that adding lists up keeps who asks for much at the same time: covariance is
//! counted as it was, between any number of VMs, without ever being estimated (a sample average of
//! the chance constraint: Luedtke and Ahmed, *A sample approximation approach for optimization with
//! probabilistic constraints*, SIAM J. Optimization 19(2), 2008). The peak at a risk is the value
//! that at most that share of the scenarios exceeds.
//!
//! Two horizons ([`Horizon`]): the next slot, where a scenario is what a VM uses now and one of its
//! recent changes; and the next days, where a scenario is half an hour of the last week, with the
//! highest use in it. A VM whose history is shorter than that is filled up with what VMs of its
//! size use ([`class`]), and with its whole size where nothing is known.
//!
//! Invariants: a VM never counts for more than its size; with [`Risk::NONE`] the peak is the
//! highest scenario; a lower risk never has a lower peak; the peak of VMs together is never above
//! the sum of their own with [`Risk::NONE`]. A VM's history takes 4 KiB, however long it runs.

pub mod admit;
mod class;
mod history;
mod outlook;
pub mod relieve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use plimsoll_model::{Amount, VmId};

use class::{Class, Classes};
use history::{Cell, History};
pub use outlook::Outlook;

/// Slots (of five minutes, when all is as usual) in one period of a history: half an hour.
pub const SLOTS_IN_PERIOD: u64 = 6;

/// Slots of a week, which is how far a history goes back.
pub const WEEK: u64 = 2016;

/// Scenarios of [`Horizon::Next`]: the changes of twelve hours.
pub const CHANGES: u64 = 144;

/// Scenarios of [`Horizon::Week`].
pub const PERIODS: u64 = WEEK / SLOTS_IN_PERIOD;

/// How often a host may be short: shares of all slots, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Risk {
    /// Of CPU.
    pub cpu: f64,
    /// Of memory.
    pub memory: f64,
}

impl Risk {
    /// Never.
    pub const NONE: Self = Self { cpu: 0.0, memory: 0.0 };
}

/// For which time a prediction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Horizon {
    /// The slot that comes: long enough for a decision and a move.
    Next,
    /// The days that come, as the last week was.
    Week,
}

/// What VMs will ask for at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// How much.
    pub usage: Amount,
    /// Why so much.
    pub basis: Basis,
}

/// What a peak rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// VMs with a history as long as the horizon looks back.
    pub measured: usize,
    /// VMs of which part or all is taken from VMs of their size.
    pub by_class: usize,
    /// VMs that count, in part at least, with their whole size, since nothing else is known.
    pub by_size: usize,
    /// The sum of what each VM alone will ask for at most at the same risk: what it is above the
    /// peak comes of VMs not asking at the same time.
    pub each_alone: Amount,
}

/// Remembers what VMs used, and predicts from it.
#[derive(Clone, Debug, Default)]
pub struct Predictor {
    /// The last slot of which there is a sample.
    now: u64,
    histories: BTreeMap<VmId, History>,
    classes: Classes,
}

impl Predictor {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// States what a VM of a size used in a slot. Several samples of one slot count as their
    /// maximum; one of a slot before the VM's last is left out. Slots without a sample count as the
    /// one before them; after a week without, the history begins anew.
    pub fn observe(&mut self, slot: u64, vm: VmId, size: Amount, used: Amount) {
        self.now = self.now.max(slot);
        let used = Cell::of(used).within(Cell::of(size));
        self.classes.observe(Class::of(size), Cell::of(size), used);
        match self.histories.get_mut(&vm) {
            Some(history) => history.observe(slot, used),
            None => {
                self.histories.insert(vm, History::new(slot, used));
            }
        }
    }

    /// Forgets a VM that is gone. What it taught of its size stays.
    pub fn forget(&mut self, vm: VmId) {
        self.histories.remove(&vm);
    }

    /// What a VM of a size may ask for.
    #[must_use]
    pub fn outlook(&self, vm: VmId, size: Amount, horizon: Horizon) -> Outlook {
        self.outlook_and_basis(vm, size, horizon).0
    }

    /// What VMs of these sizes will ask for at most when they share a host: more than that in at
    /// most a share of `risk` of the slots.
    #[must_use]
    pub fn peak(&self, vms: &[(VmId, Amount)], risk: Risk, horizon: Horizon) -> Peak {
        let mut together = Outlook::nothing(horizon);
        let mut basis = Basis::default();
        for (vm, size) in vms {
            let (outlook, known) = self.outlook_and_basis(*vm, *size, horizon);
            match known {
                Known::Measured => basis.measured += 1,
                Known::ByClass => basis.by_class += 1,
                Known::BySize => basis.by_size += 1,
            }
            basis.each_alone = basis.each_alone.saturating_add(outlook.peak(risk));
            together.add(&outlook);
        }
        Peak { usage: together.peak(risk), basis }
    }

    fn outlook_and_basis(&self, vm: VmId, size: Amount, horizon: Horizon) -> (Outlook, Known) {
        let size_cell = Cell::of(size);
        let history = self.histories.get(&vm);
        let class = Class::of(size);
        let mut known = Known::Measured;
        // The number of what is missing goes on from a place of the VM's own, so that VMs of a
        // class are not all expected to be busy at once.
        let start = vm.0.as_u128();
        let mut missing = |scenario: u64| {
            let drawn = self.classes.draw(class, size_cell, start, scenario);
            known = known.max(if drawn.is_some() { Known::ByClass } else { Known::BySize });
            drawn.unwrap_or(size_cell)
        };
        let outlook = match horizon {
            Horizon::Next => {
                let at = |slot| history.and_then(|history| history.at(slot));
                let last = at(self.now).unwrap_or_default();
                let mut after = at(self.now);
                Outlook::collect((0..CHANGES).map(|back| {
                    let before = self.now.checked_sub(back + 1).and_then(at);
                    let change = before.zip(std::mem::replace(&mut after, before));
                    match change {
                        Some((before, after)) => last.changed(before, after).within(size_cell),
                        None => last.max(missing(back)).within(size_cell),
                    }
                }))
            }
            Horizon::Week => {
                let period = self.now / SLOTS_IN_PERIOD;
                Outlook::collect((0..PERIODS).map(|back| {
                    let seen = history
                        .zip(period.checked_sub(back))
                        .and_then(|(history, period)| history.peak_of(period));
                    seen.unwrap_or_else(|| missing(back)).within(size_cell)
                }))
            }
        };
        (outlook, known)
    }
}

/// On what a VM's outlook rests, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Measured,
    ByClass,
    BySize,
}
