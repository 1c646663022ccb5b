//! A part whose stage leaves hands its cache over; one that takes its place gets it.

use std::collections::VecDeque;

use bytes::Bytes;
use opengrid_protocol::pipeline::{Cells, Hop};

use super::*;
use crate::{
    pipeline::handover::{Pieces, Reserved},
    session::server::Backend,
};

/// How often one part hands its cache over at most; each try of a gateway before was in vain.
const HAND_OVERS_MAX: u32 = 16;

/// A cache that leaves.
pub(super) struct Giving {
    to: Hop,
    epoch: u32,
    layout: [u8; 16],
    pub channel: mpsc::Sender<ToStage>,
    pieces: VecDeque<ToStage>,
    _room: Reserved,
}

impl Giving {
    pub fn has_next(&self) -> bool {
        !self.pieces.is_empty()
    }
}

/// A cache that comes.
pub(super) struct Receiving {
    from: NodeId,
    pieces: Pieces,
    room: Option<Reserved>,
}

/// Why cells are not taken.
enum Unusable {
    /// Whoever sent them is to blame.
    Bad(String),
    NoRoom,
}

/// Returns when a stage takes no more sessions here.
pub(super) async fn stage_leaves(
    changes: &mut watch::Receiver<u64>,
    backend: &dyn Backend,
    model: ModelRoot,
    layers: Layers,
) {
    while changes.changed().await.is_ok() {
        if backend.stage(model, layers).is_err() {
            return;
        }
    }
    std::future::pending().await
}

impl Part {
    /// Tells the gateway, once.
    pub(super) async fn tell_leaving(&mut self) -> Result<(), Ended> {
        self.told_leaving = true;
        self.tell(ToGateway::Leaves { session: self.session }).await
    }

    /// Whether the gateway may ask for the cache now: an export takes time of all sessions.
    pub(super) fn may_hand_over(&mut self) -> bool {
        self.handed_over += 1;
        self.giving.is_none() && self.handed_over <= HAND_OVERS_MAX
    }

    /// The chain goes on without this part.
    pub(super) async fn hand_over(&mut self, to: Hop, epoch: u32, until: u32) -> Result<(), Ended> {
        self.flow.stop();
        (self.rewired, self.early) = (false, None);
        let until = until.min(self.flow.have());
        let cells = self.stage.capabilities().cells;
        let bytes = cells.map(|cells| cells.bytes as usize * until as usize).filter(|bytes| *bytes > 0);
        let room = bytes.and_then(|bytes| self.hub.handovers.reserve(bytes));
        let (Some(cells), Some(room)) = (cells, room) else {
            return self.tell_cannot_hand_over(epoch).await;
        };
        let channel = self.hub.channel(to.node);
        self.giving = Some(Giving { to, epoch, layout: cells.layout, channel, pieces: VecDeque::new(), _room: room });
        self.engine.export(until, epoch).map_err(refusal)
    }

    /// Cells came out of the engine.
    pub(super) fn give(&mut self, tag: u32, from: u32, of: u32, cells: Bytes) {
        let Some(giving) = self.giving.as_mut().filter(|giving| giving.epoch == tag) else { return };
        let carried = Carried::Cells(Cells { layout: giving.layout, of, cells });
        giving.pieces.push_back(ToStage { part: giving.to.part, epoch: giving.epoch, lap: 0, from, carried });
    }

    pub(super) async fn give_next(&mut self, permit: Option<mpsc::OwnedPermit<ToStage>>) -> Result<(), Ended> {
        let Some(giving) = &mut self.giving else { return Ok(()) };
        match (permit, giving.pieces.pop_front()) {
            (Some(permit), Some(piece)) => drop(permit.send(piece)),
            (Some(_), None) => {}
            (None, _) => {
                let epoch = giving.epoch;
                return self.tell_cannot_hand_over(epoch).await;
            }
        }
        Ok(())
    }

    async fn tell_cannot_hand_over(&mut self, epoch: u32) -> Result<(), Ended> {
        self.giving = None;
        let complaint = Complaint::CannotHandOver;
        self.tell(ToGateway::Complains { session: self.session, epoch, complaint }).await
    }

