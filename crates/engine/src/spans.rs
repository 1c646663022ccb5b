//! Which rows a stage computes in its next step: the counterpart of [`batching`](crate::batching) for sessions whose
//! rows come from elsewhere. Pure.
//!
//! A session is a sequence of rows by position. What is fed may begin anywhere up to the end of what was fed before:
//! from there on it takes the place of what was there (a guess that missed, a part that is sent again).

use crate::{
    batching::{Prompt, StepLimits, share_prefill},
    stage::Lap,
};

/// Steps in a row after which a stage that lags behind takes more sessions at once.
const CROWDED_STEPS: u32 = 6;

/// The part of a model that a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub is_first: bool,
    pub layers: usize,
    pub of: usize,
}

/// Rows of known tokens that go into a step whatever prefills.
pub const DECODE_ROWS_MAX: usize = 17;
/// Guesses go in steps that a stage computes within this time: what comes in the place of those that missed waits no longer,
/// and the stages behind begin as early. In seconds.
const GUESSES_STEP_S: f32 = 0.004;
const GUESSES_STEP_MAX: usize = 8;

/// Guesses in one step, in a stage that computes so many rows a second one by one.
pub fn guesses_at_once(rows_per_s: f32) -> usize {
    ((rows_per_s * GUESSES_STEP_S) as usize).clamp(1, GUESSES_STEP_MAX)
}

/// Rows `from..from + rows` of a slot, to be computed in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub slot: usize,
    pub from: usize,
    pub rows: usize,
}

/// What feeding changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    pub slot: usize,
    /// Of the rows that wait, so many stay in front of the new ones.
    pub waiting_kept: usize,
    /// The slot's cells are to be cut back to so many first.
    pub cut_to: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    #[error("there is no such session")]
    NoSession,
    #[error("rows from position {from} on, where {end} are there")]
    Gap { from: usize, end: usize },
    #[error("the context holds {0} rows")]
    TooMany(usize),
    #[error("rows of a lap that is over")]
    Old,
}

/// Steps that do not wait for a session after it was late once, and at most.
const PASSED_OVER_MIN: u32 = 8;
const PASSED_OVER_MAX: u32 = 1_024;
/// A session that was in none of so many steps does not count.
const IDLE_STEPS: u32 = 16;

#[derive(Debug)]
struct Session {
    id: u64,
    computed: usize,
    waiting: usize,
    /// Rises with every session whose wait begins.
    order: u64,
    /// Its other stages compute on the same cores.
    gathers: bool,
    /// Was in a step of those that gather, and has not come back yet.
    due: bool,
    /// Was in the last step and came back.
    back: bool,
    /// It was late: so many steps do not wait for it, and twice as many when it is late again.
    passed_over: u32,
    late: u32,
    /// Steps without it since it was fed last; `None` before that.
    steps_idle: Option<u32>,
    lap: Lap,
    /// Rows of known tokens end here, guesses begin behind the first row of the lap.
    known_until: usize,
    lap_from: usize,
}

impl Session {
    /// It takes part in the steps of those that gather. An open session alone changes nothing for others.
    fn takes_part(&self) -> bool {
        self.gathers && self.steps_idle.is_some_and(|steps| steps < IDLE_STEPS)
    }

    fn end(&self) -> usize {
        self.computed + self.waiting
    }

    /// Forgets what lies from `from` on, and the lap begins there.
    fn begin(&mut self, slot: usize, lap: Lap, from: usize) -> Fed {
        if lap > self.lap {
            (self.lap, self.lap_from) = (lap, from);
        }
        let end = self.end().min(from);
        let cut_to = (from < self.computed).then_some(from);
        self.computed = self.computed.min(from);
        self.waiting = end - self.computed;
        self.known_until = self.known_until.min(end);
        Fed { slot, waiting_kept: self.waiting, cut_to }
    }

