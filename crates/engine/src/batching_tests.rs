use proptest::prelude::*;

use super::*;

const LIMITS: StepLimits = StepLimits { batch: 64, prefill: 64, prefill_amid_decoding: 16 };

fn job(id: u64, client: u8, tokens: Vec<Token>, more: usize) -> Job {
    let tokens_max = tokens.len() + more;
    Job { id, client: [client; 32], tokens, tokens_max, tier: Tier::Default }
}

/// Runs one step with a made-up next token; returns the ids that ended.
fn step(batcher: &mut Batcher, limits: StepLimits) -> Vec<u64> {
    batcher.admit();
    let chunks = batcher.plan(limits);
    batcher.computed(&chunks);
    let mut ended = Vec::new();
    for chunk in chunks.iter().filter(|chunk| chunk.output) {
        let id = batcher.running(chunk.slot).unwrap();
        if batcher.push(chunk.slot, 1_000 + id as u32) {
            batcher.finish(chunk.slot);
            ended.push(id);
        }
    }
    ended
}

#[test]
fn a_new_request_starts_in_the_next_step_and_decoding_goes_on_beside_it() {
    let mut batcher = Batcher::new(4);
    batcher.enqueue(job(1, 1, vec![5; 10], 100));
    step(&mut batcher, LIMITS);
    batcher.enqueue(job(2, 2, vec![6; 200], 100));
    batcher.admit();
    let plan = batcher.plan(LIMITS);
    assert_eq!(plan[0], Chunk { slot: 0, from: 10, to: 11, output: true });
    assert_eq!(plan[1], Chunk { slot: 1, from: 0, to: 16, output: false });
}

#[test]
fn the_same_client_continues_in_its_slot_and_another_does_not() {
    let mut batcher = Batcher::new(2);
    let prompt: Vec<Token> = (0..50).collect();
    batcher.enqueue(job(1, 1, prompt.clone(), 1));
    assert_eq!(step(&mut batcher, LIMITS), [1]);
    let longer: Vec<Token> = (0..60).collect();
    batcher.enqueue(job(2, 9, longer.clone(), 1));
    assert_eq!(batcher.admit()[0].keep, 0, "another client's cells are never reused");
    batcher.enqueue(job(3, 1, longer, 1));
    assert_eq!(batcher.admit(), [Admission { id: 3, slot: 0, keep: 50 }]);
}

#[test]
fn the_last_token_of_a_cached_prompt_is_computed_again() {
    let mut batcher = Batcher::new(1);
    batcher.enqueue(job(1, 1, vec![3; 40], 1));
    step(&mut batcher, LIMITS);
    batcher.enqueue(job(2, 1, vec![3; 40], 1));
    assert_eq!(batcher.admit()[0].keep, 39);
    assert_eq!(batcher.plan(LIMITS), [Chunk { slot: 0, from: 39, to: 40, output: true }]);
}

#[test]
fn running_slots_stay_consecutive() {
    let mut batcher = Batcher::new(6);
    for id in 0..4 {
        batcher.enqueue(job(id, id as u8, vec![id as u32; 4], 10));
    }
    batcher.admit();
    batcher.cancel(1);
    batcher.enqueue(job(9, 9, vec![9; 4], 10));
    assert_eq!(batcher.admit()[0].slot, 1, "the hole is filled before a new slot is opened");
}

#[test]
fn the_least_recently_used_prefix_is_evicted() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut batcher = Batcher::new(2);
        for id in [1, 2] {
            batcher.enqueue(job(id, id as u8, vec![id as u32; 20], 9));
        }
        step(&mut batcher, LIMITS);
        step(&mut batcher, LIMITS);
        let idle_longest = batcher.cancel(first).unwrap();
        batcher.cancel(second);
        batcher.enqueue(job(3, 3, vec![3; 40], 2));
        assert_eq!(batcher.admit()[0].slot, idle_longest);
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut batcher = Batcher::new(2);
    batcher.enqueue(job(1, 1, vec![1; 1_000], 1));
    batcher.enqueue(job(2, 2, vec![2; 20], 1));
    assert_eq!(step(&mut batcher, LIMITS), [2]);
}

#[test]
fn cancelling_frees_the_slot_at_once() {
    let mut batcher = Batcher::new(1);
    batcher.enqueue(job(1, 1, vec![1; 10], 100));
    batcher.enqueue(job(2, 2, vec![2; 10], 100));
    step(&mut batcher, LIMITS);
    assert_eq!(batcher.waiting().collect::<Vec<_>>(), [2]);
    assert_eq!(batcher.cancel(1), Some(0));
    assert_eq!(batcher.admit()[0].id, 2);
    assert_eq!(batcher.cancel(77), None);
}

