//! The embedded engine with the real model: life, death, limits, sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::*;
use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Engine, EngineError, Event, GenerateRequest, Load};
use opengrid_protocol::{Sampling, beacon::Class, session::Finish};
use tokio::time::sleep;

fn signal(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn the_real_model_answers_exactly_and_stops_by_itself() {
    let engine = start(config()).await;
    let capabilities = engine.capabilities();
    assert!(matches!(capabilities.class, Class::Exact(_)), "{capabilities:?}");
    assert_eq!((capabilities.context_tokens, capabilities.slots), (1_024, 4));
    assert!(capabilities.decode_tokens_per_s > 1.0 && capabilities.prefill_tokens_per_s > 1.0);
    assert!(capabilities.description.contains("exact"));

    let vocabulary = vocabulary().await;
    let prompt = chat(&vocabulary, "What is the capital of France? Answer in one sentence.").await;
    let stop_tokens = vocabulary.info().end_tokens.clone();
    let request = GenerateRequest { stop_tokens: stop_tokens.clone(), ..request(prompt, 100, Sampling::greedy()) };
    let done = answer(&*engine, request).await;
    let text: Vec<u8> = done.ids().iter().flat_map(|token| vocabulary.piece(*token).to_vec()).collect();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert!(matches!(done.finish, Finish::Stop(token) if stop_tokens.contains(&token)), "{:?}", done.finish);
    assert_eq!(done.usage.generated_tokens as usize, done.tokens.len());
    engine.shutdown().await;
    vocabulary.shutdown().await;
}

#[tokio::test]
async fn logprobs_are_the_models_own() {
    let engine = start(config()).await;
    let request = GenerateRequest { top_logprobs: Some(5), ..request(vec![1, 2, 3, 4], 8, Sampling::greedy()) };
    for out in answer(&*engine, request).await.tokens {
        let logprob = out.logprob.unwrap();
        assert!(logprob.is_finite() && logprob <= 0.0);
        assert_eq!(out.top.len(), 5);
        assert_eq!(out.top[0], (out.token, logprob), "greedy takes the most probable token");
        assert!(out.top.is_sorted_by(|a, b| a.1 >= b.1));
        assert!(out.top.iter().map(|top| top.1.exp()).sum::<f32>() <= 1.001);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_killed_child_is_an_ordinary_failover() {
    let engine = start(config()).await;
    let full = answer(&*engine, request(vec![5, 6, 7], 60, sampled(3))).await.ids();
    for how in ["-ABRT", "-KILL"] {
        let pid = engine.child_pid().unwrap();
        let mut generation = engine.generate(request(vec![5, 6, 7], 60, sampled(3))).await.unwrap();
        assert!(matches!(event(&mut generation).await, Event::Tokens(_)));
        signal(pid, how);
        let died = loop {
            match event(&mut generation).await {
                Event::Tokens(_) => {}
                other => break other,
            }
        };
        assert_eq!(died, Event::Failed(EngineError::Died), "{how}");
        let killed = Instant::now();
        assert_eq!(engine.generate(request(vec![5], 1, sampled(3))).await.err(), Some(EngineError::Died));
        while !engine.load().healthy {
            assert!(killed.elapsed() < Duration::from_secs(2), "not healthy again within 2 s of {how}");
            sleep(Duration::from_millis(10)).await;
        }
        assert!(!alive(pid));
        assert_ne!(engine.child_pid(), Some(pid));
        assert_eq!(answer(&*engine, request(vec![5, 6, 7], 60, sampled(3))).await.ids(), full);
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn no_process_outlives_its_engine() {
    let engine = start(config()).await;
    let pid = engine.child_pid().unwrap();
    let mut running = engine.generate(request(vec![5], 500, sampled(3))).await.unwrap();
    assert!(matches!(event(&mut running).await, Event::Tokens(_)));
    engine.shutdown().await;
    assert!(!alive(pid), "shutdown returns when the process is gone");
    let last = loop {
        match event(&mut running).await {
            Event::Tokens(_) => {}
            other => break other,
        }
    };
    assert_eq!(last, Event::Failed(EngineError::ShuttingDown));
    assert_eq!(engine.generate(request(vec![5], 1, sampled(3))).await.err(), Some(EngineError::ShuttingDown));

    let dropped = start(config()).await;
    let pid = dropped.child_pid().unwrap();
    drop(dropped);
    let since = Instant::now();
    while alive(pid) {
        assert!(since.elapsed() < Duration::from_secs(3), "the child of a dropped engine lives on");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Set in the process that [`a_killed_parent_leaves_no_child`] kills: this test program, started once more.
const PARENT: &str = "OPENGRID_TEST_PARENT";

#[tokio::test]
async fn the_parent_that_is_killed() {
    if std::env::var_os(PARENT).is_none() {
        return;
    }
    let engine = start(config()).await;
    let mut running = engine.generate(request(vec![5], 900, sampled(3))).await.unwrap();
    assert!(matches!(event(&mut running).await, Event::Tokens(_)));
    eprintln!("child {}", engine.child_pid().unwrap());
    loop {
        event(&mut running).await;
    }
}

/// A node that is killed cannot clean up: the end of the pipe must do it, in the middle of an answer too.
#[tokio::test]
async fn a_killed_parent_leaves_no_child() {
    use std::io::{BufRead, BufReader};
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["the_parent_that_is_killed", "--exact", "--nocapture"])
        .env(PARENT, "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stderr.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().strip_prefix("child ").map(|pid| pid.parse::<u32>().unwrap()));
    let pid = pid.expect("the parent tells its child");
    assert!(alive(pid), "it computes");
    parent.kill().unwrap();
    let killed = Instant::now();
    parent.wait().unwrap();
    while alive(pid) {
        assert!(killed.elapsed() < Duration::from_secs(2), "the child outlives its parent");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Stopped by a signal it answers no ping and ends by no request: only SIGKILL helps.
#[tokio::test]
async fn a_hung_child_is_killed_and_replaced() {
    let engine = start(config()).await;
    let full = answer(&*engine, request(vec![5, 6, 7], 20, sampled(3))).await.ids();
    let pid = engine.child_pid().unwrap();
    let generation = engine.generate(request(vec![5, 6, 7], 900, sampled(3))).await.unwrap();
    let prefill = engine.capabilities().prefill_tokens_per_s;
    signal(pid, "-STOP");
    let hung = Instant::now();
    let (mut generation, mut last) = (generation, None);
    while let Some(event) = generation.events.recv().await {
        last = Some(event);
    }
    assert_eq!(last, Some(Event::Failed(EngineError::Died)));
    // 10 s without a pong, or what four of the largest steps take; 2 s between looks, and a pong may have come just
    // before.
    let steps = Duration::from_secs_f32(4.0 * 512.0 / prefill).max(Duration::from_secs(10));
    assert!(hung.elapsed() < steps + Duration::from_secs(6), "{:?}", hung.elapsed());
    let killed = Instant::now();
    while !engine.load().healthy {
        assert!(killed.elapsed() < Duration::from_secs(10), "not replaced");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(pid), "the hung process is gone");
    assert_eq!(answer(&*engine, request(vec![5, 6, 7], 20, sampled(3))).await.ids(), full);
    engine.shutdown().await;
}

#[tokio::test]
async fn speeds_follow_what_is_really_done() {
    let engine = start(config()).await;
    let told = |engine: &EmbeddedEngine| {
        let capabilities = engine.capabilities();
        (capabilities.decode_tokens_per_s, capabilities.prefill_tokens_per_s)
    };
    let first = told(&engine);
    let prompt: Vec<u32> = (0..300).map(|i| 100 + i * 7).collect();
    answer(&*engine, GenerateRequest { client: [9; 32], ..request(prompt, 40, sampled(1)) }).await;
    let since = Instant::now();
    let mut then = told(&engine);
    while then.0 == first.0 || then.1 == first.1 {
        assert!(since.elapsed() < Duration::from_secs(5), "{first:?} {then:?}");
        sleep(Duration::from_millis(10)).await;
        then = told(&engine);
    }
    assert!(then.0 > 1.0 && then.1 > then.0, "prefill is quicker than decoding: {then:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn the_queue_is_bounded_and_cancelling_frees_the_slot() {
    let engine = start(EmbeddedConfig { slots: 1, queue_max: 1, ..config() }).await;
    let mut running = engine.generate(request(vec![1, 2], 900, sampled(1))).await.unwrap();
    assert!(matches!(event(&mut running).await, Event::Tokens(_)));
    let mut waiting = engine.generate(request(vec![3, 4], 5, sampled(1))).await.unwrap();
    assert_eq!(event(&mut waiting).await, Event::Queued(1));
    assert_eq!(engine.load(), Load { slots_busy: 1, queued: 1, healthy: true });
    assert_eq!(engine.generate(request(vec![3], 5, sampled(1))).await.err(), Some(EngineError::Busy));
    let cancelled = Instant::now();
    drop(running);
    assert_eq!(event(&mut waiting).await, Event::Queued(0));
    assert!(matches!(event(&mut waiting).await, Event::Tokens(_)));
    assert!(cancelled.elapsed() < Duration::from_millis(500), "{:?}", cancelled.elapsed());
    assert_eq!(done(waiting).await.finish, Finish::Length);
    engine.shutdown().await;
}

#[tokio::test]
async fn contexts_end_and_bad_requests_are_refused() {
    let engine = start(EmbeddedConfig { context_tokens: 256, slots: 2, ..config() }).await;
    let done = answer(&*engine, request(vec![9; 250], 100, sampled(1))).await;
    assert_eq!((done.tokens.len(), done.finish), (6, Finish::Length), "the context holds 256 tokens");
    let full = GenerateRequest { prompt_tokens: 2, ..request(vec![9; 5], 3, sampled(1)) };
    let nothing = answer(&*engine, full).await;
    assert_eq!((nothing.tokens.len(), nothing.finish), (0, Finish::Length), "the answer was complete already");

    let refusal = async |request| engine.generate(request).await.err().unwrap();
    let too_long = refusal(request(vec![9; 256], 1, sampled(1))).await;
    assert_eq!(too_long, EngineError::ContextTooSmall { needed: 257, context_tokens: 256 });
    let bad = [
        request(vec![], 1, sampled(1)),
        request(vec![49_152], 1, sampled(1)),
        GenerateRequest { prompt_tokens: 0, ..request(vec![1], 1, sampled(1)) },
        GenerateRequest { prompt_tokens: 2, ..request(vec![1], 1, sampled(1)) },
        GenerateRequest { top_logprobs: Some(21), ..request(vec![1], 1, sampled(1)) },
        request(vec![1], 1, Sampling { temperature: f32::NAN, ..sampled(1) }),
    ];
    for request in bad {
        assert!(matches!(refusal(request).await, EngineError::Invalid(_)));
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn the_child_can_neither_read_write_talk_nor_start_programs() {
    let engine = start(config()).await;
    let probe = engine.probe_sandbox().await.unwrap();
    assert!(probe.read_other_file.is_some(), "{probe:?}: {}", engine.capabilities().description);
    assert!(probe.write_file.is_some(), "{probe:?}");
    // Landlock says EACCES: this is the filter's EPERM, which holds where Landlock is missing.
    let refused_rename = probe.rename_file.as_deref().unwrap_or_default();
    assert!(refused_rename.contains("os error 1)"), "{probe:?}");
    assert!(probe.open_socket.is_some(), "{probe:?}");
    assert!(probe.start_process.is_some(), "{probe:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn files_that_are_no_model_are_refused_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let refusal =
        async |path: std::path::PathBuf| match EmbeddedEngine::start(EmbeddedConfig { model_path: path, ..config() })
            .await
        {
            Err(EngineError::Load(why)) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("loaded"),
        };
    assert!(refusal(directory.path().join("missing.gguf")).await.contains("missing.gguf"));
    assert!(refusal(directory.path().to_owned()).await.contains("no file"));
    let garbage = directory.path().join("garbage.gguf");
    std::fs::write(&garbage, [7; 4_096]).unwrap();
    assert!(!refusal(garbage).await.is_empty());
    let cut = directory.path().join("cut.gguf");
    std::fs::write(&cut, &std::fs::read(model()).unwrap()[..3_000_000]).unwrap();
    assert!(!refusal(cut).await.is_empty());
}

#[tokio::test]
async fn a_budget_too_small_says_what_is_missing_and_a_small_one_shrinks() {
    let tiny = EmbeddedConfig { kv_budget_bytes: 1_000, ..config() };
    let Err(EngineError::Load(why)) = EmbeddedEngine::start(tiny).await else { panic!("loaded") };
    // 30 layers x 3 KV heads x (64 + 64) x 2 bytes = 23,040 bytes a token; 256 tokens at least.
    assert!(why.contains(&(256 * 23_040_u64 - 1_000).to_string()), "{why}");
    let engine = start(EmbeddedConfig { kv_budget_bytes: 2 * 512 * 23_040, context_tokens: 512, ..config() }).await;
    assert_eq!((engine.capabilities().slots, engine.capabilities().context_tokens), (2, 512));
    assert!(engine.capabilities().memory_bytes > 90_000_000 + 2 * 512 * 23_040 - 1);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_second_start_takes_the_measurements_from_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { cache_dir: Some(directory.path().to_owned()), ..config() };
    let first = start(config.clone()).await;
    let kept: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let second = start(config).await;
    assert_eq!(first.capabilities(), second.capabilities(), "speeds to the bit: they were not measured again");
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test]
async fn a_hostile_mix_of_requests_and_cancels_leaves_nothing_behind() {
    let engine = start(EmbeddedConfig { slots: 2, queue_max: 6, ..config() }).await;
    let mut kept = Vec::new();
    for round in 0..60_u32 {
        let generation = engine.generate(request(vec![round % 7 + 1; 1 + round as usize % 90], 4, sampled(1))).await;
        match generation {
            Ok(generation) if round % 3 == 0 => kept.push(generation),
            Ok(generation) => drop(generation),
            Err(error) => assert_eq!(error, EngineError::Busy),
        }
        if kept.len() > 3 {
            assert_eq!(done(kept.remove(0)).await.tokens.len(), 4);
        }
    }
    for generation in kept {
        assert_eq!(done(generation).await.tokens.len(), 4);
    }
    assert_eq!(engine.load(), Load { slots_busy: 0, queued: 0, healthy: true });
    engine.shutdown().await;
}
