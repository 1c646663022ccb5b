//! How an embedded engine is set up.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::stage::StageSlice;

/// Which kernels compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Batch-invariant on CPU: answers survive their worker to the letter. The default.
    Exact,
    /// Flash attention, repacked weights and tiled kernels: faster prefill, approximate class.
    Fast,
}

/// See [`EmbeddedConfig::new`] for the defaults.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The binary whose `engine-child` command is [`child_main`](crate::child_main).
    pub program: PathBuf,
    pub model_path: PathBuf,
    /// BLAKE3 root of the file. Workers of one model agree on a class only if all or none of them set it; without it
    /// the file's size stands in.
    pub model_root: Option<[u8; 32]>,
    pub threads: u32,
    /// Sequences at once; fewer where the budget is small.
    pub slots: u16,
    /// Tokens a slot; at most the trained context and what the budget allows.
    pub context_tokens: u32,
    pub kv_budget_bytes: u64,
    /// Generations that may wait for a slot.
    pub queue_max: u16,
    pub mode: Mode,
    /// Where results of self-test and measurement are kept between starts.
    pub cache_dir: Option<PathBuf>,
    pub gpu_layers: u32,
    /// Most prefill tokens of a step; `None` lets the measured speed decide.
    pub prefill_chunk: Option<u32>,
    /// The file is this slice of a model: for [`EmbeddedStage`](crate::EmbeddedStage).
    pub stage: Option<StageSlice>,
    /// Guesses the next tokens for the last stage.
    pub draft: Option<Draft>,
}

/// A draft model that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// For people.
    pub name: String,
    /// Its file, or why it is not used here, for people. Whoever sets it has compared the tokens with the served model's.
    pub file: Result<PathBuf, String>,
}

impl EmbeddedConfig {
    /// Exact, on all cores, 4 slots of up to 8,192 tokens in at most 2 GiB, no cache.
    pub fn new(program: PathBuf, model_path: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        Self {
            program,
            model_path,
            model_root: None,
            threads: cores,
            slots: 4,
            context_tokens: 8_192,
            kv_budget_bytes: 2 << 30,
            queue_max: 64,
            mode: Mode::Exact,
            cache_dir: None,
            gpu_layers: 0,
            prefill_chunk: None,
            stage: None,
            draft: None,
        }
    }
}
