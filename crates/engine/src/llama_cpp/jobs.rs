//! What runs in the child, seen from the node: one table shared by callers and the supervisor. No I/O.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    messages::{Embed, FromEngine, Generate, JobEvent, Progress, ToEngine},
    speeds::Speeds,
};
use crate::{
    CancelGuard, EngineError, Event, Generation, Load, ipc,
    sandbox::SandboxProbe,
    stage::{StageEvent, StageSession, ToStageChild},
};

/// Feeds that may wait to be written.
const FEEDS_MAX: usize = 16_384;
/// Events of a session of a stage beside one for each of its rows, and one for each of its cells.
const STAGE_EVENTS_EXTRA: usize = 256;
/// Cancels and pings that may wait to be written beside one message a job.
const OUTBOX_EXTRA: usize = 256;

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub slots: u16,
    pub queue_max: u16,
    pub context_tokens: u32,
}

impl Bounds {
    fn jobs_max(&self) -> usize {
        usize::from(self.slots) + usize::from(self.queue_max)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Restarting,
    Closed,
}

#[derive(Debug)]
pub struct Jobs {
    bounds: Bounds,
    state: Mutex<State>,
    /// The outbox has something.
    outgoing: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    pid: Option<u32>,
    jobs: HashMap<u64, mpsc::Sender<Event>>,
    embeddings: HashMap<u64, oneshot::Sender<Embedded>>,
    stages: HashMap<u64, mpsc::Sender<StageEvent>>,
    next_id: u64,
    outbox: VecDeque<(Option<u64>, Bytes)>,
    pinged: Option<Instant>,
    probes: Vec<oneshot::Sender<SandboxProbe>>,
    speeds: Speeds,
}

/// What becomes of texts.
type Embedded = Result<Vec<Vec<f32>>, EngineError>;

impl Jobs {
    /// `speeds` hold until the child knows better.
    pub fn new(bounds: Bounds, speeds: Speeds) -> Self {
        let state = State {
            phase: Phase::Restarting,
            pid: None,
            jobs: HashMap::new(),
            embeddings: HashMap::new(),
            stages: HashMap::new(),
            next_id: 0,
            outbox: VecDeque::new(),
            pinged: None,
            probes: Vec::new(),
            speeds,
        };
        Self { bounds, state: Mutex::new(state), outgoing: Notify::new() }
    }

    /// A child is ready for work.
    pub fn start(&self, pid: Option<u32>) {
        let mut state = self.state.lock();
        if state.phase == Phase::Restarting {
            state.phase = Phase::Running;
        }
        state.pid = pid;
        state.pinged = None;
    }

    /// The child is gone: everything that ran fails.
    pub fn lose(&self, error: &EngineError) {
        let mut state = self.state.lock();
        if state.phase == Phase::Running {
            state.phase = Phase::Restarting;
        }
        state.pid = None;
        state.outbox.clear();
        state.probes.clear();
        for (_, events) in state.jobs.drain() {
            let _ = events.try_send(Event::Failed(error.clone()));
        }
        for (_, events) in state.stages.drain() {
            let _ = events.try_send(StageEvent::Failed(error.clone()));
        }
        for (_, vectors) in state.embeddings.drain() {
            let _ = vectors.send(Err(error.clone()));
        }
    }

    /// No more work; what runs fails.
    pub fn close(&self) {
        self.state.lock().phase = Phase::Closed;
        self.lose(&EngineError::ShuttingDown);
    }

    pub fn pid(&self) -> Option<u32> {
        self.state.lock().pid
    }

    /// What the child measured last.
    pub fn speeds(&self) -> Speeds {
        self.state.lock().speeds
    }

    pub fn load(&self) -> Load {
        let state = self.state.lock();
        let jobs = state.running();
        let slots_busy = jobs.min(usize::from(self.bounds.slots));
        Load {
            slots_busy: slots_busy as u16,
            queued: (jobs - slots_busy) as u16,
            healthy: state.phase == Phase::Running,
        }
    }

    /// Hands a job to the child.
    pub fn submit(self: &Arc<Self>, job: impl FnOnce(u64) -> Generate) -> Result<Generation, EngineError> {
        let mut state = self.state.lock();
        let id = state.next_id(self.bounds.jobs_max())?;
        let job = job(id);
        // Room for every event that a job can have: the reader of the child's events never waits for a consumer.
        let tokens_max = job.completion_tokens_max.min(self.bounds.context_tokens) as usize;
        let (sender, events) = mpsc::channel(tokens_max + usize::from(self.bounds.queue_max) + 4);
        state.jobs.insert(id, sender);
        state.outbox.push_back((Some(id), ipc::frame(&ToEngine::Generate(Box::new(job)))));
        drop(state);
        self.outgoing.notify_one();
        let jobs = self.clone();
        Ok(Generation { events, guard: CancelGuard::new(move || jobs.cancel(id)) })
    }

