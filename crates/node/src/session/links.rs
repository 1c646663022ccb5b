//! The gateway's channels: one per worker, opened on first use, shared by all sessions to it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::FutureExt;
use opengrid_network::Network;
use opengrid_protocol::{
    NodeId,
    limits::SEALING_KEY_LIFE_MS,
    session::{ToGateway, ToWorker},
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    FaultSink, SESSION_PROTOCOL,
    keys::{self, KeyError},
    link::Link,
    sealed::{self, ChannelEnd, IsGone},
    server::{self, SharedBackend},
};
use crate::pipeline::hub::Hub;
/// Reaching a worker, its key and its channel, all together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A channel is re-keyed (replaced by a new one for new sessions) after this time.
const CHANNEL_LIFE: Duration = Duration::from_millis(SEALING_KEY_LIFE_MS);
/// How long the host of a silent worker may take to say that it runs no more.
const KNOCK_PATIENCE: Duration = Duration::from_millis(250);
/// Most workers with an open channel.
const LINKS_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("cannot reach the worker: {0}")]
    Unreachable(String),
    #[error("the worker did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("too many open channels")]
    TooMany,
}

pub struct Links {
    network: Network,
    local: NodeId,
    backend: SharedBackend,
    hub: Arc<Hub>,
    faults: FaultSink,
    slots: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Slot>>>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Slot {
    link: Option<(Link, Instant)>,
}

impl Links {
    pub fn new(
        network: Network,
        backend: SharedBackend,
        hub: Arc<Hub>,
        faults: FaultSink,
        (tasks, cancel): (TaskTracker, CancellationToken),
    ) -> Self {
        let local = network.local();
        Self { network, local, backend, hub, faults, slots: Mutex::default(), tasks, cancel }
    }

    /// A live link to `worker`; the node itself is a worker like any other, without the sealing.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn get(&self, worker: NodeId) -> Result<Link, ConnectError> {
        timeout(CONNECT_TIMEOUT, self.get_in_time(worker)).await.map_err(|_| ConnectError::Timeout)?
    }

    /// Opens the channel to `worker` ahead of its use.
    pub fn meet(self: &Arc<Self>, worker: NodeId) {
        let (links, cancel) = (self.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            if let Some(Err(error)) = cancel.run_until_cancelled(links.get(worker)).await {
                tracing::debug!(worker = %worker.short(), %error, "no channel ahead of its use");
            }
        });
    }

    async fn get_in_time(&self, worker: NodeId) -> Result<Link, ConnectError> {
        let slot = self.slot(worker)?;
        let mut slot = slot.lock().await;
        if let Some((link, since)) = &slot.link
            && !link.is_closed()
            && since.elapsed() < CHANNEL_LIFE
        {
            return Ok(link.clone());
        }
        let link = if worker == self.local { self.connect_locally() } else { self.connect(worker).await? };
        slot.link = Some((link.clone(), Instant::now()));
        Ok(link)
    }

    fn slot(&self, worker: NodeId) -> Result<Arc<tokio::sync::Mutex<Slot>>, ConnectError> {
        let mut slots = self.slots.lock();
        if slots.len() >= LINKS_MAX && !slots.contains_key(&worker) {
            slots.retain(|_, slot| {
                slot.try_lock().is_ok_and(|slot| slot.link.as_ref().is_some_and(|(link, _)| !link.is_closed()))
                    || Arc::strong_count(slot) > 1
            });
            if slots.len() >= LINKS_MAX {
                return Err(ConnectError::TooMany);
            }
        }
        Ok(slots.entry(worker).or_default().clone())
    }

    /// Closes the channel to a node that left, so that its sessions move at once.
    pub fn close(&self, worker: NodeId) {
        let slot = self.slots.lock().get(&worker).cloned();
        if let Some(slot) = slot
            && let Ok(slot) = slot.try_lock()
            && let Some((link, _)) = &slot.link
        {
            link.close();
        }
    }

    fn connect_locally(&self) -> Link {
        let (link, mut outgoing, routes) = Link::new(self.cancel.child_token());
        let (inbound_sender, inbound) = mpsc::channel::<ToWorker>(64);
        let (outbound, mut messages) = mpsc::channel::<ToGateway>(1_024);
        let serve = server::serve(self.local, inbound, outbound, self.backend.clone(), self.hub.clone());
        self.tasks.spawn(async move {
            let to_worker = async {
                while let Some(message) = outgoing.recv().await {
                    if inbound_sender.send(message).await.is_err() {
                        break;
                    }
                }
            };
            let to_gateway = async {
                while let Some(message) = messages.recv().await {
                    if routes.dispatch(message).is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = serve => {}
                () = to_worker => {}
                () = to_gateway => {}
                () = routes.closed.cancelled() => {}
            }
            routes.close();
        });
        link
    }

    /// Asks the worker's host. Over TCP, too, if a port of the worker accepts now.
    fn is_gone(&self, worker: NodeId) -> IsGone {
        let accepting: Arc<OnceLock<SocketAddr>> = Arc::default();
        let (network, cancel, found) = (self.network.clone(), self.cancel.clone(), accepting.clone());
        self.tasks.spawn(async move {
            let port = cancel.run_until_cancelled(network.accepting_port(worker, CONNECT_TIMEOUT)).await.flatten();
            port.map(|port| found.set(port))
        });
        let network = self.network.clone();
        Box::new(move || {
            let (network, tcp) = (network.clone(), accepting.get().copied());
            async move { network.is_refused(worker, tcp, KNOCK_PATIENCE).await }.boxed()
        })
    }

    async fn connect(&self, worker: NodeId) -> Result<Link, ConnectError> {
        // Asked for anew each time: a restarted worker has new keys, and channels are opened rarely.
        let key = keys::fetch(&self.network, worker, &self.faults).await?;
        let unreachable = |error: &dyn std::fmt::Display| ConnectError::Unreachable(error.to_string());
        let stream = self.network.open_stream(worker, SESSION_PROTOCOL).await.map_err(|error| unreachable(&error))?;
        let is_gone = self.is_gone(worker);
        let cancel = self.cancel.child_token();
        let (link, carry) = sealed::connect(stream, worker, &key, self.local, cancel, is_gone)
            .await
            .map_err(|error| unreachable(&error))?;
        let faults = self.faults.clone();
        self.tasks.spawn(async move {
            let end = carry.await;
            tracing::debug!(worker = %worker.short(), %end, "channel ended");
            if let ChannelEnd::Fault(fault) = end {
                faults(worker, fault);
            }
        });
        Ok(link)
    }
}
