//! A part of a session: between the gateway that gives orders, the engine that computes, and its neighbours.

mod cells;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use opengrid_engine::{Input, Lap, StageEvent, StageSession};
use opengrid_protocol::{
    Layers, ModelRoot, NodeId, SessionId,
    pipeline::{Carried, Complaint, OpenPart, Order, PartId, STANDBY_EPOCH, ToStage},
    session::{Refusal, ToGateway},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep_until, timeout},
};

use self::cells::{Giving, Receiving};
use super::{
    ahead::Ahead,
    flow::{Flow, Kind, Taken},
    hub::{Hub, Incoming, NoPlace, Registered},
};
use crate::{
    serving::SharedStage,
    session::{
        Fault,
        server::{SharedBackend, generate_request, refusal},
    },
};

/// A part to which nothing happens for so long gives its place back: its gateway has forgotten it, or never meant to use
/// it. Longer than any gateway waits for a token.
const IDLE_MAX: Duration = Duration::from_secs(330);

/// How long what goes ahead waits for its channel to take what came before.
const AHEAD_PAUSE: Duration = Duration::from_millis(20);

/// Of rows that come before the part is started: the first epoch is 1.
const BEFORE_ALL: Lap = Lap { epoch: STANDBY_EPOCH, number: 0 };

/// Why a part ends; the gateway hears of it.
type Ended = Refusal;

/// Runs one part until its session ends; the orders are of its gateway. It begins with rows that were sent ahead.
pub async fn run(
    client: NodeId,
    opening: OpenPart,
    begins_with: Vec<Bytes>,
    orders: mpsc::Receiver<Order>,
    (outbound, backend, hub): (mpsc::Sender<ToGateway>, SharedBackend, Arc<Hub>),
) {
    let session = opening.session;
    let ended = match Part::open(client, opening, begins_with, (outbound.clone(), backend, hub)) {
        Ok(part) => part.run(orders).await,
        Err(why) => Err(why),
    };
    if let Err(why) = ended {
        // A gateway that is gone needs no answer.
        let _ = outbound.send(ToGateway::Refused { session, why }).await;
    }
}

/// What a part waits for.
enum Happening {
    Order(Option<Order>),
    Computed(Option<StageEvent>),
    /// `None`: too much came that could not be taken.
    Came(Option<Incoming>),
    /// `None`: the channel to the next part is closed.
    MaySend(Option<mpsc::OwnedPermit<ToStage>>),
    /// No session of this stage is taken here any more.
    StageLeaves,
    /// `None`: the channel to the part that takes this one's place is closed.
    MayGive(Option<mpsc::OwnedPermit<ToStage>>),
    /// So many bytes may go ahead to a standby, by the clock.
    GoesAhead(usize),
}

struct Part {
    session: SessionId,
    id: PartId,
    model: ModelRoot,
    layers: Layers,
    stage: SharedStage,
    engine: StageSession,
    flow: Flow,
    registered: Registered,
    hub: Arc<Hub>,
    next: mpsc::Sender<ToStage>,
    outbound: mpsc::Sender<ToGateway>,
    backend: SharedBackend,
    /// Index in the answer of the next token.
    answered: u32,
    row_bytes: usize,
    early: Option<ToStage>,
    /// Something was handed to the channel in this epoch.
    used_next: bool,
    /// To be answered once nothing is being computed that changes the answer.
    rewired: bool,
    changes: watch::Receiver<u64>,
    told_leaving: bool,
    /// Its cache, on the way to the part that takes its place.
    giving: Option<Giving>,
    handed_over: u32,
    /// The cache of the part whose place it takes.
    receiving: Option<Receiving>,
    /// Came while a cache was awaited.
    held: Option<(NodeId, ToStage)>,
    ahead: Ahead,
    /// Where it goes ahead, and from when on.
    ahead_to: Option<mpsc::Sender<ToStage>>,
    ahead_after: Instant,
}

