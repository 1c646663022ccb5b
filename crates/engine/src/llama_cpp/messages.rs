//! What the node and an engine child say to each other. Same binary on both sides, so no versions.

use std::path::PathBuf;

use bytes::Bytes;
use opengrid_protocol::{
    Sampling,
    beacon::Class,
    session::{Finish, Tier, Token, TokenOut, Usage},
};
use serde::{Deserialize, Serialize};

use super::{Mode, speeds::Speeds};
use crate::{
    cells::Layout,
    sandbox::{Devices, SandboxProbe},
    stage::{Input, Lap, Next, StageSlice},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToEngine {
    /// The first message, once.
    Load(Box<Load>),
    Generate(Box<Generate>),
    /// For an embedding model, in place of `Generate`.
    Embed(Box<Embed>),
    /// To a stage: a new session. The last stage's sessions begin with `Generate`.
    Open {
        id: u64,
    },
    /// To a stage: what a session computes next.
    Feed {
        id: u64,
        lap: Lap,
        from: u32,
        input: Input,
    },
    /// To a stage: whether a session's steps wait for those of others.
    Gather {
        id: u64,
        gathers: bool,
    },
    /// To a stage: gives the first `until` cells of a session, or as many as it has.
    Export {
        id: u64,
        until: u32,
        /// Comes back with them.
        tag: u32,
    },
    /// To a stage: cells that continue those of this session that came before. With the last ones it has all of them.
    Import {
        id: u64,
        cells: Bytes,
        last: bool,
    },
    Cancel {
        id: u64,
    },
    Ping {
        nonce: u64,
    },
    ProbeSandbox,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromEngine {
    /// The answer to `Load`; else `LoadFailed` and the end.
    Ready(Box<Ready>),
    LoadFailed(String),
    Events(Vec<JobEvent>),
    /// Now and then, while work runs.
    Speeds(Speeds),
    Pong {
        nonce: u64,
    },
    SandboxProbe(SandboxProbe),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub model_path: PathBuf,
    pub mode: Mode,
    pub devices: Devices,
    pub gpu_layers: u32,
    pub threads: u32,
    pub slots: u16,
    pub context_tokens: u32,
    pub kv_budget_bytes: u64,
    /// Memory that weights and cache may take together, in bytes.
    pub memory_available_bytes: u64,
    /// Most tokens of a step.
    pub batch_tokens: u32,
    /// Most prefill tokens of a step; measured speed decides otherwise.
    pub prefill_chunk: Option<u32>,
    /// Names the weights in the class hash.
    pub model_identity: Vec<u8>,
    /// From an earlier start: neither self-test nor measurement is run.
    pub known: Option<Measured>,
    /// The file is a slice: the child is a stage.
    pub stage: Option<StageSlice>,
    /// For the last stage: guesses the next tokens, where there is room.
    pub draft: Option<DraftFile>,
}

/// A whole model with the tokens of the served one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DraftFile {
    /// For people.
    pub name: String,
    pub path: PathBuf,
}

/// What became of a draft model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DraftState {
    /// Weights and cache take so many bytes.
    Beside { bytes: u64 },
    /// With a reason for people.
    LeftOut(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    pub measured: Measured,
    /// Why an engine that was meant to be exact is not.
    pub inexact: Option<String>,
    pub slots: u16,
    pub context_tokens: u32,
    pub vocabulary_size: u32,
    /// Numbers of a vector, where the model makes embeddings.
    pub embedding_width: Option<u32>,
    /// Numbers of a row between layers.
    pub row_width: u32,
    pub weight_bytes: u64,
    pub kv_bytes: u64,
    /// Of a stage: how its cells lie, where they can be moved.
    pub cells: Option<Layout>,
    /// Where one was asked for.
    pub draft: Option<DraftState>,
    /// What confines the child, for people.
    pub sandbox: String,
}

/// What the self-test found out on this machine, in tokens per second where it is a speed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub class: Class,
    pub decode_tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generate {
    pub id: u64,
    pub client: [u8; 32],
    pub tokens: Vec<Token>,
    pub prompt_tokens: u32,
    pub completion_tokens_max: u32,
    pub stop_tokens: Vec<Token>,
    pub sampling: Sampling,
    pub top_logprobs: Option<u8>,
    pub grammar: Option<String>,
    pub tier: Tier,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Embed {
    pub id: u64,
    pub texts: Vec<Vec<Token>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobEvent {
    pub id: u64,
    pub progress: Progress,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Progress {
    Queued(u32),
    Token(TokenOut),
    Finished(Finish, Usage),
    /// Of a stage: rows that came out, F32 little-endian, from position `from` on.
    Rows {
        lap: Lap,
        from: u32,
        rows: Bytes,
    },
    /// Of the last stage: new tokens, and what the first stage is to compute next.
    Drawn {
        tokens: Vec<TokenOut>,
        feed: Next,
    },
    /// Of a stage: cells from position `from` on, of `of` that come.
    Cells {
        tag: u32,
        from: u32,
        of: u32,
        cells: Bytes,
    },
    /// The session has so many cells now.
    Imported(u32),
    /// None can be given, or taken.
    CellsRefused(String),
    /// A vector of length 1 for each text: the end of an `Embed`.
    Embedded(Vec<Vec<f32>>),
    /// The request itself is at fault: its grammar.
    Invalid(String),
}
