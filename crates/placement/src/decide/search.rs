//! One search for the best host: which hosts of the index are looked at, and in which order.
//!
//! Where the lowest id wins and the hosts of the lowest ids are refused by rules, boxes are of
//! little help: every state has some of them. So the first search does not ask the rules, and
//! tells where hosts with room begin. From there on two searches take turns, each with four times
//! the effort of the last turn: one goes by id, and is soon done where many hosts have room; one
//! uses the index again, and is soon done where few have. Neither alone is bounded by the other.

use plimsoll_model::Policy;

use crate::{
    avoided::Avoided,
    cluster::Cluster,
    decide::Candidate,
    filter::{Asked, Kept},
    glance::{Amounts, Stop},
    index::{Alike, Goal, HostKind, Seeker, Stratum, Traits},
    row::Row,
    score::{Standing, score},
};

/// What a look at a host or at an entry of the index takes, in glances at hosts.
const LOOK: u64 = 64;

/// The effort of the first turn, and how much more each turn has than the one before.
const EFFORT: u64 = 512 * LOOK;
const GROWTH: u64 = 4;

/// A search among the hosts that break none of some preferred rules.
pub(super) struct Search<'a, 'r> {
    cluster: &'a Cluster,
    asked: &'a Asked<'r>,
    policy: Policy,
    /// Whether the lowest id wins.
    by_id: bool,
    kept: Kept,
    traits: [Traits; 2],
    pub(super) best: Option<Candidate<'a>>,
    avoided: Avoided,
    /// Whether few hosts are to be avoided, when that is known.
    few: Option<bool>,
    /// Whether rules are left for later.
    unruly: bool,
    /// Nobody below this id can do, where the lowest id wins.
    floor: u32,
    /// How much it did, in glances at hosts, and how much it may do.
    pub(super) spent: u64,
    limit: u64,
}

impl<'a, 'r> Search<'a, 'r> {
    pub(super) fn new(
        cluster: &'a Cluster,
        asked: &'a Asked<'r>,
        policy: Policy,
        kept: Kept,
    ) -> Self {
        Self {
            cluster,
            asked,
            policy,
            by_id: Goal::is_of_id(policy),
            kept,
            traits: asked.traits(cluster, kept),
            best: None,
            avoided: Avoided::default(),
            few: None,
            unruly: false,
            floor: 0,
            spent: 0,
            limit: u64::MAX,
        }
    }

    /// Considers one host.
    pub(super) fn look(&mut self, row: &'a Row) {
        if let Some(candidate) = self.candidate(row) {
            self.accept(candidate);
        }
    }

    /// Considers every host.
    pub(super) fn look_everywhere(&mut self) {
        let asked = self.asked;
        for row in asked.views() {
            self.look(row);
        }
        if !self.by_id {
            self.cluster.index().search(self);
            return;
        }
        if self.avoids_few() && self.look_by_index(EFFORT) {
            return;
        }
        let allowed = self.best;
        self.unruly = true;
        self.look_by_index(u64::MAX);
        self.unruly = false;
        let Some(first) = self.best else { return };
        if allowed.is_some_and(|best| best.row.id == first.row.id) {
            return;
        }
        self.best = allowed;
        if self.accept(first) {
            return;
        }
        self.floor = first.row.id.0;
        let mut effort = EFFORT;
        while !self.look_by_id(effort) && !self.look_by_index(effort) {
            effort = effort.saturating_mul(GROWTH);
        }
    }

    /// Considers hosts as the index shows them, with so much effort; whether the best is found.
    fn look_by_index(&mut self, effort: u64) -> bool {
        self.limit = self.spent.saturating_add(effort);
        self.cluster.index().search(self);
        self.spent < self.limit
    }

    /// Considers hosts by id, with so much effort; whether the best is found.
    fn look_by_id(&mut self, effort: u64) -> bool {
        self.limit = self.spent.saturating_add(effort);
        let requested = Amounts::requested(&self.asked.need);
        loop {
            let end = self.best.map(|best| best.row.id.0);
            let mut effort = self.limit.saturating_sub(self.spent);
            self.spent += effort;
            let stop = self.cluster.find_by_id(requested, self.floor, end, &mut effort);
            self.spent -= effort;
            let (id, slot) = match stop {
                Stop::Host { id, slot } => (id, slot),
                Stop::Tired { id } => {
                    self.floor = id;
                    return false;
                }
                Stop::End => return true,
            };
            self.floor = self.avoided.skip(id);
            if !self.spend() {
                return false;
            }
            if self.floor > id {
                continue;
            }
            let row = self.asked.view(self.cluster.row_at(slot));
            if let Some(candidate) = self.candidate(row) {
                if self.accept(candidate) {
                    return true;
                }
                self.learn(row);
            }
            let Some(next) = id.checked_add(1) else { return true };
            self.floor = self.avoided.skip(next);
        }
    }

