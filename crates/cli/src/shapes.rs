//! The answers of the native API, as far as people are shown them: the reading side of `opengrid_node::handle`.
//! Fields that are missing take their default, so that a newer command still reads an older node.

use opengrid_models::catalogue::Task;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub peer_id: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub role: String,
    pub models: Vec<ServedModel>,
    pub peers: u64,
    pub state: String,
    pub api: String,
    pub p2p_addresses: Vec<String>,
    pub nat: String,
    pub invite: String,
    pub sessions_running: u64,
    pub tokens_generated: u64,
    pub pipelines: Vec<Pipeline>,
    pub parts: u64,
    pub parts_kept_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pipeline {
    pub model: String,
    pub stages: Vec<PipelineStage>,
    pub tokens: u64,
    pub lap_ms: Option<f64>,
    pub put_together: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PipelineStage {
    pub peer_id: String,
    pub layers: String,
    pub compute_ms: f64,
    pub way_ms: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Coverage {
    pub layer_count: u32,
    pub stages: Vec<Stage>,
    pub gaps: Vec<String>,
    pub chains: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Stage {
    pub layers: String,
    pub holders: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServedModel {
    pub id: String,
    pub layers: Option<String>,
    pub state: String,
    pub class: String,
    pub context_tokens: u32,
    pub slots: u32,
    pub slots_busy: u32,
    pub queued: u32,
    pub decode_tokens_per_s: f32,
    pub prefill_tokens_per_s: f32,
    pub memory_bytes: u64,
    pub engine: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Peer {
    pub peer_id: String,
    pub version: Option<String>,
    pub connected: bool,
    pub path: String,
    pub rtt_ms: Option<f64>,
    pub models: Vec<PeerModel>,
    pub refused: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerModel {
    pub id: String,
    pub layers: Option<String>,
    pub slots: u32,
    pub slots_busy: u32,
    pub draining: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Model {
    pub id: String,
    pub coverage: Option<Coverage>,
    pub workers: u64,
    pub context_tokens: u32,
    pub task: Task,
}

/// `smollm2-135m`, or `smollm2-135m@0..10` for a part of it.
pub fn named(id: &str, layers: Option<&str>) -> String {
    layers.map_or_else(|| id.to_owned(), |layers| format!("{id}@{layers}"))
}
