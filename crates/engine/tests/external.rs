//! External engines against a server that speaks their documented formats, and breaks in every way that comes to mind.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conformance;

use std::{sync::Arc, time::Duration};

use conformance::{CONTEXT, END, Engine as FakeServer, Fault, SLOTS, Server, TEXT, token_at};
use opengrid_engine::{
    Engine, EngineError, Event, ExternalConfig, ExternalEngine, ExternalError, GenerateRequest, Generation, Kind,
    Reference, Timeouts,
};
use opengrid_protocol::{
    Sampling,
    beacon::{Class, Features},
    session::{Finish, Tier, TokenOut, Usage},
};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

const ALL: [Kind; 3] = [Kind::LlamaServer, Kind::Vllm, Kind::TensorRtLlm];
const PATIENCE: Duration = Duration::from_secs(20);

fn config(url: String) -> ExternalConfig {
    ExternalConfig {
        url,
        reference: Arc::new(Reference::of_bytes()),
        parameters: Some(1_000),
        trained_context: 8_192,
        slots: None,
        // trtllm-serve does not say its own.
        context_tokens: Some(CONTEXT),
        queue_max: 2,
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            question: Duration::from_secs(2),
            first_token: Duration::from_millis(700),
            next_token: Duration::from_millis(500),
            watch: Duration::from_millis(50),
        },
    }
}

async fn both(kind: Kind) -> (Server, Arc<ExternalEngine>) {
    let server = Server::start(kind).await;
    let engine = ExternalEngine::start(config(server.url())).await.unwrap();
    server.engine.asked.lock().unwrap().clear();
    (server, engine)
}

fn request(prompt: u32, tokens_max: u32) -> GenerateRequest {
    GenerateRequest {
        client: [7; 32],
        tokens: (0..prompt as usize).map(token_at).collect(),
        prompt_tokens: prompt,
        completion_tokens_max: tokens_max,
        stop_tokens: vec![END],
        sampling: Sampling::greedy(),
        top_logprobs: None,
        grammar: None,
        tier: Tier::default(),
    }
}

#[derive(Debug, Default)]
struct Heard {
    tokens: Vec<TokenOut>,
    queued: Vec<u32>,
    finished: Option<(Finish, Usage)>,
    failed: Option<EngineError>,
}

impl Heard {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|out| out.token).collect()
    }
}

async fn hear(mut generation: Generation) -> Heard {
    let mut heard = Heard::default();
    let all = async {
        while let Some(event) = generation.events.recv().await {
            match event {
                Event::Tokens(tokens) => heard.tokens.extend(tokens),
                Event::Queued(place) => heard.queued.push(place),
                Event::Finished(finish, usage) => heard.finished = Some((finish, usage)),
                Event::Failed(error) => heard.failed = Some(error),
            }
        }
    };
    timeout(PATIENCE, all).await.expect("an answer ends");
    heard
}

async fn answer(engine: &ExternalEngine, request: GenerateRequest) -> Heard {
    hear(engine.generate(request).await.unwrap()).await
}

fn expected(from: usize, count: usize) -> Vec<u32> {
    (from..from + count).map(token_at).collect()
}

