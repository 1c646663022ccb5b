//! Keeps one answer alive: places it, forwards its tokens, and when its worker dies continues it elsewhere from the
//! tokens so far.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opengrid_protocol::{
    ModelRoot, NodeId, SessionId,
    beacon::{Class, Features},
    session::{Finish, Open, Refusal, ToGateway, Token, TokenOut, Usage},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Fault,
    link::{LinkError, LinkSession},
};
use crate::{
    handle::{AnswerEvent, GridError, Job},
    placement::{Lease, Needs, Placement},
};

/// A worker that took the channel must say something about a new session within this time.
pub(super) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(3);
/// A worker that failed this answer is asked again after this time at the earliest, while others are there.
const AVOID: Duration = Duration::from_secs(10);
/// How long an interrupted answer waits for any worker to come (back) before it ends with an error.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(60);
/// How long a new session looks for a worker that takes it.
const PLACEMENT_PATIENCE: Duration = Duration::from_secs(6);
/// Workers in a row that may fail at an answer without a new token, and in all: a prompt that kills engines stops here.
const FRUITLESS_MAX: u32 = 4;
const ACCEPTANCES_MAX: u64 = 64;
/// How long a session may wait for a slot at one worker.
const QUEUE_PATIENCE: Duration = Duration::from_secs(600);
/// Pause between two rounds over the workers while none takes the answer.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Seconds that a refused client is told to wait.
const RETRY_AFTER_S: u32 = 2;

/// Tells the caller of `generate` who took the session first.
pub type FirstAccept = oneshot::Sender<Result<NodeId, GridError>>;

pub struct AnswerTask {
    pub placement: Arc<Placement>,
    pub session: SessionId,
    pub model: ModelRoot,
    pub job: Job,
    /// Most tokens of the answer, resolved.
    pub completion_tokens_max: u32,
    pub events: mpsc::Sender<AnswerEvent>,
    pub accepted: Option<FirstAccept>,
}

/// How one attempt at one worker ended.
pub(super) enum Attempt {
    Done,
    /// The client hung up.
    Abandoned,
    /// Try another; `Busy` is no reason to avoid the worker for long.
    Failed {
        busy: bool,
    },
    /// No worker will do better.
    Hopeless(GridError),
}

/// What has been generated so far.
pub(super) struct Progress {
    pub tokens: Vec<Token>,
    pub prompt_tokens: usize,
    class: Option<Class>,
    worker: Option<NodeId>,
    /// How often a worker took it; each attempt has a session id of its own.
    acceptances: u64,
    pub attempts: u64,
    /// A worker that called the request invalid. One may be wrong, or lie; two agree.
    called_invalid: Option<(NodeId, String)>,
}

impl Progress {
    pub fn answered(&self) -> u32 {
        (self.tokens.len() - self.prompt_tokens) as u32
    }
}

/// What a worker says of a session's place: 0 runs, 1 is next.
#[derive(Default)]
struct Place {
    accepted: bool,
    queued: Option<u32>,
}

impl Place {
    /// False where an honest worker would not say it: after the acceptance a session only comes nearer.
    fn moves_to(&mut self, queued: u32) -> bool {
        let nearer = self.queued.map_or(queued > 0 || !self.accepted, |last| queued < last);
        if queued > 0 || self.queued.is_some() {
            self.queued = Some(queued);
        }
        self.accepted = true;
        nearer
    }
}

