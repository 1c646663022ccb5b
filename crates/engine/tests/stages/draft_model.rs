//! A draft model beside the last stage changes no token: one that guesses right (the served model itself) spares laps, one
//! that is of no use turns itself off.

use opengrid_models::test_support::TinyModel;

use super::*;

const LAP: Duration = Duration::from_millis(60);
const SCHEMA: &str = r#"start: %json {"type":"object","properties":{"city":{"type":"string","maxLength":20},
    "people":{"type":"integer","minimum":0,"maximum":99999999}},"required":["city","people"],
    "additionalProperties":false,"x-guidance":{"whitespace_flexible":false}}"#;

fn draft(file: std::path::PathBuf) -> Option<Draft> {
    Some(Draft { name: "a model".to_owned(), file: Ok(file) })
}

/// Random weights under the served model's tokens.
fn useless(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("useless.gguf");
    let header = Header::read(&model()).unwrap();
    let tiny = TinyModel { context: 1_024, ..TinyModel::default() };
    std::fs::write(&path, tiny.to_bytes_with_tokens_of(&header.parse().unwrap())).unwrap();
    path
}

/// An answer, and what became of the draft model's guesses, lap by lap: how many, and how many came true.
struct Run {
    tokens: Vec<TokenOut>,
    finish: Finish,
    laps: Vec<(usize, usize)>,
    /// Fed next, had it gone on.
    next: Next,
    under_way: VecDeque<(Token, bool)>,
}

impl Run {
    fn came_true(&self) -> f64 {
        let (guesses, came_true) = self.laps.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        f64::from(u32::try_from(came_true).unwrap()) / guesses as f64
    }

    fn drew(&mut self, tokens: Vec<TokenOut>, next: Next) {
        for token in &tokens {
            // In front lies the last token.
            self.under_way.pop_front();
            if let Some((guess, true)) = self.under_way.front()
                && let Some((guesses, came_true)) = self.laps.last_mut()
            {
                *guesses += 1;
                *came_true += usize::from(*guess == token.token);
            }
        }
        if next.lap as usize != self.laps.len() {
            self.under_way.clear();
            self.laps.push((0, 0));
        }
        self.under_way.extend(next.tokens.iter().map(|token| (*token, next.by_model)));
        self.tokens.extend(tokens);
        self.next = next;
    }
}

async fn guessed(pipeline: &Pipeline, request: &GenerateRequest, delay: Duration) -> Run {
    let mut sessions = pipeline.open(request);
    let mut relay = Relay::new(&mut sessions, delay);
    go_on(&mut relay, prompt_of(request.tokens.clone()), usize::MAX).await
}

