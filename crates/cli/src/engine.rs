//! Starts the embedded engine for `bench` and `doctor`, outside of a node.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use opengrid_engine::{EmbeddedConfig, EmbeddedEngine, Mode};
use opengrid_host::{HostProfile, ModelNeeds, OwnerLimits, recommend};
use opengrid_models::{ModelEntry, gguf::ModelInfo};

use crate::config::{Config, Engine};

/// What `bench` measures and `doctor` starts: a model of the store, on this machine.
pub struct Subject<'a> {
    pub entry: &'a ModelEntry,
    pub info: &'a ModelInfo,
    pub path: PathBuf,
}

/// Starts an engine as a node with these settings would. Nothing is read from or written to the cache of results, so
/// what it reports was measured now.
///
/// # Errors
/// When the model does not fit, or the engine does not start.
pub async fn start(
    subject: &Subject<'_>,
    profile: &HostProfile,
    config: &Config,
    threads: Option<u32>,
) -> anyhow::Result<Arc<EmbeddedEngine>> {
    let owner = OwnerLimits { threads: threads.or(owner_limits(config).threads), ..owner_limits(config) };
    let plan = recommend(profile, &needs(subject.info), &owner)?;
    let program = std::env::current_exe().context("the program's own path is unknown")?;
    let engine = EmbeddedConfig {
        model_root: Some(subject.entry.root().0),
        threads: plan.threads,
        slots: u16::try_from(plan.slots).unwrap_or(u16::MAX),
        context_tokens: plan.context_tokens,
        kv_budget_bytes: plan.kv_budget_bytes,
        mode: if config.serve.engine == Engine::Fast { Mode::Fast } else { Mode::Exact },
        gpu_layers: config.serve.gpu_layers,
        ..EmbeddedConfig::new(program, subject.path.clone())
    };
    Ok(EmbeddedEngine::start(engine).await?)
}

/// What a model takes, by its file.
pub fn needs(info: &ModelInfo) -> ModelNeeds {
    ModelNeeds {
        weights_bytes: info.weight_bytes,
        kv_bytes_per_token: info.kv_bytes_per_token,
        trained_context_tokens: u32::try_from(info.context_length).unwrap_or(u32::MAX),
        decode_tokens_per_s: None,
    }
}

/// What the owner allows for one model or stage.
pub fn memory_bytes(config: &Config) -> Option<u64> {
    config.limits.memory_mb.map(|megabytes| u64::from(megabytes.get()) << 20)
}

/// The owner's limits, as the settings say.
pub fn owner_limits(config: &Config) -> OwnerLimits {
    let serve = &config.serve;
    OwnerLimits {
        cpu_percent: config.limits.cpu_percent,
        memory_percent: config.limits.memory_percent,
        memory_bytes: memory_bytes(config),
        threads: serve.threads.map(|value| value.get()),
        slots: serve.slots.map(|value| value.get()),
        context_tokens: serve.context_tokens.map(|value| value.get()),
        kv_budget_bytes: serve.kv_budget_mb.map(|value| u64::from(value.get()) << 20),
    }
}