    /// Hands texts to the child of an embedding model; dropping the guard cancels.
    pub fn submit_embed(
        self: &Arc<Self>,
        job: impl FnOnce(u64) -> Embed,
    ) -> Result<(oneshot::Receiver<Embedded>, CancelGuard), EngineError> {
        let mut state = self.state.lock();
        let id = state.next_id(self.bounds.jobs_max())?;
        let (sender, vectors) = oneshot::channel();
        state.embeddings.insert(id, sender);
        state.outbox.push_back((Some(id), ipc::frame(&ToEngine::Embed(Box::new(job(id))))));
        drop(state);
        self.outgoing.notify_one();
        let jobs = self.clone();
        Ok((vectors, CancelGuard::new(move || jobs.cancel(id))))
    }

    /// Begins a session of a stage; the last stage's begins with what it draws.
    pub fn open_stage(
        self: &Arc<Self>,
        head: Option<impl FnOnce(u64) -> Generate>,
    ) -> Result<StageSession, EngineError> {
        let mut state = self.state.lock();
        let id = state.next_id(usize::from(self.bounds.slots))?;
        let (sender, events) = mpsc::channel(2 * self.bounds.context_tokens as usize + STAGE_EVENTS_EXTRA);
        state.stages.insert(id, sender);
        let opening = match head {
            Some(head) => ToEngine::Generate(Box::new(head(id))),
            None => ToEngine::Open { id },
        };
        state.outbox.push_back((Some(id), ipc::frame(&opening)));
        drop(state);
        self.outgoing.notify_one();
        let (feeding, closing) = (self.clone(), self.clone());
        Ok(StageSession {
            events,
            send: Box::new(move |message| feeding.tell_stage(id, message)),
            _guard: CancelGuard::new(move || closing.cancel(id)),
        })
    }

    fn tell_stage(&self, id: u64, message: ToStageChild) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        if !state.stages.contains_key(&id) {
            return Err(EngineError::Died);
        }
        if state.outbox.len() >= FEEDS_MAX {
            return Err(EngineError::Busy);
        }
        let message = match message {
            ToStageChild::Feed { lap, from, input } => ToEngine::Feed { id, lap, from, input },
            ToStageChild::Gather(gathers) => ToEngine::Gather { id, gathers },
            ToStageChild::Export { until, tag } => ToEngine::Export { id, until, tag },
            ToStageChild::Import { cells, last } => ToEngine::Import { id, cells, last },
        };
        state.outbox.push_back((None, ipc::frame(&message)));
        drop(state);
        self.outgoing.notify_one();
        Ok(())
    }

    fn cancel(&self, id: u64) {
        let mut state = self.state.lock();
        let was_running = state.jobs.remove(&id).is_some()
            || state.embeddings.remove(&id).is_some()
            || state.stages.remove(&id).is_some();
        if !was_running {
            return;
        }
        state.send_cancel(id);
        drop(state);
        self.outgoing.notify_one();
    }

    /// The answer comes when the child gives it.
    pub fn probe_sandbox(&self) -> Option<oneshot::Receiver<SandboxProbe>> {
        let mut state = self.state.lock();
        if state.phase != Phase::Running || state.probes.len() >= OUTBOX_EXTRA {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        state.probes.push(sender);
        state.outbox.push_back((None, ipc::frame(&ToEngine::ProbeSandbox)));
        drop(state);
        self.outgoing.notify_one();
        Some(receiver)
    }

    /// Sends a ping, unless one is out: then how long it has been.
    pub fn ping(&self) -> Duration {
        let mut state = self.state.lock();
        if let Some(since) = state.pinged {
            return since.elapsed();
        }
        state.pinged = Some(Instant::now());
        state.outbox.push_back((None, ipc::frame(&ToEngine::Ping { nonce: 0 })));
        drop(state);
        self.outgoing.notify_one();
        Duration::ZERO
    }

    /// The frames to write next, at least one; waits for it.
    pub async fn outgoing(&self) -> Vec<Bytes> {
        loop {
            let frames: Vec<Bytes> = self.state.lock().outbox.drain(..).map(|(_, frame)| frame).collect();
            if !frames.is_empty() {
                return frames;
            }
            self.outgoing.notified().await;
        }
    }

    /// Passes on what the child says.
    ///
    /// # Errors
    /// When it says what no honest child would: it is to be killed.
    pub fn handle(&self, message: FromEngine) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        match message {
            FromEngine::Pong { .. } => state.pinged = None,
            FromEngine::Ready(_) | FromEngine::LoadFailed(_) => return Err("it loaded twice"),
            FromEngine::Speeds(speeds) => state.speeds = speeds.sane(state.speeds),
            FromEngine::SandboxProbe(probe) => {
                for waiting in state.probes.drain(..) {
                    let _ = waiting.send(probe.clone());
                }
            }
            FromEngine::Events(events) => {
                for event in events {
                    state.pass_on(event)?;
                }
                drop(state);
                self.outgoing.notify_one();
            }
        }
        Ok(())
    }
}

