//! The real model, and how the tests talk to engines.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Engine, Event, GenerateRequest, Generation, Vocabulary};
use opengrid_protocol::{
    Sampling,
    session::{Finish, Tier, Token, TokenOut, Usage},
};
use tokio::time::timeout;

pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_opengrid-engine-child"))
}

pub fn model() -> PathBuf {
    let path = std::env::var_os("OPENGRID_TEST_MODEL")
        .expect("set OPENGRID_TEST_MODEL to the path of SmolLM2-135M-Instruct.Q4_1.gguf (./test does)");
    PathBuf::from(path)
}

/// One thread: tests share the machine, and ggml's threads wait for each other by spinning.
pub fn config() -> EmbeddedConfig {
    EmbeddedConfig { threads: 1, context_tokens: 1_024, ..EmbeddedConfig::new(program(), model()) }
}

pub async fn start(config: EmbeddedConfig) -> Arc<EmbeddedEngine> {
    timeout(PATIENCE, EmbeddedEngine::start(config)).await.expect("the engine starts in time").expect("it starts")
}

pub async fn vocabulary() -> Vocabulary {
    Vocabulary::start(program(), model()).await.unwrap()
}

pub async fn chat(vocabulary: &Vocabulary, text: &str) -> Vec<Token> {
    let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    vocabulary.tokenize(&text, true, true).await.unwrap()
}

pub fn sampled(seed: u64) -> Sampling {
    Sampling { seed, temperature: 0.8, ..Sampling::greedy() }
}

pub fn request(tokens: Vec<Token>, max: u32, sampling: Sampling) -> GenerateRequest {
    GenerateRequest {
        client: [1; 32],
        prompt_tokens: tokens.len() as u32,
        tokens,
        completion_tokens_max: max,
        stop_tokens: Vec::new(),
        sampling,
        top_logprobs: None,
        grammar: None,
        tier: Tier::Default,
    }
}

#[derive(Debug, PartialEq)]
pub struct Done {
    pub tokens: Vec<TokenOut>,
    pub finish: Finish,
    pub usage: Usage,
}

impl Done {
    pub fn ids(&self) -> Vec<Token> {
        self.tokens.iter().map(|out| out.token).collect()
    }
}

pub async fn event(generation: &mut Generation) -> Event {
    timeout(PATIENCE, generation.events.recv()).await.expect("an event in time").expect("an event")
}

pub async fn done(mut generation: Generation) -> Done {
    let mut tokens = Vec::new();
    loop {
        match event(&mut generation).await {
            Event::Tokens(more) => tokens.extend(more),
            Event::Finished(finish, usage) => return Done { tokens, finish, usage },
            Event::Queued(_) => {}
            Event::Failed(error) => panic!("failed: {error}"),
        }
    }
}

pub async fn answer(engine: &dyn Engine, request: GenerateRequest) -> Done {
    done(engine.generate(request).await.expect("accepted")).await
}
