//! Answers of the real model that are kept to a grammar.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{answer, chat, config, event, request, sampled, start, vocabulary};
use opengrid_engine::{Engine, EngineError, Event, GenerateRequest};
use opengrid_protocol::{Sampling, session::Finish};

const SCHEMA: &str = r#"start: %json {"type":"object","properties":{"city":{"type":"string","maxLength":20},
    "people":{"type":"integer","minimum":0,"maximum":99999999},"tags":{"type":"array","items":{"enum":["big","old"]},
    "maxItems":3}},"required":["city","people","tags"],"additionalProperties":false,
    "x-guidance":{"whitespace_flexible":false}}"#;

fn text(vocabulary: &opengrid_engine::Vocabulary, tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| vocabulary.piece(*token).to_vec()).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn answers_follow_the_schema_at_any_temperature_and_resume_anywhere() {
    let engine = start(config()).await;
    let vocabulary = vocabulary().await;
    let prompt = chat(&vocabulary, "Describe Paris as JSON.").await;
    let stop_tokens = vocabulary.info().end_tokens.clone();
    let constrained = |sampling: Sampling| GenerateRequest {
        stop_tokens: stop_tokens.clone(),
        grammar: Some(SCHEMA.to_owned()),
        ..request(prompt.clone(), 200, sampling)
    };
    for seed in 0..4 {
        let whole = constrained(Sampling { temperature: 1.0, ..sampled(seed) });
        let done = answer(&*engine, whole.clone()).await;
        let value: serde_json::Value = serde_json::from_str(&text(&vocabulary, &done.ids())).unwrap();
        assert!(value["city"].as_str().unwrap().chars().count() <= 20);
        assert!(value["people"].as_f64().unwrap() >= 0.0 && value["tags"].as_array().unwrap().len() <= 3);
        assert!(matches!(done.finish, Finish::Stop(token) if stop_tokens.contains(&token)), "{:?}", done.finish);
        let ids = done.ids();
        for cut in [1, ids.len() / 2, ids.len() - 1, ids.len()] {
            let resumed = GenerateRequest {
                client: [seed as u8 + 2; 32],
                tokens: [&prompt[..], &ids[..cut]].concat(),
                ..whole.clone()
            };
            let rest = answer(&*engine, resumed).await;
            assert_eq!([&ids[..cut], &rest.ids()[..]].concat(), ids, "seed {seed}, cut at {cut}");
            assert!(matches!(rest.finish, Finish::Stop(_)));
        }
    }
    let watched = GenerateRequest { top_logprobs: Some(3), ..constrained(Sampling::greedy()) };
    let done = answer(&*engine, watched).await;
    assert!(done.tokens.iter().all(|out| out.logprob.is_some_and(|p| p <= 0.0) && out.top.len() == 3));
    engine.shutdown().await;
    vocabulary.shutdown().await;
}

#[tokio::test]
async fn a_bad_grammar_is_the_requests_fault_and_nobody_elses() {
    let engine = start(config()).await;
    let bad = |grammar: &str| GenerateRequest {
        stop_tokens: vec![0],
        grammar: Some(grammar.to_owned()),
        ..request(vec![1, 2, 3], 50, sampled(1))
    };
    let mut beside = engine.generate(request(vec![5, 6, 7], 100, sampled(2))).await.unwrap();
    let hostile = [
        "start: nothing".to_owned(),
        format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("start: %json {}1{}", "[".repeat(30_000), "]".repeat(30_000)),
        "start: \"never\" <[4000000]>".to_owned(),
    ];
    for grammar in hostile {
        let mut generation = engine.generate(bad(&grammar)).await.unwrap();
        let ended = loop {
            match event(&mut generation).await {
                Event::Tokens(_) | Event::Queued(_) => {}
                other => break other,
            }
        };
        assert!(matches!(ended, Event::Failed(EngineError::Invalid(_))), "{ended:?}");
    }
    let refused = engine.generate(GenerateRequest { stop_tokens: vec![], ..bad("start: \"a\"") }).await;
    assert!(matches!(refused, Err(EngineError::Invalid(_))));
    let mut tokens = 0;
    while let Event::Tokens(more) = event(&mut beside).await {
        tokens += more.len();
    }
    assert_eq!(tokens, 100, "the answer beside went on");
    engine.shutdown().await;
}
