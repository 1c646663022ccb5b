//! One attempt at an answer over a chain of stages: opens its parts, feeds the prompt, and when a part is lost puts the
//! chain together anew around those that live, so that only what was lost is computed again.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::atomic::Ordering,
    task::Poll,
    time::{Duration, Instant},
};

use futures::future::join_all;
use opengrid_protocol::{
    Layers, NodeId, SessionId,
    limits::POSITIONS_MAX,
    pipeline::{Complaint, Hop, OpenPart, Order, PartId, PartState, Route},
    session::{Refusal, ToGateway},
};
use tokio::time::timeout;

use super::{
    answer::{ACCEPT_TIMEOUT, AnswerTask, Attempt, Progress},
    handover::Handover,
    laps::Laps,
    link::{LinkError, LinkSession},
    spares::Spares,
    standby::Standbys,
};
use crate::{
    chains::{self, ChainStage, Joins},
    pipeline::recovery,
    running::Listed,
};

/// How long a stage that was lost is passed over; one that was busy, or that another could not reach.
const AVOID: Duration = Duration::from_secs(10);
const AVOID_BUSY: Duration = Duration::from_secs(1);
/// One whose rows could not be used, for the rest of most answers.
const AVOID_BAD: Duration = Duration::from_secs(300);
/// Chains in a row that may fail without a new token.
const FRUITLESS_MAX: u32 = 6;
/// How long an answer that began waits for stages to come (back) before it is tried from its tokens anew.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A part that computes says how far it is within this time.
const REWIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// A part of the session at one stage.
pub(super) struct Part {
    pub stage: ChainStage,
    pub id: PartId,
    pub session: LinkSession,
    /// What it said of itself in this epoch.
    pub state: Option<PartState>,
    pub is_new: bool,
    pub accepted: bool,
    /// It said how far it is when it was opened.
    pub said: bool,
    /// It gets the cache of the part whose place it takes, and says how far it is then.
    pub awaits_cells: bool,
}

impl Part {
    /// Of one that was fed nothing.
    pub const NOTHING: PartState = PartState { have: 0, kept_from: 0, sent: 0, drew: false };
}

/// Why a part is given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is gone, or does not do its work.
    Dead,
    Busy,
    /// What it sent could not be used.
    Bad,
}

/// The chain and what is known of it.
pub(super) struct Run {
    pub epoch: u32,
    pub parts: Vec<Part>,
    pub avoid: HashMap<(NodeId, Layers), Instant>,
    /// Tokens known before the last ones came: rows below this position are true wherever they were computed.
    pub true_until: u32,
    pub running: bool,
    /// Tokens came since the chain was put together.
    flows: bool,
    /// Chains without a new token.
    fruitless: u32,
    /// The chain stood still and its parts are asked how far they are.
    probing: bool,
    laps: Laps,
    last_token: Instant,
    /// Whose messages come first.
    turn: usize,
    orphan_since: Option<Instant>,
    pub spares: Spares,
    pub handover: Handover,
    pub standbys: Standbys,
}

impl Run {
    /// Of an answer of which so many tokens are known.
    pub fn new(known: u32) -> Self {
        Self {
            epoch: 0,
            parts: Vec::new(),
            avoid: HashMap::new(),
            true_until: known,
            running: false,
            flows: false,
            fruitless: 0,
            probing: false,
            laps: Laps::default(),
            last_token: Instant::now(),
            turn: 0,
            orphan_since: None,
            spares: Spares::default(),
            handover: Handover::default(),
            standbys: Standbys::default(),
        }
    }
}

/// What to do after a message, or its absence.
pub(super) enum Next {
    Wait,
    /// These parts are lost (by position).
    Mend(Vec<(usize, Loss)>),
    /// This part leaves: another takes its place, and its cache.
    HandOver(PartId),
    End(Attempt),
}

