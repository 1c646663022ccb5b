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
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServedModel {
    pub id: String,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerModel {
    pub id: String,
    pub slots: u32,
    pub slots_busy: u32,
    pub draining: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Model {
    pub id: String,
    pub workers: u64,
    pub context_tokens: u32,
    pub task: Task,
}
