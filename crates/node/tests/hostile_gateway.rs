//! A gateway that misbehaves on the wire is dropped and counted by the worker, and disturbs nobody else.
//!
//! The hostile gateway is a real network node built from the same parts, with a hand on the frames.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::{Library, TestNode, collect, eventually, job, metric, workers};
use opengrid_network::{Network, NetworkConfig, PeerStream, Verdict};
use opengrid_node::{
    clock,
    handle::{AnswerEvent, GridHandle},
    invites,
    session::{
        KEY_PROTOCOL, SESSION_PROTOCOL,
        wire::{read_frame, write_frame},
    },
};
use opengrid_privacy::sealing::{ClientChannel, Opener, Sealer};
use opengrid_protocol::{
    ModelRoot, NodeId, Sampling, SessionId, Signed, codec,
    limits::{CHANNELS_PER_PEER_MAX, FRAME_BYTES_MAX, RECORD_BYTES_MAX, SESSIONS_PER_CHANNEL_MAX},
    sealing_key::SealingKey,
    session::{Open, Refusal, ToGateway, ToWorker},
};
use tokio::{io::AsyncWriteExt, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);

struct Hostile {
    network: Network,
    worker: NodeId,
    model: ModelRoot,
    _events: tokio::sync::mpsc::Receiver<opengrid_network::NetworkEvent>,
}

struct Channel {
    stream: PeerStream,
    sealer: Sealer,
    opener: Opener,
}

impl Hostile {
    async fn start(library: &Library, worker: &TestNode) -> Self {
        let mut config = NetworkConfig::new(rand::random());
        config.p2p_port = 0;
        config.mdns = false;
        config.upnp = false;
        config.gossip_validator = Arc::new(|_| Verdict::Accept);
        let (network, events) = Network::start(config).await.unwrap();
        network.dial(invites::addresses_of(&worker.node.invite(), false).unwrap()).await.unwrap();
        let hostile = Self { network, worker: worker.node.local(), model: library.root(), _events: events };
        eventually("the hostile gateway is connected", || hostile.connected()).await;
        // Addresses are dialled side by side; the connections that come second are closed again.
        tokio::time::sleep(Duration::from_millis(500)).await;
        hostile
    }

    fn connected(&self) -> bool {
        self.network.peers().iter().any(|peer| peer.node == self.worker)
    }

    async fn key(&self) -> SealingKey {
        let mut stream = self.network.open_stream(self.worker, KEY_PROTOCOL).await.unwrap();
        let bytes = read_frame(&mut stream, RECORD_BYTES_MAX).await.unwrap().unwrap();
        Signed::from_bytes(&bytes).unwrap().open(clock::now_ms()).unwrap()
    }

    async fn stream(&self) -> PeerStream {
        self.network.open_stream(self.worker, SESSION_PROTOCOL).await.unwrap()
    }

    /// A hello made by `gateway`, and its channel.
    async fn hello(&self, gateway: NodeId) -> (ClientChannel, Vec<u8>) {
        ClientChannel::open(self.worker, &self.key().await, gateway).unwrap()
    }

    async fn channel(&self) -> Channel {
        let (channel, hello) = self.hello(self.network.local()).await;
        let mut stream = self.stream().await;
        // The worker may have closed the stream already; then nothing is read from it.
        let _ = write_frame(&mut stream, &hello).await;
        let _ = stream.flush().await;
        let (sealer, opener) = channel.into_split();
        Channel { stream, sealer, opener }
    }

    fn open(&self, session: u64, completion_tokens_max: u32) -> Open {
        Open {
            session: SessionId(session),
            model: self.model,
            tokens: (1..20).collect(),
            prompt_tokens: 19,
            completion_tokens_max,
            stop_tokens: vec![],
            sampling: Sampling::greedy(),
            top_logprobs: None,
            grammar: None,
            tier: opengrid_protocol::session::Tier::Default,
        }
    }

    async fn stop(self) {
        self.network.shutdown().await;
    }
}

impl Channel {
    fn sealed(&mut self, open: Open) -> Vec<u8> {
        self.sealer.seal(&codec::encode(&ToWorker::Open(Box::new(open)))).unwrap()
    }

