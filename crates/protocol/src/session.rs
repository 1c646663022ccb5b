//! What gateway and worker say inside a sealed channel. Token ids only: text never leaves the gateway.
//!
//! One channel carries many sessions. A session is [`ToWorker::Open`], then [`ToGateway::Accepted`], any number of
//! [`ToGateway::Tokens`] and one [`ToGateway::Finished`] or [`ToGateway::Refused`]. Texts to embed are a session of
//! [`ToWorker::Embed`], [`ToGateway::Accepted`] and one [`ToGateway::Embedded`] or a refusal. What a session over several
//! stages is, [`crate::pipeline`] says. While any session of the
//! channel runs, the worker sends at least a [`ToGateway::Heartbeat`] every [`HEARTBEAT_MS`](crate::limits::HEARTBEAT_MS).

use serde::{Deserialize, Serialize};

use crate::{
    ModelRoot, Sampling, SessionId,
    codec::DecodeError,
    limits::{
        COMPLETION_TOKENS_MAX, EMBED_TEXTS_MAX, GRAMMAR_BYTES_MAX, PROMPT_TOKENS_MAX, STOP_TOKENS_MAX, TOP_LOGPROBS_MAX,
    },
    pipeline::{Complaint, OpenPart, Order, PartState, Standby},
};

/// A vocabulary index.
pub type Token = u32;

/// From the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    Open(Box<Open>),
    Cancel {
        session: SessionId,
    },
    Embed(Box<Embed>),
    /// Begins a part of a session at a stage: see [`crate::pipeline`].
    OpenPart(Box<OpenPart>),
    Order {
        session: SessionId,
        order: Order,
    },
    Standby(Box<Standby>),
}

/// Texts to turn into vectors: nothing is kept of them, so that any worker of the model can do it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Embed {
    pub session: SessionId,
    pub model: ModelRoot,
    /// Whole, with the special tokens that the model wants around them.
    pub texts: Vec<Vec<Token>>,
}

impl Embed {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        check_texts(&self.texts)
    }
}

/// The limits of the texts of an [`Embed`].
///
/// # Errors
/// The first one that is broken.
pub fn check_texts(texts: &[Vec<Token>]) -> Result<(), DecodeError> {
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let rules = [
        ((1..=EMBED_TEXTS_MAX).contains(&texts.len()), "no texts, or too many"),
        (texts.iter().all(|text| !text.is_empty()), "a text needs at least one token"),
        (tokens <= PROMPT_TOKENS_MAX, "too many tokens"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, why)) => Err(DecodeError::Invalid(why)),
        None => Ok(()),
    }
}

/// Starts a session, or continues one that another worker lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Open {
    pub session: SessionId,
    pub model: ModelRoot,
    /// The prompt and, after a failover, the answer so far.
    pub tokens: Vec<Token>,
    /// Tokens of the original prompt. The sampler's step is the index in the answer, so it continues where the lost
    /// worker stopped.
    pub prompt_tokens: u32,
    /// Most tokens of the whole answer, those of `tokens` included.
    pub completion_tokens_max: u32,
    /// Tokens that end the answer; they are reported as the finish, not as text.
    pub stop_tokens: Vec<Token>,
    pub sampling: Sampling,
    /// `None`: no log-probabilities; else that many alternatives with each token.
    pub top_logprobs: Option<u8>,
    /// What the answer must follow, in llguidance's dialect of Lark. When it is whole, the session finishes with one of
    /// `stop_tokens`, of which it needs at least one.
    pub grammar: Option<String>,
    pub tier: Tier,
}

/// Which sessions get a slot first where several wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// May wait for all others.
    Flex,
    #[default]
    Default,
    Priority,
}

impl Open {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        let rules = [
            (!self.tokens.is_empty(), "a session needs at least one token"),
            (self.tokens.len() <= PROMPT_TOKENS_MAX, "too many prompt tokens"),
            (
                self.prompt_tokens >= 1 && self.prompt_tokens as usize <= self.tokens.len(),
                "prompt_tokens must lie in 1..=tokens",
            ),
            (self.completion_tokens_max <= COMPLETION_TOKENS_MAX, "completion_tokens_max is too large"),
            (self.stop_tokens.len() <= STOP_TOKENS_MAX, "too many stop tokens"),
            (self.top_logprobs.is_none_or(|n| n <= TOP_LOGPROBS_MAX), "too many top_logprobs"),
            (self.grammar.as_ref().is_none_or(|text| text.len() <= GRAMMAR_BYTES_MAX), "the grammar is too large"),
            (self.grammar.is_none() || !self.stop_tokens.is_empty(), "a grammar needs a stop token"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, why)) => Err(DecodeError::Invalid(why)),
            None => self.sampling.check(),
        }
    }
}

/// From the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToGateway {
    /// The session is taken; `queued` is its place in the queue, where 1 is next and 0 runs. Said first without a place
    /// (0), then again whenever it falls.
    Accepted {
        session: SessionId,
        queued: u32,
    },
    /// New tokens from answer index `from` on.
    Tokens {
        session: SessionId,
        from: u32,
        tokens: Vec<TokenOut>,
    },
    Finished {
        session: SessionId,
        finish: Finish,
        usage: Usage,
    },
    /// This worker will not go on with the session; another may.
    Refused {
        session: SessionId,
        why: Refusal,
    },
    Heartbeat,
    /// A vector of length 1 for each text of an [`Embed`], in their order: the end of its session.
    Embedded {
        session: SessionId,
        vectors: Vec<Vec<f32>>,
    },
    /// How far a part is: behind its acceptance, and in answer to [`Order::Rewire`].
    Rewired {
        session: SessionId,
        epoch: u32,
        state: PartState,
    },
    /// From a part of a session that cannot go on in this epoch.
    Complains {
        session: SessionId,
        epoch: u32,
        complaint: Complaint,
    },
}

/// One generated token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenOut {
    pub token: Token,
    /// Natural logarithm of the model's probability (before temperature and truncation), where asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first.
    pub top: Vec<(Token, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model produced this stop token.
    Stop(Token),
    /// `completion_tokens_max` or the end of the context.
    Length,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens whose keys and values were still in the cache.
    pub cached_tokens: u32,
    /// Tokens that were computed before the first new one.
    pub prefilled_tokens: u32,
    pub generated_tokens: u32,
}

/// Why a worker does not (or no longer) run a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The queue is full; try elsewhere or later.
    Busy,
    Draining,
    ModelNotServed,
    /// The context holds only this many tokens.
    ContextTooSmall {
        context_tokens: u32,
    },
    /// The opening message breaks a rule; no other worker will take it either.
    Invalid(String),
    /// The engine died or failed; an ordinary failover.
    EngineFailed,
}
