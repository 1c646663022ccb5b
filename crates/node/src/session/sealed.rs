//! Sealed channels over a byte stream: the pumps between [`link`](super::link) or [`server`](super::server) and the
//! frames that relays see.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use opengrid_privacy::sealing::{ClientChannel, KeyRing, Opener, SealError, Sealer, ServerChannel};
use opengrid_protocol::{
    NodeId, codec,
    limits::{CHANNEL_IDLE_MS, FRAME_BYTES_MAX, HEARTBEAT_MS, RECORD_BYTES_MAX, SILENCE_MS_MAX},
    sealing_key::SealingKey,
    session::{ToGateway, ToWorker},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Fault,
    link::{Link, Routes},
    server::{self, SharedBackend},
    wire::{WireError, read_frame, write_frame},
};
use crate::pipeline::hub::Hub;

/// A hello is one X-Wing ciphertext (1,120 bytes) and a header.
const HELLO_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// How long the other side may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A heartbeat is missing, or late: a reason to ask, which costs one byte, not yet to give up.
const MISSED_MS: u64 = HEARTBEAT_MS + 30;
const WATCH_EVERY: Duration = Duration::from_millis(20);
/// Writing one frame to a live peer never takes this long; afterwards the channel counts as dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks whether the program at the other end is gone.
pub type IsGone = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Why a channel ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelEnd {
    /// The peer closed it.
    #[error("closed by the peer")]
    Closed,
    /// We did.
    #[error("closed")]
    Cancelled,
    #[error("silent for {0} ms with sessions open")]
    Silent(u64),
    #[error("silent, and nothing listens at its port any more")]
    Gone,
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("the sealing key is not known (rotated away)")]
    UnknownKey,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<WireError> for ChannelEnd {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Oversized(_) => Self::Fault(Fault::Oversized),
            WireError::Io(error) => Self::Io(error),
        }
    }
}

/// Sends the hello and makes the link; the returned future carries the channel until it ends and must be spawned. When the
/// worker misses heartbeats, `is_gone` is asked whether waiting for it is of no use.
///
/// # Errors
/// Those of the stream.
pub async fn connect<S>(
    mut stream: S,
    worker: NodeId,
    key: &SealingKey,
    gateway: NodeId,
    cancel: CancellationToken,
    is_gone: IsGone,
) -> Result<(Link, impl Future<Output = ChannelEnd> + Send + use<S>), ChannelEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (channel, hello) = ClientChannel::open(worker, key, gateway).map_err(|_| Fault::BadRecord)?;
    write_frame(&mut stream, &hello).await?;
    stream.flush().await?;
    let (sealer, opener) = channel.into_split();
    let (reader, writer) = tokio::io::split(stream);
    let (link, outgoing, routes) = Link::new(cancel);
    Ok((link, carry_gateway((reader, writer), (sealer, opener), outgoing, routes, is_gone)))
}

async fn carry_gateway<S: AsyncRead + AsyncWrite + Send>(
    (reader, writer): (ReadHalf<S>, WriteHalf<S>),
    (sealer, opener): (Sealer, Opener),
    outgoing: mpsc::Receiver<ToWorker>,
    routes: Arc<Routes>,
    is_gone: IsGone,
) -> ChannelEnd {
    let life = SignsOfLife::new();
    let read = read_all(reader, opener, |message: ToGateway| {
        life.seen();
        routes.dispatch(message)
    });
    let end = tokio::select! {
        end = read => end,
        end = write_all(writer, sealer, outgoing, |blocked| life.discount(blocked)) => end,
        end = watch(&life, &routes, is_gone) => end,
        () = routes.closed.cancelled() => ChannelEnd::Cancelled,
    };
    routes.close();
    end
}

/// Serves one incoming session stream to its end.
pub async fn accept<S>(
    mut stream: S,
    gateway: NodeId,
    keys: Arc<Mutex<KeyRing>>,
    backend: SharedBackend,
    hub: Arc<Hub>,
    now_ms: impl FnOnce() -> u64,
) -> ChannelEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let channel = match receive_hello(&mut stream, gateway, &keys, now_ms).await {
        Ok(channel) => channel,
        Err(end) => return end,
    };
    let (sealer, opener) = channel.into_split();
    let (reader, writer) = tokio::io::split(stream);
    let (inbound_sender, inbound) = mpsc::channel(64);
    let (outbound, outgoing) = mpsc::channel(1_024);
    let read = read_all_async(reader, opener, inbound_sender);
    tokio::select! {
        end = read => end,
        end = write_all(writer, sealer, outgoing, |_| ()) => end,
        () = server::serve(gateway, inbound, outbound, backend, hub) => ChannelEnd::Closed,
    }
}

