//! Prints how an engine fares when others want the cores: `contention MODEL.gguf [THREADS] [SECONDS]`.
//!
//! Tokens per second of one stream alone, beside a busy loop on every core, beside a second engine that generates, and
//! alone again. The child is found as by the example `speed`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Engine, Event, GenerateRequest};
use opengrid_protocol::Sampling;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().expect("contention MODEL.gguf [THREADS] [SECONDS]"));
    let threads = args.next().and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let time = Duration::from_secs(args.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(5));
    let here = std::env::current_exe().unwrap();
    let program = here.parent().unwrap().with_file_name("opengrid-engine-child");
    let config = EmbeddedConfig { threads, context_tokens: 2_048, ..EmbeddedConfig::new(program, model) };
    let engine = EmbeddedEngine::start(config.clone()).await.unwrap();
    let other = EmbeddedEngine::start(config).await.unwrap();

    println!("alone: {:.1} tok/s", speed(&engine, time).await);
    let (one, two) = futures::join!(speed(&engine, time), speed(&other, time));
    println!("two engines: {one:.1} and {two:.1} tok/s");
    let busy = Busy::start();
    println!("beside a busy loop a core: {:.1} tok/s", speed(&engine, time).await);
    drop(busy);
    println!("alone again: {:.1} tok/s", speed(&engine, time * 2).await);
    engine.shutdown().await;
    other.shutdown().await;
}

/// A loop on every core that does nothing but run.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(());
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tokens per second of one stream.
async fn speed(engine: &EmbeddedEngine, time: Duration) -> f32 {
    let request = GenerateRequest {
        client: [1; 32],
        prompt_tokens: 3,
        tokens: vec![500, 7, 9],
        completion_tokens_max: 2_000,
        stop_tokens: Vec::new(),
        sampling: Sampling { temperature: 1.0, seed: 1, ..Sampling::greedy() },
        top_logprobs: None,
        grammar: None,
        tier: opengrid_protocol::session::Tier::Default,
    };
    let started = Instant::now();
    let mut tokens = 0;
    let mut generation = engine.generate(request).await.unwrap();
    while started.elapsed() < time {
        match generation.events.recv().await {
            Some(Event::Tokens(more)) => tokens += more.len(),
            Some(Event::Failed(error)) => panic!("{error}"),
            Some(_) => {}
            None => break,
        }
    }
    tokens as f32 / started.elapsed().as_secs_f32()
}
