//! The parts of sessions that run on this node, and the channels from part to part.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use opengrid_network::{Network, PeerStream};
use opengrid_privacy::sealing::KeyRing;
use opengrid_protocol::{
    NodeId,
    limits::CHANNEL_IDLE_MS,
    pipeline::{PartId, Route, STANDBY_EPOCH, ToStage},
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    STAGE_PROTOCOL,
    flow::Judged,
    handover::Handovers,
    pace::Pace,
    standby::{Put, Standbys},
};
use crate::{
    clock,
    session::{
        Fault, FaultSink, keys,
        sealed::{self, ChannelEnd},
    },
};

/// Messages of other nodes that wait for a part. One that was started takes them without waiting for anything; before
/// that, what comes within the skew of two orders must find room.
const INBOX_MAX: usize = 64;
/// Messages that wait for a channel. The rest waits in the rings of the parts.
const OUTBOX_MAX: usize = 16;
/// Channels to other nodes at once, open or being opened; half of them ahead of their use.
const CHANNELS_MAX: usize = 512;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DELIVERY_TIMEOUT: Duration = Duration::from_millis(100);
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// What the parts of this node keep at most, all together, in bytes, and one of them.
pub const RINGS_BYTES_MAX: usize = 512 << 20;
pub const RING_BYTES_MAX: usize = 64 << 20;
const RING_BYTES_MIN: usize = 4 << 20;

/// Of the last stages of this node.
#[derive(Default)]
pub struct LapCounters {
    pub laps: AtomicU64,
    /// Laps that began because nothing was guessed, the first ones of sessions among them.
    pub without_guesses: AtomicU64,
    /// Laps that began because a guess did not come true.
    pub missed: AtomicU64,
    pub guesses: AtomicU64,
    pub came_true: AtomicU64,
    /// Those of draft models among them.
    pub model_guesses: AtomicU64,
    pub model_came_true: AtomicU64,
}

impl LapCounters {
    /// After tokens were drawn and `fed` sent to the first stage, some of them guesses.
    pub fn count(&self, judged: Judged, fed: usize, by_model: bool) {
        let begins = judged.missed || judged.without;
        let guesses = fed.saturating_sub(usize::from(begins)) as u64;
        self.laps.fetch_add(u64::from(begins), Ordering::Relaxed);
        self.without_guesses.fetch_add(u64::from(judged.without), Ordering::Relaxed);
        self.missed.fetch_add(u64::from(judged.missed), Ordering::Relaxed);
        self.guesses.fetch_add(guesses, Ordering::Relaxed);
        self.came_true.fetch_add(judged.right as u64, Ordering::Relaxed);
        self.model_guesses.fetch_add(if by_model { guesses } else { 0 }, Ordering::Relaxed);
        self.model_came_true.fetch_add(judged.right_of_model as u64, Ordering::Relaxed);
    }
}

/// Of rows that go ahead to standbys.
#[derive(Default)]
pub struct AheadCounters {
    /// Bytes of rows that left for standbys of other nodes.
    pub sent_bytes: AtomicU64,
    /// Rows that parts of this node began with.
    pub used_rows: AtomicU64,
}

/// What comes to a part.
pub enum Incoming {
    /// From a part of this node.
    Message(NodeId, ToStage),
    /// What this node sends cannot be read.
    Faulty(NodeId),
}

/// Rows that go ahead have channels of their own: nothing that runs waits behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    Running,
    Ahead,
}

pub struct Hub {
    network: Network,
    keys: Arc<Mutex<KeyRing>>,
    faults: FaultSink,
    parts: Mutex<HashMap<PartId, mpsc::Sender<Incoming>>>,
    channels: Mutex<HashMap<(NodeId, Use), mpsc::Sender<ToStage>>>,
    reserved: AtomicUsize,
    kept: AtomicUsize,
    pub laps: LapCounters,
    pub handovers: Handovers,
    pub standbys: Standbys,
    pub ahead: AheadCounters,
    pace: Mutex<Pace>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Hub {
    pub fn new(
        network: Network,
        keys: Arc<Mutex<KeyRing>>,
        faults: FaultSink,
        ahead_bytes_per_s: u64,
        (tasks, cancel): (TaskTracker, CancellationToken),
    ) -> Arc<Self> {
        Arc::new(Self {
            network,
            keys,
            faults,
            parts: Mutex::default(),
            channels: Mutex::default(),
            reserved: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            laps: LapCounters::default(),
            handovers: Handovers::default(),
            standbys: Standbys::default(),
            ahead: AheadCounters::default(),
            pace: Mutex::new(Pace::new(ahead_bytes_per_s)),
            tasks,
            cancel,
        })
    }

    /// Makes a part known to its neighbours, while the value lives.
    ///
    /// # Errors
    /// The id is in use, or there is no memory for what the part must keep.
    pub fn register(self: &Arc<Self>, part: PartId) -> Result<Registered, NoPlace> {
        let reserve = |reserved: usize| {
            let room = RINGS_BYTES_MAX.saturating_sub(reserved);
            let share = RING_BYTES_MAX.min(room / 4).max(RING_BYTES_MIN);
            (share <= room).then_some(share)
        };
        let mut ring_bytes = 0;
        let update = |reserved| {
            reserve(reserved).map(|share| {
                ring_bytes = share;
                reserved + share
            })
        };
        self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).map_err(|_| NoPlace::Full)?;
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let registered = Registered { hub: self.clone(), part, inbox, ring_bytes, kept: 0, listed: false };
        self.list(registered, sender)
    }

