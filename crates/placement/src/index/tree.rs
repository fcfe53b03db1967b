//! A k-d tree over the availability of alike hosts.
//!
//! Every node has the smallest box around the points below it and the lowest host id there. A leaf
//! holds up to [`LEAF`] distinct states; hosts in exactly the same state share one entry, which
//! makes clusters of catalogue-sized VMs small. A leaf that is too full is split in the middle of
//! the widest side of its box, so the depth is bounded by the resolution of the coordinates and no
//! rebalancing is needed; neighbours that have become small are joined again.
//!
//! Coordinates are free shares rounded to 32-bit floats. They only steer the search: what is found
//! is judged by the exact numbers of the host itself.

use std::collections::BTreeSet;

use crate::index::Goal;

/// How many states a leaf holds before it is split.
const LEAF: usize = 24;

/// Sibling leaves with so few states together become one.
const JOINED: usize = 12;

/// The host ids and slots of one entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The lowest host id.
    first: u32,
    /// The slot of the only host, or `MANY` and the number of a set.
    who: u32,
    traits: Traits,
}

/// The number of the root.
const ROOT: u32 = 0;

/// Marks an [`Entry`] of several hosts; slots are below it.
const MANY: u32 = 1 << 31;

#[derive(Clone, Debug, Default)]
struct Leaf {
    /// The coordinates of the entries, one after the other.
    at: Vec<f32>,
    entries: Vec<Entry>,
}

/// A node, but for its box. Siblings lie side by side.
#[derive(Clone, Copy, Debug)]
struct Node {
    below: Below,
    /// The lowest host id.
    first: u32,
    /// Which traits there are.
    traits: Traits,
}

#[derive(Clone, Copy, Debug)]
enum Below {
    Leaf {
        leaf: u32,
    },
    /// Two nodes, of which the first has what is left of `at` in this dimension.
    Pair {
        dim: u16,
        at: f32,
        pair: u32,
    },
}

/// A host as the tree knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) id: u32,
    pub(crate) slot: u32,
}

/// What hosts can be asked to be, one bit each: a node has the bits of all hosts below it.
pub(crate) type Traits = u64;

/// The tree.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    dims: usize,
    /// The root, which has no sibling, then pairs.
    nodes: Vec<Node>,
    /// Per node: the lows, then the highs, of its box.
    boxes: Vec<f32>,
    leaves: Vec<Leaf>,
    sets: Vec<BTreeSet<Member>>,
    free_pairs: Vec<u32>,
    free_leaves: Vec<u32>,
    free_sets: Vec<u32>,
    /// Scratch: the nodes from the root to a leaf.
    path: Vec<u32>,
    members: usize,
}

/// Who searches. Less is better of keys; see [`Goal`].
pub(super) trait Visitor {
    /// What is sought.
    fn goal(&self) -> &Goal;

    /// The highest key with which a host could still win; infinite when any will do.
    fn to_beat(&self) -> f64;

    /// Whether something of at least this key could still win.
    fn wants(&self, key: f64) -> bool {
        key < f64::INFINITY && key <= self.to_beat()
    }

    /// Hosts in the same state, by id. The visitor looks at as many of them as it needs.
    fn meet(&mut self, hosts: &mut dyn Hosts);
}

/// Hosts in the same state, by id.
pub(super) trait Hosts {
    /// The next one.
    fn next(&mut self) -> Option<Member>;
    /// The next one of at least this id; only ever more of the ids are left out.
    fn next_from(&mut self, id: u32) -> Option<Member>;
}

struct One(Option<Member>);

impl Hosts for One {
    fn next(&mut self) -> Option<Member> {
        self.0.take()
    }

    fn next_from(&mut self, id: u32) -> Option<Member> {
        self.0.take().filter(|member| member.id >= id)
    }
}

struct Several<'a> {
    set: &'a BTreeSet<Member>,
    rest: std::collections::btree_set::Range<'a, Member>,
}

impl Hosts for Several<'_> {
    fn next(&mut self) -> Option<Member> {
        self.rest.next().copied()
    }

    fn next_from(&mut self, id: u32) -> Option<Member> {
        self.rest = self.set.range(Member { id, slot: 0 }..);
        self.next()
    }
}

impl Node {
    /// A leaf that is not measured yet.
    const fn nothing(leaf: u32) -> Self {
        Self { below: Below::Leaf { leaf }, first: u32::MAX, traits: 0 }
    }
}

impl Tree {
    pub(super) fn new(dims: usize) -> Self {
        let mut tree = Self {
            dims,
            nodes: Vec::new(),
            boxes: Vec::new(),
            leaves: Vec::new(),
            sets: Vec::new(),
            free_pairs: Vec::new(),
            free_leaves: Vec::new(),
            free_sets: Vec::new(),
            path: Vec::new(),
            members: 0,
        };
        let leaf = tree.new_leaf();
        tree.nodes.push(Node::nothing(leaf));
        tree.boxes.resize(2 * dims, 0.0);
        tree.measure(ROOT);
        tree
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.members == 0
    }