impl AnswerTask {
    /// Runs the answer over a chain until it ends, or no chain can be had any more.
    pub(super) async fn attempt_chain(&mut self, progress: &mut Progress) -> Attempt {
        let mut run = Run::new(progress.tokens.len() as u32);
        let listed = self.placement.running.begin(self.session, &self.job.model);
        let mut busy = true;
        let (mut lost, mut leaves) = (Vec::new(), None);
        loop {
            for (at, loss) in std::mem::take(&mut lost) {
                busy &= loss == Loss::Busy;
                self.give_up(&mut run, at, loss);
            }
            run.parts.retain(|part| !run.avoid.contains_key(&(part.stage.node, part.stage.layers)));
            run.stays_after_all();
            if let Some(part) = leaves.take() {
                run.leave(part, AVOID);
            }
            if run.fruitless >= FRUITLESS_MAX {
                return Attempt::Failed { busy: false };
            }
            match self.assemble(&mut run, progress).await {
                Ok(failed) if failed.is_empty() => {}
                Ok(failed) => {
                    run.fruitless += 1;
                    for (stage, loss) in failed {
                        busy &= loss == Loss::Busy;
                        self.avoid(&mut run, stage, loss);
                    }
                    continue;
                }
                Err(()) if run.handover.is_under_way() => continue,
                Err(()) if progress.answered() == 0 => return Attempt::Failed { busy },
                Err(()) if run.orphan_since.get_or_insert_with(Instant::now).elapsed() > ORPHAN_PATIENCE => {
                    return Attempt::Failed { busy };
                }
                Err(()) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    run.avoid.clear();
                    continue;
                }
            }
            run.orphan_since = None;
            match self.follow_chain(&mut run, &listed, progress).await {
                Next::End(attempt) => return attempt,
                Next::Mend(which) => lost = which,
                Next::HandOver(part) => leaves = Some(part),
                Next::Wait => {}
            }
        }
    }

    fn give_up(&self, run: &mut Run, at: usize, loss: Loss) {
        let Some((stage, id)) = run.parts.get(at).map(|part| (part.stage, part.id)) else { return };
        // What it sent ahead is believed no more than what it sent.
        if loss == Loss::Bad {
            run.standbys.keep(|sender| sender != id);
        }
        tracing::debug!(worker = %stage.node.short(), layers = %stage.layers, "stage lost");
        self.avoid(run, stage, loss);
        self.placement.failed_over(loss == Loss::Busy);
    }

    fn avoid(&self, run: &mut Run, stage: ChainStage, loss: Loss) {
        let pause = match loss {
            Loss::Busy => AVOID_BUSY,
            Loss::Dead => AVOID,
            Loss::Bad => AVOID_BAD,
        };
        run.avoid.insert((stage.node, stage.layers), Instant::now() + pause);
        if loss != Loss::Busy {
            self.placement.suspect(stage.node);
        }
    }

    /// Chooses the chain, keeps the parts that are in it, opens the others and tells all of them their neighbours. Returns
    /// the stages that did not take it; an error where there is no chain.
    async fn assemble(&self, run: &mut Run, progress: &mut Progress) -> Result<Vec<(ChainStage, Loss)>, ()> {
        let now = Instant::now();
        run.avoid.retain(|_, until| *until > now);
        let (parts, avoid) = (&run.parts, &run.avoid);
        let joins = |node: NodeId, layers: Layers| match () {
            () if parts.iter().any(|part| (part.stage.node, part.stage.layers) == (node, layers)) => Joins::Has,
            () if !run.handover.is_under_way() && run.standbys.has(node, layers) => Joins::Prepared,
            () => Joins::Anew,
        };
        let avoided = |node: NodeId| avoid.keys().any(|(other, _)| *other == node);
        let chain =
            self.placement.chain(self.model, &progress.tokens, self.needs(progress), joins, avoided).ok_or(())?;
        run.epoch += 1;
        let mut prepared = Vec::new();
        (run.running, run.flows) = (false, false);
        run.spares = Spares::default();
        let hops: Vec<Hop> = chain
            .iter()
            .map(|stage| {
                let known =
                    run.parts.iter().find(|part| part.stage.node == stage.node && part.stage.layers == stage.layers);
                // One that takes over a cache must not begin with rows.
                let part = known.map(|part| part.id).or_else(|| {
                    if run.handover.is_under_way() {
                        return None;
                    }
                    let (id, session) = run.standbys.take(stage.node, stage.layers)?;
                    prepared.push(session);
                    Some(id)
                });
                Hop { node: stage.node, part: part.unwrap_or_else(|| PartId(rand::random())) }
            })
            .collect();
        let mut before: Vec<Part> = std::mem::take(&mut run.parts);
        let mut taken: Vec<Option<Part>> = hops
            .iter()
            .map(|hop| before.iter().position(|part| part.id == hop.part).map(|at| before.swap_remove(at)))
            .collect();
        // What is not in the chain any more ends here.
        drop(before);
        let count = hops.len();
        let epoch = run.epoch;
        let route =
            |at: usize| Route { epoch, previous: hops[(at + count - 1) % count].node, next: hops[(at + 1) % count] };
        let first_attempt = progress.attempts;
        let opened = join_all(chain.iter().zip(&mut taken).enumerate().map(|(at, (stage, living))| {
            let (living, route, progress) = (living.take(), route(at), &*progress);
            let session = SessionId(self.session.0.wrapping_add(first_attempt + at as u64));
            let (part, is_last) = (hops[at].part, at + 1 == count);
            async move {
                match living {
                    Some(part) => self.rewire(part, route).await,
                    None => self.open_part(*stage, session, part, route, is_last, progress).await,
                }
                .map_err(|loss| (*stage, loss))
            }
        }))
        .await;
        // Behind the openings, which take what they keep.
        drop(prepared);
        progress.attempts += count as u64;
        tracing::debug!(session = ?self.session, epoch, "orders and openings sent");
        let mut failed = Vec::new();
        for opened in opened {
            match opened {
                Ok(part) => run.parts.push(part),
                Err(loss) => failed.push(loss),
            }
        }
        run.standbys.keep(|sender| run.parts.iter().any(|part| part.id == sender));
        run.standbys
            .retire(|node, layers| run.parts.iter().any(|part| (part.stage.node, part.stage.layers) == (node, layers)));
        if failed.is_empty() {
            self.order_handover(run, progress).await;
        }
        Ok(failed)
    }

    async fn rewire(&self, mut part: Part, route: Route) -> Result<Part, Loss> {
        part.state = None;
        (part.is_new, part.awaits_cells) = (false, false);
        part.session.order(Order::Rewire(route)).await.map_err(|_| Loss::Dead)?;
        Ok(part)
    }

    async fn open_part(
        &self,
        stage: ChainStage,
        session: SessionId,
        id: PartId,
        route: Route,
        is_last: bool,
        progress: &Progress,
    ) -> Result<Part, Loss> {
        let link = self.placement.links.get(stage.node).await.map_err(|error| {
            tracing::debug!(worker = %stage.node.short(), %error, "no channel");
            Loss::Dead
        })?;
        let mut head = self.open(progress);
        head.session = session;
        let opening = OpenPart {
            session,
            part: id,
            model: self.model,
            layers: stage.layers,
            route,
            positions_max: self.needs(progress).tokens,
            head: is_last.then(|| Box::new(head)),
        };
        let session = link.open_part(opening).await.map_err(|error| match error {
            LinkError::Full => Loss::Busy,
            _ => Loss::Dead,
        })?;
        Ok(Part { stage, id, session, state: None, is_new: true, accepted: false, said: false, awaits_cells: false })
    }

    /// Starts the chain when every part has said how far it is, and follows it until it ends or breaks.
    async fn follow_chain(&mut self, run: &mut Run, listed: &Listed, progress: &mut Progress) -> Next {
        let mut deadline = Instant::now() + ACCEPT_TIMEOUT;
        if run.parts.iter().any(|part| !part.is_new) {
            deadline += REWIRE_TIMEOUT;
        }
        deadline += run.handover.patience();
        loop {
            let due = run.handover.due(run.running);
            if due.is_some_and(|due| due <= Instant::now())
                && let Some(next) = self.handover_due(run, progress).await
            {
                return next;
            }
            let until = due.map_or(deadline, |due| due.min(deadline));
            let patience = until.saturating_duration_since(Instant::now());
            // Whoever keeps talking does not stop the clock.
            let next = if patience.is_zero() { None } else { timeout(patience, self.next_message(run)).await.ok() };
            let before = progress.tokens.len();
            match next {
                Some((at, message)) if at == run.parts.len() => run.leaving_said(message.as_ref()),
                Some((at, message)) => match self.heard(run, at, message, progress).await {
                    Next::Wait => {}
                    next => return next,
                },
                None if deadline <= Instant::now() => return self.stood_still(run, progress),
                None => {}
            }
            if !run.running && run.parts.iter().all(|part| part.state.is_some()) {
                if let Some(next) = self.start(run, progress).await {
                    return next;
                }
                let chain: Vec<ChainStage> = run.parts.iter().map(|part| part.stage).collect();
                listed.runs_over(&chain, &self.placement.ways(self.model, &chain));
                deadline = Instant::now() + self.patience(run, progress);
                self.meet_first_spares(run, progress).await;
            } else if run.running && progress.tokens.len() > before {
                listed.advanced(progress.answered(), run.laps.last());
                deadline = Instant::now() + self.patience(run, progress);
                self.meet_spares(run, progress).await;
                self.advance_standbys(run).await;
            }
        }
    }

    /// The next message of a part; meanwhile standbys come in.
    async fn next_message(&self, run: &mut Run) -> (usize, Option<ToGateway>) {
        loop {
            tokio::select! {
                message = next_message(&mut run.parts, &mut run.handover, &mut run.turn) => return message,
                () = run.standbys.opened() => self.advance_standbys(run).await,
            }
        }
    }

    fn patience(&self, run: &Run, progress: &Progress) -> Duration {
        let chain: Vec<ChainStage> = run.parts.iter().map(|part| part.stage).collect();
        let (first, token) = chains::patience(&chain, progress.tokens.len());
        if !run.flows {
            return first;
        }
        let slowest = run.laps.slowest();
        token.max(slowest * 4)
    }

    async fn heard(&mut self, run: &mut Run, at: usize, message: Option<ToGateway>, progress: &mut Progress) -> Next {
        let (worker, is_last) = (run.parts[at].stage.node, at + 1 == run.parts.len());
        let lost = |loss| Next::Mend(vec![(at, loss)]);
        let Some(message) = message else { return lost(Loss::Dead) };
        match message {
            ToGateway::Heartbeat => Next::Wait,
            ToGateway::Accepted { .. } if !run.parts[at].accepted => {
                run.parts[at].accepted = true;
                Next::Wait
            }
            ToGateway::Rewired { state, .. } if !is_sound(&state, is_last, progress.tokens.len()) => {
                self.placement.report(worker, super::Fault::WrongTokens);
                lost(Loss::Bad)
            }
            ToGateway::Rewired { epoch, state, .. } => {
                let part = &mut run.parts[at];
                let is_first = !std::mem::replace(&mut part.said, true);
                // One that takes over says more once it has the cells.
                let is_whole = !(is_first && part.awaits_cells);
                if epoch == run.epoch && !run.running && is_whole {
                    part.state = Some(state);
                }
                Next::Wait
            }
            ToGateway::Tokens { from, tokens, .. } if is_last => {
                let known = progress.tokens.len() as u32;
                match self.take_tokens(worker, from, tokens, progress).await {
                    Ok(()) => self.note_lap(run, known),
                    Err(Attempt::Failed { .. }) => return lost(Loss::Bad),
                    Err(attempt) => return Next::End(attempt),
                }
                Next::Wait
            }
            ToGateway::Finished { finish, usage, .. } if is_last => {
                match self.take_finish(worker, finish, usage, progress).await {
                    Attempt::Failed { .. } => lost(Loss::Bad),
                    attempt => Next::End(attempt),
                }
            }
            ToGateway::Refused { why: Refusal::Busy | Refusal::Draining, .. } => lost(Loss::Busy),
            ToGateway::Refused { why, .. } => match self.refused(worker, why, progress) {
                Attempt::Hopeless(error) => Next::End(Attempt::Hopeless(error)),
                _ => lost(Loss::Dead),
            },
            ToGateway::Leaves { .. } => {
                run.handover.plan(run.parts[at].id);
                Next::Wait
            }
            ToGateway::Complains { epoch, complaint, .. } => self.complained(run, at, epoch, complaint),
            _ => {
                self.placement.report(worker, super::Fault::WrongTokens);
                lost(Loss::Bad)
            }
        }
    }

    fn note_lap(&self, run: &mut Run, known: u32) {
        let lap = run.last_token.elapsed();
        run.last_token = Instant::now();
        run.true_until = known;
        run.fruitless = 0;
        if !run.flows {
            tracing::debug!(session = ?self.session, epoch = run.epoch, "chain flows");
        }
        if run.flows {
            run.laps.note(lap);
        }
        run.flows = true;
    }

    /// A part cannot go on. Whoever is to blame, it or its neighbour, the neighbour goes first; when the same part complains
    /// again, of another, it goes itself.
    fn complained(&self, run: &mut Run, at: usize, epoch: u32, complaint: Complaint) -> Next {
        if epoch != run.epoch {
            return Next::Wait;
        }
        run.fruitless += 1;
        let count = run.parts.len();
        let neighbour = match complaint {
            Complaint::NextUnreachable => (at + 1) % count,
            Complaint::BadInput | Complaint::CannotHandOver => (at + count - 1) % count,
        };
        let culprit = if run.fruitless > 2 { at } else { neighbour };
        let loss = if complaint == Complaint::BadInput { Loss::Bad } else { Loss::Dead };
        tracing::debug!(
            from = %run.parts[at].stage.node.short(), of = %run.parts[neighbour].stage.node.short(), ?complaint,
            "a stage complains"
        );
        Next::Mend(vec![(culprit, loss)])
    }

    /// Nothing came in time.
    fn stood_still(&self, run: &mut Run, progress: &Progress) -> Next {
        run.fruitless += 1;
        if !run.running {
            let silent = run.parts.iter().enumerate().filter(|(_, part)| part.state.is_none());
            return Next::Mend(silent.map(|(at, _)| (at, Loss::Dead)).collect());
        }
        tracing::debug!(known = progress.tokens.len(), "the chain stands still: asking its stages how far they are");
        run.probing = true;
        Next::Mend(Vec::new())
    }

    /// Tells every part what to keep and to send, and feeds what is missing. `Some` where the chain cannot be started.
    async fn start(&mut self, run: &mut Run, progress: &mut Progress) -> Option<Next> {
        let states: Vec<PartState> = run.parts.iter().filter_map(|part| part.state).collect();
        let known = progress.tokens.len() as u32;
        if std::mem::take(&mut run.probing)
            && let Some(at) = recovery::stalled(&states, known)
        {
            return Some(Next::Mend(vec![(at, Loss::Dead)]));
        }
        let head = run.parts.last()?;
        let (worker, drew) = (head.stage.node, head.state.is_some_and(|state| state.drew));
        let chain: Vec<ChainStage> = run.parts.iter().map(|part| part.stage).collect();
        if run.parts.iter().any(|part| part.is_new) {
            self.accepted_by(worker, chains::class_of(&chain), progress).await;
        }
        let recovery = recovery::plan(&states, run.true_until);
        tracing::debug!(session = ?self.session, epoch = run.epoch, ?recovery, "chain starts");
        let end = if drew { known - 1 } else { known };
        if progress.answered() > 0 {
            let again = recovery.parts.iter().map(|part| u64::from(end.saturating_sub(part.keep))).sum();
            self.placement.counters.rows_again.fetch_add(again, Ordering::Relaxed);
        }
        let mut orders: Vec<(usize, Order)> = Vec::new();
        for (at, restart) in recovery.parts.iter().enumerate().rev() {
            orders.push((at, Order::Start { keep: restart.keep, send_from: restart.send_from }));
        }
        if recovery.feed_from < end {
            let tokens = progress.tokens[recovery.feed_from as usize..end as usize].to_vec();
            orders.push((0, Order::Feed { from: recovery.feed_from, tokens }));
        }
        if drew {
            orders.push((run.parts.len() - 1, Order::Again));
        }
        for (at, order) in orders {
            if run.parts[at].session.order(order).await.is_err() {
                return Some(Next::Mend(vec![(at, Loss::Dead)]));
            }
        }
        run.handover.is_done();
        run.running = true;
        run.last_token = Instant::now();
        None
    }
}

