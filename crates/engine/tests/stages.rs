//! Stages in processes of their own, one behind the other, against the whole model: the same tokens and the same
//! probabilities to the bit, with several sessions at once, after feeding again, and over the death of a stage.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "stages/draft_model.rs"]
mod draft_model;

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use common::*;
use opengrid_engine::{
    Draft, EmbeddedConfig, EmbeddedStage, Engine, EngineError, GenerateRequest, Input, Lap, Next, Stage, StageEvent,
    StageSession, StageSlice, TableFile,
};
use opengrid_models::{gguf::file::Header, slice};
use opengrid_protocol::{
    Layers, ModelRoot, Sampling,
    beacon::Class,
    session::{Finish, Token, TokenOut},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep_until, timeout};

const LAYERS: u32 = 30;
const ROW_BYTES: usize = 576 * 4;

/// The slice of the default model, written to `directory`, and how a stage of it is set up.
fn sliced(directory: &Path, from: u32, to: u32) -> EmbeddedConfig {
    let header = Header::read(&model()).unwrap();
    let layers = Layers::new(from, to).unwrap();
    let plan = slice::plan(&header.parse().unwrap(), ModelRoot([5; 32]), layers).unwrap();
    let path = directory.join(format!("{layers}.gguf"));
    let (mut source, mut file) = (File::open(model()).unwrap(), File::create(&path).unwrap());
    let read = |at: u64, buffer: &mut [u8]| {
        source.seek(SeekFrom::Start(at))?;
        source.read_exact(buffer)
    };
    plan.file.write(read, |part| file.write_all(part)).unwrap();
    let table = plan.embedding;
    let table = TableFile {
        path: model(),
        offset: table.offset,
        kind: table.kind,
        width: table.width,
        rows: table.rows,
        row_bytes: table.row_bytes,
        scale: table.scale,
    };
    let stage = StageSlice {
        layers,
        layer_count: plan.layer_count,
        weight_bytes: plan.weight_bytes(),
        table: plan.is_first().then_some(table),
    };
    EmbeddedConfig { model_path: path, stage: Some(stage), model_root: Some([5; 32]), ..config() }
}

struct Pipeline {
    stages: Vec<Arc<EmbeddedStage>>,
    _directory: TempDir,
}

async fn pipeline(cuts: &[u32], context_tokens: u32) -> Pipeline {
    drafted_pipeline(cuts, context_tokens, None).await
}

/// With a draft model beside the last stage.
async fn drafted_pipeline(cuts: &[u32], context_tokens: u32, draft: Option<Draft>) -> Pipeline {
    let directory = tempfile::tempdir().unwrap();
    let ends: Vec<u32> = std::iter::once(0).chain(cuts.iter().copied()).chain([LAYERS]).collect();
    let mut stages = Vec::new();
    for pair in ends.windows(2) {
        let draft = draft.clone().filter(|_| pair[1] == LAYERS);
        let config = EmbeddedConfig { context_tokens, draft, ..sliced(directory.path(), pair[0], pair[1]) };
        stages.push(timeout(PATIENCE, EmbeddedStage::start(config)).await.unwrap().unwrap());
    }
    Pipeline { stages, _directory: directory }
}

impl Pipeline {
    fn open(&self, request: &GenerateRequest) -> Vec<StageSession> {
        let last = self.stages.len() - 1;
        let open = |(at, stage): (usize, &Arc<EmbeddedStage>)| {
            stage.open((at == last).then(|| request.clone())).expect("a place")
        };
        self.stages.iter().enumerate().map(open).collect()
    }

    async fn shutdown(self) {
        for stage in self.stages {
            stage.shutdown().await;
        }
    }
}

async fn next(session: &mut StageSession) -> StageEvent {
    timeout(PATIENCE, session.events.recv()).await.expect("an event in time").expect("an event")
}

