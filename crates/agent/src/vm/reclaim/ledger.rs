//! What is remembered of one VM from one division to the next.

use std::time::Instant;

use plimsoll_api::cluster::VmShare;
use plimsoll_api::guest::{Facts, Hundredths, MemoryFacts};
use plimsoll_model::{Amount, Bytes, Elasticity, VmId};
use plimsoll_reclaim::{GuestView, Pressure, VmView, WorkingSet};

use super::resident::Held;
use crate::vm::runner::Footing;

/// A guest whose use rises by so much from one look to the next is growing.
const RISE: u64 = 8 << 20;

/// How a VM stood when its guest spoke.
#[derive(Clone, Copy, Debug)]
struct Then {
    /// The memory that it had.
    memory: Bytes,
    /// What the host held of that.
    resident: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// Of which launch of the VM.
    launch: u64,
    promised: Amount,
    /// The size in force.
    allocated: Bytes,
    told: Option<VmShare>,
    /// What the guest said last, and how it stood then.
    facts: Option<(Facts, Then)>,
    /// Of its memory, what its kernel does not count.
    uncounted: Option<u64>,
    /// Whether it has the same memory as at the look before.
    at_rest: bool,
    memory: Bytes,
    used: u64,
    rises: bool,
    oom_kills: u64,
    taken_back: u64,
    starved: bool,
    working_set: WorkingSet,
    looked: Instant,
}

impl Ledger {
    /// Of a VM that is seen for the first time: it has what it has, whoever decided that.
    pub(super) fn begin(footing: &Footing) -> Self {
        let allocated = match footing.elasticity {
            Elasticity::Guaranteed => footing.promised.memory,
            _ => footing.memory.min(footing.promised.memory),
        };
        Self {
            launch: footing.launch,
            promised: footing.promised,
            allocated,
            told: None,
            facts: None,
            uncounted: None,
            at_rest: false,
            memory: footing.memory,
            used: 0,
            rises: false,
            oom_kills: footing.facts.as_ref().map_or(0, |facts| facts.memory.oom_kills),
            taken_back: footing.taken_back,
            starved: false,
            working_set: WorkingSet::default(),
            looked: Instant::now(),
        }
    }

    pub(super) fn is_of(&self, footing: &Footing) -> bool {
        self.launch == footing.launch
    }

    /// Takes in how the VM stands.
    pub(super) fn look(&mut self, footing: &Footing, held: Held) {
        if self.promised != footing.promised {
            // More is all its own; less is no more than it has.
            let more = footing.promised.memory.saturating_sub(self.promised.memory);
            self.allocated = self.allocated.saturating_add(more).min(footing.promised.memory);
            self.promised = footing.promised;
        }
        self.at_rest = self.memory == footing.memory;
        self.memory = footing.memory;
        let news = footing
            .facts
            .as_ref()
            .is_some_and(|facts| self.facts.as_ref().is_none_or(|(known, _)| known != facts));
        match &footing.facts {
            None => self.facts = None,
            Some(facts) if news => {
                let kills = facts.memory.oom_kills;
                self.starved = kills > self.oom_kills;
                self.oom_kills = kills;
                let used = facts.memory.used_bytes();
                self.rises = self.used > 0 && used > self.used.saturating_add(RISE);
                self.used = used;
                let memory = self.had(footing, &facts.memory);
                let then = Then { memory, resident: held.resident };
                self.facts = Some((facts.clone(), then));
            }
            Some(_) => self.starved = false,
        }
        self.starved |= footing.taken_back > self.taken_back;
        self.taken_back = footing.taken_back;
        let elapsed = u64::try_from(self.looked.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.looked = Instant::now();
        let guest = self.guest(footing, held);
        self.working_set.observe(guest.as_ref(), None, elapsed);
    }

    /// The memory that a guest had when it spoke. It may have got or given some since: what tells is
    /// its own count, but for what its kernel never counts.
    fn had(&mut self, footing: &Footing, said: &MemoryFacts) -> Bytes {
        let counted = said.total_bytes.saturating_sub(said.balloon_bytes);
        if self.at_rest {
            self.uncounted = Some(footing.memory.get().saturating_sub(counted));
        }
        self.uncounted.map_or(footing.memory, |rest| Bytes(counted.saturating_add(rest)))
    }

    /// How the plan is to see it.
    pub(super) fn view<'a>(&self, vm: VmId, footing: &'a Footing, held: Held) -> VmView<'a> {
        VmView {
            vm,
            elasticity: &footing.elasticity,
            promised: footing.promised,
            allocated: Amount { memory: self.allocated, cpu: footing.promised.cpu },
            resident: Bytes(held.resident),
            guest: self.guest(footing, held),
            working_set: self.working_set.estimate(),
            growing: self.rises || footing.memory < self.allocated,
            asked: Amount::default(),
        }
    }

    /// What its guest says, as far as it is still true: what was taken since is free no more, and
    /// neither is what the guest has touched since, which the host sees first.
    fn guest(&self, footing: &Footing, held: Held) -> Option<GuestView> {
        let (facts, then) = self.facts.as_ref()?;
        let touched = held.resident.saturating_sub(then.resident);
        let MemoryFacts { free_bytes, available_bytes, active_file_bytes, .. } = facts.memory;
        let now = |free: u64| {
            let gone = then.memory.get().saturating_add(touched);
            Bytes(free.saturating_add(footing.memory.get()).saturating_sub(gone))
        };
        let per_mille = |share: Hundredths| u16::try_from(share.0 / 10).unwrap_or(1000).min(1000);
        let pressure = facts.pressure.map_or(Pressure::default(), |pressure| Pressure {
            some: per_mille(pressure.memory.some_avg10),
            full: per_mille(pressure.memory.full_avg10),
        });
        Some(GuestView {
            total: footing.memory,
            free: now(free_bytes),
            available: now(available_bytes),
            active_file: Bytes(active_file_bytes),
            pressure,
            starved: self.starved,
        })
    }

    /// Puts a decision into force. What is told of it is the same until the size or the weight
    /// changes: reasons would change with every page that a guest touches. Who still has less than it is
    /// promised, and could have more if it needed it, has the reasons for which that was taken.
    pub(super) fn allocate(&mut self, mut share: VmShare) -> VmShare {
        self.allocated = share.memory;
        if let Some(told) = &self.told {
            if (told.memory, told.cpu_weight) == (share.memory, share.cpu_weight) {
                return told.clone();
            }
            if share.reasons.is_empty() && share.taken > Bytes::ZERO {
                share.reasons.clone_from(&told.reasons);
            }
        }
        self.told = Some(share.clone());
        share
    }
}