    /// Rows of known tokens that wait.
    fn known(&self) -> usize {
        self.known_until.saturating_sub(self.computed)
    }

    /// What goes into one step: the token that a lap begins with alone, since a lap is as long as that takes.
    fn rows_at_once(&self, guesses: usize) -> usize {
        let most = match self.known() {
            0 if self.computed == self.lap_from => 1,
            0 => guesses,
            known => known,
        };
        self.waiting.min(most)
    }
}

#[derive(Debug)]
pub struct Spans {
    slots: Vec<Option<Session>>,
    context: usize,
    clock: u64,
    part: Part,
    /// Steps in a row after which as many sessions waited as were taken.
    crowded: u32,
}

impl Spans {
    /// `context`: most rows of a session.
    pub fn new(slots: usize, context: usize, part: Part) -> Self {
        Self { slots: (0..slots).map(|_| None).collect(), context, clock: 0, part, crowded: 0 }
    }

    /// Sessions that decode in one step. If each step took all that wait, sessions would gather and go round together: one
    /// stage would compute and the others wait for it. A stage takes its share of them, so that all compute at once; one that
    /// is slower than the others, so that sessions pile up before it, takes more. Where the stages share their cores only
    /// one of them can compute at a time, and all sessions in one step cost the least: there they gather.
    fn sessions_at_once(&self) -> usize {
        let open = self.open_count();
        let mut waiting = self.slots.iter().flatten().filter(|session| session.waiting > 0);
        if waiting.clone().next().is_some() && waiting.all(|session| session.gathers) {
            return open;
        }
        let share = (open * self.part.layers).div_ceil(self.part.of.max(1)).max(1);
        share << (self.crowded / CROWDED_STEPS).min(8)
    }

    /// The lowest free slot, for a new session.
    pub fn open(&mut self, id: u64) -> Option<usize> {
        let slot = self.slots.iter().position(Option::is_none)?;
        self.slots[slot] = Some(Session {
            id,
            computed: 0,
            waiting: 0,
            order: 0,
            gathers: false,
            due: false,
            back: false,
            passed_over: 0,
            late: 0,
            steps_idle: None,
            lap: Lap::default(),
            known_until: 0,
            lap_from: 0,
        });
        Some(slot)
    }

    /// Whether the session's next steps wait for the others that gather.
    pub fn gather(&mut self, id: u64, gathers: bool) {
        let Some(slot) = self.slot(id) else { return };
        if let Some(session) = self.slots[slot].as_mut() {
            session.gathers = gathers;
            session.due &= gathers;
        }
    }

    /// All that waits to be computed are sessions that gather, and some of them are still on their way. The first stage
    /// waits for all of them; were others to do so, stages would wait for each other. They keep together what
    /// comes from one step.
    pub fn gathering(&self) -> bool {
        let sessions = || self.slots.iter().flatten();
        let may_wait = |session: &Session| session.gathers && session.known() <= DECODE_ROWS_MAX;
        sessions().filter(|session| session.waiting > 0).all(may_wait)
            && sessions().any(|session| session.due)
            && (self.part.is_first || sessions().any(|session| session.back && session.waiting > 0))
    }

    /// Whether sessions of all steps are waited for, or only those of one.
    pub fn gathers_all(&self) -> bool {
        self.part.is_first
    }

    /// Whether the session shares all cores with others: then each row costs time, and a guess more than it may bring.
    pub fn is_crowded(&self, id: u64) -> bool {
        let gathering = || self.slots.iter().flatten().filter(|session| session.takes_part());
        gathering().any(|session| session.id == id) && gathering().count() > 1
    }

    /// Those that have not come are not waited for, and not in the steps that follow.
    pub fn stop_gathering(&mut self) {
        for session in self.slots.iter_mut().flatten().filter(|session| session.due) {
            session.due = false;
            session.late = (session.late * 2).clamp(PASSED_OVER_MIN, PASSED_OVER_MAX);
            session.passed_over = session.late;
        }
    }