    fn list(&self, mut registered: Registered, sender: mpsc::Sender<Incoming>) -> Result<Registered, NoPlace> {
        let mut parts = self.parts.lock();
        if parts.contains_key(&registered.part) {
            drop(parts);
            return Err(NoPlace::InUse);
        }
        parts.insert(registered.part, sender);
        registered.listed = true;
        Ok(registered)
    }

    /// Bytes that parts and standbys keep, and how many of them there are.
    pub fn kept(&self) -> (usize, usize) {
        let (bytes, standbys) = self.standbys.kept();
        (self.kept.load(Ordering::Relaxed) + bytes, self.parts.lock().len() + standbys)
    }

    /// Whether this node takes part in sending rows ahead.
    pub fn keeps_standbys(&self) -> bool {
        !self.pace.lock().is_none()
    }

    /// Whether so many bytes may go ahead now.
    ///
    /// # Errors
    /// When to ask again.
    pub fn may_go_ahead(&self, bytes: usize) -> Result<(), Instant> {
        self.pace.lock().take(bytes, Instant::now())
    }

    /// Where messages to parts at `node` go. Closed when the node cannot be reached any more, or there are too many
    /// channels; another call tries anew.
    pub fn channel(self: &Arc<Self>, node: NodeId) -> mpsc::Sender<ToStage> {
        self.channel_of((node, Use::Running), CHANNELS_MAX)
    }

    /// Where rows go ahead to standbys at `node`; closed as a [`Hub::channel`] is.
    pub fn channel_ahead(self: &Arc<Self>, node: NodeId) -> mpsc::Sender<ToStage> {
        self.channel_of((node, Use::Ahead), CHANNELS_MAX / 2)
    }

    fn channel_of(self: &Arc<Self>, (node, used): (NodeId, Use), channels_max: usize) -> mpsc::Sender<ToStage> {
        let mut channels = self.channels.lock();
        channels.retain(|_, channel| !channel.is_closed());
        if channels.len() >= channels_max && !channels.contains_key(&(node, used)) {
            return mpsc::channel(1).0;
        }
        let open = || {
            let (sender, outgoing) = mpsc::channel(OUTBOX_MAX);
            let (hub, cancel) = (self.clone(), self.cancel.clone());
            self.tasks.spawn(async move {
                cancel.run_until_cancelled(hub.carry(node, outgoing)).await;
            });
            sender
        };
        channels.entry((node, used)).or_insert_with(open).clone()
    }

    /// Whether both neighbours of a part run on this machine: then their stages compute on the same cores as this one.
    pub fn shares_cores(&self, route: &Route) -> bool {
        let is_here = |node| self.network.is_on_this_host(node);
        is_here(route.previous) && is_here(route.next.node)
    }

    /// Opens channels ahead of their use.
    pub fn meet(self: &Arc<Self>, nodes: &[NodeId]) {
        for node in nodes {
            drop(self.channel_of((*node, Use::Running), CHANNELS_MAX / 2));
        }
    }

    async fn carry(self: Arc<Self>, node: NodeId, mut outgoing: mpsc::Receiver<ToStage>) {
        if node == self.network.local() {
            while let Some(message) = next(&mut outgoing).await {
                self.deliver(node, message).await;
            }
            return;
        }
        let Ok(mut writer) = timeout(CONNECT_TIMEOUT, self.connect(node)).await else {
            tracing::debug!(node = %node.short(), "no channel to the next stage");
            return;
        };
        tracing::debug!(node = %node.short(), "channel to a stage open");
        loop {
            let message = tokio::select! {
                message = next(&mut outgoing) => message,
                // The node died: the parts that send hear of it at once.
                () = writer.closed() => None,
            };
            let Some(message) = message else { return };
            if let Err(end) = writer.send(&message, &mut outgoing).await {
                tracing::debug!(node = %node.short(), %end, "channel to the next stage ended");
                return;
            }
        }
    }

