//! Verbs and flags. Their names are a contract: add, never rename.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use opengrid_protocol::{Layers, LayersError};

/// Volunteers' computers run language models together.
#[derive(Parser, Debug)]
#[command(
    name = "opengrid",
    version,
    about = "Volunteers' computers run language models together.",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "a first try: `opengrid up` in one terminal, `opengrid run smollm2-135m` in another"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Directory of the node's key, config and state [env: OPENGRID_HOME]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub home: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// What is logged to stderr: error, warn, info, debug, or a filter such as `opengrid_network=debug`
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Global options")]
    pub log: Option<String>,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a node in the foreground
    Up(UpArgs),
    /// Chat with a model in the terminal
    Run(RunArgs),
    /// Get a model into the store: an id of the catalogue or a GGUF file
    Pull(PullArgs),
    /// Make a file of some layers of a model, fetching only what it needs
    Slice(SliceArgs),
    /// List the models of the catalogue and of the store
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show all that is known of a model
    Show(ShowArgs),
    /// Remove models from the store
    Rm(RmArgs),
    /// Show what the running node serves and how busy it is
    Ps(TargetArgs),
    /// Show the state of the running node
    Status(TargetArgs),
    /// List the nodes that the running node knows
    Peers(TargetArgs),
    /// Print an invite to the running node's grid
    Invite(InviteArgs),
    /// Join the grid of an invite
    Join(JoinArgs),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Drain and stop the running node
    Down(DownArgs),
    /// Measure this machine: tokens per second, memory, disk, cores, GPU
    Bench(BenchArgs),
    /// Check this machine and node, and say how to mend what is wrong
    Doctor(DoctorArgs),
    /// Write or show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

#[derive(Args, Debug, Default)]
pub struct UpArgs {
    /// Address of the HTTP API and the web page [default: 127.0.0.1:8470]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// TCP and UDP port for other nodes, 0 for any [default: 4470]
    #[arg(long, value_name = "PORT")]
    pub p2p_port: Option<u16>,
    /// Invite of a grid to join; may be given several times
    #[arg(long, value_name = "INVITE", action = ArgAction::Append)]
    pub join: Vec<String>,
    /// Models to serve (comma-separated ids), or `none`; without it, what the benchmark says this machine can
    #[arg(long, value_name = "MODEL,…|none|auto", value_delimiter = ',')]
    pub serve: Option<Vec<String>>,
    /// Only these layers of the models that --serve names, for sessions over several nodes; `auto`: those that the grid
    /// lacks
    #[arg(long, value_name = "FROM..TO|auto", requires = "serve", value_parser = layers_or_auto)]
    pub layers: Option<String>,
    /// A small model with the same tokens that guesses ahead where the last layers are served, if memory is left for it
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,
    /// What computes: `exact` (built in), `fast` (built in, default kernels), the URL of a llama-server, vLLM or
    /// trtllm-serve, or `auto` to look for one on this machine [default: exact]
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<String>,
    /// What this node does for the grid [default: auto]
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
    /// File with the pre-shared key of a private grid (64 hexadecimal digits)
    #[arg(long, value_name = "FILE")]
    pub grid_key: Option<PathBuf>,
    /// Threads of the engine [default: what suits this machine]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
}

fn layers_or_auto(text: &str) -> Result<String, LayersError> {
    match text {
        "auto" => Ok(text.to_owned()),
        _ => text.parse::<Layers>().map(|layers| layers.to_string()),
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleArg {
    Auto,
    Edge,
    Worker,
}

impl RoleArg {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Edge => "edge",
            Self::Worker => "worker",
        }
    }
}

/// Which running node to talk to.
#[derive(Args, Debug, Default, Clone)]
pub struct TargetArgs {
    /// API of the node to talk to [default: the node that runs in the home]
    #[arg(long, value_name = "URL")]
    pub api: Option<String>,
    /// API key for the node of --api
    #[arg(long, value_name = "KEY", env = "OPENGRID_KEY", hide_env_values = true)]
    pub key: Option<String>,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// Model id, see `opengrid ls`
    pub model: String,
    /// What to ask; without it (and with a terminal) a conversation starts
    pub prompt: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// 0 always takes the most probable token [default: 0.3]
    #[arg(long, value_name = "0..2", value_parser = temperature)]
    pub temperature: Option<f32>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=131_072))]
    pub max_tokens: Option<u32>,
    /// Same seed, prompt and settings: same answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub target: TargetArgs,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=2.0).contains(&value) => Ok(value),
        _ => Err("a number from 0 to 2 is needed".into()),
    }
}

#[derive(Args, Debug)]
pub struct PullArgs {
    /// Catalogue id, or path of a `.gguf` file
    pub model: String,
}

#[derive(Args, Debug)]
pub struct SliceArgs {
    /// Model id, see `opengrid ls`
    pub model: String,
    /// Which layers, counted from 0, without the last number: 0..10 are the first ten
    #[arg(long, value_name = "FROM..TO", value_parser = str::parse::<Layers>)]
    pub layers: Layers,
}