impl Part {
    fn open(
        client: NodeId,
        opening: OpenPart,
        begins_with: Vec<Bytes>,
        (outbound, backend, hub): (mpsc::Sender<ToGateway>, SharedBackend, Arc<Hub>),
    ) -> Result<Self, Ended> {
        let changes = backend.changes();
        let stage = backend.stage(opening.model, opening.layers)?;
        let capabilities = stage.capabilities();
        if opening.positions_max > capabilities.context_tokens {
            return Err(Refusal::ContextTooSmall { context_tokens: capabilities.context_tokens });
        }
        let registered = hub.register(opening.part).map_err(|why| match why {
            NoPlace::Full => Refusal::Busy,
            NoPlace::InUse => Refusal::Invalid(why.to_string()),
        })?;
        let kind = match &opening.head {
            Some(head) => Kind::Last { tokens: head.tokens.len() as u32 },
            None if opening.layers.from() == 0 => Kind::First,
            None => Kind::Middle,
        };
        let answered = opening.head.as_ref().map_or(0, |head| head.tokens.len() as u32 - head.prompt_tokens);
        let request = opening.head.map(|head| generate_request(client, *head));
        let engine = stage.open(request).map_err(refusal)?;
        let row_bytes = capabilities.width as usize * size_of::<f32>();
        engine.gather(hub.shares_cores(&opening.route)).map_err(refusal)?;
        let next = hub.channel(opening.route.next.node);
        let flow = Flow::new(kind, opening.route, opening.positions_max, row_bytes, registered.ring_bytes);
        let mut part = Self {
            session: opening.session,
            id: opening.part,
            model: opening.model,
            layers: opening.layers,
            stage,
            engine,
            flow,
            registered,
            hub,
            next,
            outbound,
            backend,
            answered,
            row_bytes,
            early: None,
            used_next: false,
            // The gateway hears how far it is.
            rewired: true,
            changes,
            told_leaving: false,
            giving: None,
            handed_over: 0,
            receiving: None,
            held: None,
            ahead: Ahead::default(),
            ahead_to: None,
            ahead_after: Instant::now(),
        };
        part.begin_with(begins_with)?;
        Ok(part)
    }

    /// Rows that came before the part was opened, from position 0 on, are computed before it is started.
    fn begin_with(&mut self, pieces: Vec<Bytes>) -> Result<(), Ended> {
        let come = pieces.iter().map(|piece| piece.len() / self.row_bytes).sum::<usize>() as u32;
        let fits = self.flow.begin_with(come);
        let mut from = 0;
        for piece in pieces {
            let rows = ((piece.len() / self.row_bytes) as u32).min(fits - from);
            if rows > 0 {
                let rows = piece.slice(..rows as usize * self.row_bytes);
                self.engine.feed(BEFORE_ALL, from, Input::Rows(rows)).map_err(refusal)?;
            }
            from += rows;
        }
        if fits > 0 {
            tracing::debug!(part = ?self.id, rows = fits, "begins with rows that were sent ahead");
            self.hub.ahead.used_rows.fetch_add(fits.into(), Ordering::Relaxed);
        }
        Ok(())
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), Ended> {
        self.tell(ToGateway::Accepted { session: self.session, queued: 0 }).await?;
        loop {
            if self.rewired && self.flow.settled() {
                self.rewired = false;
                let (epoch, state) = (self.flow.route().epoch, self.flow.state());
                self.tell(ToGateway::Rewired { session: self.session, epoch, state }).await?;
            }
            let Ok(happening) = timeout(IDLE_MAX, self.next_happening(&mut orders)).await else {
                return Err(Refusal::Invalid("nothing happened for too long".into()));
            };
            match happening {
                Happening::Order(None) => return Ok(()),
                Happening::Order(Some(order)) => self.obey(order).await?,
                Happening::Computed(event) => {
                    if self.computed(event.ok_or(Refusal::EngineFailed)?).await? {
                        return Ok(());
                    }
                }
                Happening::Came(None) => return Err(Refusal::Busy),
                Happening::Came(Some(Incoming::Message(sender, message))) => self.came(sender, message).await?,
                Happening::Came(Some(Incoming::Faulty(node))) if self.awaits_cells_of(node) => {
                    self.go_without_cells().await?;
                }
                Happening::Came(Some(Incoming::Faulty(node))) if node == self.flow.route().previous => {
                    self.complain(Complaint::BadInput).await?;
                }
                Happening::Came(Some(Incoming::Faulty(_))) => {}
                Happening::MaySend(Some(permit)) => self.send(permit),
                Happening::MaySend(None) => self.complain(Complaint::NextUnreachable).await?,
                Happening::StageLeaves => self.tell_leaving().await?,
                Happening::MayGive(permit) => self.give_next(permit).await?,
                Happening::GoesAhead(bytes) => self.go_ahead(bytes),
            }
        }
    }

