//! A session over several stages: what the gateway says to each of them, and what they say to each other.
//!
//! The gateway opens a part of the session at every stage of the chain ([`OpenPart`], on the same sealed channel as whole
//! sessions), starts them ([`Order::Start`]) and feeds the prompt to the first. Rows go from stage to stage directly
//! ([`ToStage`], on sealed channels of their own); the last one draws, tells the gateway
//! ([`ToGateway::Tokens`](crate::session::ToGateway)), and feeds the first one itself.
//!
//! Everything is addressed by position. What is sent again from a position on takes the place of what was there; that is
//! all that a failover and a guess that missed need. A [`Route`] has an epoch: what comes on another one is
//! dropped unread. Within it laps are counted: the next one begins with each token that was drawn and was not among the
//! guesses under way, and what an earlier one says of that position and those behind it is void.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Layers, ModelRoot, NodeId, SessionId,
    codec::DecodeError,
    limits::{POSITIONS_MAX, PROMPT_TOKENS_MAX, ROWS_BYTES_MAX, SPARES_MAX},
    session::{Open, Token},
};

/// A part of a session as its neighbours address it; drawn at random by the gateway, told to nobody else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartId(pub [u8; 16]);

impl fmt::Debug for PartId {
    /// Short: whoever knows the whole and is the right neighbour can feed the part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}..", self.0[0], self.0[1])
    }
}

/// A part and the node that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub node: NodeId,
    pub part: PartId,
}

/// Where a part stands in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Rises with every change of the chain, from 1.
    pub epoch: u32,
    /// Who sends to it: the stage before, and to the first stage the last one.
    pub previous: NodeId,
    /// Whom it sends to: the stage behind, and from the last stage the first one.
    pub next: Hop,
}

/// Begins a part of a session at a stage, answered by `Accepted` and how far it is
/// ([`ToGateway::Rewired`](crate::session::ToGateway)). It waits for [`Order::Start`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenPart {
    pub session: SessionId,
    pub part: PartId,
    pub model: ModelRoot,
    /// Exactly the layers of a stage that the node serves.
    pub layers: Layers,
    pub route: Route,
    /// Most positions of the session: prompt and whole answer.
    pub positions_max: u32,
    /// To the last stage: what it draws. Its `session` and `model` are those of this message.
    pub head: Option<Box<Open>>,
}

impl OpenPart {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        if self.positions_max == 0 || self.positions_max > POSITIONS_MAX {
            return Err(DecodeError::Invalid("positions_max is zero or too large"));
        }
        match &self.head {
            Some(head) if head.session != self.session || head.model != self.model => {
                Err(DecodeError::Invalid("the head is of another session"))
            }
            Some(head) => head.check(),
            None => Ok(()),
        }
    }
}

/// Asks a stage to keep rows of a session, for the case that it comes in for a lost one: a part that is opened later with
/// the same id begins with them. It is a session of its own, answered by `Accepted`, and keeps rows until it is cancelled.
///
/// Its rows come as [`ToStage`] of epoch [`STANDBY_EPOCH`], without gaps from position 0 on, each once: see
/// [`Order::Prepare`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    pub session: SessionId,
    pub part: PartId,
    pub model: ModelRoot,
    /// Exactly the layers of a stage that the node serves, and not the first: that one needs tokens, no rows.
    pub layers: Layers,
    /// Whose rows are taken.
    pub sender: NodeId,
}

impl Standby {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        if self.layers.from() == 0 { Err(DecodeError::Invalid("a first stage keeps no rows")) } else { Ok(()) }
    }
}

/// No chain has this epoch.
pub const STANDBY_EPOCH: u32 = 0;

