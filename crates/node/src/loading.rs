//! From `--serve` to running engines: fetch what is missing, load what fits, announce.

use std::{sync::Arc, time::Duration};

use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, FakeConfig, FakeEngine, SharedEngine};
use opengrid_host::{HostProfile, ModelNeeds, OwnerLimits, Plan, Probe, role_by_speed};
use opengrid_models::{
    Catalogue, ModelEntry,
    catalogue::Task,
    download::{Phase, Progress, ProgressSink},
    gguf,
};
use opengrid_protocol::limits::MODELS_PER_NODE_MAX;

use crate::{
    config::{EngineKind, Mode, Role, Serve},
    external,
    node::Node,
    proof,
    start::StartError,
};

/// Pauses between attempts to get a file that nobody had; doubling.
const FETCH_PAUSE_MIN: Duration = Duration::from_secs(2);
const FETCH_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a starting node waits for a first peer before it asks the world for a file.
const PEER_PATIENCE: Duration = Duration::from_secs(3);
/// Below this speed a machine is no worker for a model.
const DECODE_TOKENS_PER_S_MIN: f32 = 1.0;
/// How much faster than its answers the fake engine takes prompts.
const FAKE_PREFILL: f32 = 100.0;

/// The models that `--serve` names; `None` means: choose from the store.
pub fn resolve(serve: &Serve, catalogue: &Catalogue) -> Result<Option<Vec<ModelEntry>>, StartError> {
    match serve {
        Serve::Auto => Ok(None),
        Serve::None => Ok(Some(Vec::new())),
        Serve::Models(ids) => ids
            .iter()
            .map(|id| catalogue.get(id).cloned().ok_or_else(|| StartError::UnknownModel(id.clone())))
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

/// Tells the DHT of the files that are here, served or not: they can be fetched from this node.
pub fn announce_files(node: &Arc<Node>) {
    let here: Vec<ModelEntry> = node
        .catalogue
        .models()
        .filter(|entry| node.store.contains(entry.root()))
        .take(MODELS_PER_NODE_MAX)
        .cloned()
        .collect();
    node.spawn(|node| async move {
        for entry in here {
            if let Err(error) = node.network.provide(entry.root()).await {
                tracing::warn!(model = entry.id, %error, "not announced in the DHT");
            }
        }
    });
}

/// Fetches and loads the models in the background.
pub fn spawn(node: &Arc<Node>, serve: Option<Vec<ModelEntry>>) {
    let entries = serve.unwrap_or_else(|| {
        node.catalogue.models().filter(|entry| node.store.contains(entry.root())).cloned().collect()
    });
    for entry in &entries {
        node.serving.preparing(entry.root(), &entry.id, "waiting to load".into());
    }
    for entry in entries {
        node.spawn(|node| async move {
            node.cancel.run_until_cancelled(load_patiently(&node, &entry)).await;
        });
    }
}

/// A file that cannot be had now may come with the next peer; what else fails stays failed.
async fn load_patiently(node: &Arc<Node>, entry: &ModelEntry) {
    let mut pause = FETCH_PAUSE_MIN;
    while let Err(why) = fetch_and_prove(node, entry).await {
        tracing::warn!(model = entry.id, why, "not fetched; trying again soon");
        node.serving.failed(entry.root(), &entry.id, format!("{why}; trying again in {} s", pause.as_secs()));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FETCH_PAUSE_MAX);
    }
    // One at a time: loading takes all cores.
    let _loading = node.loading.lock().await;
    if let Err(why) = load(node, entry).await {
        tracing::error!(model = entry.id, why, "not served");
        node.serving.failed(entry.root(), &entry.id, why);
    }
}

async fn fetch_and_prove(node: &Arc<Node>, entry: &ModelEntry) -> Result<(), String> {
    fetch(node, entry).await?;
    node.serving.preparing(entry.root(), &entry.id, "verifying".into());
    let (store, root) = (node.store.clone(), entry.root());
    let proven = tokio::task::spawn_blocking(move || proof::prove(&store, root)).await;
    proven.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn load(node: &Arc<Node>, entry: &ModelEntry) -> Result<(), String> {
    node.serving.preparing(entry.root(), &entry.id, "loading".into());
    let engine = start_engine(node, entry).await?;
    let speed = engine.capabilities().decode_tokens_per_s;
    if node.config.serve == Serve::Auto && speed < DECODE_TOKENS_PER_S_MIN {
        engine.shutdown().await;
        return Err(format!("too slow here ({speed:.1} tokens/s); serve it all the same with --serve {}", entry.id));
    }
    if node.config.role == Role::Auto && role_by_speed(speed) == opengrid_host::Role::Worker {
        node.role.send_replace("worker".to_owned());
    }
    node.serving.ready(entry.root(), &entry.id, engine);
    if let Err(error) = node.network.provide(entry.root()).await {
        tracing::warn!(model = entry.id, %error, "not announced in the DHT");
    }
    tracing::info!(model = entry.id, speed, "serving");
    Ok(())
}

async fn fetch(node: &Arc<Node>, entry: &ModelEntry) -> Result<(), String> {
    if node.store.contains(entry.root()) {
        return Ok(());
    }
    wait_for_a_peer(node).await;
    let (serving, root, id) = (node.serving.clone(), entry.root(), entry.id.clone());
    let progress: ProgressSink = Arc::new(move |progress: Progress| {
        let percent = progress.done_bytes * 100 / progress.total_bytes.max(1);
        serving.preparing(root, &id, format!("{} {percent}% of", verb(progress.phase)));
    });
    node.fetcher
        .fetch(entry, Some(node.content.as_ref()), &progress, &node.cancel)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Peers are the first source, but a node that just started has none yet.
async fn wait_for_a_peer(node: &Arc<Node>) {
    let someone = async {
        while node.network.peers().is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The first beacons come right behind the connection.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let expects_peers = !node.config.network.join.is_empty() || node.config.network.mdns;
    if expects_peers {
        let _ = tokio::time::timeout(PEER_PATIENCE, someone).await;
    }
}

fn verb(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting for another process to fetch",
        Phase::Downloading => "fetching",
        Phase::Unpacking => "unpacking",
        Phase::Converting => "converting",
        Phase::Verifying | Phase::Done => "verifying",
    }
}

async fn start_engine(node: &Arc<Node>, entry: &ModelEntry) -> Result<SharedEngine, String> {
    let path = node.store.path(entry.root()).ok_or("the file vanished from the store: pull it again")?;
    let header_path = path.clone();
    let info = tokio::task::spawn_blocking(move || gguf::file::read_info(&header_path))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let settings = &node.config.engine;
    let trained_context = u32::try_from(info.context_length).unwrap_or(u32::MAX);
    if let EngineKind::External { urls } = &settings.kind {
        return external::start(node, entry, path, &info, urls).await;
    }
    if let EngineKind::Fake { tokens_per_s, slots } = settings.kind {
        let vocabulary_size = u32::try_from(info.tokens).unwrap_or(u32::MAX);
        let is_encoder = info.task == Task::Embedding;
        let embedding_width = is_encoder.then(|| u32::try_from(info.embedding_length).unwrap_or(u32::MAX));
        let config = FakeConfig {
            tokens_per_s,
            prefill_tokens_per_s: tokens_per_s * FAKE_PREFILL,
            slots,
            queue_max: settings.queue_max,
            context_tokens: trained_context,
            vocabulary_size,
            embedding_width,
        };
        return Ok(FakeEngine::new(config));
    }
    let plan = plan(node, entry, &info).await?;
    // Texts are embedded as a whole: there is no answer that another worker must continue to the letter.
    let mode = if info.task == Task::Embedding { Mode::Fast } else { settings.mode };
    let config = EmbeddedConfig {
        program: node.config.program.clone(),
        model_path: path,
        model_root: Some(entry.root().0),
        threads: plan.threads,
        slots: u16::try_from(plan.slots).unwrap_or(u16::MAX),
        context_tokens: plan.context_tokens,
        kv_budget_bytes: plan.kv_budget_bytes,
        queue_max: settings.queue_max,
        mode,
        cache_dir: Some(node.config.models_dir.join("cache")),
        gpu_layers: settings.gpu_layers,
        prefill_chunk: settings.prefill_chunk,
        stage: None,
    };
    let engine = EmbeddedEngine::start(config).await.map_err(|error| error.to_string())?;
    Ok(engine)
}

/// Threads, slots and context: the owner's wishes, then what the machine allows.
async fn plan(node: &Arc<Node>, entry: &ModelEntry, info: &gguf::ModelInfo) -> Result<Plan, String> {
    let settings = &node.config.engine;
    let needs = ModelNeeds {
        weights_bytes: entry.file.size,
        kv_bytes_per_token: info.kv_bytes_per_token,
        trained_context_tokens: u32::try_from(info.context_length).unwrap_or(u32::MAX),
        decode_tokens_per_s: None,
    };
    let owner = OwnerLimits {
        cpu_percent: node.config.cpu_percent,
        memory_percent: node.config.memory_percent,
        threads: settings.threads,
        slots: settings.slots.map(u32::from),
        context_tokens: settings.context_tokens,
        kv_budget_bytes: settings.kv_budget_bytes,
    };
    let models_dir = node.config.models_dir.clone();
    let profile: HostProfile =
        tokio::task::spawn_blocking(move || Probe::new(models_dir).run()).await.map_err(|error| error.to_string())?;
    opengrid_host::recommend(&profile, &needs, &owner).map_err(|error| error.to_string())
}
