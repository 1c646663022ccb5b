//! A worker that cheats on the wire is caught by the gateway every time, and the answer is right all the same.
//!
//! The cheat is a real network node built from the same parts, with a hand on the frames.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use common::{
    Library, TestNode, VOCABULARY, collect,
    crook::{Crook, sealed, send},
    eventually, job, metric, workers,
};
use opengrid_network::PeerStream;
use opengrid_node::handle::GridHandle;
use opengrid_node::{
    clock,
    session::wire::{read_frame, write_frame},
};
use opengrid_privacy::sealing::KeyRing;
use opengrid_protocol::{
    ModelRoot, NodeId, SessionId,
    beacon::Features,
    codec,
    limits::FRAME_BYTES_MAX,
    session::{Finish, Refusal, ToGateway, ToWorker, TokenOut, Usage},
};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cheat {
    FlipBit,
    ReplayFrame,
    FrameOfAnotherSession,
    Oversized,
    Malformed,
    ForeignSessionId,
    SkippedIndex,
    TooMany,
    TokenOutOfRange,
    EarlyEnd,
    NoTokens,
    QueuedInMidAnswer,
    /// Before anything else; no fault, since it may be honest.
    CallsInvalid,
}

const CHEATS: [(Cheat, &str); 12] = [
    (Cheat::FlipBit, "BadSeal"),
    (Cheat::ReplayFrame, "BadSeal"),
    (Cheat::FrameOfAnotherSession, "BadSeal"),
    (Cheat::Oversized, "Oversized"),
    (Cheat::Malformed, "Malformed"),
    (Cheat::ForeignSessionId, "ForeignSession"),
    (Cheat::SkippedIndex, "WrongTokens"),
    (Cheat::TooMany, "WrongTokens"),
    (Cheat::TokenOutOfRange, "WrongTokens"),
    (Cheat::EarlyEnd, "WrongTokens"),
    (Cheat::NoTokens, "WrongTokens"),
    (Cheat::QueuedInMidAnswer, "WrongTokens"),
];

/// Answers five tokens and then cheats.
async fn crook(gateway_invite: &str, model: ModelRoot, cheat: Cheat) -> Crook {
    let cheat = move |gateway, stream, keys| async move {
        let _ = cheat_one(gateway, stream, keys, cheat).await;
    };
    Crook::start(gateway_invite, model, Features::EMBEDDED, cheat).await
}

async fn cheat_one(gateway: NodeId, mut stream: PeerStream, keys: Arc<Mutex<KeyRing>>, cheat: Cheat) -> Option<()> {
    let hello = read_frame(&mut stream, FRAME_BYTES_MAX).await.ok()??;
    let channel = keys.lock().accept(&hello, gateway, clock::now_ms()).ok()?;
    let (mut sealer, mut opener) = channel.into_split();
    let frame = read_frame(&mut stream, FRAME_BYTES_MAX).await.ok()??;
    let ToWorker::Open(open) = codec::decode(&opener.open(&frame).ok()?, FRAME_BYTES_MAX).ok()? else { return None };
    let session = open.session;
    if cheat == Cheat::CallsInvalid {
        let why = Refusal::Invalid("call 0900 123 for help".into());
        send(&mut stream, &mut sealer, &ToGateway::Refused { session, why }).await?;
        stream.flush().await.ok()?;
        while let Ok(Some(_)) = read_frame(&mut stream, FRAME_BYTES_MAX).await {}
        return Some(());
    }
    send(&mut stream, &mut sealer, &ToGateway::Accepted { session, queued: 0 }).await?;
    let mut last = Vec::new();
    for from in 0..5 {
        last = sealed(&mut sealer, &tokens(session, from, &[3]));
        write_frame(&mut stream, &last).await.ok()?;
    }
    match cheat {
        Cheat::FlipBit => {
            let mut frame = sealed(&mut sealer, &tokens(session, 5, &[3]));
            let middle = frame.len() / 2;
            frame[middle] ^= 1;
            write_frame(&mut stream, &frame).await.ok()?;
        }
        Cheat::ReplayFrame => write_frame(&mut stream, &last).await.ok()?,
        Cheat::FrameOfAnotherSession => {
            // A frame that was sealed, honestly, on another channel between other parties.
            let mut other = KeyRing::new([9; 32], clock::now_ms());
            let key = other.current(clock::now_ms()).open(clock::now_ms()).unwrap();
            let worker = other.current(clock::now_ms()).signer;
            let (_client, hello) = opengrid_privacy::sealing::ClientChannel::open(worker, &key, gateway).unwrap();
            let channel = other.accept(&hello, gateway, clock::now_ms()).unwrap();
            let frame = sealed(&mut channel.into_split().0, &tokens(session, 5, &[3]));
            write_frame(&mut stream, &frame).await.ok()?;
        }
        Cheat::Oversized => stream.write_all(&[0xff; 64]).await.ok()?,
        Cheat::Malformed => {
            let frame = sealer.seal(&[0xff; 40]).ok()?;
            write_frame(&mut stream, &frame).await.ok()?;
        }
        Cheat::ForeignSessionId => {
            send(&mut stream, &mut sealer, &tokens(SessionId(session.0 ^ 0xdead), 5, &[3])).await?;
        }
        Cheat::SkippedIndex => send(&mut stream, &mut sealer, &tokens(session, 6, &[3])).await?,
        Cheat::TooMany => send(&mut stream, &mut sealer, &tokens(session, 5, &[3; 10_000])).await?,
        Cheat::TokenOutOfRange => send(&mut stream, &mut sealer, &tokens(session, 5, &[VOCABULARY])).await?,
        Cheat::NoTokens => send(&mut stream, &mut sealer, &tokens(session, 5, &[])).await?,
        Cheat::QueuedInMidAnswer => {
            send(&mut stream, &mut sealer, &ToGateway::Accepted { session, queued: 1 }).await?;
        }
        Cheat::CallsInvalid => {}
        Cheat::EarlyEnd => {
            let usage = Usage::default();
            send(&mut stream, &mut sealer, &ToGateway::Finished { session, finish: Finish::Length, usage }).await?;
        }
    }
    stream.flush().await.ok()?;
    // Stays connected: only the gateway ends this.
    while let Ok(Some(_)) = read_frame(&mut stream, FRAME_BYTES_MAX).await {}
    Some(())
}