/// What the gateway says to a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The chain changed. The part takes and sends nothing until it is started again, and answers with its
    /// [`PartState`].
    Rewire(Route),
    /// Positions from `keep` on come anew. What is sent begins at `send_from`: the part behind has what lies before.
    Start { keep: u32, send_from: u32 },
    /// To the first stage: tokens of positions from `from` on.
    Feed { from: u32, tokens: Vec<Token> },
    /// To the last stage: feed the last drawn token, and the guesses that follow it, once more.
    Again,
    /// Nodes that would take the place of the next one if it were lost: channels to them are opened ahead. No answer.
    Meet(Vec<NodeId>),
    /// The chain goes on without the part, which stops: the cells of its cache, of positions below `until` and no more, go
    /// to the part that takes its place in this epoch.
    HandOver { to: Hop, epoch: u32, until: u32 },
    /// To a part that was fed nothing: cells come from the part of this node. Answered with the [`PartState`] that they
    /// make, or, where they are of no use, with that of a part that has nothing.
    TakeOver { from: NodeId },
    /// Rows of positions below `until` are true. A copy of them goes to the [`Standby`] in the background, as far as it was
    /// not sent there before. No answer.
    Prepare { standby: Hop, until: u32 },
}

impl Order {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        let holds = match self {
            Self::Feed { from, tokens } => {
                !tokens.is_empty() && tokens.len() <= PROMPT_TOKENS_MAX && *from <= POSITIONS_MAX
            }
            Self::Start { keep, send_from } => *keep <= POSITIONS_MAX && *send_from <= POSITIONS_MAX,
            Self::Meet(nodes) => nodes.len() <= SPARES_MAX,
            Self::HandOver { until, .. } | Self::Prepare { until, .. } => *until <= POSITIONS_MAX,
            Self::Rewire(_) | Self::Again | Self::TakeOver { .. } => true,
        };
        if holds { Ok(()) } else { Err(DecodeError::Invalid("an order beyond the limits")) }
    }
}

/// How far a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// Positions `0..have` were fed to it. At the last stage, once it drew: up to its last drawn token, whose row it waits
    /// for.
    pub have: u32,
    /// Positions from here on up to `have` it can send again.
    pub kept_from: u32,
    /// Positions below this one left it.
    pub sent: u32,
    /// The last stage drew a token since the part began.
    pub drew: bool,
}

/// Why a part stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Complaint {
    /// There is no way to the part behind it.
    NextUnreachable,
    /// What came from the part before it cannot be used: of another width, no numbers, out of order.
    BadInput,
    /// Its cache cannot be handed over: it is of a kind that stays where it is, empty, or too large.
    CannotHandOver,
}

/// From part to part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToStage {
    pub part: PartId,
    pub epoch: u32,
    /// 0 for the tokens that the gateway fed, and never less than in the message before. The last stage counts from 1.
    pub lap: u32,
    /// Position of the first.
    pub from: u32,
    pub carried: Carried,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carried {
    /// F32, little-endian, whole rows of the model's width.
    Rows(Bytes),
    /// From the last stage to the first. In a new lap: a token drawn, and guesses at what follows it; else more guesses.
    Tokens(Vec<Token>),
    /// From a part that leaves to the one that takes its place: cells of its cache, of `of` from position 0 on.
    Cells(Cells),
}

/// What all layers of a stage keep of some consecutive tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cells {
    /// Names the order and kind of the numbers in a cell.
    pub layout: [u8; 16],
    /// Positions `0..of` come.
    pub of: u32,
    pub cells: Bytes,
}

impl ToStage {
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        let holds = match &self.carried {
            Carried::Rows(rows) => !rows.is_empty() && rows.len() <= ROWS_BYTES_MAX,
            Carried::Tokens(tokens) => !tokens.is_empty() && tokens.len() <= PROMPT_TOKENS_MAX,
            Carried::Cells(Cells { of, cells, .. }) => {
                !cells.is_empty() && cells.len() <= ROWS_BYTES_MAX && *of <= POSITIONS_MAX && self.from < *of
            }
        };
        if holds && self.from <= POSITIONS_MAX { Ok(()) } else { Err(DecodeError::Invalid("rows beyond the limits")) }
    }
}