    /// Takes the place of the part at `from`. False where it has begun already.
    pub(super) fn take_over(&mut self, from: NodeId) -> bool {
        let is_fresh = self.flow.is_fresh() && self.receiving.is_none();
        if is_fresh {
            self.receiving = Some(Receiving { from, pieces: Pieces::new(self.flow.cells_max()), room: None });
        }
        is_fresh
    }

    pub(super) fn awaits_cells_of(&self, node: NodeId) -> bool {
        self.receiving.as_ref().is_some_and(|receiving| receiving.from == node)
    }

    /// A message, of which cells come before the part is started.
    pub(super) async fn came(&mut self, sender: NodeId, message: ToStage) -> Result<(), Ended> {
        let epoch = self.flow.route().epoch;
        match message.carried {
            Carried::Cells(cells) if self.receiving.is_some() && message.epoch == epoch => {
                match self.take_cells(sender, message.from, cells) {
                    Ok(()) => Ok(()),
                    Err(Unusable::NoRoom) => self.go_without_cells().await,
                    Err(Unusable::Bad(why)) => {
                        tracing::warn!(part = ?self.id, sender = %sender.short(), why, "a cache that cannot be used");
                        self.hub.report(sender, Fault::BadCells);
                        if self.awaits_cells_of(sender) { self.go_without_cells().await } else { Ok(()) }
                    }
                }
            }
            // Too late: the chain went on without them.
            Carried::Cells(_) => Ok(()),
            // The chain starts without the cache; the order to start is on its way.
            _ if self.receiving.is_some() => {
                if message.epoch != epoch {
                    return Ok(());
                }
                self.receiving = None;
                self.held = Some((sender, message));
                Ok(())
            }
            _ => self.take(sender, message).await,
        }
    }

    fn take_cells(&mut self, sender: NodeId, from: u32, cells: Cells) -> Result<(), Unusable> {
        let bad = |why: &str| Unusable::Bad(why.to_owned());
        let own = self.stage.capabilities().cells.ok_or(Unusable::NoRoom)?;
        let receiving = self.receiving.as_mut().ok_or(Unusable::NoRoom)?;
        if sender != receiving.from {
            return Err(bad("it was not asked for one"));
        }
        receiving.pieces.announced(cells.of).map_err(bad)?;
        if receiving.room.is_none() {
            let bytes = own.bytes as usize * cells.of as usize;
            receiving.room = Some(self.hub.handovers.reserve(bytes).ok_or(Unusable::NoRoom)?);
        }
        let count = self.stage.check_cells(&cells.layout, &cells.cells).map_err(|error| bad(&error.to_string()))?;
        let last = receiving.pieces.take(from, count).map_err(bad)?;
        self.engine.import(cells.cells, last).map_err(|_| Unusable::NoRoom)
    }

    /// The engine has all cells that came.
    pub(super) async fn imported(&mut self, count: u32) -> Result<(), Ended> {
        if self.receiving.take().is_none() {
            return Ok(());
        }
        self.hub.handovers.count(true);
        self.flow.took_over(count);
        tracing::debug!(session = ?self.session, count, "cache taken over");
        self.tell_state().await
    }

    pub(super) async fn cells_refused(&mut self, why: &str) -> Result<(), Ended> {
        tracing::debug!(session = ?self.session, why, "cache not moved");
        match &self.giving {
            Some(giving) => {
                let epoch = giving.epoch;
                self.tell_cannot_hand_over(epoch).await
            }
            None if self.receiving.is_some() => self.go_without_cells().await,
            None => Ok(()),
        }
    }

    /// What the part lacks is computed anew.
    pub(super) async fn go_without_cells(&mut self) -> Result<(), Ended> {
        self.receiving = None;
        self.hub.handovers.count(false);
        self.tell_state().await
    }

    async fn tell_state(&self) -> Result<(), Ended> {
        let (epoch, state) = (self.flow.route().epoch, self.flow.state());
        self.tell(ToGateway::Rewired { session: self.session, epoch, state }).await
    }
}