    /// The key that the best of all hosts could have.
    pub(super) fn root_bound(&self, goal: &Goal) -> f64 {
        if self.is_empty() { f64::INFINITY } else { self.bound(ROOT, goal) }
    }

    /// Shows the visitor, the most promising first, every state that it wants to see.
    pub(super) fn search(&self, visitor: &mut impl Visitor) {
        if !self.is_empty() {
            self.descend(ROOT, visitor);
        }
    }

    fn bound(&self, node: u32, goal: &Goal) -> f64 {
        let (low, high) = self.sides(node);
        let Node { first, traits, .. } = self.nodes[node as usize];
        goal.bound(low, high, first, traits)
    }

    fn sides(&self, node: u32) -> (&[f32], &[f32]) {
        let at = node as usize * 2 * self.dims;
        self.boxes[at..at + 2 * self.dims].split_at(self.dims)
    }

    fn descend(&self, node: u32, visitor: &mut impl Visitor) {
        match self.nodes[node as usize].below {
            Below::Leaf { leaf } => self.look(&self.leaves[leaf as usize], visitor),
            Below::Pair { pair, .. } => {
                let goal = visitor.goal();
                let (a, b) = (self.bound(pair, goal), self.bound(pair + 1, goal));
                let [(near, near_bound), (far, far_bound)] =
                    if b < a { [(pair + 1, b), (pair, a)] } else { [(pair, a), (pair + 1, b)] };
                if visitor.wants(near_bound) {
                    self.descend(near, visitor);
                    if visitor.wants(far_bound) {
                        self.descend(far, visitor);
                    }
                }
            }
        }
    }

    /// The best entry first: what it is found to be worth rules most others out.
    fn look(&self, leaf: &Leaf, visitor: &mut impl Visitor) {
        const NO_KEY: f64 = f64::INFINITY;
        let by_id = visitor.goal().is_by_id();
        let to_beat = visitor.to_beat();
        let mut keys = [NO_KEY; LEAF];
        let (mut best, mut best_key) = (0, NO_KEY);
        for (i, entry) in leaf.entries.iter().enumerate() {
            if by_id && f64::from(entry.first) > to_beat {
                continue;
            }
            let at = &leaf.at[i * self.dims..(i + 1) * self.dims];
            let key = visitor.goal().key(at, entry.first, entry.traits);
            if let Some(kept) = keys.get_mut(i) {
                *kept = key;
                if key < best_key {
                    (best, best_key) = (i, key);
                }
            } else if visitor.wants(key) {
                // Only a leaf that cannot be split holds more.
                self.show(*entry, visitor);
            }
        }
        if !visitor.wants(best_key) {
            return;
        }
        self.show(leaf.entries[best], visitor);
        for (i, entry) in leaf.entries.iter().enumerate().take(LEAF) {
            if i != best && visitor.wants(keys[i]) {
                self.show(*entry, visitor);
            }
        }
    }

    fn show(&self, entry: Entry, visitor: &mut impl Visitor) {
        if entry.who & MANY == 0 {
            visitor.meet(&mut One(Some(Member { id: entry.first, slot: entry.who })));
        } else {
            let set = &self.sets[(entry.who & !MANY) as usize];
            visitor.meet(&mut Several { set, rest: set.range(..) });
        }
    }

    /// Adds a host. `same` tells whether a host that is here is in exactly the same state.
    pub(super) fn insert(
        &mut self,
        at: &[f32],
        member: Member,
        traits: Traits,
        same: impl Fn(u32) -> bool,
    ) {
        self.members += 1;
        let (node, leaf) = self.find(at);
        let dims = self.dims;
        let found = (0..self.leaves[leaf].entries.len()).find(|i| {
            let (leaf, entry) = (&self.leaves[leaf], self.leaves[leaf].entries[*i]);
            leaf.at[i * dims..(i + 1) * dims] == *at
                && entry.traits == traits
                && same(self.slot_of(entry))
        });
        if let Some(i) = found {
            let mut entry = self.leaves[leaf].entries[i];
            if entry.who & MANY == 0 {
                let set = self.new_set();
                self.sets[set as usize].insert(Member { id: entry.first, slot: entry.who });
                entry.who = MANY | set;
            }
            self.sets[(entry.who & !MANY) as usize].insert(member);
            entry.first = entry.first.min(member.id);
            self.leaves[leaf].entries[i] = entry;
        } else {
            let leaf = &mut self.leaves[leaf];
            leaf.at.extend_from_slice(at);
            leaf.entries.push(Entry { first: member.id, who: member.slot, traits });
        }
        for i in 0..self.path.len() {
            self.extend(self.path[i], at, member.id, traits);
        }
        if self.leaves[leaf].entries.len() > LEAF {
            self.split(node);
        }
    }