/// Whether a part can be so far, in a session of which so many tokens are known. Guesses may be ahead of them, except at
/// the last part: it drew no more than it told.
fn is_sound(state: &PartState, is_last: bool, known: usize) -> bool {
    let drew_what_is_known = is_last && (state.have as usize) < known;
    [state.have, state.kept_from, state.sent].iter().all(|position| *position <= POSITIONS_MAX)
        && (!state.drew || drew_what_is_known)
}

/// The next message of any part, in turn, or that its channel closed.
async fn next_message(parts: &mut [Part], handover: &mut Handover, turn: &mut usize) -> (usize, Option<ToGateway>) {
    let count = parts.len();
    poll_fn(|context| {
        for at in (*turn..*turn + count).map(|at| at % count) {
            if let Poll::Ready(message) = parts[at].session.messages.poll_recv(context) {
                *turn = at + 1;
                return Poll::Ready((at, message));
            }
        }
        if let Some(leaving) = handover.leaving()
            && let Poll::Ready(message) = leaving.session.messages.poll_recv(context)
        {
            return Poll::Ready((count, message));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_claims_what_cannot_be_is_not_believed() {
        let state = |have, drew| PartState { have, kept_from: 0, sent: 0, drew };
        assert!(is_sound(&state(0, false), false, 1) && is_sound(&state(60, false), false, 50), "guesses are ahead");
        assert!(is_sound(&state(49, true), true, 50));
        assert!(!is_sound(&state(50, true), true, 50), "it drew what it did not tell");
        assert!(!is_sound(&state(10, true), false, 50), "only the last part draws");
        assert!(!is_sound(&state(u32::MAX, false), false, 50));
        assert!(!is_sound(&PartState { sent: u32::MAX, ..state(5, false) }, false, 50));
        assert!(!is_sound(&PartState { kept_from: POSITIONS_MAX + 1, ..state(5, false) }, true, 50));
    }
}
