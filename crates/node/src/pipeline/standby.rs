//! Rows that are kept for parts that may be opened here, when a stage of another node is lost.
//!
//! Nobody puts rows here whom a gateway did not name, none are believed more than those of a running part, and none outlive
//! the session that asked for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use opengrid_engine::Input;
use opengrid_protocol::{
    Layers, ModelRoot, NodeId,
    limits::STANDBY_BYTES_MAX,
    pipeline::{Carried, OpenPart, Order, PartId, Standby, ToStage},
    session::{Refusal, ToGateway},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::hub::Hub;
use crate::{serving::SharedStage, session::server::SharedBackend};

/// What all standbys of this node keep at most, in bytes, and those of one gateway.
const ALL_BYTES_MAX: usize = 128 << 20;
const BYTES_OF_ONE_MAX: usize = 64 << 20;
/// Most standbys of this node, and of one gateway.
const COUNT_MAX: usize = 512;
const COUNT_OF_ONE_MAX: usize = 128;
/// A standby that gets nothing for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(330);

/// All that this node keeps.
#[derive(Default)]
pub struct Standbys {
    kept: Mutex<HashMap<PartId, Kept>>,
}

struct Kept {
    gateway: NodeId,
    model: ModelRoot,
    layers: Layers,
    sender: NodeId,
    stage: SharedStage,
    row_bytes: usize,
    pieces: Vec<Bytes>,
    bytes: usize,
    /// It grew, or ended.
    changed: Arc<Notify>,
}

impl Kept {
    fn rows(&self) -> u32 {
        (self.bytes / self.row_bytes) as u32
    }

    fn put(&mut self, sender: NodeId, from: u32, carried: Carried, room: usize) -> Put {
        if sender != self.sender {
            return Put::Foreign;
        }
        self.changed.notify_one();
        let Carried::Rows(rows) = carried else { return Put::Bad };
        if rows.len() > room.min(STANDBY_BYTES_MAX.saturating_sub(self.bytes)) {
            return Put::Full;
        }
        if from != self.rows() || self.stage.check(&Input::Rows(rows.clone())).is_err() {
            return Put::Bad;
        }
        self.bytes += rows.len();
        self.pieces.push(rows);
        Put::Kept
    }
}

/// What became of rows that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Kept,
    /// It was opened, forgotten, or never known: not the sender's fault.
    Unknown,
    /// From a node that the gateway did not name.
    Foreign,
    /// It cannot be used: the standby ends, as where there is no room. Nobody is blamed, since a gateway that lies to both
    /// could be the cause, and nobody is harmed.
    Bad,
    Full,
}

/// A standby while it lives.
struct Guard<'a> {
    standbys: &'a Standbys,
    part: PartId,
    changed: Arc<Notify>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut kept = self.standbys.kept.lock();
        if kept.get(&self.part).is_some_and(|kept| Arc::ptr_eq(&kept.changed, &self.changed)) {
            kept.remove(&self.part);
        }
    }
}

impl Standbys {
    fn add(&self, gateway: NodeId, asked: &Standby, stage: SharedStage) -> Result<Guard<'_>, Refusal> {
        let mut kept = self.kept.lock();
        let of_one = kept.values().filter(|kept| kept.gateway == gateway).count();
        if kept.len() >= COUNT_MAX || of_one >= COUNT_OF_ONE_MAX {
            return Err(Refusal::Busy);
        }
        if kept.contains_key(&asked.part) {
            return Err(Refusal::Invalid("this id is in use".into()));
        }
        let changed = Arc::new(Notify::new());
        let row_bytes = stage.capabilities().width as usize * size_of::<f32>();
        kept.insert(
            asked.part,
            Kept {
                gateway,
                model: asked.model,
                layers: asked.layers,
                sender: asked.sender,
                stage,
                row_bytes: row_bytes.max(1),
                pieces: Vec::new(),
                bytes: 0,
                changed: changed.clone(),
            },
        );
        Ok(Guard { standbys: self, part: asked.part, changed })
    }

    /// Keeps what `sender` sent.
    pub fn put(&self, sender: NodeId, message: ToStage) -> Put {
        let mut all = self.kept.lock();
        let Some(gateway) = all.get(&message.part).map(|kept| kept.gateway) else { return Put::Unknown };
        let bytes = |kept: &Kept| kept.bytes;
        let room_of_all = ALL_BYTES_MAX.saturating_sub(all.values().map(bytes).sum());
        let of_one = all.values().filter(|kept| kept.gateway == gateway).map(bytes).sum();
        let room = room_of_all.min(BYTES_OF_ONE_MAX.saturating_sub(of_one));
        let Some(kept) = all.get_mut(&message.part) else { return Put::Unknown };
        let put = kept.put(sender, message.from, message.carried, room);
        if matches!(put, Put::Bad | Put::Full) {
            all.remove(&message.part);
        }
        put
    }

    /// The rows for a part that its gateway opens now, from position 0 on; they are forgotten here.
    pub fn take(&self, gateway: NodeId, opening: &OpenPart) -> Vec<Bytes> {
        let mut all = self.kept.lock();
        let fits = |kept: &Kept| (kept.gateway, kept.model, kept.layers) == (gateway, opening.model, opening.layers);
        if !all.get(&opening.part).is_some_and(fits) {
            return Vec::new();
        }
        all.remove(&opening.part).map_or_else(Vec::new, |kept| {
            kept.changed.notify_one();
            kept.pieces
        })
    }

    /// Bytes that are kept, and by how many standbys.
    pub fn kept(&self) -> (usize, usize) {
        let all = self.kept.lock();
        (all.values().map(|kept| kept.bytes).sum(), all.len())
    }

    fn has(&self, guard: &Guard<'_>) -> bool {
        self.kept.lock().get(&guard.part).is_some_and(|kept| Arc::ptr_eq(&kept.changed, &guard.changed))
    }
}

/// Keeps rows for one gateway until it cancels this, opens the part, or nothing comes any more.
pub async fn run(
    gateway: NodeId,
    asked: Standby,
    mut orders: mpsc::Receiver<Order>,
    outbound: mpsc::Sender<ToGateway>,
    backend: SharedBackend,
    hub: Arc<Hub>,
) {
    let session = asked.session;
    if let Err(why) = keep(gateway, asked, &mut orders, &outbound, &backend, &hub).await {
        // A gateway that is gone needs no answer.
        let _ = outbound.send(ToGateway::Refused { session, why }).await;
    }
}

async fn keep(
    gateway: NodeId,
    asked: Standby,
    orders: &mut mpsc::Receiver<Order>,
    outbound: &mpsc::Sender<ToGateway>,
    backend: &SharedBackend,
    hub: &Hub,
) -> Result<(), Refusal> {
    if !hub.keeps_standbys() {
        return Err(Refusal::Busy);
    }
    let stage = backend.stage(asked.model, asked.layers)?;
    let guard = hub.standbys.add(gateway, &asked, stage)?;
    let accepted = ToGateway::Accepted { session: asked.session, queued: 0 };
    outbound.send(accepted).await.map_err(|_| Refusal::EngineFailed)?;
    while hub.standbys.has(&guard) {
        tokio::select! {
            changed = timeout(IDLE_MAX, guard.changed.notified()) => if changed.is_err() { return Err(Refusal::Busy) },
            _ = orders.recv() => return Err(Refusal::Invalid("a standby takes no orders".into())),
        }
    }
    Err(Refusal::Busy)
}

#[cfg(test)]
#[path = "standby_tests.rs"]
mod tests;
