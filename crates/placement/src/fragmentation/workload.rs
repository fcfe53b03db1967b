//! What is usually asked for: stated, or estimated from the VMs that are placed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use plimsoll_model::{Resources, VmId};
use serde::{Deserialize, Serialize};

use super::Measure;
use crate::{
    cluster::Placed,
    request::{AnyModel, Request},
    row::SCALARS,
};

/// The most requests that are told apart; of more, the most frequent count.
pub const MAX_TYPICAL: usize = 512;

/// From how many placed VMs an estimate is made at most.
const MAX_SAMPLE: usize = 1024;

/// A request that is expected to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypicalRequest {
    /// What it asks for.
    pub demand: Resources,
    /// What it asks for of an accelerator of several models.
    #[serde(default)]
    pub accelerator: Option<AnyModel>,
    /// How often it comes, compared with the others.
    pub weight: u64,
}

/// The requests that a cluster expects, each once, the most frequent first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<TypicalRequest>", into = "Vec<TypicalRequest>")]
pub struct Workload(Vec<TypicalRequest>);

/// A request's amounts in an order.
type Amounts<'a> = ([u64; SCALARS], Vec<(&'a str, u64)>, Option<&'a AnyModel>);

fn amounts<'a>(demand: &'a Resources, accelerator: Option<&'a AnyModel>) -> Amounts<'a> {
    let models = demand.accelerators.0.iter().filter(|(_, need)| **need > 0);
    let models = models.map(|(model, need)| (model.as_str(), *need)).collect();
    (demand.scalars(), models, accelerator.filter(|any| any.thousandths > 0))
}

impl Workload {
    /// Requests with how often each comes. Equal ones are added up, those of weight 0 are left
    /// out, and of more than [`MAX_TYPICAL`] the most frequent stay.
    #[must_use]
    pub fn new(requests: impl IntoIterator<Item = TypicalRequest>) -> Self {
        let given: Vec<_> = requests.into_iter().filter(|request| request.weight > 0).collect();
        let mut weights: BTreeMap<Amounts<'_>, (&TypicalRequest, u64)> = BTreeMap::new();
        for request in &given {
            let key = amounts(&request.demand, request.accelerator.as_ref());
            let (_, weight) = weights.entry(key).or_insert((request, 0));
            *weight = weight.saturating_add(request.weight);
        }
        let mut all: Vec<_> = weights.into_values().collect();
        // Stable: of equals the one of the smaller amounts stays first.
        all.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        all.truncate(MAX_TYPICAL);
        let all = all.into_iter().map(|(request, weight)| TypicalRequest {
            demand: request.demand.clone(),
            accelerator: request.accelerator.clone().filter(|any| any.thousandths > 0),
            weight,
        });
        Self(all.collect())
    }

    /// The requests, the most frequent first; of equally frequent ones the one of the smaller
    /// amounts, compared element by element.
    #[must_use]
    pub fn requests(&self) -> &[TypicalRequest] {
        &self.0
    }

    /// An estimate: the VMs of the lowest ids, counted by what they ask for, each count rounded
    /// down to its two leading bits. Ids say nothing of sizes, so this is a fair sample; and
    /// rounded counts seldom change with one VM more or less.
    fn estimate<'a>(placed: impl Iterator<Item = &'a Request>) -> Self {
        let all = Self::new(placed.take(MAX_SAMPLE).map(|request| TypicalRequest {
            demand: request.demand.clone(),
            accelerator: request.accelerator.clone(),
            weight: 1,
        }));
        let rounded = |count: u64| {
            let drop = count.ilog2().saturating_sub(1);
            count >> drop << drop
        };
        Self::new(all.0.into_iter().map(|mut request| {
            request.weight = rounded(request.weight);
            request
        }))
    }
}

impl From<Vec<TypicalRequest>> for Workload {
    fn from(requests: Vec<TypicalRequest>) -> Self {
        Self::new(requests)
    }
}

impl From<Workload> for Vec<TypicalRequest> {
    fn from(workload: Workload) -> Self {
        workload.0
    }
}

/// What a cluster knows of its workload.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    stated: Option<Arc<Measure>>,
    /// The last estimate, kept because the next one is mostly the same.
    estimate: Mutex<Option<Arc<Measure>>>,
}

impl Expected {
    pub(crate) fn state(&mut self, workload: Option<Workload>) {
        self.stated = workload.map(|workload| Arc::new(Measure::new(workload)));
    }

    pub(crate) fn stated(&self) -> Option<&Workload> {
        self.stated.as_ref().map(|measure| measure.workload())
    }

    /// What hosts are judged by: the stated workload, or one estimated from the VMs that are
    /// placed, but for the one that is decided about.
    pub(crate) fn measure(
        &self,
        but: Option<VmId>,
        placed: &BTreeMap<VmId, Placed>,
    ) -> Arc<Measure> {
        if let Some(stated) = &self.stated {
            return Arc::clone(stated);
        }
        let others =
            placed.iter().filter(|(id, _)| Some(**id) != but).map(|(_, placed)| &placed.request);
        let workload = Workload::estimate(others);
        let mut estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(measure) = estimate.as_ref().filter(|last| *last.workload() == workload) {
            return Arc::clone(measure);
        }
        let measure = Arc::new(Measure::new(workload));
        *estimate = Some(Arc::clone(&measure));
        measure
    }
}

impl Clone for Expected {
    fn clone(&self) -> Self {
        Self { stated: self.stated.clone(), estimate: Mutex::default() }
    }
}

/// Estimates follow from the VMs that are placed.
impl PartialEq for Expected {
    fn eq(&self, other: &Self) -> bool {
        self.stated() == other.stated()
    }
}