/// The end of a channel that only we send on.
pub struct OneWay<S> {
    stream: S,
    sealer: Sealer,
}

/// Opens a channel on which only we send.
///
/// # Errors
/// Those of the stream.
pub async fn connect_one_way<S>(
    mut stream: S,
    peer: NodeId,
    key: &SealingKey,
    local: NodeId,
) -> Result<OneWay<S>, ChannelEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (channel, hello) = ClientChannel::open(peer, key, local).map_err(|_| Fault::BadRecord)?;
    write_frame(&mut stream, &hello).await?;
    stream.flush().await?;
    let (sealer, _) = channel.into_split();
    Ok(OneWay { stream, sealer })
}

impl<S: AsyncRead + AsyncWrite + Unpin> OneWay<S> {
    /// Sends a message, and what waits behind it under the same flush.
    ///
    /// # Errors
    /// Why the channel ended.
    pub async fn send<T>(&mut self, message: &T, waiting: &mut mpsc::Receiver<T>) -> Result<(), ChannelEnd>
    where
        T: serde::Serialize,
    {
        write_message(&mut self.stream, &mut self.sealer, message).await?;
        while let Ok(message) = waiting.try_recv() {
            write_message(&mut self.stream, &mut self.sealer, &message).await?;
        }
        match timeout(WRITE_TIMEOUT, self.stream.flush()).await {
            Ok(flushed) => Ok(flushed?),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    /// Waits until the other side closes; it says nothing on such a channel.
    pub async fn closed(&mut self) {
        let mut byte = [0];
        let _ = self.stream.read(&mut byte).await;
    }
}

/// The end of a channel that only the other side sends on.
pub struct OneWayIn<S> {
    stream: S,
    opener: Opener,
}

/// Accepts a channel on which only `peer` sends.
///
/// # Errors
/// Why there is none.
pub async fn accept_one_way<S>(
    mut stream: S,
    peer: NodeId,
    keys: &Mutex<KeyRing>,
    now_ms: impl FnOnce() -> u64,
) -> Result<OneWayIn<S>, ChannelEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (_, opener) = receive_hello(&mut stream, peer, keys, now_ms).await?.into_split();
    Ok(OneWayIn { stream, opener })
}

impl<S: AsyncRead + Unpin> OneWayIn<S> {
    /// The next message.
    ///
    /// # Errors
    /// Why the channel ended.
    pub async fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ChannelEnd> {
        read_message(&mut self.stream, &mut self.opener).await
    }
}

async fn receive_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    gateway: NodeId,
    keys: &Mutex<KeyRing>,
    now_ms: impl FnOnce() -> u64,
) -> Result<ServerChannel, ChannelEnd> {
    let hello = timeout(HELLO_TIMEOUT, read_frame(stream, HELLO_BYTES_MAX))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??
        .ok_or(ChannelEnd::Closed)?;
    keys.lock().accept(&hello, gateway, now_ms()).map_err(|error| match error {
        SealError::UnknownKey => ChannelEnd::UnknownKey,
        SealError::Replayed => ChannelEnd::Fault(Fault::ReplayedHello),
        _ => ChannelEnd::Fault(Fault::BadSeal),
    })
}

async fn read_all<R, T, F>(mut reader: R, mut opener: Opener, mut take: F) -> ChannelEnd
where
    R: AsyncRead + Unpin,
    T: serde::de::DeserializeOwned,
    F: FnMut(T) -> Result<(), Fault>,
{
    loop {
        match read_message(&mut reader, &mut opener).await {
            Ok(message) => {
                if let Err(fault) = take(message) {
                    return fault.into();
                }
            }
            Err(end) => return end,
        }
    }
}

async fn read_all_async<R, T>(mut reader: R, mut opener: Opener, inbound: mpsc::Sender<T>) -> ChannelEnd
where
    R: AsyncRead + Unpin,
    T: serde::de::DeserializeOwned,
{
    loop {
        match read_message(&mut reader, &mut opener).await {
            Ok(message) => {
                if inbound.send(message).await.is_err() {
                    return ChannelEnd::Closed;
                }
            }
            Err(end) => return end,
        }
    }
}

