//! The questions about one VM.
//!
//! Hosts are compared by how many preferred rules they break, and then by score. So a decision asks
//! the index first for the best host that breaks none, as if all preferred rules were required;
//! then, for each rule, for the best that keeps all others, and so on.

use plimsoll_model::{HostId, Policy};

use crate::{
    cluster::Cluster,
    explanation::{Choice, Explanation, HostVerdict, Refusal, Refusals, Tally, Verdict},
    filter::{Asked, Kept, Reach},
    request::Request,
    row::Row,
    score::{Standing, score},
};

mod search;

use search::Search;

/// With more preferred rules than this there are too many sets of them to ask for each.
const MAX_PREFERENCES: usize = 5;

/// The place of a host in a decision.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) row: &'a Row,
    pub(crate) standing: Standing,
}

impl<'a> Candidate<'a> {
    /// The host's standing, if it can hold the request.
    fn new(asked: &'a Asked<'_>, row: &'a Row, policy: Policy) -> Option<Self> {
        let row = asked.view(row);
        asked.admits(row).then(|| Self {
            row,
            standing: Standing { broken: asked.broken(row), score: score(policy, asked, row) },
        })
    }

    /// Whether it comes before another: by standing, then by id.
    pub(crate) fn is_before(&self, other: &Self, policy: Policy) -> bool {
        let order = self.standing.compare(&other.standing, policy);
        order.then(self.row.id.cmp(&other.row.id)).is_lt()
    }

    pub(crate) fn choice(&self, asked: &Asked<'_>, policy: Policy) -> Choice {
        Choice {
            vm: asked.request.vm,
            host: self.row.id,
            policy,
            score: self.standing.score,
            broken: self.standing.broken,
            devices: asked.devices(policy, self.row),
        }
    }
}

/// A number of hosts; host ids are 32 bits wide.
pub(crate) fn count(hosts: usize) -> u32 {
    u32::try_from(hosts).unwrap_or(u32::MAX)
}

impl Cluster {
    /// Chooses a host. A VM that is placed already is decided about as if it had left its place.
    ///
    /// # Errors
    /// Every host is refused: for what, with numbers. Counting them takes a look at each.
    pub fn decide(&self, request: &Request, policy: Policy) -> Result<Choice, Refusals> {
        let asked = Asked::new(self, request);
        match self.best(&asked, policy) {
            Some(best) => Ok(best.choice(&asked, policy)),
            None => Err(self.tally(&asked)),
        }
    }

    /// [`Self::decide`] without the reasons when every host is refused, which costs less then.
    #[must_use]
    pub fn find(&self, request: &Request, policy: Policy) -> Option<Choice> {
        let asked = Asked::new(self, request);
        self.best(&asked, policy).map(|best| best.choice(&asked, policy))
    }

    /// Whether one host can hold a request, as [`Self::decide`] sees it: the choice that it would be,
    /// or the first reason why not. None when there is no such host. The policy says which devices it
    /// would get, and how it scores.
    #[must_use]
    pub fn decide_on(
        &self,
        request: &Request,
        host: HostId,
        policy: Policy,
    ) -> Option<Result<Choice, Refusal>> {
        let asked = Asked::new(self, request);
        let row = self.row(host)?;
        let Some(candidate) = Candidate::new(&asked, row, policy) else {
            return asked.first_refusal(asked.view(row)).map(Err);
        };
        Some(Ok(candidate.choice(&asked, policy)))
    }

    /// [`Self::find`] by a look at every host: what the index is measured against.
    #[must_use]
    pub fn find_by_scan(&self, request: &Request, policy: Policy) -> Option<Choice> {
        let asked = Asked::new(self, request);
        self.best_by_scan(&asked, policy).map(|best| best.choice(&asked, policy))
    }

