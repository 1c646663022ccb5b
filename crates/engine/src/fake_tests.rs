use super::*;

fn engine(slots: u16, queue_max: u16) -> Arc<FakeEngine> {
    FakeEngine::new(FakeConfig { tokens_per_s: 2_000.0, slots, queue_max, ..FakeConfig::default() })
}

fn request(seed: u64, tokens: Vec<Token>, prompt_tokens: u32, max: u32) -> GenerateRequest {
    GenerateRequest {
        client: [0; 32],
        tokens,
        prompt_tokens,
        completion_tokens_max: max,
        stop_tokens: Vec::new(),
        sampling: Sampling { seed, ..Sampling::greedy() },
        top_logprobs: None,
        grammar: None,
        tier: opengrid_protocol::session::Tier::Default,
    }
}

async fn answer(engine: &FakeEngine, request: GenerateRequest) -> (Vec<Token>, Finish) {
    let mut generation = engine.generate(request).await.unwrap();
    let mut answer = Vec::new();
    loop {
        match generation.events.recv().await.unwrap() {
            Event::Tokens(tokens) => answer.extend(tokens.iter().map(|out| out.token)),
            Event::Finished(finish, usage) => {
                assert_eq!(usage.generated_tokens as usize, answer.len());
                return (answer, finish);
            }
            Event::Queued(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn another_engine_continues_the_same_answer() {
    let (full, finish) = answer(&engine(1, 0), request(7, vec![1, 2, 3], 3, 40)).await;
    assert_eq!((full.len(), finish), (40, Finish::Length));
    let so_far = [vec![1, 2, 3], full[..13].to_vec()].concat();
    let (rest, _) = answer(&engine(1, 0), request(7, so_far, 3, 40)).await;
    assert_eq!(rest, full[13..]);
    assert_ne!(answer(&engine(1, 0), request(8, vec![1, 2, 3], 3, 40)).await.0, full);
}

#[tokio::test]
async fn stop_tokens_end_the_answer_and_are_no_part_of_it() {
    let (full, _) = answer(&engine(1, 0), request(7, vec![1], 1, 20)).await;
    let stop = full[9];
    let (short, finish) =
        answer(&engine(1, 0), GenerateRequest { stop_tokens: vec![stop], ..request(7, vec![1], 1, 20) }).await;
    assert_eq!(finish, Finish::Stop(stop));
    assert_eq!(short, full[..full.iter().position(|token| *token == stop).unwrap()]);
}

#[tokio::test]
async fn the_queue_is_bounded_and_cancelling_frees_the_slot() {
    let engine = engine(1, 1);
    let mut running = engine.generate(request(1, vec![1], 1, 8_000)).await.unwrap();
    assert!(matches!(running.events.recv().await, Some(Event::Tokens(_))));
    let mut waiting = engine.generate(request(2, vec![1], 1, 5)).await.unwrap();
    assert_eq!(waiting.events.recv().await, Some(Event::Queued(1)));
    assert_eq!(engine.generate(request(3, vec![1], 1, 5)).await.err(), Some(EngineError::Busy));
    assert_eq!(engine.load(), Load { slots_busy: 1, queued: 1, healthy: true });
    drop(running);
    assert_eq!(waiting.events.recv().await, Some(Event::Queued(0)));
    assert!(matches!(waiting.events.recv().await, Some(Event::Tokens(_))));
    engine.shutdown().await;
    assert_eq!(engine.load().slots_busy, 0);
    assert_eq!(engine.generate(request(3, vec![1], 1, 5)).await.err(), Some(EngineError::ShuttingDown));
}

#[tokio::test]
async fn an_embedding_model_gives_the_same_text_the_same_vector_and_no_text() {
    let engine = FakeEngine::new(FakeConfig { embedding_width: Some(8), ..FakeConfig::default() });
    assert_eq!(engine.capabilities().features, opengrid_protocol::beacon::Features::EMBED);
    let texts = vec![vec![1, 2], vec![3], vec![1, 2]];
    let vectors = engine.embed(EmbedRequest { texts }).await.unwrap();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    let length: f32 = vectors[0].iter().map(|value| value * value).sum();
    assert!(vectors[0].len() == 8 && (length - 1.0).abs() < 1e-5);
    assert!(matches!(engine.generate(request(1, vec![1], 1, 1)).await, Err(EngineError::Invalid(_))));
    let generates = FakeEngine::new(FakeConfig::default());
    let refused = generates.embed(EmbedRequest { texts: vec![vec![1]] }).await;
    assert!(matches!(refused, Err(EngineError::Invalid(_))));
}
