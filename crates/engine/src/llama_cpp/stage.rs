//! A slice in a supervised child process, seen from the node.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Draft, EmbeddedConfig, check, description, draft_words, generate,
    jobs::{Bounds, Jobs},
    messages::{DraftState, Ready},
    supervisor::{SharedDraft, Supervisor},
};
use crate::{
    EngineError, GenerateRequest, Load,
    cells::Layout,
    stage::{Cells, Input, Stage, StageCapabilities, StageSession, StageSlice},
};

/// llama.cpp over a slice. Restarted when it dies; its sessions end with [`EngineError::Died`] then.
pub struct EmbeddedStage {
    /// Without what its draft model adds.
    capabilities: StageCapabilities,
    draft: Option<Draft>,
    draft_state: SharedDraft,
    slice: StageSlice,
    vocabulary_size: u32,
    layout: Option<Layout>,
    jobs: Arc<Jobs>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    stop: DropGuard,
}

impl EmbeddedStage {
    /// Starts the child, loads the slice that [`EmbeddedConfig::stage`] describes, tests and measures it.
    ///
    /// # Errors
    /// [`EngineError::Load`] in words for people.
    pub async fn start(config: EmbeddedConfig) -> Result<Arc<Self>, EngineError> {
        let Some(slice) = config.stage.clone() else {
            return Err(EngineError::Load("it is not said which layers the file holds".to_owned()));
        };
        let stop = CancellationToken::new();
        let (supervisor, process, ready) = Supervisor::launch(config).await.map_err(EngineError::Load)?;
        if let Some(why) = &ready.inexact {
            tracing::warn!(%why, "the stage is not batch-invariant on this machine: its class is approximate");
        }
        let capabilities = capabilities(supervisor.config(), &slice, &ready);
        let draft = draft_words(supervisor.config().draft.as_ref(), ready.draft.as_ref());
        tracing::info!(stage = %capabilities.description, draft, layers = %slice.layers, "stage ready");
        let bounds = Bounds { slots: ready.slots, queue_max: 0, context_tokens: ready.context_tokens };
        let jobs = Arc::new(Jobs::new(bounds, ready.measured.speeds()));
        jobs.start(process.id());
        let (draft, draft_state) = (supervisor.config().draft.clone(), supervisor.draft());
        let task = tokio::spawn(supervisor.run(process, jobs.clone(), stop.clone()));
        Ok(Arc::new(Self {
            capabilities,
            draft,
            draft_state,
            slice,
            vocabulary_size: ready.vocabulary_size,
            layout: ready.cells,
            jobs,
            supervisor: Mutex::new(Some(task)),
            stop: stop.drop_guard(),
        }))
    }

    /// The child's process id; `None` while it is being restarted.
    pub fn child_pid(&self) -> Option<u32> {
        self.jobs.pid()
    }

    /// Rows and tokens that the stage can take; what comes from other nodes is believed no more than a frame's length.
    fn check_input(&self, input: &Input) -> Result<(), EngineError> {
        let rows = match input {
            Input::Tokens(tokens) if self.slice.is_first() => tokens.len(),
            Input::Rows(bytes) if !self.slice.is_first() => {
                let row = self.capabilities.width as usize * size_of::<f32>();
                let finite = || bytes.as_chunks().0.iter().all(|number| f32::from_le_bytes(*number).is_finite());
                if !bytes.len().is_multiple_of(row) || !finite() {
                    return Err(EngineError::Invalid("rows of another width, or numbers that are none".to_owned()));
                }
                bytes.len() / row
            }
            _ => return Err(EngineError::Invalid("input of another kind than the stage takes".to_owned())),
        };
        let known = |token: &u32| self.slice.table.as_ref().is_some_and(|table| u64::from(*token) < table.rows);
        match input {
            _ if rows == 0 => Err(EngineError::Invalid("no rows".to_owned())),
            Input::Tokens(tokens) if !tokens.iter().all(known) => {
                Err(EngineError::Invalid("a token lies outside the vocabulary".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Stage for EmbeddedStage {
    fn capabilities(&self) -> StageCapabilities {
        let speeds = self.jobs.speeds();
        let state = self.draft_state.lock().clone();
        let draft_bytes = if let Some(DraftState::Beside { bytes }) = state { bytes } else { 0 };
        StageCapabilities {
            memory_bytes: self.capabilities.memory_bytes.saturating_add(draft_bytes),
            description: self.capabilities.description.clone() + &draft_words(self.draft.as_ref(), state.as_ref()),
            decode_tokens_per_s: speeds.decode,
            prefill_tokens_per_s: speeds.prefill,
            ..self.capabilities.clone()
        }
    }

    fn load(&self) -> Load {
        self.jobs.load()
    }

    fn check(&self, input: &Input) -> Result<(), EngineError> {
        self.check_input(input)
    }

    fn check_cells(&self, layout: &[u8; 16], cells: &[u8]) -> Result<u32, EngineError> {
        let own = self.layout.as_ref().filter(|own| own.id() == *layout);
        let own = own.ok_or_else(|| EngineError::Invalid("cells of another layout".to_owned()))?;
        own.check(cells).map_err(|error| EngineError::Invalid(error.to_string()))
    }

    fn open(&self, head: Option<GenerateRequest>) -> Result<StageSession, EngineError> {
        match (&head, self.slice.is_last()) {
            (Some(request), true) => check(request, self.vocabulary_size, self.capabilities.context_tokens)?,
            (None, false) => {}
            (Some(_), false) => return Err(EngineError::Invalid("only the last stage draws tokens".to_owned())),
            (None, true) => return Err(EngineError::Invalid("the last stage must know what it draws".to_owned())),
        }
        self.jobs.open_stage(head.map(|request| move |id| generate(request, id)))
    }

    async fn shutdown(&self) {
        self.jobs.close();
        self.stop.token().cancel();
        let task = self.supervisor.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

fn capabilities(config: &EmbeddedConfig, slice: &StageSlice, ready: &Ready) -> StageCapabilities {
    StageCapabilities {
        layers: slice.layers,
        layer_count: slice.layer_count,
        width: ready.row_width,
        class: ready.measured.class,
        context_tokens: ready.context_tokens,
        slots: ready.slots,
        decode_tokens_per_s: ready.measured.decode_tokens_per_s,
        prefill_tokens_per_s: ready.measured.prefill_tokens_per_s,
        memory_bytes: ready.weight_bytes.saturating_add(ready.kv_bytes),
        cells: ready.cells.as_ref().map(|layout| Cells { bytes: layout.cell_bytes() as u32, layout: layout.id() }),
        description: description(config, ready),
    }
}
