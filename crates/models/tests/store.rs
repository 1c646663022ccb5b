//! The store on a real disk, and several processes on one store.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{path::Path, process::Command, time::Duration};

use common::{
    config,
    hub::{Behaviour, Hub},
    hub_source, model, recorder, store_with,
};
use opengrid_models::{
    Fetcher, Store,
    chunk_tree::Tree,
    download::{Fetched, no_progress},
    gguf::file::Header,
    serve::answer,
    store::StoreError,
};
use opengrid_protocol::{
    ModelRoot,
    content::{ContentRequest, ContentResponse},
};
use tokio_util::sync::CancellationToken;

fn files_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_file_goes_in_is_served_and_goes_out() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 3 << 20);
    let store = store_with(directory.path(), &file);
    let root = entry.root();
    assert!(store.contains(root));
    assert_eq!(std::fs::read(store.path(root).unwrap()).unwrap(), file);
    let listed = store.list().unwrap();
    assert_eq!((listed.len(), listed[0].root, listed[0].size), (1, root, file.len() as u64));
    let manifest = store.manifest(root).unwrap();
    let tree = Tree::verify(manifest, root, file.len() as u64).unwrap();
    let parts: Vec<u8> = (0..tree.chunk_count()).flat_map(|index| store.read_chunk(root, index).unwrap()).collect();
    assert_eq!(parts, file);
    assert!(matches!(store.read_chunk(root, tree.chunk_count()), Err(StoreError::NoSuchChunk { .. })));
    store.verify(root, &mut |_, _| {}).unwrap();
    assert_eq!(store.remove(root).unwrap(), file.len() as u64);
    assert!(!store.contains(root));
    assert!(matches!(store.remove(root), Err(StoreError::NotHere(_))));
    assert!(matches!(store.manifest(root), Err(StoreError::NotHere(_))));
}

#[test]
fn adding_twice_is_harmless_and_the_original_may_change() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 2 << 20);
    let store = store_with(directory.path(), &file);
    let original = directory.path().join("original.gguf");
    let mut last = (0, 0);
    let again = store.add_file(&original, &mut |done, total| last = (done, total)).unwrap();
    assert!(again.known);
    assert_eq!((again.root, again.sha256, again.size), (entry.root(), entry.file.sha256, entry.file.size));
    assert_eq!(last, (again.size, again.size));
    std::fs::write(&original, b"changed").unwrap();
    store.verify(entry.root(), &mut |_, _| {}).unwrap();
    assert_eq!(files_in(&directory.path().join("store/temporary")), 0);
}

#[test]
fn what_is_no_model_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let (file, _) = model(1, 1 << 20);
    let path = directory.path().join("bad.gguf");
    for (bytes, expected) in
        [(&file[..file.len() / 2], "truncated"), (&b"hello world"[..], "not a gguf"), (&[], "truncated")]
    {
        std::fs::write(&path, bytes).unwrap();
        let error = store.add_file(&path, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("bad.gguf"), "{error}");
    }
    assert!(store.add_file(&directory.path().join("missing"), &mut |_, _| {}).is_err());
    assert!(store.list().unwrap().is_empty());
    assert_eq!(files_in(&directory.path().join("store/temporary")), 0);
}

#[test]
fn the_tree_is_made_again_when_its_file_is_lost_or_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 3 << 20);
    store_with(directory.path(), &file);
    let saved = directory.path().join("store/manifests").join(entry.root().to_string());
    for damage in [Some(&b"nonsense"[..]), None] {
        match damage {
            Some(bytes) => std::fs::write(&saved, bytes).unwrap(),
            None => std::fs::remove_file(&saved).unwrap(),
        }
        let store = Store::open(&directory.path().join("store")).unwrap();
        assert_eq!(store.manifest(entry.root()).unwrap(), *Tree::of(&file).manifest());
        assert!(saved.is_file());
    }
}

#[test]
fn a_damaged_disk_never_makes_a_node_lie() {
    let directory = tempfile::tempdir().unwrap();
    let (mut file, entry) = model(1, 3 << 20);
    let store = store_with(directory.path(), &file);
    let root = entry.root();
    let blob = store.path(root).unwrap();
    let last = file.len() - 1;
    file[last] ^= 1;
    std::fs::write(&blob, &file).unwrap();
    let index = (last >> 20) as u32;
    assert!(matches!(answer(&store, &ContentRequest::Chunk { root, index: 0 }).0, ContentResponse::Chunk { .. }));
    assert_eq!(answer(&store, &ContentRequest::Chunk { root, index }), (ContentResponse::NotHere, Vec::new()));
    assert!(matches!(store.read_chunk(root, index), Err(StoreError::DamagedChunk { .. })));
    let error = store.verify(root, &mut |_, _| {}).unwrap_err();
    let StoreError::Corrupt { kept, .. } = &error else { panic!("{error}") };
    assert!(kept.is_file() && !store.contains(root), "{error}");
    assert!(error.to_string().contains("pull it again"));
}