#[derive(Args, Debug, Default)]
pub struct LsArgs {
    /// Only what is in the store
    #[arg(long)]
    pub local: bool,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Model id, see `opengrid ls`
    pub model: String,
    /// Print only where its file lies
    #[arg(long)]
    pub path: bool,
}

#[derive(Args, Debug)]
pub struct RmArgs {
    /// Model ids, see `opengrid ls --local`
    #[arg(required = true, num_args = 1..=64)]
    pub models: Vec<String>,
}

#[derive(Args, Debug)]
pub struct InviteArgs {
    /// Draw a QR code after the invite
    #[arg(long)]
    pub qr: bool,
    /// Seconds to wait for a node that is starting
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=600))]
    pub wait: u64,
    #[command(flatten)]
    pub target: TargetArgs,
}

#[derive(Args, Debug)]
pub struct JoinArgs {
    /// The line that `opengrid invite` printed on the other side
    pub invite: String,
}

#[derive(Args, Debug)]
pub struct DownArgs {
    /// Seconds to wait until the node is gone [default: its grace time and a little]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3_600))]
    pub wait: Option<u64>,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Model ids to measure [default: all in the store]
    #[arg(num_args = 0..=16)]
    pub models: Vec<String>,
    /// Threads of the engine [default: what suits this machine]
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
}

#[derive(Args, Debug, Default)]
pub struct DoctorArgs {
    /// Do not read whole model files to check their hashes
    #[arg(long)]
    pub quick: bool,
}

#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Write a fully commented config.toml into the home
    Init,
    /// Show every setting, its value and where it comes from
    Show,
}

#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// Make a key and print it, once
    Create(KeysCreateArgs),
    /// List the keys by their beginnings
    #[command(visible_alias = "list")]
    Ls,
    /// Revoke keys; a running node refuses them at once
    Revoke(KeysRevokeArgs),
}

#[derive(Args, Debug)]
pub struct KeysCreateArgs {
    /// What to call it [default: key-1, key-2, …]
    pub name: Option<String>,
    /// What it opens; may be given several times [default: inference]
    #[arg(long, value_enum, action = ArgAction::Append)]
    pub scope: Vec<ScopeArg>,
    /// Most requests to /v1 in a minute [default: as in the settings]
    #[arg(long, value_name = "N")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// Most tokens of prompts and answers in a minute [default: as in the settings]
    #[arg(long, value_name = "N")]
    pub tokens_per_minute: Option<NonZeroU32>,
    /// How long it is valid: a number of s, m, h, d or w [default: until it is revoked]
    #[arg(long, value_name = "30d", value_parser = lifetime)]
    pub expires: Option<Duration>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeArg {
    /// /v1: models and answers
    Inference,
    /// What /grid/v1 and /metrics tell
    Read,
    /// Everything, changing the node included
    Admin,
}

#[derive(Args, Debug)]
pub struct KeysRevokeArgs {
    /// Names or beginnings, see `opengrid keys ls`
    #[arg(required = true, num_args = 1..=64, value_name = "KEY")]
    pub keys: Vec<String>,
}

/// Longest life of a key that is not endless: a hundred years.
const LIFETIME_DAYS_MAX: u64 = 36_500;

fn lifetime(text: &str) -> Result<Duration, String> {
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        Some('w') => 604_800,
        _ => 0,
    };
    let number = text.get(..text.len().saturating_sub(1)).and_then(|digits| digits.parse::<u64>().ok());
    match number.and_then(|number| number.checked_mul(unit_s)) {
        Some(seconds) if (1..=LIFETIME_DAYS_MAX * 86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err("a number and a unit are needed, such as 12h, 30d or 4w".into()),
    }
}

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_takes_the_flags_of_the_contract() {
        let line = "opengrid up --home /h --listen 127.0.0.1:1 --p2p-port 2 --join a --join b --serve x,y --role edge \
                    --grid-key k";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Up(up) = cli.command else { panic!("not up") };
        assert_eq!(up.join, ["a", "b"]);
        assert_eq!(up.serve.unwrap(), ["x", "y"]);
        assert_eq!(up.p2p_port, Some(2));
        assert_eq!(up.role, Some(RoleArg::Edge));
        assert_eq!(cli.global.home.unwrap(), PathBuf::from("/h"));
    }

    #[test]
    fn lifetimes_have_a_unit() {
        for (text, seconds) in [("1s", 1), ("90m", 5_400), ("12h", 43_200), ("30d", 2_592_000), ("4w", 2_419_200)] {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for line in [
            "opengrid run m p --temperature 3",
            "opengrid run m p --temperature nan",
            "opengrid run m p --max-tokens 0",
            "opengrid up --p2p-port 65536",
            "opengrid up --role king",
            "opengrid rm",
            "opengrid keys create --expires 30",
            "opengrid keys create --expires 0d",
            "opengrid keys create --expires 99999999999999999999w",
            "opengrid keys create --expires é",
            "opengrid keys create --scope root",
            "opengrid keys create --requests-per-minute 0",
            "opengrid keys revoke",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
