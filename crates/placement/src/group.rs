//! All or nothing: places for a whole group of VMs.

use std::{borrow::Borrow, collections::BTreeSet};

use plimsoll_model::{Element, Policy, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cluster::Cluster,
    explanation::{Choice, Refusals},
    filter::Asked,
    request::Request,
    row::Row,
    topology::{Kind, index, required_group_rules},
};

/// A group that cannot be placed as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{placed} of {of} VMs of the group can be placed, then none of the hosts is left for {vm}")]
pub struct GroupRefusal {
    /// The index in the group of the VM for which no host is left.
    pub index: usize,
    /// That VM.
    pub vm: VmId,
    /// How many of the group found a place before it.
    pub placed: usize,
    /// How many the group has.
    pub of: usize,
    /// Why no host could hold it, beside those placed before it.
    #[source]
    pub refusals: Refusals,
}

/// How many decisions other orders and other first choices may cost together, after the policy's
/// order failed. Small groups are searched completely with it; for large ones it bounds the time.
pub(crate) const EFFORT: usize = 2048;

/// How many hosts, one of each rack or zone, are tried for the first VM of a group that must stay
/// together.
const ANCHORS: usize = 64;

/// The largest group for which earlier choices are taken back one by one: it bounds the recursion.
const BACKTRACKED: usize = 256;

impl Cluster {
    /// Chooses hosts for all of the requests, or for none. The choices come in the order of the
    /// requests, and hold together: each is to be stated with [`Self::occupy_devices`] and its
    /// devices. The cluster is as before afterwards, whatever comes of it (it is mutable only to
    /// try places without a copy). A VM that is placed already is decided about as if it had left.
    /// No VM may be in the group twice.
    ///
    /// VMs are placed one after the other: in the given order, or for the `ffd` policies by size.
    /// Where that fails, other orders and other first choices are tried within a fixed effort
    /// (`docs/algorithms.md`), so a very large and tight group may be refused although there is a
    /// way.
    ///
    /// # Errors
    /// No way was found: the first VM that found no place when they were tried in the policy's
    /// order.
    pub fn decide_group(
        &mut self,
        requests: &[Request],
        policy: Policy,
    ) -> Result<Vec<Choice>, GroupRefusal> {
        let mut effort = EFFORT;
        self.decide_group_within(requests, policy, &mut effort)
    }

    /// [`Self::decide_group`] with what is left of an effort beside the first attempt.
    pub(crate) fn decide_group_within(
        &mut self,
        requests: &[Request],
        policy: Policy,
        effort: &mut usize,
    ) -> Result<Vec<Choice>, GroupRefusal> {
        self.aside(requests, |cluster| cluster.search(requests, policy, effort))
    }

    /// Runs `question` while the VMs of the group have left their places, and puts them back.
    fn aside<T>(&mut self, requests: &[Request], question: impl FnOnce(&mut Self) -> T) -> T {
        let away: Vec<_> = requests.iter().filter_map(|r| self.release(r.vm)).collect();
        let answer = question(self);
        for placed in away {
            self.restore(placed);
        }
        answer
    }

    fn search(
        &mut self,
        requests: &[Request],
        policy: Policy,
        effort: &mut usize,
    ) -> Result<Vec<Choice>, GroupRefusal> {
        let mut order = self.order(requests, policy);
        let first = match self.attempt(requests, &order, policy, None) {
            Ok(choices) => return Ok(choices),
            Err(failure) => failure,
        };
        // VMs that come only take places away: what finds none in the cluster as it is finds none
        // in any order.
        if requests.iter().any(|request| self.decide(request, policy).is_err()) {
            return Err(first.refusal(requests));
        }
        let mut failed = first.position;
        for _ in 0..requests.len().min(*effort / requests.len().max(1)) {
            if failed == 0 {
                break;
            }
            order[..=failed].rotate_right(1);
            match self.attempt(requests, &order, policy, None) {
                Ok(choices) => return Ok(choices),
                Err(failure) => failed = failure.position,
            }
            *effort = effort.saturating_sub(failed + 1);
        }
        let order = self.order(requests, policy);
        for anchor in self.anchors(requests, &order, policy) {
            if *effort < requests.len() {
                break;
            }
            match self.attempt(requests, &order, policy, Some(&anchor)) {
                Ok(choices) => return Ok(choices),
                Err(failure) => *effort = effort.saturating_sub(failure.position + 1),
            }
        }
        let mut search = Backtracking { requests, order, policy, effort, chosen: Vec::new() };
        if requests.len() <= BACKTRACKED && search.place(self) {
            let Backtracking { order, chosen, .. } = search;
            return Ok(in_request_order(&order, chosen));
        }
        Err(first.refusal(requests))
    }

    /// Places the VMs one after the other, the first of them at the anchor if there is one, and
    /// takes them back.
    fn attempt(
        &mut self,
        requests: &[Request],
        order: &[usize],
        policy: Policy,
        anchor: Option<&Choice>,
    ) -> Result<Vec<Choice>, Failure> {
        let mut chosen: Vec<Choice> = Vec::with_capacity(order.len());
        let mut failure = None;
        for (position, request) in order.iter().map(|at| &requests[*at]).enumerate() {
            let decided = match anchor {
                Some(anchor) if position == 0 => Ok(anchor.clone()),
                _ => self.decide(request, policy),
            };
            match decided {
                Ok(choice) => {
                    self.try_place(request, &choice);
                    chosen.push(choice);
                }
                Err(refusals) => {
                    failure = Some(Failure { position, index: order[position], refusals });
                    break;
                }
            }
        }
        for choice in &chosen {
            self.release(choice.vm);
        }
        failure.map_or_else(|| Ok(in_request_order(order, chosen)), Err)
    }

