//! Model files between nodes: serves the chunks that this node has, and fetches those it lacks.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use opengrid_models::{PeerSource, Store, download::PeerError};
use opengrid_network::Network;
use opengrid_protocol::{
    ModelRoot, NodeId, codec,
    content::{ContentRequest, ContentResponse, Manifest},
    limits::CHUNK_BYTES,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    places::Places,
    session::{
        Fault, FaultSink,
        wire::{read_frame, write_frame},
    },
};

/// One request and its answer a stream.
pub const CONTENT_PROTOCOL: &str = "/opengrid/content/1";
const REQUEST_BYTES_MAX: usize = 64;
const MANIFEST_BYTES_MAX: usize = 40 * 1024 * 1024;
/// A slow peer may take this long for a chunk of 1 MiB; then another is asked.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30);
/// Connected peers that are asked for a file although nobody names them.
const NEIGHBOURS_ASKED: usize = 16;
/// A peer that opens a stream asks at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Chunks served at once, to all and to one peer; more are told `Busy`.
const SERVED_AT_ONCE: usize = 16;
const SERVED_PER_PEER: usize = 4;
/// A peer that does not take so many bytes in so long does not read: its place is for others.
const PIECE_BYTES: usize = 64 * 1024;
const STALL: Duration = Duration::from_secs(5);

pub struct ContentServer {
    store: Store,
    permits: Semaphore,
    places: Places,
    faults: FaultSink,
}

impl ContentServer {
    pub fn new(store: Store, faults: FaultSink) -> Self {
        Self { store, permits: Semaphore::new(SERVED_AT_ONCE), places: Places::new(SERVED_PER_PEER), faults }
    }

    pub async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, peer: NodeId, mut stream: S) {
        // A peer that hangs up is its own business.
        let _ = timeout(TRANSFER_TIMEOUT, self.answer_in_time(peer, &mut stream)).await;
    }

    async fn answer_in_time<S: AsyncRead + AsyncWrite + Unpin>(&self, peer: NodeId, stream: &mut S) -> Option<()> {
        let bytes = timeout(REQUEST_TIMEOUT, read_frame(stream, REQUEST_BYTES_MAX)).await.ok()?.ok()??;
        let Ok(request) = codec::decode::<ContentRequest>(&bytes, REQUEST_BYTES_MAX) else {
            (self.faults)(peer, Fault::Malformed);
            return None;
        };
        let (Some(_place), Ok(_permit)) = (self.places.take(peer), self.permits.try_acquire()) else {
            return reply(stream, &ContentResponse::Busy, &[]).await;
        };
        let store = self.store.clone();
        let answer = tokio::task::spawn_blocking(move || opengrid_models::serve::answer(&store, &request));
        let (header, body) = answer.await.ok()?;
        reply(stream, &header, &body).await
    }
}

async fn reply<S: AsyncWrite + Unpin>(stream: &mut S, header: &ContentResponse, body: &[u8]) -> Option<()> {
    let mut head = Vec::new();
    write_frame(&mut head, &codec::encode(header)).await.ok()?;
    for piece in head.chunks(PIECE_BYTES).chain(body.chunks(PIECE_BYTES)) {
        timeout(STALL, stream.write_all(piece)).await.ok()?.ok()?;
    }
    timeout(STALL, stream.shutdown()).await.ok()?.ok()
}

/// Fetches from peers that the DHT or their beacons name.
pub struct GridContent {
    pub network: Network,
    pub placement: Arc<crate::placement::Placement>,
    pub faults: FaultSink,
}

#[async_trait]
impl PeerSource for GridContent {
    async fn providers(&self, root: ModelRoot) -> Vec<NodeId> {
        let local = self.network.local();
        let mut nodes: Vec<NodeId> = {
            let directory = self.placement.directory.lock();
            directory.holders(root, crate::clock::monotonic_ms()).map(|(node, _)| node).collect()
        };
        nodes.extend(self.network.providers(root).await);
        nodes.sort_unstable();
        nodes.dedup();
        // Neighbours last: one may hold a file that it neither serves nor has announced.
        let connected: Vec<NodeId> = self.network.peers().into_iter().map(|peer| peer.node).collect();
        let unnamed =
            connected.into_iter().filter(|node| !nodes.contains(node)).take(NEIGHBOURS_ASKED).collect::<Vec<_>>();
        nodes.extend(unnamed);
        nodes.retain(|node| *node != local);
        nodes
    }

    async fn manifest(&self, node: NodeId, root: ModelRoot) -> Result<Manifest, PeerError> {
        match self.request(node, &ContentRequest::Manifest { root }).await? {
            (ContentResponse::Manifest(manifest), _) => Ok(manifest),
            (response, _) => Err(self.unusable(node, &response)),
        }
    }

    async fn chunk(&self, node: NodeId, root: ModelRoot, index: u32) -> Result<Vec<u8>, PeerError> {
        match self.request(node, &ContentRequest::Chunk { root, index }).await? {
            (ContentResponse::Chunk { .. }, body) => Ok(body),
            (response, _) => Err(self.unusable(node, &response)),
        }
    }

