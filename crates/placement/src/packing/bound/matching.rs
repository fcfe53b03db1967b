//! Maximum matching in a graph (J. Edmonds, *Paths, trees, and flowers*, Canadian Journal of
//! Mathematics 17, 1965), with breadth-first searches that contract blossoms.

use std::collections::VecDeque;

const NONE: usize = usize::MAX;

/// How many edges a maximum matching has. `neighbours` lists for each vertex those that share an
/// edge with it. It takes about vertices times edges steps at worst.
pub(super) fn maximum_matching(neighbours: &[Vec<u32>]) -> usize {
    let mut matching = Matching {
        neighbours,
        mate: vec![NONE; neighbours.len()],
        parent: Vec::new(),
        base: Vec::new(),
        reached: Vec::new(),
    };
    // A greedy start leaves only some vertices to the searches.
    for (vertex, others) in neighbours.iter().enumerate() {
        if matching.mate[vertex] == NONE {
            let free = others.iter().find(|&&other| matching.mate[other as usize] == NONE);
            if let Some(&other) = free {
                matching.mate[vertex] = other as usize;
                matching.mate[other as usize] = vertex;
            }
        }
    }
    for vertex in 0..neighbours.len() {
        if matching.mate[vertex] == NONE {
            matching.augment(vertex);
        }
    }
    matching.mate.iter().filter(|&&mate| mate != NONE).count() / 2
}

struct Matching<'a> {
    neighbours: &'a [Vec<u32>],
    mate: Vec<usize>,
    /// The vertex before on the alternating path from the root, for those at odd distance.
    parent: Vec<usize>,
    /// The base of the blossom in which a vertex is; itself if in none.
    base: Vec<usize>,
    /// At even distance from the root.
    reached: Vec<bool>,
}

impl Matching<'_> {
    /// Looks for an augmenting path from an unmatched vertex, and takes it.
    fn augment(&mut self, root: usize) {
        let vertices = self.neighbours.len();
        self.parent = vec![NONE; vertices];
        self.base = (0..vertices).collect();
        self.reached = vec![false; vertices];
        self.reached[root] = true;
        let mut queue = VecDeque::from([root]);
        let neighbours = self.neighbours;
        while let Some(vertex) = queue.pop_front() {
            for &other in &neighbours[vertex] {
                let other = other as usize;
                if self.base[vertex] == self.base[other] || self.mate[vertex] == other {
                    continue;
                }
                let mate = self.mate[other];
                if other == root || (mate != NONE && self.parent[mate] != NONE) {
                    self.contract(vertex, other, &mut queue);
                } else if self.parent[other] == NONE {
                    self.parent[other] = vertex;
                    if mate == NONE {
                        self.flip(other);
                        return;
                    }
                    self.reached[mate] = true;
                    queue.push_back(mate);
                }
            }
        }
    }

    /// Makes matched what was not along the path from the root to `last`, and the reverse.
    fn flip(&mut self, mut last: usize) {
        while last != NONE {
            let before = self.parent[last];
            let next = self.mate[before];
            self.mate[last] = before;
            self.mate[before] = last;
            last = next;
        }
    }

    /// The two vertices, both at even distance, close an odd cycle: all of it is one vertex now.
    fn contract(&mut self, a: usize, b: usize, queue: &mut VecDeque<usize>) {
        let meeting = self.meeting(a, b);
        let mut blossom = vec![false; self.neighbours.len()];
        self.mark(a, meeting, b, &mut blossom);
        self.mark(b, meeting, a, &mut blossom);
        for vertex in 0..self.neighbours.len() {
            if blossom[self.base[vertex]] {
                self.base[vertex] = meeting;
                if !self.reached[vertex] {
                    self.reached[vertex] = true;
                    queue.push_back(vertex);
                }
            }
        }
    }

    /// The base at which the paths of two vertices to the root meet.
    fn meeting(&self, mut a: usize, mut b: usize) -> usize {
        let mut seen = vec![false; self.neighbours.len()];
        loop {
            a = self.base[a];
            seen[a] = true;
            if self.mate[a] == NONE {
                break;
            }
            a = self.parent[self.mate[a]];
        }
        loop {
            b = self.base[b];
            if seen[b] {
                return b;
            }
            b = self.parent[self.mate[b]];
        }
    }

    fn mark(&mut self, mut vertex: usize, base: usize, mut child: usize, blossom: &mut [bool]) {
        while self.base[vertex] != base {
            blossom[self.base[vertex]] = true;
            blossom[self.base[self.mate[vertex]]] = true;
            self.parent[vertex] = child;
            child = self.mate[vertex];
            vertex = self.parent[self.mate[vertex]];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::maximum_matching;

    /// By trying all: the first vertex alone, or with each neighbour.
    fn naive(edges: &[(usize, usize)], used: u32) -> usize {
        edges
            .iter()
            .enumerate()
            .filter(|(_, (a, b))| used & (1 << a | 1 << b) == 0)
            .map(|(index, (a, b))| 1 + naive(&edges[index + 1..], used | 1 << a | 1 << b))
            .max()
            .unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn finds_as_many_as_trying_all(pairs in prop::collection::btree_set((0..9_usize, 0..9_usize), 0..16)) {
            let edges: Vec<_> = pairs.into_iter().filter(|(a, b)| a < b).collect();
            let mut neighbours = vec![Vec::new(); 9];
            for &(a, b) in &edges {
                neighbours[a].push(u32::try_from(b).unwrap());
                neighbours[b].push(u32::try_from(a).unwrap());
            }
            prop_assert_eq!(maximum_matching(&neighbours), naive(&edges, 0));
        }
    }
}
