//! Peers in this process: each answers from a real store through `serve::answer`, some with faults.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use opengrid_models::{
    Store,
    download::{PeerError, PeerSource},
    serve::answer,
};
use opengrid_protocol::{
    ModelRoot, NodeId,
    content::{ContentRequest, ContentResponse, Manifest},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Flips a bit in every chunk.
    LiesInChunks,
    /// Flips a bit in the manifest.
    LiesInManifest,
    /// Claims another size.
    LiesInSize,
    /// Sends chunks that are too long.
    SendsTooMuch,
    /// Says "busy" to the first so many requests.
    Busy(u32),
    /// Answers so many chunks and vanishes.
    DiesAfter(u32),
    /// Never answers chunk requests.
    Hangs,
}

type Hook = Box<dyn Fn(u32) + Send + Sync>;

#[derive(Default)]
pub struct Peers {
    peers: BTreeMap<NodeId, (Store, Conduct, AtomicU32)>,
    pub asked: Mutex<Vec<(NodeId, u32)>>,
    pub reported: Mutex<Vec<NodeId>>,
    in_flight: AtomicU32,
    pub in_flight_max: AtomicU32,
    /// Called with the number of chunk requests so far.
    pub before_chunk: Option<Hook>,
}

impl Peers {
    pub fn with(mut self, name: u8, store: &Store, conduct: Conduct) -> Self {
        self.peers.insert(NodeId([name; 32]), (store.clone(), conduct, AtomicU32::new(0)));
        self
    }

    /// Chunk requests to the peer `name`.
    pub fn asked_of(&self, name: u8) -> usize {
        self.asked.lock().unwrap().iter().filter(|(node, _)| *node == NodeId([name; 32])).count()
    }

    pub fn reported(&self) -> Vec<u8> {
        self.reported.lock().unwrap().iter().map(|node| node.0[0]).collect()
    }
}

#[async_trait]
impl PeerSource for Peers {
    async fn providers(&self, _root: ModelRoot) -> Vec<NodeId> {
        self.peers.keys().copied().collect()
    }

    async fn manifest(&self, node: NodeId, root: ModelRoot) -> Result<Manifest, PeerError> {
        let (store, conduct, _) = &self.peers[&node];
        let (ContentResponse::Manifest(mut manifest), _) = answer(store, &ContentRequest::Manifest { root }) else {
            return Err(PeerError::NotHere);
        };
        match conduct {
            Conduct::LiesInManifest => manifest.chunks[0][0] ^= 1,
            Conduct::LiesInSize => manifest.size -= 1,
            _ => {}
        }
        Ok(manifest)
    }

    async fn chunk(&self, node: NodeId, root: ModelRoot, index: u32) -> Result<Vec<u8>, PeerError> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push((node, index));
            asked.len() as u32
        };
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.in_flight_max.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2)).await;
        if let Some(hook) = &self.before_chunk {
            hook(number);
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let (store, conduct, count) = &self.peers[&node];
        let earlier = count.fetch_add(1, Ordering::SeqCst);
        match conduct {
            Conduct::Busy(times) if earlier < *times => return Err(PeerError::Busy),
            Conduct::DiesAfter(times) if earlier >= *times => return Err(PeerError::Unreachable("gone".into())),
            Conduct::Hangs => std::future::pending().await,
            _ => {}
        }
        let (ContentResponse::Chunk { .. }, mut bytes) = answer(store, &ContentRequest::Chunk { root, index }) else {
            return Err(PeerError::NotHere);
        };
        match conduct {
            Conduct::LiesInChunks => bytes[17] ^= 4,
            Conduct::SendsTooMuch => bytes.push(0),
            _ => {}
        }
        Ok(bytes)
    }

    fn misbehaved(&self, node: NodeId, why: &str) {
        assert!(!why.is_empty());
        self.reported.lock().unwrap().push(node);
    }
}
