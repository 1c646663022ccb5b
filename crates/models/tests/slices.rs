//! Slices from just the chunks that they are made of: from peers that hold all or a part, from the hub, after
//! interruptions, past liars.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use common::{
    config, entry_of,
    hub::{Behaviour, Hub},
    hub_source, nowhere,
    peers::{Conduct, Peers},
    recorder, store_with,
};
use opengrid_models::{
    Fetcher, ModelEntry, Store,
    download::{FetchError, PeerSource, no_progress},
    store::{StoreError, StoredSlice},
    test_support::TinyModel,
};
use opengrid_protocol::Layers;
use tokio_util::sync::CancellationToken;

const LAYERS: u32 = 6;

struct Lab {
    directory: tempfile::TempDir,
    file: Vec<u8>,
    entry: ModelEntry,
    origin: Store,
}

impl Lab {
    /// Six layers of about 3 MiB each.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = TinyModel { layers: LAYERS, feed_forward: 8_192, ..TinyModel::default() }.to_bytes();
        let entry = entry_of(&file);
        let origin = store_with(directory.path(), &file);
        Self { directory, file, entry, origin }
    }

    fn store(&self, name: &str) -> Store {
        Store::open(&self.directory.path().join(name)).unwrap()
    }

    /// What the slice must be, made of the whole file.
    fn expected(&self, layers: Layers) -> Vec<u8> {
        std::fs::read(self.origin.make_slice(self.entry.root(), layers).unwrap().path).unwrap()
    }

    async fn fetch(&self, store: &Store, layers: Layers, peers: &Peers, hub: &str) -> Result<StoredSlice, FetchError> {
        let fetcher = Fetcher::new(store.clone(), config(hub));
        let peers: &dyn PeerSource = peers;
        fetcher.fetch_slice(&self.entry, layers, Some(peers), &no_progress(), &CancellationToken::new()).await
    }

    fn chunks(&self) -> usize {
        self.file.len().div_ceil(1 << 20)
    }
}

