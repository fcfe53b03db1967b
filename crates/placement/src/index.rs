//! The index over hosts: finds the best host for a request without looking at most of them.
//!
//! Hosts that are alike in shape, storage pool, labels and in whether they take VMs form a
//! *stratum*. A stratum that cannot serve a request is left out as a whole. In each stratum a
//! [`Tree`] over availability answers by branch and bound: a [`Goal`] says how good a box can be at
//! best, and boxes that cannot beat the best host found so far are not opened. Boxes also tell
//! which [traits](Traits) the hosts in them have: their zones, and whether others keep them.
//!
//! The index only steers. Whether a host can hold a request, and its score, are always taken from
//! the host's own exact numbers, so that the answer is the one of a scan over all hosts, tie-breaks
//! included. What the design is worth, and what lost against it, is in `docs/placement.md`.

use std::collections::BTreeMap;

use plimsoll_model::{Label, Name};

use crate::{
    row::{Row, SCALARS, share},
    topology::Domain,
};

mod goal;
mod tree;

pub(crate) use goal::Goal;
use tree::{Hosts, Tree, Visitor};
pub(crate) use tree::{Member, Traits};

/// The most elements of which a tree knows the availability: the scalars, and this many models of
/// accelerators less those. Of further models it knows nothing.
pub(crate) const MAX_DIMS: usize = 16;

/// A label key with more values than this names hosts rather than kinds of hosts.
const MAX_LABEL_VALUES: usize = 64;

/// What a coordinate measures.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dim {
    /// A scalar element, by its place.
    Scalar(usize),
    /// A model of accelerator.
    Model(Label),
}

/// What hosts of one stratum have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostKind {
    /// Of each scalar, the bucket of the capacity.
    capacity: [u16; SCALARS],
    models: Vec<(Label, u16)>,
    pub(crate) pool: Option<Name>,
    /// Whether they take new VMs.
    pub(crate) open: bool,
    /// Without the keys that name single hosts.
    pub(crate) labels: BTreeMap<Label, Label>,
}

/// The hosts of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Stratum {
    kind: HostKind,
    /// How many hosts are of this kind, in the tree or about to be.
    hosts: usize,
    pub(crate) dims: Vec<Dim>,
    /// Of each dimension, the smallest and the largest capacity seen.
    pub(crate) capacity: Vec<(u64, u64)>,
    /// Whether hosts have models that are not among the dimensions.
    pub(crate) partial: bool,
    tree: Tree,
}

/// The index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// By number; one without hosts is a vacant place.
    strata: Vec<Stratum>,
    numbers: BTreeMap<HostKind, u32>,
    vacant: Vec<u32>,
    /// How many hosts have which value of a label.
    values: BTreeMap<Label, BTreeMap<Label, u32>>,
}

/// One that looks for a host.
pub(crate) trait Seeker {
    /// Whether no host of a kind can do.
    fn leaves_out(&self, kind: &HostKind) -> bool;
    /// What it wants of the hosts of a stratum; none when they cannot do.
    fn goal(&self, stratum: &Stratum) -> Option<Goal>;
    /// The key that must be beaten, or met by a lower host id; infinite when anything will do.
    fn to_beat(&self) -> f64;
    /// Looks at hosts in the same state, by id: at the first, then as many as it needs.
    fn meet(&mut self, hosts: &mut Alike<'_>);
}

/// Hosts in exactly the same state, by id.
pub(crate) struct Alike<'a>(&'a mut dyn Hosts);

impl Alike<'_> {
    /// The next one.
    pub(crate) fn next(&mut self) -> Option<Member> {
        self.0.next()
    }

    /// The next one of at least this id.
    pub(crate) fn next_from(&mut self, id: u32) -> Option<Member> {
        self.0.next_from(id)
    }
}

impl Index {
    /// Counts a host's labels; whether a key has become one that names hosts, so that all hosts
    /// are to be inserted anew.
    pub(crate) fn add_labels(&mut self, labels: &BTreeMap<Label, Label>) -> bool {
        let mut crossed = false;
        for (key, value) in labels {
            let values = self.values.entry(key.clone()).or_default();
            let before = values.len();
            *values.entry(value.clone()).or_insert(0) += 1;
            crossed |= before == MAX_LABEL_VALUES && values.len() > before;
        }
        crossed
    }

