//! From settings to what a node is told.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::Context as _;
use opengrid_node::config::{EngineKind, EngineSettings, Mode, NetworkSettings, NodeConfig, Role, Serve, Wish};

use crate::{
    commands::pull::fetch_config,
    config::{self, Engine, ServeModels},
    context::Context,
    errors::usage,
    joins,
};

/// Streams of the fake engine unless told.
const FAKE_SLOTS: u16 = 256;
/// A swarm key file of three short lines, or 64 hexadecimal digits.
const GRID_KEY_BYTES_MAX: u64 = 1_024;

/// `address`: where the API listens. `engine_urls`: of external engines, in the order in which they are tried.
///
/// # Errors
/// When the grid key, a kept invite or the program's own path cannot be read.
pub fn of(context: &Context, address: SocketAddr, engine_urls: Vec<String>) -> anyhow::Result<NodeConfig> {
    let config = &context.settings.config;
    let mut join = config.network.join.clone();
    join.extend(joins::read(&context.home)?);
    Ok(NodeConfig {
        home: context.home.clone(),
        api: reachable(address),
        network: NetworkSettings {
            p2p_port: config.network.p2p_port,
            join,
            bootstrap: config.network.bootstrap.clone(),
            connections_max: config.limits.connections,
            mdns: config.network.mdns,
            upnp: config.network.upnp,
            relay_server: config.network.relay,
            grid_key: config.network.grid_key.as_deref().map(grid_key).transpose()?,
        },
        serve: serve(&config.serve.models),
        role: match config.node.role {
            config::Role::Auto => Role::Auto,
            config::Role::Edge => Role::Edge,
            config::Role::Worker => Role::Worker,
        },
        catalogue_dir: config.models.dir.clone(),
        models_dir: config.models.dir.clone(),
        fetch: fetch_config(&config.models),
        program: std::env::current_exe().context("the program's own path is unknown")?,
        engine: engine(&config.serve, engine_urls),
        cpu_percent: config.limits.cpu_percent,
        memory_percent: config.limits.memory_percent,
        memory_bytes: crate::engine::memory_bytes(config),
        ahead_bytes_per_s: u64::from(config.limits.standby_kb_per_s) << 10,
        grace: context.grace,
    })
}

/// Where a client on this machine reaches the listener.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn serve(models: &ServeModels) -> Serve {
    match models {
        ServeModels::Auto => Serve::Auto,
        ServeModels::None => Serve::None,
        // The settings were checked: what is no wish is an id.
        ServeModels::These(ids) => {
            Serve::Models(ids.iter().map(|id| id.parse().unwrap_or_else(|_| Wish::from(id.as_str()))).collect())
        }
    }
}

fn engine(serve: &config::Serve, engine_urls: Vec<String>) -> EngineSettings {
    let slots = serve.slots.map(|slots| u16::try_from(slots.get()).unwrap_or(u16::MAX));
    let fake = EngineKind::Fake { tokens_per_s: serve.fake_tokens_per_s as f32, slots: slots.unwrap_or(FAKE_SLOTS) };
    EngineSettings {
        kind: match serve.engine {
            Engine::Fake => fake,
            Engine::Exact | Engine::Fast => EngineKind::Embedded,
            Engine::Auto | Engine::External(_) => EngineKind::External { urls: engine_urls },
        },
        mode: if serve.engine == Engine::Fast { Mode::Fast } else { Mode::Exact },
        threads: serve.threads.map(|threads| threads.get()),
        slots,
        context_tokens: serve.context_tokens.map(|tokens| tokens.get()),
        kv_budget_bytes: serve.kv_budget_mb.map(|budget| u64::from(budget.get()) << 20),
        prefill_chunk: serve.prefill_chunk.map(|tokens| tokens.get()),
        gpu_layers: serve.gpu_layers,
        queue_max: serve.queue,
        draft: serve.draft.clone(),
    }
}

/// The key of a private grid: 64 hexadecimal digits, alone or in the last line of a libp2p `swarm.key`.
fn grid_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let shown = path.display();
    let text = read_bounded(path).map_err(|error| usage(format!("the grid key {shown} cannot be read: {error}")))?;
    let digits = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("");
    let mut key = [0; 32];
    hex::decode_to_slice(digits, &mut key).map_err(|_| {
        usage(format!("{shown} is no grid key: it holds 64 hexadecimal digits (`openssl rand -hex 32` makes them)"))
    })?;
    Ok(key)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > GRID_KEY_BYTES_MAX {
        return Err(io::Error::other(format!("it is over {GRID_KEY_BYTES_MAX} bytes")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::args::{Global, UpArgs};

    #[test]
    fn settings_reach_the_node() {
        let home = tempfile::tempdir().unwrap();
        let text = "[serve]\nmodels = \"none\"\nprefill_chunk = 5\nengine = \"fast\"\nkv_budget_mb = 3\n[network]\nmdns = false\n";
        fs::write(home.path().join("config.toml"), text).unwrap();
        let global = Global { home: Some(home.path().to_owned()), json: false, log: None };
        let context = Context::load(&global, Some(&UpArgs::default())).unwrap();
        let config = of(&context, "0.0.0.0:9".parse().unwrap(), Vec::new()).unwrap();
        assert_eq!(config.api.to_string(), "127.0.0.1:9");
        assert_eq!(config.serve, Serve::None);
        assert_eq!(config.engine.mode, Mode::Fast);
        assert_eq!(config.engine.kv_budget_bytes, Some(3 << 20));
        assert_eq!(config.engine.prefill_chunk, Some(5));
        assert!(!config.network.mdns);
    }

    #[test]
    fn grid_keys_are_read_in_both_forms() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        let digits = "ab".repeat(32);
        for text in [digits.clone(), format!("{digits}\n"), format!("/key/swarm/psk/1.0.0/\n/base16/\n{digits}\n")] {
            fs::write(&path, text).unwrap();
            assert_eq!(grid_key(&path).unwrap(), [0xab; 32]);
        }
        for text in ["", "abcd", &"zz".repeat(32), &"ab".repeat(600)] {
            fs::write(&path, text).unwrap();
            assert!(grid_key(&path).is_err(), "{text}");
        }
        assert!(grid_key(&home.path().join("none")).is_err());
    }
}
