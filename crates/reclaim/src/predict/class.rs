//! What VMs of a size use, for those of which too little is known.
//!
//! A class is all VMs with as many cores and as much memory, rounded up to powers of two. It
//! remembers how often they used which share of their size. A new VM's unknown scenarios are drawn
//! from that in the order of a sequence that is spread evenly (multiples of the golden ratio), from
//! a place of the VM's own: together they have the distribution of the class, and new VMs are not
//! expected to be busy at the same instants.

use plimsoll_model::Amount;
use std::collections::BTreeMap;

use super::{WEEK, history::Cell};

/// Shares are remembered in steps of 1/64 of the size, each counted with its upper end.
const STEPS: u32 = 64;

/// Samples from which a class says something: a day of one VM.
const ENOUGH: u64 = WEEK / 7;

/// Samples after which the old ones count half: some months of a few VMs.
const FADING: u64 = 1 << 17;

/// A size, rounded up to powers of two of millicores and of MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    cpu: u32,
    memory: u32,
}

impl Class {
    pub(super) fn of(size: Amount) -> Self {
        let exponent = |amount: u32| amount.checked_next_power_of_two().map_or(32, u32::ilog2);
        let size = Cell::of(size);
        Self { cpu: exponent(size.cpu), memory: exponent(size.memory) }
    }
}

/// How often each share was used.
#[derive(Clone, Debug)]
struct Shares {
    counts: [u64; STEPS as usize + 1],
    total: u64,
}

impl Default for Shares {
    fn default() -> Self {
        Self { counts: [0; STEPS as usize + 1], total: 0 }
    }
}

impl Shares {
    fn observe(&mut self, used: u32, size: u32) {
        let step = u64::from(used) * u64::from(STEPS);
        let step = step.div_ceil(u64::from(size).max(1)).min(u64::from(STEPS));
        let place = usize::try_from(step).expect("at most the number of steps");
        self.counts[place] += 1;
        self.total += 1;
        if self.total >= FADING {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    /// The least amount that is not exceeded in a part of all samples, given in 2^32nds.
    fn quantile(&self, part: u32, size: u32) -> u32 {
        let wanted = (u128::from(self.total) * u128::from(part)) >> 32;
        let mut seen = 0;
        for (step, count) in (0_u32..).zip(self.counts) {
            seen += u128::from(count);
            if seen > wanted {
                let amount = u64::from(size) * u64::from(step);
                return u32::try_from(amount.div_ceil(STEPS.into())).unwrap_or(size);
            }
        }
        size
    }
}

/// All classes.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes(BTreeMap<Class, [Shares; 2]>);

impl Classes {
    pub(super) fn observe(&mut self, class: Class, size: Cell, used: Cell) {
        let [cpu, memory] = self.0.entry(class).or_default();
        cpu.observe(used.cpu, size.cpu);
        memory.observe(used.memory, size.memory);
    }

    /// What a VM of a class uses in a scenario; none while too little is known of the class.
    pub(super) fn draw(&self, class: Class, size: Cell, vm: u128, scenario: u64) -> Option<Cell> {
        let [cpu, memory] = self.0.get(&class)?;
        if cpu.total < ENOUGH {
            return None;
        }
        let part = place(vm, scenario);
        // Busy with the one is busy with the other: the same place in both.
        Some(Cell { cpu: cpu.quantile(part, size.cpu), memory: memory.quantile(part, size.memory) })
    }
}

/// A place from 0 to 1 in 2^32nds: a VM's own begin, then steps of the golden ratio.
fn place(vm: u128, scenario: u64) -> u32 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let folded = vm ^ (vm >> 64);
    let begin = u64::try_from(folded & u128::from(u64::MAX)).unwrap_or(0).wrapping_mul(GOLDEN);
    // A product's high bits depend on all bits of its factors.
    let begin = begin ^ (begin >> 32);
    let at = begin.wrapping_mul(GOLDEN).wrapping_add(scenario.wrapping_mul(GOLDEN));
    u32::try_from(at >> 32).unwrap_or(u32::MAX)
}
