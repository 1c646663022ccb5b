//! Prints what an engine does on this machine: `engine_speed MODEL.gguf [THREADS] [exact|fast]`.
//!
//! Time to first token and prefill of a 512-token prompt, tokens per second of 1 and 4 streams, start-up time. The child
//! is `opengrid-engine-child` beside this example's directory (`cargo build --release -p opengrid-engine --bins`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::PathBuf, sync::Arc, time::Instant};

use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Engine, Event, GenerateRequest, Mode};
use opengrid_protocol::Sampling;

const ANSWER: u32 = 128;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().expect("engine_speed MODEL.gguf [THREADS] [exact|fast]"));
    let threads = args.next().and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let modes = match args.next().as_deref() {
        Some("exact") => vec![Mode::Exact],
        Some("fast") => vec![Mode::Fast],
        _ => vec![Mode::Exact, Mode::Fast],
    };
    let here = std::env::current_exe().unwrap();
    let program = here.parent().unwrap().with_file_name("opengrid-engine-child");
    for mode in modes {
        let started = Instant::now();
        let config = EmbeddedConfig { threads, mode, ..EmbeddedConfig::new(program.clone(), model.clone()) };
        let directory = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig { cache_dir: Some(directory.path().to_owned()), ..config };
        EmbeddedEngine::start(config.clone()).await.unwrap().shutdown().await;
        let again = Instant::now();
        let engine = EmbeddedEngine::start(config).await.unwrap();
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", engine.child_pid().unwrap())).unwrap_or_default();
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
        println!("{mode:?}: second start {:.2} s; {resident}", again.elapsed().as_secs_f32());
        println!("{mode:?}: start {:.2} s; {:#?}", started.elapsed().as_secs_f32(), engine.capabilities());
        let prompt: Vec<u32> = (0..512).map(|i| 100 + i * 7).collect();
        let (first, _) = stream(&engine, 1, prompt, 1).await;
        println!("{mode:?}: prefill 512: {:.0} tok/s", 512.0 / first);
        for streams in [1, 4] {
            let started = Instant::now();
            let runs = (0..streams).map(|i| stream(&engine, 10 + i, vec![500 + u32::from(i), 7, 9], ANSWER));
            let runs = futures::future::join_all(runs).await;
            let total = started.elapsed().as_secs_f32();
            let tokens = f32::from(streams) * ANSWER as f32;
            println!(
                "{mode:?}: {streams} streams: {:.1} tok/s together, first token {:.1} ms",
                tokens / total,
                runs[0].0 * 1e3
            );
        }
        engine.shutdown().await;
    }
}

/// Seconds to the first token and to the last.
async fn stream(engine: &Arc<EmbeddedEngine>, client: u8, tokens: Vec<u32>, max: u32) -> (f32, f32) {
    let started = Instant::now();
    let request = GenerateRequest {
        client: [client; 32],
        prompt_tokens: tokens.len() as u32,
        tokens,
        completion_tokens_max: max,
        stop_tokens: Vec::new(),
        sampling: Sampling { temperature: 1.0, seed: 1, ..Sampling::greedy() },
        top_logprobs: None,
        grammar: None,
        tier: opengrid_protocol::session::Tier::Default,
    };
    let mut generation = engine.generate(request).await.unwrap();
    let mut first = 0.0;
    while let Some(event) = generation.events.recv().await {
        match event {
            Event::Tokens(_) if first == 0.0 => first = started.elapsed().as_secs_f32(),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    (first, started.elapsed().as_secs_f32())
}