    async fn write(&mut self, frame: &[u8]) {
        write_frame(&mut self.stream, frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn send(&mut self, open: Open) {
        let frame = self.sealed(open);
        self.write(&frame).await;
    }

    /// The next message but heartbeats; `None` when the worker closed the channel.
    async fn next(&mut self) -> Option<ToGateway> {
        loop {
            let frame =
                timeout(PATIENCE, read_frame(&mut self.stream, FRAME_BYTES_MAX)).await.expect("no word in 10 s");
            let message = codec::decode(&self.opener.open(&frame.ok()??).unwrap(), FRAME_BYTES_MAX).unwrap();
            if !matches!(message, ToGateway::Heartbeat) {
                return Some(message);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Attack {
    GarbageAsHello,
    AlteredHello,
    OversizedHello,
    StolenHello,
    ReplayedHello,
    AlteredFrame,
    ReplayedFrame,
    OversizedFrame,
    MalformedMessage,
}

const ATTACKS: [(Attack, &str); 9] = [
    (Attack::GarbageAsHello, "BadSeal"),
    (Attack::AlteredHello, "BadSeal"),
    (Attack::OversizedHello, "Oversized"),
    (Attack::StolenHello, "BadSeal"),
    (Attack::ReplayedHello, "ReplayedHello"),
    (Attack::AlteredFrame, "BadSeal"),
    (Attack::ReplayedFrame, "BadSeal"),
    (Attack::OversizedFrame, "Oversized"),
    (Attack::MalformedMessage, "Malformed"),
];

/// The worker may have judged already, and closed the stream.
async fn send(stream: &mut PeerStream, frame: &[u8]) {
    let _ = write_frame(stream, frame).await;
    let _ = stream.flush().await;
}

/// The streams must stay open until the worker has judged them.
async fn attack(hostile: &Hostile, attack: Attack) -> Vec<PeerStream> {
    let own = hostile.network.local();
    let mut streams = vec![hostile.stream().await];
    let stream = &mut streams[0];
    match attack {
        Attack::GarbageAsHello => send(stream, &[0xa5; 1_200]).await,
        Attack::AlteredHello => {
            let (_, mut hello) = hostile.hello(own).await;
            let middle = hello.len() / 2;
            hello[middle] ^= 1;
            send(stream, &hello).await;
            // An altered X-Wing ciphertext still gives a key, another one: the first frame shows it.
            send(stream, &[7; 300]).await;
        }
        Attack::OversizedHello | Attack::OversizedFrame => {
            if matches!(attack, Attack::OversizedFrame) {
                let (_, hello) = hostile.hello(own).await;
                send(stream, &hello).await;
            }
            let _ = stream.write_all(&[0xff; 64]).await;
        }
        Attack::StolenHello => {
            let (channel, hello) = hostile.hello(NodeId([3; 32])).await;
            send(stream, &hello).await;
            let frame = channel.into_split().0.seal(&[1; 40]).unwrap();
            send(stream, &frame).await;
        }
        Attack::ReplayedHello => {
            let (_, hello) = hostile.hello(own).await;
            send(stream, &hello).await;
            let mut second = hostile.stream().await;
            send(&mut second, &hello).await;
            streams.push(second);
        }
        Attack::AlteredFrame | Attack::ReplayedFrame | Attack::MalformedMessage => {
            let mut channel = hostile.channel().await;
            let mut frame = match attack {
                Attack::MalformedMessage => channel.sealer.seal(&[0xff; 40]).unwrap(),
                _ => channel.sealed(hostile.open(1, 5)),
            };
            if matches!(attack, Attack::AlteredFrame) {
                let middle = frame.len() / 2;
                frame[middle] ^= 1;
            }
            channel.write(&frame).await;
            if matches!(attack, Attack::ReplayedFrame) {
                channel.write(&frame).await;
            }
            streams.push(channel.stream);
        }
    }
    let _ = streams[0].flush().await;
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_is_counted_and_its_peer_dropped_while_an_honest_answer_goes_on() {
    for (kind, fault) in ATTACKS {
        let library = Library::new();
        let worker = TestNode::worker(&library, vec![]).await;
        let honest = TestNode::start(&library, opengrid_node::config::Serve::None, vec![worker.node.invite()]).await;
        workers(&honest.node, 1).await;
        let hostile = Hostile::start(&library, &worker).await;
        let answer = honest.node.generate(job(100)).await.unwrap();
        let streams = attack(&hostile, kind).await;
        let name = format!("opengrid_node_peer_faults_total{{fault=\"{fault}\"}}");
        eventually(&format!("{kind:?} is counted as {fault}"), || metric(&worker.node, &name) == 1).await;
        eventually(&format!("{kind:?}: the peer is dropped"), || !hostile.connected()).await;
        let (tokens, moves) = collect(answer).await;
        assert_eq!((tokens.len(), moves), (100, 0), "{kind:?}");
        let faults: u64 = ATTACKS
            .iter()
            .map(|(_, fault)| *fault)
            .collect::<std::collections::HashSet<_>>()
            .into_iter()
            .map(|fault| metric(&worker.node, &format!("opengrid_node_peer_faults_total{{fault=\"{fault}\"}}")))
            .sum();
        assert_eq!(faults, 1, "{kind:?}: nobody else is blamed");
        drop(streams);
        hostile.stop().await;
        honest.node.shutdown().await;
        worker.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_sessions_is_refused_one_by_one_and_an_honest_answer_goes_on() {
    let library = Library::new();
    let worker = TestNode::worker(&library, vec![]).await;
    let honest = TestNode::start(&library, opengrid_node::config::Serve::None, vec![worker.node.invite()]).await;
    workers(&honest.node, 1).await;
    let hostile = Hostile::start(&library, &worker).await;
    let mut answer = honest.node.generate(job(200)).await.unwrap();
    assert!(matches!(answer.events.recv().await, Some(AnswerEvent::Tokens(_) | AnswerEvent::Queued(_))));
    let mut channel = hostile.channel().await;
    let flood = SESSIONS_PER_CHANNEL_MAX as u64 + 1;
    for session in 0..flood {
        channel.send(hostile.open(session, 5)).await;
    }
    let mut ends: HashMap<SessionId, bool> = HashMap::new();
    while ends.len() < flood as usize {
        match channel.next().await.expect("the channel stays open") {
            ToGateway::Finished { session, .. } => assert_eq!(ends.insert(session, true), None),
            ToGateway::Refused { session, why } => {
                assert_eq!(why, Refusal::Busy);
                assert_eq!(ends.insert(session, false), None);
            }
            _ => {}
        }
    }
    let served = ends.values().filter(|served| **served).count();
    assert!(served >= 16, "the slots and the queue are used: {served}");
    let (_, moves) = collect(answer).await;
    assert_eq!(moves, 0);
    assert!(hostile.connected(), "asking for much is no crime");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_in_an_opening_is_refused_by_name_and_the_channel_lives() {
    let library = Library::new();
    let worker = TestNode::worker(&library, vec![]).await;
    let hostile = Hostile::start(&library, &worker).await;
    let mut channel = hostile.channel().await;
    let nonsense = [
        Open { tokens: vec![], ..hostile.open(1, 5) },
        Open { prompt_tokens: 20, ..hostile.open(2, 5) },
        Open { completion_tokens_max: u32::MAX, ..hostile.open(3, 5) },
        Open { sampling: Sampling { temperature: f32::NAN, ..Sampling::greedy() }, ..hostile.open(4, 5) },
    ];
    for open in nonsense {
        let session = open.session;
        channel.send(open).await;
        match channel.next().await {
            Some(ToGateway::Refused { session: refused, why: Refusal::Invalid(_) }) => assert_eq!(refused, session),
            other => panic!("{session:?}: {other:?}"),
        }
    }
    channel.send(Open { model: ModelRoot([9; 32]), ..hostile.open(6, 5) }).await;
    let other_model = channel.next().await;
    assert!(matches!(other_model, Some(ToGateway::Refused { why: Refusal::ModelNotServed, .. })), "{other_model:?}");
    channel.send(hostile.open(7, 100)).await;
    channel.send(hostile.open(7, 100)).await;
    let mut twice = false;
    while !twice {
        twice = matches!(channel.next().await.unwrap(), ToGateway::Refused { why: Refusal::Invalid(_), .. });
    }
    while !matches!(channel.next().await.unwrap(), ToGateway::Finished { .. }) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifth_channel_is_closed_unheard_and_silent_ones_give_their_place_back() {
    let library = Library::new();
    let worker = TestNode::worker(&library, vec![]).await;
    let hostile = Hostile::start(&library, &worker).await;
    let mut open = Vec::new();
    for _ in 0..CHANNELS_PER_PEER_MAX {
        let mut channel = hostile.channel().await;
        channel.send(hostile.open(1, 2)).await;
        assert!(channel.next().await.is_some());
        open.push(channel);
    }
    let mut fifth = hostile.channel().await;
    let frame = fifth.sealed(hostile.open(1, 2));
    let _ = write_frame(&mut fifth.stream, &frame).await;
    assert!(fifth.next().await.is_none(), "closed unheard");
    open[0].send(hostile.open(2, 2)).await;
    assert!(open[0].next().await.is_some(), "the others live");
    drop(open);
    let mut silent = Vec::new();
    for _ in 0..CHANNELS_PER_PEER_MAX {
        silent.push(hostile.stream().await);
    }
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    let mut later = hostile.channel().await;
    later.send(hostile.open(1, 2)).await;
    assert!(later.next().await.is_some(), "no hello within 5 s: the place is free again");
}
