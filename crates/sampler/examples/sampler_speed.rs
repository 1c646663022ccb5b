//! Prints what a token costs, in microseconds, over a vocabulary of 49,152 with logits like a language model's.

use std::{hint::black_box, time::Instant};

use opengrid_protocol::Sampling;
use opengrid_sampler::{Sampler, logprobs};

const VOCABULARY: usize = 49_152;
const ROUNDS: u32 = 400;

/// Roughly normal with a few likely tokens, as a language model's are.
fn logits(spread: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..VOCABULARY).map(|_| ((0..6).map(|_| uniform()).sum::<f32>() - 3.0) * 1.4 * spread).collect()
}

fn time(name: &str, mut work: impl FnMut(u32)) {
    let mut best_us = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        (0..ROUNDS / 5).for_each(&mut work);
        best_us = best_us.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS / 5));
    }
    println!("{name:32} {best_us:8.1} us/token");
}

fn main() {
    let seeded = Sampling { seed: 7, temperature: 1.0, ..Sampling::greedy() };
    let cases = [
        ("greedy", 3.0, Sampling::greedy()),
        ("T=1, all tokens", 3.0, seeded.clone()),
        ("T=1, all tokens, flat logits", 0.0, seeded.clone()),
        ("T=0.8, top-k 40, top-p 0.95", 3.0, Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, ..seeded.clone() }),
        ("T=1, top-p 0.95, peaked", 4.5, Sampling { top_p: 0.95, ..seeded.clone() }),
        ("T=1, top-p 0.95", 3.0, Sampling { top_p: 0.95, ..seeded.clone() }),
        ("T=1, min-p 0.05", 3.0, Sampling { min_p: 0.05, ..seeded.clone() }),
        ("T=1, all penalties", 3.0, Sampling { repeat_penalty: 1.1, presence_penalty: 0.5, ..seeded }),
    ];
    for (name, spread, sampling) in cases {
        let raw = logits(spread);
        let prompt: Vec<u32> = (0..1_000).collect();
        let mut sampler = Sampler::new(&sampling, &prompt, &prompt);
        let mut buffer = raw.clone();
        time(name, |step| {
            buffer.copy_from_slice(&raw);
            black_box(sampler.pick(&mut buffer, step));
        });
    }
    let raw = logits(3.0);
    time("logprobs, top 0", |token| {
        black_box(logprobs(&raw, token, 0));
    });
    time("logprobs, top 20", |token| {
        black_box(logprobs(&raw, token, 20));
    });
}
