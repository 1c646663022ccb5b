//! Groups of nodes that are near each other.

/// `nodes` in groups of at most `most`. A group that is too large is parted between two of its nodes that are far from each
/// other, each with those that are nearer to it; neither gets less than an eighth.
pub fn groups(nodes: Vec<usize>, most: usize, way_us: impl Fn(usize, usize) -> u64) -> Vec<Vec<usize>> {
    let mut waiting = vec![nodes];
    let mut groups = Vec::new();
    while let Some(mut group) = waiting.pop() {
        let farthest = |from: usize| group.iter().copied().max_by_key(|&to| (way_us(from, to), to)).unwrap_or(from);
        if group.len() <= most {
            group.sort_unstable();
            groups.push(group);
            continue;
        }
        let here = farthest(group[0]);
        let there = farthest(here);
        let nearness = |node: usize| i128::from(way_us(node, here)) - i128::from(way_us(node, there));
        group.sort_by_cached_key(|&node| (nearness(node), node));
        let eighth = group.len() / 8;
        let cut = group.partition_point(|&node| nearness(node) < 0).clamp(eighth, group.len() - eighth);
        waiting.push(group.split_off(cut));
        waiting.push(group);
    }
    groups.retain(|group| !group.is_empty());
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_far_apart_make_groups_of_their_own() {
        let way_us = |a: usize, b: usize| if a % 3 == b % 3 { 1_000 } else { 40_000 + 1_000 * (a % 3 + b % 3) as u64 };
        let found = groups((0..90).collect(), 40, way_us);
        assert_eq!(found, [0, 1, 2].map(|place| (0..90).filter(|node| node % 3 == place).collect::<Vec<_>>()));
    }

    #[test]
    fn where_all_are_equally_far_the_groups_are_still_small() {
        let found = groups((0..4_096).collect(), 64, |a, b| u64::from(a != b) * 10_000);
        assert!(found.iter().all(|group| group.len() <= 64) && found.len() < 1_024);
        let mut everybody = found.concat();
        everybody.sort_unstable();
        assert_eq!(everybody, (0..4_096).collect::<Vec<_>>());
    }
}
