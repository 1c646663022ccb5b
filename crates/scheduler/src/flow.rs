//! How much can go through the slices on offer at once: maximum flow from layer 0 to the end, slices as edges between
//! the places where they begin and end (Dinic 1970).

use std::collections::{BTreeMap, VecDeque};

use opengrid_protocol::Layers;

/// Slices as a network. Equal ones add up.
#[derive(Clone, Debug)]
pub struct Network {
    /// Layers at which a slice begins or ends, ascending; also 0 and the model's end.
    ends: Vec<u32>,
    /// Of each of `ends`: positions of the arcs that leave it.
    leaving: Vec<Vec<usize>>,
    /// Arc `i` and its reverse `i ^ 1`.
    arcs: Vec<Arc>,
}

#[derive(Clone, Copy, Debug)]
struct Arc {
    to: usize,
    free: u64,
}

const UNSEEN: usize = usize::MAX;

impl Network {
    /// Slices that do not lie within the model count for nothing.
    pub fn new(layer_count: u32, slices: impl IntoIterator<Item = (Layers, u64)>) -> Self {
        let mut capacities: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for (slice, capacity) in slices {
            if slice.to() <= layer_count {
                let sum = capacities.entry((slice.from(), slice.to())).or_default();
                *sum = sum.saturating_add(capacity);
            }
        }
        let mut ends: Vec<u32> = capacities.keys().flat_map(|&(from, to)| [from, to]).chain([0, layer_count]).collect();
        ends.sort_unstable();
        ends.dedup();
        let at = |layer: u32| ends.partition_point(|&end| end < layer);
        let (mut leaving, mut arcs) = (vec![Vec::new(); ends.len()], Vec::with_capacity(2 * capacities.len()));
        for ((from, to), capacity) in capacities {
            let (from, to) = (at(from), at(to));
            leaving[from].push(arcs.len());
            arcs.push(Arc { to, free: capacity });
            leaving[to].push(arcs.len());
            arcs.push(Arc { to: from, free: 0 });
        }
        Self { ends, leaving, arcs }
    }

    /// Sends as much as goes and returns how much. Further calls return 0.
    pub fn saturate(&mut self) -> u64 {
        let mut sent = 0u64;
        while let Some(levels) = self.levels() {
            let mut next_arc = vec![0; self.ends.len()];
            while let Some(path) = self.path(&levels, &mut next_arc) {
                let room = path.iter().map(|&arc| self.arcs[arc].free).min().unwrap_or(0);
                for arc in path {
                    self.arcs[arc].free -= room;
                    self.arcs[arc ^ 1].free += room;
                }
                sent = sent.saturating_add(room);
            }
        }
        sent
    }

    /// Distance of each end from the first, in arcs that have room; `None` where the last cannot be reached.
    fn levels(&self) -> Option<Vec<usize>> {
        let mut levels = vec![UNSEEN; self.ends.len()];
        levels[0] = 0;
        let mut queue = VecDeque::from([0]);
        while let Some(here) = queue.pop_front() {
            for &arc in &self.leaving[here] {
                let Arc { to, free } = self.arcs[arc];
                if free > 0 && levels[to] == UNSEEN {
                    levels[to] = levels[here] + 1;
                    queue.push_back(to);
                }
            }
        }
        (levels.last() != Some(&UNSEEN)).then_some(levels)
    }

    /// Arcs with room from the first end to the last, each one level further. `next_arc` remembers dead ends.
    fn path(&self, levels: &[usize], next_arc: &mut [usize]) -> Option<Vec<usize>> {
        let (mut path, mut here) = (Vec::new(), 0);
        while here + 1 != self.ends.len() {
            let arc = self.leaving[here].get(next_arc[here]).copied();
            match arc {
                Some(arc) if self.arcs[arc].free > 0 && levels[self.arcs[arc].to] == levels[here] + 1 => {
                    path.push(arc);
                    here = self.arcs[arc].to;
                }
                Some(_) => next_arc[here] += 1,
                None => {
                    // Nothing leads on: back one arc, which is not tried again.
                    here = self.arcs[path.pop()? ^ 1].to;
                    next_arc[here] += 1;
                }
            }
        }
        Some(path)
    }
}