    /// Removes a host that is there.
    pub(super) fn remove(&mut self, at: &[f32], member: Member) {
        let (node, leaf) = self.find(at);
        let dims = self.dims;
        let found = (0..self.leaves[leaf].entries.len()).find(|i| {
            let leaf = &self.leaves[leaf];
            leaf.at[i * dims..(i + 1) * dims] == *at && self.holds(leaf.entries[*i], member)
        });
        let Some(i) = found else {
            debug_assert!(false, "the host is not where its coordinates say");
            return;
        };
        self.members -= 1;
        let entry = self.leaves[leaf].entries[i];
        if entry.who & MANY == 0 {
            let leaf = &mut self.leaves[leaf];
            leaf.entries.swap_remove(i);
            let last = leaf.entries.len();
            leaf.at.copy_within(last * dims.., i * dims);
            leaf.at.truncate(last * dims);
            self.join(node);
        } else {
            let number = entry.who & !MANY;
            let set = &mut self.sets[number as usize];
            set.remove(&member);
            let first = set.first().copied();
            if set.len() == 1 {
                set.clear();
                self.free_sets.push(number);
            }
            if let Some(first) = first {
                let entry = &mut self.leaves[leaf].entries[i];
                entry.first = first.id;
                if self.sets[number as usize].is_empty() {
                    entry.who = first.slot;
                }
            }
        }
        self.tighten();
    }

    fn slot_of(&self, entry: Entry) -> u32 {
        if entry.who & MANY == 0 {
            entry.who
        } else {
            self.sets[(entry.who & !MANY) as usize].first().map_or(0, |member| member.slot)
        }
    }

    fn holds(&self, entry: Entry, member: Member) -> bool {
        if entry.who & MANY == 0 {
            entry.who == member.slot
        } else {
            self.sets[(entry.who & !MANY) as usize].contains(&member)
        }
    }

    /// The node and the leaf where a point belongs; the path there is remembered.
    fn find(&mut self, at: &[f32]) -> (u32, usize) {
        self.path.clear();
        let mut node = ROOT;
        loop {
            self.path.push(node);
            match self.nodes[node as usize].below {
                Below::Leaf { leaf } => return (node, leaf as usize),
                Below::Pair { dim, at: middle, pair } => {
                    node = if at[dim as usize] < middle { pair } else { pair + 1 };
                }
            }
        }
    }

    fn extend(&mut self, node: u32, at: &[f32], id: u32, traits: Traits) {
        let start = node as usize * 2 * self.dims;
        let (low, high) = self.boxes[start..start + 2 * self.dims].split_at_mut(self.dims);
        for ((low, high), at) in low.iter_mut().zip(high).zip(at) {
            *low = low.min(*at);
            *high = high.max(*at);
        }
        let node = &mut self.nodes[node as usize];
        node.first = node.first.min(id);
        node.traits |= traits;
    }

    /// Makes the boxes on the path small again, from the leaf up.
    fn tighten(&mut self) {
        while let Some(node) = self.path.pop() {
            if !self.measure(node) {
                break;
            }
        }
        self.path.clear();
    }

    /// Measures a node anew; whether it has changed.
    fn measure(&mut self, node: u32) -> bool {
        let (dims, start) = (self.dims, node as usize * 2 * self.dims);
        let mut sides = [0.0_f32; 2 * super::MAX_DIMS];
        let sides = &mut sides[..2 * dims];
        let (mut first, mut traits) = (u32::MAX, 0);
        sides[..dims].fill(f32::INFINITY);
        sides[dims..].fill(f32::NEG_INFINITY);
        match self.nodes[node as usize].below {
            Below::Leaf { leaf } => {
                let leaf = &self.leaves[leaf as usize];
                for (i, entry) in leaf.entries.iter().enumerate() {
                    let at = &leaf.at[i * dims..(i + 1) * dims];
                    widen(sides, at, at);
                    first = first.min(entry.first);
                    traits |= entry.traits;
                }
            }
            Below::Pair { pair, .. } => {
                for child in [pair, pair + 1] {
                    let (low, high) = self.sides(child);
                    widen(sides, low, high);
                    first = first.min(self.nodes[child as usize].first);
                    traits |= self.nodes[child as usize].traits;
                }
            }
        }
        let known = &mut self.boxes[start..start + 2 * dims];
        let node = &mut self.nodes[node as usize];
        let changed = *known != *sides || node.first != first || node.traits != traits;
        known.copy_from_slice(sides);
        (node.first, node.traits) = (first, traits);
        changed
    }

