//! Raw byte streams to peers. Written here rather than taken from `libp2p-stream`, which picks a connection at random
//! (we want the direct one), drops incoming streams as soon as two wait, and never forgets closed connections.

mod behaviour;
mod handler;

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use libp2p::{Stream, StreamProtocol};
use opengrid_protocol::NodeId;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

pub(crate) use behaviour::Behaviour;

use crate::metrics::{Metrics, StreamBytes};

/// Why a stream could not be opened.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    #[error("no connection: {0}")]
    NotConnected(String),
    #[error("the peer does not speak {0}")]
    Unsupported(String),
    #[error("the peer did not answer in time")]
    Timeout,
    #[error("the connection broke while the stream was opened")]
    Broken,
    #[error("too many streams are being opened to this peer")]
    Busy,
    #[error("the network is shut down")]
    Closed,
}

/// Why a protocol cannot be accepted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcceptError {
    #[error("the protocol {0} is accepted already")]
    Taken(&'static str),
    #[error("the protocol {0} does not start with `/`")]
    BadName(&'static str),
}

/// A byte stream to a peer. Encrypted hop by hop by the connection; sealing end to end is the caller's.
pub struct PeerStream {
    inner: Compat<Stream>,
    relayed: bool,
    bytes: StreamBytes,
    _slot: Option<OwnedSemaphorePermit>,
}

impl PeerStream {
    fn new(stream: Stream, relayed: bool, metrics: &Metrics, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self { inner: stream.compat(), relayed, bytes: metrics.stream_bytes(relayed), _slot: slot }
    }

    /// Whether it goes over a relay rather than directly.
    pub fn relayed(&self) -> bool {
        self.relayed
    }
}

impl std::fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerStream").field("relayed", &self.relayed).finish_non_exhaustive()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.bytes.received((buffer.filled().len() - before) as u64);
        result
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &result {
            self.bytes.sent(*written as u64);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Streams that peers opened for one protocol. Dropping it ends the acceptance.
#[derive(Debug)]
pub struct IncomingStreams {
    receiver: mpsc::Receiver<(NodeId, PeerStream)>,
}

impl IncomingStreams {
    /// The next stream and who opened it; `None` after the network's shutdown.
    pub async fn next(&mut self) -> Option<(NodeId, PeerStream)> {
        self.receiver.recv().await
    }
}

impl futures::Stream for IncomingStreams {
    type Item = (NodeId, PeerStream);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx)
    }
}

/// A request to open a stream, on its way to a connection.
#[derive(Debug)]
pub(crate) struct Open {
    pub protocol: StreamProtocol,
    pub reply: oneshot::Sender<Result<PeerStream, OpenError>>,
}

type Accepted = HashMap<&'static str, mpsc::Sender<(NodeId, PeerStream)>>;

/// What all connections share: the accepted protocols, the counters, and whether idle connections are kept.
pub(crate) struct Registry {
    accepted: Mutex<Accepted>,
    pub keep_idle: AtomicBool,
    pub metrics: Arc<Metrics>,
    pub streams_per_connection: usize,
    streams_waiting: usize,
}

impl Registry {
    pub fn new(metrics: Arc<Metrics>, limits: &crate::config::Limits) -> Self {
        Self {
            accepted: Mutex::default(),
            keep_idle: AtomicBool::new(true),
            metrics,
            streams_per_connection: limits.streams_per_connection,
            streams_waiting: limits.streams_waiting.max(1),
        }
    }

    pub fn accept(&self, protocol: &'static str) -> Result<IncomingStreams, AcceptError> {
        StreamProtocol::try_from_owned(protocol.to_owned()).map_err(|_| AcceptError::BadName(protocol))?;
        let mut accepted = self.accepted.lock();
        if accepted.get(protocol).is_some_and(|sender| !sender.is_closed()) {
            return Err(AcceptError::Taken(protocol));
        }
        let (sender, receiver) = mpsc::channel(self.streams_waiting);
        accepted.insert(protocol, sender);
        Ok(IncomingStreams { receiver })
    }

    /// Ends all [`IncomingStreams`].
    pub fn close(&self) {
        self.accepted.lock().clear();
    }

    fn protocols(&self) -> Vec<StreamProtocol> {
        let mut accepted = self.accepted.lock();
        accepted.retain(|_, sender| !sender.is_closed());
        accepted.keys().map(|protocol| StreamProtocol::new(protocol)).collect()
    }

    /// Hands an incoming stream over, or resets it when nobody takes them quickly enough.
    fn deliver(&self, from: NodeId, protocol: &StreamProtocol, stream: PeerStream) {
        let sender = self.accepted.lock().get(protocol.as_ref()).cloned();
        let delivered = sender.is_some_and(|sender| sender.try_send((from, stream)).is_ok());
        if delivered {
            self.metrics.streams_accepted.inc();
        } else {
            self.metrics.streams_refused.inc();
        }
    }

    fn keeps_idle(&self) -> bool {
        self.keep_idle.load(Ordering::Relaxed)
    }
}
