//! A hostile worker: a real network node built from the same parts, with a hand on the frames.

use std::{sync::Arc, time::Duration};

use opengrid_network::{Network, NetworkConfig, PeerAddress, PeerStream, Verdict};
use opengrid_node::{
    clock, invites,
    session::{KEY_PROTOCOL, SESSION_PROTOCOL, wire::write_frame},
};
use opengrid_privacy::sealing::{KeyRing, Sealer};
use opengrid_protocol::{
    ModelRoot, NodeId, Signed,
    beacon::{Beacon, Class, Features, StageBeacon},
    codec,
    session::ToGateway,
};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;

/// A worker that claims to be very fast and answers as the test wants.
pub struct Crook {
    pub network: Network,
    _events: tokio::sync::mpsc::Receiver<opengrid_network::NetworkEvent>,
    pub tasks: tokio::task::JoinSet<()>,
    pub keys: Arc<Mutex<KeyRing>>,
}

impl Crook {
    pub async fn start<F, T>(gateway_invite: &str, model: ModelRoot, features: Features, answer: T) -> Self
    where
        T: Fn(NodeId, PeerStream, Arc<Mutex<KeyRing>>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_stage(gateway_invite, model, features, None, answer).await
    }

    pub async fn start_stage<F, T>(
        gateway_invite: &str,
        model: ModelRoot,
        features: Features,
        stage: Option<StageBeacon>,
        answer: T,
    ) -> Self
    where
        T: Fn(NodeId, PeerStream, Arc<Mutex<KeyRing>>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let secret: [u8; 32] = rand::random();
        let mut config = NetworkConfig::new(secret);
        config.p2p_port = 0;
        config.mdns = false;
        config.upnp = false;
        config.gossip_validator = Arc::new(|_| Verdict::Accept);
        let (network, events) = Network::start(config).await.unwrap();
        let keys = Arc::new(Mutex::new(KeyRing::new(secret, clock::now_ms())));
        let mut tasks = tokio::task::JoinSet::new();
        let mut key_streams = network.accept(KEY_PROTOCOL).unwrap();
        let ring = keys.clone();
        tasks.spawn(async move {
            while let Some((_, mut stream)) = key_streams.next().await {
                let key = ring.lock().current(clock::now_ms()).to_bytes();
                write_frame(&mut stream, &key).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        let crook_keys = keys.clone();
        let mut session_streams = network.accept(SESSION_PROTOCOL).unwrap();
        tasks.spawn(async move {
            while let Some((gateway, stream)) = session_streams.next().await {
                tokio::spawn(answer(gateway, stream, keys.clone()));
            }
        });
        network.subscribe(model).await.unwrap();
        let addresses: Vec<PeerAddress> = invites::addresses_of(gateway_invite, false).unwrap();
        network.dial(addresses).await.unwrap();
        let announcer = network.clone();
        tasks.spawn(async move {
            loop {
                let _ = announcer
                    .publish(model, Signed::seal(&boast(model, features, stage.clone()), &secret).to_bytes())
                    .await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        });
        Self { network, _events: events, tasks, keys: crook_keys }
    }
}

fn boast(model: ModelRoot, features: Features, stage: Option<StageBeacon>) -> Beacon {
    let now_ms = clock::now_ms();
    Beacon {
        model,
        model_id: super::MODEL.into(),
        class: Class::Approximate,
        features,
        sequence: now_ms,
        issued_ms: now_ms,
        life_ms: 8_000,
        context_tokens: 100_000,
        slots: 1_000,
        slots_busy: 0,
        queued: 0,
        decode_millitokens_per_s: u32::MAX,
        prefill_millitokens_per_s: u32::MAX,
        draining: false,
        stage,
    }
}

pub fn sealed(sealer: &mut Sealer, message: &ToGateway) -> Vec<u8> {
    sealer.seal(&codec::encode(message)).unwrap()
}

pub async fn send(stream: &mut PeerStream, sealer: &mut Sealer, message: &ToGateway) -> Option<()> {
    write_frame(stream, &sealed(sealer, message)).await.ok()
}
