//! One network node for laboratories: prints what happens as JSON lines. Arguments are KEY=VALUE:
//!
//! - `seed=7` its key; `port=4470`; `bootstrap=/ip4/…/p2p/…` (may repeat); `listen=127.0.0.1`
//! - `provide=9` announces model root 9 and echoes what comes in on its streams
//! - `find=9` subscribes to that model, opens a stream to a provider and keeps exchanging bytes with it

use std::time::{Duration, Instant};

use opengrid_network::{Network, NetworkConfig, NetworkEvent, PeerAddress, PeerStream};
use opengrid_protocol::{ModelRoot, NodeId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: &str = "/opengrid/lab/echo/1";
const BLOCK_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy)]
struct Log {
    start: Instant,
}

impl Log {
    fn say(self, event: &str, mut fields: Value) {
        fields["event"] = event.into();
        fields["ms"] = (self.start.elapsed().as_millis() as u64).into();
        println!("{fields}");
    }
}

fn values<'a>(arguments: &'a [String], key: &str) -> Vec<&'a str> {
    arguments.iter().filter_map(|argument| argument.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn root(text: &str) -> Result<ModelRoot, String> {
    text.parse::<u8>().map(|byte| ModelRoot([byte; 32])).map_err(|error| format!("model root `{text}`: {error}"))
}

fn configuration(arguments: &[String]) -> Result<NetworkConfig, String> {
    let number = |key: &str| values(arguments, key).first().map_or(Ok(0), |text| text.parse::<u16>());
    let seed = number("seed").map_err(|error| format!("seed: {error}"))?;
    let mut config = NetworkConfig::new([seed as u8; 32]);
    config.p2p_port = number("port").map_err(|error| format!("port: {error}"))?;
    if let Some(ip) = values(arguments, "listen").first() {
        config.listen_ips = vec![ip.parse().map_err(|error| format!("listen: {error}"))?];
    }
    (config.mdns, config.upnp) = (false, false);
    config.bootstrap = values(arguments, "bootstrap")
        .into_iter()
        .map(|address| PeerAddress { node: None, address: address.to_owned() })
        .collect();
    Ok(config)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let log = Log { start: Instant::now() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (network, mut events) = Network::start(configuration(&arguments)?).await?;
    log.say("ready", json!({ "node": network.local().to_string(), "addresses": network.listen_addresses() }));
    if let Some(model) = values(&arguments, "provide").first() {
        network.provide(root(model)?).await?;
        let mut incoming = network.accept(ECHO)?;
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                tokio::spawn(echo(stream));
            }
        });
    }
    if let Some(model) = values(&arguments, "find").first() {
        let model = root(model)?;
        network.subscribe(model).await?;
        tokio::spawn(exchange(network.clone(), model, log));
    }
    let mut clock = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => tell(log, &event),
                None => return Ok(()),
            },
            _ = clock.tick() => log.say("totals", json!({
                "transport_bytes": transport_bytes(&network.metrics_text()),
                "peers": network.peers().len(),
                "addresses": network.listen_addresses(),
            })),
        }
    }
}

fn tell(log: Log, event: &NetworkEvent) {
    match event {
        NetworkEvent::Connected(node) => log.say("connected", json!({ "node": node.to_string() })),
        NetworkEvent::Disconnected(node) => log.say("disconnected", json!({ "node": node.to_string() })),
        NetworkEvent::Upgraded(node) => log.say("upgraded", json!({ "node": node.to_string() })),
        _ => {}
    }
}

/// Everything that crossed this node's sockets, both directions.
fn transport_bytes(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("opengrid_network_libp2p_bandwidth_bytes_total"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

async fn echo(mut stream: PeerStream) {
    let mut block = vec![0; BLOCK_BYTES];
    while let Ok(read @ 1..) = stream.read(&mut block).await {
        if stream.write_all(&block[..read]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

async fn exchange(network: Network, model: ModelRoot, log: Log) {
    loop {
        for node in network.providers(model).await {
            if let Err(error) = converse(&network, node, log).await {
                log.say("broken", json!({ "why": error }));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sends blocks and checks that the very same come back, until the stream breaks.
async fn converse(network: &Network, node: NodeId, log: Log) -> Result<(), String> {
    let mut stream = network.open_stream(node, ECHO).await.map_err(|error| error.to_string())?;
    let mut number = 0_u8;
    loop {
        number = number.wrapping_add(1);
        let (sent, mut back) = (vec![number; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let write = async {
            writer.write_all(&sent).await?;
            writer.flush().await
        };
        let both = async { tokio::try_join!(write, reader.read_exact(&mut back)) };
        match tokio::time::timeout(Duration::from_secs(3), both).await {
            Ok(Ok(_)) if sent == back => {}
            Ok(Ok(_)) => return Err("other bytes came back".to_owned()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("silence".to_owned()),
        }
        log.say("echo", json!({ "node": node.to_string(), "relayed": stream.relayed(), "bytes": BLOCK_BYTES }));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