    fn try_place(&mut self, request: &Request, choice: &Choice) {
        // It fails only for a VM that is in the group twice, whose second place then is not held:
        // whoever states it as a fact is told.
        let _ = self.occupy_devices(choice.host, request, &choice.devices);
    }

    /// The order in which the policy places VMs that come together, as places in the slice: as
    /// given, or for the `ffd` policies by falling size.
    #[must_use]
    pub fn order<R: Borrow<Request>>(&self, requests: &[R], policy: Policy) -> Vec<usize> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        if !matches!(policy, Policy::FfdProd | Policy::FfdSum) {
            return order;
        }
        let sizes = Sizes::new(self, requests);
        let sizes: Vec<_> = requests.iter().map(|request| sizes.of(request.borrow())).collect();
        // Stable: of equals the first given stays first.
        order.sort_by(|a, b| {
            let ((product_a, sum_a), (product_b, sum_b)) = (sizes[*a], sizes[*b]);
            match policy {
                Policy::FfdProd => product_b.total_cmp(&product_a).then(sum_b.total_cmp(&sum_a)),
                _ => sum_b.total_cmp(&sum_a),
            }
        });
        order
    }

    /// For a group with rules that keep it together: where its first VM may go, the best host of
    /// each rack or zone first. The best of all was tried already.
    fn anchors(&self, requests: &[Request], order: &[usize], policy: Policy) -> Vec<Choice> {
        let widest = requests
            .iter()
            .flat_map(required_group_rules)
            .filter(|(kind, ..)| *kind == Kind::Near)
            .map(|(_, _, scope)| scope)
            .max();
        let (Some(scope), Some(first)) = (widest, order.first()) else { return Vec::new() };
        let mut seen = BTreeSet::new();
        let new = |row: &Row| seen.insert(row.domains[index(scope)]);
        let mut anchors = self.options(&requests[*first], policy, new, ANCHORS + 1);
        if !anchors.is_empty() {
            anchors.remove(0);
        }
        anchors
    }

    /// The hosts that can hold a request and are wanted, best first.
    fn options(
        &self,
        request: &Request,
        policy: Policy,
        mut wanted: impl FnMut(&Row) -> bool,
        limit: usize,
    ) -> Vec<Choice> {
        let asked = Asked::new(self, request);
        let ranked = self.ranked(&asked, policy);
        ranked
            .iter()
            .filter(|candidate| wanted(candidate.row))
            .take(limit)
            .map(|candidate| candidate.choice(&asked, policy))
            .collect()
    }
}

/// A VM that found no place.
struct Failure {
    /// Its place in the order tried.
    position: usize,
    /// Its place in the group.
    index: usize,
    refusals: Refusals,
}

impl Failure {
    fn refusal(self, requests: &[Request]) -> GroupRefusal {
        GroupRefusal {
            index: self.index,
            vm: self.refusals.vm,
            placed: self.position,
            of: requests.len(),
            refusals: self.refusals,
        }
    }
}

/// Choices made in some order, in the order of the requests.
fn in_request_order(order: &[usize], chosen: Vec<Choice>) -> Vec<Choice> {
    let mut choices: Vec<_> = order.iter().copied().zip(chosen).collect();
    choices.sort_by_key(|(at, _)| *at);
    choices.into_iter().map(|(_, choice)| choice).collect()
}

/// Depth first over the hosts of each VM, best first, until the effort is used up.
struct Backtracking<'a, 'e> {
    requests: &'a [Request],
    order: Vec<usize>,
    policy: Policy,
    effort: &'e mut usize,
    chosen: Vec<Choice>,
}

impl Backtracking<'_, '_> {
    /// Places the VMs that have none yet; the cluster is as before afterwards.
    fn place(&mut self, cluster: &mut Cluster) -> bool {
        let Some(request) = self.order.get(self.chosen.len()).map(|at| &self.requests[*at]) else {
            return true;
        };
        for choice in cluster.options(request, self.policy, |_| true, *self.effort) {
            if *self.effort == 0 {
                return false;
            }
            *self.effort -= 1;
            cluster.try_place(request, &choice);
            self.chosen.push(choice);
            let done = self.place(cluster);
            cluster.release(request.vm);
            if done {
                return true;
            }
            self.chosen.pop();
        }
        false
    }
}

/// What makes demands comparable in size: of each element, the mean capacity of the hosts that
/// have any of it.
struct Sizes {
    /// The elements of which the group asks for something and some host has something.
    elements: Vec<(Element, f64)>,
}

impl Sizes {
    fn new<R: Borrow<Request>>(cluster: &Cluster, requests: &[R]) -> Self {
        let mut wanted: Vec<Element> = requests
            .iter()
            .flat_map(|request| request.borrow().demand.elements())
            .filter(|(_, amount)| *amount > 0)
            .map(|(element, _)| element)
            .collect();
        wanted.sort();
        wanted.dedup();
        let elements =
            wanted.into_iter().filter_map(|e| cluster.mean_capacity(&e).map(|mean| (e, mean)));
        Self { elements: elements.collect() }
    }

    /// The product and the sum of a demand's shares.
    fn of(&self, request: &Request) -> (f64, f64) {
        let shares =
            self.elements.iter().map(|(element, mean)| request.demand.get(element) as f64 / mean);
        shares.fold((1.0, 0.0), |(product, sum), share| (product * share, sum + share))
    }
}