    /// The inverse of [`Self::add_labels`].
    pub(crate) fn remove_labels(&mut self, labels: &BTreeMap<Label, Label>) -> bool {
        let mut crossed = false;
        for (key, value) in labels {
            let Some(values) = self.values.get_mut(key) else { continue };
            let Some(count) = values.get_mut(value) else { continue };
            *count -= 1;
            if *count == 0 {
                values.remove(value);
                crossed |= values.len() == MAX_LABEL_VALUES;
            }
            if values.is_empty() {
                self.values.remove(key);
            }
        }
        crossed
    }

    /// Whether a label key is a part of hosts' kinds.
    pub(crate) fn is_common(&self, key: &Label) -> bool {
        self.values.get(key).is_none_or(|values| values.len() <= MAX_LABEL_VALUES)
    }

    fn kind(&self, row: &Row) -> HostKind {
        let state = &row.detail.state;
        let labels = state.labels.iter().filter(|(key, _)| self.is_common(key));
        let models = row.detail.held.pools.iter().filter(|pool| pool.capacity > 0);
        HostKind {
            capacity: row.capacity.map(bucket),
            models: models.map(|pool| (pool.model.clone(), bucket(pool.capacity))).collect(),
            pool: state.pool.clone(),
            open: row.open,
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    /// Counts a host to its kind, and tells the number of the stratum.
    pub(crate) fn enroll(&mut self, row: &Row) -> u32 {
        let kind = self.kind(row);
        let number = self.numbers.get(&kind).copied().unwrap_or_else(|| {
            let stratum = Stratum::new(kind.clone(), row);
            let number = self.vacant.pop().unwrap_or(count(self.strata.len()));
            if number as usize == self.strata.len() {
                self.strata.push(stratum);
            } else {
                self.strata[number as usize] = stratum;
            }
            self.numbers.insert(kind, number);
            number
        });
        let stratum = &mut self.strata[number as usize];
        stratum.hosts += 1;
        stratum.widen(row);
        number
    }

    /// The inverse of [`Self::enroll`].
    pub(crate) fn dismiss(&mut self, number: u32) {
        let stratum = &mut self.strata[number as usize];
        stratum.hosts -= 1;
        if stratum.hosts == 0 {
            self.numbers.remove(&stratum.kind);
            self.vacant.push(number);
        }
    }

    /// Forgets all hosts, but not their labels.
    pub(crate) fn clear(&mut self) {
        self.strata.clear();
        self.numbers.clear();
        self.vacant.clear();
    }

    /// Adds a host, which is enrolled, in its present state. `rows` has all hosts by slot.
    pub(crate) fn insert(&mut self, slot: u32, rows: &[Row]) {
        let row = &rows[slot as usize];
        let stratum = &mut self.strata[row.stratum as usize];
        let mut at = [0.0; MAX_DIMS];
        let at = stratum.locate(row, &mut at);
        let same = |other: u32| rows[other as usize].is_in_the_same_state_as(row);
        stratum.tree.insert(at, Member { id: row.id.0, slot }, traits_of(row), same);
    }

    /// Removes a host, which is in the state in which it was added.
    pub(crate) fn remove(&mut self, slot: u32, row: &Row) {
        let stratum = &mut self.strata[row.stratum as usize];
        let mut at = [0.0; MAX_DIMS];
        let at = stratum.locate(row, &mut at);
        stratum.tree.remove(at, Member { id: row.id.0, slot });
    }

    /// Shows the seeker every state that could be the best, the most promising strata first.
    pub(crate) fn search(&self, seeker: &mut impl Seeker) {
        let mut strata = Vec::new();
        for stratum in &self.strata {
            if stratum.tree.is_empty() || seeker.leaves_out(&stratum.kind) {
                continue;
            }
            let Some(goal) = seeker.goal(stratum) else { continue };
            let bound = stratum.tree.root_bound(&goal);
            if bound < f64::INFINITY {
                // Apart, as one large allocation would cost more than all these.
                strata.push((bound, stratum, Box::new(goal)));
            }
        }
        strata.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (bound, stratum, goal) in strata {
            let mut search = Search { goal, seeker };
            if search.wants(bound) {
                stratum.tree.search(&mut search);
            }
        }
    }

    /// What the index takes in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.strata.iter().map(|stratum| stratum.tree.bytes()).sum()
    }
}

impl Stratum {
    fn new(kind: HostKind, row: &Row) -> Self {
        let scalars = (0..SCALARS).filter(|i| row.capacity[*i] > 0).map(Dim::Scalar);
        let models = row.detail.held.pools.iter().filter(|pool| pool.capacity > 0);
        let mut dims: Vec<_> =
            scalars.chain(models.map(|pool| Dim::Model(pool.model.clone()))).collect();
        let partial = dims.len() > MAX_DIMS;
        dims.truncate(MAX_DIMS);
        let tree = Tree::new(dims.len());
        Self { kind, hosts: 0, capacity: vec![(u64::MAX, 0); dims.len()], dims, partial, tree }
    }

