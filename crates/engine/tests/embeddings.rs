//! The embedding model through a real child process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{path::PathBuf, sync::Arc, time::Duration};

use common::{PATIENCE, program, request, sampled};
use opengrid_engine::{EmbedRequest, EmbeddedConfig, EmbeddedEngine, Engine, EngineError, Vocabulary};
use opengrid_protocol::{
    beacon::{Class, Features},
    limits::EMBED_TEXTS_MAX,
    session::Token,
};
use tokio::time::timeout;

const CONTEXT: u32 = 512;
const WIDTH: usize = 384;

fn model() -> PathBuf {
    let path = std::env::var_os("OPENGRID_TEST_EMBEDDING_MODEL")
        .expect("set OPENGRID_TEST_EMBEDDING_MODEL to the path of all-MiniLM-L6-v2's GGUF (./test does)");
    PathBuf::from(path)
}

async fn start() -> Arc<EmbeddedEngine> {
    common::start(EmbeddedConfig { threads: 1, ..EmbeddedConfig::new(program(), model()) }).await
}

async fn tokens(texts: &[&str]) -> Vec<Vec<Token>> {
    let vocabulary = Vocabulary::start(program(), model()).await.unwrap();
    let mut all = Vec::new();
    for text in texts {
        all.push(vocabulary.tokenize(text, true, false).await.unwrap());
    }
    vocabulary.shutdown().await;
    all
}

async fn embed(engine: &EmbeddedEngine, texts: Vec<Vec<Token>>) -> Result<Vec<Vec<f32>>, EngineError> {
    timeout(PATIENCE, engine.embed(EmbedRequest { texts })).await.expect("vectors in time")
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn texts_become_vectors_that_know_what_is_alike() {
    let engine = start().await;
    let capabilities = engine.capabilities();
    assert_eq!((capabilities.features, capabilities.context_tokens), (Features::EMBED, CONTEXT));
    assert_eq!(capabilities.class, Class::Approximate);
    assert!(capabilities.prefill_tokens_per_s > 10.0);
    let texts = tokens(&["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]).await;
    assert!(texts.iter().all(|text| text[0] == 101 && *text.last().unwrap() == 102), "[CLS] and [SEP]: {texts:?}");
    let vectors = embed(&engine, texts).await.unwrap();
    assert!(vectors.iter().all(|vector| vector.len() == WIDTH && (cosine(vector, vector) - 1.0).abs() < 1e-5));
    let (alike, different) = (cosine(&vectors[0], &vectors[1]), cosine(&vectors[0], &vectors[2]));
    assert!(alike > 0.5 && different < 0.2, "{alike} {different}");
    engine.shutdown().await;
}

#[tokio::test]
async fn company_does_not_change_a_vector_and_requests_mix() {
    let engine = start().await;
    let text =
        |seed: u32, length: u32| -> Vec<Token> { (0..length).map(|at| 1_000 + (seed * 31 + at) % 20_000).collect() };
    let lists: Vec<Vec<Vec<Token>>> = (0..12)
        .map(|list| (0..1 + list % 5).map(|at| text(list * 7 + at, 2 + (list * 37 + at * 101) % 300)).collect())
        .collect();
    let together = futures::future::join_all(lists.iter().map(|list| embed(&engine, list.clone()))).await;
    for (list, vectors) in lists.iter().zip(together) {
        for (text, vector) in list.iter().zip(vectors.unwrap()) {
            let alone = embed(&engine, vec![text.clone()]).await.unwrap();
            let cosine = cosine(&alone[0], &vector);
            assert!(cosine > 0.99999, "{cosine} for {} tokens", text.len());
        }
    }
    assert_eq!(engine.load().slots_busy + engine.load().queued, 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn the_whole_context_is_taken_and_more_is_refused() {
    let engine = start().await;
    let whole = embed(&engine, vec![vec![2_000; CONTEXT as usize]; EMBED_TEXTS_MAX]).await.unwrap();
    assert_eq!(whole.len(), EMBED_TEXTS_MAX);
    let refused = embed(&engine, vec![vec![2_000; CONTEXT as usize + 1]]).await;
    assert_eq!(refused, Err(EngineError::ContextTooSmall { needed: CONTEXT + 1, context_tokens: CONTEXT }));
    for bad in [vec![], vec![vec![]], vec![vec![1]; EMBED_TEXTS_MAX + 1], vec![vec![30_522]]] {
        assert!(matches!(embed(&engine, bad).await, Err(EngineError::Invalid(_))));
    }
    let generated = engine.generate(request(vec![1, 2], 5, sampled(1))).await;
    assert!(matches!(generated.err(), Some(EngineError::Invalid(why)) if why.contains("no text")));
    engine.shutdown().await;
}

#[tokio::test]
async fn dropped_requests_leave_and_a_dead_child_comes_back() {
    let engine = start().await;
    let long = EmbedRequest { texts: vec![vec![2_000; CONTEXT as usize]; EMBED_TEXTS_MAX] };
    for _ in 0..4 {
        let dropped = timeout(Duration::from_millis(20), engine.embed(long.clone())).await;
        assert!(dropped.is_err());
    }
    assert_eq!(engine.load().slots_busy + engine.load().queued, 0, "nobody waits for them");
    let (interrupted, ()) = tokio::join!(embed(&engine, long.texts.clone()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let pid = engine.child_pid().expect("a child").to_string();
        assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    });
    assert_eq!(interrupted, Err(EngineError::Died));
    for _ in 0..200 {
        if engine.load().healthy {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(embed(&engine, vec![vec![101, 102]]).await.unwrap()[0].len(), WIDTH);
    engine.shutdown().await;
}