/// Hands on what there is from stage to stage until the last one says something. Each stage's rows come in order; what a later
/// lap took back is left out, as a part's flow does it. What the first stage sends is kept by position, as in its ring.
struct Relay<'s> {
    sessions: &'s mut [StageSession],
    epoch: u32,
    cuts: Vec<(Lap, u32)>,
    sent: Vec<u8>,
    /// Of the link behind the first stage; messages follow each other on it.
    delay: Duration,
    under_way: VecDeque<(Instant, Lap, u32, bytes::Bytes)>,
    /// What becomes of a row's number on its way.
    carries: fn(f32) -> f32,
}

impl<'s> Relay<'s> {
    fn new(sessions: &'s mut [StageSession], delay: Duration) -> Self {
        Self {
            sessions,
            epoch: 1,
            cuts: Vec::new(),
            sent: Vec::new(),
            delay,
            under_way: VecDeque::new(),
            carries: std::convert::identity,
        }
    }

    fn feed(&mut self, next: Next) {
        if next.tokens.is_empty() {
            return;
        }
        let lap = Lap { epoch: self.epoch, number: next.lap };
        if self.cuts.last().is_none_or(|(latest, _)| lap > *latest) {
            self.cuts.push((lap, next.from));
        }
        self.sessions[0].feed(lap, next.from, Input::Tokens(next.tokens)).unwrap();
    }

    async fn drawn(&mut self) -> StageEvent {
        let last = self.sessions.len() - 1;
        loop {
            let due = self.under_way.front().map(|(due, ..)| *due);
            let heard = self.sessions.iter_mut().map(|session| Box::pin(session.events.recv()));
            let heard = timeout(PATIENCE, futures::future::select_all(heard));
            let happened = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
                heard = heard => heard.map(|(event, at, _)| Some((event, at))).expect("an event in time"),
            };
            let Some((event, at)) = happened else {
                let (_, lap, from, rows) = self.under_way.pop_front().expect("rows under way");
                self.sessions[1].feed(lap, from, Input::Rows(rows)).unwrap();
                continue;
            };
            let event = event.expect("an event");
            let StageEvent::Rows { lap, from, rows } = event else { return event };
            assert!(at < last, "the last stage gives no rows");
            let holds = self.cuts.iter().filter(|(later, _)| *later > lap).map(|(_, from)| *from).min();
            let count =
                (rows.len() / ROW_BYTES).min(holds.map_or(usize::MAX, |until| until.saturating_sub(from) as usize));
            if count == 0 {
                continue;
            }
            let rows = rows.slice(..count * ROW_BYTES);
            if at == 0 {
                self.sent.resize(from as usize * ROW_BYTES, 0);
                self.sent.extend_from_slice(&rows);
            }
            let carried =
                rows.as_chunks().0.iter().flat_map(|row| (self.carries)(f32::from_le_bytes(*row)).to_le_bytes());
            let rows = carried.collect::<Vec<u8>>().into();
            if at == 0 {
                self.under_way.push_back((Instant::now() + self.delay, lap, from, rows));
            } else {
                self.sessions[at + 1].feed(lap, from, Input::Rows(rows)).unwrap();
            }
        }
    }
}

/// A whole answer through the stages.
async fn run(sessions: &mut [StageSession], prompt: Vec<Token>) -> (Vec<TokenOut>, Finish) {
    let (answer, finish, _) = run_over(sessions, prompt, Duration::ZERO).await;
    (answer, finish)
}

/// Over a network that adds `delay` to each lap; with the number of laps.
async fn run_over(
    sessions: &mut [StageSession],
    prompt: Vec<Token>,
    delay: Duration,
) -> (Vec<TokenOut>, Finish, usize) {
    let mut relay = Relay::new(sessions, delay);
    whole_answer(&mut relay, prompt).await
}