    fn widen(&mut self, row: &Row) {
        for (range, dim) in self.capacity.iter_mut().zip(&self.dims) {
            let capacity = match dim {
                Dim::Scalar(i) => row.capacity[*i],
                Dim::Model(model) => row.pool(model).map_or(0, |pool| pool.capacity),
            };
            *range = (range.0.min(capacity), range.1.max(capacity));
        }
    }

    /// The host's free shares.
    fn locate<'a>(&self, row: &Row, at: &'a mut [f32; MAX_DIMS]) -> &'a [f32] {
        for (at, dim) in at.iter_mut().zip(&self.dims) {
            *at = match dim {
                Dim::Scalar(i) => single(row.free_share(*i)),
                Dim::Model(model) => {
                    row.pool(model).map_or(0.0, |pool| single(share(pool.free(), pool.capacity)))
                }
            };
        }
        &at[..self.dims.len()]
    }
}

/// Hosts on which nobody requires to be alone.
pub(crate) const SHARED: Traits = 1;

/// Hosts with VMs that require to be alone in some way.
pub(crate) const KEPT: Traits = 2;

/// The trait of being in a zone. Zones are few; where they are many, some share a bit, and boxes
/// tell less.
pub(crate) const fn in_zone(zone: Domain) -> Traits {
    const FIRST: u32 = 2;
    1 << (FIRST + zone % (Traits::BITS - FIRST))
}

fn traits_of(row: &Row) -> Traits {
    let keeping = if row.keepers > 0 { KEPT } else { SHARED };
    keeping | in_zone(row.domains[2])
}

/// Strata are fewer than hosts, whose ids are 32 bits wide.
fn count(strata: usize) -> u32 {
    u32::try_from(strata).unwrap_or(u32::MAX)
}

/// The nearest 32-bit float.
#[expect(clippy::cast_possible_truncation, reason = "the index is content with 24 bits")]
pub(crate) const fn single(share: f64) -> f32 {
    share as f32
}

/// Capacities of the same bucket differ by less than a 32nd; zero is alone in its own.
fn bucket(capacity: u64) -> u16 {
    const BITS: u32 = 5;
    if capacity == 0 {
        return 0;
    }
    let exponent = capacity.ilog2();
    let mantissa =
        if exponent > BITS { capacity >> (exponent - BITS) } else { capacity << (BITS - exponent) };
    let mantissa = u16::try_from(mantissa & ((1 << BITS) - 1)).unwrap_or(0);
    1 + (u16::try_from(exponent).unwrap_or(0) << BITS) + mantissa
}

/// One stratum's search.
struct Search<'a, S> {
    goal: Box<Goal>,
    seeker: &'a mut S,
}

impl<S: Seeker> Visitor for Search<'_, S> {
    fn goal(&self) -> &Goal {
        &self.goal
    }

    fn to_beat(&self) -> f64 {
        self.seeker.to_beat()
    }

    fn meet(&mut self, hosts: &mut dyn Hosts) {
        self.seeker.meet(&mut Alike(hosts));
    }
}
