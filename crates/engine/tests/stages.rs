//! Stages in processes of their own, one behind the other, against the whole model: the same tokens and the same
//! probabilities to the bit, with several sessions at once, after feeding again, and over the death of a stage.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "stages/draft_model.rs"]
mod draft_model;

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use common::*;
use opengrid_engine::{
    Draft, EmbeddedConfig, EmbeddedStage, Engine, EngineError, GenerateRequest, Input, Stage, StageEvent, StageSession,
    StageSlice, TableFile,
};
use opengrid_models::{gguf::file::Header, slice};
use opengrid_protocol::{
    Layers, ModelRoot, Sampling,
    beacon::Class,
    session::{Finish, Token, TokenOut},
};
use tempfile::TempDir;
use tokio::time::timeout;

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

/// Hands rows on from stage to stage until the last one has what came to the first, and returns what it says then.
async fn lap(sessions: &mut [StageSession], from: u32, tokens: Vec<Token>) -> StageEvent {
    kept_lap(sessions, from, tokens, &mut Vec::new()).await
}

/// What the first stage sends is kept by position, as a stage's ring keeps it.
async fn kept_lap(sessions: &mut [StageSession], from: u32, tokens: Vec<Token>, sent: &mut Vec<u8>) -> StageEvent {
    let end = from + tokens.len() as u32;
    sessions[0].feed(from, Input::Tokens(tokens)).unwrap();
    for at in 0..sessions.len() - 1 {
        let mut reached = from;
        while reached < end {
            let StageEvent::Rows { from, rows } = next(&mut sessions[at]).await else { panic!("rows are next") };
            assert_eq!(from, reached, "rows come in order");
            reached += (rows.len() / ROW_BYTES) as u32;
            if at == 0 {
                sent.truncate(from as usize * ROW_BYTES);
                sent.extend_from_slice(&rows);
            }
            sessions[at + 1].feed(from, Input::Rows(rows)).unwrap();
        }
    }
    let last = sessions.len() - 1;
    next(&mut sessions[last]).await
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
    let (mut from, mut feed) = (0, prompt);
    let (mut answer, mut laps) = (Vec::new(), 0);
    loop {
        laps += 1;
        tokio::time::sleep(delay).await;
        match lap(sessions, from, feed).await {
            StageEvent::Drawn { tokens, from: next_from, feed: next_feed, .. } => {
                answer.extend(tokens);
                (from, feed) = (next_from, next_feed);
                if feed.is_empty() {
                    let last = sessions.len() - 1;
                    let StageEvent::Finished(finish, _) = next(&mut sessions[last]).await else { panic!("the end") };
                    return (answer, finish, laps);
                }
            }
            StageEvent::Finished(finish, usage) => {
                assert_eq!(usage.generated_tokens as usize, answer.len());
                return (answer, finish, laps);
            }
            other => panic!("{other:?}"),
        }
    }
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
    let (mut sent, mut answer) = (Vec::new(), Vec::new());
    let (mut from, mut feed) = (0, request.tokens.clone());
    for _ in 0..20 {
        let StageEvent::Drawn { tokens, from: next_from, feed: next_feed, .. } =
            kept_lap(&mut sessions, from, feed, &mut sent).await
        else {
            panic!("a token")
        };
        answer.extend(tokens);
        (from, feed) = (next_from, next_feed);
    }
    kill(pipeline.stages[1].child_pid().unwrap());
    assert_eq!(next(&mut sessions[1]).await, StageEvent::Failed(EngineError::Died));
    sessions[1] = reopen(&pipeline.stages[1]).await;
    // Rows of guesses that did not come true are not sent again.
    sent.truncate(from as usize * ROW_BYTES);
    sessions[1].feed(0, Input::Rows(sent.into())).unwrap();
    let mut replayed = 0;
    while replayed < from {
        let StageEvent::Rows { rows, .. } = next(&mut sessions[1]).await else { panic!("rows") };
        replayed += (rows.len() / ROW_BYTES) as u32;
    }
    loop {
        match lap(&mut sessions, from, feed).await {
            StageEvent::Drawn { tokens, from: next_from, feed: next_feed, .. } => {
                answer.extend(tokens);
                (from, feed) = (next_from, next_feed);
            }
            other => panic!("{other:?}"),
        }
        if feed.is_empty() {
            break;
        }
    }
    assert_eq!(answer, expected.0, "as without the fault");
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
    gap.feed(3, Input::Rows(row(0.5))).unwrap();
    assert!(matches!(next(&mut gap).await, StageEvent::Failed(EngineError::Invalid(_))));
    let mut long = stage.open(None).unwrap();
    let rows = bytes::Bytes::from(1.0_f32.to_le_bytes().repeat(576 * 400));
    for from in [0, 400, 800] {
        long.feed(from, Input::Rows(rows.clone())).unwrap();
    }
    loop {
        match next(&mut long).await {
            StageEvent::Rows { .. } => {}
            StageEvent::Failed(EngineError::Invalid(why)) => break assert!(why.contains("1024"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    honest.feed(0, Input::Rows(row(0.5))).unwrap();
    assert!(matches!(next(&mut honest).await, StageEvent::Rows { from: 0, rows } if rows.len() == 576 * 4));
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
    let (mut from, mut feed) = (0, request.tokens.clone());
    for moving in [Some(1), None, Some(0), Some(2)] {
        for _ in 0..2 {
            let StageEvent::Drawn { tokens, from: next_from, feed: next_feed, .. } =
                lap(&mut sessions, from, feed).await
            else {
                panic!("a token")
            };
            answer.extend(tokens);
            (from, feed) = (next_from, next_feed);
        }
        let Some(at) = moving else { continue };
        let so_far = answer.iter().map(|out| out.token);
        let head =
            GenerateRequest { tokens: request.tokens.iter().copied().chain(so_far).collect(), ..request.clone() };
        let heir = new.stages[at].open((at == 2).then_some(head)).unwrap();
        sessions[at] = moved(&mut sessions[at], &new.stages[at], heir, from).await;
    }
    // A last stage that knows of no guesses takes them for what they are.
    feed.truncate(1);
    while !feed.is_empty() {
        match lap(&mut sessions, from, feed).await {
            StageEvent::Drawn { tokens, from: next_from, feed: next_feed, .. } => {
                answer.extend(tokens);
                (from, feed) = (next_from, next_feed);
            }
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
    begun.feed(0, row()).unwrap();
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
        session.feed(from, row()).unwrap();
        assert!(matches!(next(session).await, StageEvent::Rows { from: at, .. } if at == from));
    }
    stage.shutdown().await;
}
