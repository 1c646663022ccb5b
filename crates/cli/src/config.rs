//! The node's settings: defaults < `config.toml` in the home < environment `OPENGRID_*` < flags.
//!
//! [`schema::KEYS`] is the one list of settings; parsing, the commented default file, the environment's names and
//! `config show` all come from it, and [`Config`] is what the rest of the program reads. Whatever is wrong is refused
//! with its place (file and line, variable or flag) and the nearest name that exists.

mod check;
mod schema;
mod show;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};

pub use self::{
    show::default_text,
    source::{Entry, Origin},
};
use self::{source::Settings, value::Value};

/// Name of the file in the home.
pub const FILE_NAME: &str = "config.toml";

/// What is wrong with the settings, in one line that says where and how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `place` is `…/config.toml line 7`, a variable's name or a flag's.
    #[error("{place}: {what}")]
    Setting { place: String, what: String },
    #[error("{}: cannot {action} the file: {source}", path.display())]
    File { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("{} exists already: edit it, or remove it first", .0.display())]
    Exists(PathBuf),
    #[error("this user has no home directory: set OPENGRID_HOME or give --home DIR")]
    NoHome,
    #[error("the settings do not fit the program (a bug, please report it): {0}")]
    Schema(String),
}

/// Everything that can be set, checked and bounded.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub api: Api,
    pub network: Network,
    pub serve: Serve,
    pub models: Models,
    pub limits: Limits,
    pub log: Log,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub role: Role,
    /// Time that running answers get to end when the node is asked to stop, in seconds.
    pub grace_seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Auto,
    Edge,
    Worker,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    pub listen: SocketAddr,
    /// `Host` names (no ports) that are accepted besides localhost and the address listened on.
    pub hosts: Vec<String>,
    /// On loopback, too, a key is needed.
    pub require_key: bool,
    /// Origins of web pages that may use the API; `*` is any.
    pub cors_origins: Vec<String>,
    /// `None`: without limit; so for the next.
    #[serde(deserialize_with = "zero_is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
}