#[tokio::test]
async fn each_engine_is_known_by_what_it_says() {
    for kind in ALL {
        let (_server, engine) = both(kind).await;
        let can = engine.capabilities();
        assert_eq!((can.class, can.context_tokens), (Class::Approximate, CONTEXT), "{kind:?}");
        assert!(can.description.starts_with(kind.name()) && can.description.contains("127.0.0.1"), "{can:?}");
        assert!(can.decode_tokens_per_s > 0.0 && can.prefill_tokens_per_s > 0.0);
        assert!(!can.features.contains(Features::SEEDED) && !can.features.contains(Features::GRAMMAR));
        assert_eq!(can.slots == SLOTS, kind == Kind::LlamaServer, "the others do not say how many");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn answers_have_every_token_and_end_as_asked() {
    for kind in ALL {
        let (_server, engine) = both(kind).await;
        // To its length, across characters of two, three and four bytes, from the middle of one, too.
        for prompt in [1, 4, 11, 21] {
            let open = GenerateRequest { stop_tokens: vec![], ..request(prompt, 60) };
            let heard = answer(&engine, open).await;
            assert_eq!(heard.ids(), expected(prompt as usize, 60), "{kind:?} from {prompt}: {heard:?}");
            let (finish, usage) = heard.finished.unwrap();
            assert_eq!((finish, usage.generated_tokens), (Finish::Length, 60));
            assert_eq!(usage.cached_tokens + usage.prefilled_tokens, prompt);
        }
        // To the stop token.
        let heard = answer(&engine, request(1, 100)).await;
        assert_eq!(heard.ids(), expected(1, TEXT.len() - 2), "{kind:?}");
        assert_eq!(heard.finished.unwrap().0, Finish::Stop(END));
        // The rest of an answer that another worker began.
        let begun = GenerateRequest { prompt_tokens: 3, ..request(9, 10) };
        let heard = answer(&engine, begun).await;
        assert_eq!((heard.ids(), heard.finished.unwrap().0), (expected(9, 4), Finish::Length));
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn another_stop_token_than_the_engines_own_ends_an_answer() {
    for kind in ALL {
        let (_server, engine) = both(kind).await;
        let comma = u32::from(b',');
        let heard = answer(&engine, GenerateRequest { stop_tokens: vec![comma], ..request(1, 100) }).await;
        let length = TEXT.bytes().skip(1).position(|byte| byte == b',').unwrap();
        assert_eq!((heard.ids(), heard.finished.unwrap().0), (expected(1, length), Finish::Stop(comma)), "{kind:?}");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn logprobs_come_by_token_id_where_the_engine_gives_them() {
    for kind in [Kind::LlamaServer, Kind::Vllm] {
        let (_server, engine) = both(kind).await;
        let heard = answer(&engine, GenerateRequest { top_logprobs: Some(1), ..request(1, 2) }).await;
        let out = &heard.tokens[0];
        assert_eq!((out.logprob, out.top.as_slice()), (Some(-0.5), &[(out.token, -0.5)][..]), "{kind:?}");
        engine.shutdown().await;
    }
    let (_server, engine) = both(Kind::TensorRtLlm).await;
    assert!(!engine.capabilities().features.contains(Features::LOGPROBS));
    let refused = engine.generate(GenerateRequest { top_logprobs: Some(1), ..request(1, 2) }).await.err();
    assert!(matches!(refused, Some(EngineError::Invalid(_))), "{refused:?}");
}

#[tokio::test]
async fn caches_are_met_by_their_own_client_alone() {
    let (server, engine) = both(Kind::LlamaServer).await;
    let of = |client: u8| GenerateRequest { client: [client; 32], ..request(5, 2) };
    for client in [1, 1, 2, 3, 1] {
        answer(&engine, of(client)).await;
    }
    let asked: Vec<(u64, bool)> = server
        .asked()
        .iter()
        .map(|body| (body["id_slot"].as_u64().unwrap(), body["cache_prompt"].as_bool().unwrap()))
        .collect();
    assert_eq!(asked, [(0, false), (0, true), (1, false), (0, false), (0, false)]);
}

#[tokio::test]
async fn an_overloaded_engine_is_busy_not_dead() {
    for kind in ALL {
        let (server, engine) = both(kind).await;
        for status in [503, 429] {
            server.fail(Fault::Status(status));
            let heard = answer(&engine, request(3, 5)).await;
            assert_eq!(heard.failed, Some(EngineError::Busy), "{kind:?} {status}");
            assert!(engine.load().healthy);
        }
        server.fail(Fault::Status(400));
        assert!(matches!(answer(&engine, request(3, 5)).await.failed, Some(EngineError::Invalid(_))));
        server.fail(Fault::None);
        assert_eq!(answer(&engine, request(3, 5)).await.ids(), expected(3, 5));
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn places_are_bounded_and_told() {
    let mut slow = FakeServer {
        kind: Kind::LlamaServer,
        fault: Arc::default(),
        asked: Arc::default(),
        token_pause: Duration::ZERO,
    };
    slow.token_pause = Duration::from_millis(30);
    let server = Server::start_with(slow).await;
    let engine = ExternalEngine::start(config(server.url())).await.unwrap();
    let mut running = Vec::new();
    for _ in 0..SLOTS + 2 {
        running.push(engine.generate(request(2, 12)).await.unwrap());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(engine.generate(request(2, 12)).await.err(), Some(EngineError::Busy));
    let load = engine.load();
    assert_eq!((load.slots_busy, load.queued), (SLOTS, 2));
    let heard = futures::future::join_all(running.into_iter().map(hear)).await;
    assert!(heard.iter().all(|heard| heard.ids() == expected(2, 12)), "{heard:?}");
    let queued: Vec<_> = heard.iter().map(|heard| heard.queued.clone()).collect();
    assert_eq!(queued, [vec![], vec![], vec![1, 0], vec![2, 0]]);
    drop((engine, server));
}

#[tokio::test]
async fn load_is_the_engines_own_where_others_use_it() {
    for (kind, busy, queued) in [(Kind::LlamaServer, 1, 0), (Kind::Vllm, 1, 4), (Kind::TensorRtLlm, 1, 4)] {
        let (_server, engine) = both(kind).await;
        sleep(Duration::from_millis(300)).await;
        let load = engine.load();
        assert_eq!((load.slots_busy, load.queued, load.healthy), (busy, queued, true), "{kind:?}");
        engine.shutdown().await;
    }
}

/// Every way of breaking ends the answer in time, with what came before passed on, and the next one is whole.
#[tokio::test]
async fn a_broken_engine_fails_answers_and_comes_back() {
    let faults = [
        (Fault::Status(500), 0),
        (Fault::Hang, 0),
        (Fault::HangAfter(3), 3),
        (Fault::CutAfter(3), 3),
        (Fault::GarbageAfter(3), 3),
        (Fault::ErrorAfter(3), 3),
        (Fault::EndlessLine, 0),
        (Fault::Comments, 0),
    ];
    for kind in ALL {
        let (server, engine) = both(kind).await;
        for (fault, before) in faults {
            server.fail(fault);
            let began = Instant::now();
            // `, an` comes first: tokens of one byte, each a character.
            let heard = answer(&engine, GenerateRequest { tokens: expected(4, 1), ..request(1, 9) }).await;
            assert_eq!(heard.failed, Some(EngineError::Died), "{kind:?} {fault:?}: {heard:?}");
            assert!(heard.tokens.len() <= before.max(1) && began.elapsed() < Duration::from_secs(5), "{fault:?}");
            server.fail(Fault::None);
            healthy(&engine).await;
            assert_eq!(answer(&engine, request(3, 5)).await.ids(), expected(3, 5), "{kind:?} after {fault:?}");
        }
        engine.shutdown().await;
    }
}

async fn healthy(engine: &ExternalEngine) {
    let since = Instant::now();
    while !engine.load().healthy {
        assert!(since.elapsed() < PATIENCE, "it comes back");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn too_many_tokens_are_not_passed_on() {
    for kind in ALL {
        let (server, engine) = both(kind).await;
        server.fail(Fault::TooMany);
        let heard = answer(&engine, GenerateRequest { stop_tokens: vec![], ..request(1, 3) }).await;
        assert!(heard.tokens.len() <= 3, "{kind:?}: {heard:?}");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn a_restart_under_load_is_survived() {
    for kind in ALL {
        let engine =
            FakeServer { kind, fault: Arc::default(), asked: Arc::default(), token_pause: Duration::from_millis(20) };
        let mut server = Server::start_with(engine).await;
        let engine = ExternalEngine::start(config(server.url())).await.unwrap();
        let running = [engine.generate(request(2, 20)).await.unwrap(), engine.generate(request(2, 20)).await.unwrap()];
        sleep(Duration::from_millis(100)).await;
        server.down().await;
        for heard in futures::future::join_all(running.map(hear)).await {
            assert_eq!(heard.failed, Some(EngineError::Died), "{kind:?}: an ordinary failover");
            assert!(heard.ids() == expected(2, heard.tokens.len()));
        }
        assert!(!engine.load().healthy, "no beacons meanwhile");
        assert_eq!(engine.generate(request(2, 20)).await.err(), Some(EngineError::Died));
        server.up().await;
        healthy(&engine).await;
        assert_eq!(answer(&engine, request(2, 6)).await.ids(), expected(2, 6));
        engine.shutdown().await;
        assert_eq!(engine.generate(request(2, 6)).await.err(), Some(EngineError::ShuttingDown));
    }
}

#[tokio::test]
async fn another_model_after_a_restart_stays_unused() {
    for kind in ALL {
        let (mut server, engine) = both(kind).await;
        server.down().await;
        while engine.load().healthy {
            sleep(Duration::from_millis(10)).await;
        }
        server.fail(Fault::OtherVocabulary);
        server.up().await;
        sleep(Duration::from_millis(500)).await;
        assert!(!engine.load().healthy, "{kind:?}");
        server.fail(Fault::None);
        healthy(&engine).await;
        engine.shutdown().await;
    }
}

async fn refused(config: ExternalConfig) -> ExternalError {
    ExternalEngine::start(config).await.err().expect("a refusal")
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_the_reason() {
    for kind in ALL {
        let server = Server::start(kind).await;
        for (fault, why) in [(Fault::OtherVocabulary, "other tokens"), (Fault::NoIds, "token"), (Fault::Hang, "")] {
            server.fail(fault);
            let error = refused(config(server.url())).await;
            assert!(error.to_string().contains(why), "{kind:?} {fault:?}: {error}");
            assert!(fault == Fault::Hang || matches!(error, ExternalError::Unfit(_)), "{kind:?} {fault:?}: {error}");
        }
    }
    let llama = Server::start(Kind::LlamaServer).await;
    let error = refused(ExternalConfig { parameters: Some(9_000), ..config(llama.url()) }).await.to_string();
    assert!(error.contains("1000 weights, not 9000"), "{error}");
    let tensorrt = Server::start(Kind::TensorRtLlm).await;
    let error = refused(ExternalConfig { context_tokens: None, ..config(tensorrt.url()) }).await.to_string();
    assert!(error.contains("serve.context_tokens"), "{error}");
    let nobody = refused(config("http://127.0.0.1:9".into())).await;
    assert!(matches!(nobody, ExternalError::NotThere(_)), "{nobody}");
    let shorter = ExternalConfig { context_tokens: Some(200), slots: Some(1), ..config(llama.url()) };
    let engine = ExternalEngine::start(shorter).await.unwrap();
    assert_eq!((engine.capabilities().context_tokens, engine.capabilities().slots), (200, 1));
    let long = engine.generate(request(200, 1)).await.err();
    assert_eq!(long, Some(EngineError::ContextTooSmall { needed: 201, context_tokens: 200 }));
}

#[tokio::test]
async fn a_stranger_is_no_engine() {
    let routes = axum::Router::new().route(
        "/v1/models",
        axum::routing::get(|| async { axum::Json(json!({"data": [{"id": "m", "owned_by": "somebody"}]})) }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move { axum::serve(listener, routes).await });
    let error = refused(config(url)).await.to_string();
    assert!(error.contains("`somebody`") && error.contains("neither llama-server"), "{error}");
    task.abort();
}

#[tokio::test]
async fn a_dropped_answer_frees_its_slot() {
    let (server, engine) = both(Kind::Vllm).await;
    server.fail(Fault::HangAfter(2));
    let mut generation = engine.generate(request(2, 20)).await.unwrap();
    assert!(matches!(generation.events.recv().await, Some(Event::Tokens(_))));
    drop(generation);
    let since = Instant::now();
    while engine.load().slots_busy > 1 {
        assert!(since.elapsed() < PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
    assert!(engine.load().healthy, "hanging up is no failure of the engine");
}