    /// Whether the lowest id wins, and one is known that is not above this.
    fn is_id_beaten(&self, id: u32) -> bool {
        self.by_id && self.best.is_some_and(|best| best.row.id.0 <= id)
    }

    /// Takes the effort of a look at a host or at an entry, if there is any left.
    const fn spend(&mut self) -> bool {
        let more = self.spent < self.limit;
        self.spent += LOOK;
        more
    }

    /// The host's place, if it has room and its score and id are better than the best's. Rules are
    /// not asked yet: hosts in the same state differ in them.
    fn candidate(&self, row: &'a Row) -> Option<Candidate<'a>> {
        if !self.asked.has_room(row) {
            return None;
        }
        // All that are allowed break equally many rules, or an earlier search had found one.
        let broken = self.best.as_ref().map_or(0, |best| best.standing.broken);
        let standing = Standing { broken, score: score(self.policy, self.asked, row) };
        let candidate = Candidate { row, standing };
        let better = self.best.as_ref().is_none_or(|best| candidate.is_before(best, self.policy));
        better.then_some(candidate)
    }

    /// Takes the candidate, if the rules allow it.
    fn accept(&mut self, mut candidate: Candidate<'a>) -> bool {
        if !self.unruly {
            if !self.asked.allows(candidate.row, self.kept) {
                return false;
            }
            candidate.standing.broken = self.asked.broken(candidate.row);
        }
        self.best = Some(candidate);
        true
    }

    fn avoids_few(&mut self) -> bool {
        *self.few.get_or_insert_with(|| self.asked.avoids_few(self.kept))
    }

    /// Learns from a host that the rules refuse.
    fn learn(&mut self, row: &Row) {
        if !self.avoids_few()
            && self.asked.avoids(row, self.kept)
            && self.avoided.refused(row.id.0, self.asked.price_of_avoided(self.kept))
        {
            self.avoided.draw(&self.asked.avoided(self.kept), self.cluster);
        }
    }
}

impl Seeker for Search<'_, '_> {
    fn leaves_out(&self, kind: &HostKind) -> bool {
        self.asked.leaves_out(kind, self.kept)
    }

    fn goal(&self, stratum: &Stratum) -> Option<Goal> {
        self.asked.goal(stratum, self.policy, self.traits, self.floor)
    }

    fn to_beat(&self) -> f64 {
        if self.spent >= self.limit {
            return f64::NEG_INFINITY;
        }
        self.best.as_ref().map_or(f64::INFINITY, |best| {
            Goal::key_of(self.policy, best.standing.score) + Goal::slack(self.policy)
        })
    }