/// Until so many tokens came, at most.
async fn go_on(relay: &mut Relay<'_>, next: Next, tokens_max: usize) -> Run {
    let (tokens, finish) = (Vec::new(), Finish::Length);
    let mut run = Run { tokens, finish, laps: Vec::new(), next, under_way: VecDeque::new() };
    while run.tokens.len() < tokens_max {
        relay.feed(std::mem::take(&mut run.next));
        match relay.drawn().await {
            StageEvent::Drawn { tokens, feed } => run.drew(tokens, feed),
            StageEvent::Finished(finish, _) => {
                run.finish = finish;
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    run
}

#[tokio::test]
async fn the_served_model_as_its_own_guesses_what_the_answer_draws() {
    let vocabulary = vocabulary().await;
    let prompt = chat(&vocabulary, "Tell a story about a fox and a lighthouse.").await;
    vocabulary.shutdown().await;
    let whole = start(config()).await;
    let pipeline = drafted_pipeline(&[15], 1_024, draft(model())).await;
    let shown = pipeline.stages[1].capabilities();
    assert!(shown.description.ends_with(", draft model a model"), "{}", shown.description);
    assert!(shown.memory_bytes > 98_000_000, "its weights count: {}", shown.memory_bytes);
    for sampling in [
        Sampling::greedy(),
        sampled(7),
        Sampling { repeat_penalty: 1.3, presence_penalty: 0.4, logit_bias: vec![(28, 3.0)], ..sampled(8) },
    ] {
        let request = watched(&prompt, 120, sampling);
        let expected = answer(&*whole, request.clone()).await;
        let run = guessed(&pipeline, &request, LAP).await;
        assert_eq!((&run.tokens, run.finish), (&expected.tokens, expected.finish));
        let (laps, tokens) = (run.laps.len(), run.tokens.len());
        assert!(run.came_true() >= 0.95, "{} of the guesses, {:?}", run.came_true(), run.laps);
        assert!(laps * 3 < tokens, "{laps} laps for {tokens} tokens: {:?}", run.laps);
    }
    whole.shutdown().await;
    pipeline.shutdown().await;
}

#[tokio::test]
async fn a_useless_draft_model_changes_nothing_and_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let vocabulary = vocabulary().await;
    let prompt = chat(&vocabulary, "Tell a story about a fox and a lighthouse.").await;
    vocabulary.shutdown().await;
    let whole = start(config()).await;
    let pipeline = drafted_pipeline(&[15], 1_024, draft(useless(directory.path()))).await;
    for sampling in [Sampling::greedy(), sampled(7)] {
        let request = watched(&prompt, 160, sampling);
        let expected = answer(&*whole, request.clone()).await;
        let run = guessed(&pipeline, &request, LAP).await;
        assert_eq!((&run.tokens, run.finish), (&expected.tokens, expected.finish));
        assert!(run.laps.iter().any(|(guesses, _)| *guesses > 0), "it was tried");
        assert!(run.came_true() < 0.05, "{}", run.came_true());
        let late = run.laps.iter().skip(80).filter(|(guesses, _)| *guesses > 0).count();
        assert!(late * 4 < run.laps.len() - 80, "{late} of the last {} laps", run.laps.len() - 80);
    }
    whole.shutdown().await;
    pipeline.shutdown().await;
}

#[tokio::test]
async fn sessions_at_once_with_penalties_grammar_and_at_the_contexts_end() {
    let vocabulary = vocabulary().await;
    let stop_tokens = vocabulary.info().end_tokens.clone();
    let text = "Tell a story about a fox.";
    let story = chat(&vocabulary, text).await;
    let json = chat(&vocabulary, "Describe Paris as JSON.").await;
    vocabulary.shutdown().await;
    let requests = [
        watched(&story, 80, Sampling::greedy()),
        // Until the context of 256 rows is full.
        watched(&story, 1_000, sampled(3)),
        watched(&story, 60, Sampling { repeat_penalty: 1.3, frequency_penalty: 0.3, ..sampled(5) }),
        GenerateRequest { grammar: Some(SCHEMA.to_owned()), stop_tokens, ..watched(&json, 100, sampled(2)) },
    ];
    let whole = start(EmbeddedConfig { context_tokens: 256, ..config() }).await;
    let pipeline = drafted_pipeline(&[15], 256, draft(model())).await;
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(answer(&*whole, request.clone()).await);
    }
    assert_eq!(requests[1].tokens.len() + expected[1].tokens.len(), 256, "the context is full");
    let runs = requests.iter().map(|request| guessed(&pipeline, request, LAP));
    let runs = futures::future::join_all(runs).await;
    for (run, expected) in runs.iter().zip(&expected) {
        assert_eq!((&run.tokens, run.finish), (&expected.tokens, expected.finish));
    }
    assert!(runs[..3].iter().all(|run| run.laps.len() < run.tokens.len()), "some guesses came true");
    assert!(runs[3].laps.iter().all(|(guesses, _)| *guesses == 0), "a grammar's answer is guessed from its text alone");
    whole.shutdown().await;
    pipeline.shutdown().await;
}

#[tokio::test]
async fn a_fresh_last_stage_goes_on_with_guesses_and_the_same_tokens() {
    let vocabulary = vocabulary().await;
    let prompt = chat(&vocabulary, "Tell a story about a fox and a lighthouse.").await;
    vocabulary.shutdown().await;
    let whole = start(config()).await;
    let request = watched(&prompt, 120, sampled(11));
    let expected = answer(&*whole, request.clone()).await;
    whole.shutdown().await;
    let pipeline = drafted_pipeline(&[15], 1_024, draft(model())).await;
    let mut sessions = pipeline.open(&request);
    let mut relay = Relay::new(&mut sessions, LAP);
    let before = go_on(&mut relay, prompt_of(prompt.clone()), 30).await;
    assert!(before.tokens.len() < 100, "enough is left: {}", before.tokens.len());
    let mut sent = relay.sent;
    kill(pipeline.stages[1].child_pid().unwrap());
    while !matches!(next(&mut sessions[1]).await, StageEvent::Failed(EngineError::Died)) {}
    // The last token's row is computed again, as a rewired chain does it.
    let mut tokens = prompt.clone();
    tokens.extend(before.tokens.iter().map(|out| out.token));
    let last = tokens.len() - 1;
    let resumed = GenerateRequest { tokens: tokens.clone(), ..request };
    sessions[1] = reopen_with(&pipeline.stages[1], Some(resumed)).await;
    sent.truncate(last * ROW_BYTES);
    sessions[1].feed(Lap { epoch: 2, number: 0 }, 0, Input::Rows(sent.into())).unwrap();
    let mut relay = Relay::new(&mut sessions, LAP);
    relay.epoch = 2;
    let resume = Next { from: last as u32, ..prompt_of(vec![tokens[last]]) };
    let after = go_on(&mut relay, resume, usize::MAX).await;
    let answered: Vec<TokenOut> = before.tokens.iter().chain(&after.tokens).cloned().collect();
    assert_eq!(answered, expected.tokens);
    assert!(after.laps.iter().any(|(guesses, _)| *guesses > 0), "the new child has its draft model, too");
    assert!(pipeline.stages[1].capabilities().description.ends_with(", draft model a model"));
    pipeline.shutdown().await;
}

#[tokio::test]
async fn a_draft_model_with_other_tokens_or_amid_the_model_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let start = |from, to, draft| EmbeddedStage::start(EmbeddedConfig { draft, ..sliced(directory.path(), from, to) });
    let stage = start(10, 11, draft(model())).await.unwrap();
    assert!(stage.capabilities().description.contains("only the last stage"), "{}", stage.capabilities().description);
    stage.shutdown().await;
    let other = directory.path().join("other.gguf");
    std::fs::write(&other, TinyModel::default().to_bytes()).unwrap();
    let Err(EngineError::Load(why)) = start(29, 30, draft(other)).await.map(drop) else { panic!("it was taken") };
    assert!(why.contains("354 tokens, the served model 49152"), "{why}");
}
