//! From `--serve` to running engines: fetch what is missing, load what fits, announce.

mod auto;
mod draft;
mod stage;

use std::{path::PathBuf, sync::Arc, time::Duration};

use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, FakeConfig, FakeEngine, SharedEngine};
use opengrid_host::{HostProfile, ModelNeeds, OwnerLimits, Plan, Probe, role_by_speed};
use opengrid_models::{
    Catalogue, ModelEntry,
    catalogue::Task,
    download::{Phase, Progress, ProgressSink},
    gguf,
};
use opengrid_protocol::{Share, limits::MODELS_PER_NODE_MAX};

use crate::{
    config::{EngineKind, Mode, NodeConfig, Role, Serve, Wish, WishedPart},
    external,
    node::Node,
    proof,
    serving::Unit,
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

/// What `--serve` names; `None` means: choose from the store.
pub fn resolve(config: &NodeConfig, catalogue: &Catalogue) -> Result<Option<Vec<Wanted>>, StartError> {
    let find = |wish: &Wish| {
        let unknown = || StartError::UnknownModel(wish.model.clone());
        let entry = catalogue.get(&wish.model).cloned().ok_or_else(unknown)?;
        if wish.part != WishedPart::Whole && config.engine.kind != EngineKind::Embedded {
            return Err(StartError::EngineOfStages(wish.model.clone()));
        }
        Ok(Wanted { entry, part: wish.part })
    };
    if let Some(id) = config.engine.draft.as_ref().filter(|id| catalogue.get(id).is_none()) {
        return Err(StartError::UnknownModel(id.clone()));
    }
    match &config.serve {
        Serve::Auto => Ok(None),
        Serve::None => Ok(Some(Vec::new())),
        Serve::Models(wishes) => wishes.iter().map(find).collect::<Result<_, _>>().map(Some),
    }
}

/// A [`Wish`] whose model is known.
pub struct Wanted {
    pub entry: ModelEntry,
    pub part: WishedPart,
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
pub fn spawn(node: &Arc<Node>, serve: Option<Vec<Wanted>>) {
    let wanted = serve.unwrap_or_else(|| {
        let here = node.catalogue.models().filter(|entry| node.store.contains(entry.root()));
        here.map(|entry| Wanted { entry: entry.clone(), part: WishedPart::Whole }).collect()
    });
    for Wanted { entry, part } in wanted {
        let layers = if let WishedPart::Layers(layers) = part { Some(layers) } else { None };
        let share = Share { model: entry.root(), layers };
        node.serving.preparing(share, &entry.id, "waiting to load".into());
        node.spawn(move |node| async move {
            let load = async {
                match part {
                    WishedPart::Whole => load_patiently(&node, &entry).await,
                    WishedPart::Layers(layers) => {
                        stage::load_patiently(&node, &entry, layers, draft::Chosen::ByOwner).await
                    }
                    WishedPart::Auto => auto::serve(&node, &entry).await,
                }
            };
            node.cancel.run_until_cancelled(load).await;
        });
    }
}

/// A file that cannot be had now may come with the next peer; what else fails stays failed.
async fn load_patiently(node: &Arc<Node>, entry: &ModelEntry) {
    let mut pause = FETCH_PAUSE_MIN;
    while let Err(why) = fetch_and_prove(node, entry).await {
        tracing::warn!(model = entry.id, why, "not fetched; trying again soon");
        node.serving.failed(
            Share::whole(entry.root()),
            &entry.id,
            format!("{why}; trying again in {} s", pause.as_secs()),
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FETCH_PAUSE_MAX);
    }
    // One at a time: loading takes all cores.
    let _loading = node.loading.lock().await;
    if let Err(why) = load(node, entry).await {
        tracing::error!(model = entry.id, why, "not served");
        node.serving.failed(Share::whole(entry.root()), &entry.id, why);
    }
}

async fn fetch_and_prove(node: &Arc<Node>, entry: &ModelEntry) -> Result<(), String> {
    fetch(node, entry).await?;
    node.serving.preparing(Share::whole(entry.root()), &entry.id, "verifying".into());
    let (store, root) = (node.store.clone(), entry.root());
    let proven = tokio::task::spawn_blocking(move || proof::prove(&store, root)).await;
    proven.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn load(node: &Arc<Node>, entry: &ModelEntry) -> Result<(), String> {
    node.serving.preparing(Share::whole(entry.root()), &entry.id, "loading".into());
    let engine = start_engine(node, entry).await?;
    let speed = engine.capabilities().decode_tokens_per_s;
    if node.config.serve == Serve::Auto && speed < DECODE_TOKENS_PER_S_MIN {
        engine.shutdown().await;
        return Err(format!("too slow here ({speed:.1} tokens/s); serve it all the same with --serve {}", entry.id));
    }
    if node.config.role == Role::Auto && role_by_speed(speed) == opengrid_host::Role::Worker {
        node.role.send_replace("worker".to_owned());
    }
    node.serving.ready(Share::whole(entry.root()), &entry.id, Unit::Whole(engine));
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
    let progress = progress(node, Share::whole(entry.root()), &entry.id);
    node.fetcher
        .fetch(entry, Some(node.content.as_ref()), &progress, &node.cancel)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Shows how far a fetch is.
fn progress(node: &Arc<Node>, share: Share, id: &str) -> ProgressSink {
    let (serving, id) = (node.serving.clone(), id.to_owned());
    Arc::new(move |progress: Progress| {
        let percent = progress.done_bytes * 100 / progress.total_bytes.max(1);
        serving.preparing(share, &id, format!("{} {percent}% of", verb(progress.phase)));
    })
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
    let info = read_info(path.clone()).await?;
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
    let plan = plan(node, entry.file.size, &info).await?;
    // Texts are embedded as a whole: there is no answer that another worker must continue to the letter.
    let mode = if info.task == Task::Embedding { Mode::Fast } else { settings.mode };
    let config = EmbeddedConfig { mode, ..embedded(node, entry, path, &plan) };
    let engine = EmbeddedEngine::start(config).await.map_err(|error| error.to_string())?;
    Ok(engine)
}

async fn read_info(path: PathBuf) -> Result<gguf::ModelInfo, String> {
    let read = tokio::task::spawn_blocking(move || gguf::file::read_info(&path)).await;
    read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn embedded(node: &Arc<Node>, entry: &ModelEntry, model_path: PathBuf, plan: &Plan) -> EmbeddedConfig {
    let settings = &node.config.engine;
    EmbeddedConfig {
        program: node.config.program.clone(),
        model_path,
        model_root: Some(entry.root().0),
        threads: plan.threads,
        slots: u16::try_from(plan.slots).unwrap_or(u16::MAX),
        context_tokens: plan.context_tokens,
        kv_budget_bytes: plan.kv_budget_bytes,
        queue_max: settings.queue_max,
        mode: settings.mode,
        cache_dir: Some(node.config.models_dir.join("cache")),
        gpu_layers: settings.gpu_layers,
        prefill_chunk: settings.prefill_chunk,
        stage: None,
        // `--layers auto` took all of them.
        draft: draft::unused(node, "all layers are here, so that no laps are to be spared"),
    }
}

/// Threads, slots and context for a file whose weights take so many bytes: the owner's wishes, then what the machine
/// allows.
async fn plan(node: &Arc<Node>, weights_bytes: u64, info: &gguf::ModelInfo) -> Result<Plan, String> {
    let profile = host_profile(node).await?;
    opengrid_host::recommend(&profile, &needs(weights_bytes, info), &owner_limits(node))
        .map_err(|error| error.to_string())
}

fn needs(weights_bytes: u64, info: &gguf::ModelInfo) -> ModelNeeds {
    ModelNeeds {
        weights_bytes,
        kv_bytes_per_token: info.kv_bytes_per_token,
        trained_context_tokens: u32::try_from(info.context_length).unwrap_or(u32::MAX),
        decode_tokens_per_s: None,
    }
}

fn owner_limits(node: &Node) -> OwnerLimits {
    let settings = &node.config.engine;
    OwnerLimits {
        cpu_percent: node.config.cpu_percent,
        memory_percent: node.config.memory_percent,
        memory_bytes: node.config.memory_bytes,
        threads: settings.threads,
        slots: settings.slots.map(u32::from),
        context_tokens: settings.context_tokens,
        kv_budget_bytes: settings.kv_budget_bytes,
    }
}

async fn host_profile(node: &Arc<Node>) -> Result<HostProfile, String> {
    let models_dir = node.config.models_dir.clone();
    tokio::task::spawn_blocking(move || Probe::new(models_dir).run()).await.map_err(|error| error.to_string())
}