fn layers(from: u32, to: u32) -> Layers {
    Layers::new(from, to).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_chunks_of_the_slice_are_fetched() {
    let lab = Lab::new();
    for (from, to) in [(0, 2), (2, 4), (4, 6)] {
        let peers = Peers::default().with(1, &lab.origin, Conduct::Honest).with(2, &lab.origin, Conduct::Honest);
        let store = lab.store(&format!("target {from}"));
        let slice = lab.fetch(&store, layers(from, to), &peers, &nowhere()).await.unwrap();
        assert!(read(&slice.path) == lab.expected(layers(from, to)));
        let asked: BTreeSet<u32> = peers.asked.lock().unwrap().iter().map(|(_, index)| *index).collect();
        assert!(asked.len() * 2 <= lab.chunks() + 4, "{} of {} chunks", asked.len(), lab.chunks());
        assert_eq!(peers.asked.lock().unwrap().len(), asked.len(), "none twice");
        assert!(!store.contains(lab.entry.root()), "the whole file is not here");
        assert_eq!(slice.tokens.is_some(), from == 0);
        if let Some((path, table)) = slice.tokens {
            assert_eq!(read(&path).len() as u64, table.rows * table.row_bytes);
        }
        // Again: nothing is fetched.
        lab.fetch(&store, layers(from, to), &Peers::default(), &nowhere()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_of_parts_serve_what_they_have() {
    let lab = Lab::new();
    let mut holders: Vec<Store> = Vec::new();
    for (from, to) in [(0, 3), (3, 6)] {
        let store = lab.store(&format!("holder {from}"));
        let peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
        lab.fetch(&store, layers(from, to), &peers, &nowhere()).await.unwrap();
        holders.push(store);
    }
    let peers = Peers::default().with(1, &holders[0], Conduct::Honest).with(2, &holders[1], Conduct::Honest);
    let slice = lab.fetch(&lab.store("third"), layers(1, 5), &peers, &nowhere()).await.unwrap();
    assert!(read(&slice.path) == lab.expected(layers(1, 5)));
    assert!(peers.reported().is_empty(), "to have a part is no lie");
    let whole = Fetcher::new(lab.store("fourth"), config(&nowhere()));
    let source: &dyn PeerSource = &peers;
    let fetched = whole.fetch(&lab.entry, Some(source), &no_progress(), &CancellationToken::new()).await;
    fetched.expect("two halves make a whole");
    let one = Peers::default().with(1, &holders[0], Conduct::Honest);
    let error = lab.fetch(&lab.store("fifth"), layers(4, 6), &one, &nowhere()).await.unwrap_err();
    assert!(error.to_string().contains("chunks are missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_gives_ranges_when_a_peer_has_the_tree() {
    let lab = Lab::new();
    let hub = Hub::serve(lab.file.clone(), Behaviour { cut_after: Some(1_500_000), ..Behaviour::default() });
    let entry = ModelEntry { sources: vec![hub_source()], ..lab.entry.clone() };
    let store = lab.store("target");
    let peers = Peers::default().with(1, &lab.origin, Conduct::DiesAfter(0));
    let fetcher = Fetcher::new(store, config(&hub.url()));
    let source: &dyn PeerSource = &peers;
    let (sink, seen) = recorder();
    let slice = fetcher.fetch_slice(&entry, layers(2, 3), Some(source), &sink, &CancellationToken::new()).await;
    assert!(read(&slice.unwrap().path) == lab.expected(layers(2, 3)));
    assert!(hub.starts().len() > 2, "interrupted and taken up again: {:?}", hub.starts());
    let others = |start: &u64| (1 << 20..5 << 20).contains(start) || (11 << 20..18 << 20).contains(start);
    assert!(!hub.starts().iter().any(others), "no layer but its own: {:?}", hub.starts());
    let most = seen.lock().unwrap().iter().map(|progress| progress.total_bytes).max().unwrap();
    assert!(most < lab.file.len() as u64 / 2, "progress is that of the part");
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_and_interruptions_only_cost_time() {
    let lab = Lab::new();
    let store = lab.store("target");
    let dying = Peers::default().with(1, &lab.origin, Conduct::DiesAfter(3));
    assert!(lab.fetch(&store, layers(0, 3), &dying, &nowhere()).await.is_err());
    let peers = Peers::default()
        .with(1, &lab.origin, Conduct::LiesInManifest)
        .with(2, &lab.origin, Conduct::LiesInChunks)
        .with(3, &lab.origin, Conduct::Honest);
    let slice = lab.fetch(&store, layers(0, 3), &peers, &nowhere()).await.unwrap();
    assert!(read(&slice.path) == lab.expected(layers(0, 3)));
    assert!(peers.reported().contains(&2), "{:?}", peers.reported());
    let fetched = peers.asked_of(3);
    let needed = lab.chunks() / 2;
    assert!(fetched <= needed + 2, "what the first attempt got is kept: {fetched} of {needed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_and_what_it_was_made_of_go_with_the_model() {
    let lab = Lab::new();
    let store = lab.store("target");
    let peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
    let slice = lab.fetch(&store, layers(0, 2), &peers, &nowhere()).await.unwrap();
    assert!(store.remove(lab.entry.root()).unwrap() > 0);
    assert!(!slice.path.exists() && !slice.tokens.unwrap().0.exists());
    assert!(matches!(store.remove(lab.entry.root()), Err(StoreError::NotHere(_))));
    let nobody = lab.fetch(&store, layers(0, 2), &Peers::default(), &nowhere()).await.unwrap_err();
    assert!(nobody.to_string().contains("list of the file's chunks"), "{nobody}");
    let beyond = lab.fetch(&store, layers(5, 7), &peers, &nowhere()).await.unwrap_err();
    assert!(beyond.to_string().contains("no layers 5..7"), "{beyond}");
}

#[test]
fn a_damaged_slice_is_made_again_and_zeros_are_holes() {
    let lab = Lab::new();
    let root = lab.entry.root();
    let path: PathBuf = lab.origin.make_slice(root, layers(1, 3)).unwrap().path;
    let good = read(&path);
    std::fs::write(&path, &good[..100]).unwrap();
    lab.origin.make_slice(root, layers(1, 3)).unwrap();
    assert!(read(&path) == good);
}
