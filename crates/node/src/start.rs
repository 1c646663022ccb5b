//! Building a node, in order, and the tasks that it lives by.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use opengrid_models::{Catalogue, Fetcher, ModelEntry, Store};
use opengrid_network::{IncomingStreams, Network, NetworkEvent, PeerAddress, PeerStream};
use opengrid_privacy::sealing::KeyRing;
use opengrid_protocol::{NodeId, limits::CHANNELS_PER_PEER_MAX};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    beacons::{self, BEACONS_PROTOCOL, Beacons},
    clock,
    config::{NodeConfig, Role},
    content::{CONTENT_PROTOCOL, ContentServer, GridContent},
    discovery, identity,
    identity::HomeError,
    invites, loading,
    metrics::Metrics,
    node::Node,
    pipeline::{STAGE_PROTOCOL, hub::Hub},
    placement::Placement,
    places::Places,
    runtime::Runtime,
    serving::Serving,
    session::{
        Fault, FaultSink, KEY_PROTOCOL, SESSION_PROTOCOL,
        links::Links,
        sealed::{self, ChannelEnd},
        wire::write_frame,
    },
    skew::Skew,
    texts::Texts,
};

/// Streams of one protocol handled at once; more wait in the network's bounded queue.
const STREAMS_AT_ONCE: usize = 256;
/// How often expired sealing keys are looked for.
const KEY_SWEEP: Duration = Duration::from_secs(60);
/// Fault reports that wait; more are dropped (the peer is punished by the first).
const FAULTS_MAX: usize = 256;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the catalogue: {0}")]
    Catalogue(String),
    #[error("the model store: {0}")]
    Store(String),
    #[error("the model `{0}` is not in the catalogue: see `opengrid ls`, or add it with `opengrid pull FILE.gguf`")]
    UnknownModel(String),
    #[error("layers of {0} alone are computed by the built-in engine only: leave out --engine, or --layers")]
    EngineOfStages(String),
    #[error("--join: {0}")]
    Invite(String),
    #[error(transparent)]
    Network(#[from] opengrid_network::StartError),
    #[error(transparent)]
    Accept(#[from] opengrid_network::AcceptError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Node {
    /// Starts everything; models load in the background (see [`Serving`]).
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, StartError> {
        let lock = identity::lock_home(&config.home)?;
        let secret = identity::load_or_create_key(&config.home)?;
        let catalogue =
            Catalogue::load(&config.catalogue_dir).map_err(|error| StartError::Catalogue(error.to_string()))?;
        let serve = loading::resolve(&config, &catalogue)?;
        let store = Store::open(&config.models_dir).map_err(|error| StartError::Store(error.to_string()))?;
        let (network, network_events) = Network::start(network_config(&config, secret)?).await?;

        let tasks = TaskTracker::new();
        let cancel = CancellationToken::new();
        let metrics = Metrics::default();
        let (faults, fault_reports) = fault_sink();
        let serving = Arc::new(Serving::default());
        let keys = Arc::new(Mutex::new(KeyRing::new(secret, clock::now_ms())));
        let carried = (tasks.clone(), cancel.clone());
        let hub = Hub::new(network.clone(), keys.clone(), faults.clone(), config.ahead_bytes_per_s, carried.clone());
        let links = Links::new(network.clone(), serving.clone(), hub.clone(), faults.clone(), carried);
        let placement = Arc::new(Placement::new(network.clone(), links, faults.clone()));
        let skew = Arc::new(Skew::default());
        let beacons = Arc::new(Beacons {
            network: network.clone(),
            secret,
            serving: serving.clone(),
            placement: placement.clone(),
            faults: faults.clone(),
            instance: rand::random(),
            instances: Mutex::default(),
            skew: skew.clone(),
            roots: catalogue.models().map(ModelEntry::root).collect(),
        });
        let content =
            Arc::new(GridContent { network: network.clone(), placement: placement.clone(), faults: faults.clone() });
        let role = match config.role {
            Role::Worker => "worker",
            Role::Auto | Role::Edge => "edge",
        };
        let node = Arc::new(Self {
            fetcher: Fetcher::new(store.clone(), config.fetch.clone()),
            network,
            catalogue,
            store,
            content,
            serving,
            placement,
            beacons,
            skew,
            texts: Texts::default(),
            metrics,
            hub,
            token: hex::encode(rand::random::<[u8; 32]>()),
            role: watch::Sender::new(role.to_owned()),
            started: Instant::now(),
            answers: Arc::new(AtomicU64::new(0)),
            tasks,
            cancel,
            shutdown_requested: CancellationToken::new(),
            loading: tokio::sync::Mutex::default(),
            lock: Mutex::new(Some(lock)),
            pulls: Arc::new(Semaphore::new(crate::pull::PULLS_MAX)),
            config,
        });
        node.write_runtime()?;
        node.spawn_tasks(keys, network_events, fault_reports, faults).await?;
        loading::announce_files(&node);
        loading::spawn(&node, serve);
        Ok(node)
    }

    fn write_runtime(&self) -> Result<(), StartError> {
        let runtime = Runtime {
            pid: std::process::id(),
            api: format!("http://{}", self.config.api),
            token: self.token.clone(),
            peer_id: self.local().to_string(),
            invite: self.invite(),
            models_dir: self.config.models_dir.clone(),
            started_unix_ms: clock::now_ms(),
        };
        runtime.write(&self.config.home).map_err(|source| StartError::Io { path: self.config.home.clone(), source })
    }

    async fn spawn_tasks(
        self: &Arc<Self>,
        keys: Arc<Mutex<KeyRing>>,
        network_events: mpsc::Receiver<NetworkEvent>,
        fault_reports: mpsc::Receiver<(NodeId, Fault)>,
        faults: FaultSink,
    ) -> Result<(), StartError> {
        let ring = keys.clone();
        self.serve_streams(STAGE_PROTOCOL, {
            let (hub, channels) = (self.hub.clone(), Places::new(CHANNELS_PER_PEER_MAX));
            move |peer, stream| {
                let (hub, place) = (hub.clone(), channels.take(peer));
                async move {
                    if let Some(_place) = place {
                        hub.accept(peer, stream).await;
                    }
                }
            }
        })?;
        let content = Arc::new(ContentServer::new(self.store.clone(), faults.clone()));
        for entry in self.catalogue.models() {
            if let Err(error) = self.network.subscribe(entry.root()).await {
                tracing::warn!(model = entry.id, %error, "its workers are not heard of");
            }
        }
        self.serve_streams(KEY_PROTOCOL, {
            let keys = keys.clone();
            move |_, stream| send_key(keys.clone(), stream)
        })?;
        // Room for all that the connections can hold: idle channels of many do not shut the others out.
        let channels_max = self.config.network.connections_max as usize * CHANNELS_PER_PEER_MAX;
        self.serve_streams_up_to(channels_max, SESSION_PROTOCOL, {
            let (serving, hub) = (self.serving.clone(), self.hub.clone());
            let channels = Places::new(CHANNELS_PER_PEER_MAX);
            move |gateway, stream| {
                let (keys, faults) = (keys.clone(), faults.clone());
                let worker = (serving.clone(), hub.clone());
                let place = channels.take(gateway);
                async move {
                    // One too many is closed unheard; the gateway sees a closed channel.
                    if let Some(_place) = place {
                        serve_session(gateway, stream, keys, worker, faults).await;
                    }
                }
            }
        })?;
        self.serve_streams(BEACONS_PROTOCOL, {
            let beacons = self.beacons.clone();
            move |_, stream| {
                let beacons = beacons.clone();
                async move { beacons.answer(stream).await }
            }
        })?;
        self.serve_streams(CONTENT_PROTOCOL, move |peer, stream| {
            let content = content.clone();
            async move { content.answer(peer, stream).await }
        })?;
        self.spawn(|node| follow_network(node, network_events));
        self.spawn(|node| punish(node, fault_reports));
        self.spawn(|node| async move { node.beacons.publish_until(node.cancel.clone()).await });
        self.spawn(|node| async move { node.beacons.ask_the_quiet_until(node.cancel.clone()).await });
        self.spawn(discovery::run);
        self.spawn(|node| forget_old_keys(node, ring));
        Ok(())
    }

    /// Runs a task that owns the node's handle; it ends by the node's cancellation.
    pub(crate) fn spawn<F, T>(self: &Arc<Self>, task: T)
    where
        T: FnOnce(Arc<Self>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(self.clone()));
    }

    fn serve_streams<F, T>(self: &Arc<Self>, protocol: &'static str, handle: T) -> Result<(), StartError>
    where
        T: Fn(NodeId, PeerStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.serve_streams_up_to(STREAMS_AT_ONCE, protocol, handle)
    }

    fn serve_streams_up_to<F, T>(
        self: &Arc<Self>,
        at_once: usize,
        protocol: &'static str,
        handle: T,
    ) -> Result<(), StartError>
    where
        T: Fn(NodeId, PeerStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let incoming = self.network.accept(protocol)?;
        let (tasks, cancel) = (self.tasks.clone(), self.cancel.clone());
        let permits = Arc::new(Semaphore::new(at_once));
        self.tasks.spawn(accept_all(incoming, permits, handle, tasks, cancel));
        Ok(())
    }
}

async fn accept_all<F, T>(
    mut incoming: IncomingStreams,
    permits: Arc<Semaphore>,
    handle: T,
    tasks: TaskTracker,
    cancel: CancellationToken,
) where
    T: Fn(NodeId, PeerStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await.ok()?;
            let (peer, stream) = incoming.next().await?;
            Some((permit, peer, stream))
        };
        let Some(Some((permit, peer, stream))) = cancel.run_until_cancelled(next).await else {
            return;
        };
        let work = handle(peer, stream);
        let cancel = cancel.clone();
        tasks.spawn(async move {
            let _permit = permit;
            cancel.run_until_cancelled(work).await
        });
    }
}

