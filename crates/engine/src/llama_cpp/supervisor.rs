//! The child's life: launch, watch, restart.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    EmbeddedConfig, Mode,
    jobs::Jobs,
    measured,
    messages::{DraftFile, DraftState, FromEngine, Load, Measured, Ready, ToEngine},
    speeds::Speeds,
};
use crate::{
    EngineError,
    child::ENGINE_COMMAND,
    ipc,
    process::{ChildProcess, Input, Launch, Output},
    sandbox::Devices,
};

/// Tokens of a step at most: llama.cpp's `n_batch` and `n_ubatch`.
const BATCH_TOKENS: u32 = 512;
/// Large models come off slow disks.
const LOAD_TIME_MAX: Duration = Duration::from_secs(600);
const PING_EVERY: Duration = Duration::from_secs(2);
/// A child that answers no ping for so long is hung, unless one step can take longer.
const HANG: Duration = Duration::from_secs(10);
const RESTART_DELAY_MIN: Duration = Duration::from_millis(50);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);
/// A child that lived so long died of something new.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

pub struct Supervisor {
    config: EmbeddedConfig,
    /// With what the first launch found: later ones must give the same.
    load: Load,
    hang: Duration,
    keeper: Keeper,
    draft: SharedDraft,
}

/// What became of the draft model at the last start of the child.
pub type SharedDraft = Arc<Mutex<Option<DraftState>>>;

impl Supervisor {
    /// Starts the first child.
    ///
    /// # Errors
    /// A sentence that says why the model cannot be served.
    pub async fn launch(config: EmbeddedConfig) -> Result<(Self, ChildProcess, Ready), String> {
        let (load, cache) = {
            let config = config.clone();
            let prepared = tokio::task::spawn_blocking(move || prepare(&config)).await;
            prepared.map_err(|error| error.to_string())??
        };
        let (process, ready) = start_child(&config, &load).await?;
        let mut keeper = Keeper { path: cache.filter(|_| ready.inexact.is_none()), kept: ready.measured };
        if load.known.is_none() {
            keeper.keep(ready.measured).await;
        }
        let step_s = BATCH_TOKENS as f32 / ready.measured.prefill_tokens_per_s.max(0.01);
        let hang = HANG.max(Duration::from_secs_f32((step_s * 4.0).min(3_600.0)));
        let load =
            Load { known: Some(ready.measured), slots: ready.slots, context_tokens: ready.context_tokens, ..load };
        let draft = Arc::new(Mutex::new(ready.draft.clone()));
        Ok((Self { config, load, hang, keeper, draft }, process, ready))
    }

    pub fn config(&self) -> &EmbeddedConfig {
        &self.config
    }

    pub fn draft(&self) -> SharedDraft {
        self.draft.clone()
    }

    /// Serves `process` and its successors until `stop`.
    pub async fn run(mut self, process: ChildProcess, jobs: Arc<Jobs>, stop: CancellationToken) {
        let mut process = Some(process);
        let mut delay = RESTART_DELAY_MIN;
        loop {
            let Some(mut child) = process.take() else {
                process = tokio::select! {
                    () = stop.cancelled() => break,
                    restarted = self.restart(delay) => restarted,
                };
                delay = (delay * 2).min(RESTART_DELAY_MAX);
                continue;
            };
            let started = Instant::now();
            jobs.start(child.id());
            let why = tokio::select! {
                () = stop.cancelled() => None,
                why = serve(&mut child, &jobs, &mut self.keeper, self.hang) => Some(why),
            };
            let Some(why) = why else {
                jobs.lose(&EngineError::ShuttingDown);
                child.end().await;
                break;
            };
            jobs.lose(&EngineError::Died);
            let end = child.kill().await;
            tracing::warn!(%why, %end, "the engine process died; it is restarted");
            if started.elapsed() > HEALTHY_AFTER {
                delay = RESTART_DELAY_MIN;
            }
        }
        jobs.lose(&EngineError::ShuttingDown);
    }

    async fn restart(&self, delay: Duration) -> Option<ChildProcess> {
        sleep(delay).await;
        let load = Load { memory_available_bytes: memory_available_bytes(), ..self.load.clone() };
        match start_child(&self.config, &load).await {
            Ok((process, ready)) if ready.slots == load.slots && ready.context_tokens == load.context_tokens => {
                tracing::info!(pid = process.id(), "the engine process is back");
                *self.draft.lock() = ready.draft;
                Some(process)
            }
            Ok((process, _)) => {
                process.end().await;
                tracing::warn!("the engine is not restarted: there is less memory than at the first start");
                None
            }
            Err(why) => {
                tracing::warn!(%why, "the engine process does not start");
                None
            }
        }
    }
}

async fn serve(child: &mut ChildProcess, jobs: &Jobs, keeper: &mut Keeper, hang: Duration) -> String {
    tokio::select! {
        error = read_events(&mut child.output, jobs) => error,
        error = write_frames(&mut child.input, jobs) => format!("it takes no messages: {error}"),
        () = watch(jobs, keeper, hang) => format!("it answered nothing for {} s", hang.as_secs()),
    }
}

