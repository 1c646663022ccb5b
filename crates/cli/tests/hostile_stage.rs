//! A stage that misbehaves between honest ones: the answer is the same, the stage is recorded, and nothing else is harmed.
//!
//! The hostile stage is a real network node built from the same parts, with a hand on the frames.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../node/tests/common/mod.rs"]
mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{Library, MODEL, TestNode, collect, crook::Crook, eventually, job, metric};
use opengrid_network::{Network, PeerStream};
use opengrid_node::{
    Node, NodeConfig, clock,
    config::{EngineKind, Serve, Wish, WishedPart},
    handle::GridHandle,
    invites,
    pipeline::STAGE_PROTOCOL,
    session::{
        keys, sealed,
        wire::{read_frame, write_frame},
    },
};
use opengrid_privacy::sealing::{ClientChannel, KeyRing, Sealer};
use opengrid_protocol::{
    Layers, ModelRoot, NodeId,
    beacon::{Features, StageBeacon},
    codec,
    limits::FRAME_BYTES_MAX,
    pipeline::{Carried, OpenPart, Order, PartState, ToStage},
    session::{ToGateway, ToWorker},
};
use parking_lot::Mutex;
use tokio::{io::AsyncWriteExt, sync::mpsc};

const LAYERS: u32 = 6;
/// Of the model between layers, in bytes.
const WIDTH: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cheat {
    WrongWidth,
    NotANumber,
    Gap,
    TokensForRows,
    HugeFrame,
    Nonsense,
    BrokenSeal,
    /// Takes rows and gives none.
    Silent,
    /// The right number of rows, all of the same wrong ones, twice.
    Twice,
}

/// What the honest neighbour counts.
const CHEATS: [(Cheat, Option<&str>); 9] = [
    (Cheat::WrongWidth, Some("BadRows")),
    (Cheat::NotANumber, Some("BadRows")),
    (Cheat::Gap, Some("BadRows")),
    (Cheat::TokensForRows, Some("BadRows")),
    (Cheat::HugeFrame, Some("Oversized")),
    (Cheat::Nonsense, Some("Malformed")),
    (Cheat::BrokenSeal, Some("BadSeal")),
    (Cheat::Silent, None),
    (Cheat::Twice, Some("BadRows")),
];

fn config(library: &Library, home: &Path, layers: &str, join: Vec<String>) -> NodeConfig {
    let part = WishedPart::Layers(layers.parse().unwrap());
    let serve = Serve::Models(vec![Wish { model: MODEL.into(), part }]);
    let mut config = library.config(home, serve, join);
    config.program = env!("CARGO_BIN_EXE_opengrid").into();
    config.engine.kind = EngineKind::Embedded;
    config.engine.threads = Some(1);
    config.engine.slots = Some(4);
    config
}

async fn stage(library: &Library, layers: &str, gateway: &TestNode) -> TestNode {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(config(library, home.path(), layers, vec![gateway.node.invite()])).await.unwrap();
    eventually("the stage is ready", || node.status().models.iter().any(|model| model.state == "ready")).await;
    TestNode { node, home }
}

async fn stages(gateway: &Node, count: usize) {
    let known = || {
        let models = gateway.models();
        let row = models.iter().find(|row| row.id == MODEL).and_then(|row| row.coverage.clone());
        row.map_or(0, |row| row.stages.iter().map(|stage| stage.holders.len()).sum())
    };
    eventually(&format!("{count} stages"), || known() == count).await;
}

/// The hostile stage of layers 2..4.
async fn crook(gateway_invite: &str, model: ModelRoot, near: Vec<(NodeId, u32)>, cheat: Cheat) -> Crook {
    let (network_sender, network) = tokio::sync::watch::channel(None::<Network>);
    let (inputs, rows) = mpsc::channel::<ToStage>(64);
    let rows = Arc::new(tokio::sync::Mutex::new(rows));
    let answer = move |gateway, stream, keys: Arc<Mutex<KeyRing>>| {
        let (network, rows) = (network.clone(), rows.clone());
        async move {
            let _ = serve(gateway, stream, keys, network, rows, cheat).await;
        }
    };
    let stage = StageBeacon {
        layers: Layers::new(2, 4).unwrap(),
        layer_count: LAYERS as u16,
        width: WIDTH,
        // So near to all of them that it is chosen.
        delays: near,
    };
    let mut crook = Crook::start_stage(gateway_invite, model, Features::EMBEDDED, Some(stage), answer).await;
    network_sender.send(Some(crook.network.clone())).unwrap();
    let mut streams = crook.network.accept(STAGE_PROTOCOL).unwrap();
    let ring = crook.keys.clone();
    crook.tasks.spawn(async move {
        while let Some((peer, stream)) = streams.next().await {
            let (ring, inputs) = (ring.clone(), inputs.clone());
            tokio::spawn(async move {
                let mut channel = sealed::accept_one_way(stream, peer, &ring, clock::now_ms).await.ok()?;
                while let Ok(message) = channel.next::<ToStage>().await {
                    inputs.send(message).await.ok()?;
                }
                Some(())
            });
        }
    });
    crook
}

