//! The gateway's end of a channel to one worker: many sessions, one ordered way each direction.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use opengrid_protocol::{
    SessionId,
    limits::SESSIONS_PER_CHANNEL_MAX,
    pipeline::{OpenPart, Order, Standby},
    session::{Embed, Open, ToGateway, ToWorker},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Fault;

/// Messages that wait for one session's reader; a reader that falls further behind loses the session.
const SESSION_BACKLOG_MAX: usize = 8_192;
/// Closed sessions remembered, so that their last messages in flight are no fault.
const CLOSED_MEMORY: usize = 1_024;

/// A live channel. Clones share it.
#[derive(Clone)]
pub struct Link {
    to_worker: mpsc::Sender<ToWorker>,
    routes: Arc<Routes>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkError {
    #[error("the channel to the worker is closed")]
    Closed,
    #[error("the channel holds {SESSIONS_PER_CHANNEL_MAX} sessions already")]
    Full,
}

/// One session on a link. Dropping it cancels the session at the worker.
pub struct LinkSession {
    pub session: SessionId,
    /// Ends when the channel closes.
    pub messages: mpsc::Receiver<ToGateway>,
    link: Link,
}

impl Link {
    /// A link whose messages leave through the returned receiver; `closed` ends it.
    pub fn new(closed: CancellationToken) -> (Self, mpsc::Receiver<ToWorker>, Arc<Routes>) {
        let (to_worker, outgoing) = mpsc::channel(SESSIONS_PER_CHANNEL_MAX * 2);
        let routes = Arc::new(Routes { state: Mutex::default(), closed });
        (Self { to_worker, routes: routes.clone() }, outgoing, routes)
    }

    /// Opens a session.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open(&self, open: Open) -> Result<LinkSession, LinkError> {
        self.begin(open.session, ToWorker::Open(Box::new(open))).await
    }

    /// Opens a session of texts.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn embed(&self, embed: Embed) -> Result<LinkSession, LinkError> {
        self.begin(embed.session, ToWorker::Embed(Box::new(embed))).await
    }

    /// Opens a part of a session over several stages.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn open_part(&self, part: OpenPart) -> Result<LinkSession, LinkError> {
        self.begin(part.session, ToWorker::OpenPart(Box::new(part))).await
    }

    /// Asks for rows to be kept.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub async fn standby(&self, standby: Standby) -> Result<LinkSession, LinkError> {
        self.begin(standby.session, ToWorker::Standby(Box::new(standby))).await
    }

    async fn begin(&self, session: SessionId, opening: ToWorker) -> Result<LinkSession, LinkError> {
        let messages = self.routes.register(session)?;
        let opened = LinkSession { session, messages, link: self.clone() };
        self.to_worker.send(opening).await.map_err(|_| LinkError::Closed)?;
        Ok(opened)
    }

    pub fn is_closed(&self) -> bool {
        self.routes.closed.is_cancelled()
    }

    pub fn close(&self) {
        self.routes.close();
    }
}

impl LinkSession {
    /// Says something to a part of a session.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn order(&self, order: Order) -> Result<(), LinkError> {
        let message = ToWorker::Order { session: self.session, order };
        self.link.to_worker.send(message).await.map_err(|_| LinkError::Closed)
    }
}

impl Drop for LinkSession {
    fn drop(&mut self) {
        if self.link.routes.unregister(self.session) {
            // A full queue means that the channel is stuck: the worker's watchdog or ours ends it.
            let _ = self.link.to_worker.try_send(ToWorker::Cancel { session: self.session });
        }
    }
}

/// Where the messages of each session go.
pub struct Routes {
    state: Mutex<RouteState>,
    pub closed: CancellationToken,
}

#[derive(Default)]
struct RouteState {
    open: HashMap<SessionId, mpsc::Sender<ToGateway>>,
    /// Ended here because nobody read them, running at the worker still.
    overrun: HashSet<SessionId>,
    closed: HashSet<SessionId>,
    closed_order: VecDeque<SessionId>,
}

impl Routes {
    fn register(&self, session: SessionId) -> Result<mpsc::Receiver<ToGateway>, LinkError> {
        let (sender, receiver) = mpsc::channel(SESSION_BACKLOG_MAX);
        let mut state = self.state.lock();
        if self.closed.is_cancelled() {
            return Err(LinkError::Closed);
        }
        if state.open.len() >= SESSIONS_PER_CHANNEL_MAX {
            return Err(LinkError::Full);
        }
        state.open.insert(session, sender);
        Ok(receiver)
    }

