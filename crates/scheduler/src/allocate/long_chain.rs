//! The last resort: one chain over as many nodes as it takes, however many that are.

use std::cmp::Reverse;

use super::instance::Member;

/// A chain of the roomiest nodes, each followed by the nearest of those left. `Err` with the number of layers that fit
/// where no chain does.
pub fn long_chain(layers: u32, members: &[Member], way_us: impl Fn(usize, usize) -> u64) -> Result<Vec<usize>, u32> {
    let (first, last) = ends(members).ok_or_else(|| members.iter().map(|member| member.middle).max().unwrap_or(0))?;
    let mut middles: Vec<usize> = (0..members.len()).filter(|&at| at != first && at != last).collect();
    middles.retain(|&at| members[at].middle > 0);
    middles.sort_by_key(|&at| (Reverse(members[at].middle), at));
    let mut room = members[first].first + members[last].last;
    let mut taken = middles;
    let needed = taken.iter().take_while(|&&at| {
        let more = room < layers;
        if more {
            room += members[at].middle;
        }
        more
    });
    taken.truncate(needed.count());
    if room < layers {
        return Err(room);
    }
    let mut chain = vec![first];
    let mut here = first;
    while let Some(next) = (0..taken.len()).min_by_key(|&next| (way_us(here, taken[next]), taken[next])) {
        here = taken.swap_remove(next);
        chain.push(here);
    }
    chain.push(last);
    Ok(chain)
}

/// The first and the last node with which the most layers fit: those who lose the least by what comes besides.
fn ends(members: &[Member]) -> Option<(usize, usize)> {
    let lost_first = |at: &usize| members[*at].middle - members[*at].first;
    let lost_last = |at: &usize| members[*at].middle - members[*at].last;
    let mut firsts: Vec<usize> = (0..members.len()).filter(|&at| members[at].first > 0).collect();
    let mut lasts: Vec<usize> = (0..members.len()).filter(|&at| members[at].last > 0).collect();
    firsts.sort_by_key(|at| (lost_first(at), *at));
    lasts.sort_by_key(|at| (lost_last(at), *at));
    // Both lists may begin with the same node: then one of them takes its second.
    let pairs = firsts.iter().take(2).flat_map(|first| lasts.iter().take(2).map(move |last| (*first, *last)));
    pairs.filter(|(first, last)| first != last).min_by_key(|(first, last)| lost_first(first) + lost_last(last))
}
