//! A stage that leaves while a session runs over it: the part that takes its place gets its cache, so that nothing is
//! computed again. Whatever goes wrong, the chain goes on without the cache.

use std::time::{Duration, Instant};

use opengrid_protocol::{
    NodeId,
    pipeline::{Complaint, Hop, Order, PartId},
    session::ToGateway,
};

use super::{
    answer::{AnswerTask, Progress},
    chain::{Next, Part, Run},
};
use crate::chains::{ChainStage, Joins};

/// While the chain still runs, channels to the one that comes in are opened for so long.
const MEET: Duration = Duration::from_millis(300);
/// How often one that could come in is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Hand-overs that one answer begins at most, so that a stage that leaves again and again moves it no more.
const TRIES_MAX: u32 = 16;
/// A cache that is not there after this time, and the time that computing it takes, is not waited for.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The hand-overs of one answer.
#[derive(Default)]
pub(super) struct Handover {
    planned: Vec<Planned>,
    under_way: Option<UnderWay>,
    tries: u32,
}

/// A part that leaves, and still runs.
struct Planned {
    part: PartId,
    /// When to look after it.
    at: Instant,
    /// Who takes its place, and was told to meet the others.
    heir: Option<NodeId>,
}

struct UnderWay {
    part: Part,
    /// It drew tokens that nobody took: it knows another text than the gateway.
    drew_on: bool,
    heir: Option<PartId>,
    until: Instant,
}

impl Handover {
    /// A part said that it leaves.
    pub fn plan(&mut self, part: PartId) {
        if self.tries < TRIES_MAX && self.planned.iter().all(|planned| planned.part != part) {
            self.planned.push(Planned { part, at: Instant::now(), heir: None });
        }
    }

    /// When there is something to do.
    pub fn due(&self, running: bool) -> Option<Instant> {
        let planned = self.planned.iter().map(|planned| planned.at).filter(|_| running);
        planned.chain(self.under_way.iter().map(|under_way| under_way.until)).min()
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// How long a cache is waited for.
    pub fn patience(&self) -> Duration {
        self.under_way.as_ref().map_or(Duration::ZERO, |it| it.until.saturating_duration_since(Instant::now()))
    }

    /// The part whose cache is on its way.
    pub fn leaving(&mut self) -> Option<&mut Part> {
        self.under_way.as_mut().map(|under_way| &mut under_way.part)
    }

    /// The chain goes on: the part that left ends.
    pub fn is_done(&mut self) {
        self.under_way = None;
    }
}

impl Run {
    fn at(&self, part: PartId) -> Option<usize> {
        self.parts.iter().position(|other| other.id == part)
    }

    /// Takes a part out of the chain; its session stays open until another has its cache.
    pub fn leave(&mut self, part: PartId, avoid: Duration) {
        let Some(at) = self.at(part) else { return };
        let part = self.parts.remove(at);
        self.avoid.insert((part.stage.node, part.stage.layers), Instant::now() + avoid);
        self.handover.tries += 1;
        self.handover.under_way = Some(UnderWay { part, drew_on: false, heir: None, until: Instant::now() + PATIENCE });
    }

    /// The chain could not be put together without it, or broke meanwhile. It has all that it had: it comes back.
    pub fn stays_after_all(&mut self) {
        let Some(UnderWay { part, drew_on, heir, .. }) = self.handover.under_way.take() else { return };
        // Where the chain was put together only in part, the heir has no name yet.
        let is_heir =
            |other: &Part| Some(other.id) == heir || (other.is_new && other.stage.layers == part.stage.layers);
        self.parts.retain(|other| !is_heir(other));
        if drew_on {
            return;
        }
        self.avoid.remove(&(part.stage.node, part.stage.layers));
        self.handover.plan(part.id);
        if let Some(planned) = self.handover.planned.last_mut() {
            planned.at = Instant::now() + LOOK_AGAIN;
        }
        self.parts.push(part);
    }

    /// From the part that leaves: all that matters is that its cache does not come.
    pub fn leaving_said(&mut self, message: Option<&ToGateway>) {
        if let (Some(ToGateway::Tokens { .. } | ToGateway::Finished { .. }), Some(under_way)) =
            (message, &mut self.handover.under_way)
        {
            under_way.drew_on = true;
        }
        let cannot = matches!(
            message,
            None | Some(ToGateway::Refused { .. } | ToGateway::Complains { complaint: Complaint::CannotHandOver, .. })
        );
        if cannot {
            self.nothing_comes();
        }
    }

