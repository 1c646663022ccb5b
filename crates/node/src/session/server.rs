//! The worker's end of a channel: runs the sessions that one gateway opens.

use std::{collections::HashMap, sync::Arc, time::Duration};

use opengrid_engine::{EmbedRequest, EngineError, Event, GenerateRequest, Generation, SharedEngine};
use opengrid_protocol::{
    Layers, ModelRoot, NodeId, SessionId,
    beacon::Features,
    codec::DecodeError,
    limits::{CHANNEL_IDLE_MS, HEARTBEAT_MS, SESSIONS_PER_CHANNEL_MAX},
    pipeline::Order,
    session::{Embed, Open, Refusal, ToGateway, ToWorker},
};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    pipeline::{self, hub::Hub, standby},
    serving::SharedStage,
};

/// What the sessions run on.
pub trait Backend: Send + Sync {
    /// The engine of a model.
    ///
    /// # Errors
    /// Why no session of it is taken now.
    fn engine(&self, model: ModelRoot) -> Result<SharedEngine, Refusal>;

    /// A stage of a model.
    ///
    /// # Errors
    /// Why no session of it is taken now.
    fn stage(&self, model: ModelRoot, layers: Layers) -> Result<SharedStage, Refusal>;

    /// Tokens that left for a client.
    fn count_tokens(&self, tokens: usize);

    /// A session began or ended.
    fn load_changed(&self);
}

/// A gateway that opens no session for so long has forgotten the channel.
const IDLE_MAX: Duration = Duration::from_millis(2 * CHANNEL_IDLE_MS);

pub type SharedBackend = Arc<dyn Backend>;

/// Orders that wait for a part of a session.
const ORDERS_MAX: usize = 16;

/// Serves one gateway until its messages end or nobody hears the answers. Cancels all its sessions then.
pub async fn serve(
    client: NodeId,
    mut inbound: mpsc::Receiver<ToWorker>,
    outbound: mpsc::Sender<ToGateway>,
    backend: SharedBackend,
    hub: Arc<Hub>,
) {
    let mut running = JoinSet::new();
    let mut cancels: HashMap<SessionId, CancellationToken> = HashMap::new();
    let mut parts: HashMap<SessionId, mpsc::Sender<Order>> = HashMap::new();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = inbound.recv() => match message {
                None => break,
                Some(ToWorker::Cancel { session }) => {
                    if let Some(cancel) = cancels.get(&session) {
                        cancel.cancel();
                    }
                }
                Some(ToWorker::Open(open)) => {
                    let session = open.session;
                    match admit(session, open.check(), &mut cancels) {
                        Err(why) => drop(outbound.try_send(ToGateway::Refused { session, why })),
                        Ok(cancel) => {
                            let work = generate(client, *open, outbound.clone(), backend.clone());
                            running.spawn(run_session(session, work, backend.clone(), cancel));
                        }
                    }
                }
                Some(ToWorker::Embed(embed)) => {
                    let session = embed.session;
                    match admit(session, embed.check(), &mut cancels) {
                        Err(why) => drop(outbound.try_send(ToGateway::Refused { session, why })),
                        Ok(cancel) => {
                            let work = self::embed(*embed, outbound.clone(), backend.clone());
                            running.spawn(run_session(session, work, backend.clone(), cancel));
                        }
                    }
                }
                Some(ToWorker::OpenPart(part)) => {
                    let session = part.session;
                    match admit(session, part.check(), &mut cancels) {
                        Err(why) => drop(outbound.try_send(ToGateway::Refused { session, why })),
                        Ok(cancel) => {
                            let (orders, obeyed) = mpsc::channel(ORDERS_MAX);
                            parts.insert(session, orders);
                            let (outbound, work_backend) = (outbound.clone(), backend.clone());
                            // Now: the standby may be cancelled by the next message.
                            let begins_with = hub.standbys.take(client, &part);
                            let context = (outbound, work_backend, hub.clone());
                            let work = pipeline::run(client, *part, begins_with, obeyed, context);
                            running.spawn(run_session(session, work, backend.clone(), cancel));
                        }
                    }
                }
                Some(ToWorker::Standby(standby)) => {
                    let session = standby.session;
                    match admit(session, standby.check(), &mut cancels) {
                        Err(why) => drop(outbound.try_send(ToGateway::Refused { session, why })),
                        Ok(cancel) => {
                            let (orders, obeyed) = mpsc::channel(1);
                            parts.insert(session, orders);
                            let (outbound, work_backend) = (outbound.clone(), backend.clone());
                            let work = standby::run(client, *standby, obeyed, outbound, work_backend, hub.clone());
                            running.spawn(run_session(session, work, backend.clone(), cancel));
                        }
                    }
                }
                Some(ToWorker::Order { session, order }) => {
                    // More orders than a gateway has a reason for, or nonsense: the part ends.
                    let passed = order.check().is_ok()
                        && parts.get(&session).is_none_or(|orders| orders.try_send(order).is_ok());
                    if !passed && let Some(cancel) = cancels.get(&session) {
                        cancel.cancel();
                        let why = Refusal::Invalid("orders beyond the limits".into());
                        let _ = outbound.try_send(ToGateway::Refused { session, why });
                    }
                }
            },
            Some(ended) = running.join_next() => {
                if let Ok(session) = ended {
                    cancels.remove(&session);
                    parts.remove(&session);
                }
            }
            _ = heartbeat.tick(), if !cancels.is_empty() => {
                // A full queue carries enough signs of life.
                let _ = outbound.try_send(ToGateway::Heartbeat);
            }
            () = outbound.closed() => break,
            () = tokio::time::sleep(IDLE_MAX), if cancels.is_empty() => break,
        }
    }
}