impl Api {
    /// Whether everything but the page needs a key.
    pub fn needs_key(&self) -> bool {
        self.require_key || !self.listen.ip().is_loopback()
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// TCP and UDP port; 0 takes a free one.
    pub p2p_port: u16,
    /// Invites of nodes to join.
    pub join: Vec<String>,
    /// Multiaddresses with `/p2p/…` of nodes to start from.
    pub bootstrap: Vec<String>,
    pub mdns: bool,
    pub upnp: bool,
    /// Whether this node relays for others when it is publicly reachable.
    pub relay: bool,
    /// File with the 32-byte key of a private grid.
    #[serde(deserialize_with = "empty_is_no_path")]
    pub grid_key: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serve {
    pub models: ServeModels,
    pub engine: Engine,
    #[serde(deserialize_with = "empty_is_none")]
    pub draft: Option<String>,
    /// `None`: as the machine's profile recommends; so for the next three.
    #[serde(deserialize_with = "zero_is_none")]
    pub threads: Option<NonZeroU32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub slots: Option<NonZeroU32>,
    #[serde(deserialize_with = "zero_is_none")]
    pub context_tokens: Option<NonZeroU32>,
    /// In MiB.
    #[serde(deserialize_with = "zero_is_none")]
    pub kv_budget_mb: Option<NonZeroU32>,
    /// Most prompt tokens computed in one step.
    #[serde(deserialize_with = "zero_is_none")]
    pub prefill_chunk: Option<NonZeroU32>,
    /// Sessions that may wait for a slot, per model.
    pub queue: u16,
    /// Of one stream of the fake engine; 0 never answers.
    pub fake_tokens_per_s: u32,
    pub gpu_layers: u32,
}

/// Which models the node serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServeModels {
    /// What the benchmark says it can, out of what the store has.
    Auto,
    None,
    /// These; what is missing is fetched.
    These(Vec<String>),
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Engine {
    /// The embedded one, batch-invariant on CPU.
    Exact,
    /// The embedded one with default kernels.
    Fast,
    /// Deterministic nonsense at a given pace, for load tests of everything around the engine.
    Fake,
    /// An external one on a usual port of this machine.
    Auto,
    /// The external one at this URL.
    External(String),
}

impl From<String> for Engine {
    fn from(text: String) -> Self {
        match text.as_str() {
            "exact" => Self::Exact,
            "fast" => Self::Fast,
            "fake" => Self::Fake,
            "auto" => Self::Auto,
            _ => Self::External(text),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// The store; resolved, so never empty.
    pub dir: PathBuf,
    pub hub: String,
    /// In the order in which they are tried.
    pub sources: Vec<ModelSource>,
}

/// Where model files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelSource {
    Peers,
    Hub,
    /// The package that the catalogue names for the model.
    Package,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Share of the cores that the engine may use.
    pub cpu_percent: u32,
    /// Share of the available memory that weights and KV cache may take.
    pub memory_percent: u32,
    /// Most of it for one model or stage, in MiB.
    #[serde(deserialize_with = "zero_is_none")]
    pub memory_mb: Option<NonZeroU32>,
    /// Requests that the gateway answers at once.
    pub requests: u32,
    /// Bytes of an HTTP request body, in KiB.
    pub body_kb: u32,
    /// Connections to peers.
    pub connections: u32,
    /// Rows that go ahead to nodes which would come in for a lost stage, in KiB per second.
    pub standby_kb_per_s: u32,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The directive that `tracing_subscriber::EnvFilter` reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// What the command line sets. Values are texts in the environment's form (lists with commas).
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Clone, Debug)]
struct Override {
    key: &'static str,
    flag: &'static str,
    text: String,
}

impl Overrides {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` (as `api.listen`) to what `flag` (as `--listen`) was given; `None` leaves it.
    #[must_use]
    pub fn set(mut self, key: &'static str, flag: &'static str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| Override { key, flag, text: value.to_string() }));
        self
    }

    /// Sets a list; an empty one leaves the setting.
    #[must_use]
    pub fn set_list(self, key: &'static str, flag: &'static str, values: &[String]) -> Self {
        let joined = (!values.is_empty()).then(|| values.join(","));
        self.set(key, flag, joined)
    }
}

/// The settings in force, and where each comes from.
#[derive(Clone, Debug)]
pub struct Effective {
    pub config: Config,
    /// The node's directory. Not created here.
    pub home: PathBuf,
    /// One per setting, in the order of the file.
    pub entries: Vec<Entry>,
}

impl Effective {
    /// The settings file, whether or not it exists.
    pub fn file(&self) -> PathBuf {
        self.home.join(FILE_NAME)
    }
}

impl Config {
    /// Reads all sources. `home` is what `--home` was given. A home without a file is fine.
    ///
    /// # Errors
    /// The first setting that is unknown, of the wrong type or out of bounds, with its place.
    pub fn load(home: Option<PathBuf>, overrides: Overrides) -> Result<Effective, ConfigError> {
        Self::load_with(home, overrides, std::env::vars_os())
    }

    /// As [`Config::load`], in the given environment.
    pub(crate) fn load_with(
        home: Option<PathBuf>,
        overrides: Overrides,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Effective, ConfigError> {
        let env = source::our_variables(env)?;
        let (home, home_origin) = locate_home(home, &env)?;
        let mut settings = Settings::defaults(&platform_models_dir())?;
        settings.read_file(&home)?;
        settings.read_env(&env)?;
        for Override { key, flag, text } in &overrides.0 {
            settings.set_text(key, text, Origin::Flag(flag))?;
        }
        let config = settings.config()?;
        check::together(&config)?;
        let mut entries = vec![Entry::new("node.home", Value::path(&home), home_origin)];
        entries.extend(settings.into_entries());
        Ok(Effective { config, home, entries })
    }
}

/// Writes the commented default file into `home` (created if missing) and returns its path.
///
/// # Errors
/// [`ConfigError::Exists`] rather than overwriting, [`ConfigError::File`].
pub fn init(home: &Path) -> Result<PathBuf, ConfigError> {
    use std::io::Write;
    let path = home.join(FILE_NAME);
    let failed = |action, source| ConfigError::File { path: path.clone(), action, source };
    std::fs::create_dir_all(home).map_err(|error| failed("create the directory of", error))?;
    match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(mut file) => file.write_all(default_text().as_bytes()).map_err(|error| failed("write", error))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(ConfigError::Exists(path)),
        Err(error) => return Err(failed("create", error)),
    }
    Ok(path)
}

/// The home that `--home`, `OPENGRID_HOME` or the platform names, without reading any file.
///
/// # Errors
/// [`ConfigError::NoHome`].
pub fn home_dir(flag: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    locate_home(flag, &source::our_variables(std::env::vars_os())?).map(|(home, _)| home)
}

fn locate_home(flag: Option<PathBuf>, env: &[(String, String)]) -> Result<(PathBuf, Origin), ConfigError> {
    if let Some(home) = flag {
        return Ok((absolute(home), Origin::Flag("--home")));
    }
    let variable = env.iter().find(|(name, value)| name == "OPENGRID_HOME" && !value.is_empty());
    if let Some((name, home)) = variable {
        return Ok((absolute(home.into()), Origin::Env(name.clone())));
    }
    let home = platform_data_dir().ok_or(ConfigError::NoHome)?;
    Ok((home, Origin::Default))
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn platform_data_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "opengrid").map(|dirs| dirs.data_dir().to_owned())
}

/// Empty where the platform has no such place; [`check::together`] then asks for one.
fn platform_models_dir() -> PathBuf {
    platform_data_dir().map(|dir| dir.join("models")).unwrap_or_default()
}

fn empty_is_no_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    String::deserialize(deserializer).map(|text| (!text.is_empty()).then(|| text.into()))
}

fn empty_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(|text| (!text.is_empty()).then_some(text))
}

fn zero_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NonZeroU32>, D::Error> {
    u32::deserialize(deserializer).map(NonZeroU32::new)
}

impl<'de> Deserialize<'de> for ServeModels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ids = Vec::<String>::deserialize(deserializer)?;
        Ok(match ids.as_slice() {
            [] => Self::None,
            [only] if only == "none" => Self::None,
            [only] if only == "auto" => Self::Auto,
            _ => Self::These(ids),
        })
    }
}
