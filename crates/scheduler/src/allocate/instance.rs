//! Up to 64 nodes that share chains, by number, so that a set of them is a `u64`.

/// Most nodes of an [`Instance`].
pub const SET_MAX: usize = 64;

/// A node as chains see it.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Layers that fit, by its place in the chain.
    pub first: u32,
    pub middle: u32,
    pub last: u32,
    pub visit_us: u64,
    pub layer_us: u64,
}

/// The members by ascending `layer_us`: a set's lowest bit is its fastest node.
#[derive(Debug)]
pub struct Instance {
    pub layers: u32,
    pub members: Vec<Member>,
    /// One-way delays in microseconds: from row to column.
    ways_us: Vec<u64>,
}

/// The numbers in a set, ascending.
pub fn each(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros() as usize);
        set &= set.wrapping_sub(1);
        lowest
    })
}

pub fn bit(member: usize) -> u64 {
    1 << member
}

impl Instance {
    /// `members` sorted as said above, at most [`SET_MAX`].
    pub fn new(layers: u32, members: Vec<Member>, way_us: impl Fn(usize, usize) -> u64) -> Self {
        debug_assert!(members.len() <= SET_MAX && members.is_sorted_by_key(|member| member.layer_us));
        let count = members.len();
        let ways_us = (0..count * count).map(|at| way_us(at / count, at % count)).collect();
        Self { layers, members, ways_us }
    }

    pub fn way_us(&self, from: usize, to: usize) -> u64 {
        self.ways_us[from * self.members.len() + to]
    }

    pub fn everybody(&self) -> u64 {
        (0..self.members.len()).map(bit).sum()
    }

    /// Layers that fit `member` in a chain from `first` to `last`.
    pub fn room(&self, member: usize, first: usize, last: usize) -> u32 {
        let Member { first: as_first, middle, last: as_last, .. } = self.members[member];
        if member == first {
            as_first
        } else if member == last {
            as_last
        } else {
            middle
        }
    }

    /// Microseconds that a chain of `set` computes for a token when its fastest nodes have as many layers as they can and
    /// each has at least one; `None` where the layers do not fit.
    pub fn compute_us(&self, set: u64, first: usize, last: usize) -> Option<u64> {
        let mut left = self.layers.checked_sub(set.count_ones())?;
        let mut sum_us = 0;
        for member in each(set) {
            let more = self.room(member, first, last).checked_sub(1)?.min(left);
            left -= more;
            let Member { visit_us, layer_us, .. } = self.members[member];
            sum_us += visit_us + layer_us * u64::from(1 + more);
        }
        (left == 0).then_some(sum_us)
    }

    /// What a token takes through the chain of at least two and straight back to its first node.
    pub fn lap_us(&self, chain: &[usize]) -> Option<u64> {
        let (&first, &last) = (chain.first()?, chain.last()?);
        let set = chain.iter().copied().map(bit).sum();
        let ways_us: u64 = chain.windows(2).map(|pair| self.way_us(pair[0], pair[1])).sum();
        Some(self.compute_us(set, first, last)? + ways_us + self.way_us(last, first))
    }
}

/// How many layers each of a chain has, in its order: those that [`Instance::compute_us`] counts. `members` and numbers are
/// by speed here, too, and may be more.
pub fn counts(layers: u32, members: &[Member], chain: &[usize]) -> Option<Vec<u32>> {
    let mut left = layers.checked_sub(u32::try_from(chain.len()).ok()?)?;
    let mut counts = vec![1; chain.len()];
    let mut by_speed: Vec<usize> = (0..chain.len()).collect();
    by_speed.sort_by_key(|&at| chain[at]);
    for at in by_speed {
        let room = match members[chain[at]] {
            Member { first, .. } if at == 0 => first,
            Member { last, .. } if at + 1 == chain.len() => last,
            Member { middle, .. } => middle,
        };
        let more = room.checked_sub(1)?.min(left);
        left -= more;
        counts[at] += more;
    }
    (left == 0).then_some(counts)
}