    /// Nodes that just met through a third one may not know the way to each other yet.
    async fn connect(&self, node: NodeId) -> sealed::OneWay<PeerStream> {
        loop {
            let connected = async {
                let key = keys::fetch(&self.network, node, &self.faults).await.ok()?;
                let stream = self.network.open_stream(node, STAGE_PROTOCOL).await.ok()?;
                sealed::connect_one_way(stream, node, &key, self.network.local()).await.ok()
            };
            if let Some(channel) = connected.await {
                return channel;
            }
            if self.network.dial_peer(node).await.is_err() {
                tokio::time::sleep(DIAL_PAUSE).await;
            }
        }
    }

    /// Takes what parts of `peer` send, until the stream ends.
    pub async fn accept(self: &Arc<Self>, peer: NodeId, stream: PeerStream) {
        let end = self.take_all(peer, stream).await;
        tracing::debug!(peer = %peer.short(), %end, "stage channel ended");
        if let ChannelEnd::Fault(fault) = end {
            self.report(peer, fault);
            // Whose neighbour it is goes on without it at once.
            let parts: Vec<_> = self.parts.lock().values().cloned().collect();
            for inbox in parts {
                let _ = inbox.try_send(Incoming::Faulty(peer));
            }
        }
    }

    async fn take_all(&self, peer: NodeId, stream: PeerStream) -> ChannelEnd {
        let mut channel = match sealed::accept_one_way(stream, peer, &self.keys, clock::now_ms).await {
            Ok(channel) => channel,
            Err(end) => return end,
        };
        loop {
            match channel.next::<ToStage>().await {
                Ok(message) if message.check().is_ok() => self.deliver(peer, message).await,
                Ok(_) => return Fault::Malformed.into(),
                Err(end) => return end,
            }
        }
    }

    /// To a part that ended nothing comes any more. One that takes nothing, because its gateway does not start it, loses its
    /// inbox: the messages of other sessions come on the same channel.
    async fn deliver(&self, sender: NodeId, message: ToStage) {
        if message.epoch == STANDBY_EPOCH {
            let (part, put) = (message.part, self.standbys.put(sender, message));
            if !matches!(put, Put::Kept | Put::Unknown) {
                tracing::debug!(?part, sender = %sender.short(), ?put, "rows for a standby that are not kept");
            }
            return;
        }
        let part = message.part;
        let Some(inbox) = self.parts.lock().get(&part).cloned() else { return };
        let delivered = timeout(DELIVERY_TIMEOUT, inbox.send(Incoming::Message(sender, message))).await;
        if delivered.is_err() {
            self.parts.lock().remove(&part);
        }
    }

    pub fn report(&self, node: NodeId, fault: Fault) {
        (self.faults)(node, fault);
    }
}

/// The next message; `None` when no part uses the channel any more.
async fn next(outgoing: &mut mpsc::Receiver<ToStage>) -> Option<ToStage> {
    loop {
        match timeout(Duration::from_millis(CHANNEL_IDLE_MS), outgoing.recv()).await {
            Ok(message) => return message,
            // The hub itself holds one sender.
            Err(_) if outgoing.sender_strong_count() <= 1 => return None,
            Err(_) => {}
        }
    }
}

/// Why a part finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    #[error("no memory left for what parts of sessions keep")]
    Full,
    #[error("this id is in use")]
    InUse,
}

/// A part that its neighbours can reach.
pub struct Registered {
    hub: Arc<Hub>,
    part: PartId,
    pub inbox: mpsc::Receiver<Incoming>,
    /// What the part may keep.
    pub ring_bytes: usize,
    kept: usize,
    listed: bool,
}

impl Registered {
    /// Tells how much the part keeps now.
    pub fn keeps(&mut self, bytes: usize) {
        self.hub.kept.fetch_add(bytes, Ordering::Relaxed);
        self.hub.kept.fetch_sub(self.kept, Ordering::Relaxed);
        self.kept = bytes;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.listed {
            self.hub.parts.lock().remove(&self.part);
        }
        self.hub.reserved.fetch_sub(self.ring_bytes, Ordering::Relaxed);
        self.hub.kept.fetch_sub(self.kept, Ordering::Relaxed);
    }
}