fn network_config(config: &NodeConfig, secret: [u8; 32]) -> Result<opengrid_network::NetworkConfig, StartError> {
    let settings = &config.network;
    let mut bootstrap: Vec<PeerAddress> = Vec::new();
    for invite in &settings.join {
        bootstrap.extend(invites::addresses_of(invite, settings.grid_key.is_some()).map_err(StartError::Invite)?);
    }
    let start = |address: &String| PeerAddress { node: None, address: address.clone() };
    bootstrap.extend(settings.bootstrap.iter().map(start));
    let connections = settings.connections_max;
    let limits = opengrid_network::Limits {
        connections,
        connections_incoming: connections / 4 * 3,
        ..opengrid_network::Limits::default()
    };
    Ok(opengrid_network::NetworkConfig {
        limits,
        p2p_port: settings.p2p_port,
        bootstrap,
        mdns: settings.mdns,
        upnp: settings.upnp,
        relay_server: settings.relay_server,
        grid_key: settings.grid_key,
        peer_cache: Some(config.home.join("peers.json")),
        agent: format!("opengrid/{}", env!("CARGO_PKG_VERSION")),
        gossip_validator: Arc::new(beacons::judge),
        ..opengrid_network::NetworkConfig::new(secret)
    })
}

fn fault_sink() -> (FaultSink, mpsc::Receiver<(NodeId, Fault)>) {
    let (sender, reports) = mpsc::channel(FAULTS_MAX);
    let sink: FaultSink = Arc::new(move |node, fault| {
        let _ = sender.try_send((node, fault));
    });
    (sink, reports)
}

