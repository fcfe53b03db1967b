//! What may come, as scenarios.

use super::{
    CHANGES, Horizon, PERIODS, Risk,
    history::{Cell, mib, usage},
};
use plimsoll_model::Amount;

/// What a VM, or VMs together, may ask for: a list of scenarios, each as likely as the other. The
/// same place of all lists of one predictor and horizon is the same instant, so that they can be
/// added up.
///
/// Amounts are whole numbers (thousandths of cores, MiB) and far below 2^53: sums are exact and do
/// not depend on the order.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    pub(super) cpu: Vec<f64>,
    pub(super) memory: Vec<f64>,
}

impl Outlook {
    /// That of no VM.
    #[must_use]
    pub fn nothing(horizon: Horizon) -> Self {
        let scenarios = match horizon {
            Horizon::Next => CHANGES,
            Horizon::Week => PERIODS,
        };
        Self::collect((0..scenarios).map(|_| Cell::default()))
    }

    /// One scenario: so much is certain. What [`relieve`](super::relieve::relieve) is given where
    /// VMs are booked with an amount.
    #[must_use]
    pub fn certain(booked: Amount) -> Self {
        Self::collect(std::iter::once(Cell::of(booked)))
    }

    pub(super) fn collect(cells: impl Iterator<Item = Cell>) -> Self {
        let scenarios = cells.size_hint().0;
        let (mut cpu, mut memory) = (Vec::with_capacity(scenarios), Vec::with_capacity(scenarios));
        for cell in cells {
            cpu.push(f64::from(cell.cpu));
            memory.push(f64::from(cell.memory));
        }
        Self { cpu, memory }
    }

    /// Adds another VM's. What one of the two does not have is left out.
    pub fn add(&mut self, other: &Self) {
        let add = |sums: &mut [f64], with: &[f64]| {
            for (sum, with) in sums.iter_mut().zip(with) {
                *sum += with;
            }
        };
        add(&mut self.cpu, &other.cpu);
        add(&mut self.memory, &other.memory);
    }

    /// Takes out again what was added.
    pub fn remove(&mut self, other: &Self) {
        let remove = |sums: &mut [f64], with: &[f64]| {
            for (sum, with) in sums.iter_mut().zip(with) {
                *sum -= with;
            }
        };
        remove(&mut self.cpu, &other.cpu);
        remove(&mut self.memory, &other.memory);
    }

    /// The amounts that at most a share of `risk` of the scenarios exceeds, of each by itself.
    #[must_use]
    pub fn peak(&self, risk: Risk) -> Amount {
        usage(exceeded_by(&self.cpu, risk.cpu), exceeded_by(&self.memory, risk.memory))
    }

    /// In which share of the scenarios more CPU, and more memory, is asked for than there is.
    #[must_use]
    pub fn short(&self, capacity: Amount) -> Risk {
        let share = |amounts: &[f64], capacity: f64| {
            let short = amounts.iter().filter(|amount| **amount > capacity).count();
            float(short) / float(amounts.len().max(1))
        };
        Risk {
            cpu: share(&self.cpu, millicores(capacity)),
            memory: share(&self.memory, mib(capacity.memory)),
        }
    }

    /// The amounts that are exceeded in half of the scenarios at most.
    #[must_use]
    pub fn median(&self) -> Amount {
        self.peak(Risk { cpu: 0.5, memory: 0.5 })
    }
}

/// Thousandths of cores as outlooks count them.
#[expect(clippy::cast_precision_loss, reason = "no host has 2^53 thousandths of cores")]
pub(super) const fn millicores(capacity: Amount) -> f64 {
    capacity.cpu.0 as f64
}

/// The least amount of the list that at most a share of it exceeds; 0 of an empty list.
fn exceeded_by(amounts: &[f64], share: f64) -> f64 {
    let mut amounts = amounts.to_vec();
    let Some(last) = amounts.len().checked_sub(1) else { return 0.0 };
    let place = allowed(amounts.len(), share).min(last);
    let (_, amount, _) = amounts.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
    *amount
}

/// How many of so many may exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats saturate, and not-a-number is 0"
)]
fn allowed(of: usize, share: f64) -> usize {
    // A share such as 0.29 of 100 is a little less than 29 in binary.
    (float(of) * share + 1e-9).floor() as usize
}

#[expect(clippy::cast_precision_loss, reason = "numbers of scenarios are small")]
const fn float(count: usize) -> f64 {
    count as f64
}