impl AnswerTask {
    pub async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = self.keep_alive() => {}
            () = events.closed() => {}
        }
    }

    async fn keep_alive(&mut self) {
        let mut progress = Progress {
            prompt_tokens: self.job.prompt.len(),
            tokens: std::mem::take(&mut self.job.prompt),
            class: None,
            worker: None,
            acceptances: 0,
            attempts: 0,
            called_invalid: None,
        };
        if let Err(error) = self.open(&progress).check() {
            return self.fail(GridError::Invalid(error.to_string())).await;
        }
        let mut avoid: HashMap<NodeId, Instant> = HashMap::new();
        let mut orphan_since: Option<Instant> = None;
        let (began, mut fruitless) = (Instant::now(), 0);
        loop {
            if progress.worker.is_some() && progress.answered() >= self.completion_tokens_max {
                // Only the last word was lost.
                self.finish(Finish::Length, Usage::default(), &progress).await;
                return;
            }
            avoid.retain(|_, until| *until > Instant::now());
            let (acceptances, before) = (progress.acceptances, progress.tokens.len());
            // No split where one node has it all.
            let (worker, attempt) = match self.lease(&progress, &avoid) {
                Some(lease) => (Some(lease.worker), self.attempt(lease, &mut progress).await),
                None if self.placement.has_chain(self.model, self.needs(&progress)) => {
                    (None, self.attempt_chain(&mut progress).await)
                }
                None => match self.wait_for_workers(&progress, &mut avoid, &mut orphan_since).await {
                    Ok(()) => continue,
                    Err(error) => return self.fail(error).await,
                },
            };
            match (attempt, worker) {
                (Attempt::Done, Some(worker)) => return self.placement.remember(worker, &progress.tokens),
                (Attempt::Done | Attempt::Abandoned, _) => return,
                (Attempt::Hopeless(error), _) => return self.fail(error).await,
                (Attempt::Failed { busy }, worker) => {
                    let pause = if busy { Duration::from_secs(1) } else { AVOID };
                    match worker {
                        Some(worker) => drop(avoid.insert(worker, Instant::now() + pause)),
                        None => tokio::time::sleep(RETRY_PAUSE).await,
                    }
                    if let Some(worker) = worker.filter(|_| !busy) {
                        self.placement.suspect(worker);
                    }
                    self.placement.failed_over(busy);
                }
            }
            if progress.tokens.len() > before {
                orphan_since = None;
                fruitless = 0;
            } else if progress.acceptances > acceptances {
                fruitless += 1;
            }
            if fruitless >= FRUITLESS_MAX || progress.acceptances >= ACCEPTANCES_MAX {
                return self
                    .fail(match progress.called_invalid {
                        Some((_, why)) => GridError::Invalid(why),
                        None => GridError::Internal("every worker that took the request failed at it".into()),
                    })
                    .await;
            }
            if self.accepted.is_some() && began.elapsed() > PLACEMENT_PATIENCE {
                return self.fail(self.nobody()).await;
            }
        }
    }

    fn lease(&self, progress: &Progress, avoid: &HashMap<NodeId, Instant>) -> Option<Lease> {
        self.placement.choose(
            self.model,
            &progress.tokens,
            self.needs(progress),
            progress.class,
            self.job.affinity.as_deref(),
            |node| avoid.contains_key(&node),
        )
    }

    pub(super) fn needs(&self, progress: &Progress) -> Needs {
        let left = self.completion_tokens_max.saturating_sub(progress.answered());
        Needs { tokens: progress.tokens.len() as u32 + left, features: self.job.features() }
    }

    /// Before the first acceptance an empty grid is an error at once; afterwards the answer waits for a worker.
    async fn wait_for_workers(
        &self,
        progress: &Progress,
        avoid: &mut HashMap<NodeId, Instant>,
        orphan_since: &mut Option<Instant>,
    ) -> Result<(), GridError> {
        if progress.worker.is_none() {
            return Err(self.nobody());
        }
        if orphan_since.get_or_insert_with(Instant::now).elapsed() > ORPHAN_PATIENCE {
            return Err(self.nobody());
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        // With nobody else left, those that failed may have come back.
        avoid.clear();
        Ok(())
    }

    fn nobody(&self) -> GridError {
        let features = self.job.features();
        if self.placement.can(self.model, Features::NONE) && !self.placement.can(self.model, features) {
            return GridError::Incapable { model: self.job.model.clone(), retry_after_s: RETRY_AFTER_S };
        }
        GridError::NoWorker { model: self.job.model.clone(), retry_after_s: RETRY_AFTER_S }
    }

    async fn fail(&mut self, error: GridError) {
        match self.accepted.take() {
            Some(accepted) => drop(accepted.send(Err(error))),
            None => drop(self.events.send(AnswerEvent::Failed(error)).await),
        }
    }

    async fn attempt(&mut self, lease: Lease, progress: &mut Progress) -> Attempt {
        let worker = lease.worker;
        let link = match self.placement.links.get(worker).await {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(worker = %worker.short(), %error, "no channel");
                return Attempt::Failed { busy: false };
            }
        };
        let open = self.open(progress);
        progress.attempts += 1;
        match link.open(open).await {
            Ok(mut session) => self.follow(&mut session, &lease, progress).await,
            Err(error) => Attempt::Failed { busy: error == LinkError::Full },
        }
    }

    pub(super) fn open(&self, progress: &Progress) -> Open {
        Open {
            session: SessionId(self.session.0.wrapping_add(progress.attempts)),
            model: self.model,
            tokens: progress.tokens.clone(),
            prompt_tokens: progress.prompt_tokens as u32,
            completion_tokens_max: self.completion_tokens_max,
            stop_tokens: self.job.stop_tokens.clone(),
            sampling: self.job.sampling.clone(),
            top_logprobs: self.job.top_logprobs,
            grammar: self.job.grammar.clone(),
            tier: self.job.tier,
        }
    }

    async fn follow(&mut self, session: &mut LinkSession, lease: &Lease, progress: &mut Progress) -> Attempt {
        let mut place = Place::default();
        let queue_end = Instant::now() + QUEUE_PATIENCE;
        let mut patience = ACCEPT_TIMEOUT;
        let mut flowing = false;
        loop {
            let received = timeout(patience, session.messages.recv()).await.ok().flatten();
            patience = if flowing { lease.token_within } else { lease.progress_within };
            let Some(message) = received else {
                return Attempt::Failed { busy: false };
            };
            match message {
                ToGateway::Accepted { queued, .. } => {
                    if !place.accepted {
                        self.accepted_by(lease.worker, lease.class, progress).await;
                    }
                    if flowing || !place.moves_to(queued) {
                        self.placement.report(lease.worker, Fault::WrongTokens);
                        return Attempt::Failed { busy: false };
                    }
                    if queued > 0 {
                        patience = queue_end.saturating_duration_since(Instant::now());
                        if self.events.send(AnswerEvent::Queued(queued)).await.is_err() {
                            return Attempt::Abandoned;
                        }
                    }
                }
                ToGateway::Tokens { from, tokens, .. } if place.accepted => {
                    if let Err(attempt) = self.take_tokens(lease.worker, from, tokens, progress).await {
                        return attempt;
                    }
                    flowing = true;
                    patience = lease.token_within;
                }
                ToGateway::Finished { finish, usage, .. } if place.accepted => {
                    return self.take_finish(lease.worker, finish, usage, progress).await;
                }
                ToGateway::Refused { why, .. } => return self.refused(lease.worker, why, progress),
                ToGateway::Tokens { .. }
                | ToGateway::Finished { .. }
                | ToGateway::Embedded { .. }
                | ToGateway::Rewired { .. }
                | ToGateway::Leaves { .. }
                | ToGateway::Complains { .. } => {
                    self.placement.report(lease.worker, Fault::WrongTokens);
                    return Attempt::Failed { busy: false };
                }
                ToGateway::Heartbeat => {}
            }
        }
    }

    /// Hands tokens on that follow those before.
    pub(super) async fn take_tokens(
        &self,
        worker: NodeId,
        from: u32,
        tokens: Vec<TokenOut>,
        progress: &mut Progress,
    ) -> Result<(), Attempt> {
        if self.breaks_order(from, &tokens, progress) {
            self.placement.report(worker, Fault::WrongTokens);
            return Err(Attempt::Failed { busy: false });
        }
        progress.tokens.extend(tokens.iter().map(|out| out.token));
        self.events.send(AnswerEvent::Tokens(tokens)).await.map_err(|_| Attempt::Abandoned)
    }

    pub(super) async fn take_finish(
        &self,
        worker: NodeId,
        finish: Finish,
        usage: Usage,
        progress: &Progress,
    ) -> Attempt {
        if self.breaks_finish(finish, progress) {
            self.placement.report(worker, Fault::WrongTokens);
            return Attempt::Failed { busy: false };
        }
        self.finish(finish, usage, progress).await
    }

    /// A worker, or a chain of stages that ends at `worker`, has the session.
    pub(super) async fn accepted_by(&mut self, worker: NodeId, class: Class, progress: &mut Progress) {
        let exact = matches!(class, Class::Exact(_)) && progress.class.is_none_or(|known| known == class);
        progress.class.get_or_insert(class);
        progress.acceptances += 1;
        let moved = progress.worker.replace(worker).is_some();
        match self.accepted.take() {
            Some(accepted) => drop(accepted.send(Ok(worker))),
            None if moved => {
                if !exact {
                    progress.class = Some(class);
                }
                let _ = self.events.send(AnswerEvent::Moved { worker, exact }).await;
            }
            None => {}
        }
    }

    fn breaks_order(&self, from: u32, tokens: &[TokenOut], progress: &Progress) -> bool {
        let answered = progress.answered();
        let tops_max = self.job.top_logprobs.map_or(0, usize::from);
        tokens.is_empty()
            || from != answered
            || answered as usize + tokens.len() > self.completion_tokens_max as usize
            || tokens.iter().any(|out| {
                out.top.len() > tops_max
                    || out.token >= self.job.vocabulary_size
                    || out.top.iter().any(|(token, _)| *token >= self.job.vocabulary_size)
                    || self.job.stop_tokens.contains(&out.token)
            })
    }

    fn breaks_finish(&self, finish: Finish, progress: &Progress) -> bool {
        match finish {
            Finish::Stop(token) => !self.job.stop_tokens.contains(&token),
            // Only the end of its context excuses a shorter answer, and placement chose one that is long enough.
            Finish::Length => progress.answered() < self.completion_tokens_max,
        }
    }

    async fn finish(&self, finish: Finish, usage: Usage, progress: &Progress) -> Attempt {
        let usage = Usage {
            cached_tokens: usage.cached_tokens.min(progress.prompt_tokens as u32),
            generated_tokens: progress.answered(),
            ..usage
        };
        let _ = self.events.send(AnswerEvent::Finished(finish, usage)).await;
        Attempt::Done
    }

    pub(super) fn refused(&self, worker: NodeId, why: Refusal, progress: &mut Progress) -> Attempt {
        match why {
            Refusal::Invalid(why) if progress.called_invalid.as_ref().is_some_and(|(other, _)| *other != worker) => {
                Attempt::Hopeless(GridError::Invalid(shortened(&why)))
            }
            Refusal::Invalid(why) => {
                tracing::debug!(worker = %worker.short(), why, "a worker calls a checked request invalid");
                progress.called_invalid = Some((worker, shortened(&why)));
                Attempt::Failed { busy: true }
            }
            Refusal::Busy | Refusal::Draining => Attempt::Failed { busy: true },
            _ => Attempt::Failed { busy: false },
        }
    }
}

/// A stranger's words, fit to be shown.
pub(super) fn shortened(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believed(words: &[u32]) -> bool {
        let mut place = Place::default();
        words.iter().all(|queued| place.moves_to(*queued))
    }

    #[test]
    fn a_session_in_a_queue_only_comes_nearer() {
        for honest in [&[0][..], &[0, 1, 0], &[0, 7, 5, 1, 0], &[3, 2, 0]] {
            assert!(believed(honest), "{honest:?}");
        }
        for lie in [&[0, 0][..], &[0, 1, 1], &[0, 1, 2], &[0, 1, 0, 0], &[0, 1, 0, 1]] {
            assert!(!believed(lie), "{lie:?}");
        }
    }
}
