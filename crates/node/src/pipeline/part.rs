//! A part of a session: between the gateway that gives orders, the engine that computes, and its neighbours.

use std::{sync::Arc, time::Duration};

use opengrid_engine::{Input, StageEvent, StageSession};
use opengrid_protocol::{
    NodeId, SessionId,
    pipeline::{Carried, Complaint, OpenPart, Order, PartId, ToStage},
    session::{Refusal, ToGateway},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
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

/// Why a part ends; the gateway hears of it.
type Ended = Refusal;

/// Runs one part until its session ends; the orders are of its gateway.
pub async fn run(
    client: NodeId,
    opening: OpenPart,
    orders: mpsc::Receiver<Order>,
    outbound: mpsc::Sender<ToGateway>,
    backend: SharedBackend,
    hub: Arc<Hub>,
) {
    let session = opening.session;
    let ended = match Part::open(client, opening, outbound.clone(), backend, hub) {
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
}

struct Part {
    session: SessionId,
    id: PartId,
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
    /// What the last stage wants fed, not yet handed to the channel.
    feed: Option<ToStage>,
    /// How many guesses are under way, at the last stage once it drew, and whether they are the draft model's.
    guesses: Option<(usize, bool)>,
    /// To be answered once nothing is being computed that changes the answer.
    rewired: bool,
}

impl Part {
    fn open(
        client: NodeId,
        opening: OpenPart,
        outbound: mpsc::Sender<ToGateway>,
        backend: SharedBackend,
        hub: Arc<Hub>,
    ) -> Result<Self, Ended> {
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
        let next = hub.channel(opening.route.next.node);
        let flow = Flow::new(kind, opening.route, opening.positions_max, row_bytes, registered.ring_bytes);
        Ok(Self {
            session: opening.session,
            id: opening.part,
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
            feed: None,
            guesses: None,
            rewired: false,
        })
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), Ended> {
        self.tell(ToGateway::Accepted { session: self.session, queued: 0 }).await?;
        loop {
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
                Happening::Came(Some(Incoming::Message(sender, message))) => self.take(sender, message).await?,
                Happening::Came(Some(Incoming::Faulty(node))) if node == self.flow.route().previous => {
                    self.complain(Complaint::BadInput).await?;
                }
                Happening::Came(Some(Incoming::Faulty(_))) => {}
                Happening::MaySend(Some(permit)) => self.send(permit),
                Happening::MaySend(None) => self.complain(Complaint::NextUnreachable).await?,
            }
            if self.rewired && self.flow.settled() {
                self.rewired = false;
                let (epoch, state) = (self.flow.route().epoch, self.flow.state());
                self.tell(ToGateway::Rewired { session: self.session, epoch, state }).await?;
            }
        }
    }

    async fn next_happening(&mut self, orders: &mut mpsc::Receiver<Order>) -> Happening {
        let takes = self.flow.takes() && self.early.is_none();
        let sends = self.flow.sends() && (self.feed.is_some() || self.flow.has_next());
        let next = self.next.clone();
        tokio::select! {
            order = orders.recv(), if !self.flow.is_starting() => Happening::Order(order),
            event = self.engine.events.recv(), if self.flow.has_room() => Happening::Computed(event),
            incoming = self.registered.inbox.recv(), if takes => Happening::Came(incoming),
            permit = next.clone().reserve_owned(), if sends => Happening::MaySend(permit.ok()),
            // What was handed over may be lost.
            () = next.closed(), if self.flow.sends() && self.used_next => Happening::MaySend(None),
        }
    }

    fn send(&mut self, permit: mpsc::OwnedPermit<ToStage>) {
        let (part, epoch) = (self.flow.route().next.part, self.flow.route().epoch);
        let rows = |flow: &mut Flow| {
            let (from, rows) = flow.next_rows()?;
            Some(ToStage { part, epoch, from, carried: Carried::Rows(rows) })
        };
        if let Some(message) = self.feed.take().or_else(|| rows(&mut self.flow)) {
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
                self.next = self.hub.channel(self.flow.route().next.node);
                (self.rewired, self.used_next) = (true, false);
                (self.early, self.feed) = (None, None);
            }
            Order::Start { keep, send_from } => {
                if !self.flow.start(keep, send_from) {
                    return Err(nonsense());
                }
            }
            Order::Feed { from, tokens } => {
                let count = tokens.len();
                let input = Input::Tokens(tokens);
                self.stage.check(&input).map_err(refusal)?;
                if !self.flow.feed(from, count) {
                    return Err(nonsense());
                }
                self.engine.feed(from, input).map_err(refusal)?;
                if let Some(message) = self.early.take() {
                    self.take(self.flow.route().previous, message).await?;
                }
            }
            Order::Meet(nodes) => self.hub.meet(&nodes),
            Order::Again => match self.flow.wanted() {
                Some((from, tokens)) => self.want(from, tokens),
                None => return Err(nonsense()),
            },
        }
        Ok(())
    }

    /// True at the end of the session.
    async fn computed(&mut self, event: StageEvent) -> Result<bool, Ended> {
        match event {
            StageEvent::Rows { from, rows } => {
                self.flow.made(from, &rows);
                self.registered.keeps(self.flow.kept_bytes());
            }
            StageEvent::Drawn { tokens, from, feed, by_model } => {
                let index = self.answered;
                self.answered += tokens.len() as u32;
                self.backend.count_tokens(tokens.len());
                if let (Some((guesses, of_model)), Some(came_true)) = (self.guesses, tokens.len().checked_sub(1)) {
                    self.hub.laps.count(guesses, of_model, came_true);
                }
                self.guesses = feed.len().checked_sub(1).map(|guesses| (guesses, by_model));
                if !feed.is_empty() {
                    self.flow.drew(from, feed.clone());
                    // Before the gateway hears of it: the next lap does not wait.
                    self.want(from, feed);
                    self.send_feed_now();
                }
                if !tokens.is_empty() {
                    self.tell(ToGateway::Tokens { session: self.session, from: index, tokens }).await?;
                }
            }
            StageEvent::Finished(finish, usage) => {
                self.tell(ToGateway::Finished { session: self.session, finish, usage }).await?;
                return Ok(true);
            }
            StageEvent::Failed(error) => return Err(refusal(error)),
        }
        Ok(false)
    }

    fn want(&mut self, from: u32, tokens: Vec<u32>) {
        if self.flow.takes() {
            let route = self.flow.route();
            let carried = Carried::Tokens(tokens);
            self.feed = Some(ToStage { part: route.next.part, epoch: route.epoch, from, carried });
        }
    }

    fn send_feed_now(&mut self) {
        self.used_next = true;
        if let Some(feed) = self.feed.take()
            && let Err(mpsc::error::TrySendError::Full(feed) | mpsc::error::TrySendError::Closed(feed)) =
                self.next.try_send(feed)
        {
            self.feed = Some(feed);
        }
    }

    async fn take(&mut self, sender: NodeId, message: ToStage) -> Result<(), Ended> {
        match self.flow.take(sender, message, self.row_bytes) {
            Taken::Stale => Ok(()),
            Taken::Early(message) => {
                self.early = Some(message);
                Ok(())
            }
            // A neighbour of an earlier epoch knows the part, too: it disturbs nobody.
            Taken::Foreign => {
                self.hub.report(sender, Fault::BadRows);
                Ok(())
            }
            Taken::Bad(why) => self.blame(sender, why).await,
            Taken::Feed { from, carried } => {
                let input = match carried {
                    Carried::Rows(rows) => Input::Rows(rows),
                    Carried::Tokens(tokens) => Input::Tokens(tokens),
                };
                if let Err(error) = self.stage.check(&input) {
                    self.flow.refuse(from);
                    return self.blame(sender, &error.to_string()).await;
                }
                self.engine.feed(from, input).map_err(refusal)
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
