//! Nodes that keep a copy of the rows which a stage was fed, for the case that they come in for it: they need not wait
//! for rows then, only compute them.

use std::{future::pending, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use opengrid_protocol::{
    Layers, ModelRoot, NodeId, SessionId,
    pipeline::{Hop, Order, PartId, Standby as Asked},
    session::ToGateway,
};
use tokio::{sync::mpsc::error::TryRecvError, time::timeout};

use super::{
    answer::{ACCEPT_TIMEOUT, AnswerTask},
    chain::Run,
    link::LinkSession,
    links::Links,
    spares::Spares,
};

/// Standbys hear of so many new rows at a time.
const ROWS_AT_A_TIME: u32 = 16;
/// Between nodes that are nearer to each other, one way, rows come as soon as they are needed.
pub(super) const WAY_US_MIN: u64 = 5_000;

/// Who keeps rows, and for which of the running parts' next one: a part sends to one standby.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    pub sender: PartId,
    pub sender_node: NodeId,
    pub node: NodeId,
    pub layers: Layers,
}

struct Standby {
    role: Role,
    id: PartId,
    session: LinkSession,
    /// Rows below may be sent to it.
    told: u32,
}

/// A session that asks for rows to be kept, open or not to be had.
type Opened = (Role, Option<(PartId, LinkSession)>);

/// The standbys of one chain.
#[derive(Default)]
pub(super) struct Standbys {
    ready: Vec<Standby>,
    opening: Vec<Role>,
    opened: FuturesUnordered<BoxFuture<'static, Opened>>,
}

impl Standbys {
    pub fn has(&self, node: NodeId, layers: Layers) -> bool {
        self.ready.iter().any(|standby| (standby.role.node, standby.role.layers) == (node, layers))
    }

    /// Takes the place of the sender's standby before, unless it is the same.
    fn want(&mut self, links: &Arc<Links>, model: ModelRoot, role: Role) {
        self.ready.retain(|standby| standby.role.sender != role.sender || standby.role == role);
        let known = self.ready.iter().any(|standby| standby.role == role) || self.opening.contains(&role);
        if known {
            return;
        }
        self.opening.retain(|other| other.sender != role.sender);
        self.opening.push(role);
        let id = PartId(rand::random());
        let session = SessionId(rand::random());
        let asked = Asked { session, part: id, model, layers: role.layers, sender: role.sender_node };
        let links = links.clone();
        self.opened
            .push(async move { (role, open(&links, role.node, asked).await.map(|session| (id, session))) }.boxed());
    }

    /// The next one that is open, or is not to be had.
    pub async fn opened(&mut self) {
        let Some((role, opened)) = self.opened.next().await else { return pending().await };
        // It may not be wanted any more.
        let wanted = self.opening.iter().position(|other| *other == role).map(|at| self.opening.swap_remove(at));
        if let (Some(role), Some((id, session))) = (wanted, opened) {
            tracing::debug!(worker = %role.node.short(), layers = %role.layers, "stands by");
            self.ready.push(Standby { role, id, session, told: 0 });
        }
    }

    /// For a part that is opened now: it has the id of the standby that it begins with. The session is dropped afterwards.
    pub fn take(&mut self, node: NodeId, layers: Layers) -> Option<(PartId, LinkSession)> {
        let is_it = |standby: &Standby| (standby.role.node, standby.role.layers) == (node, layers);
        let at = self.ready.iter().position(is_it)?;
        let standby = self.ready.swap_remove(at);
        Some((standby.id, standby.session))
    }

    /// Nobody stands by where the stage runs already.
    pub fn retire(&mut self, runs: impl Fn(NodeId, Layers) -> bool) {
        self.ready.retain(|standby| !runs(standby.role.node, standby.role.layers));
        self.opening.retain(|role| !runs(role.node, role.layers));
    }

    /// Only those stay whose sender does.
    pub fn keep(&mut self, stays: impl Fn(PartId) -> bool) {
        self.ready.retain(|standby| stays(standby.role.sender));
        self.opening.retain(|role| stays(role.sender));
    }
}

/// A session that keeps rows; none where the node does not.
async fn open(links: &Links, node: NodeId, asked: Asked) -> Option<LinkSession> {
    let link = links.get(node).await.ok()?;
    let mut session = link.standby(asked).await.ok()?;
    let answer = timeout(ACCEPT_TIMEOUT, session.messages.recv()).await.ok()??;
    matches!(answer, ToGateway::Accepted { .. }).then_some(session)
}

impl AnswerTask {
    pub(super) fn stand_by(&self, run: &mut Run, role: Role) {
        run.standbys.want(&self.placement.links, self.model, role);
    }

    /// Tells those who send to standbys how far rows are true.
    pub(super) async fn advance_standbys(&self, run: &mut Run) {
        let count = run.standbys.ready.len();
        // One that ended keeps nothing: whoever comes in is looked for again.
        run.standbys.ready.retain_mut(|standby| standby.session.messages.try_recv() == Err(TryRecvError::Empty));
        if run.standbys.ready.len() < count {
            run.spares = Spares::default();
        }
        for standby in &mut run.standbys.ready {
            let Some(sender) = run.parts.iter().find(|part| part.id == standby.role.sender) else { continue };
            if run.true_until < standby.told + if standby.told == 0 { 1 } else { ROWS_AT_A_TIME } {
                continue;
            }
            standby.told = run.true_until;
            let standby = Hop { node: standby.role.node, part: standby.id };
            // That a channel is closed shows elsewhere.
            let _told = sender.session.order(Order::Prepare { standby, until: run.true_until }).await.is_ok();
        }
    }
}
