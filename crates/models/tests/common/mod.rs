//! What the tests of downloads share: small models, peers over real stores, a hub on 127.0.0.1.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod hub;
pub mod peers;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use opengrid_models::{
    ModelEntry, Store,
    catalogue::{FileEntry, SizeClass, Source, Task, TemplateSource},
    chunk_tree::Tree,
    download::{FetchConfig, Progress, ProgressSink, SourceKind},
    test_support::TinyModel,
};
use sha2::{Digest, Sha256};

/// A model of about `bytes` bytes and its entry, without sources.
pub fn model(seed: u64, bytes: u64) -> (Vec<u8>, ModelEntry) {
    let file = TinyModel::of_size(seed, bytes).to_bytes();
    let entry = entry_of(&file);
    (file, entry)
}

pub fn entry_of(file: &[u8]) -> ModelEntry {
    ModelEntry {
        id: "tiny".into(),
        name: "tiny".into(),
        licence: "MIT".into(),
        class: SizeClass::Tiny,
        task: Task::Generation,
        context: 256,
        created: 0,
        template: TemplateSource::Gguf,
        file: FileEntry {
            name: "tiny.gguf".into(),
            size: file.len() as u64,
            sha256: Sha256::digest(file).into(),
            blake3: Tree::of(file).root(),
        },
        sources: Vec::new(),
    }
}

pub fn hub_source() -> Source {
    Source::Hub { repo: "o/tiny".into(), revision: "main".into(), path: "tiny.gguf".into(), convert: None }
}

/// A store in `directory` that has `file`.
pub fn store_with(directory: &Path, file: &[u8]) -> Store {
    let path = directory.join("original.gguf");
    std::fs::write(&path, file).unwrap();
    let store = Store::open(&directory.join("store")).unwrap();
    store.add_file(&path, &mut |_, _| {}).unwrap();
    store
}

/// Nothing outside this machine, and quick to give up.
pub fn config(hub_url: &str) -> FetchConfig {
    FetchConfig {
        order: vec![SourceKind::Peers, SourceKind::Hub, SourceKind::Package],
        hub_url: hub_url.to_owned(),
        chunk_time_max: Duration::from_secs(2),
        connect_time_max: Duration::from_secs(2),
        silence_time_max: Duration::from_secs(2),
        ..FetchConfig::default()
    }
}

/// A sink and what it got.
pub fn recorder() -> (ProgressSink, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    (Arc::new(move |progress| keep.lock().unwrap().push(progress)), seen)
}

/// An address on which nobody listens.
pub fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
