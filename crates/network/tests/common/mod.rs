//! Nodes on loopback for the tests of this crate.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use opengrid_network::{Network, NetworkConfig, NetworkEvent, PeerAddress, PeerStream};
use opengrid_protocol::{ModelRoot, NodeId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

pub const ECHO: &str = "/opengrid/test/echo/1";

pub struct Node {
    pub network: Network,
    pub events: mpsc::Receiver<NetworkEvent>,
}

/// A key that no other node of any test process has.
pub fn config() -> NetworkConfig {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    secret[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    let mut config = NetworkConfig::new(secret);
    config.listen_ips = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    (config.mdns, config.upnp) = (false, false);
    config
}

pub async fn start(config: NetworkConfig) -> Node {
    let (network, events) = Network::start(config).await.expect("the node starts");
    Node { network, events }
}

pub async fn start_joined(to: &Node) -> Node {
    let mut config = config();
    config.bootstrap = to.addresses();
    start(config).await
}

impl Node {
    pub fn id(&self) -> NodeId {
        self.network.local()
    }

    pub fn addresses(&self) -> Vec<PeerAddress> {
        let node = Some(self.id());
        self.network.listen_addresses().into_iter().map(|address| PeerAddress { node, address }).collect()
    }

    /// The first event for which `pick` gives something, and how long it took.
    pub async fn wait<T>(
        &mut self,
        patience: Duration,
        what: &str,
        mut pick: impl FnMut(NetworkEvent) -> Option<T>,
    ) -> (T, Duration) {
        let start = Instant::now();
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the network lives");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        let found = timeout(patience, search).await.unwrap_or_else(|_| panic!("no {what} within {patience:?}"));
        (found, start.elapsed())
    }

    pub async fn wait_connected(&mut self, to: NodeId) -> Duration {
        let wanted = NetworkEvent::Connected(to);
        self.wait(Duration::from_secs(10), "connection", |event| (event == wanted).then_some(())).await.1
    }

    pub async fn wait_disconnected(&mut self, from: NodeId, patience: Duration) -> Duration {
        let wanted = NetworkEvent::Disconnected(from);
        self.wait(patience, "disconnection", |event| (event == wanted).then_some(())).await.1
    }

    pub fn knows(&self, node: NodeId) -> bool {
        self.network.peers().iter().any(|peer| peer.node == node)
    }

    pub fn serve_echo(&self) {
        let mut incoming = self.network.accept(ECHO).expect("nobody else echoes");
        tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.next().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(&mut stream);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
            }
        });
    }
}

/// Sends `bytes` and returns what comes back until the end of the stream.
pub async fn round_trip(stream: PeerStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut back = Vec::new();
    let write = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    let both = async { tokio::try_join!(write, reader.read_to_end(&mut back)) };
    timeout(Duration::from_secs(20), both).await.expect("the echo comes in time").expect("the stream holds");
    back
}

pub async fn until(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn model(byte: u8) -> ModelRoot {
    ModelRoot([byte; 32])
}

/// The value of a counter in OpenMetrics text, all label sets together.
pub fn counter(text: &str, name: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}
