use opengrid_models::test_support::TinyModel;
use opengrid_protocol::{Sampling, session::Tier};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{llama_cpp::messages::Generate, sandbox::Devices};

const SLOTS: u16 = 2;
const CONTEXT: u32 = 256;
const FIT: budget::Fit = budget::Fit { slots: SLOTS, context_tokens: CONTEXT, kv_bytes: 0 };

fn options() -> ContextOptions {
    ContextOptions {
        slots: SLOTS,
        context_tokens: CONTEXT,
        threads: 1,
        batch: 64,
        outputs: 64,
        flash_attention: false,
        rows_out: false,
        is_stage: false,
    }
}

fn tiny() -> (TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
    let model = Model::load(&path, ModelOptions::default()).unwrap();
    (directory, model)
}

fn loaded(memory_available_bytes: u64) -> Load {
    Load {
        model_path: "unused".into(),
        mode: Mode::Exact,
        devices: Devices::None,
        gpu_layers: 0,
        threads: 1,
        slots: SLOTS,
        context_tokens: CONTEXT,
        kv_budget_bytes: 1 << 30,
        memory_available_bytes,
        batch_tokens: 64,
        prefill_chunk: None,
        model_identity: Vec::new(),
        known: None,
        stage: None,
        draft: None,
    }
}

fn answer(prompt: &[Token], sampling: Sampling, stop_tokens: Vec<Token>) -> Answer {
    let generate = Generate {
        id: 1,
        client: [0; 32],
        tokens: prompt.to_vec(),
        prompt_tokens: prompt.len() as u32,
        completion_tokens_max: 200,
        stop_tokens,
        sampling,
        top_logprobs: None,
        grammar: None,
        tier: Tier::Default,
    };
    Answer::new(&generate, None, CONTEXT as usize).map_err(|_| "it ends").unwrap().0
}

/// What the model itself draws behind `text`, whose answer begins at `prompt`.
fn drawn(model: &Model, text: &[Token], prompt: usize, sampling: &Sampling, count: usize) -> Vec<Token> {
    let mut context = Context::new(model, options()).unwrap();
    let mut sampler = opengrid_sampler::Sampler::new(sampling, &text[..prompt], &text[prompt..]);
    let mut tokens = text.to_vec();
    let mut cells = 0;
    while tokens.len() < text.len() + count {
        let batch: Vec<BatchToken> = (cells..tokens.len())
            .map(|at| BatchToken { token: tokens[at], position: at, slot: 0, output: at + 1 == tokens.len() })
            .collect();
        context.decode(&batch).unwrap();
        cells = tokens.len();
        let token = sampler.pick(context.logits(batch.len() - 1).unwrap(), (tokens.len() - prompt) as u32);
        sampler.accept(token);
        tokens.push(token);
    }
    tokens.split_off(text.len())
}

#[test]
fn it_draws_as_the_answer_does_and_follows_what_was_drawn_instead() {
    let (_directory, model) = tiny();
    let stage = Context::new(&model, options()).unwrap();
    let (draft, state) = DraftModel::beside(&stage, &loaded(1 << 34), &model, FIT, 0).unwrap();
    assert!(matches!(state, DraftState::Beside { bytes } if bytes > model.weight_bytes()));
    let mut draft = draft.unwrap();
    let prompt: Vec<Token> = (300..320).collect();
    let sampling =
        Sampling { seed: 5, temperature: 0.8, repeat_penalty: 1.2, presence_penalty: 0.5, ..Sampling::greedy() };
    let mut answer = answer(&prompt, sampling.clone(), Vec::new());
    let text = Text { tokens: &prompt, in_flight: &[], answer: &answer };
    assert_eq!(draft.at_hand(1, text), 0, "it has a prompt of 20 to catch up with");
    while draft.advance(1, text, 3).unwrap() {}
    assert_eq!(draft.at_hand(1, text), CONTEXT as usize - 20);
    let expected = drawn(&model, &prompt, 20, &sampling, 6);
    assert_eq!(draft.guesses(1, text, 6).unwrap(), expected);
    assert_eq!(draft.guesses(1, text, 2).unwrap(), &expected[..2]);
    // With guesses under way it goes on behind them.
    let in_flight = [301, 302];
    let behind = drawn(&model, &[&prompt[..], &in_flight].concat(), 20, &sampling, 3);
    assert_eq!(draft.guesses(1, Text { in_flight: &in_flight, ..text }, 3).unwrap(), behind);
    // Two of its guesses come true, then something else is drawn.
    let mut tokens = prompt.clone();
    for token in [expected[0], expected[1], 310] {
        answer = after(answer, token, model.vocabulary_size() as usize);
        tokens.push(token);
    }
    let text = Text { tokens: &tokens, in_flight: &[], answer: &answer };
    assert!(draft.at_hand(1, text) > 0, "it lacks little");
    assert_eq!(draft.guesses(1, text, 4).unwrap(), drawn(&model, &tokens, 20, &sampling, 4));
    draft.forget(1);
    assert_eq!(draft.at_hand(1, text), 0, "another client's session begins from nothing");
}

