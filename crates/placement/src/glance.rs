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
        let end = end.map_or(u64::MAX, u64::from);
        while let Some((HostId(first), slot)) = rest.next() {
            // Hosts that came in the order of their ids lie in that order: no need to look them up.
            let mut id = *first;
            for glance in &self.0[*slot as usize..] {
                if glance.id != id {
                    break;
                }
                if u64::from(id) >= end {
                    return Stop::End;
                }
                if glance.free.hold(requested) {
                    return Stop::Host { id, slot: slot + (id - first) };
                }
                if *effort == 0 {
                    return Stop::Tired { id };
                }
                *effort -= 1;
                let Some(following) = id.checked_add(1) else { return Stop::End };
                id = following;
            }
            if id - first > 1 {
                rest = slots.range(HostId(id)..);
            }
        }
        Stop::End
    }

    /// What they take in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Glance>()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn what_has_room_is_never_ruled_out() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let amount = |random: &mut ChaCha8Rng| -> u64 {
            let bits = random.random_range(0..64);
            (random.random::<u64>() >> bits).saturating_sub(random.random_range(0..2))
        };
        let mut ruled_out = 0;
        for _ in 0..100_000 {
            let mut free = [0; SCALARS].map(|_| amount(&mut random));
            let mut need = free.map(|free| free.saturating_sub(amount(&mut random)));
            let (free_now, need_now) = (Amounts::requested(&free), Amounts::requested(&need));
            assert!(free_now.hold(need_now), "{free:?} {need:?}");
            assert!(!Amounts::NONE.hold(need_now));
            // A few percent more than there is may pass, not more.
            let which = random.random_range(0..3);
            free[which] = free[which].clamp(64 << 20, 1 << 31);
            need = free;
            need[which] += need[which] / 15 + (1 << 20);
            ruled_out += u32::from(!Amounts::requested(&free).hold(Amounts::requested(&need)));
        }
        assert_eq!(ruled_out, 100_000);
    }

    #[test]
    fn amounts_beyond_the_fields_pass_for_as_much_as_they_hold() {
        let most = Amounts::requested(&[u64::MAX; SCALARS]);
        assert!(most.hold(most));
        assert!(!Amounts::requested(&[1 << 31; SCALARS]).hold(most));
    }

    #[test]
    fn hosts_are_found_by_id_wherever_they_lie() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..2_000 {
            let mut glances = Glances::default();
            let mut slots = BTreeMap::new();
            let mut roomy = BTreeMap::new();
            let hosts = random.random_range(0..30_u32);
            let shuffled = random.random_range(0..3);
            for slot in 0..hosts {
                let id = match shuffled {
                    0 => slot + 1,
                    1 => slot + slot / 7,
                    _ => random.random_range(0..60),
                };
                let vacant = random.random_range(0..8) == 0 || slots.contains_key(&HostId(id));
                let free =
                    if random.random_range(0..4) == 0 { Amounts(OPEN) } else { Amounts::NONE };
                glances.0.push(Glance { id, free });
                if vacant {
                    glances.clear(slot);
                } else {
                    slots.insert(HostId(id), slot);
                    roomy.insert(id, free == Amounts(OPEN));
                }
            }
            let (from, end) = (random.random_range(0..40), random.random_range(0..70));
            let end = (end < 60).then_some(end);
            let requested = Amounts::requested(&[0; SCALARS]);
            let within = |id: &u32| *id >= from && end.is_none_or(|end| *id < end);
            let passed: u64 = roomy
                .iter()
                .filter(|(id, _)| within(id))
                .take_while(|(_, room)| !**room)
                .map(|_| 1)
                .sum();
            let expected = roomy.iter().find(|(id, room)| within(id) && **room);
            let expected = expected
                .map_or(Stop::End, |(id, _)| Stop::Host { id: *id, slot: slots[&HostId(*id)] });
            let mut effort = passed;
            assert_eq!(glances.find(&slots, requested, from, end, &mut effort), expected);
            assert_eq!(effort, 0);
            if passed > 0 {
                let mut effort = passed - 1;
                let tired = glances.find(&slots, requested, from, end, &mut effort);
                let last =
                    roomy.keys().filter(|id| within(id)).nth(usize::try_from(passed - 1).unwrap());
                assert_eq!(tired, Stop::Tired { id: *last.unwrap() });
            }
        }
    }
}
