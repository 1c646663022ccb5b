//! How far a download is, told often enough for a progress bar and no more often.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SourceKind;

const REPORT_EVERY: Duration = Duration::from_millis(100);
/// The speed is that of the last so long.
const SPEED_WINDOW: Duration = Duration::from_secs(3);

/// Gets every report; called from the download's task, so it must be quick.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// What a download is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Another process downloads the file.
    Waiting,
    Downloading,
    /// Out of a package.
    Unpacking,
    /// From the format of its authors.
    Converting,
    /// Hashing the whole file.
    Verifying,
    Done,
}

/// One report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// `None` while waiting, or proving what an earlier download left.
    pub source: Option<SourceKind>,
    pub phase: Phase,
    /// Of this phase; never falls within a phase, except when a wrong file is begun anew.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Over the last seconds.
    pub bytes_per_s: u64,
}

/// Turns bytes into reports.
#[derive(Clone)]
pub(super) struct Meter {
    source: Option<SourceKind>,
    total: u64,
    sink: ProgressSink,
    state: Arc<Mutex<State>>,
}

struct State {
    phase: Phase,
    samples: VecDeque<(Instant, u64)>,
    reported: Option<Instant>,
}

impl Meter {
    pub(super) fn new(source: Option<SourceKind>, total: u64, sink: &ProgressSink) -> Self {
        let state = State { phase: Phase::Waiting, samples: VecDeque::new(), reported: None };
        Self { source, total, sink: Arc::clone(sink), state: Arc::new(Mutex::new(state)) }
    }

    /// A new phase, nothing done yet.
    pub(super) fn phase(&self, phase: Phase) {
        self.phase_from(phase, if phase == Phase::Done { self.total } else { 0 });
    }

    /// A new phase that begins with `done` bytes.
    pub(super) fn phase_from(&self, phase: Phase, done: u64) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.phase = phase;
            state.samples.clear();
            state.reported = None;
        }
        self.done(done);
    }

    /// So many bytes of this phase are done.
    pub(super) fn done(&self, done: u64) {
        let now = Instant::now();
        let done = done.min(self.total);
        let report = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let speed = state.speed(now, done);
            let due = state.reported.is_none_or(|at| now.duration_since(at) >= REPORT_EVERY) || done == self.total;
            due.then(|| {
                state.reported = Some(now);
                let (source, phase, total_bytes) = (self.source, state.phase, self.total);
                Progress { source, phase, done_bytes: done, total_bytes, bytes_per_s: speed }
            })
        };
        if let Some(report) = report {
            (self.sink)(report);
        }
    }
}

impl State {
    fn speed(&mut self, now: Instant, done: u64) -> u64 {
        let spaced = self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= REPORT_EVERY / 2);
        let (first, from) = *self.samples.front().unwrap_or(&(now, done));
        if spaced {
            self.samples.push_back((now, done));
        }
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, _)| now.duration_since(*at) > SPEED_WINDOW)
        {
            self.samples.pop_front();
        }
        let seconds = now.duration_since(first).as_secs_f64();
        if seconds < 0.001 { 0 } else { (done.saturating_sub(from) as f64 / seconds) as u64 }
    }
}