impl State {
    fn running(&self) -> usize {
        self.jobs.len() + self.embeddings.len() + self.stages.len()
    }

    /// The id of one more job, where there is room for it.
    fn next_id(&mut self, jobs_max: usize) -> Result<u64, EngineError> {
        match self.phase {
            Phase::Running => {}
            Phase::Restarting => return Err(EngineError::Died),
            Phase::Closed => return Err(EngineError::ShuttingDown),
        }
        if self.running() >= jobs_max || self.outbox.len() >= jobs_max + OUTBOX_EXTRA {
            return Err(EngineError::Busy);
        }
        let id = self.next_id;
        self.next_id += 1;
        Ok(id)
    }

    /// A job that the child never heard of needs no cancel.
    fn send_cancel(&mut self, id: u64) {
        let before = self.outbox.len();
        self.outbox.retain(|(job, _)| *job != Some(id));
        if self.outbox.len() == before {
            self.outbox.push_back((None, ipc::frame(&ToEngine::Cancel { id })));
        }
    }

    fn pass_on(&mut self, JobEvent { id, progress }: JobEvent) -> Result<(), &'static str> {
        if let Some(vectors) = self.embeddings.remove(&id) {
            let result = match progress {
                Progress::Embedded(vectors) => Ok(vectors),
                Progress::Invalid(why) => Err(EngineError::Invalid(why)),
                _ => return Err("it answers texts with tokens"),
            };
            // Nobody waits any more: no harm.
            let _ = vectors.send(result);
            return Ok(());
        }
        if self.stages.contains_key(&id) {
            return self.pass_on_stage(id, progress);
        }
        let Some(events) = self.jobs.get(&id) else { return Ok(()) };
        let (event, last) = match progress {
            Progress::Queued(before) => (Event::Queued(before), false),
            Progress::Token(token) => (Event::Tokens(vec![token]), false),
            Progress::Finished(finish, usage) => (Event::Finished(finish, usage), true),
            Progress::Embedded(_) => return Err("it answers a prompt with vectors"),
            Progress::Rows { .. }
            | Progress::Drawn { .. }
            | Progress::Cells { .. }
            | Progress::Imported(_)
            | Progress::CellsRefused(_) => return Err("it answers a prompt as a stage"),
            Progress::Invalid(why) => (Event::Failed(EngineError::Invalid(why)), true),
        };
        let sent = events.try_send(event);
        match sent {
            Err(mpsc::error::TrySendError::Full(_)) => return Err("it sent more events than a job can have"),
            Err(mpsc::error::TrySendError::Closed(_)) if !last => {
                self.jobs.remove(&id);
                self.send_cancel(id);
            }
            _ if last => {
                self.jobs.remove(&id);
            }
            _ => {}
        }
        Ok(())
    }

    /// A session whose events nobody takes ends.
    fn pass_on_stage(&mut self, id: u64, progress: Progress) -> Result<(), &'static str> {
        let (event, last) = match progress {
            Progress::Rows { lap, from, rows } => (StageEvent::Rows { lap, from, rows }, false),
            Progress::Drawn { tokens, feed } => (StageEvent::Drawn { tokens, feed }, false),
            Progress::Cells { tag, from, of, cells } => (StageEvent::Cells { tag, from, of, cells }, false),
            Progress::Imported(count) => (StageEvent::Imported(count), false),
            Progress::CellsRefused(why) => (StageEvent::CellsRefused(why), false),
            Progress::Finished(finish, usage) => (StageEvent::Finished(finish, usage), true),
            Progress::Invalid(why) => (StageEvent::Failed(EngineError::Invalid(why)), true),
            Progress::Queued(_) | Progress::Token(_) | Progress::Embedded(_) => {
                return Err("a stage answers as a whole model");
            }
        };
        let taken = self.stages.get(&id).is_some_and(|events| events.try_send(event).is_ok());
        if last || !taken {
            self.stages.remove(&id);
        }
        if !last && !taken {
            self.send_cancel(id);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "jobs_tests.rs"]
mod tests;