async fn read_events(output: &mut Output, jobs: &Jobs) -> String {
    loop {
        match output.receive().await {
            Ok(message) => {
                if let Err(why) = jobs.handle(message) {
                    return why.to_owned();
                }
            }
            Err(error) => return format!("its stream ended: {error}"),
        }
    }
}

async fn write_frames(input: &mut Input, jobs: &Jobs) -> io::Error {
    loop {
        for frame in jobs.outgoing().await {
            if let Err(error) = input.send(&frame).await {
                return error;
            }
        }
    }
}

async fn watch(jobs: &Jobs, keeper: &mut Keeper, hang: Duration) {
    while jobs.ping() < hang {
        keeper.improve(jobs.speeds()).await;
        sleep(PING_EVERY).await;
    }
}

/// What the child is told first, and where the measurement is kept.
fn prepare(config: &EmbeddedConfig) -> Result<(Load, Option<PathBuf>), String> {
    let shown = config.model_path.display();
    let file = std::fs::metadata(&config.model_path).map_err(|error| format!("{shown}: {error}"))?;
    if !file.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let model_path = std::path::absolute(&config.model_path).map_err(|error| format!("{shown}: {error}"))?;
    let draft = config.draft.as_ref().and_then(|draft| {
        let path = std::path::absolute(draft.file.as_ref().ok()?).ok()?;
        Some(DraftFile { name: draft.name.clone(), path })
    });
    let memory_available_bytes = memory_available_bytes();
    if config.gpu_layers == 0 && file.len() > memory_available_bytes {
        let missing = file.len() - memory_available_bytes;
        return Err(format!("{missing} bytes of memory are missing for the weights ({} bytes)", file.len()));
    }
    let cache = measured::path(config).map_err(|error| format!("{}: {error}", config.program.display()))?;
    let known = cache.as_deref().and_then(measured::read);
    let load = Load {
        model_path,
        mode: config.mode,
        devices: if config.gpu_layers > 0 { Devices::Gpu } else { Devices::None },
        gpu_layers: config.gpu_layers,
        threads: config.threads.clamp(1, 512),
        slots: config.slots.clamp(1, 256),
        context_tokens: config.context_tokens.max(1),
        kv_budget_bytes: config.kv_budget_bytes,
        memory_available_bytes,
        batch_tokens: BATCH_TOKENS,
        prefill_chunk: config.prefill_chunk,
        model_identity: measured::identity(config, file.len()),
        known,
        stage: config.stage.clone(),
        draft,
    };
    Ok((load, cache))
}

/// Free memory and what the system can free, in bytes; at most what the container may have.
fn memory_available_bytes() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return u64::MAX };
    system.refresh_memory();
    let container = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    match system.available_memory() {
        0 => u64::MAX,
        available => available.min(container),
    }
}

async fn start_child(config: &EmbeddedConfig, load: &Load) -> Result<(ChildProcess, Ready), String> {
    let exact = [("GGML_CPU_TILED_MM", "0")];
    let launch = Launch {
        program: &config.program,
        command: ENGINE_COMMAND,
        environment: if config.mode == Mode::Exact { &exact } else { &[] },
        keep_environment: config.gpu_layers > 0,
        frame_bytes_max: ipc::FROM_ENGINE_BYTES_MAX,
    };
    let mut process = ChildProcess::spawn(&launch)
        .map_err(|error| format!("{} does not start: {error}", config.program.display()))?;
    let frame = ipc::frame(&ToEngine::Load(Box::new(load.clone())));
    let answer = async {
        process.input.send(&frame).await?;
        process.output.receive::<FromEngine>().await
    };
    match timeout(LOAD_TIME_MAX, answer).await {
        Ok(Ok(FromEngine::Ready(ready))) if ready.slots >= 1 && ready.context_tokens >= 1 => Ok((process, *ready)),
        Ok(Ok(FromEngine::LoadFailed(why))) => {
            process.end().await;
            Err(why)
        }
        Ok(Ok(_)) => Err(format!("the engine process talks nonsense: {}", process.kill().await)),
        Ok(Err(_)) => Err(format!("the engine process died: {}", process.end().await)),
        Err(_) => Err(format!("the engine process takes too long: {}", process.kill().await)),
    }
}

/// Keeps the best speeds for the next start: a busy hour says nothing about the machine.
struct Keeper {
    path: Option<PathBuf>,
    kept: Measured,
}

impl Keeper {
    async fn improve(&mut self, speeds: Speeds) {
        if let Some(better) = self.kept.improved(speeds) {
            self.keep(better).await;
        }
    }

    /// What cannot be kept is measured again next time.
    async fn keep(&mut self, measured: Measured) {
        self.kept = measured;
        let Some(path) = self.path.clone() else { return };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || measured::write(&path, &measured)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, path = shown, "the engine's measurements are not kept");
        }
    }
}