#[test]
fn the_quarantine_keeps_only_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 1 << 18);
    let store = store_with(directory.path(), &file);
    for _ in 0..7 {
        store.add_file(&directory.path().join("original.gguf"), &mut |_, _| {}).unwrap();
        let mut damaged = file.clone();
        damaged[5000] ^= 1;
        std::fs::write(store.path(entry.root()).unwrap(), damaged).unwrap();
        assert!(store.verify(entry.root(), &mut |_, _| {}).is_err());
    }
    assert_eq!(files_in(&directory.path().join("store/quarantine")), 4);
}

#[test]
fn unknown_files_are_not_here_and_strange_names_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let root = ModelRoot([1; 32]);
    for request in [ContentRequest::Manifest { root }, ContentRequest::Chunk { root, index: 0 }] {
        assert_eq!(answer(&store, &request).0, ContentResponse::NotHere);
    }
    std::fs::write(directory.path().join("blobs/notes.txt"), "x").unwrap();
    std::fs::create_dir(directory.path().join(format!("blobs/{root}.gguf"))).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(!store.contains(root));
}

#[test]
fn the_vocabulary_part_is_made_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 3 << 20);
    let store = store_with(directory.path(), &file);
    let header = Header::read(&store.vocabulary_path(entry.root()).unwrap()).unwrap();
    let part = header.parse().unwrap();
    assert!(part.tensors().is_empty() && part.file_size() < 1 << 20);
    assert!(part.get("tokenizer.ggml.tokens").is_some());
    assert!(matches!(store.vocabulary_path(ModelRoot([1; 32])), Err(StoreError::NotHere(_))));
}

#[test]
fn a_file_under_download_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(1, 1 << 18);
    let store = store_with(directory.path(), &file);
    let lock = store.try_lock(entry.root()).unwrap().unwrap();
    assert!(store.try_lock(entry.root()).unwrap().is_none());
    assert!(matches!(store.remove(entry.root()), Err(StoreError::Locked(_))));
    drop(lock);
    store.remove(entry.root()).unwrap();
}

const CHILD: &str = "OPENGRID_TEST_CHILD";

/// Not a test by itself: what the processes below run.
#[test]
fn child_fetches() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (store, url) = job.split_once('|').unwrap();
    let (_, mut entry) = model(7, 6 << 20);
    entry.sources.push(hub_source());
    let fetcher = Fetcher::new(Store::open(Path::new(store)).unwrap(), config(url));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(fetcher.fetch(&entry, None, &no_progress(), &CancellationToken::new())).unwrap();
}

fn child(store: &Path, hub: &Hub) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_fetches", "--nocapture"])
        .env(CHILD, format!("{}|{}", store.display(), hub.url()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn of_many_processes_one_downloads_and_all_see_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (file, entry) = model(7, 6 << 20);
    let hub = Hub::serve(file.clone(), Behaviour { slow: Duration::from_millis(5), ..Behaviour::default() });
    let children: Vec<_> = (0..4).map(|_| child(directory.path(), &hub)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(hub.starts(), [0]);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(std::fs::read(store.path(entry.root()).unwrap()).unwrap(), file);
    for empty in ["partial", "temporary", "quarantine"] {
        assert_eq!(files_in(&directory.path().join(empty)), 0, "{empty}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_download_is_resumed_by_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let (file, mut entry) = model(7, 6 << 20);
    entry.sources.push(hub_source());
    let hub = Hub::serve(file.clone(), Behaviour { slow: Duration::from_millis(20), ..Behaviour::default() });
    let mut killed = child(directory.path(), &hub);
    let data = directory.path().join("partial").join(entry.root().to_string()).join("data");
    let started = std::time::Instant::now();
    while std::fs::metadata(&data).map_or(0, |metadata| metadata.len()) < 2 << 20 {
        assert!(started.elapsed() < Duration::from_secs(30), "the child downloads nothing");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    hub.behave(Behaviour::default());
    let fetcher = Fetcher::new(Store::open(directory.path()).unwrap(), config(&hub.url()));
    let (sink, seen) = recorder();
    let fetched = fetcher.fetch(&entry, None, &sink, &CancellationToken::new()).await.unwrap();
    assert!(matches!(fetched, Fetched::From(_)));
    let starts = hub.starts();
    assert!(starts.len() == 2 && starts[1] >= 2 << 20, "{starts:?}");
    assert!(seen.lock().unwrap()[0].done_bytes >= 2 << 20);
    assert_eq!(std::fs::read(fetcher.store().path(entry.root()).unwrap()).unwrap(), file);
}