    /// True if the session was open (its worker should hear of the cancellation).
    fn unregister(&self, session: SessionId) -> bool {
        let mut state = self.state.lock();
        let overrun = state.overrun.remove(&session);
        let was_open = state.open.remove(&session).is_some() || overrun;
        state.remember_closed(session);
        was_open && !self.closed.is_cancelled()
    }

    pub fn sessions(&self) -> usize {
        self.state.lock().open.len()
    }

    /// Hands a worker's message to its session.
    ///
    /// # Errors
    /// [`Fault::ForeignSession`] for a session that was never open here.
    pub fn dispatch(&self, message: ToGateway) -> Result<(), Fault> {
        let (session, is_last) = match &message {
            ToGateway::Heartbeat => return Ok(()),
            ToGateway::Accepted { session, .. }
            | ToGateway::Tokens { session, .. }
            | ToGateway::Rewired { session, .. }
            | ToGateway::Complains { session, .. }
            | ToGateway::Leaves { session } => (*session, false),
            ToGateway::Finished { session, .. }
            | ToGateway::Refused { session, .. }
            | ToGateway::Embedded { session, .. } => (*session, true),
        };
        let mut state = self.state.lock();
        let Some(route) = state.open.get(&session) else {
            return if state.closed.contains(&session) { Ok(()) } else { Err(Fault::ForeignSession) };
        };
        let overrun = route.try_send(message).is_err();
        if is_last || overrun {
            state.open.remove(&session);
            state.remember_closed(session);
        }
        if overrun && !is_last {
            state.overrun.insert(session);
        }
        Ok(())
    }

    /// Ends every session of the channel: their receivers run dry.
    pub fn close(&self) {
        self.closed.cancel();
        self.state.lock().open.clear();
    }
}

impl RouteState {
    fn remember_closed(&mut self, session: SessionId) {
        if self.closed.insert(session) {
            self.closed_order.push_back(session);
        }
        if self.closed_order.len() > CLOSED_MEMORY
            && let Some(oldest) = self.closed_order.pop_front()
        {
            self.closed.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use opengrid_protocol::{ModelRoot, Sampling};

    use super::*;

    pub fn open(session: u64) -> Open {
        Open {
            session: SessionId(session),
            model: ModelRoot([0; 32]),
            tokens: vec![1],
            prompt_tokens: 1,
            completion_tokens_max: 4,
            stop_tokens: vec![],
            sampling: Sampling::greedy(),
            top_logprobs: None,
            grammar: None,
            tier: opengrid_protocol::session::Tier::Default,
        }
    }

    #[tokio::test]
    async fn messages_reach_their_own_session_only_and_strangers_are_faults() {
        let (link, mut outgoing, routes) = Link::new(CancellationToken::new());
        let mut first = link.open(open(1)).await.unwrap();
        let mut second = link.open(open(2)).await.unwrap();
        assert!(matches!(outgoing.recv().await, Some(ToWorker::Open(open)) if open.session == SessionId(1)));
        routes.dispatch(ToGateway::Accepted { session: SessionId(2), queued: 3 }).unwrap();
        assert!(matches!(second.messages.try_recv(), Ok(ToGateway::Accepted { queued: 3, .. })));
        assert!(first.messages.try_recv().is_err());
        let foreign = ToGateway::Accepted { session: SessionId(9), queued: 0 };
        assert_eq!(routes.dispatch(foreign), Err(Fault::ForeignSession));
    }

    #[tokio::test]
    async fn dropping_a_session_cancels_it_and_its_stragglers_are_no_fault() {
        let (link, mut outgoing, routes) = Link::new(CancellationToken::new());
        drop(link.open(open(1)).await.unwrap());
        outgoing.recv().await.unwrap();
        assert_eq!(outgoing.recv().await, Some(ToWorker::Cancel { session: SessionId(1) }));
        assert_eq!(routes.dispatch(ToGateway::Accepted { session: SessionId(1), queued: 0 }), Ok(()));
    }

    #[tokio::test]
    async fn closing_runs_every_session_dry() {
        let (link, _outgoing, routes) = Link::new(CancellationToken::new());
        let mut session = link.open(open(1)).await.unwrap();
        routes.close();
        assert_eq!(session.messages.recv().await, None);
        assert_eq!(link.open(open(2)).await.err(), Some(LinkError::Closed));
    }
}
