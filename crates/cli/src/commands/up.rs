//! `opengrid up`: a node in the foreground, until a signal or `opengrid down`.

mod engines;
mod loading;
mod node_config;
mod stop;

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use opengrid_gateway::{GatewayConfig, Limits, keys, serve};
use opengrid_node::{
    Node,
    handle::{GridHandle, Status},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::stop::Signals;
use crate::{config::Config, context::Context, open_files, output, shapes::named};

/// What closing engines, files and sockets may take beyond the grace time.
const CLOSING_MAX: Duration = Duration::from_secs(10);

/// Open files that are not for HTTP clients: peers, models, engines.
const FILES_KEPT: u64 = 768;
const CONNECTIONS_MIN: usize = 64;

/// # Errors
/// When the port is taken, another node uses the home, or the node cannot start.
pub async fn run(context: &Context) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    refuse_second_node(context)?;
    let connections_max = open_files::raise().saturating_sub(FILES_KEPT) as usize;
    let config = &context.settings.config;
    let keys = keys::read(&context.home)?.keys().len();
    let engine_urls = engines::urls(&config.serve).await?;
    let listener = bind(config.api.listen).await?;
    let address = listener.local_addr().context("the API's address is unknown")?;
    let node = Node::start(node_config::of(context, address, engine_urls)?).await?;
    let closing = CancellationToken::new();
    let gateway_config = gateway_config(config, &context.home, &node, connections_max);
    let mut gateway = tokio::spawn(serve(listener, node.clone(), gateway_config, closing.clone()));
    announce(&node.status(), context.json)?;
    if config.api.needs_key() {
        say_what_is_needed(address, keys);
    }
    let loading = tokio::spawn(loading::show(node.clone(), closing.clone()));
    let ended = tokio::select! {
        name = signals.next() => Ok(Some(name)),
        () = node.shutdown_requested() => Ok(None),
        ended = &mut gateway => Err(ended),
    };
    closing.cancel();
    let failure = match ended {
        Ok(signal) => {
            say_draining(signal, context.grace);
            drain(&node, gateway, &mut signals, context.grace).await?;
            None
        }
        Err(ended) => {
            node.shutdown().await;
            Some(ended)
        }
    };
    loading.await.context("the display of progress failed")?;
    match failure {
        None => Ok(()),
        Some(Ok(Ok(()))) => bail!("the API ended by itself: see the log"),
        Some(Ok(Err(error))) => Err(anyhow::Error::new(error).context("the API failed")),
        Some(Err(error)) => Err(anyhow::Error::new(error).context("the API failed")),
    }
}

/// Before the port is tried, so that the message names the real cause. The lock decides, not what a crash left.
fn refuse_second_node(context: &Context) -> anyhow::Result<()> {
    opengrid_node::identity::lock_home(&context.home)?;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            let other = SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(8_470));
            anyhow::anyhow!("{address} is taken by another program: choose another address, e.g. --listen {other}")
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("{address} is no address of this machine: choose one with --listen, e.g. 127.0.0.1:8470")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{address} is not allowed to this user: choose a port above 1023 with --listen")
        }
        _ => anyhow::anyhow!("cannot listen on {address} ({error}): choose another address with --listen"),
    })
}

fn gateway_config(config: &Config, home: &Path, node: &Node, connections_max: usize) -> GatewayConfig {
    let defaults = GatewayConfig::default();
    GatewayConfig {
        connections_max: defaults.connections_max.min(connections_max.max(CONNECTIONS_MIN)),
        local_token: node.token().to_owned(),
        keys_home: Some(home.to_owned()),
        require_key: config.api.require_key,
        cors_origins: config.api.cors_origins.clone(),
        limits: Limits {
            requests_per_minute: config.api.requests_per_minute,
            tokens_per_minute: config.api.tokens_per_minute,
        },
        allowed_hosts: config.api.hosts.clone(),
        body_bytes_max: config.limits.body_kb as usize * 1024,
        requests_max: config.limits.requests as usize,
        grace: Duration::from_secs(config.node.grace_seconds),
        ..defaults
    }
}

fn announce(status: &Status, json: bool) -> anyhow::Result<()> {
    let models: Vec<String> = status.models.iter().map(|model| named(&model.id, model.layers.as_deref())).collect();
    if json {
        return output::line(
            json!({
                "api": status.api, "web": format!("{}/", status.api), "peer_id": status.peer_id.0.to_string(),
                "invite": status.invite, "serves": models, "role": status.role, "pid": std::process::id(),
            })
            .to_string(),
        );
    }
    let serves = if models.is_empty() { "no model (it uses the grid's)".to_owned() } else { models.join(", ") };
    let rows = [
        ("api", format!("{}/v1", status.api)),
        ("web page", format!("{}/", status.api)),
        ("peer id", status.peer_id.0.to_string()),
        ("invite", status.invite.clone()),
        ("serves", serves),
    ];
    output::line(output::pairs(&rows))
}

/// For an API that asks for keys, which is the usual surprise after `--listen 0.0.0.0:8470`.
fn say_what_is_needed(address: SocketAddr, keys: usize) {
    let has = match keys {
        0 => "there is none yet, `opengrid keys create NAME` makes one".to_owned(),
        1 => "there is 1, `opengrid keys ls` shows it".to_owned(),
        _ => format!("there are {keys}, `opengrid keys ls` shows them"),
    };
    eprintln!("the API asks for a key: {has}");
    if address.ip().is_unspecified() {
        let port = address.port();
        eprintln!("other machines reach it under this one's addresses, port {port}; names have to stand in api.hosts");
    }
}

fn say_draining(signal: Option<&str>, grace: Duration) {
    let cause = signal.unwrap_or("asked to stop");
    eprintln!("{cause}: running answers get up to {} s to end (again: stop at once)", grace.as_secs());
}

/// Lets running answers end. A second signal, or a node that does not end in time, cuts it short.
async fn drain(
    node: &Arc<Node>,
    gateway: JoinHandle<Result<(), opengrid_gateway::ServeError>>,
    signals: &mut Signals,
    grace: Duration,
) -> anyhow::Result<()> {
    let stopped = async {
        node.shutdown().await;
        gateway.await
    };
    tokio::select! {
        served = tokio::time::timeout(grace + CLOSING_MAX, stopped) => match served {
            Ok(served) => Ok(served.context("the API failed")??),
            Err(_) => bail!("the node did not end within {} s: ended at once", (grace + CLOSING_MAX).as_secs()),
        },
        _ = signals.next() => bail!("stopped at once: running answers were cut off"),
    }
}