    /// Splits a leaf in the middle of its widest side; one whose states are all at one point stays.
    fn split(&mut self, node: u32) {
        let Below::Leaf { leaf } = self.nodes[node as usize].below else { return };
        let (low, high) = self.sides(node);
        let widest = (0..self.dims)
            .map(|dim| (dim, high[dim] - low[dim]))
            .max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((dim, _)) = widest.filter(|(_, width)| *width > 0.0) else { return };
        // Rounding may bring the middle down to the low end: then the high end divides.
        let middle = low[dim] + (high[dim] - low[dim]) / 2.0;
        let middle = if middle > low[dim] { middle } else { high[dim] };
        let full = std::mem::take(&mut self.leaves[leaf as usize]);
        let other = self.new_leaf();
        for (i, entry) in full.entries.iter().enumerate() {
            let at = &full.at[i * self.dims..(i + 1) * self.dims];
            let side = if at[dim] < middle { leaf } else { other };
            let side = &mut self.leaves[side as usize];
            side.at.extend_from_slice(at);
            side.entries.push(*entry);
        }
        let pair = self.new_pair(leaf, other);
        let dim = u16::try_from(dim).unwrap_or(0);
        self.nodes[node as usize].below = Below::Pair { dim, at: middle, pair };
        for (child, leaf) in [(pair, leaf), (pair + 1, other)] {
            self.measure(child);
            if self.leaves[leaf as usize].entries.len() > LEAF {
                self.split(child);
            }
        }
    }

    /// Joins a leaf with its sibling if both are small; an empty one gives way to its sibling.
    fn join(&mut self, node: u32) {
        let [.., parent, _] = self.path[..] else { return };
        let Below::Pair { pair, .. } = self.nodes[parent as usize].below else { return };
        let sibling = if pair == node { pair + 1 } else { pair };
        let Below::Leaf { leaf } = self.nodes[node as usize].below else { return };
        let states = self.leaves[leaf as usize].entries.len();
        match self.nodes[sibling as usize].below {
            Below::Leaf { leaf: other } => {
                let others = self.leaves[other as usize].entries.len();
                if states > 0 && states + others > JOINED {
                    return;
                }
                let moved = std::mem::take(&mut self.leaves[leaf as usize]);
                let other = &mut self.leaves[other as usize];
                other.at.extend_from_slice(&moved.at);
                other.entries.extend_from_slice(&moved.entries);
            }
            Below::Pair { .. } if states > 0 => return,
            Below::Pair { .. } => self.leaves[leaf as usize] = Leaf::default(),
        }
        self.free_leaves.push(leaf);
        self.nodes[parent as usize].below = self.nodes[sibling as usize].below;
        self.free_pairs.push(pair);
        self.path.pop();
    }

    fn new_pair(&mut self, left: u32, right: u32) -> u32 {
        let pair = self.free_pairs.pop().unwrap_or_else(|| {
            let pair = self.nodes.len();
            self.nodes.resize(pair + 2, Node::nothing(left));
            self.boxes.resize(self.nodes.len() * 2 * self.dims, 0.0);
            number(pair)
        });
        self.nodes[pair as usize] = Node::nothing(left);
        self.nodes[pair as usize + 1] = Node::nothing(right);
        pair
    }

    fn new_leaf(&mut self) -> u32 {
        self.free_leaves.pop().unwrap_or_else(|| {
            self.leaves.push(Leaf::default());
            number(self.leaves.len() - 1)
        })
    }

    fn new_set(&mut self) -> u32 {
        self.free_sets.pop().unwrap_or_else(|| {
            self.sets.push(BTreeSet::new());
            number(self.sets.len() - 1)
        })
    }

    /// What the tree takes in memory, in bytes, as far as it can be told without asking the
    /// allocator: sets are counted as if their nodes were two thirds full.
    pub(super) fn bytes(&self) -> usize {
        let leaves: usize = self
            .leaves
            .iter()
            .map(|leaf| {
                leaf.at.capacity() * size_of::<f32>() + leaf.entries.capacity() * size_of::<Entry>()
            })
            .sum();
        let sets: usize = self.sets.iter().map(|set| set.len() * size_of::<Member>() * 3 / 2).sum();
        self.nodes.capacity() * size_of::<Node>()
            + self.boxes.capacity() * size_of::<f32>()
            + self.leaves.capacity() * size_of::<Leaf>()
            + self.sets.capacity() * size_of::<BTreeSet<Member>>()
            + leaves
            + sets
    }
}

fn widen(sides: &mut [f32], low: &[f32], high: &[f32]) {
    let (lows, highs) = sides.split_at_mut(low.len());
    for (side, low) in lows.iter_mut().zip(low) {
        *side = side.min(*low);
    }
    for (side, high) in highs.iter_mut().zip(high) {
        *side = side.max(*high);
    }
}

/// Numbers of nodes, leaves and sets; there are fewer of each than hosts, whose ids are 32 bits.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
