//! Tiny language models of several architectures: every tensor that llama.cpp asks for, filled at random.

use super::Random;
use crate::gguf::{Gguf, write::Writer};

/// Which graph llama.cpp builds, and what is special about it where layers are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Architecture {
    #[default]
    Llama,
    /// llama whose head is its token table, with the frequency factors of Llama 3.
    LlamaTied,
    /// llama with experts, as Mixtral.
    LlamaExperts,
    /// Biases of queries, keys and values.
    Qwen2,
    /// Norms of queries and keys; heads wider than the model divided by their number.
    Qwen3,
    Qwen3Experts,
    /// Most layers see a window only, by a period over layer numbers; rows of tokens are scaled; norms behind each part.
    Gemma3,
    /// One tensor for queries, keys and values, one for gate and up.
    Phi3,
}

impl Architecture {
    pub const ALL: [Self; 8] = [
        Self::Llama,
        Self::LlamaTied,
        Self::LlamaExperts,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Experts,
        Self::Gemma3,
        Self::Phi3,
    ];

    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama | Self::LlamaTied | Self::LlamaExperts => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Experts => "qwen3moe",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    fn has_head(self) -> bool {
        !matches!(self, Self::LlamaTied | Self::Gemma3)
    }

    fn has_experts(self) -> bool {
        matches!(self, Self::LlamaExperts | Self::Qwen3Experts)
    }

    fn norms_queries_and_keys(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Qwen3Experts | Self::Gemma3)
    }
}

/// A model with random weights and a byte-level SentencePiece vocabulary (259 pieces and the printable ASCII letters);
/// llama.cpp loads it and produces nonsense quickly. Equal fields, equal bytes.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub architecture: Architecture,
    /// Matrices in Q8_0 in place of F32.
    pub quantised: bool,
    pub seed: u64,
    pub context: u32,
    pub layers: u32,
    /// A multiple of `heads`.
    pub embedding: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub feed_forward: u32,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            architecture: Architecture::Llama,
            quantised: false,
            seed: 1,
            context: 256,
            layers: 2,
            embedding: 32,
            heads: 4,
            kv_heads: 2,
            feed_forward: 64,
        }
    }
}

const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_BYTE: i32 = 6;

const EXPERTS: u32 = 4;
const EXPERTS_USED: u32 = 2;
/// Tokens that the sliding layers of gemma3 see.
const WINDOW: u32 = 16;
const Q8_0: u32 = 8;

impl TinyModel {
    /// A model of roughly `bytes` bytes: the feed-forward part is widened until it fits.
    pub fn of_size(seed: u64, bytes: u64) -> Self {
        let base = Self { seed, ..Self::default() };
        let per_unit = u64::from(base.layers) * u64::from(base.embedding) * 3 * 4;
        let units = bytes / per_unit.max(1);
        Self { feed_forward: u32::try_from(units).unwrap_or(u32::MAX).max(base.feed_forward), ..base }
    }

    /// The GGUF file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (tokens, scores, types) = vocabulary();
        let count = tokens.len() as u32;
        let writer = self
            .metadata(count)
            .string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &tokens)
            .f32s("tokenizer.ggml.scores", &scores)
            .i32s("tokenizer.ggml.token_type", &types)
            .u32("tokenizer.ggml.unknown_token_id", 0)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .bool("tokenizer.ggml.add_bos_token", true)
            .string("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}");
        self.with_weights(writer, count)
    }

    /// With the tokens of another model in place of its own.
    pub fn to_bytes_with_tokens_of(&self, other: &Gguf<'_>) -> Vec<u8> {
        let tokens = other.get("tokenizer.ggml.tokens").and_then(|value| value.as_array());
        let count = tokens.map_or(0, |tokens| tokens.len() as u32);
        let keys = other.metadata().iter().filter(|(name, _)| name.starts_with("tokenizer."));
        let writer = keys.fold(self.metadata(count), |writer, (name, value)| {
            let (kind, bytes) = value.encoded();
            writer.entry(name, kind, &bytes)
        });
        self.with_weights(writer, count)
    }

    fn with_weights(&self, writer: Writer, tokens: u32) -> Vec<u8> {
        let mut weights = Weights { random: Random(self.seed), writer, model: self };
        let embedding = u64::from(self.embedding);
        weights.matrix("token_embd.weight", &[embedding, tokens.into()]);
        if self.architecture == Architecture::LlamaTied {
            weights.vector("rope_freqs.weight", u64::from(self.head()) / 2);
        }
        for layer in 0..self.layers {
            weights.layer(layer);
        }
        weights.vector("output_norm.weight", embedding);
        if self.architecture.has_head() {
            weights.matrix("output.weight", &[embedding, tokens.into()]);
        }
        weights.writer.finish()
    }

    /// Numbers of a head.
    fn head(&self) -> u32 {
        let even = self.embedding / self.heads.max(1);
        if self.architecture.norms_queries_and_keys() { even * 2 } else { even }
    }

    fn metadata(&self, vocabulary: u32) -> Writer {
        let name = self.architecture.name();
        let key = |key: &str| format!("{name}.{key}");
        let mut writer = Writer::new()
            .string("general.architecture", name)
            // Without the architecture: llama.cpp takes a `phi3` in it for a promise of certain tokens.
            .string("general.name", "tiny random model")
            .u32("general.file_type", if self.quantised { 7 } else { 0 })
            .u32(&key("vocab_size"), vocabulary)
            .u32(&key("context_length"), self.context)
            .u32(&key("embedding_length"), self.embedding)
            .u32(&key("block_count"), self.layers)
            .u32(&key("feed_forward_length"), self.feed_forward)
            .u32(&key("attention.head_count"), self.heads)
            .u32(&key("attention.head_count_kv"), self.kv_heads)
            .u32(&key("rope.dimension_count"), self.head())
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
        if self.architecture.norms_queries_and_keys() {
            writer =
                writer.u32(&key("attention.key_length"), self.head()).u32(&key("attention.value_length"), self.head());
        }
        if self.architecture.has_experts() {
            writer = writer
                .u32(&key("expert_count"), EXPERTS)
                .u32(&key("expert_used_count"), EXPERTS_USED)
                .u32(&key("expert_feed_forward_length"), self.feed_forward);
        }
        if self.architecture == Architecture::Gemma3 {
            writer = writer.u32(&key("attention.sliding_window"), WINDOW);
        }
        writer
    }
}