    fn misbehaved(&self, node: NodeId, why: &str) {
        tracing::warn!(peer = %node.short(), why, "a peer's file does not hold");
        (self.faults)(node, Fault::BadRecord);
    }
}

impl GridContent {
    async fn request(&self, node: NodeId, request: &ContentRequest) -> Result<(ContentResponse, Vec<u8>), PeerError> {
        timeout(TRANSFER_TIMEOUT, self.exchange(node, request))
            .await
            .map_err(|_| PeerError::Unreachable("too slow".into()))?
    }

    async fn exchange(&self, node: NodeId, request: &ContentRequest) -> Result<(ContentResponse, Vec<u8>), PeerError> {
        let unreachable = |error: std::io::Error| PeerError::Unreachable(error.to_string());
        let mut stream = self
            .network
            .open_stream(node, CONTENT_PROTOCOL)
            .await
            .map_err(|error| PeerError::Unreachable(error.to_string()))?;
        write_frame(&mut stream, &codec::encode(request)).await.map_err(|_| closed())?;
        stream.flush().await.map_err(unreachable)?;
        let header = read_frame(&mut stream, MANIFEST_BYTES_MAX).await.ok().flatten().ok_or_else(closed)?;
        let header: ContentResponse = codec::decode(&header, MANIFEST_BYTES_MAX).map_err(|_| {
            (self.faults)(node, Fault::Malformed);
            misbehaved()
        })?;
        let mut body = Vec::new();
        if let ContentResponse::Chunk { bytes } = header {
            if u64::from(bytes) > CHUNK_BYTES {
                (self.faults)(node, Fault::Oversized);
                return Err(misbehaved());
            }
            stream.take(u64::from(bytes)).read_to_end(&mut body).await.map_err(unreachable)?;
        }
        Ok((header, body))
    }

    fn unusable(&self, node: NodeId, response: &ContentResponse) -> PeerError {
        match response {
            ContentResponse::NotHere => PeerError::NotHere,
            ContentResponse::Busy => PeerError::Busy,
            _ => {
                (self.faults)(node, Fault::Malformed);
                misbehaved()
            }
        }
    }
}

fn closed() -> PeerError {
    PeerError::Unreachable("it closed the stream".into())
}

fn misbehaved() -> PeerError {
    PeerError::Unreachable("it misbehaved".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_models::test_support::TinyModel;
    use tokio::{
        io::{DuplexStream, duplex},
        time::{Instant, sleep},
    };

    use super::*;

    /// Less than a piece fits into a connection.
    const WINDOW: usize = 16 * 1024;

    struct Served {
        server: Arc<ContentServer>,
        root: ModelRoot,
        chunks: u32,
        _dir: tempfile::TempDir,
    }

    fn serve() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiny.gguf");
        std::fs::write(&file, TinyModel::of_size(5, 3 << 20).to_bytes()).unwrap();
        let store = Store::open(&dir.path().join("models")).unwrap();
        let added = store.add_file(&file, &mut |_, _| {}).unwrap();
        let server = Arc::new(ContentServer::new(store, Arc::new(|_, _| {})));
        Served { server, root: added.root, chunks: (added.size / CHUNK_BYTES) as u32, _dir: dir }
    }

    impl Served {
        async fn ask(&self, peer: NodeId, index: u32) -> DuplexStream {
            let (mut ours, theirs) = duplex(WINDOW);
            let server = self.server.clone();
            tokio::spawn(async move { server.answer(peer, theirs).await });
            let request = ContentRequest::Chunk { root: self.root, index };
            write_frame(&mut ours, &codec::encode(&request)).await.unwrap();
            ours
        }
    }

    async fn read(stream: &mut DuplexStream) -> (ContentResponse, Vec<u8>) {
        let header = read_frame(stream, MANIFEST_BYTES_MAX).await.unwrap().unwrap();
        let mut body = Vec::new();
        stream.read_to_end(&mut body).await.unwrap();
        (codec::decode(&header, MANIFEST_BYTES_MAX).unwrap(), body)
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_holds_few_places_and_not_for_long() {
        let served = serve();
        let (idle, honest) = (NodeId([1; 32]), NodeId([2; 32]));
        let began = Instant::now();
        let mut asked = Vec::new();
        for _ in 0..SERVED_AT_ONCE {
            asked.push(served.ask(idle, 0).await);
        }
        while served.server.permits.available_permits() > SERVED_AT_ONCE - SERVED_PER_PEER {
            sleep(Duration::from_millis(5)).await;
        }
        for index in 0..served.chunks {
            let (header, body) = read(&mut served.ask(honest, index).await).await;
            assert!(matches!(header, ContentResponse::Chunk { bytes } if bytes as usize == body.len()), "{header:?}");
        }
        assert_eq!(served.server.permits.available_permits(), SERVED_AT_ONCE - SERVED_PER_PEER);
        assert_eq!(read(&mut served.ask(idle, 0).await).await.0, ContentResponse::Busy);
        while served.server.permits.available_permits() < SERVED_AT_ONCE {
            assert!(began.elapsed() < STALL * 2, "still held");
            sleep(Duration::from_millis(50)).await;
        }
        drop(asked);
    }
}
