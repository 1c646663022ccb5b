//! A grid whose answers are scripted, and a model whose tokens are bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use opengrid_gateway::GatewayConfig;
use opengrid_models::download::{Phase, Progress, SourceKind};
use opengrid_node::handle::{
    Answer, AnswerEvent, EmbedJob, Embeddings, GridError, GridHandle, Job, ModelRow, NodeIdText, PeerRow, PullEvent,
    Status, Task, TextModel,
};
use opengrid_protocol::{
    ModelRoot, NodeId, SessionId,
    session::{Finish, Token, TokenOut, Usage},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Client;

pub const CONTEXT: u32 = 2_000;
pub const BOS: Token = 256;
pub const EOS: Token = 257;
pub const GAP: [Token; 3] = [258, 259, 260];
pub const VOCABULARY: u32 = 261;
pub const EMBEDDING_WIDTH: u32 = 3;

/// Token = byte; those from 256 on are control tokens.
pub struct ByteModel {
    template: Option<String>,
}

static PIECES: std::sync::LazyLock<Vec<[u8; 1]>> = std::sync::LazyLock::new(|| (0..=255).map(|byte| [byte]).collect());

#[async_trait]
impl TextModel for ByteModel {
    async fn tokenize(&self, text: &str, add_special: bool, _: bool) -> Result<Vec<Token>, GridError> {
        let bos = add_special.then_some(BOS);
        Ok(bos.into_iter().chain(text.bytes().map(Token::from)).collect())
    }

    fn piece(&self, token: Token) -> &[u8] {
        PIECES.get(token as usize).map_or(&[], |piece| piece.as_slice())
    }

    fn vocabulary_size(&self) -> u32 {
        VOCABULARY
    }

    fn end_tokens(&self) -> &[Token] {
        &[EOS]
    }

    fn fill_in_middle(&self) -> Option<[Token; 3]> {
        self.template.is_none().then_some(GAP)
    }

    fn chat_template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    fn bos_text(&self) -> &str {
        "<s>"
    }

    fn eos_text(&self) -> &str {
        "</s>"
    }

    fn adds_bos(&self) -> bool {
        false
    }

    fn trained_context(&self) -> u32 {
        CONTEXT
    }

    fn embedding_width(&self) -> u32 {
        EMBEDDING_WIDTH
    }
}

/// What a worker does, step by step.
#[derive(Clone)]
pub enum Act {
    Send(AnswerEvent),
    Wait(Duration),
    /// Says nothing more until it is cancelled.
    Hang,
}

pub type Script = Arc<dyn Fn(&Job) -> Vec<Act> + Send + Sync>;

pub struct FakeGrid {
    pub script: Mutex<Script>,
    pub jobs: Mutex<Vec<Job>>,
    pub embed_jobs: Mutex<Vec<EmbedJob>>,
    pub joined: Mutex<Vec<String>>,
    pub cancelled: Arc<AtomicUsize>,
    pub shut_down: AtomicBool,
    sessions: AtomicUsize,
}

pub fn token(token: Token) -> TokenOut {
    TokenOut { token, logprob: None, top: Vec::new() }
}

/// The tokens of `bytes` one by one, as far as the job allows, then the end.
pub fn say(job: &Job, bytes: &[u8]) -> Vec<Act> {
    let max = job.completion_tokens_max.unwrap_or(u32::MAX) as usize;
    let mut acts: Vec<Act> = bytes.iter().take(max).map(|byte| say_token(job, *byte)).collect();
    let finish = if bytes.len() > max { Finish::Length } else { Finish::Stop(EOS) };
    let usage = Usage { cached_tokens: 3, prefilled_tokens: 1, generated_tokens: acts.len() as u32 };
    acts.push(Act::Send(AnswerEvent::Finished(finish, usage)));
    acts
}

fn say_token(job: &Job, byte: u8) -> Act {
    let top = |n: u8| (0..n).map(|i| (Token::from(byte) + Token::from(i), -0.5 - f32::from(i))).collect();
    let out = TokenOut {
        token: byte.into(),
        logprob: job.top_logprobs.map(|_| -0.5),
        top: job.top_logprobs.map_or_else(Vec::new, top),
    };
    Act::Send(AnswerEvent::Tokens(vec![out]))
}

impl FakeGrid {
    pub fn new() -> Arc<Self> {
        let hello: Script = Arc::new(|job| say(job, b"Hello, world!"));
        Arc::new(Self {
            script: Mutex::new(hello),
            jobs: Mutex::default(),
            embed_jobs: Mutex::default(),
            joined: Mutex::default(),
            cancelled: Arc::default(),
            shut_down: AtomicBool::new(false),
            sessions: AtomicUsize::new(1),
        })
    }

    pub fn set(&self, script: impl Fn(&Job) -> Vec<Act> + Send + Sync + 'static) {
        *self.script.lock() = Arc::new(script);
    }

    pub fn last_job(&self) -> Job {
        self.jobs.lock().last().expect("no job came").clone()
    }

    pub fn last_prompt(&self) -> String {
        let bytes: Vec<u8> = self.last_job().prompt.iter().filter_map(|token| u8::try_from(*token).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    pub async fn wait_cancelled(&self, count: usize) {
        for _ in 0..200 {
            if self.cancelled() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {count} sessions were cancelled within 2 s", self.cancelled());
    }
}

fn row(id: &str, workers: usize) -> ModelRow {
    ModelRow {
        id: id.into(),
        root: ModelRoot([0xab; 32]),
        size_bytes: 1_000,
        licence: "Apache-2.0".into(),
        class: "tiny".into(),
        task: if id.starts_with("vectors") { Task::Embedding } else { Task::Generation },
        workers,
        local: false,
        context_tokens: if workers > 0 { CONTEXT } else { 0 },
        coverage: None,
        created: 1_700_000_000,
    }
}

#[async_trait]
impl GridHandle for FakeGrid {
    fn status(&self) -> Status {
        Status {
            peer_id: NodeIdText(NodeId([7; 32])),
            version: "0.1.0".into(),
            uptime_seconds: 12,
            role: "edge".into(),
            models: Vec::new(),
            peers: 1,
            state: "serving".into(),
            api: "http://127.0.0.1:8470".into(),
            p2p_addresses: Vec::new(),
            nat: "unknown".into(),
            invite: "grid1x".into(),
            sessions_running: 0,
            tokens_generated: 0,
            pipelines: Vec::new(),
            parts: 0,
            parts_kept_bytes: 0,
        }
    }

    fn peers(&self) -> Vec<PeerRow> {
        vec![PeerRow {
            peer_id: NodeIdText(NodeId([9; 32])),
            version: None,
            connected: true,
            path: "direct".into(),
            addresses: Vec::new(),
            rtt_ms: Some(1.5),
            models: Vec::new(),
            refused: None,
        }]
    }

    fn models(&self) -> Vec<ModelRow> {
        vec![
            row("bytes", 2),
            row("org/bytes", 1),
            row("broken", 1),
            row("llama", 1),
            row("idle", 0),
            row("vectors", 2),
            row("vectors-idle", 0),
        ]
    }

    async fn text(&self, model: &str) -> Result<Arc<dyn TextModel>, GridError> {
        let template = match model {
            "bytes" | "org/bytes" => None,
            "broken" => Some("{% for %}".to_owned()),
            "llama" => Some(include_str!("../templates/llama3.jinja").to_owned()),
            "vectors" => None,
            other => return Err(GridError::UnknownModel(other.into())),
        };
        Ok(Arc::new(ByteModel { template }))
    }

    async fn generate(&self, job: Job) -> Result<Answer, GridError> {
        let needed = job.prompt.len() as u32 + job.completion_tokens_max.unwrap_or(1);
        if needed > CONTEXT {
            return Err(GridError::ContextOverflow { limit: CONTEXT, needed });
        }
        let script = self.script.lock().clone();
        let acts = script(&job);
        self.jobs.lock().push(job);
        let (sender, events) = mpsc::channel(16);
        let cancelled = self.cancelled.clone();
        tokio::spawn(async move {
            for act in acts {
                let alive = match act {
                    Act::Send(event) => sender.send(event).await.is_ok(),
                    Act::Wait(time) => tokio::time::timeout(time, sender.closed()).await.is_err(),
                    Act::Hang => {
                        sender.closed().await;
                        false
                    }
                };
                if !alive {
                    cancelled.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        });
        let session = self.sessions.fetch_add(1, Ordering::SeqCst) as u64;
        Ok(Answer { session: SessionId(session), worker: NodeId([9; 32]), events })
    }

    /// The direction of a text is its length, its first token and 1.
    async fn embed(&self, job: EmbedJob) -> Result<Embeddings, GridError> {
        let vector = |text: &Vec<Token>| {
            let raw = [text.len() as f32, text[0] as f32, 1.0];
            let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
            raw.map(|value| value / length).to_vec()
        };
        let vectors = job.texts.iter().map(vector).collect();
        self.embed_jobs.lock().push(job);
        Ok(Embeddings { vectors, workers: vec![NodeId([9; 32]), NodeId([7; 32])] })
    }

    async fn join(&self, invite: &str) -> Result<(), String> {
        if !invite.starts_with("grid1") {
            return Err("not an invite".into());
        }
        self.joined.lock().push(invite.into());
        Ok(())
    }

    fn pull(&self, model: &str) -> Result<mpsc::Receiver<PullEvent>, GridError> {
        if model != "echo" {
            return Err(GridError::UnknownModel(model.into()));
        }
        let (sender, events) = mpsc::channel(4);
        let progress = Progress {
            source: Some(SourceKind::Peers),
            phase: Phase::Downloading,
            done_bytes: 1,
            total_bytes: 2,
            bytes_per_s: 3,
        };
        for event in [PullEvent::Progress(progress), PullEvent::Done] {
            sender.try_send(event).unwrap();
        }
        Ok(events)
    }

    fn request_shutdown(&self) {
        self.shut_down.store(true, Ordering::SeqCst);
    }

    fn metrics(&self) -> String {
        "# TYPE opengrid_node_peers gauge\nopengrid_node_peers 1\n".into()
    }
}

pub const TOKEN: &str = "local-token";

/// A served gateway; it ends with this value.
pub struct Served {
    pub grid: Arc<FakeGrid>,
    pub client: Client,
    pub shutdown: CancellationToken,
    pub server: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn config() -> GatewayConfig {
    GatewayConfig { local_token: TOKEN.into(), ..GatewayConfig::default() }
}

pub async fn served() -> Served {
    served_with(config()).await
}

pub async fn served_with(config: GatewayConfig) -> Served {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (grid, shutdown) = (FakeGrid::new(), CancellationToken::new());
    let serving = opengrid_gateway::serve(listener, grid.clone(), config, shutdown.clone());
    let server = tokio::spawn(async move { serving.await.unwrap() });
    Served { grid, client: Client { address }, shutdown, server }
}