    fn best_by_scan<'a>(&'a self, asked: &'a Asked<'_>, policy: Policy) -> Option<Candidate<'a>> {
        let mut best: Option<Candidate<'_>> = None;
        for row in self.rows_in_memory() {
            if let Some(candidate) = Candidate::new(asked, row, policy)
                && best.as_ref().is_none_or(|best| candidate.is_before(best, policy))
            {
                best = Some(candidate);
            }
        }
        best
    }

    fn best<'a>(&'a self, asked: &'a Asked<'_>, policy: Policy) -> Option<Candidate<'a>> {
        let rules = asked.preferences();
        if rules > MAX_PREFERENCES {
            return self.best_by_scan(asked, policy);
        }
        let every: Kept = (1 << rules) - 1;
        for broken in 0..=asked.preferences() {
            let mut best: Option<Candidate<'a>> = None;
            let sets = (0..=every).filter(|kept| (every & !kept).count_ones() as usize == broken);
            for kept in sets {
                if let Some(found) = self.best_that_keeps(asked, policy, kept)
                    && best.as_ref().is_none_or(|best| found.is_before(best, policy))
                {
                    best = Some(found);
                }
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    /// The best of the hosts that break none of these preferred rules.
    fn best_that_keeps<'a>(
        &'a self,
        asked: &'a Asked<'_>,
        policy: Policy,
        kept: Kept,
    ) -> Option<Candidate<'a>> {
        // Without accelerators all hosts are the same to FGD, and the lowest id wins.
        let by_id = policy == Policy::Fgd && !self.has_accelerators();
        let by = if by_id { Policy::FirstFit } else { policy };
        let mut search = Search::new(self, asked, by, kept);
        match (asked.request.pinned_host, asked.reach(kept)) {
            (_, Reach::Nowhere) => {}
            (Some(host), _) => {
                if let Some(row) = self.row(host) {
                    search.look(asked.view(row));
                }
            }
            (None, Reach::Domain(domain)) => {
                for slot in self.topology().slots(domain) {
                    search.look(asked.view(self.row_at(slot)));
                }
            }
            (None, Reach::Everywhere) => search.look_everywhere(),
        }
        let mut best = search.best;
        if let Some(best) = best.as_mut().filter(|_| by_id) {
            best.standing.score = score(policy, asked, best.row);
        }
        best
    }

    /// How every host does in the decision that [`Self::decide`] makes.
    #[must_use]
    pub fn explain(&self, request: &Request, policy: Policy) -> Explanation {
        let asked = Asked::new(self, request);
        let ranked = self.ranked(&asked, policy);
        let choice = ranked.first().map(|best| best.choice(&asked, policy));
        let mut ranks: Vec<_> = ranked.iter().enumerate().collect();
        ranks.sort_by_key(|(_, candidate)| candidate.row.id);
        let mut ranks = ranks.into_iter().peekable();
        let hosts = self.rows().map(|row| {
            let row = asked.view(row);
            let possible = ranks.next_if(|(_, candidate)| candidate.row.id == row.id);
            let verdict = match possible {
                Some((rank, candidate)) => Verdict::Possible {
                    rank: count(rank + 1),
                    score: candidate.standing.score,
                    broken: asked.broken_rules(row),
                },
                None => Verdict::Refused { reasons: asked.refusals(row) },
            };
            HostVerdict { host: row.id, name: row.detail.state.name.clone(), verdict }
        });
        Explanation { vm: request.vm, policy, choice, hosts: hosts.collect() }
    }

    /// The hosts that can hold the request, best first.
    pub(crate) fn ranked<'a>(&'a self, asked: &'a Asked<'_>, policy: Policy) -> Vec<Candidate<'a>> {
        let mut ranked: Vec<_> =
            self.rows().filter_map(|row| Candidate::new(asked, row, policy)).collect();
        // Stable: of equals the one of the lowest id stays first.
        ranked.sort_by(|a, b| a.standing.compare(&b.standing, policy));
        ranked
    }

    /// Why every host is refused that cannot hold a request.
    pub(crate) fn refusals(&self, request: &Request) -> Refusals {
        self.tally(&Asked::new(self, request))
    }

    fn tally(&self, asked: &Asked<'_>) -> Refusals {
        let mut tally = Tally::default();
        for row in self.rows() {
            let row = asked.view(row);
            if let Some(refusal) = asked.first_refusal(row) {
                tally.add(row.id, &row.detail.state.name, refusal);
            }
        }
        tally.finish(asked.request.vm)
    }
}