/// Disconnects, refuses for a while and counts whoever misbehaved. One that may have been made to do so keeps its
/// connections, over which sessions of others run, and gets no work from here.
async fn punish(node: Arc<Node>, mut reports: mpsc::Receiver<(NodeId, Fault)>) {
    while let Some(Some((peer, fault))) = node.cancel.run_until_cancelled(reports.recv()).await {
        node.metrics.count_fault(fault);
        if peer == node.local() {
            continue;
        }
        node.placement.ban(peer, fault);
        if fault.may_be_anothers() {
            tracing::warn!(peer = %peer.short(), %fault, "peer gets no work from here");
            continue;
        }
        tracing::warn!(peer = %peer.short(), %fault, "peer dropped");
        node.placement.node_left(peer);
        node.network.punish(peer, &fault.to_string()).await;
    }
}

async fn follow_network(node: Arc<Node>, mut events: mpsc::Receiver<NetworkEvent>) {
    while let Some(Some(event)) = node.cancel.run_until_cancelled(events.recv()).await {
        match event {
            NetworkEvent::Connected(peer) | NetworkEvent::ConnectedAgain(peer) => {
                node.placement.node_came(peer);
                node.beacons.node_came(peer);
                node.spawn(|node| async move {
                    node.cancel.run_until_cancelled(node.beacons.ask(peer)).await;
                });
            }
            NetworkEvent::Disconnected(peer) => {
                node.placement.node_left(peer);
                node.beacons.node_left(peer);
                node.skew.forget(peer);
            }
            NetworkEvent::Gossip(gossip) => node.beacons.heard(gossip.topic, &gossip.bytes),
            _ => {}
        }
    }
}

/// Expired keys leave memory although nobody asks for new ones.
async fn forget_old_keys(node: Arc<Node>, keys: Arc<Mutex<KeyRing>>) {
    let mut tick = tokio::time::interval(KEY_SWEEP);
    while node.cancel.run_until_cancelled(tick.tick()).await.is_some() {
        keys.lock().forget_expired(clock::now_ms());
    }
}

async fn send_key(keys: Arc<Mutex<KeyRing>>, mut stream: PeerStream) {
    let key = keys.lock().current(clock::now_ms()).to_bytes();
    let send = async {
        write_frame(&mut stream, &key).await.ok()?;
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await.ok()
    };
    // A gateway that hangs up asks again.
    let _ = tokio::time::timeout(Duration::from_secs(5), send).await;
}

async fn serve_session(
    gateway: NodeId,
    stream: PeerStream,
    keys: Arc<Mutex<KeyRing>>,
    (serving, hub): (Arc<Serving>, Arc<Hub>),
    faults: FaultSink,
) {
    let end = sealed::accept(stream, gateway, keys, serving, hub, clock::now_ms).await;
    tracing::debug!(gateway = %gateway.short(), %end, "session channel ended");
    if let ChannelEnd::Fault(fault) = end {
        faults(gateway, fault);
    }
}
