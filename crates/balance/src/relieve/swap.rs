//! Swaps: when no host has room for a hot VM, it changes places with colder ones.
//!
//! As in Sandpiper (section 5.2), but with as many as [`MOST`] colder VMs of one host, and in one of
//! two orders that can be made: the colder ones come first, or the hot one goes first. A swap for
//! which neither host has room to hold what comes before something leaves is none.

use plimsoll_model::{HostId, VmId};

use super::{Candidate, Planner};
use crate::{
    ledger::{Ask, Entry, overload},
    plan::{Hotspot, Reason, Tried},
    resource::{Amounts, RESOURCES},
};

/// So many colder VMs are given for a hot one, at most.
const MOST: usize = 3;

/// For how many VMs of a hotspot a swap is looked for.
const HOT: usize = 4;

/// At how many hosts.
const HOSTS: usize = 64;

/// How many VMs of a host are looked at.
const COLD: usize = 16;

/// A swap that can be made: its moves in order, and what is gained.
struct Swap {
    moves: Vec<(Entry, Option<VmId>)>,
    /// How many of the first moves must be over before the others begin.
    first: usize,
    gain: f64,
}

impl Planner<'_> {
    /// Swaps one VM of a hotspot.
    pub(super) fn swap_one(
        &mut self,
        hotspot: &Hotspot,
        from: usize,
        candidates: &[Candidate],
        tried: &mut Tried,
    ) -> bool {
        for candidate in candidates.iter().take(HOT) {
            for to in self.ledger.coolest(HOSTS) {
                if to == from || !self.ledger.loads[to].knows(&candidate.ask.leaves) {
                    continue;
                }
                let cold = self.cold(hotspot, to);
                for given in choices(&cold) {
                    if self.ledger.is_spent() || !self.has_moves(given.len() + 1) {
                        return false;
                    }
                    let Some(gain) = self.gain(&candidate.ask, &given, from, to) else { continue };
                    tried.swaps += 1;
                    if let Some(swap) = self.try_swap(&candidate.ask, &given, from, to, gain) {
                        self.note_swap(hotspot.host, candidate, &swap);
                        return true;
                    }
                }
            }
        }
        false
    }

    fn has_moves(&self, count: usize) -> bool {
        let left = self.ledger.settings().moves_at_once.saturating_sub(self.moves);
        usize::try_from(left).is_ok_and(|left| left >= count)
    }

    /// The VMs of a host that could be given, those first that ask for the least of what is short.
    fn cold(&self, hotspot: &Hotspot, at: usize) -> Vec<Ask> {
        let ledger = &self.ledger;
        let now = ledger.situation.now;
        let host = ledger.loads[at].host;
        let mut cold = Vec::new();
        for vm in ledger.situation.cluster.vms_on(host) {
            let stays = self.fixed(vm).is_some() || self.is_touched(vm);
            if stays || ledger.balancer.is_cooling(vm, now) {
                continue;
            }
            let ask = ledger.ask(vm);
            let asks = hotspot.short.iter().map(|short| ask.comes[short.resource.index()]);
            cold.push((asks.map(|ask| ask.unwrap_or(0.0)).sum::<f64>(), ask));
        }
        cold.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.vm.cmp(&b.1.vm)));
        cold.into_iter().map(|(_, ask)| ask).take(COLD).collect()
    }

    /// What is gained by a swap, if it is enough, the target stays cool, and the source gets no
    /// fuller of anything than it was or may be.
    fn gain(&self, hot: &Ask, given: &[Ask], from: usize, to: usize) -> Option<f64> {
        let settings = self.ledger.settings();
        let (source, target) = (&self.ledger.loads[from], &self.ledger.loads[to]);
        let (given_leaves, given_comes) =
            (sum(given.iter().map(|ask| &ask.leaves)), sum(given.iter().map(|ask| &ask.comes)));
        let before = source.shares();
        let source_then = source.shares_if(&hot.leaves, &given_comes);
        let target_then = target.shares_if(&given_leaves, &hot.comes);
        let fuller = crate::Resource::ALL.into_iter().any(|resource| {
            let (then, before) = (source_then[resource.index()], before[resource.index()]);
            then > before && then > Some(settings.limit_of(resource).share())
        });
        if fuller || !self.ledger.is_cool(&target_then) {
            return None;
        }
        let now = overload(&before, settings) + target.overload(settings);
        let then = overload(&source_then, settings) + overload(&target_then, settings);
        Some(now - then).filter(|gain| *gain >= settings.least_gain.share())
    }

    fn try_swap(
        &mut self,
        hot: &Ask,
        given: &[Ask],
        from: usize,
        to: usize,
        gain: f64,
    ) -> Option<Swap> {
        let come: Vec<_> = given.iter().map(|ask| (*ask, from)).collect();
        let go = [(*hot, to)];
        let mut moves = self.enter_in_turn(&come, &go);
        let mut first = come.len();
        if moves.is_none() {
            moves = self.enter_in_turn(&go, &come);
            first = 1;
        }
        let partner = |entry: &Entry| (entry.vm() != hot.vm).then_some(hot.vm);
        let moves = moves?.into_iter().map(|entry| {
            let partner = partner(&entry);
            (entry, partner)
        });
        Some(Swap { moves: moves.collect(), first, gain })
    }

    /// Enters some moves, and then others for which the first must be over. All or none.
    fn enter_in_turn(
        &mut self,
        first: &[(Ask, usize)],
        then: &[(Ask, usize)],
    ) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut all = self.enter_all(first, &mut entries);
        if all {
            // The room that they made is free for the others.
            let made = entries.len();
            for entry in &entries[..made] {
                self.ledger.hide(entry);
            }
            all = self.enter_all(then, &mut entries);
            for entry in &entries[..made] {
                self.ledger.show(entry);
            }
        }
        if all {
            return Some(entries);
        }
        while let Some(entry) = entries.pop() {
            self.ledger.take_back(entry);
        }
        None
    }

    fn enter_all(&mut self, moves: &[(Ask, usize)], entries: &mut Vec<Entry>) -> bool {
        moves.iter().all(|(ask, to)| {
            let Some(Ok(choice)) = self.ledger.may_go(ask.vm, *to) else { return false };
            let entry = self.ledger.enter(ask, *to, &choice);
            entry.map(|entry| entries.push(entry)).is_some()
        })
    }

    fn note_swap(&mut self, hotspot: HostId, hot: &Candidate, swap: &Swap) {
        let begin = self.plan.steps.len();
        let last = swap.moves.len() - 1;
        for (i, (entry, partner)) in swap.moves.iter().enumerate() {
            let after =
                if i < swap.first { Vec::new() } else { (begin..begin + swap.first).collect() };
            let reason = match partner {
                Some(with) => Reason::Swap { with: *with, hotspot },
                None => Reason::Hotspot { host: hotspot, resource: hot.resource },
            };
            self.note(entry, reason, after, if i == last { swap.gain } else { 0.0 });
        }
    }
}

/// One VM after the other, and then the first two, three and so on together.
fn choices(cold: &[Ask]) -> Vec<Vec<Ask>> {
    let singles = cold.iter().map(|ask| vec![*ask]);
    let together = (2..=MOST.min(cold.len())).map(|count| cold[..count].to_vec());
    singles.chain(together).collect()
}

fn sum<'a>(amounts: impl Iterator<Item = &'a Amounts>) -> Amounts {
    let mut sum = [None; RESOURCES];
    for amounts in amounts {
        for (sum, amount) in sum.iter_mut().zip(amounts) {
            *sum = match (*sum, *amount) {
                (None, amount) => amount,
                (sum, None) => sum,
                (Some(sum), Some(amount)) => Some(sum + amount),
            };
        }
    }
    sum
}
