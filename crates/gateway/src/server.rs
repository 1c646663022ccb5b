//! The listener: accepts, bounds and ends connections, and routes requests.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Method, Uri},
    middleware,
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use opengrid_node::handle::SharedGrid;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access,
    anthropic_api, cors, guard,
    limits::Limits,
    metrics::Metrics,
    native_api,
    openai_api::{self, errors::ApiError, responses},
    openapi,
    security::Policy,
    text::template::TemplateCache,
    web,
};

/// Limits and secrets of the gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Opens everything, without limits.
    pub local_token: String,
    /// The node's home, where its API keys lie; they are read again when they change. `None`: there are none.
    pub keys_home: Option<PathBuf>,
    /// On loopback, too, nothing but the page and `/health` is open without a key. Beyond it that is always so.
    pub require_key: bool,
    /// Names under which the gateway may be addressed, besides localhost and the listener's address.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may use the gateway, exactly as browsers write them; `*` is any.
    pub cors_origins: Vec<String>,
    /// For callers without limits of their own; all of them without a key share one meter.
    pub limits: Limits,
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// Largest sum of the bodies that are being read and prepared, in bytes.
    pub bodies_bytes_max: usize,
    /// Open connections; more wait in the listener's queue.
    pub connections_max: usize,
    /// Requests that are being answered by the grid; more get 503.
    pub requests_max: usize,
    /// Sessions that one request may open (`n` times its prompts).
    pub choices_max: u32,
    /// Subscribers of `/grid/v1/events`; more get 503.
    pub subscribers_max: usize,
    /// Between two snapshots of `/grid/v1/events`.
    pub snapshot_every: Duration,
    /// After so long without anything to say, a stream gets a comment line.
    pub keep_alive_every: Duration,
    /// How long running requests may go on after `shutdown`.
    pub grace: Duration,
}

impl Default for GatewayConfig {
    /// The defaults; the empty token refuses all that needs one.
    fn default() -> Self {
        Self {
            local_token: String::new(),
            keys_home: None,
            require_key: false,
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            limits: Limits::default(),
            body_bytes_max: 8 * 1024 * 1024,
            bodies_bytes_max: 256 * 1024 * 1024,
            connections_max: 16_384,
            requests_max: 12_288,
            choices_max: 64,
            subscribers_max: 64,
            snapshot_every: Duration::from_secs(1),
            keep_alive_every: Duration::from_secs(10),
            grace: Duration::from_secs(10),
        }
    }
}

/// Why the gateway does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error("the listener has no address: {0}")]
    Listener(#[source] io::Error),
}

/// What every handler sees.
pub struct Gateway {
    pub grid: SharedGrid,
    pub config: GatewayConfig,
    pub policy: Policy,
    pub access: Access,
    pub metrics: Arc<Metrics>,
    pub templates: TemplateCache,
    pub requests: Arc<Semaphore>,
    /// One permit is one KiB.
    pub bodies: Arc<Semaphore>,
    /// Templates that may render at once: they are work for the processor, more would only add threads.
    pub rendering: Semaphore,
    pub events: native_api::events::Snapshots,
    pub shutdown: CancellationToken,
}

pub type SharedGateway = Arc<Gateway>;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const HEADER_READ_TIME_MAX: Duration = Duration::from_secs(30);
const READ_BUFFER_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;

/// Serves HTTP/1.1 on `listener` until `shutdown`, then lets running requests end within the grace time.
///
/// # Errors
/// [`ServeError`] when the listener is unusable. Failing connections are no errors.
pub async fn serve(
    listener: TcpListener,
    grid: SharedGrid,
    config: GatewayConfig,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    let router = router(Gateway::new(address, grid, config.clone(), shutdown.clone()));
    let places = Arc::new(Semaphore::new(config.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                connections.spawn(serve_connection(stream, router.clone(), shutdown.clone(), place));
            }
            // Mostly too many open files: connections that end will help.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(config.grace, drained).await.is_err() {
        tracing::warn!("requests were cut off: they outlasted the grace time");
    }
    connections.shutdown().await;
    Ok(())
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIME_MAX)
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

impl Gateway {
    fn new(address: SocketAddr, grid: SharedGrid, config: GatewayConfig, shutdown: CancellationToken) -> SharedGateway {
        Arc::new(Self {
            policy: Policy::new(address, &config.allowed_hosts, &config.cors_origins),
            access: Access::new(
                address,
                config.local_token.clone(),
                config.keys_home.as_deref(),
                config.require_key,
                config.limits,
            ),
            metrics: Arc::default(),
            templates: TemplateCache::default(),
            requests: Arc::new(Semaphore::new(config.requests_max)),
            bodies: Arc::new(Semaphore::new(config.bodies_bytes_max / 1024)),
            rendering: Semaphore::new(std::thread::available_parallelism().map_or(4, |cores| cores.get() * 2)),
            events: native_api::events::Snapshots::new(config.subscribers_max, config.snapshot_every),
            grid,
            config,
            shutdown,
        })
    }
}

fn router(gateway: SharedGateway) -> Router {
    Router::new()
        .route("/v1/models", get(openai_api::models::list))
        .route("/v1/models/{*id}", get(openai_api::models::retrieve))
        .route("/v1/chat/completions", post(openai_api::chat::handle))
        .route("/v1/completions", post(openai_api::completions::handle))
        .route("/v1/embeddings", post(openai_api::embeddings::handle))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::count))
        .route("/v1/responses/{id}", get(responses::not_stored).delete(responses::not_stored))
        .route("/v1/responses/{id}/input_items", get(responses::not_stored))
        .route("/v1/responses/{id}/cancel", post(responses::not_stored))
        .route("/v1/messages", post(anthropic_api::create))
        .route("/v1/messages/count_tokens", post(anthropic_api::count))
        .route("/health", get(native_api::health))
        .route("/metrics", get(native_api::metrics))
        .route("/grid/v1/status", get(native_api::status))
        .route("/grid/v1/peers", get(native_api::peers))
        .route("/grid/v1/models", get(native_api::models))
        .route("/grid/v1/events", get(native_api::events::handle))
        .route("/grid/v1/openapi.json", get(openapi::serve))
        .route("/grid/v1/join", post(native_api::control::join))
        .route("/grid/v1/pull", post(native_api::control::pull))
        .route("/grid/v1/shutdown", post(native_api::control::shutdown))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(web::serve_file)
        .layer(middleware::from_fn_with_state(gateway.clone(), guard::authorise))
        .layer(tower::util::option_layer(cors::layer(&gateway.config.cors_origins)))
        .layer(middleware::from_fn_with_state(gateway.clone(), guard::admit))
        .with_state(gateway)
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(&method, uri.path())
}