/// The answer with one token more: logits under which nothing else can be drawn.
fn after(mut answer: Answer, token: Token, vocabulary: usize) -> Answer {
    let mut logits = vec![f32::NEG_INFINITY; vocabulary];
    logits[token as usize] = 0.0;
    answer.draw(&mut logits, &mut Vec::new()).unwrap();
    answer
}

#[test]
fn it_stops_where_the_answer_would_and_at_its_contexts_end() {
    let (_directory, model) = tiny();
    let stage = Context::new(&model, options()).unwrap();
    let mut draft = DraftModel::beside(&stage, &loaded(1 << 34), &model, FIT, 0).unwrap().0.unwrap();
    let prompt: Vec<Token> = (300..310).collect();
    let free = drawn(&model, &prompt, 10, &Sampling::greedy(), 5);
    let end = free.iter().position(|token| *token == free[2]).unwrap();
    let stops = answer(&prompt, Sampling::greedy(), vec![free[2]]);
    let text = Text { tokens: &prompt, in_flight: &[], answer: &stops };
    assert_eq!(draft.guesses(0, text, 5).unwrap(), &free[..end]);
    assert!(!draft.advance(0, text, 5).unwrap(), "nothing is left to do");
    let long: Vec<Token> = (0..CONTEXT - 3).map(|at| 300 + at % 40).collect();
    let full = answer(&long, Sampling::greedy(), Vec::new());
    let text = Text { tokens: &long, in_flight: &[], answer: &full };
    assert_eq!(draft.guesses(0, text, 16).unwrap().len(), 3);
}

#[test]
fn without_room_it_is_left_out_with_a_reason() {
    let (_directory, model) = tiny();
    let stage = Context::new(&model, options()).unwrap();
    let kv_bytes = u64::from(SLOTS) * u64::from(CONTEXT) * model.kv_bytes_per_token();
    let needed = model.weight_bytes() + kv_bytes + WORKSPACE_BYTES;
    let beside = |memory| DraftModel::beside(&stage, &loaded(memory), &model, FIT, 1_000).unwrap();
    assert!(beside(needed + 1_000).0.is_some());
    let (draft, state) = beside(needed + 993);
    assert!(draft.is_none());
    assert_eq!(state, DraftState::LeftOut("7 bytes of memory are missing".to_owned()));
}

proptest! {
    /// Texts that grow and change at random: the line has the text, then guesses, and the cache is cut wherever it differs.
    #[test]
    fn lines_follow_texts(steps in prop::collection::vec((0_usize..4, prop::collection::vec(0_u32..3, 1..4)), 1..30)) {
        let (mut line, mut text, mut cache) = (Line::default(), Vec::new(), Vec::new());
        for (back, more) in steps {
            text.truncate(text.len() - back.min(text.len()));
            text.extend(&more);
            let known = text.len() - more.len().min(2);
            if let Some(keep) = line.follow(&text[..known], &text[known..]) {
                cache.truncate(keep);
            }
            prop_assert_eq!(&line.tokens[..line.known], &text[..]);
            prop_assert_eq!(line.known, text.len());
            prop_assert_eq!(line.cells, cache.len());
            prop_assert_eq!(&line.tokens[..line.cells], &cache[..]);
            // A part is computed; at the end something is guessed.
            let rows = line.lacks().min(back + 1);
            cache.extend_from_slice(&line.tokens[line.cells..line.cells + rows]);
            line.cells += rows;
            if rows > 0 && line.lacks() == 0 {
                line.tokens.push(more[0]);
            }
            prop_assert!(line.lacks() > 0, "a step always has something to compute");
        }
    }
}
