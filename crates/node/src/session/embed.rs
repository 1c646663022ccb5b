//! Texts to vectors on the grid: cut into sessions, each placed by itself, asked for elsewhere when its worker dies,
//! is busy or gives no vectors. Nothing is kept between sessions, so any worker of the model can begin anew.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opengrid_protocol::{
    ModelRoot, NodeId, SessionId,
    beacon::Features,
    limits::EMBED_TEXTS_MAX,
    session::{Embed, Refusal, ToGateway, Token},
};
use tokio::time::timeout;

use super::{
    Fault,
    answer::shortened,
    link::{LinkError, LinkSession},
};
use crate::{
    handle::GridError,
    placement::{Lease, Needs, Placement},
};

/// A worker that took the channel must say something about a new session within this time.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(3);
/// A worker gives no sign between acceptance and vectors: its queue may be before them.
const VECTORS_WITHIN_MIN: Duration = Duration::from_secs(60);
/// A worker that failed is asked again after this time at the earliest, while others are there; a busy one sooner.
const AVOID: Duration = Duration::from_secs(10);
const AVOID_BUSY: Duration = Duration::from_secs(1);
/// Failures of workers that took a session: texts that kill engines stop here.
const FAILURES_MAX: u32 = 4;
/// How long a session looks for a worker while those that are there are busy or fail.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(20);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Seconds that a refused client is told to wait.
const RETRY_AFTER_S: u32 = 2;
/// Tokens of a session that has more than one text: long lists spread over workers, and a session stays short.
const SESSION_TOKENS: usize = 4_096;
/// How far a vector's length may be from 1.
const LENGTH_TOLERANCE: f32 = 1e-3;

/// Cuts a list into sessions, in order.
pub fn sessions_of(texts: Vec<Vec<Token>>) -> Vec<Vec<Vec<Token>>> {
    let mut sessions: Vec<Vec<Vec<Token>>> = Vec::new();
    let mut tokens = 0;
    for text in texts {
        tokens += text.len();
        match sessions.last_mut() {
            Some(session) if session.len() < EMBED_TEXTS_MAX && tokens <= SESSION_TOKENS => session.push(text),
            _ => {
                tokens = text.len();
                sessions.push(vec![text]);
            }
        }
    }
    sessions
}

/// The texts of one session.
pub struct EmbedTask {
    pub placement: Arc<Placement>,
    pub model: ModelRoot,
    pub model_id: String,
    pub texts: Vec<Vec<Token>>,
    /// Numbers of a vector; others are a fault.
    pub width: usize,
}

/// How an attempt at one worker ended, other than well.
enum Failed {
    /// It did not even begin.
    Busy,
    /// It did not answer, or not what was asked for.
    Broken,
    Invalid(String),
}

impl EmbedTask {
    /// Dropping the future cancels the session.
    ///
    /// # Errors
    /// [`GridError`] when no worker gives vectors in time.
    pub async fn run(self) -> Result<(NodeId, Vec<Vec<f32>>), GridError> {
        let mut avoid: HashMap<NodeId, Instant> = HashMap::new();
        let (began, mut attempts, mut failures) = (Instant::now(), 0, 0);
        let mut called_invalid: Option<(NodeId, String)> = None;
        loop {
            avoid.retain(|_, until| *until > Instant::now());
            let Some(lease) = self.lease(&avoid) else {
                if attempts == 0 || began.elapsed() > PLACEMENT_PATIENCE {
                    return Err(self.nobody());
                }
                tokio::time::sleep(RETRY_PAUSE).await;
                // With nobody else left, those that failed may have come back.
                avoid.clear();
                continue;
            };
            let worker = lease.worker;
            attempts += 1;
            let failed = match self.attempt(&lease).await {
                Ok(vectors) => return Ok((worker, vectors)),
                Err(failed) => failed,
            };
            let is_busy = matches!(failed, Failed::Busy);
            avoid.insert(worker, Instant::now() + if is_busy { AVOID_BUSY } else { AVOID });
            self.placement.failed_over(is_busy);
            match failed {
                Failed::Busy if began.elapsed() > PLACEMENT_PATIENCE => return Err(self.nobody()),
                Failed::Busy => {}
                // One may be wrong, or lie; two agree.
                Failed::Invalid(why) if called_invalid.as_ref().is_some_and(|(other, _)| *other != worker) => {
                    return Err(GridError::Invalid(why));
                }
                Failed::Invalid(why) => called_invalid = Some((worker, why)),
                Failed::Broken => self.placement.suspect(worker),
            }
            failures += u32::from(!is_busy);
            if failures >= FAILURES_MAX {
                return Err(match called_invalid {
                    Some((_, why)) => GridError::Invalid(why),
                    None => GridError::Internal("every worker that took the texts failed at them".into()),
                });
            }
        }
    }

