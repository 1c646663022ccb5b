//! Answers over sealed channels between real nodes, and past dead workers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Library, TestNode, collect, eventually, job, metric, workers};
use opengrid_node::{
    config::{EngineKind, Serve},
    handle::{AnswerEvent, GridError, GridHandle},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_model_answers_through_a_worker() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let answer = gateway.node.generate(job(20)).await.unwrap();
    assert_eq!(answer.worker, worker.node.local());
    let (tokens, moves) = collect(answer).await;
    assert_eq!((tokens.len(), moves), (20, 0));
    assert_eq!(worker.node.status().tokens_generated, 20);
    let own = worker.node.generate(job(20)).await.unwrap();
    assert_eq!(own.worker, worker.node.local());
    assert_eq!(collect(own).await.0, tokens, "the same seed gives the same answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_survives_the_end_of_its_worker_unchanged() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let first = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let (undisturbed, _) = collect(gateway.node.generate(job(100)).await.unwrap()).await;

    let mut answer = gateway.node.generate(job(100)).await.unwrap();
    assert_eq!(answer.worker, first.node.local());
    let second = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 2).await;
    let mut tokens = Vec::new();
    while tokens.len() < 30 {
        if let Some(AnswerEvent::Tokens(new)) = answer.events.recv().await {
            tokens.extend(new.iter().map(|out| out.token));
        }
    }
    // The worker vanishes: no draining, no goodbye.
    first.node.abort().await;
    let (rest, moves) = collect(answer).await;
    tokens.extend(rest);
    assert_eq!(moves, 1);
    assert_eq!(tokens, undisturbed);
    assert!(second.node.status().tokens_generated > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_answer_waits_for_its_only_worker_to_come_back() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let first = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let answer = gateway.node.generate(job(60)).await.unwrap();
    first.node.abort().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _second = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    let (tokens, moves) = collect(answer).await;
    assert_eq!((tokens.len(), moves), (60, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_and_unknown_are_told_apart_at_once() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let began = Instant::now();
    assert!(matches!(gateway.node.generate(job(5)).await, Err(GridError::NoWorker { .. })));
    let unknown = opengrid_node::handle::Job { model: "no-such".into(), ..job(5) };
    assert!(matches!(gateway.node.generate(unknown).await, Err(GridError::UnknownModel(_))));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_the_context_is_refused_with_both_numbers() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let _worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let limit = gateway.node.models()[..].iter().find(|m| m.id == common::MODEL).unwrap().context_tokens;
    let error = gateway.node.generate(job(limit)).await.unwrap_err();
    assert_eq!(error, GridError::ContextOverflow { limit, needed: limit + 19 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_finishes_and_takes_nothing_new() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let answer = gateway.node.generate(job(80)).await.unwrap();
    let draining = worker.node.clone();
    let shutdown = tokio::spawn(async move { draining.shutdown().await });
    let (tokens, moves) = collect(answer).await;
    assert_eq!((tokens.len(), moves), (80, 0), "the running answer ended in peace");
    shutdown.await.unwrap();
    workers(&gateway.node, 0).await;
    assert!(matches!(gateway.node.generate(job(5)).await, Err(GridError::NoWorker { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_long_for_its_slot_is_not_taken_for_hung() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let home = tempfile::tempdir().unwrap();
    let serve = Serve::Models(vec![common::MODEL.into()]);
    let mut config = library.config(home.path(), serve, vec![gateway.node.invite()]);
    // One answer at a time, each 10 s long: more than a worker may be silent with a session that runs.
    config.engine.kind = EngineKind::Fake { tokens_per_s: 20.0, slots: 1 };
    let _worker = opengrid_node::Node::start(config).await.unwrap();
    workers(&gateway.node, 1).await;
    let first = gateway.node.generate(job(200)).await.unwrap();
    let second = gateway.node.generate(job(10)).await.unwrap();
    let ((first, moves_of_first), (second, moves_of_second)) = tokio::join!(collect(first), collect(second));
    assert_eq!((first.len(), second.len()), (200, 10));
    assert_eq!((moves_of_first, moves_of_second), (0, 0));
    assert_eq!(metric(&gateway.node, "opengrid_node_failovers"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_an_answer_frees_the_worker() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let answer = gateway.node.generate(job(200)).await.unwrap();
    eventually("the session runs", || worker.node.status().sessions_running == 1).await;
    drop(answer);
    eventually("the session ended", || worker.node.status().sessions_running == 0).await;
    eventually("the answer is forgotten", || metric(&gateway.node, "opengrid_node_answers") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_file_fetches_it_from_a_peer_and_serves_it() {
    let library = Library::new();
    let first = TestNode::worker(&library, vec![]).await;
    workers(&first.node, 1).await;
    let empty = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let mut config = library.config(home.path(), Serve::Models(vec![common::MODEL.into()]), vec![first.node.invite()]);
    config.models_dir = empty.path().to_owned();
    let second = opengrid_node::Node::start(config).await.unwrap();
    workers(&first.node, 2).await;
    assert!(second.models()[..].iter().any(|m| m.id == common::MODEL && m.local));
}