/// Speaks with the gateway as an honest stage does, and cheats towards the next one.
async fn serve(
    gateway: NodeId,
    mut stream: PeerStream,
    keys: Arc<Mutex<KeyRing>>,
    network: tokio::sync::watch::Receiver<Option<Network>>,
    rows: Arc<tokio::sync::Mutex<mpsc::Receiver<ToStage>>>,
    cheat: Cheat,
) -> Option<()> {
    let hello = read_frame(&mut stream, FRAME_BYTES_MAX).await.ok()??;
    let channel = keys.lock().accept(&hello, gateway, clock::now_ms()).ok()?;
    let (mut sealer, mut opener) = channel.into_split();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (outgoing, mut messages) = mpsc::channel::<ToGateway>(64);
    tokio::spawn(async move {
        let mut heartbeat = tokio::time::interval(Duration::from_millis(100));
        loop {
            let message = tokio::select! {
                message = messages.recv() => message?,
                _ = heartbeat.tick() => ToGateway::Heartbeat,
            };
            write_frame(&mut writer, &sealer.seal(&codec::encode(&message)).ok()?).await.ok()?;
            writer.flush().await.ok()?;
        }
        #[allow(unreachable_code, reason = "it names the block's type")]
        Some(())
    });
    let fed = Arc::new(Mutex::new(0_u32));
    loop {
        let frame = read_frame(&mut reader, FRAME_BYTES_MAX).await.ok()??;
        match codec::decode(&opener.open(&frame).ok()?, FRAME_BYTES_MAX).ok()? {
            ToWorker::OpenPart(part) => {
                let session = part.session;
                outgoing.send(ToGateway::Accepted { session, queued: 0 }).await.ok()?;
                let (epoch, state) = (part.route.epoch, PartState { have: 0, kept_from: 0, sent: 0, drew: false });
                outgoing.send(ToGateway::Rewired { session, epoch, state }).await.ok()?;
                let network = network.borrow().clone()?;
                tokio::spawn(cheat_on(*part, network, rows.clone(), fed.clone(), cheat));
            }
            ToWorker::Order { session, order: Order::Rewire(route) } => {
                let state = PartState { have: *fed.lock(), kept_from: 0, sent: 0, drew: false };
                outgoing.send(ToGateway::Rewired { session, epoch: route.epoch, state }).await.ok()?;
            }
            _ => {}
        }
    }
}

