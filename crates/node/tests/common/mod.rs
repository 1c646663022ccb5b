//! Real nodes in this process: real sockets, real sealing, `fake` engines.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod crook;

use std::{path::Path, sync::Arc, time::Duration};

use opengrid_models::{
    Catalogue, ModelEntry, Store,
    catalogue::{FileEntry, SizeClass, TemplateSource},
    test_support::{TinyBert, TinyModel},
};
use opengrid_node::{
    Node, NodeConfig,
    config::{EngineKind, EngineSettings, Mode, NetworkSettings, Role, Serve},
    handle::{Answer, AnswerEvent, GridHandle, Job},
};
use opengrid_protocol::{Sampling, session::Token};
use tempfile::TempDir;

pub const MODEL: &str = "tiny";
pub const VOCABULARY: u32 = 354;

/// A store with one tiny random model, and the catalogue that names it.
pub struct Library {
    pub dir: TempDir,
}

impl Library {
    pub fn new() -> Self {
        Self::of(&TinyModel::of_size(5, 3 << 20).to_bytes(), u64::from(VOCABULARY))
    }

    /// With so many layers, to be cut.
    pub fn of_layers(layers: u32) -> Self {
        Self::of(&TinyModel { layers, ..TinyModel::of_size(5, 3 << 20) }.to_bytes(), u64::from(VOCABULARY))
    }

    /// With an embedding model in place of one that generates.
    pub fn of_encoder() -> Self {
        Self::of(&TinyBert::new(5).to_gguf(), 57)
    }

    fn of(bytes: &[u8], vocabulary: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tiny.gguf");
        std::fs::write(&file, bytes).unwrap();
        let added = Store::open(&dir.path().join("models")).unwrap().add_file(&file, &mut |_, _| {}).unwrap();
        assert_eq!(added.info.tokens, vocabulary);
        let entry = ModelEntry {
            id: MODEL.into(),
            name: "tiny".into(),
            licence: "MIT".into(),
            class: SizeClass::Tiny,
            task: added.info.task,
            context: 256,
            created: 1,
            template: TemplateSource::Gguf,
            file: FileEntry { name: "tiny.gguf".into(), size: added.size, sha256: added.sha256, blake3: added.root },
            sources: vec![],
        };
        Catalogue::add_to_user_file(dir.path(), &entry).unwrap();
        Self { dir }
    }

    pub fn root(&self) -> opengrid_protocol::ModelRoot {
        let bytes = std::fs::read(self.dir.path().join("tiny.gguf")).unwrap();
        opengrid_protocol::ModelRoot(*blake3::hash(&bytes).as_bytes())
    }

    pub fn config(&self, home: &Path, serve: Serve, join: Vec<String>) -> NodeConfig {
        NodeConfig {
            home: home.to_owned(),
            api: "127.0.0.1:0".parse().unwrap(),
            network: NetworkSettings {
                p2p_port: 0,
                join,
                bootstrap: vec![],
                connections_max: 64,
                mdns: false,
                upnp: false,
                relay_server: true,
                grid_key: None,
            },
            serve,
            role: Role::Auto,
            models_dir: self.dir.path().join("models"),
            catalogue_dir: self.dir.path().to_owned(),
            fetch: opengrid_models::download::FetchConfig::default(),
            cpu_percent: 100,
            memory_percent: 75,
            memory_bytes: None,
            ahead_bytes_per_s: 1 << 20,
            program: "/nonexistent".into(),
            engine: EngineSettings {
                kind: EngineKind::Fake { tokens_per_s: 100.0, slots: 16 },
                mode: Mode::Exact,
                threads: None,
                slots: None,
                context_tokens: None,
                kv_budget_bytes: None,
                prefill_chunk: None,
                draft: None,
                gpu_layers: 0,
                queue_max: 16,
            },
            grace: Duration::from_secs(5),
        }
    }
}

pub struct TestNode {
    pub node: Arc<Node>,
    pub home: TempDir,
}

impl TestNode {
    pub async fn start(library: &Library, serve: Serve, join: Vec<String>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let node = Node::start(library.config(home.path(), serve, join)).await.unwrap();
        Self { node, home }
    }

    pub async fn worker(library: &Library, join: Vec<String>) -> Self {
        Self::start(library, Serve::Models(vec![MODEL.into()]), join).await
    }

    pub async fn gateway(library: &Library) -> Self {
        Self::start(library, Serve::None, vec![]).await
    }
}

/// Waits until `node` knows `count` workers of the model.
pub async fn workers(node: &Node, count: usize) {
    eventually(&format!("{count} workers"), || node.models()[..].iter().any(|m| m.id == MODEL && m.workers == count))
        .await;
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 10 s: {what}");
}

pub fn job(completion_tokens: u32) -> Job {
    Job {
        model: MODEL.into(),
        prompt: (1..20).collect(),
        completion_tokens_max: Some(completion_tokens),
        stop_tokens: vec![],
        vocabulary_size: VOCABULARY,
        sampling: Sampling { seed: 7, temperature: 0.8, ..Sampling::greedy() },
        top_logprobs: None,
        grammar: None,
        tier: opengrid_protocol::session::Tier::Default,
        affinity: None,
    }
}

/// The whole answer and how often it moved.
pub async fn collect(mut answer: Answer) -> (Vec<Token>, usize) {
    let (mut tokens, mut moves) = (Vec::new(), 0);
    loop {
        match answer.events.recv().await.expect("the answer ended without a word") {
            AnswerEvent::Tokens(new) => tokens.extend(new.iter().map(|out| out.token)),
            AnswerEvent::Moved { .. } => moves += 1,
            AnswerEvent::Finished(..) => return (tokens, moves),
            AnswerEvent::Failed(error) => panic!("failed: {error}"),
            AnswerEvent::Queued(_) => {}
        }
    }
}

pub fn metric(node: &Node, name: &str) -> u64 {
    let text = node.metrics();
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
    line.and_then(|line| line.rsplit(' ').next()).and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64
}