async fn read_message<R, T>(reader: &mut R, opener: &mut Opener) -> Result<T, ChannelEnd>
where
    R: AsyncRead + Unpin,
    T: serde::de::DeserializeOwned,
{
    let frame = read_frame(reader, FRAME_BYTES_MAX).await?.ok_or(ChannelEnd::Closed)?;
    let plaintext = opener.open(&frame).map_err(|_| Fault::BadSeal)?;
    Ok(codec::decode(&plaintext, FRAME_BYTES_MAX).map_err(|_| Fault::Malformed)?)
}

/// `wrote` is told how long each frame took to leave: a slow way out is no silence of the other side.
async fn write_all<W, T>(
    mut writer: W,
    mut sealer: Sealer,
    mut outgoing: mpsc::Receiver<T>,
    wrote: impl Fn(Duration),
) -> ChannelEnd
where
    W: AsyncWrite + Unpin,
    T: serde::Serialize,
{
    while let Some(message) = outgoing.recv().await {
        let mut next = Some(message);
        // What waits already goes out under one flush.
        while let Some(message) = next.take() {
            let began = Instant::now();
            if let Err(end) = write_message(&mut writer, &mut sealer, &message).await {
                return end;
            }
            wrote(began.elapsed());
            next = outgoing.try_recv().ok();
        }
        match timeout(WRITE_TIMEOUT, writer.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        }
    }
    // Every sender is gone: say goodbye properly.
    let _ = timeout(WRITE_TIMEOUT, writer.shutdown()).await;
    ChannelEnd::Cancelled
}

async fn write_message<W, T>(writer: &mut W, sealer: &mut Sealer, message: &T) -> Result<(), ChannelEnd>
where
    W: AsyncWrite + Unpin,
    T: serde::Serialize,
{
    let frame = sealer.seal(&codec::encode(message)).map_err(|_| Fault::Oversized)?;
    timeout(WRITE_TIMEOUT, write_frame(writer, &frame))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok(())
}

/// When the worker was last heard, in milliseconds since the channel began.
struct SignsOfLife {
    began: Instant,
    last_ms: AtomicU64,
}

impl SignsOfLife {
    fn new() -> Self {
        Self { began: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn seen(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// So long nothing could be heard, because our own words did not leave.
    fn discount(&self, blocked: Duration) {
        let later = self.last_ms.load(Ordering::Relaxed).saturating_add(blocked.as_millis() as u64);
        self.last_ms.store(later.min(self.now_ms()), Ordering::Relaxed);
    }
}

/// Ends the channel after [`SILENCE_MS_MAX`] without a message while sessions are open, and after
/// [`CHANNEL_IDLE_MS`] without sessions: its keys and its place at the worker are given back.
async fn watch(life: &SignsOfLife, routes: &Routes, is_gone: IsGone) -> ChannelEnd {
    let mut tick = tokio::time::interval(WATCH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle_since = Some(Instant::now());
    loop {
        tick.tick().await;
        if routes.sessions() == 0 {
            let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
            if idle > Duration::from_millis(CHANNEL_IDLE_MS) {
                return ChannelEnd::Cancelled;
            }
            continue;
        }
        if idle_since.take().is_some() {
            // The first session begins: its silence counts from here.
            life.seen();
        }
        let heard_ms = life.last_ms.load(Ordering::Relaxed);
        let silent_ms = life.now_ms().saturating_sub(heard_ms);
        if silent_ms > SILENCE_MS_MAX {
            return ChannelEnd::Silent(silent_ms);
        }
        let left = Duration::from_millis(SILENCE_MS_MAX - silent_ms);
        let is_gone = silent_ms > MISSED_MS && timeout(left, is_gone()).await.unwrap_or(false);
        // Whoever spoke meanwhile is there, whatever its host, or a router in its place, says.
        if is_gone && life.last_ms.load(Ordering::Relaxed) == heard_ms {
            return ChannelEnd::Gone;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures::FutureExt;
    use tokio_util::sync::CancellationToken;

    use super::{super::link::tests::open, *};

    #[tokio::test]
    async fn whoever_speaks_while_its_host_is_asked_is_not_gone() {
        let (link, _outgoing, routes) = Link::new(CancellationToken::new());
        let _session = link.open(open(1)).await.unwrap();
        let life = Arc::new(SignsOfLife::new());
        let asked = Arc::new(AtomicU32::new(0));
        let (speaks, count) = (life.clone(), asked.clone());
        let is_gone = Box::new(move || {
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                speaks.seen();
            }
            async { true }.boxed()
        });
        let end = watch(&life, &routes, is_gone).await;
        assert!(matches!(end, ChannelEnd::Gone), "{end}");
        assert_eq!(asked.load(Ordering::Relaxed), 2, "it spoke at the first question, not at the second");
    }
}