    fn meet(&mut self, hosts: &mut Alike<'_>) {
        let has_views = self.asked.has_views();
        let mut next = if self.floor > 0 { hosts.next_from(self.floor) } else { hosts.next() };
        while let Some(member) = next {
            if !self.spend() || self.is_id_beaten(member.id) {
                return;
            }
            let id = self.avoided.skip(member.id);
            if id > member.id {
                next = hosts.next_from(id);
                continue;
            }
            let row = self.cluster.row_at(member.slot);
            if has_views && self.asked.is_viewed(row) {
                // Looked at before, as it is to this request.
                next = hosts.next();
                continue;
            }
            // All have the same room and the same score, and ids only go up.
            let Some(candidate) = self.candidate(row) else { return };
            if self.accept(candidate) {
                return;
            }
            self.learn(row);
            next = hosts.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_model::{
        Bytes, Constraint, HostId, MilliCores, Name, ProjectId, Resources, Rule, Scope, Strength,
        VmId,
    };
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use uuid::Uuid;

    use super::*;
    use crate::request::{HostState, Request};

    const RACK: u32 = 40;
    const GROUP: u32 = 100;

    /// How the ids of hosts go to racks.
    #[derive(Clone, Copy, Debug)]
    enum Racks {
        /// One after the other.
        Dense,
        /// Those of 16 racks alternate.
        Woven,
        /// One after the other, but every 30th host is elsewhere.
        Stray,
    }

    impl Racks {
        fn of(self, id: u32) -> u32 {
            match self {
                Self::Dense => id / RACK,
                Self::Woven => id / (16 * RACK) * 16 + id % 16,
                Self::Stray if id.is_multiple_of(30) => id * 7919 % 1000,
                Self::Stray => id / RACK,
            }
        }
    }

    fn cores(cores: u64) -> Resources {
        Resources {
            cpu: MilliCores::cores(cores),
            memory: Bytes::gib(cores),
            ..Resources::default()
        }
    }

    fn cluster(hosts: u32, racks: Racks) -> Cluster {
        let mut cluster = Cluster::new();
        for id in 1..=hosts {
            cluster.upsert_host(HostState {
                id: HostId(id),
                name: format!("host-{id}").parse().unwrap(),
                rack: format!("rack-{}", racks.of(id)).parse().ok(),
                zone: None,
                labels: std::collections::BTreeMap::new(),
                capacity: cores(64),
                pool: None,
                unschedulable: None,
            });
        }
        cluster
    }

    fn request(number: u32, demand: Resources) -> Request {
        Request::new(VmId(Uuid::from_u128(u128::from(number))), ProjectId(Uuid::nil()), demand)
    }

    fn member(number: u32, demand: Resources, scope: Scope) -> Request {
        let group: Name = "g".parse().unwrap();
        let mut request = request(number, demand);
        request.groups.insert(group.clone());
        let rule = Rule::AntiAffinity { group, scope };
        request.constraints.push(Constraint { strength: Strength::Preferred, rule });
        request
    }

    /// Places a group one by one, each as a scan would; the most effort that one took, in looks.
    fn place_group(cluster: &mut Cluster, policy: Policy, demand: &Resources, scope: Scope) -> u64 {
        let mut most = 0;
        for number in 0..GROUP {
            let request = member(2_000_000 + number, demand.clone(), scope);
            let asked = Asked::new(cluster, &request);
            let kept = Kept::from(asked.preferences() > 0);
            let mut search = Search::new(cluster, &asked, policy, kept);
            search.look_everywhere();
            let found = search.best.map(|best| best.row.id);
            most = most.max(search.spent / LOOK);
            let scanned = cluster.find_by_scan(&request, policy).map(|choice| choice.host);
            assert_eq!(found, scanned, "{policy} {number}");
            let _ = cluster.occupy(found.unwrap(), &request).unwrap();
        }
        most
    }

    /// VMs of many sizes on the hosts of some ids, so that nearly no two are in the same state.
    fn fill(cluster: &mut Cluster, ids: std::ops::RangeInclusive<u32>, free: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for id in ids {
            let demand = Resources {
                cpu: MilliCores((64 - free) * 1000 - random.random_range(0..1000)),
                memory: Bytes(((64 - free) << 30) - random.random_range(0..1 << 30)),
                ..Resources::default()
            };
            let _ = cluster.occupy(HostId(id), &request(1_000_000 + id, demand)).unwrap();
        }
    }

    #[test]
    fn racks_to_be_avoided_cost_little_when_every_state_has_hosts_there() {
        for racks in [Racks::Dense, Racks::Woven, Racks::Stray] {
            let mut cluster = cluster(10_000, racks);
            fill(&mut cluster, 1..=10_000, 20);
            for policy in [Policy::FirstFit, Policy::FfdSum] {
                let mut cluster = cluster.clone();
                let looks = place_group(&mut cluster, policy, &cores(4), Scope::Rack);
                assert!(looks <= 150, "{racks:?} {policy}: {looks}");
            }
        }
    }

    #[test]
    fn room_far_behind_racks_to_be_avoided_is_found_with_little_effort() {
        // Only the first racks have room, and then a few hosts very far away.
        let mut cluster = cluster(30_000, Racks::Dense);
        fill(&mut cluster, 1..=3_000, 20);
        fill(&mut cluster, 3_001..=29_000, 2);
        let looks = place_group(&mut cluster, Policy::FirstFit, &cores(4), Scope::Rack);
        assert!(looks <= 1_000, "{looks}");
    }

    #[test]
    fn equals_in_racks_to_be_avoided_are_passed_over_in_one_step() {
        for racks in [Racks::Dense, Racks::Woven, Racks::Stray] {
            for policy in [Policy::FirstFit, Policy::MostFree, Policy::L2Diff, Policy::Cosine] {
                let mut cluster = cluster(10_000, racks);
                let looks = place_group(&mut cluster, policy, &cores(4), Scope::Rack);
                assert!(looks <= 150, "{racks:?} {policy}: {looks}");
            }
        }
    }

    #[test]
    fn hosts_to_be_avoided_cost_a_look_each_at_most() {
        let mut cluster = cluster(10_000, Racks::Dense);
        fill(&mut cluster, 1..=9_000, 2);
        fill(&mut cluster, 9_001..=10_000, 20);
        for policy in [Policy::FirstFit, Policy::MostFree, Policy::L2Diff] {
            let mut cluster = cluster.clone();
            let looks = place_group(&mut cluster, policy, &cores(4), Scope::Host);
            assert!(looks <= 2 * u64::from(GROUP), "{policy}: {looks}");
        }
    }
}
