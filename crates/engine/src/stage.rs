//! Stages: a slice of a model that computes rows for sessions, and what the node says to one.
//!
//! A session of a stage is fed by position ([`StageSession::feed`]) and gives [`StageEvent`]s: rows for the next stage,
//! or, at the last stage, the tokens that it draws. Feeding from a position that was fed before takes back what came
//! from there on, so that a part can be sent again and a guess that missed costs nothing but its time. What still comes of
//! rows that were taken back tells itself by its [`Lap`].

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use opengrid_protocol::{
    Layers,
    beacon::Class,
    session::{Finish, Token, TokenOut, Usage},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{CancelGuard, EngineError, GenerateRequest, Load};

/// Which part of a model a file is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageSlice {
    pub layers: Layers,
    /// Of the whole model.
    pub layer_count: u32,
    /// Bytes of weights that the file really has.
    pub weight_bytes: u64,
    /// Where the first stage looks tokens up.
    pub table: Option<TableFile>,
}

impl StageSlice {
    /// Tokens come in.
    pub fn is_first(&self) -> bool {
        self.layers.from() == 0
    }

    /// Tokens go out.
    pub fn is_last(&self) -> bool {
        self.layers.to() == self.layer_count
    }
}

/// The token table inside a file; fields as in `opengrid_models::slice::Embedding`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableFile {
    pub path: PathBuf,
    pub offset: u64,
    /// ggml's number of the type.
    pub kind: u32,
    pub width: u64,
    pub rows: u64,
    pub row_bytes: u64,
    pub scale: f32,
}

/// A loaded slice.
#[async_trait]
pub trait Stage: Send + Sync {
    /// Its speeds follow what it really did; the rest is constant while the stage lives.
    fn capabilities(&self) -> StageCapabilities;

    /// The load at this moment.
    fn load(&self) -> Load;

    /// Whether a session can be fed this: its kind, whole rows of finite numbers, tokens of the vocabulary.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] says what is wrong: whoever sent it is at fault.
    fn check(&self, input: &Input) -> Result<(), EngineError>;

    /// How many cells these are, which another stage of the same layers gave.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: another layout, parts of cells, numbers that are not finite.
    fn check_cells(&self, layout: &[u8; 16], cells: &[u8]) -> Result<u32, EngineError>;

    /// Begins a session. The last stage needs to know what it draws: `head` holds all tokens so far.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when all places are taken: sessions of stages do not wait.
    fn open(&self, head: Option<GenerateRequest>) -> Result<StageSession, EngineError>;

    /// Stops taking work, ends what runs and returns when all memory and processes are gone.
    async fn shutdown(&self);
}

/// What a stage serves and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct StageCapabilities {
    pub layers: Layers,
    pub layer_count: u32,
    /// Numbers of a row between layers.
    pub width: u32,
    /// Proven by a self-test at start on the slice's own rows.
    pub class: Class,
    /// Rows that one session can hold.
    pub context_tokens: u32,
    /// Sessions that run at once.
    pub slots: u16,
    /// Rows per second of one session alone, and of prefill.
    pub decode_tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    pub memory_bytes: u64,
    /// What a session's cache is made of, where it can be moved to another stage.
    pub cells: Option<Cells>,
    /// For people.
    pub description: String,
}

/// What all layers of a stage keep of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells {
    pub bytes: u32,
    /// Equal layouts, equal cells.
    pub layout: [u8; 16],
}

/// What a session computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// At the first stage.
    Tokens(Vec<Token>),
    /// At all others: F32, little-endian, whole rows.
    Rows(Bytes),
}

/// What a session's child is told.
pub(crate) enum ToStageChild {
    Feed { lap: Lap, from: u32, input: Input },
    Gather(bool),
    Export { until: u32, tag: u32 },
    Import { cells: Bytes, last: bool },
}

/// Which reading of the answer rows belong to. One begins with each drawn token that was not among the guesses under way;
/// what an earlier one says of that token's position and those behind it does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lap {
    /// Of the chain: rises when it is put together anew.
    pub epoch: u32,
    /// 0: the known tokens that a session, or a new chain, begins with. The last stage counts from 1.
    pub number: u32,
}

impl Lap {
    /// Rows of tokens that are known, not guessed: they may come by the thousand.
    pub fn is_known(self) -> bool {
        self.number == 0
    }
}

/// A running session. Drop it to end it.
pub struct StageSession {
    /// Ends after [`StageEvent::Finished`] or [`StageEvent::Failed`].
    pub events: mpsc::Receiver<StageEvent>,
    pub(crate) send: Box<dyn Fn(ToStageChild) -> Result<(), EngineError> + Send + Sync>,
    /// Ends it on drop.
    pub(crate) _guard: CancelGuard,
}

impl StageSession {
    /// Adds what is to be computed from position `from` on, in place of all that was fed from there on before. The
    /// caller has it checked by [`Stage::check`] before. The last stage leaves out rows of earlier laps than its own.
    ///
    /// # Errors
    /// The stage is gone, or takes no more.
    pub fn feed(&self, lap: Lap, from: u32, input: Input) -> Result<(), EngineError> {
        (self.send)(ToStageChild::Feed { lap, from, input })
    }

    /// Asks for the first `until` cells of the session's cache, or as many as there are: they come as
    /// [`StageEvent::Cells`] with this `tag`.
    ///
    /// # Errors
    /// The stage is gone, or takes no more.
    pub fn export(&self, until: u32, tag: u32) -> Result<(), EngineError> {
        (self.send)(ToStageChild::Export { until, tag })
    }

    /// Gives a session that was fed nothing cells of another stage's; they continue those that were given before. The
    /// caller has them checked by [`Stage::check_cells`] before.
    ///
    /// # Errors
    /// The stage is gone, or takes no more.
    pub fn import(&self, cells: Bytes, last: bool) -> Result<(), EngineError> {
        (self.send)(ToStageChild::Import { cells, last })
    }

    /// Whether the session's other stages compute on the cores of this one: then its steps wait a moment for those of
    /// other such sessions, and go with them.
    ///
    /// # Errors
    /// The stage is gone, or takes no more.
    pub fn gather(&self, gathers: bool) -> Result<(), EngineError> {
        (self.send)(ToStageChild::Gather(gathers))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum StageEvent {
    /// Rows that came out, F32 little-endian, from position `from` on; in the order of what was fed. `lap` is the latest
    /// that was fed when they were computed.
    Rows {
        lap: Lap,
        from: u32,
        rows: Bytes,
    },
    /// At the last stage: the next tokens of the answer, and what the first stage is to compute next.
    Drawn {
        tokens: Vec<TokenOut>,
        feed: Next,
    },
    /// Cells of the session from position `from` on, of `of` that come: what [`StageSession::export`] asked for.
    Cells {
        tag: u32,
        from: u32,
        of: u32,
        cells: Bytes,
    },
    /// The session has so many cells: all that came by [`StageSession::import`].
    Imported(u32),
    /// The cells cannot be given, or taken; the session is as before, or empty.
    CellsRefused(String),
    Finished(Finish, Usage),
    Failed(EngineError),
}

/// Tokens for the first stage. In a lap that begins: the last token drawn, and guesses. Else guesses that follow those under
/// way; or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// [`Lap::number`].
    pub lap: u32,
    /// Position of the first.
    pub from: u32,
    pub tokens: Vec<Token>,
    /// The guesses among them are the draft model's.
    pub by_model: bool,
}