async fn whole_answer(relay: &mut Relay<'_>, prompt: Vec<Token>) -> (Vec<TokenOut>, Finish, usize) {
    relay.feed(prompt_of(prompt));
    let (mut answer, mut laps) = (Vec::new(), 0);
    loop {
        match relay.drawn().await {
            StageEvent::Drawn { tokens, feed } => {
                answer.extend(tokens);
                laps = feed.lap as usize;
                relay.feed(feed);
            }
            StageEvent::Finished(finish, usage) => {
                assert_eq!(usage.generated_tokens as usize, answer.len());
                return (answer, finish, laps);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn prompt_of(tokens: Vec<Token>) -> Next {
    Next { tokens, ..Next::default() }
}

fn watched(tokens: &[Token], max: u32, sampling: Sampling) -> GenerateRequest {
    GenerateRequest { top_logprobs: Some(5), ..request(tokens.to_vec(), max, sampling) }
}

async fn requests() -> Vec<GenerateRequest> {
    let vocabulary = vocabulary().await;
    let long = "The lighthouse keeper counts ships, clouds and gulls, and writes them down. ".repeat(70);
    let mut requests = Vec::new();
    for (text, max, sampling) in [
        ("Why is the sky blue?", 64, Sampling::greedy()),
        (long.as_str(), 24, Sampling::greedy()),
        ("Tell a story about a fox.", 40, sampled(7)),
        ("Name three fruits.", 32, Sampling { repeat_penalty: 1.3, ..sampled(8) }),
    ] {
        requests.push(watched(&chat(&vocabulary, text).await, max, sampling));
    }
    vocabulary.shutdown().await;
    requests
}

#[tokio::test]
async fn stages_answer_as_the_whole_model_to_the_bit_with_four_sessions_at_once() {
    let requests = requests().await;
    assert!(requests[1].tokens.len() > 1_000, "a long prompt: {}", requests[1].tokens.len());
    let whole = start(EmbeddedConfig { context_tokens: 2_048, ..config() }).await;
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(answer(&*whole, request.clone()).await);
    }
    whole.shutdown().await;
    for cuts in [&[10, 20][..], &[1, 15, 16, 29]] {
        let pipeline = pipeline(cuts, 2_048).await;
        assert!(pipeline.stages.iter().all(|stage| matches!(stage.capabilities().class, Class::Exact(_))));
        let answers = requests.iter().map(|request| async {
            let mut sessions = pipeline.open(request);
            run(&mut sessions, request.tokens.clone()).await
        });
        let answers = futures::future::join_all(answers).await;
        for ((tokens, finish), expected) in answers.into_iter().zip(&expected) {
            assert_eq!((tokens, finish), (expected.tokens.clone(), expected.finish), "cut at {cuts:?}");
        }
        pipeline.shutdown().await;
    }
}

#[tokio::test]
async fn a_stage_that_dies_is_replaced_by_feeding_its_input_again() {
    let requests = requests().await;
    let pipeline = pipeline(&[10, 20], 1_024).await;
    let request = &requests[0];
    let mut undisturbed = pipeline.open(request);
    let expected = run(&mut undisturbed, request.tokens.clone()).await;
    drop(undisturbed);

    let mut sessions = pipeline.open(request);
    let prompt = prompt_of(request.tokens.clone());
    let mut relay = Relay::new(&mut sessions, Duration::ZERO);
    let (mut next, mut answer) = (prompt, Vec::new());
    // Up to the first token of a lap, after which nothing else is under way.
    let mut lap = 0;
    while answer.len() < 20 || next.tokens.len() != 1 || next.lap == lap {
        lap = next.lap;
        relay.feed(next);
        let StageEvent::Drawn { tokens, feed } = relay.drawn().await else { panic!("a token") };
        answer.extend(tokens);
        next = feed;
    }
    let (from, mut sent) = (next.from, relay.sent);
    kill(pipeline.stages[1].child_pid().unwrap());
    loop {
        // Rows of guesses that missed may still come before.
        if let StageEvent::Failed(error) = self::next(&mut sessions[1]).await {
            break assert_eq!(error, EngineError::Died);
        }
    }
    sessions[1] = reopen(&pipeline.stages[1]).await;
    // Rows of guesses that did not come true are not sent again.
    sent.truncate(from as usize * ROW_BYTES);
    sessions[1].feed(Lap { epoch: 1, number: 0 }, 0, Input::Rows(sent.into())).unwrap();
    let mut replayed = 0;
    while replayed < from {
        let StageEvent::Rows { rows, .. } = self::next(&mut sessions[1]).await else { panic!("rows") };
        replayed += (rows.len() / ROW_BYTES) as u32;
    }
    let mut relay = Relay::new(&mut sessions, Duration::ZERO);
    relay.feed(next);
    loop {
        match relay.drawn().await {
            StageEvent::Drawn { tokens, feed } => {
                answer.extend(tokens);
                relay.feed(feed);
            }
            StageEvent::Finished(..) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answer, expected.0, "as without the fault");
    pipeline.shutdown().await;
}

/// Rows of half the bytes would do where 256 greedy tokens stayed the same. They do not, so rows go in f32 (ADR 0014).
#[tokio::test]
async fn rows_in_half_precision_would_change_the_text() {
    let vocabulary = vocabulary().await;
    let mut requests = Vec::new();
    for text in [
        "Tell a long story about a fox and a lighthouse.",
        "Explain how a ship finds its way at night.",
        "Write a letter to an old friend who moved to the sea.",
        "What should one know before buying a boat?",
    ] {
        requests.push(watched(&chat(&vocabulary, text).await, 256, Sampling::greedy()));
    }
    vocabulary.shutdown().await;
    let pipeline = pipeline(&[10, 20], 1_024).await;
    let mut changed = 0;
    for request in &requests {
        let mut answers = Vec::new();
        for carries in [std::convert::identity, |number| half::f16::from_f32(number).to_f32()] {
            let mut sessions = pipeline.open(request);
            let mut relay = Relay { carries, ..Relay::new(&mut sessions, Duration::ZERO) };
            answers.push(whole_answer(&mut relay, request.tokens.clone()).await.0);
        }
        let alike = |(one, other): &(&TokenOut, &TokenOut)| one.token == other.token;
        let same = answers[0].iter().zip(&answers[1]).take_while(alike).count();
        println!("the first {same} of {} tokens are the same with rows in f16", answers[0].len());
        changed += usize::from(same < answers[0].len());
    }
    assert!(changed > 0, "256 greedy tokens stay the same: half precision would do for this model");
    pipeline.shutdown().await;
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

async fn reopen(stage: &EmbeddedStage) -> StageSession {
    reopen_with(stage, None).await
}

async fn reopen_with(stage: &EmbeddedStage, head: Option<GenerateRequest>) -> StageSession {
    for _ in 0..200 {
        match stage.open(head.clone()) {
            Ok(session) => return session,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("the stage does not come back");
}

#[tokio::test]
async fn guesses_bring_several_tokens_a_lap_and_change_none() {
    let vocabulary = vocabulary().await;
    let text =
        "Repeat this list word by word: the quick brown fox, the lazy dog, the old red barn, the tall green tree.";
    let prompt = chat(&vocabulary, text).await;
    vocabulary.shutdown().await;
    let whole = start(config()).await;
    let pipeline = pipeline(&[15], 1_024).await;
    for sampling in [Sampling::greedy(), Sampling { temperature: 0.5, ..sampled(3) }] {
        let request = watched(&prompt, 120, sampling);
        let expected = answer(&*whole, request.clone()).await;
        let mut sessions = pipeline.open(&request);
        let (tokens, finish, laps) = run_over(&mut sessions, prompt.clone(), Duration::from_millis(60)).await;
        assert_eq!((&tokens, finish), (&expected.tokens, expected.finish));
        // What is drawn at random here repeats little; the greedy answer repeats the list.
        if request.sampling == Sampling::greedy() {
            assert!(laps * 10 < tokens.len() * 9, "{laps} laps for {} tokens", tokens.len());
        }
    }
    whole.shutdown().await;
    pipeline.shutdown().await;
}

#[tokio::test]
async fn bad_input_ends_its_session_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let stage = EmbeddedStage::start(sliced(directory.path(), 10, 12)).await.unwrap();
    let row = |value: f32| bytes::Bytes::from(value.to_le_bytes().repeat(576));
    for bad in [
        Input::Tokens(vec![1]),
        Input::Rows(row(f32::NAN)),
        Input::Rows(row(f32::INFINITY)),
        Input::Rows(row(1.0).slice(..4)),
        Input::Rows(bytes::Bytes::new()),
    ] {
        assert!(matches!(stage.check(&bad), Err(EngineError::Invalid(_))), "{bad:?}");
    }
    let mut honest = stage.open(None).unwrap();
    let mut gap = stage.open(None).unwrap();
    gap.feed(Lap::default(), 3, Input::Rows(row(0.5))).unwrap();
    assert!(matches!(next(&mut gap).await, StageEvent::Failed(EngineError::Invalid(_))));
    let mut long = stage.open(None).unwrap();
    let rows = bytes::Bytes::from(1.0_f32.to_le_bytes().repeat(576 * 400));
    for from in [0, 400, 800] {
        long.feed(Lap::default(), from, Input::Rows(rows.clone())).unwrap();
    }
    loop {
        match next(&mut long).await {
            StageEvent::Rows { .. } => {}
            StageEvent::Failed(EngineError::Invalid(why)) => break assert!(why.contains("1024"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    honest.feed(Lap::default(), 0, Input::Rows(row(0.5))).unwrap();
    assert!(matches!(next(&mut honest).await, StageEvent::Rows { from: 0, rows, .. } if rows.len() == 576 * 4));
    let sessions: Vec<_> = (0..3).map(|_| stage.open(None).unwrap()).collect();
    assert_eq!(stage.open(None).err(), Some(EngineError::Busy), "four places");
    drop(sessions);
    assert!(stage.open(None).is_ok());
    assert!(matches!(stage.open(Some(request(vec![1], 1, Sampling::greedy()))), Err(EngineError::Invalid(_))));
    stage.shutdown().await;
}

/// The cells of positions `0..until`, as a stage gives them: in pieces that fit a frame.
async fn exported(session: &mut StageSession, until: u32) -> Vec<bytes::Bytes> {
    session.export(until, 7).unwrap();
    let (mut pieces, mut next_from) = (Vec::new(), 0);
    loop {
        match next(session).await {
            StageEvent::Cells { tag: 7, from, of, cells } => {
                assert!(of == until && from == next_from && cells.len() <= 960 * 1024);
                next_from += (cells.len() / (10 * 768)) as u32;
                pieces.push(cells);
                if next_from == of {
                    return pieces;
                }
            }
            // Guesses that are under way.
            StageEvent::Rows { .. } | StageEvent::Drawn { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Moves a session's cache into `heir`.
async fn moved(from: &mut StageSession, to: &EmbeddedStage, mut heir: StageSession, until: u32) -> StageSession {
    let layout = to.capabilities().cells.unwrap().layout;
    let pieces = exported(from, until).await;
    let last = pieces.len() - 1;
    for (at, piece) in pieces.into_iter().enumerate() {
        assert!(to.check_cells(&layout, &piece).is_ok());
        heir.import(piece, at == last).unwrap();
    }
    assert_eq!(next(&mut heir).await, StageEvent::Imported(until));
    heir
}

#[tokio::test]
async fn a_session_moves_to_other_processes_and_nothing_is_fed_again() {
    let requests = requests().await;
    // The long prompt: its cells take several pieces.
    let request = &GenerateRequest { completion_tokens_max: 160, sampling: sampled(7), ..requests[1].clone() };
    let (old, new) = (pipeline(&[10, 20], 2_048).await, pipeline(&[10, 20], 2_048).await);
    for (old, new) in old.stages.iter().zip(&new.stages) {
        assert_eq!(old.capabilities().cells, new.capabilities().cells);
        assert_eq!(old.capabilities().cells.unwrap().bytes, 10 * 768);
    }
    let mut undisturbed = old.open(request);
    let expected = run(&mut undisturbed, request.tokens.clone()).await;
    drop(undisturbed);

    // Another slot than where it comes from.
    let _others = new.open(&requests[0]);
    let mut sessions = old.open(request);
    let mut answer = Vec::new();
    let (mut next, mut epoch) = (prompt_of(request.tokens.clone()), 0);
    for moving in [Some(1), None, Some(0), Some(2)] {
        epoch += 1;
        let mut relay = Relay::new(&mut sessions, Duration::ZERO);
        relay.epoch = epoch;
        for _ in 0..2 {
            // Up to the first token of a lap, after which nothing else is under way.
            let lap = next.lap;
            while next.lap <= lap {
                relay.feed(next);
                let StageEvent::Drawn { tokens, feed } = relay.drawn().await else { panic!("a token") };
                answer.extend(tokens);
                next = feed;
            }
        }
        let Some(at) = moving else { continue };
        let so_far = answer.iter().map(|out: &TokenOut| out.token);
        let head =
            GenerateRequest { tokens: request.tokens.iter().copied().chain(so_far).collect(), ..request.clone() };
        let heir = new.stages[at].open((at == 2).then_some(head)).unwrap();
        sessions[at] = moved(&mut sessions[at], &new.stages[at], heir, next.from).await;
        if at == 2 {
            // It knows of no laps and no guesses.
            next = Next { lap: 0, from: next.from, ..prompt_of(next.tokens[..1].to_vec()) };
        }
    }
    let mut relay = Relay::new(&mut sessions, Duration::ZERO);
    relay.epoch = epoch + 1;
    relay.feed(next);
    loop {
        match relay.drawn().await {
            StageEvent::Drawn { tokens, feed } => {
                answer.extend(tokens);
                relay.feed(feed);
            }
            StageEvent::Finished(..) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answer, expected.0, "as without the moves, and the same probabilities");
    old.shutdown().await;
    new.shutdown().await;
}

#[tokio::test]
async fn cells_that_do_not_fit_are_refused_and_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let stage = EmbeddedStage::start(sliced(directory.path(), 10, 12)).await.unwrap();
    let cells = stage.capabilities().cells.unwrap();
    let good = vec![0_u8; cells.bytes as usize];
    assert_eq!(stage.check_cells(&cells.layout, &good), Ok(1));
    let infinite = { [&good[..good.len() - 1], &[0x7c]].concat() };
    for (layout, bad) in
        [([0; 16], &good[..]), (cells.layout, &good[1..]), (cells.layout, &[]), (cells.layout, &infinite)]
    {
        assert!(matches!(stage.check_cells(&layout, bad), Err(EngineError::Invalid(_))));
    }
    let row = || Input::Rows(bytes::Bytes::from(0.5_f32.to_le_bytes().repeat(576)));
    let mut begun = stage.open(None).unwrap();
    begun.feed(Lap::default(), 0, row()).unwrap();
    assert!(matches!(next(&mut begun).await, StageEvent::Rows { .. }));
    begun.import(good.clone().into(), true).unwrap();
    assert!(matches!(next(&mut begun).await, StageEvent::CellsRefused(_)));
    let mut full = stage.open(None).unwrap();
    let many = bytes::Bytes::from(good.repeat(600));
    full.import(many.clone(), false).unwrap();
    full.import(many, true).unwrap();
    assert!(matches!(next(&mut full).await, StageEvent::CellsRefused(why) if why.contains("context")));
    let mut empty = stage.open(None).unwrap();
    empty.export(5, 1).unwrap();
    assert!(matches!(next(&mut empty).await, StageEvent::CellsRefused(_)));
    // All of them, and the others, go on from where they were.
    for (session, from) in [(&mut begun, 1), (&mut full, 0), (&mut empty, 0)] {
        session.feed(Lap::default(), from, row()).unwrap();
        assert!(matches!(next(session).await, StageEvent::Rows { from: at, .. } if at == from));
    }
    stage.shutdown().await;
}
