//! The questions about one VM: an exact scan over all hosts.

use plimsoll_model::Policy;

use crate::{
    cluster::Cluster,
    explanation::{Choice, Explanation, HostVerdict, Refusals, Tally, Verdict},
    filter::Asked,
    request::Request,
    row::Row,
    score::{Standing, score},
};

/// The place of a host in a decision.
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

    pub(crate) fn choice(
        &self,
        asked: &Asked<'_>,
        policy: Policy,
        possible: u32,
        refused: u32,
    ) -> Choice {
        Choice {
            vm: asked.request.vm,
            host: self.row.id,
            policy,
            score: self.standing.score,
            broken: self.standing.broken,
            possible,
            refused,
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
    /// Every host is refused: for what, with numbers.
    pub fn decide(&self, request: &Request, policy: Policy) -> Result<Choice, Refusals> {
        let asked = Asked::new(self, request);
        let (mut possible, mut refused) = (0, 0);
        let mut best: Option<Candidate<'_>> = None;
        for row in self.rows() {
            let Some(candidate) = Candidate::new(&asked, row, policy) else {
                refused += 1;
                continue;
            };
            possible += 1;
            // Rows come by id: of equals the first stays.
            if best
                .as_ref()
                .is_none_or(|best| candidate.standing.compare(&best.standing, policy).is_lt())
            {
                best = Some(candidate);
            }
        }
        best.map(|best| best.choice(&asked, policy, possible, refused))
            .ok_or_else(|| self.tally(&asked))
    }

    /// How every host does in the decision that [`Self::decide`] makes.
    #[must_use]
    pub fn explain(&self, request: &Request, policy: Policy) -> Explanation {
        let asked = Asked::new(self, request);
        let ranked = self.ranked(&asked, policy);
        let refused = count(self.rows().len() - ranked.len());
        let choice =
            ranked.first().map(|best| best.choice(&asked, policy, count(ranked.len()), refused));
        let mut ranks: Vec<_> = ranked.iter().enumerate().collect();
        ranks.sort_by_key(|(_, candidate)| candidate.row.id);
        let mut ranks = ranks.into_iter().peekable();
        let hosts = self.rows().iter().map(|row| {
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
            self.rows().iter().filter_map(|row| Candidate::new(asked, row, policy)).collect();
        // Stable: of equals the one of the lowest id stays first.
        ranked.sort_by(|a, b| a.standing.compare(&b.standing, policy));
        ranked
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