    /// The chain is mended as after any other loss.
    fn nothing_comes(&mut self) {
        let Some(UnderWay { heir, .. }) = self.handover.under_way.take() else { return };
        let Some(heir) = heir.and_then(|heir| self.at(heir)).map(|at| &mut self.parts[at]) else { return };
        tracing::debug!(worker = %heir.stage.node.short(), "no cache comes");
        heir.awaits_cells = false;
        if heir.said {
            heir.state.get_or_insert(Part::NOTHING);
        }
    }
}

impl AnswerTask {
    /// Who would take the place of a part, all others staying.
    fn heir(&self, run: &Run, at: usize, progress: &Progress) -> Option<ChainStage> {
        let leaves = run.parts[at].stage;
        let has = |node, layers| {
            let stays = |part: &Part| (part.stage.node, part.stage.layers) == (node, layers);
            if node != leaves.node && run.parts.iter().any(stays) { Joins::Has } else { Joins::Anew }
        };
        let avoided = |node| node == leaves.node || run.avoid.keys().any(|(other, _)| *other == node);
        let chain = self.placement.chain(self.model, &progress.tokens, self.needs(progress), has, avoided)?;
        let heir = *chain.get(at)?;
        let same = chain.iter().zip(&run.parts).enumerate();
        let others_stay = chain.len() == run.parts.len()
            && same
                .filter(|(other, _)| *other != at)
                .all(|(_, (stage, part))| (stage.node, stage.layers) == (part.stage.node, part.stage.layers));
        (others_stay && is_alike(&heir, &leaves)).then_some(heir)
    }

    /// What is to be done now. `Some` where the chain is to be put together anew.
    pub(super) async fn handover_due(&self, run: &mut Run, progress: &Progress) -> Option<Next> {
        let now = Instant::now();
        if run.handover.under_way.as_ref().is_some_and(|under_way| under_way.until <= now) {
            tracing::debug!(session = ?self.session, "the cache takes too long");
            run.nothing_comes();
            return None;
        }
        let Run { handover, parts, .. } = run;
        handover.planned.retain(|planned| parts.iter().any(|part| part.id == planned.part));
        let due = run.handover.planned.iter().position(|planned| planned.at <= now)?;
        let (part, met) = (run.handover.planned[due].part, run.handover.planned[due].heir);
        let at = run.at(part)?;
        let heir = self.heir(run, at, progress);
        if let Some(heir) = heir.filter(|heir| met == Some(heir.node)) {
            tracing::debug!(session = ?self.session, from = %run.parts[at].stage.node.short(), to = %heir.node.short(),
                layers = %heir.layers, "a stage leaves");
            run.handover.planned.remove(due);
            return Some(Next::HandOver(part));
        }
        let planned = &mut run.handover.planned[due];
        planned.heir = heir.map(|heir| heir.node);
        planned.at = now + if heir.is_some() { MEET } else { LOOK_AGAIN };
        if let Some(heir) = heir {
            self.placement.links.meet(heir.node);
            let before = (at + run.parts.len() - 1) % run.parts.len();
            for sender in [at, before] {
                // That a channel is closed shows elsewhere.
                let _told = run.parts[sender].session.order(Order::Meet(vec![heir.node])).await.is_ok();
            }
        }
        None
    }

