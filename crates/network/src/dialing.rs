//! Who waits for which connection.

use std::collections::HashMap;

use libp2p::{PeerId, core::transport::TransportError, swarm, swarm::ConnectionId};
use opengrid_protocol::NodeId;
use tokio::sync::oneshot;

use crate::streams::{Open, OpenError};

/// Callers that may wait at once.
const WAITERS_MAX: usize = 4_096;

/// Why a peer cannot be connected.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialError {
    #[error("the address `{0}` is no multiaddress: it looks like /ip4/203.0.113.7/tcp/4470")]
    BadAddress(String),
    #[error("no address of the node is known, and nobody who is connected knows one")]
    NoAddress,
    #[error("{0}")]
    Unreachable(String),
    #[error("no connection in time: is the other node running, and is its port open?")]
    Timeout,
    #[error("too many connections are being made")]
    Busy,
    #[error("the network is shut down")]
    Closed,
}

pub(crate) type DialReply = oneshot::Sender<Result<NodeId, DialError>>;

pub(crate) enum Waiter {
    Connected(DialReply),
    Stream(Open),
}

impl Waiter {
    fn is_gone(&self) -> bool {
        match self {
            Self::Connected(reply) => reply.is_closed(),
            Self::Stream(open) => open.reply.is_closed(),
        }
    }

    pub fn fail(self, error: DialError) {
        // Callers that gave up meanwhile do not care.
        match self {
            Self::Connected(reply) => drop(reply.send(Err(error))),
            Self::Stream(open) => drop(open.reply.send(Err(OpenError::NotConnected(error.to_string())))),
        }
    }
}

/// How far the search for a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    KnownAddresses,
    /// Over relays to which both may be connected, while the DHT is asked.
    Lookup,
    LastTry,
}

struct Search {
    waiters: Vec<Waiter>,
    stage: Stage,
}

#[derive(Default)]
pub(crate) struct Dialing {
    by_peer: HashMap<PeerId, Search>,
    by_connection: HashMap<ConnectionId, DialReply>,
}

impl Dialing {
    /// Whether the search for this peer begins with it.
    pub fn wait(&mut self, peer: PeerId, waiter: Waiter) -> bool {
        if self.by_peer.values().map(|search| search.waiters.len()).sum::<usize>() >= WAITERS_MAX {
            waiter.fail(DialError::Busy);
            return false;
        }
        let begins = !self.by_peer.contains_key(&peer);
        let fresh = || Search { waiters: Vec::new(), stage: Stage::KnownAddresses };
        self.by_peer.entry(peer).or_insert_with(fresh).waiters.push(waiter);
        begins
    }

    pub fn wait_connection(&mut self, connection: ConnectionId, reply: DialReply) {
        if self.by_connection.len() >= WAITERS_MAX {
            let _ = reply.send(Err(DialError::Busy));
        } else {
            self.by_connection.insert(connection, reply);
        }
    }

    /// Those who waited for the peer or for this very connection.
    pub fn connected(&mut self, peer: &PeerId, connection: ConnectionId) -> Vec<Waiter> {
        let mut waiters = self.by_peer.remove(peer).map(|search| search.waiters).unwrap_or_default();
        waiters.extend(self.by_connection.remove(&connection).map(Waiter::Connected));
        waiters
    }

    pub fn connection_failed(&mut self, connection: ConnectionId, error: &DialError) {
        if let Some(reply) = self.by_connection.remove(&connection) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// The next stage of the search; `None` when nobody waits or all was tried.
    pub fn advance(&mut self, peer: &PeerId) -> Option<Stage> {
        let search = self.by_peer.get_mut(peer)?;
        search.stage = match search.stage {
            Stage::KnownAddresses => Stage::Lookup,
            Stage::Lookup => Stage::LastTry,
            Stage::LastTry => return None,
        };
        Some(search.stage)
    }

    pub fn stage(&self, peer: &PeerId) -> Option<Stage> {
        self.by_peer.get(peer).map(|search| search.stage)
    }

    pub fn fail(&mut self, peer: &PeerId, error: &DialError) {
        for waiter in self.by_peer.remove(peer).map(|search| search.waiters).unwrap_or_default() {
            waiter.fail(error.clone());
        }
    }

    /// Forgets callers that gave up.
    pub fn purge(&mut self) {
        self.by_peer.retain(|_, search| {
            search.waiters.retain(|waiter| !waiter.is_gone());
            !search.waiters.is_empty()
        });
        self.by_connection.retain(|_, reply| !reply.is_closed());
    }
}

/// One line for the person who wanted the connection.
pub(crate) fn describe(error: &swarm::DialError) -> DialError {
    let text = match error {
        swarm::DialError::NoAddresses => return DialError::NoAddress,
        swarm::DialError::LocalPeerId { .. } => "that is this node itself".to_owned(),
        swarm::DialError::WrongPeerId { obtained, address } => {
            format!("at {address} there is another node: {obtained}")
        }
        swarm::DialError::Transport(tried) => {
            let lines: Vec<_> = tried.iter().take(3).map(|(at, why)| format!("{at}: {}", transport(why))).collect();
            format!("cannot be reached: {}", lines.join("; "))
        }
        swarm::DialError::Denied { cause } => {
            let cause = std::error::Error::source(cause).map_or_else(|| cause.to_string(), ToString::to_string);
            format!("refused by this node: {cause}")
        }
        other => other.to_string(),
    };
    DialError::Unreachable(text)
}

fn transport(error: &TransportError<std::io::Error>) -> String {
    let TransportError::Other(error) = error else { return "no way to dial this kind of address".to_owned() };
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // libp2p wraps the lists of errors of its alternative transports in debug text.
    let text = cause.to_string();
    let text = text.rsplit("message: \"").next().unwrap_or(&text);
    text.chars().take_while(|letter| *letter != '"').take(160).collect()
}
