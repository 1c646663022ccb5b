//! Who would take the place of a stage that is lost: channels to them are opened while all goes well, so that a failover
//! need not wait for keys and handshakes, several round trips each, and rows are sent ahead to them.

use std::time::{Duration, Instant};

use opengrid_protocol::{NodeId, limits::SPARES_MAX, pipeline::Order};

use super::{
    answer::{AnswerTask, Progress},
    chain::Run,
    standby::{Role, WAY_US_MIN},
};
use crate::chains::Joins;

/// Shorter than channels without sessions live.
const REFRESH: Duration = Duration::from_secs(30);

/// So many are looked after as soon as the chain starts, while the prompt is computed; the others one with each lap.
const AT_ONCE: usize = 8;

/// How far a chain's stages have been looked after.
#[derive(Default)]
pub(super) struct Spares {
    looked_after: usize,
    since: Option<Instant>,
}

impl Spares {
    /// The next stage to look after: one at a time, then all of them again after a while.
    fn next(&mut self, stages: usize) -> Option<usize> {
        if self.looked_after >= stages {
            if self.since.is_some_and(|since| since.elapsed() < REFRESH) {
                return None;
            }
            self.looked_after = 0;
        }
        if self.looked_after == 0 {
            self.since = Some(Instant::now());
        }
        self.looked_after += 1;
        Some(self.looked_after - 1)
    }
}

impl AnswerTask {
    /// When the chain starts.
    pub(super) async fn meet_first_spares(&self, run: &mut Run, progress: &Progress) {
        for _ in 0..run.parts.len().min(AT_ONCE) {
            self.meet_spares(run, progress).await;
        }
    }

    /// Looks after one stage: opens channels to the nodes that would come in if it were lost, from here and from those
    /// that would send to them.
    pub(super) async fn meet_spares(&self, run: &mut Run, progress: &Progress) {
        let Some(at) = run.spares.next(run.parts.len()) else { return };
        let lost = run.parts[at].stage.node;
        let living = |node: NodeId| run.parts.iter().position(|part| part.stage.node == node && node != lost);
        let has = |node, layers| living(node).is_some_and(|at| run.parts[at].stage.layers == layers);
        let joins = |node, layers| match () {
            () if has(node, layers) => Joins::Has,
            () if run.standbys.has(node, layers) => Joins::Prepared,
            () => Joins::Anew,
        };
        let needs = self.needs(progress);
        let Some(chain) = self.placement.chain(self.model, &progress.tokens, needs, joins, |node| node == lost) else {
            return;
        };
        let ways = self.placement.ways(self.model, &chain);
        let before = |at: usize| &chain[(at + chain.len() - 1) % chain.len()];
        let spares = chain.iter().enumerate().filter(|(_, stage)| !has(stage.node, stage.layers));
        let mut roles = Vec::new();
        for (at, stage) in spares.take(SPARES_MAX) {
            self.placement.links.meet(stage.node);
            if let Some(sender) = living(before(at).node) {
                let sender = &run.parts[sender];
                // That a channel is closed shows elsewhere.
                let _told = sender.session.order(Order::Meet(vec![stage.node])).await.is_ok();
                // The first stage gets tokens, which are here.
                let is_far = at > 0 && ways.get(at - 1).is_some_and(|way_us| *way_us >= WAY_US_MIN);
                if is_far && has(sender.stage.node, before(at).layers) {
                    let (node, layers) = (stage.node, stage.layers);
                    roles.push(Role { sender: sender.id, sender_node: sender.stage.node, node, layers });
                }
            }
        }
        for role in roles {
            self.stand_by(run, role);
        }
    }
}