    /// The chain was put together without the part that leaves: where another has its layers now, it gets the cache.
    pub(super) async fn order_handover(&self, run: &mut Run, progress: &Progress) {
        let Some(under_way) = &mut run.handover.under_way else { return };
        let leaves = under_way.part.stage;
        let alike = |part: &Part| part.is_new && is_alike(&part.stage, &leaves);
        let Some(at) = run.parts.iter().position(alike) else { return run.handover.is_done() };
        let is_last = at + 1 == run.parts.len();
        let heir = &mut run.parts[at];
        heir.awaits_cells = true;
        under_way.heir = Some(heir.id);
        let known = progress.tokens.len() as u32;
        let compute = Duration::from_micros(heir.stage.prefill_us.saturating_mul(u64::from(known)));
        under_way.until = Instant::now() + PATIENCE + compute.min(Duration::from_secs(60));
        // Rows of the last tokens may be of guesses, but not at the last stage; it needs one row to draw from.
        let until = if is_last { known - 1 } else { run.true_until.min(known - 1) };
        let to = Hop { node: heir.stage.node, part: heir.id };
        let took = heir.session.order(Order::TakeOver { from: leaves.node }).await;
        let gave = under_way.part.session.order(Order::HandOver { to, epoch: run.epoch, until }).await;
        if took.is_err() || gave.is_err() {
            run.nothing_comes();
        }
    }
}

/// Whether one continues the sessions of the other exactly.
fn is_alike(one: &ChainStage, other: &ChainStage) -> bool {
    (one.layers, one.class) == (other.layers, other.class)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::{Layers, ModelRoot, SessionId, beacon::Class, pipeline::OpenPart, pipeline::Route};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::session::link::Link;

    const AVOID: Duration = Duration::from_secs(10);

    async fn part(number: u8) -> Part {
        let (link, _outgoing, _routes) = Link::new(CancellationToken::new());
        let (node, id, layers) = (NodeId([number; 32]), PartId([number; 16]), Layers::new(0, 10).unwrap());
        let opening = OpenPart {
            session: SessionId(number.into()),
            part: id,
            model: ModelRoot([0; 32]),
            layers,
            route: Route { epoch: 1, previous: node, next: Hop { node, part: id } },
            positions_max: 100,
            head: None,
        };
        let stage = ChainStage { node, layers, class: Class::Approximate, visit_us: 1, prefill_us: 1 };
        let session = link.open_part(opening).await.unwrap();
        Part { stage, id, session, state: None, is_new: false, accepted: true, said: true, awaits_cells: false }
    }

    /// Part 1 of the parts 1 and 2 leaves, and part 3 takes its place.
    async fn under_way() -> Run {
        let mut run = Run::new(50);
        run.parts = vec![part(1).await, part(2).await];
        run.handover.plan(PartId([1; 16]));
        run.leave(PartId([1; 16]), AVOID);
        let heir = Part { is_new: true, awaits_cells: true, ..part(3).await };
        run.handover.under_way.as_mut().unwrap().heir = Some(heir.id);
        run.parts.push(heir);
        run
    }

    fn ids(run: &Run) -> Vec<u8> {
        run.parts.iter().map(|part| part.id.0[0]).collect()
    }

    #[tokio::test]
    async fn a_part_that_leaves_is_out_of_the_chain_and_comes_back_when_it_breaks() {
        let mut run = under_way().await;
        assert_eq!(ids(&run), [2, 3]);
        assert!(run.handover.is_under_way() && run.avoid.len() == 1);
        run.stays_after_all();
        assert_eq!(ids(&run), [2, 1]);
        assert!(!run.handover.is_under_way() && run.avoid.is_empty());
        let due = run.handover.due(true).unwrap();
        assert!(due > Instant::now(), "it is tried again, a little later");
        assert_eq!(run.handover.due(false), None, "once the chain runs");
    }

    #[tokio::test]
    async fn one_that_drew_on_while_it_left_does_not_come_back() {
        let mut run = under_way().await;
        run.leaving_said(Some(&ToGateway::Tokens { session: SessionId(1), from: 7, tokens: Vec::new() }));
        assert!(run.handover.is_under_way(), "the heir gets its cache all the same");
        run.stays_after_all();
        assert_eq!(ids(&run), [2]);
    }

    #[tokio::test]
    async fn an_heir_of_a_chain_that_was_not_put_together_makes_room() {
        let mut run = under_way().await;
        run.handover.under_way.as_mut().unwrap().heir = None;
        run.stays_after_all();
        assert_eq!(ids(&run), [2, 1]);
    }

    #[tokio::test]
    async fn without_its_cache_the_chain_goes_on_as_after_a_loss() {
        let session = SessionId(1);
        let complaint = Complaint::CannotHandOver;
        let words = [
            None,
            Some(ToGateway::Refused { session, why: opengrid_protocol::session::Refusal::EngineFailed }),
            Some(ToGateway::Complains { session, epoch: 2, complaint }),
        ];
        for word in words {
            let mut run = under_way().await;
            run.leaving_said(Some(&ToGateway::Leaves { session }));
            assert!(run.handover.is_under_way());
            run.leaving_said(word.as_ref());
            assert!(!run.handover.is_under_way());
            assert_eq!(run.parts[1].state, Some(Part::NOTHING));
        }
    }

    #[tokio::test]
    async fn one_that_leaves_again_and_again_moves_the_answer_no_more() {
        let mut run = under_way().await;
        for _ in 0..100 {
            run.stays_after_all();
            run.handover.plan(PartId([1; 16]));
            assert!(run.handover.planned.len() <= 1);
            if run.handover.planned.pop().is_none() {
                break;
            }
            run.leave(PartId([1; 16]), AVOID);
        }
        assert_eq!(run.handover.tries, TRIES_MAX);
    }
}
