//! VMs that are booked with an amount: a percentile of what each used in its last week, by itself.
//!
//! The amounts are looked at again every hour. A host on which more is booked than it has gives VMs
//! away, to hosts that have room for them, and a host is opened where there is none.

use plimsoll_model::{Amount, Bytes, MilliCores};
use plimsoll_reclaim::predict::{Outlook, Risk, relieve::Aim};

use super::{HISTORY, Vm, fleet::Fleet, scaled};

/// Slots from one look to the next: an hour.
const LOOK: usize = 12;

/// More is booked than a host has: then moves are worth it, however little it is.
const ANY: f64 = 1e-9;

/// What VMs are booked with.
#[derive(Clone, Debug)]
pub(super) struct Booked {
    share: f64,
    times: f64,
    expected: Vec<Outlook>,
}

impl Booked {
    /// Books VMs with so many times what they use at most in a share of the slots of the first week.
    pub(super) fn new(vms: &[Vm], share: f64, times: f64) -> Self {
        let mut booked = Self { share, times, expected: Vec::new() };
        booked.look(vms, HISTORY);
        booked
    }

    pub(super) fn expected(&self) -> &[Outlook] {
        &self.expected
    }

    fn look(&mut self, vms: &[Vm], slot: usize) {
        let week = slot - HISTORY..slot;
        let booked = vms.iter().map(|vm| {
            let used = &vm.used[week.clone()];
            let usage = Amount {
                cpu: MilliCores(percentile(used.iter().map(|used| used.cpu.0), self.share)),
                memory: Bytes(percentile(used.iter().map(|used| used.memory.0), self.share)),
            };
            let usage = scaled(usage, self.times);
            // No VM can ask for more than its size.
            Outlook::certain(Amount {
                cpu: usage.cpu.min(vm.size.cpu),
                memory: usage.memory.min(vm.size.memory),
            })
        });
        self.expected = booked.collect();
    }

    pub(super) fn decide(&mut self, vms: &[Vm], slot: usize, fleet: &mut Fleet) {
        if !(slot - HISTORY).is_multiple_of(LOOK) {
            return;
        }
        self.look(vms, slot);
        let aim = Aim { fill: 1.0, least_gain: ANY, most_moves: vms.len(), memory_weight: 1.0 };
        fleet.relieve(&self.expected, &aim);
        while self.over(fleet) && fleet.open(|fleet| fleet.relieve(&self.expected, &aim)) {}
    }

    /// Whether more is booked on a host than it has.
    fn over(&self, fleet: &Fleet) -> bool {
        let capacity = fleet.capacity();
        let nothing = Outlook::certain(Amount::default());
        fleet.together(&self.expected, &nothing).iter().any(|host| {
            let booked = host.peak(Risk::NONE);
            booked.cpu > capacity.cpu || booked.memory > capacity.memory
        })
    }
}

/// The least amount that is not exceeded in a share of the samples.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a week"
)]
fn percentile(samples: impl Iterator<Item = u64>, share: f64) -> u64 {
    let mut samples: Vec<_> = samples.collect();
    let Some(last) = samples.len().checked_sub(1) else { return 0 };
    let place = (last as f64 * share).round() as usize;
    *samples.select_nth_unstable(place.min(last)).1
}
