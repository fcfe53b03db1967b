//! The ids of the hosts that a request must avoid: those of hosts and racks with VMs that it is to
//! be apart from.
//!
//! Racks with the rest of a spread group have hosts by the thousand, and where a policy takes the
//! lowest id of equals they lie side by side, just where a search begins. A search that has been
//! refused there a few times draws a map: one bit for each id of a window.

use crate::{cluster::Cluster, topology::Domain};

/// The smallest window, in words and in ids.
const WORDS: usize = 256;
const SMALLEST: u32 = 1 << 14;

/// The largest window, in ids: 512 KiB of bits.
const LARGEST: u32 = 1 << 22;

/// Ids of a window for each domain to be avoided: a rack has fewer.
const IDS: usize = 64;

/// The fewest refusals after which a map is drawn.
const REFUSALS: usize = 8;

const WORD: u32 = u64::BITS;

/// What a search knows of the ids to be avoided.
#[derive(Debug, Default)]
pub(crate) struct Avoided {
    map: Option<Map>,
    /// Refusals near to each other since the map was drawn: how many, the lowest id, the last.
    refusals: usize,
    lowest: u32,
    last: u32,
}

impl Avoided {
    /// The lowest id from this one on that is not known as one to be avoided.
    pub(crate) fn skip(&self, id: u32) -> u32 {
        self.map.as_ref().map_or(id, |map| map.skip(id))
    }

    /// Counts a host that was refused as one to be avoided; whether it is time to
    /// [draw](Self::draw) a map, which costs as much as some refusals.
    pub(crate) fn refused(&mut self, id: u32, price: usize) -> bool {
        if self.refusals == 0 || self.last.abs_diff(id) >= SMALLEST {
            (self.refusals, self.lowest) = (0, id);
        }
        self.refusals += 1;
        (self.lowest, self.last) = (self.lowest.min(id), id);
        self.refusals >= REFUSALS.max(price)
    }

    /// Maps the window that begins with the counted refusals; `domains` are hosts and racks.
    pub(crate) fn draw(&mut self, domains: &[Domain], cluster: &Cluster) {
        let ids = u32::try_from(domains.len().saturating_mul(IDS)).unwrap_or(LARGEST);
        let mut map = Map::new(self.lowest, ids.clamp(SMALLEST, LARGEST));
        for domain in domains {
            match cluster.topology().runs(*domain, map.start, map.last) {
                Some(runs) => runs.for_each(|(first, last)| map.mark(first, last)),
                None => {
                    let id = cluster.id_at(*domain);
                    map.mark(id, id);
                }
            }
        }
        self.map = Some(map);
        self.refusals = 0;
    }
}

/// One bit for each id of a window, set where it is to be avoided.
#[derive(Debug)]
struct Map {
    /// The lowest id and the highest.
    start: u32,
    last: u32,
    /// The bits of the smallest window, which need no allocation, or of a larger one.
    few: [u64; WORDS],
    many: Vec<u64>,
}

impl Map {
    fn new(start: u32, ids: u32) -> Self {
        let words = ids.div_ceil(WORD);
        let last = start.saturating_add(words * WORD - 1);
        let many = if words as usize > WORDS { vec![0; words as usize] } else { Vec::new() };
        Self { start, last, few: [0; WORDS], many }
    }

    /// Marks a run of ids, as far as they are in the window.
    fn mark(&mut self, first: u32, last: u32) {
        if last < self.start || first > self.last {
            return;
        }
        let (first, last) = (first.max(self.start) - self.start, last.min(self.last) - self.start);
        let bits = if self.many.is_empty() { &mut self.few[..] } else { &mut self.many[..] };
        for word in first / WORD..=last / WORD {
            let low = first.saturating_sub(word * WORD);
            let high = (last - word * WORD).min(WORD - 1);
            bits[word as usize] |= u64::MAX << low & u64::MAX >> (WORD - 1 - high);
        }
    }

    /// The lowest id from this one on that is not marked; behind the window nothing is.
    fn skip(&self, id: u32) -> u32 {
        if id < self.start || id > self.last {
            return id;
        }
        let (word, bit) = ((id - self.start) / WORD, (id - self.start) % WORD);
        let bits = if self.many.is_empty() { &self.few[..] } else { &self.many[..] };
        let mut words = bits.iter().zip(0_u32..).skip(word as usize);
        // Bits below the id count as marked.
        let mut below = (1 << bit) - 1;
        let free = words.find_map(|(bits, word)| {
            let free = !(bits | std::mem::take(&mut below));
            (free != 0).then(|| word * WORD + free.trailing_zeros())
        });
        let free = free.map_or(u32::MAX, |free| self.start.saturating_add(free));
        free.min(self.last.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_map_skips_what_is_marked_and_nothing_else() {
        for start in [0, 1, 63, 64, 1000, u32::MAX - 300, u32::MAX - 200] {
            let mut map = Map::new(start, 200);
            let mut marked = BTreeSet::new();
            let runs = [(0, 3), (3, 3), (60, 66), (70, 70), (100, 190), (191, 254), (300, 310)];
            for (first, last) in runs {
                let id = |offset: u32| start.saturating_add(offset);
                map.mark(id(first), id(last));
                marked.extend(id(first)..=id(last));
            }
            map.mark(0, start.saturating_sub(1));
            for id in start.saturating_sub(2)..start.saturating_add(320) {
                let in_window = (map.start..=map.last).contains(&id);
                let next = (id..=map.last).find(|id| !marked.contains(id));
                let next = next.unwrap_or(map.last.saturating_add(1));
                assert_eq!(map.skip(id), if in_window { next } else { id }, "{start} {id}");
            }
        }
    }
}