/// What cancels the session.
fn admit(
    session: SessionId,
    checked: Result<(), DecodeError>,
    cancels: &mut HashMap<SessionId, CancellationToken>,
) -> Result<CancellationToken, Refusal> {
    checked.map_err(|error| Refusal::Invalid(error.to_string()))?;
    if cancels.contains_key(&session) {
        return Err(Refusal::Invalid("this session id is in use".into()));
    }
    if cancels.len() >= SESSIONS_PER_CHANNEL_MAX {
        return Err(Refusal::Busy);
    }
    let cancel = CancellationToken::new();
    cancels.insert(session, cancel.clone());
    Ok(cancel)
}

async fn run_session(
    session: SessionId,
    work: impl Future<Output = ()>,
    backend: SharedBackend,
    cancel: CancellationToken,
) -> SessionId {
    backend.load_changed();
    tokio::select! {
        () = work => {}
        () = cancel.cancelled() => {}
    }
    backend.load_changed();
    session
}

async fn generate(client: NodeId, open: Open, outbound: mpsc::Sender<ToGateway>, backend: SharedBackend) {
    let session = open.session;
    let answered = open.tokens.len() as u32 - open.prompt_tokens;
    match start(client, open, &backend).await {
        Err(why) => drop(outbound.send(ToGateway::Refused { session, why }).await),
        Ok(generation) => forward(session, answered, generation, &outbound, &backend).await,
    }
}

/// The gateway hears nothing between acceptance and vectors but heartbeats.
async fn embed(embed: Embed, outbound: mpsc::Sender<ToGateway>, backend: SharedBackend) {
    let Embed { session, model, texts } = embed;
    let engine = backend.engine(model).and_then(|engine| match engine.capabilities().features {
        features if features.contains(Features::EMBED) => Ok(engine),
        _ => Err(Refusal::Invalid("this model makes no embeddings".into())),
    });
    let answer = match engine {
        Err(why) => ToGateway::Refused { session, why },
        Ok(engine) => {
            if outbound.send(ToGateway::Accepted { session, queued: 0 }).await.is_err() {
                return;
            }
            match engine.embed(EmbedRequest { texts }).await {
                Ok(vectors) => ToGateway::Embedded { session, vectors },
                Err(error) => ToGateway::Refused { session, why: refusal(error) },
            }
        }
    };
    // A gateway that is gone needs no answer.
    let _ = outbound.send(answer).await;
}

async fn start(client: NodeId, open: Open, backend: &SharedBackend) -> Result<Generation, Refusal> {
    let engine = backend.engine(open.model)?;
    let context_tokens = engine.capabilities().context_tokens;
    if open.prompt_tokens.saturating_add(open.completion_tokens_max) > context_tokens {
        return Err(Refusal::ContextTooSmall { context_tokens });
    }
    engine.generate(generate_request(client, open)).await.map_err(refusal)
}

pub(crate) fn generate_request(client: NodeId, open: Open) -> GenerateRequest {
    GenerateRequest {
        client: client.0,
        tokens: open.tokens,
        prompt_tokens: open.prompt_tokens,
        completion_tokens_max: open.completion_tokens_max,
        stop_tokens: open.stop_tokens,
        sampling: open.sampling,
        top_logprobs: open.top_logprobs,
        grammar: open.grammar,
        tier: open.tier,
    }
}

async fn forward(
    session: SessionId,
    mut next: u32,
    mut generation: Generation,
    outbound: &mpsc::Sender<ToGateway>,
    backend: &SharedBackend,
) {
    if outbound.send(ToGateway::Accepted { session, queued: 0 }).await.is_err() {
        return;
    }
    loop {
        let message = match generation.events.recv().await {
            Some(Event::Queued(queued)) => ToGateway::Accepted { session, queued },
            Some(Event::Tokens(tokens)) => {
                let from = next;
                next += tokens.len() as u32;
                backend.count_tokens(tokens.len());
                ToGateway::Tokens { session, from, tokens }
            }
            Some(Event::Finished(finish, usage)) => ToGateway::Finished { session, finish, usage },
            Some(Event::Failed(error)) => ToGateway::Refused { session, why: refusal(error) },
            None => ToGateway::Refused { session, why: Refusal::EngineFailed },
        };
        let is_last = matches!(message, ToGateway::Finished { .. } | ToGateway::Refused { .. });
        if outbound.send(message).await.is_err() || is_last {
            return;
        }
    }
}

pub(crate) fn refusal(error: EngineError) -> Refusal {
    match error {
        EngineError::Busy => Refusal::Busy,
        EngineError::ContextTooSmall { context_tokens, .. } => Refusal::ContextTooSmall { context_tokens },
        EngineError::Invalid(why) => Refusal::Invalid(why),
        EngineError::ShuttingDown => Refusal::Draining,
        _ => Refusal::EngineFailed,
    }
}