    async fn next_happening(&mut self, orders: &mut mpsc::Receiver<Order>) -> Happening {
        let takes = (self.flow.runs() && self.early.is_none()) || self.receiving.is_some();
        let sends = self.flow.has_next();
        let next = self.next.clone();
        let heir = self.giving.as_ref().filter(|giving| giving.has_next()).map(|giving| giving.channel.clone());
        let gives = heir.is_some();
        let heir = heir.unwrap_or_else(|| next.clone());
        // What runs goes first.
        let ahead = self.ahead.next_bytes(&self.flow).filter(|_| !sends);
        tokio::select! {
            order = orders.recv() => Happening::Order(order),
            event = self.engine.events.recv(), if self.flow.has_room() => Happening::Computed(event),
            incoming = self.registered.inbox.recv(), if takes => Happening::Came(incoming),
            permit = next.clone().reserve_owned(), if sends => Happening::MaySend(permit.ok()),
            permit = heir.reserve_owned(), if gives => Happening::MayGive(permit.ok()),
            () = cells::stage_leaves(&mut self.changes, &*self.backend, self.model, self.layers), if !self.told_leaving => {
                Happening::StageLeaves
            }
            // What was handed over may be lost.
            () = next.closed(), if self.flow.runs() && self.used_next => Happening::MaySend(None),
            () = sleep_until(self.ahead_after.into()), if ahead.is_some() => Happening::GoesAhead(ahead.unwrap_or(0)),
        }
    }

    /// One piece at a time: nothing waits in the channel that can still wait here.
    fn go_ahead(&mut self, bytes: usize) {
        let (Some(to), Some(standby)) = (&self.ahead_to, self.ahead.standby()) else { return };
        if to.is_closed() {
            // What was under way may be lost, and a gap is of no use.
            return self.ahead.stop();
        }
        if to.capacity() < to.max_capacity() {
            self.ahead_after = Instant::now() + AHEAD_PAUSE;
            return;
        }
        if let Err(later) = self.hub.may_go_ahead(bytes) {
            self.ahead_after = later;
            return;
        }
        if let (Ok(permit), Some((from, rows))) = (to.try_reserve(), self.ahead.next(&self.flow)) {
            self.hub.ahead.sent_bytes.fetch_add(rows.len() as u64, Ordering::Relaxed);
            let carried = Carried::Rows(rows);
            permit.send(ToStage { part: standby.part, epoch: STANDBY_EPOCH, lap: 0, from, carried });
        }
    }

    fn send(&mut self, permit: mpsc::OwnedPermit<ToStage>) {
        if let Some(message) = self.flow.next_message() {
            self.used_next = true;
            permit.send(message);
        }
    }

    async fn tell(&self, message: ToGateway) -> Result<(), Ended> {
        self.outbound.send(message).await.map_err(|_| Refusal::EngineFailed)
    }

    async fn obey(&mut self, order: Order) -> Result<(), Ended> {
        let nonsense = || Refusal::Invalid("an order that does not follow from those before".into());
        match order {
            Order::Rewire(route) => {
                if !self.flow.rewire(route) {
                    return Err(nonsense());
                }
                self.engine.gather(self.hub.shares_cores(self.flow.route())).map_err(refusal)?;
                self.next = self.hub.channel(self.flow.route().next.node);
                (self.rewired, self.used_next) = (true, false);
                self.early = None;
                (self.giving, self.receiving) = (None, None);
            }
            Order::Start { keep, send_from } => {
                // What still comes of a cache comes too late.
                (self.giving, self.receiving) = (None, None);
                if !self.flow.start(keep, send_from) {
                    return Err(nonsense());
                }
                if let Some((sender, message)) = self.held.take() {
                    self.take(sender, message).await?;
                }
            }
            Order::Feed { from, tokens } => {
                let count = tokens.len();
                let input = Input::Tokens(tokens);
                self.stage.check(&input).map_err(refusal)?;
                let Some(lap) = self.flow.feed(from, count) else {
                    // The last part began a lap of its own before the prompt was whole.
                    return if self.flow.began_laps() {
                        self.complain(Complaint::BadInput).await
                    } else {
                        Err(nonsense())
                    };
                };
                self.engine.feed(lap, from, input).map_err(refusal)?;
                if let Some(message) = self.early.take() {
                    self.take(self.flow.route().previous, message).await?;
                }
            }
            Order::Meet(nodes) => self.hub.meet(&nodes),
            Order::HandOver { to, epoch, until } if self.may_hand_over() => self.hand_over(to, epoch, until).await?,
            Order::HandOver { .. } => return Err(nonsense()),
            Order::TakeOver { from } => {
                if !self.take_over(from) {
                    return Err(nonsense());
                }
            }
            Order::Prepare { standby, until } if self.hub.keeps_standbys() => {
                if self.ahead.prepare(standby, until) {
                    self.ahead_to = Some(self.hub.channel_ahead(standby.node));
                }
            }
            Order::Prepare { .. } => {}
            Order::Again => {
                if !self.flow.again() {
                    return Err(nonsense());
                }
            }
        }
        Ok(())
    }

