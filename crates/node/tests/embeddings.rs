//! Texts embedded over the grid: real sockets and sealing, `fake` engines.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{collections::HashSet, sync::Arc};

use common::{
    Library, MODEL, TestNode,
    crook::{Crook, send},
    eventually, job, metric, workers,
};
use opengrid_network::PeerStream;
use opengrid_node::{
    clock,
    config::EngineKind,
    handle::{EmbedJob, GridError, GridHandle},
    session::wire::read_frame,
};
use opengrid_privacy::sealing::KeyRing;
use opengrid_protocol::{
    NodeId, SessionId,
    beacon::Features,
    codec,
    limits::FRAME_BYTES_MAX,
    session::{Finish, Refusal, ToGateway, ToWorker, Token, Usage},
};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

const WIDTH: u32 = 32;
const CONTEXT: usize = 64;

fn texts(count: usize, length: usize) -> EmbedJob {
    let text = |at: usize| -> Vec<Token> { (0..length).map(|i| ((at * 7 + i) % 57) as Token).collect() };
    EmbedJob { model: MODEL.into(), texts: (0..count).map(text).collect(), width: WIDTH }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_comes_back_in_order_from_several_workers() {
    let library = Library::of_encoder();
    let gateway = TestNode::gateway(&library).await;
    let _first = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    let _second = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 2).await;
    let list = texts(400, CONTEXT);
    let whole = gateway.node.embed(list.clone()).await.unwrap();
    assert_eq!(whole.vectors.len(), 400);
    let distinct: HashSet<NodeId> = whole.workers.iter().copied().collect();
    assert_eq!((distinct.len(), whole.workers.len()), (2, 2), "both work, each is named once");
    for at in [0, 31, 32, 63, 64, 200, 399] {
        let alone = EmbedJob { texts: vec![list.texts[at].clone()], ..list.clone() };
        assert_eq!(gateway.node.embed(alone).await.unwrap().vectors[0], whole.vectors[at], "text {at}");
    }
    let row = gateway.node.models().into_iter().find(|row| row.id == MODEL).unwrap();
    assert_eq!(row.task.to_string(), "embedding");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_embedded_is_refused_by_its_reason() {
    let library = Library::of_encoder();
    let gateway = TestNode::gateway(&library).await;
    let nobody = gateway.node.embed(texts(1, 2)).await;
    assert!(matches!(nobody, Err(GridError::NoWorker { .. })), "{nobody:?}");
    let unknown = EmbedJob { model: "gpt-4".into(), ..texts(1, 2) };
    assert!(matches!(gateway.node.embed(unknown).await, Err(GridError::UnknownModel(_))));
    let _worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let long = gateway.node.embed(texts(1, CONTEXT + 1)).await;
    assert_eq!(long, Err(GridError::ContextOverflow { limit: CONTEXT as u32, needed: CONTEXT as u32 + 1 }));
    let generated = gateway.node.generate(job(5)).await;
    assert!(matches!(generated, Err(GridError::Incapable { .. })), "{:?}", generated.err());

    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let _worker = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 1).await;
    let embedded = gateway.node.embed(texts(1, 2)).await;
    assert!(matches!(embedded, Err(GridError::Incapable { .. })), "{embedded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_worker_costs_a_retry_and_a_dropped_request_frees_its_worker() {
    let library = Library::of_encoder();
    let gateway = TestNode::gateway(&library).await;
    let slow = |home: &std::path::Path| {
        let serve = opengrid_node::config::Serve::Models(vec![MODEL.into()]);
        let mut config = library.config(home, serve, vec![gateway.node.invite()]);
        config.engine.kind = EngineKind::Fake { tokens_per_s: 5.0, slots: 4 };
        config
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = opengrid_node::Node::start(slow(one.path())).await.unwrap();
    let second = opengrid_node::Node::start(slow(two.path())).await.unwrap();
    workers(&gateway.node, 2).await;
    let node = gateway.node.clone();
    let embedding = tokio::spawn(async move { node.embed(texts(300, CONTEXT)).await });
    eventually("both work", || first.status().sessions_running > 0 && second.status().sessions_running > 0).await;
    first.abort().await;
    let embeddings = embedding.await.unwrap().unwrap();
    assert_eq!(embeddings.vectors.len(), 300);
    assert!(metric(&gateway.node, "opengrid_node_failovers") >= 1);

    let node = gateway.node.clone();
    let dropped = tokio::spawn(async move { node.embed(texts(300, CONTEXT)).await });
    eventually("it runs", || second.status().sessions_running > 0).await;
    dropped.abort();
    eventually("it is cancelled", || second.status().sessions_running == 0).await;
    eventually("it is forgotten", || metric(&gateway.node, "opengrid_node_answers") == 0).await;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cheat {
    TooFew,
    TooMany,
    TooShort,
    NotANumber,
    NotOfLengthOne,
    Unaccepted,
    Tokens,
    Finished,
    ForeignSession,
    /// No fault: it may be honest.
    Refuses,
}

const CHEATS: [(Cheat, Option<&str>); 10] = [
    (Cheat::TooFew, Some("WrongVectors")),
    (Cheat::TooMany, Some("WrongVectors")),
    (Cheat::TooShort, Some("WrongVectors")),
    (Cheat::NotANumber, Some("WrongVectors")),
    (Cheat::NotOfLengthOne, Some("WrongVectors")),
    (Cheat::Unaccepted, Some("WrongVectors")),
    (Cheat::Tokens, Some("WrongVectors")),
    (Cheat::Finished, Some("WrongVectors")),
    (Cheat::ForeignSession, Some("ForeignSession")),
    (Cheat::Refuses, None),
];

async fn cheat_one(gateway: NodeId, mut stream: PeerStream, keys: Arc<Mutex<KeyRing>>, cheat: Cheat) -> Option<()> {
    let hello = read_frame(&mut stream, FRAME_BYTES_MAX).await.ok()??;
    let channel = keys.lock().accept(&hello, gateway, clock::now_ms()).ok()?;
    let (mut sealer, mut opener) = channel.into_split();
    let frame = read_frame(&mut stream, FRAME_BYTES_MAX).await.ok()??;
    let ToWorker::Embed(embed) = codec::decode(&opener.open(&frame).ok()?, FRAME_BYTES_MAX).ok()? else { return None };
    let session = embed.session;
    if !matches!(cheat, Cheat::Unaccepted | Cheat::Refuses) {
        send(&mut stream, &mut sealer, &ToGateway::Accepted { session, queued: 0 }).await?;
    }
    let good: Vec<f32> = [vec![1.0], vec![0.0; WIDTH as usize - 1]].concat();
    let mut vectors = vec![good; embed.texts.len()];
    match cheat {
        Cheat::TooFew => drop(vectors.pop()),
        Cheat::TooMany => vectors.push(vectors[0].clone()),
        Cheat::TooShort => drop(vectors[1].pop()),
        Cheat::NotANumber => vectors[1][3] = f32::NAN,
        Cheat::NotOfLengthOne => vectors[1][3] = 0.5,
        _ => {}
    }
    let answer = match cheat {
        Cheat::Tokens => ToGateway::Tokens { session, from: 0, tokens: vec![] },
        Cheat::Finished => ToGateway::Finished { session, finish: Finish::Length, usage: Usage::default() },
        Cheat::ForeignSession => ToGateway::Embedded { session: SessionId(session.0 ^ 1), vectors },
        Cheat::Refuses => ToGateway::Refused { session, why: Refusal::Invalid("no".into()) },
        _ => ToGateway::Embedded { session, vectors },
    };
    send(&mut stream, &mut sealer, &answer).await?;
    stream.flush().await.ok()?;
    while let Ok(Some(_)) = read_frame(&mut stream, FRAME_BYTES_MAX).await {}
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cheat_is_caught_and_the_texts_are_embedded_elsewhere() {
    for (cheat, fault) in CHEATS {
        let library = Library::of_encoder();
        let gateway = TestNode::gateway(&library).await;
        let honest = TestNode::worker(&library, vec![gateway.node.invite()]).await;
        let answer = move |gateway, stream, keys| async move {
            let _ = cheat_one(gateway, stream, keys, cheat).await;
        };
        // It says that it is the quicker one by far, so it is asked first.
        let mut crook = Crook::start(&gateway.node.invite(), library.root(), Features::EMBED, answer).await;
        workers(&gateway.node, 2).await;
        let embeddings = gateway.node.embed(texts(3, 5)).await.unwrap();
        assert_eq!((embeddings.vectors.len(), embeddings.workers), (3, vec![honest.node.local()]), "{cheat:?}");
        assert!(metric(&gateway.node, "opengrid_node_failovers") >= 1, "{cheat:?}: the crook was asked");
        let faults =
            |name: &str| metric(&gateway.node, &format!("opengrid_node_peer_faults_total{{fault=\"{name}\"}}"));
        match fault {
            Some(fault) => {
                eventually(&format!("{cheat:?} is counted"), || faults(fault) == 1).await;
                let crook_id = crook.network.local();
                let connected = || gateway.node.peers().iter().any(|peer| peer.peer_id.0 == crook_id && peer.connected);
                eventually(&format!("{cheat:?}: the crook is dropped"), || !connected()).await;
            }
            None => assert_eq!(faults("WrongVectors") + faults("WrongTokens"), 0, "{cheat:?}"),
        }
        crook.tasks.shutdown().await;
        crook.network.shutdown().await;
        honest.node.shutdown().await;
        gateway.node.shutdown().await;
    }
}