    pub fn close(&mut self, id: u64) -> Option<usize> {
        let slot = self.slot(id)?;
        self.slots[slot] = None;
        Some(slot)
    }

    pub fn slot(&self, id: u64) -> Option<usize> {
        self.slots.iter().position(|session| session.as_ref().is_some_and(|session| session.id == id))
    }

    pub fn id(&self, slot: usize) -> Option<u64> {
        self.slots.get(slot)?.as_ref().map(|session| session.id)
    }

    /// Rows of a slot that were computed.
    pub fn computed_rows(&self, slot: usize) -> usize {
        self.slots.get(slot).and_then(Option::as_ref).map_or(0, |session| session.computed)
    }

    /// Nothing was fed to the session in this slot yet.
    pub fn is_fresh(&self, slot: usize) -> bool {
        let session = self.slots.get(slot).and_then(Option::as_ref);
        session.is_some_and(|session| session.computed + session.waiting == 0)
    }

    /// The session in this slot got cells for so many rows; it was fresh.
    pub fn filled(&mut self, slot: usize, rows: usize) {
        if let Some(session) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            session.computed = rows;
        }
    }

    /// Nothing waits to be computed.
    pub fn idle(&self) -> bool {
        self.slots.iter().flatten().all(|session| session.waiting == 0)
    }

    /// # Errors
    /// See [`FeedError`]; nothing changes then.
    pub fn feed(&mut self, id: u64, lap: Lap, from: usize, rows: usize) -> Result<Fed, FeedError> {
        let slot = self.slot(id).ok_or(FeedError::NoSession)?;
        let context = self.context;
        let session = self.slots[slot].as_mut().ok_or(FeedError::NoSession)?;
        if lap < session.lap {
            return Err(FeedError::Old);
        }
        let end = session.end();
        if from > end {
            return Err(FeedError::Gap { from, end });
        }
        if from.saturating_add(rows) > context {
            return Err(FeedError::TooMany(context));
        }
        let fed = session.begin(slot, lap, from);
        session.back |= std::mem::take(&mut session.due);
        session.steps_idle = Some(0);
        if fed.waiting_kept == 0 {
            self.clock += 1;
            session.order = self.clock;
        }
        session.waiting += rows;
        if lap.is_known() {
            session.known_until = from + rows;
        }
        Ok(fed)
    }

    /// At the last stage: a lap begins with the token at `from`. What waits from there on is not computed, and what still
    /// comes of the laps before is not taken.
    pub fn begin_lap(&mut self, slot: usize, number: u32, from: usize) -> Option<Fed> {
        let session = self.slots.get_mut(slot)?.as_mut()?;
        let lap = Lap { number, ..session.lap };
        Some(session.begin(slot, lap, from))
    }

    /// The latest lap that was fed.
    pub fn lap(&self, slot: usize) -> Lap {
        self.slots.get(slot).and_then(Option::as_ref).map_or(Lap::default(), |session| session.lap)
    }

    /// So many stages of this size hold the model.
    pub fn stages(&self) -> f64 {
        self.part.of as f64 / self.part.layers.max(1) as f64
    }

    /// Open sessions.
    pub fn open_count(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// The next step, ascending by slot: short waits, the longest ones first, and prefill within the limits. All sessions
    /// together have `guesses` in it, or one each.
    pub fn plan(&self, limits: StepLimits, guesses: usize) -> Vec<Chunk> {
        let mut take = vec![0; self.slots.len()];
        let mut decoding = 0;
        let mut prompts = Vec::new();
        let sessions = self.slots.iter().enumerate().filter_map(|(slot, session)| Some((slot, session.as_ref()?)));
        let mut waiting: Vec<(usize, &Session)> = sessions.filter(|(_, session)| session.waiting > 0).collect();
        waiting.sort_by_key(|(_, session)| session.order);
        let (short, long): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(_, session)| session.known() <= DECODE_ROWS_MAX);
        let guesses = (guesses / self.open_count().max(1)).max(1);
        let most = self.sessions_at_once();
        // llama.cpp computes neighbouring slots in one go: those of one group go together.
        let mut groups: Vec<usize> = short.iter().map(|(slot, _)| slot / most).collect();
        groups.dedup();
        let by_group = groups.iter().flat_map(|group| short.iter().filter(move |(slot, _)| slot / most == *group));
        let mut taken = 0;
        for (slot, session) in by_group {
            let rows = session.rows_at_once(guesses);
            if taken < most && take[*slot] == 0 && decoding + rows <= limits.batch {
                take[*slot] = rows;
                decoding += rows;
                taken += 1;
            }
        }
        for (slot, session) in long {
            prompts.push(Prompt { slot, pending: session.known(), order: session.order });
        }
        let room = limits.prefill_room(decoding, prompts.len());
        share_prefill(prompts, room, &mut take);
        let from = |slot: usize| self.slots[slot].as_ref().map_or(0, |session| session.computed);
        let chunks = take.into_iter().enumerate().filter(|(_, rows)| *rows > 0);
        chunks.map(|(slot, rows)| Chunk { slot, from: from(slot), rows }).collect()
    }

    /// The step was computed.
    pub fn computed(&mut self, chunks: &[Chunk]) {
        let waiting = self.slots.iter().flatten().filter(|session| session.waiting > 0).count();
        let left = waiting.saturating_sub(chunks.len());
        self.crowded = if left >= self.sessions_at_once() { self.crowded + 1 } else { self.crowded.saturating_sub(1) };
        for session in self.slots.iter_mut().flatten() {
            session.back = false;
            session.due &= self.part.is_first;
            session.passed_over = session.passed_over.saturating_sub(1);
            session.steps_idle = session.steps_idle.map(|steps| steps.saturating_add(1));
        }
        for chunk in chunks {
            if let Some(session) = self.slots[chunk.slot].as_mut() {
                session.computed += chunk.rows;
                session.waiting -= chunk.rows;
                session.due = session.gathers
                    && session.passed_over == 0
                    && session.waiting == 0
                    && chunk.rows <= DECODE_ROWS_MAX;
                session.steps_idle = Some(0);
                // Guesses that are left wait behind everybody who waits already.
                if session.waiting > 0 && session.known() == 0 {
                    self.clock += 1;
                    session.order = self.clock;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: StepLimits = StepLimits { batch: 64, prefill: 64, prefill_amid_decoding: 20 };

    const WHOLE: Part = Part { is_first: true, layers: 4, of: 4 };

    #[test]
    fn sessions_do_not_go_round_together_unless_the_stage_is_the_slowest() {
        let mut spans = Spans::new(8, 1_000, Part { is_first: true, layers: 10, of: 30 });
        (1..9).for_each(|id| assert!(spans.open(id).is_some()));
        for id in 1..9 {
            spans.feed(id, Lap::default(), 0, 1).unwrap();
        }
        let mut groups = Vec::new();
        while !spans.idle() {
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            groups.push(chunks.iter().map(|chunk| chunk.slot).collect::<Vec<_>>());
            spans.computed(&chunks);
        }
        assert_eq!(groups, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
        // All come back at once, again and again: nobody else holds them up.
        let mut most = 0;
        for position in 1..20 {
            for id in 1..9 {
                spans.feed(id, Lap::default(), position, 1).unwrap();
            }
            while !spans.idle() {
                let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
                most = most.max(chunks.len());
                spans.computed(&chunks);
            }
        }
        assert!(most >= 3);
    }

    #[test]
    fn sessions_whose_stages_share_cores_wait_for_each_other() {
        let mut spans = Spans::new(4, 1_000, Part { is_first: true, layers: 10, of: 30 });
        for id in 1..4 {
            spans.open(id).unwrap();
            spans.gather(id, true);
            spans.feed(id, Lap::default(), 0, 1).unwrap();
        }
        assert!(!spans.gathering(), "nobody is due before the first step");
        assert!(spans.is_crowded(1) && !spans.is_crowded(4));
        let step = |spans: &mut Spans| {
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            spans.computed(&chunks);
            chunks.len()
        };
        assert_eq!(step(&mut spans), 3, "all that wait, whatever the stage's share");
        spans.feed(1, Lap::default(), 1, 1).unwrap();
        spans.feed(2, Lap::default(), 1, 1).unwrap();
        assert!(spans.gathering());
        spans.feed(3, Lap::default(), 1, 1).unwrap();
        assert!(!spans.gathering());
        assert_eq!(step(&mut spans), 3);

        spans.feed(1, Lap::default(), 2, 1).unwrap();
        spans.close(2);
        spans.stop_gathering();
        assert!(!spans.gathering(), "one has ended, the other is late");
        assert_eq!(step(&mut spans), 1);
        spans.feed(3, Lap::default(), 2, 1).unwrap();
        assert!(spans.gathering(), "late once, it waits for the others all the same");
        spans.gather(1, false);
        assert!(!spans.gathering(), "one stage moved to another machine");
        spans.gather(1, true);
        spans.feed(1, Lap::default(), 3, 1).unwrap();
        assert_eq!(step(&mut spans), 2);
        // Nobody waits for it for a while.
        let mut waited_for = 0;
        for position in 4..40 {
            spans.feed(1, Lap::default(), position, 1).unwrap();
            waited_for += usize::from(spans.gathering());
            spans.stop_gathering();
            step(&mut spans);
            spans.feed(3, Lap::default(), position - 1, 1).unwrap();
            spans.stop_gathering();
            step(&mut spans);
        }
        assert!(waited_for <= 4, "{waited_for} of 36 steps waited for one that is always late");

        spans.open(4).unwrap();
        spans.feed(4, Lap::default(), 0, 40).unwrap();
        assert!(!spans.gathering(), "a prompt waits for nobody");
    }

    #[test]
    fn an_open_session_alone_changes_nothing_for_others() {
        let mut spans = Spans::new(4, 1_000, Part { is_first: true, layers: 10, of: 30 });
        for id in 1..4 {
            spans.open(id).unwrap();
        }
        spans.gather(3, true);
        assert!(!spans.is_crowded(3));
        for id in 1..3 {
            spans.feed(id, Lap::default(), 0, 1).unwrap();
        }
        assert_eq!(spans.plan(LIMITS, GUESSES_STEP_MAX).len(), 1, "the stage's share");
        spans.gather(1, true);
        assert!(!spans.is_crowded(1), "the other one was never fed");
        spans.feed(3, Lap::default(), 0, 1).unwrap();
        assert!(spans.is_crowded(1));
    }

    #[test]
    fn later_stages_wait_only_for_what_comes_from_one_step() {
        let mut spans = Spans::new(4, 1_000, Part { is_first: false, layers: 10, of: 30 });
        let feed = |spans: &mut Spans, ids: std::ops::Range<u64>, from: usize| {
            for id in ids {
                spans.feed(id, Lap::default(), from, 1).unwrap();
            }
        };
        let step = |spans: &mut Spans| {
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            spans.computed(&chunks);
            chunks.len()
        };
        for id in 1..5 {
            spans.open(id).unwrap();
            spans.gather(id, true);
        }
        feed(&mut spans, 1..3, 0);
        assert_eq!(step(&mut spans), 2);
        feed(&mut spans, 3..5, 0);
        assert!(!spans.gathering(), "the two before may wait for these at the first stage");
        assert_eq!(step(&mut spans), 2);
        feed(&mut spans, 1..4, 1);
        assert!(spans.gathering(), "4 was in a step with 3, which is here");
        feed(&mut spans, 4..5, 1);
        assert!(!spans.gathering());
        assert_eq!(step(&mut spans), 4);
    }

    #[test]
    fn rows_are_computed_in_order_and_replaced_from_where_they_are_fed_again() {
        let mut spans = Spans::new(2, 100, WHOLE);
        assert_eq!((spans.open(7), spans.open(8), spans.open(9)), (Some(0), Some(1), None));
        assert_eq!(spans.feed(7, Lap::default(), 0, 30), Ok(Fed { slot: 0, waiting_kept: 0, cut_to: None }));
        assert_eq!(spans.feed(7, Lap::default(), 31, 1), Err(FeedError::Gap { from: 31, end: 30 }));
        assert_eq!(spans.feed(7, Lap::default(), 20, 10), Ok(Fed { slot: 0, waiting_kept: 20, cut_to: None }));
        let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
        assert_eq!(chunks, [Chunk { slot: 0, from: 0, rows: 30 }]);
        spans.computed(&chunks);
        assert_eq!(spans.feed(7, Lap::default(), 28, 3), Ok(Fed { slot: 0, waiting_kept: 0, cut_to: Some(28) }));
        assert_eq!(spans.plan(LIMITS, GUESSES_STEP_MAX), [Chunk { slot: 0, from: 28, rows: 3 }]);
        assert_eq!(spans.feed(7, Lap::default(), 31, 70), Err(FeedError::TooMany(100)));
        assert_eq!(spans.feed(1, Lap::default(), 0, 1), Err(FeedError::NoSession));
        assert_eq!(spans.close(7), Some(0));
        assert!(spans.idle());
        assert_eq!(spans.open(10), Some(0));
    }

    #[test]
    fn a_session_goes_on_behind_the_cells_that_it_got() {
        let mut spans = Spans::new(1, 100, WHOLE);
        spans.open(7).unwrap();
        assert!(spans.is_fresh(0));
        spans.filled(0, 40);
        assert!(!spans.is_fresh(0) && spans.idle());
        assert_eq!(spans.feed(7, Lap::default(), 41, 1), Err(FeedError::Gap { from: 41, end: 40 }));
        assert_eq!(spans.feed(7, Lap::default(), 38, 3), Ok(Fed { slot: 0, waiting_kept: 0, cut_to: Some(38) }));
        assert_eq!(spans.plan(LIMITS, GUESSES_STEP_MAX), [Chunk { slot: 0, from: 38, rows: 3 }]);
        assert_eq!(spans.computed_rows(0), 38);
    }

    #[test]
    fn tokens_go_ahead_of_prompts_and_prompts_all_advance() {
        let mut spans = Spans::new(4, 1_000, WHOLE);
        (1..5).for_each(|id| assert!(spans.open(id).is_some()));
        spans.feed(1, Lap::default(), 0, 500).unwrap();
        spans.feed(2, Lap::default(), 0, 1).unwrap();
        spans.feed(3, Lap::default(), 0, 40).unwrap();
        spans.feed(4, Lap::default(), 0, 5).unwrap();
        let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
        let rows: Vec<_> = chunks.iter().map(|chunk| (chunk.slot, chunk.rows)).collect();
        assert_eq!(rows, [(0, 10), (1, 1), (2, 10), (3, 5)], "20 rows of prefill beside 6 of others");
    }

    const fn lap(number: u32) -> Lap {
        Lap { epoch: 1, number }
    }

    #[test]
    fn a_lap_begins_alone_and_takes_the_place_of_guesses_before_they_are_computed() {
        let mut spans = Spans::new(1, 1_000, WHOLE);
        spans.open(1).unwrap();
        let step = |spans: &mut Spans| {
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            spans.computed(&chunks);
            chunks.iter().map(|chunk| (chunk.from, chunk.rows)).collect::<Vec<_>>()
        };
        spans.feed(1, lap(0), 0, 30).unwrap();
        spans.feed(1, lap(1), 30, 41).unwrap();
        assert_eq!(spans.lap(0), lap(1));
        assert_eq!(step(&mut spans), [(0, 30)], "the prompt in one piece, though a lap began");
        assert_eq!(step(&mut spans), [(30, 1)]);
        assert_eq!(step(&mut spans), [(31, 8)]);
        spans.feed(1, lap(1), 71, 3).unwrap();
        assert_eq!(spans.feed(1, lap(2), 35, 5), Ok(Fed { slot: 0, waiting_kept: 0, cut_to: Some(35) }));
        assert_eq!(spans.feed(1, lap(1), 40, 1), Err(FeedError::Old));
        assert_eq!(step(&mut spans), [(35, 1)]);
        assert_eq!(step(&mut spans), [(36, 4)]);
        // The last stage knows by itself.
        spans.feed(1, lap(2), 40, 20).unwrap();
        step(&mut spans);
        assert_eq!(spans.begin_lap(0, 3, 42), Some(Fed { slot: 0, waiting_kept: 0, cut_to: Some(42) }));
        assert!(spans.idle());
        assert_eq!(spans.feed(1, lap(2), 60, 5), Err(FeedError::Old));
        assert!(spans.feed(1, lap(3), 42, 1).is_ok());
    }

    #[test]
    fn guesses_hold_up_no_other_session() {
        let mut spans = Spans::new(4, 1_000, WHOLE);
        for id in 1..5 {
            spans.open(id).unwrap();
            spans.feed(id, lap(1), 0, 1 + usize::from(id == 1) * 100).unwrap();
        }
        let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
        assert!(chunks.iter().map(|chunk| chunk.rows).eq([1; 4]), "the tokens of all laps: {chunks:?}");
        spans.computed(&chunks);
        for position in 1..20 {
            (2..5).for_each(|id| assert!(spans.feed(id, lap(1), position, 1).is_ok()));
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            assert!(chunks.iter().map(|chunk| chunk.rows).eq([2, 1, 1, 1]), "{chunks:?}");
            spans.computed(&chunks);
        }
        // In a stage that takes one session at a time they go by turns.
        let mut spans = Spans::new(2, 1_000, Part { is_first: false, layers: 1, of: 4 });
        for id in 1..3 {
            spans.open(id).unwrap();
            spans.feed(id, lap(1), 0, 30).unwrap();
        }
        let mut turns = Vec::new();
        for _ in 0..5 {
            let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
            turns.extend(chunks.iter().map(|chunk| chunk.slot));
            spans.computed(&chunks);
        }
        assert_eq!(turns, [0, 1, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn every_row_is_computed_once_in_order(feeds in prop::collection::vec((1_u64..4, 1_usize..60), 1..30)) {
            let mut spans = Spans::new(3, 10_000, Part { is_first: false, layers: 1, of: 2 });
            (1..4).for_each(|id| assert!(spans.open(id).is_some()));
            let (mut fed, mut computed) = ([0; 3], [0; 3]);
            let mut feeds = feeds.into_iter();
            loop {
                if let Some((id, rows)) = feeds.next() {
                    spans.feed(id, Lap::default(), fed[id as usize - 1], rows).unwrap();
                    fed[id as usize - 1] += rows;
                } else if spans.idle() {
                    break;
                }
                let chunks = spans.plan(LIMITS, GUESSES_STEP_MAX);
                prop_assert!(chunks.iter().map(|chunk| chunk.rows).sum::<usize>() <= LIMITS.batch);
                for chunk in &chunks {
                    prop_assert_eq!(chunk.from, computed[chunk.slot]);
                    computed[chunk.slot] += chunk.rows;
                }
                spans.computed(&chunks);
            }
            prop_assert_eq!(fed, computed);
        }
    }
}