struct Weights<'a> {
    random: Random,
    writer: Writer,
    model: &'a TinyModel,
}

impl Weights<'_> {
    fn layer(&mut self, layer: u32) {
        let model = self.model;
        let (embedding, head) = (u64::from(model.embedding), u64::from(model.head()));
        let (queries, keys) = (head * u64::from(model.heads), head * u64::from(model.kv_heads));
        let name = |part: &str| format!("blk.{layer}.{part}");
        self.vector(&name("attn_norm.weight"), embedding);
        if model.architecture == Architecture::Phi3 {
            self.matrix(&name("attn_qkv.weight"), &[embedding, queries + 2 * keys]);
        } else {
            for (part, width) in [("q", queries), ("k", keys), ("v", keys)] {
                self.matrix(&name(&format!("attn_{part}.weight")), &[embedding, width]);
                if model.architecture == Architecture::Qwen2 {
                    self.vector(&name(&format!("attn_{part}.bias")), width);
                }
            }
        }
        if model.architecture.norms_queries_and_keys() {
            self.vector(&name("attn_q_norm.weight"), head);
            self.vector(&name("attn_k_norm.weight"), head);
        }
        self.matrix(&name("attn_output.weight"), &[queries, embedding]);
        if model.architecture == Architecture::Gemma3 {
            self.vector(&name("post_attention_norm.weight"), embedding);
        }
        self.vector(&name("ffn_norm.weight"), embedding);
        self.feed_forward(&name);
        if model.architecture == Architecture::Gemma3 {
            self.vector(&name("post_ffw_norm.weight"), embedding);
        }
    }

    fn feed_forward(&mut self, name: &impl Fn(&str) -> String) {
        let (embedding, inner) = (u64::from(self.model.embedding), u64::from(self.model.feed_forward));
        if self.model.architecture.has_experts() {
            let experts = u64::from(EXPERTS);
            self.matrix(&name("ffn_gate_inp.weight"), &[embedding, experts]);
            self.matrix(&name("ffn_gate_exps.weight"), &[embedding, inner, experts]);
            self.matrix(&name("ffn_up_exps.weight"), &[embedding, inner, experts]);
            return self.matrix(&name("ffn_down_exps.weight"), &[inner, embedding, experts]);
        }
        if self.model.architecture == Architecture::Phi3 {
            self.matrix(&name("ffn_up.weight"), &[embedding, 2 * inner]);
        } else {
            self.matrix(&name("ffn_gate.weight"), &[embedding, inner]);
            self.matrix(&name("ffn_up.weight"), &[embedding, inner]);
        }
        self.matrix(&name("ffn_down.weight"), &[inner, embedding]);
    }

    /// Norms and biases: about one, another in each place, so that a layer in a wrong place shows.
    fn vector(&mut self, name: &str, length: u64) {
        let values: Vec<f32> = (0..length).map(|_| 1.0 + self.random.unit() * 0.25).collect();
        self.writer = std::mem::take(&mut self.writer).tensor_f32(name, &[length], &values);
    }

    fn matrix(&mut self, name: &str, dimensions: &[u64]) {
        let scale = 1.0 / (dimensions[0] as f32).sqrt();
        let count: u64 = dimensions.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.random.unit() * scale).collect();
        let writer = std::mem::take(&mut self.writer);
        self.writer = if self.model.quantised && dimensions[0].is_multiple_of(32) {
            writer.tensor(name, dimensions, Q8_0, &q8_0(&values))
        } else {
            writer.tensor_f32(name, dimensions, &values)
        };
    }
}

/// Blocks of 32 numbers as signed bytes behind one scale: here always 2^-9, as F16, which holds numbers up to 0.25.
fn q8_0(values: &[f32]) -> Vec<u8> {
    const SCALE_F16: u16 = (15 - 9) << 10;
    let byte = |value: &f32| (value * 512.0).round().clamp(-127.0, 127.0) as i8 as u8;
    let blocks = values.chunks(32).flat_map(|block| SCALE_F16.to_le_bytes().into_iter().chain(block.iter().map(byte)));
    blocks.collect()
}

fn vocabulary() -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let special = [("<unk>", TYPE_UNKNOWN), ("<s>", TYPE_CONTROL), ("</s>", TYPE_CONTROL)];
    let special = special.map(|(text, kind)| (text.to_owned(), kind));
    let bytes = (0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), TYPE_BYTE));
    let letters = ('!'..='~').chain(['▁']).map(|letter| (letter.to_string(), TYPE_NORMAL));
    let (tokens, types): (Vec<_>, Vec<_>) = special.into_iter().chain(bytes).chain(letters).unzip();
    let scores = (0..tokens.len()).map(|at| -(at as f32)).collect();
    (tokens, scores, types)
}