async fn cheat_on(
    part: OpenPart,
    network: Network,
    rows: Arc<tokio::sync::Mutex<mpsc::Receiver<ToStage>>>,
    fed: Arc<Mutex<u32>>,
    cheat: Cheat,
) -> Option<()> {
    let came = rows.lock().await.recv().await?;
    let Carried::Rows(bytes) = came.carried else { return None };
    *fed.lock() = bytes.len() as u32 / (WIDTH * 4);
    let next = part.route.next;
    let faults: opengrid_node::session::FaultSink = Arc::new(|_, _| ());
    let key = keys::fetch(&network, next.node, &faults).await.ok()?;
    let mut stream = network.open_stream(next.node, STAGE_PROTOCOL).await.ok()?;
    let (channel, hello) = ClientChannel::open(next.node, &key, network.local()).ok()?;
    write_frame(&mut stream, &hello).await.ok()?;
    let (mut sealer, _opener) = channel.into_split();
    let message = |from, carried| ToStage { part: next.part, epoch: part.route.epoch, lap: 0, from, carried };
    let wrong = Carried::Rows(vec![0; bytes.len()].into());
    match cheat {
        Cheat::WrongWidth => say(&mut stream, &mut sealer, &message(0, Carried::Rows(bytes.slice(4..)))).await?,
        Cheat::NotANumber => {
            let rows: Vec<u8> = bytes.chunks(4).flat_map(|_| f32::NAN.to_le_bytes()).collect();
            say(&mut stream, &mut sealer, &message(0, Carried::Rows(rows.into()))).await?;
        }
        Cheat::Gap => say(&mut stream, &mut sealer, &message(3, Carried::Rows(bytes))).await?,
        Cheat::TokensForRows => say(&mut stream, &mut sealer, &message(0, Carried::Tokens(vec![1, 2]))).await?,
        Cheat::HugeFrame => stream.write_all(&[0xff; 64]).await.ok()?,
        Cheat::Nonsense => write_frame(&mut stream, &sealer.seal(&[0xff; 40]).ok()?).await.ok()?,
        Cheat::BrokenSeal => {
            let mut frame = sealer.seal(&codec::encode(&message(0, wrong))).ok()?;
            let middle = frame.len() / 2;
            frame[middle] ^= 1;
            write_frame(&mut stream, &frame).await.ok()?;
        }
        Cheat::Silent => {}
        Cheat::Twice => {
            say(&mut stream, &mut sealer, &message(0, wrong.clone())).await?;
            say(&mut stream, &mut sealer, &message(0, wrong)).await?;
        }
    }
    stream.flush().await.ok()?;
    // The connection stays.
    tokio::time::sleep(Duration::from_secs(60)).await;
    Some(())
}

async fn say(stream: &mut PeerStream, sealer: &mut Sealer, message: &ToStage) -> Option<()> {
    write_frame(stream, &sealer.seal(&codec::encode(message)).ok()?).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_stage_is_replaced_and_recorded() {
    let library = Library::of_layers(LAYERS);
    let gateway = TestNode::gateway(&library).await;
    let honest = [
        stage(&library, "0..2", &gateway).await,
        stage(&library, "2..4", &gateway).await,
        stage(&library, "4..6", &gateway).await,
    ];
    stages(&gateway.node, 3).await;
    let ask = || async { collect(gateway.node.generate(job(24)).await.unwrap()).await.0 };
    let expected = ask().await;
    assert_eq!(expected.len(), 24);
    for (cheat, recorded) in CHEATS {
        let name = recorded.map(|fault| format!("opengrid_node_peer_faults_total{{fault=\"{fault}\"}}"));
        let last = &honest[2].node;
        let before = name.as_ref().map_or(0, |name| metric(last, name));
        let near = honest.iter().map(|honest| (honest.node.local(), 1)).collect();
        let crook = crook(&gateway.node.invite(), library.root(), near, cheat).await;
        stages(&gateway.node, 4).await;
        for neighbour in &honest {
            crook.network.dial(invites::addresses_of(&neighbour.node.invite(), false).unwrap()).await.unwrap();
        }
        let began = std::time::Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(60), ask()).await.expect("the answer goes on");
        println!("{cheat:?}: {} ms", began.elapsed().as_millis());
        assert!(cheat == Cheat::Silent || began.elapsed() < Duration::from_secs(5), "{cheat:?} is found by its deed");
        if cheat != Cheat::Twice {
            // Wrong numbers of the right shape are found by audits, not here.
            assert_eq!(answer, expected, "{cheat:?}");
        }
        assert_eq!(answer.len(), 24, "{cheat:?}");
        if let Some(name) = name {
            eventually(&format!("{cheat:?} is recorded at the neighbour"), || metric(last, &name) > before).await;
        }
        if recorded.is_some() {
            let peers = last.peers();
            let row = peers.iter().find(|row| row.peer_id.0 == crook.network.local());
            assert!(row.is_some_and(|row| row.refused.is_some()), "{cheat:?} is shown among the peers");
            let is_connected = row.is_some_and(|row| row.connected);
            // What an honest node can be made to send costs it no connection.
            assert!(recorded != Some("BadRows") || is_connected, "{cheat:?} disconnects");
        }
        crook.network.shutdown().await;
        stages(&gateway.node, 3).await;
        let undisturbed = ask().await;
        assert_eq!(undisturbed, expected, "nothing is left of {cheat:?}");
    }
    for node in honest {
        node.node.abort().await;
    }
    gateway.node.abort().await;
}
