//! What callers rely on: resumption, distribution, tolerance of broken engines, and bits that never change silently.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;

use opengrid_protocol::{Sampling, session::Token};
use opengrid_sampler::{Sampler, logprobs};
use proptest::prelude::*;

/// Logits that depend on the text so far, as a model's do.
fn model(vocabulary: u32, context: &[Token]) -> Vec<f32> {
    let salt = context.iter().fold(17u32, |salt, token| salt.wrapping_mul(31).wrapping_add(*token));
    let noise =
        |token: u32| (token ^ salt).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519) >> 16;
    (0..vocabulary).map(|token| noise(token) as f32 / 6_553.6 - 5.0).collect()
}

/// Continues `answer` to `length` tokens with a sampler made from the tokens alone.
fn generate(sampling: &Sampling, prompt: &[Token], mut answer: Vec<Token>, length: usize) -> Vec<Token> {
    let mut sampler = Sampler::new(sampling, prompt, &answer);
    while answer.len() < length {
        let mut logits = model(97, &[prompt, &answer].concat());
        let token = sampler.pick(&mut logits, answer.len() as u32);
        sampler.accept(token);
        answer.push(token);
    }
    answer
}

prop_compose! {
    fn sampling()(
        seed: u64, choice: u32, temperature in 0f32..3.0, top_k in 0u32..100, top_p in 0f32..=1.0, min_p in 0f32..=0.3,
        presence_penalty in -2f32..2.0, frequency_penalty in -2f32..2.0, repeat_penalty in 0.5f32..2.0,
        repeat_last_n in 0u32..20, logit_bias in prop::collection::vec((0u32..120, -5f32..5.0), 0..5),
    ) -> Sampling {
        Sampling {
            seed, choice, temperature, top_k, top_p, min_p, presence_penalty, frequency_penalty, repeat_penalty,
            repeat_last_n, logit_bias,
        }
    }
}

proptest! {
    #[test]
    fn a_sampler_made_from_tokens_goes_on_as_the_one_that_drew_them(
        sampling in sampling(), prompt in prop::collection::vec(0u32..97, 1..30), cut in 0usize..40,
    ) {
        let undisturbed = generate(&sampling, &prompt, vec![], 40);
        prop_assert_eq!(generate(&sampling, &prompt, undisturbed[..cut].to_vec(), 40), undisturbed);
    }

    #[test]
    fn nothing_that_an_engine_or_a_peer_sends_panics(
        bits in prop::collection::vec(any::<u32>(), 0..300), seed: u64, step: u32, parameters: [u32; 6],
        top_k: u32, repeat_last_n: u32, bias in prop::collection::vec(any::<(u32, u32)>(), 0..4), top_n: u8,
    ) {
        let [temperature, top_p, min_p, presence_penalty, frequency_penalty, repeat_penalty] =
            parameters.map(f32::from_bits);
        let logit_bias = bias.into_iter().map(|(token, bias)| (token, f32::from_bits(bias))).collect();
        let sampling = Sampling {
            seed, choice: 0, temperature, top_k, top_p, min_p, presence_penalty, frequency_penalty, repeat_penalty,
            repeat_last_n, logit_bias,
        };
        let raw: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut sampler = Sampler::new(&sampling, &[1, u32::MAX], &[5]);
        let token = sampler.pick(&mut raw.clone(), step);
        prop_assert!((token as usize) < raw.len().max(1));
        let (chosen, top) = logprobs(&raw, token, top_n);
        prop_assert!(chosen.is_finite() && chosen <= 0.0 && top.iter().all(|(_, logprob)| logprob.is_finite()));
    }
}

/// A NaN or minus infinity is never drawn while a number is left.
#[test]
fn masked_tokens_are_never_drawn() {
    let sampling = Sampling { temperature: 100.0, ..Sampling::greedy() };
    let mut sampler = Sampler::new(&sampling, &[], &[]);
    for step in 0..2_000 {
        let token = sampler.pick(&mut [f32::NAN, 1.0, f32::NEG_INFINITY, -3.0, f32::NAN], step);
        assert!(token == 1 || token == 3, "{token}");
    }
}

/// Every frequency within 4 sigma of the softmax, over steps of one seed, over seeds, and over choices.
#[test]
fn frequencies_follow_the_softmax() {
    let weights = [0.5f64, 0.25, 0.15, 0.06, 0.03, 0.01];
    let logits = weights.map(|weight| (weight.ln() * 0.7 + 3.0) as f32);
    let draws = 40_000u32;
    for over in ["steps", "seeds", "choices"] {
        let mut counts = [0u32; 6];
        for i in 0..draws {
            let mut sampling = Sampling { temperature: 0.7, seed: 42, ..Sampling::greedy() };
            let mut step = 0;
            match over {
                "steps" => step = i,
                "seeds" => sampling.seed = u64::from(i),
                _ => sampling.choice = i,
            }
            counts[Sampler::new(&sampling, &[], &[]).pick(&mut logits.clone(), step) as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let (expected, sigma) = (weight * f64::from(draws), (f64::from(draws) * weight * (1.0 - weight)).sqrt());
            assert!((f64::from(*count) - expected).abs() < 4.0 * sigma, "over {over}: {count}, expected {expected}");
        }
    }
}

/// What `tests/golden.txt` holds: draws and log-probabilities over a vocabulary of 49,152, to the bit.
fn golden() -> String {
    let base = Sampling { seed: 0x0123_4567_89ab_cdef, temperature: 1.0, ..Sampling::greedy() };
    let cases = [
        ("greedy", Sampling::greedy()),
        ("temperature 1", base.clone()),
        ("temperature 0.8, choice 3", Sampling { temperature: 0.8, choice: 3, ..base.clone() }),
        ("top-k 40, top-p 0.95", Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, ..base.clone() }),
        ("top-p 0.5", Sampling { top_p: 0.5, ..base.clone() }),
        ("min-p 0.05", Sampling { min_p: 0.05, ..base.clone() }),
        (
            "penalties",
            Sampling {
                repeat_penalty: 1.3,
                presence_penalty: 0.7,
                frequency_penalty: 0.3,
                logit_bias: vec![(9, 2.5), (49_151, -1.0)],
                ..base
            },
        ),
    ];
    let mut text = String::from(
        "# Written by UPDATE_GOLDEN=1. A change here means that nodes of two versions draw different tokens.\n",
    );
    for (name, sampling) in cases {
        let mut answer: Vec<Token> = vec![];
        let mut sampler = Sampler::new(&sampling, &[1, 2, 3], &[]);
        let mut bits = String::new();
        for step in 0..24 {
            let mut logits = model(49_152, &answer);
            let (chosen, top) = logprobs(&logits, answer.last().copied().unwrap_or(0), 2);
            write!(bits, " {:08x}/{:08x}", chosen.to_bits(), top[1].1.to_bits()).unwrap();
            let token = sampler.pick(&mut logits, step);
            sampler.accept(token);
            answer.push(token);
        }
        writeln!(text, "{name}: {answer:?}\n  logprobs{bits}").unwrap();
    }
    text
}

#[test]
fn the_bits_are_those_of_the_golden_file() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, golden()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), golden());
}
