//! Batch invariance end to end: the same seed and prompt give the same tokens and the same probabilities to the bit,
//! whatever else the engine does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Engine, GenerateRequest};
use opengrid_protocol::{beacon::Class, session::TokenOut};

const QUESTIONS: [&str; 4] = [
    "Write a short story about a fox who learns to sail.",
    "Explain how a bicycle stays upright, in simple words.",
    "List five unusual fruits and describe their taste.",
    "Why is the sky blue at noon and red in the evening?",
];
const ANSWER: u32 = 40;

/// With probabilities, so that a single differing bit of a logit shows.
fn watched(tokens: Vec<u32>, seed: u64) -> GenerateRequest {
    GenerateRequest { top_logprobs: Some(3), ..request(tokens, ANSWER, sampled(seed)) }
}

async fn prompts() -> Vec<Vec<u32>> {
    let vocabulary = vocabulary().await;
    let mut prompts = Vec::new();
    for question in QUESTIONS {
        prompts.push(chat(&vocabulary, question).await);
    }
    vocabulary.shutdown().await;
    prompts
}

async fn alone(engine: &EmbeddedEngine, prompts: &[Vec<u32>]) -> Vec<Vec<TokenOut>> {
    let mut answers = Vec::new();
    for (seed, prompt) in prompts.iter().enumerate() {
        let request = GenerateRequest { client: [seed as u8; 32], ..watched(prompt.clone(), seed as u64) };
        answers.push(answer(engine, request).await.tokens);
    }
    answers
}

async fn together(engine: &EmbeddedEngine, prompts: &[Vec<u32>]) -> Vec<Vec<TokenOut>> {
    let mut running = Vec::new();
    for (seed, prompt) in prompts.iter().enumerate() {
        let client = [100 + seed as u8; 32];
        running
            .push(engine.generate(GenerateRequest { client, ..watched(prompt.clone(), seed as u64) }).await.unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(37)).await;
    }
    let mut answers = Vec::new();
    for generation in running {
        answers.push(done(generation).await.tokens);
    }
    answers
}

#[tokio::test]
async fn threads_load_and_chunks_change_nothing() {
    let prompts = prompts().await;
    let mut known = None;
    for (threads, prefill_chunk) in [(2, None), (1, Some(5)), (2, Some(17))] {
        let engine = start(EmbeddedConfig { threads, prefill_chunk, ..config() }).await;
        let class = engine.capabilities().class;
        assert!(matches!(class, Class::Exact(_)));
        let answers = alone(&engine, &prompts).await;
        assert!(answers.iter().all(|answer| answer.len() == ANSWER as usize));
        let (known_class, known_answers) = known.get_or_insert_with(|| (class, answers.clone()));
        assert_eq!(class, *known_class, "one class whatever the threads");
        assert_eq!(answers, *known_answers, "{threads} threads, chunks of {prefill_chunk:?}, alone");
        assert_eq!(together(&engine, &prompts).await, *known_answers, "{threads} threads, {prefill_chunk:?}, together");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn an_answer_continues_from_any_cut_on_another_engine() {
    let prompts = prompts().await;
    let first = start(config()).await;
    let full = answer(&*first, watched(prompts[0].clone(), 9)).await.tokens;
    first.shutdown().await;
    let second = start(EmbeddedConfig { threads: 2, ..config() }).await;
    for cut in [1, 7, 8, 20, 39] {
        let so_far = full[..cut].iter().map(|out| out.token);
        let tokens = prompts[0].iter().copied().chain(so_far).collect();
        let resumed = GenerateRequest { prompt_tokens: prompts[0].len() as u32, ..watched(tokens, 9) };
        // Another client each time, so that nothing is reused and the prefill really runs.
        let resumed = GenerateRequest { client: [cut as u8; 32], ..resumed };
        assert_eq!(answer(&*second, resumed).await.tokens, full[cut..], "cut at {cut}");
    }
    second.shutdown().await;
}

/// A deterministic mixture of new prompts, common prefixes, resumed answers, cancels and evictions on two slots: every
/// answer equals the one of a fresh engine to the bit.
#[tokio::test]
async fn reuse_truncation_and_eviction_change_nothing() {
    let fresh = start(EmbeddedConfig { slots: 1, ..config() }).await;
    let used = start(EmbeddedConfig { slots: 2, prefill_chunk: Some(11), ..config() }).await;
    let mut dice = 12_345_u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let base: Vec<u32> = (0..160).map(|i| 200 + i * 37 % 4_000).collect();
    let mut reused = 0;
    for round in 0..16_u64 {
        let mut tokens = base[..20 + roll(140) as usize].to_vec();
        if roll(3) == 0 {
            let at = roll(tokens.len() as u64) as usize;
            tokens[at] = 300 + roll(1_000) as u32;
        }
        let client = [roll(2) as u8; 32];
        let wanted =
            GenerateRequest { top_logprobs: Some(4), completion_tokens_max: 3, ..request(tokens, 3, sampled(round)) };
        if roll(4) == 0 {
            let mut disturbing = used.generate(GenerateRequest { client: [7; 32], ..wanted.clone() }).await.unwrap();
            if roll(2) == 0 {
                event(&mut disturbing).await;
            }
        }
        // A client of its own each round: the fresh engine reuses nothing.
        let expected = answer(&*fresh, GenerateRequest { client: [50 + round as u8; 32], ..wanted.clone() }).await;
        let got = answer(&*used, GenerateRequest { client, ..wanted }).await;
        assert_eq!(expected.usage.cached_tokens, 0);
        assert_eq!(got.tokens, expected.tokens, "round {round}, {} tokens reused", got.usage.cached_tokens);
        assert_eq!(
            got.usage.cached_tokens + got.usage.prefilled_tokens,
            expected.usage.prefilled_tokens,
            "what is reused is not computed"
        );
        reused += u32::from(got.usage.cached_tokens > 0);
    }
    assert!(reused >= 4, "only {reused} of 16 rounds reused anything: the test proves little");
    fresh.shutdown().await;
    used.shutdown().await;
}