#[derive(Clone, Debug)]
enum Act {
    Enqueue { client: u8, tokens: Vec<Token>, more: usize },
    Cancel(u64),
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0_u8..3, prop::collection::vec(0_u32..2, 1..90), 1_usize..6).prop_map(|(client, tokens, more)| Act::Enqueue {
            client,
            tokens,
            more
        }),
        (0_u64..12).prop_map(Act::Cancel),
        Just(Act::Step),
        Just(Act::Step),
        Just(Act::Step),
    ]
}

proptest! {
    /// Whatever comes, every plan is within its limits, continues each slot exactly where its cells end, never
    /// starves a decoding slot, and the batcher agrees with a cache that is kept beside it cell by cell.
    #[test]
    fn plans_are_legal_and_everything_ends(acts in prop::collection::vec(act(), 1..60), slots in 1_usize..5) {
        let limits = StepLimits { batch: 24, prefill: 24, prefill_amid_decoding: 7 };
        let mut batcher = Batcher::new(slots);
        let mut cells: Vec<(Vec<Token>, u8)> = vec![(Vec::new(), 0); slots];
        let mut jobs: std::collections::HashMap<u64, (Vec<Token>, u8)> = Default::default();
        let mut next = 0;
        let mut drain = vec![Act::Step; 2_000];
        drain.splice(0..0, acts);
        for act in drain {
            match act {
                Act::Enqueue { client, tokens, more } => {
                    jobs.insert(next, (tokens.clone(), client));
                    batcher.enqueue(job(next, client, tokens, more));
                    next += 1;
                }
                Act::Cancel(id) => { batcher.cancel(id); }
                Act::Step => {
                    for admission in batcher.admit() {
                        let (tokens, client) = &jobs[&admission.id];
                        let cell = &mut cells[admission.slot];
                        prop_assert!(admission.keep < tokens.len());
                        prop_assert!(admission.keep == 0 || cell.1 == *client, "cells of another client reused");
                        cell.0.truncate(admission.keep);
                        prop_assert_eq!(&cell.0[..], &tokens[..admission.keep]);
                        cell.1 = *client;
                    }
                    let plan = batcher.plan(limits);
                    let total: usize = plan.iter().map(|chunk| chunk.to - chunk.from).sum();
                    prop_assert!(total <= limits.batch);
                    prop_assert_eq!(plan.is_empty(), batcher.idle());
                    prop_assert!(plan.is_sorted_by_key(|chunk| chunk.slot));
                    for chunk in &plan {
                        let tokens = batcher.tokens(chunk.slot);
                        prop_assert_eq!(chunk.from, cells[chunk.slot].0.len(), "cell index = position");
                        prop_assert_eq!(chunk.output, chunk.to == tokens.len());
                        cells[chunk.slot].0.extend(&tokens[chunk.from..chunk.to]);
                    }
                    for slot in 0..slots {
                        if batcher.slots[slot].decodes() {
                            prop_assert!(plan.iter().any(|chunk| chunk.slot == slot && chunk.output));
                        }
                    }
                    batcher.computed(&plan);
                    for chunk in plan.iter().filter(|chunk| chunk.output) {
                        if batcher.push(chunk.slot, 1) { batcher.finish(chunk.slot); }
                    }
                }
            }
        }
        prop_assert!(batcher.idle(), "work is left over");
    }
}

#[test]
fn higher_tiers_go_first_and_nobody_starves() {
    let mut batcher = Batcher::new(1);
    batcher.enqueue(job(0, 1, vec![1, 2], 1));
    assert_eq!(batcher.admit().len(), 1);
    let of = |id, tier| Job { tier, ..job(id, 1, vec![1, 2], 1) };
    for (id, tier) in
        [(1, Tier::Flex), (2, Tier::Default), (3, Tier::Priority), (4, Tier::Default), (5, Tier::Priority)]
    {
        batcher.enqueue(of(id, tier));
    }
    assert_eq!(batcher.waiting().collect::<Vec<_>>(), [3, 5, 2, 4, 1]);
    for id in 10..30 {
        batcher.enqueue(of(id, Tier::Priority));
    }
    let order: Vec<u64> = batcher.waiting().collect();
    let place = |id| order.iter().position(|other| *other == id).unwrap();
    assert_eq!(place(1), 4 + PASSES_MAX as usize - 4, "passed by 2, 3, 4, 5 and four more");
    assert!(place(2) < place(1) && place(29) == order.len() - 1);
}
