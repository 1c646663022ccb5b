//! The bound of everything that comes from outside. One place, so that a review sees them together.

/// Largest signed record (beacon, sealing key) on the wire, in bytes.
pub const RECORD_BYTES_MAX: usize = 4 * 1024;
/// Largest frame on a session channel, sealed or not, in bytes. A prompt of [`PROMPT_TOKENS_MAX`] fits.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most tokens a session may open with (prompt and the answer so far).
pub const PROMPT_TOKENS_MAX: usize = 131_072;
/// Most tokens one session may generate.
pub const COMPLETION_TOKENS_MAX: u32 = 131_072;
/// Most tokens that stop a session by themselves (end-of-generation ids).
pub const STOP_TOKENS_MAX: usize = 64;
/// Most entries of a logit-bias table.
pub const LOGIT_BIAS_MAX: usize = 300;
/// Most alternatives returned with each token.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Largest grammar of a session, in bytes.
pub const GRAMMAR_BYTES_MAX: usize = 64 * 1024;
/// Most texts that one session embeds; a gateway opens several for longer lists.
pub const EMBED_TEXTS_MAX: usize = 32;
/// Most numbers of a text's vector. [`EMBED_TEXTS_MAX`] of the longest fit a frame.
pub const EMBEDDING_WIDTH_MAX: u32 = 4_096;
/// Most sessions open at once on one sealed channel.
pub const SESSIONS_PER_CHANNEL_MAX: usize = 512;
/// A sealed channel without sessions is closed by the gateway after this time, and by the worker after twice it.
pub const CHANNEL_IDLE_MS: u64 = 60_000;
/// Most sealed channels that a worker keeps open for one peer.
pub const CHANNELS_PER_PEER_MAX: usize = 4;
/// Bytes of a chunk of a model file; the unit of transfer and of verification. A power of two times BLAKE3's 1,024.
pub const CHUNK_BYTES: u64 = 1024 * 1024;
/// Largest model file in bytes (1 TiB): bounds the manifest at 32 MiB.
pub const FILE_BYTES_MAX: u64 = 1 << 40;
/// Most models in one node's announcements.
pub const MODELS_PER_NODE_MAX: usize = 32;
/// Longest model id in bytes.
pub const MODEL_ID_BYTES_MAX: usize = 128;
/// Most addresses in an invite.
pub const INVITE_ADDRESSES_MAX: usize = 16;
/// Longest address in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// How far two clocks may differ before signed, expiring records are refused, in milliseconds.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;
/// Life of a beacon in milliseconds. A node that dies silently leaves every list after this time at the latest.
pub const BEACON_LIFE_MS: u64 = 8_000;
/// Longest life that a beacon may claim, in milliseconds.
pub const BEACON_LIFE_MS_MAX: u64 = 120_000;
/// A sealing key is rotated after this time, in milliseconds.
pub const SEALING_KEY_LIFE_MS: u64 = 3_600_000;
/// An expired sealing key still opens what was sealed to it for this time, in milliseconds.
pub const SEALING_KEY_OVERLAP_MS: u64 = 300_000;
/// While a session runs, the worker sends something (a token, a queue position, a heartbeat) at least this often.
pub const HEARTBEAT_MS: u64 = 150;
/// The gateway gives a worker up after this long without any frame from it while a session runs.
pub const SILENCE_MS_MAX: u64 = 800;
/// Most layers of a model.
pub const LAYERS_MAX: u16 = 4_096;
/// Most stages of a pipeline.
pub const STAGES_MAX: usize = 64;
/// Most nodes that a stage is told to meet at once.
pub const SPARES_MAX: usize = 8;
/// Rows of one session that a standby takes, in bytes.
pub const STANDBY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Rows in one message from stage to stage, in bytes: with its envelope it fits a frame.
pub const ROWS_BYTES_MAX: usize = 960 * 1024;
/// Caches of sessions that a node hands over or takes over at once, all together, in bytes.
pub const HANDED_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Most guesses of a session under way over several stages.
pub const GUESSES_MAX: usize = 128;
/// Most positions of a session over several stages: the longest prompt and the longest answer.
pub const POSITIONS_MAX: u32 = PROMPT_TOKENS_MAX as u32 + COMPLETION_TOKENS_MAX;
/// Most delays to other nodes in a stage's beacon.
pub const BEACON_DELAYS_MAX: usize = 16;
