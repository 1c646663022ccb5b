//! Adds up what several groups can do: by number of chains, the least sum of laps.

/// Entry `k` is the least sum of laps of `k` chains; entry 0 is 0.
pub type Front = Vec<u64>;

/// The front of all groups together, and for each of its entries how many chains every group makes.
///
/// `fronts` say what each group can do; so the totals are a shortest-path problem over groups (min-plus convolution).
pub struct Combined {
    pub front: Front,
    /// By group and total up to it: chains of this group.
    shares: Vec<Vec<usize>>,
}

impl Combined {
    pub fn new(fronts: &[Front]) -> Self {
        let (mut front, mut shares) = (vec![0], Vec::with_capacity(fronts.len()));
        for group in fronts {
            let mut sums = vec![(u64::MAX, 0); front.len() + group.len() - 1];
            for (before, before_us) in front.iter().enumerate() {
                for (share, share_us) in group.iter().enumerate() {
                    let sum = &mut sums[before + share];
                    *sum = (*sum).min((before_us + share_us, share));
                }
            }
            front = sums.iter().map(|(sum_us, _)| *sum_us).collect();
            shares.push(sums.into_iter().map(|(_, share)| share).collect());
        }
        Self { front, shares }
    }

    /// How many chains each group makes of `total`.
    pub fn shares(&self, mut total: usize) -> Vec<usize> {
        let mut of_groups: Vec<usize> = self
            .shares
            .iter()
            .rev()
            .map(|shares| {
                let share = shares[total];
                total -= share;
                share
            })
            .collect();
        of_groups.reverse();
        of_groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_chains_are_taken_first_wherever_they_are() {
        let combined = Combined::new(&[vec![0, 10, 25], vec![0, 7], vec![0], vec![0, 11, 21, 40]]);
        assert_eq!(combined.front, [0, 7, 17, 28, 38, 53, 72]);
        assert_eq!(combined.shares(3), [1, 1, 0, 1]);
        assert_eq!(combined.shares(6), [2, 1, 0, 3]);
        assert_eq!(Combined::new(&[]).front, [0]);
    }
}
