//! What is promised of one host over time: the sums of the VMs that are there for ever, and of each
//! VM with a begin or an end what it holds when. Only hosts that have such VMs have a profile.
//!
//! All questions are for a *peak*: of each scalar and of each device the most that is promised at
//! any instant of some time. A VM that fits beside the peaks fits at every instant; and one that
//! does not fit beside them does not fit at the instant of that peak, for it holds the same amount,
//! and the same devices, throughout. So a look at the peak over a VM's own time is exact.

use plimsoll_model::{Resources, Timestamp, VmId};

use crate::{
    cluster::Placed,
    devices::{DevicePool, Devices, demanded},
    interval::{DISK, Interval, Span},
    row::SCALARS,
};

/// What is promised of a host: of each scalar, and of each device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holdings {
    /// Wider than a demand, so that whatever is stated can be taken back exactly.
    pub(crate) committed: [u128; SCALARS],
    /// By model; one of zero capacity is here only while something is committed of it.
    pub(crate) pools: Vec<DevicePool>,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    /// What the VMs hold that are there for ever.
    pub(crate) base: Holdings,
    /// By VM.
    timed: Vec<Timed>,
    /// What is held before the first of them begins or ends.
    first: Holdings,
    /// What is held from each instant on at which one begins or ends, in the order of time.
    steps: Vec<Step>,
}

/// What is held from an instant on, until the next one.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    at: Timestamp,
    held: Holdings,
    /// Whether something ends then.
    ends: bool,
}

/// A VM with a begin or an end.
#[derive(Clone, Debug, PartialEq)]
struct Timed {
    vm: VmId,
    span: Span,
    demand: Resources,
    devices: Devices,
}

impl Holdings {
    /// Adds what a VM is promised.
    pub(crate) fn add(&mut self, demand: &Resources, devices: &Devices) {
        for (sum, demand) in self.committed.iter_mut().zip(demand.scalars()) {
            *sum += u128::from(demand);
        }
        for (model, need) in demanded(&demand.accelerators) {
            let at = self.pools.binary_search_by(|pool| pool.model.cmp(model));
            let at = at.unwrap_or_else(|at| {
                self.pools.insert(at, DevicePool::new(model.clone(), 0));
                at
            });
            self.pools[at].add(need, devices.of(model));
        }
    }

    /// The inverse of [`Self::add`].
    pub(crate) fn remove(&mut self, demand: &Resources, devices: &Devices) {
        for (sum, demand) in self.committed.iter_mut().zip(demand.scalars()) {
            *sum -= u128::from(demand);
        }
        for (model, need) in demanded(&demand.accelerators) {
            if let Ok(at) = self.pools.binary_search_by(|pool| pool.model.cmp(model)) {
                self.pools[at].remove(need, devices.of(model));
                if self.pools[at].capacity == 0 && self.pools[at].committed == 0 {
                    self.pools.remove(at);
                }
            }
        }
    }
}

impl Profile {
    /// The profile of a host whose VMs, which hold so much, are all there for ever.
    pub(crate) fn new(base: Holdings) -> Self {
        Self { first: base.clone(), base, timed: Vec::new(), steps: Vec::new() }
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.timed.is_empty()
    }

    /// Adds a VM that has a begin or an end.
    pub(crate) fn insert(&mut self, placed: &Placed) {
        let request = &placed.request;
        let at = self.timed.binary_search_by_key(&request.vm, |timed| timed.vm);
        let timed = Timed {
            vm: request.vm,
            span: Span::of(request),
            demand: request.demand.clone(),
            devices: placed.devices.clone(),
        };
        match at {
            Ok(at) => self.timed[at] = timed,
            Err(at) => self.timed.insert(at, timed),
        }
    }

    /// The inverse of [`Self::insert`].
    pub(crate) fn remove(&mut self, vm: VmId) {
        if let Ok(at) = self.timed.binary_search_by_key(&vm, |timed| timed.vm) {
            self.timed.remove(at);
        }
    }