    fn lease(&self, avoid: &HashMap<NodeId, Instant>) -> Option<Lease> {
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
        let needed = Needs { tokens: u32::try_from(longest).unwrap_or(u32::MAX), features: Features::EMBED };
        let is_avoided = |node| avoid.contains_key(&node);
        self.placement.choose(self.model, &self.texts.concat(), needed, None, None, is_avoided)
    }

    fn nobody(&self) -> GridError {
        let (model, retry_after_s) = (self.model_id.clone(), RETRY_AFTER_S);
        if self.placement.can(self.model, Features::NONE) && !self.placement.can(self.model, Features::EMBED) {
            return GridError::Incapable { model, retry_after_s };
        }
        GridError::NoWorker { model, retry_after_s }
    }

    async fn attempt(&self, lease: &Lease) -> Result<Vec<Vec<f32>>, Failed> {
        let link = self.placement.links.get(lease.worker).await.map_err(|error| {
            tracing::debug!(worker = %lease.worker.short(), %error, "no channel");
            Failed::Broken
        })?;
        let embed = Embed { session: SessionId(rand::random()), model: self.model, texts: self.texts.clone() };
        match link.embed(embed).await {
            Ok(session) => self.follow(session, lease).await,
            Err(LinkError::Full) => Err(Failed::Busy),
            Err(_) => Err(Failed::Broken),
        }
    }

    async fn follow(&self, mut session: LinkSession, lease: &Lease) -> Result<Vec<Vec<f32>>, Failed> {
        let mut accepted = false;
        loop {
            let patience = if accepted { lease.progress_within.max(VECTORS_WITHIN_MIN) } else { ACCEPT_TIMEOUT };
            let received = timeout(patience, session.messages.recv()).await.ok().flatten();
            match received.ok_or(Failed::Broken)? {
                ToGateway::Accepted { queued: 0, .. } if !accepted => accepted = true,
                ToGateway::Embedded { vectors, .. } if accepted && self.are_sound(&vectors) => return Ok(vectors),
                ToGateway::Refused { why, .. } => return Err(refused(why, lease.worker)),
                ToGateway::Heartbeat => {}
                ToGateway::Accepted { .. }
                | ToGateway::Embedded { .. }
                | ToGateway::Tokens { .. }
                | ToGateway::Rewired { .. }
                | ToGateway::Leaves { .. }
                | ToGateway::Complains { .. }
                | ToGateway::Finished { .. } => {
                    self.placement.report(lease.worker, Fault::WrongVectors);
                    return Err(Failed::Broken);
                }
            }
        }
    }

    /// As many as asked for, of the model's width, each of length 1.
    fn are_sound(&self, vectors: &[Vec<f32>]) -> bool {
        let length = |vector: &[f32]| vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        // A comparison with what is no number is false.
        let is_sound =
            |vector: &Vec<f32>| vector.len() == self.width && (length(vector) - 1.0).abs() <= LENGTH_TOLERANCE;
        vectors.len() == self.texts.len() && vectors.iter().all(is_sound)
    }
}

fn refused(why: Refusal, worker: NodeId) -> Failed {
    match why {
        Refusal::Busy | Refusal::Draining => Failed::Busy,
        Refusal::Invalid(why) => {
            tracing::debug!(worker = %worker.short(), why, "a worker calls checked texts invalid");
            Failed::Invalid(shortened(&why))
        }
        _ => Failed::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_by_number_and_by_tokens_and_keep_their_order() {
        let lengths = |texts: Vec<usize>| -> Vec<Vec<usize>> {
            let texts = texts.into_iter().map(|length| vec![0; length]).collect();
            sessions_of(texts).iter().map(|session| session.iter().map(Vec::len).collect()).collect()
        };
        assert_eq!(lengths(vec![]), Vec::<Vec<usize>>::new());
        assert_eq!(lengths(vec![1, 2, 3]), [[1, 2, 3]]);
        assert_eq!(lengths(vec![4_000, 96, 1, 9_000, 5]), [vec![4_000, 96], vec![1], vec![9_000], vec![5]]);
        let many = lengths(vec![1; 70]);
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 6]);
    }
}
