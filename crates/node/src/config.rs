//! What a node is told at start. The CLI fills it from flags, environment and file.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

pub use opengrid_engine::Mode;
use opengrid_models::download::FetchConfig;
use opengrid_protocol::{Layers, LayersError};

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Key, lock, peer cache and runtime file live here.
    pub home: PathBuf,
    /// Where the gateway listens (bound by the caller; here for status and the runtime file).
    pub api: SocketAddr,
    pub network: NetworkSettings,
    pub serve: Serve,
    pub role: Role,
    /// The model store, shared by all homes of this user.
    pub models_dir: PathBuf,
    /// Where the user's `catalogue.toml` lies, if there is one.
    pub catalogue_dir: PathBuf,
    /// Where missing models come from, in which order.
    pub fetch: FetchConfig,
    /// The `opengrid` binary, to start the engine's child processes with.
    pub program: PathBuf,
    pub engine: EngineSettings,
    /// Share of the cores and of the available memory that the owner gives, 1 to 100.
    pub cpu_percent: u32,
    pub memory_percent: u32,
    /// Most memory for one model or stage, in bytes; `None`: what the percentage gives.
    pub memory_bytes: Option<u64>,
    /// Rows of running sessions leave no faster for nodes that would come in for a lost stage; 0: none do, and none are kept.
    pub ahead_bytes_per_s: u64,
    /// How long running sessions may take to end after SIGTERM.
    pub grace: Duration,
}

#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// TCP and UDP; 0 takes any.
    pub p2p_port: u16,
    /// Invites.
    pub join: Vec<String>,
    /// Multiaddresses with `/p2p/…`.
    pub bootstrap: Vec<String>,
    pub connections_max: u32,
    pub mdns: bool,
    pub upnp: bool,
    pub relay_server: bool,
    /// Pre-shared key of a private grid.
    pub grid_key: Option<[u8; 32]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serve {
    /// What the benchmark says this machine can, of what the store has.
    Auto,
    None,
    Models(Vec<Wish>),
}

/// A model to serve, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// As the catalogue names it.
    pub model: String,
    pub part: WishedPart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WishedPart {
    Whole,
    Layers(Layers),
    /// The layers that the grid lacks most, as many as fit.
    Auto,
}

/// `MODEL`, `MODEL@FROM..TO` or `MODEL@auto`.
impl FromStr for Wish {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        let (model, part) = match text.rsplit_once('@') {
            Some((model, "auto")) => (model, WishedPart::Auto),
            Some((model, layers)) if layers.contains("..") => (model, WishedPart::Layers(layers.parse()?)),
            // Ids may have an @ of their own.
            _ => (text, WishedPart::Whole),
        };
        Ok(Self { model: model.to_owned(), part })
    }
}

/// The whole of a model.
impl From<&str> for Wish {
    fn from(model: &str) -> Self {
        Self { model: model.to_owned(), part: WishedPart::Whole }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Auto,
    Edge,
    Worker,
}

#[derive(Clone, Debug)]
pub struct EngineSettings {
    pub kind: EngineKind,
    pub mode: Mode,
    /// `None`: what the host recommends.
    pub threads: Option<u32>,
    pub slots: Option<u16>,
    pub context_tokens: Option<u32>,
    pub kv_budget_bytes: Option<u64>,
    /// Tokens prefilled at most in one step.
    pub prefill_chunk: Option<u32>,
    pub gpu_layers: u32,
    pub queue_max: u16,
    /// A model, as the catalogue names it, that guesses the next tokens where the last layers of another are served.
    pub draft: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EngineKind {
    Embedded,
    /// The first of these servers that computes the one model to serve.
    External {
        urls: Vec<String>,
    },
    /// Deterministic nonsense at a given speed, for load tests of everything around the engine.
    Fake {
        tokens_per_s: f32,
        slots: u16,
    },
}