    /// Brings what is derived in step with the VMs: after any change of them.
    pub(crate) fn refresh(&mut self) {
        let mut now = self.base.clone();
        for (model, _) in self.timed.iter().flat_map(|timed| demanded(&timed.demand.accelerators)) {
            if let Err(at) = now.pools.binary_search_by(|pool| pool.model.cmp(model)) {
                now.pools.insert(at, DevicePool::new(model.clone(), 0));
            }
        }
        let mut turns = Vec::with_capacity(2 * self.timed.len());
        for timed in self.timed.iter().filter(|timed| !timed.span.interval.is_empty()) {
            match timed.span.interval.from {
                Some(from) => turns.push((from, Turn::Begin, timed)),
                None => now.take(Turn::Begin, timed),
            }
            turns.extend(timed.span.interval.until.map(|until| (until, Turn::End, timed)));
        }
        turns.sort_unstable_by_key(|(at, turn, timed)| (*at, *turn, timed.vm));
        self.first = now.clone();
        self.steps.clear();
        for at_once in turns.chunk_by(|(a, ..), (b, ..)| a == b) {
            for (_, turn, timed) in at_once {
                now.take(*turn, timed);
            }
            let (at, turn, _) = at_once[0];
            self.steps.push(Step { at, held: now.clone(), ends: turn == Turn::End });
        }
    }

    /// The instants after this one at which a VM ends, in order.
    pub(crate) fn ends_after(&self, instant: Timestamp) -> impl Iterator<Item = Timestamp> {
        let after = self.steps.partition_point(|step| step.at <= instant);
        self.steps[after..].iter().filter(|step| step.ends).map(|step| step.at)
    }

    /// When the last VM ends that has an end.
    pub(crate) fn last_end(&self) -> Option<Timestamp> {
        self.timed.iter().filter_map(|timed| timed.span.interval.until).max()
    }

    /// Of each scalar and of each device the most that is promised at any instant of this time.
    pub(crate) fn peak(&self, span: &Span) -> Holdings {
        let Interval { from, until } = span.interval;
        let begun = self.steps.partition_point(|step| from.is_some_and(|from| step.at <= from));
        let mut peak = match begun {
            0 => self.first.clone(),
            begun => self.steps[begun - 1].held.clone(),
        };
        for step in &self.steps[begun..] {
            if until.is_none_or(|until| step.at < until) {
                peak.raise(&step.held);
            } else if span.keeps_disk {
                peak.committed[DISK] = peak.committed[DISK].max(step.held.committed[DISK]);
            } else {
                break;
            }
        }
        peak
    }

    /// What it takes in memory beside itself, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.timed.capacity() * size_of::<Timed>()
            + self.steps.capacity() * size_of::<Step>()
            + (self.steps.len() + 2) * self.base.pools.capacity() * size_of::<DevicePool>()
    }
}

impl Holdings {
    /// A VM begins or ends.
    fn take(&mut self, turn: Turn, timed: &Timed) {
        match turn {
            Turn::Begin => self.add(&timed.demand, &timed.devices),
            Turn::End => {
                for (sum, ending) in self.committed.iter_mut().zip(timed.span.ending(&timed.demand))
                {
                    *sum -= u128::from(ending);
                }
                for (model, need) in demanded(&timed.demand.accelerators) {
                    if let Ok(at) = self.pools.binary_search_by(|pool| pool.model.cmp(model)) {
                        self.pools[at].remove(need, timed.devices.of(model));
                    }
                }
            }
        }
    }

    /// Takes over what is more at another time.
    fn raise(&mut self, other: &Self) {
        for (peak, other) in self.committed.iter_mut().zip(other.committed) {
            *peak = other.max(*peak);
        }
        // The models are the same at all times.
        for (peak, other) in self.pools.iter_mut().zip(&other.pools) {
            peak.raise(other);
        }
    }
}

/// What happens at an instant. Ends come first, as intervals are half open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    End,
    Begin,
}
