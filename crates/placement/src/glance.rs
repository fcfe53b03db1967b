//! What a search by id sees of a host at first glance: eight bytes that rule out most of those that
//! have no room, without a look at the host itself.
//!
//! Of cores, memory and disk, what is free is kept in nine bits: five for the power of two and four
//! that follow, so that whoever has room for a request is never ruled out, and few others are left
//! (those that lack less than a 16th). All are compared in one subtraction.

use std::collections::BTreeMap;

use plimsoll_model::HostId;

use crate::row::{Row, SCALARS};

/// The bit above each field, which stays set where a subtraction needs no more than there is.
const GUARDS: u32 = 1 << 9 | 1 << 19 | 1 << 29 | 1 << 31;

/// Set in hosts that take VMs, and in requests; its guard is the highest bit.
const OPEN: u32 = 1 << 30;

/// Cores, memory and disk, either free or requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amounts(u32);

impl Amounts {
    const NONE: Self = Self(0);

    /// What is requested.
    pub(crate) fn requested([cpu, memory, disk, ..]: &[u64; SCALARS]) -> Self {
        const MIB: u32 = 20;
        let fields = rough(*cpu) | rough(memory >> MIB) << 10 | rough(disk >> MIB) << 20;
        Self(fields | OPEN)
    }

    fn free(row: &Row) -> Self {
        if row.open { Self::requested(&row.free) } else { Self::NONE }
    }

    /// Whether this much is free, as far as can be told.
    const fn hold(self, requested: Self) -> bool {
        ((self.0 | GUARDS) - requested.0) & GUARDS == GUARDS
    }
}

/// In nine bits: never less for more.
fn rough(amount: u64) -> u32 {
    const FOLLOWING: u32 = 4;
    let amount = u32::try_from(amount).unwrap_or(u32::MAX);
    if amount < 1 << FOLLOWING {
        return amount;
    }
    let power = amount.ilog2();
    let following = amount >> (power - FOLLOWING) & ((1 << FOLLOWING) - 1);
    (power - FOLLOWING + 1) << FOLLOWING | following
}

/// One host at first glance.
#[derive(Clone, Copy, Debug)]
struct Glance {
    id: u32,
    free: Amounts,
}

/// All hosts at first glance, by slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Glances(Vec<Glance>);

/// Where a search by id got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At a host that may have room.
    Host { id: u32, slot: u32 },
    /// Out of effort, before the host of this id.
    Tired { id: u32 },
    /// Behind the last.
    End,
}

impl Glances {
    /// States what is free on a host.
    pub(crate) fn set(&mut self, slot: u32, row: &Row) {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, Glance { id: 0, free: Amounts::NONE });
        }
        self.0[slot] = Glance { id: row.id.0, free: Amounts::free(row) };
    }

    /// States that a slot is vacant. Its id is one that follows no other.
    pub(crate) fn clear(&mut self, slot: u32) {
        self.0[slot as usize] = Glance { id: 0, free: Amounts::NONE };
    }

    /// The id of the host in a slot.
    pub(crate) fn id(&self, slot: u32) -> u32 {
        self.0[slot as usize].id
    }

    /// The first host by id, of at least the id `from` and below `end`, that may have room; each
    /// host that is passed takes one from `effort`.
    pub(crate) fn find(
        &self,
        slots: &BTreeMap<HostId, u32>,
        requested: Amounts,
        from: u32,
        end: Option<u32>,
        effort: &mut u64,
    ) -> Stop {
        let mut rest = slots.range(HostId(from)..);
        let mut next = rest.next().map(|(id, slot)| (id.0, *slot));
        // Hosts that came in the order of their ids lie in that order: no need to look them up.
        let mut looked_up = true;
        while let Some((id, slot)) = next.filter(|(id, _)| end.is_none_or(|end| *id < end)) {
            if self.0[slot as usize].free.hold(requested) {
                return Stop::Host { id, slot };
            }
            if *effort == 0 {
                return Stop::Tired { id };
            }
            *effort -= 1;
            let Some(following) = id.checked_add(1) else { return Stop::End };
            next = if self.0.get(slot as usize + 1).is_some_and(|glance| glance.id == following) {
                looked_up = false;
                Some((following, slot + 1))
            } else {
                if !looked_up {
                    rest = slots.range(HostId(following)..);
                    looked_up = true;
                }
                rest.next().map(|(id, slot)| (id.0, *slot))
            };
        }
        Stop::End
    }

    /// What they take in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Glance>()
    }
}