    /// True at the end of the session.
    async fn computed(&mut self, event: StageEvent) -> Result<bool, Ended> {
        match event {
            StageEvent::Rows { lap, from, rows } => {
                self.flow.made(lap, from, &rows);
                self.registered.keeps(self.flow.kept_bytes());
            }
            StageEvent::Drawn { tokens, feed } => {
                let index = self.answered;
                self.answered += tokens.len() as u32;
                self.backend.count_tokens(tokens.len());
                let (fed, by_model) = (feed.tokens.len(), feed.by_model);
                let judged = self.flow.drew(&tokens, feed);
                self.hub.laps.count(judged, fed, by_model);
                // Before the gateway hears of it: the next lap does not wait.
                while self.flow.has_next()
                    && let Ok(permit) = self.next.clone().try_reserve_owned()
                {
                    self.send(permit);
                }
                if !tokens.is_empty() {
                    self.tell(ToGateway::Tokens { session: self.session, from: index, tokens }).await?;
                }
            }
            StageEvent::Cells { tag, from, of, cells } => self.give(tag, from, of, cells),
            StageEvent::Imported(count) => self.imported(count).await?,
            StageEvent::CellsRefused(why) => self.cells_refused(&why).await?,
            StageEvent::Finished(finish, usage) => {
                self.tell(ToGateway::Finished { session: self.session, finish, usage }).await?;
                return Ok(true);
            }
            StageEvent::Failed(error) => return Err(refusal(error)),
        }
        Ok(false)
    }

    async fn take(&mut self, sender: NodeId, message: ToStage) -> Result<(), Ended> {
        match self.flow.take(sender, message, self.row_bytes) {
            Taken::Stale => Ok(()),
            Taken::Early(message) => {
                self.early = Some(message);
                Ok(())
            }
            // A neighbour of an earlier epoch knows the part, too, and a gateway can name anybody the next one.
            Taken::Foreign => {
                tracing::debug!(part = ?self.id, sender = %sender.short(), "not from the part before");
                Ok(())
            }
            Taken::Bad(why) => self.blame(sender, why).await,
            Taken::Feed { lap, from, carried } => {
                let input = match carried {
                    Carried::Rows(rows) => Input::Rows(rows),
                    Carried::Tokens(tokens) => Input::Tokens(tokens),
                    Carried::Cells(_) => return Ok(()),
                };
                if let Err(error) = self.stage.check(&input) {
                    self.flow.refuse(from);
                    return self.blame(sender, &error.to_string()).await;
                }
                self.engine.feed(lap, from, input).map_err(refusal)
            }
        }
    }

    async fn blame(&mut self, sender: NodeId, why: &str) -> Result<(), Ended> {
        tracing::warn!(part = ?self.id, sender = %sender.short(), why, "input that cannot be used");
        self.hub.report(sender, Fault::BadRows);
        self.complain(Complaint::BadInput).await
    }

    /// The part keeps what it has and waits for another route.
    async fn complain(&mut self, complaint: Complaint) -> Result<(), Ended> {
        let epoch = self.flow.route().epoch;
        self.flow.stop();
        self.tell(ToGateway::Complains { session: self.session, epoch, complaint }).await
    }
}