fn tokens(session: SessionId, from: u32, ids: &[u32]) -> ToGateway {
    let out = |&token: &u32| TokenOut { token, logprob: None, top: vec![] };
    ToGateway::Tokens { session, from, tokens: ids.iter().map(out).collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cheat_is_caught_and_the_answer_completes_elsewhere() {
    for (cheat, fault) in CHEATS {
        let library = Library::new();
        let gateway = TestNode::gateway(&library).await;
        let mut crook = crook(&gateway.node.invite(), library.root(), cheat).await;
        workers(&gateway.node, 1).await;
        let answer = gateway.node.generate(job(40)).await.unwrap();
        assert_eq!(answer.worker, crook.network.local(), "{cheat:?}");
        let honest = TestNode::worker(&library, vec![gateway.node.invite()]).await;
        let (tokens, moves) = collect(answer).await;
        assert_eq!((tokens.len(), moves), (40, 1), "{cheat:?}");
        assert!(honest.node.status().tokens_generated >= 35, "{cheat:?}");
        let name = format!("opengrid_node_peer_faults_total{{fault=\"{fault}\"}}");
        assert_eq!(metric(&gateway.node, &name), 1, "{cheat:?}: {}", gateway.node.metrics());
        let crook_id = crook.network.local();
        eventually("the crook is off the lists", || {
            use opengrid_node::handle::GridHandle;
            !gateway.node.peers()[..].iter().any(|peer| peer.peer_id.0 == crook_id && peer.connected)
        })
        .await;
        let again = gateway.node.generate(job(40)).await.unwrap();
        assert_eq!(again.worker, honest.node.local(), "{cheat:?}: a cheat gets no second chance");
        assert_eq!(collect(again).await.0.len(), 40);
        crook.tasks.shutdown().await;
        crook.network.shutdown().await;
        honest.node.shutdown().await;
        gateway.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_that_calls_a_request_invalid_is_not_believed() {
    let library = Library::new();
    let gateway = TestNode::gateway(&library).await;
    let crook = crook(&gateway.node.invite(), library.root(), Cheat::CallsInvalid).await;
    workers(&gateway.node, 1).await;
    let alone = gateway.node.generate(job(5)).await.unwrap_err();
    assert!(matches!(alone, opengrid_node::handle::GridError::NoWorker { .. }), "{alone:?}");
    let honest = TestNode::worker(&library, vec![gateway.node.invite()]).await;
    workers(&gateway.node, 2).await;
    let answer = gateway.node.generate(job(40)).await.unwrap();
    assert_eq!(answer.worker, honest.node.local());
    assert_eq!(collect(answer).await, (collect(gateway.node.generate(job(40)).await.unwrap()).await.0, 0));
    drop(crook);
}
