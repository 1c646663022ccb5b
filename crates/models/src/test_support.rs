//! Tiny random models that tests write themselves.

use crate::gguf::write::Writer;

/// A llama-architecture model with random F32 weights and a byte-level SentencePiece vocabulary (259 pieces and the
/// printable ASCII letters); llama.cpp loads it and produces nonsense quickly. Equal fields, equal bytes.
#[derive(Clone, Debug)]
pub struct TinyModel {
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
        Self { seed: 1, context: 256, layers: 2, embedding: 32, heads: 4, kv_heads: 2, feed_forward: 64 }
    }
}

const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_BYTE: i32 = 6;

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
        let mut random = Random(self.seed);
        let mut writer = self.metadata(tokens.len() as u32);
        writer = writer
            .string("tokenizer.ggml.model", "llama")
            .strings("tokenizer.ggml.tokens", &tokens)
            .f32s("tokenizer.ggml.scores", &scores)
            .i32s("tokenizer.ggml.token_type", &types)
            .u32("tokenizer.ggml.unknown_token_id", 0)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .bool("tokenizer.ggml.add_bos_token", true)
            .string("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}");
        let embedding = u64::from(self.embedding);
        writer = random.matrix(writer, "token_embd.weight", &[embedding, tokens.len() as u64]);
        for layer in 0..self.layers {
            writer = self.layer(writer, &mut random, layer);
        }
        writer = ones(writer, "output_norm.weight", embedding);
        random.matrix(writer, "output.weight", &[embedding, tokens.len() as u64]).finish()
    }

    fn metadata(&self, vocabulary: u32) -> Writer {
        Writer::new()
            .string("general.architecture", "llama")
            .string("general.name", "tiny random llama")
            .u32("general.file_type", 0)
            .u32("llama.vocab_size", vocabulary)
            .u32("llama.context_length", self.context)
            .u32("llama.embedding_length", self.embedding)
            .u32("llama.block_count", self.layers)
            .u32("llama.feed_forward_length", self.feed_forward)
            .u32("llama.attention.head_count", self.heads)
            .u32("llama.attention.head_count_kv", self.kv_heads)
            .u32("llama.rope.dimension_count", self.embedding / self.heads.max(1))
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    }

    fn layer(&self, mut writer: Writer, random: &mut Random, layer: u32) -> Writer {
        let embedding = u64::from(self.embedding);
        let kv = embedding / u64::from(self.heads.max(1)) * u64::from(self.kv_heads);
        let feed_forward = u64::from(self.feed_forward);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        writer = ones(writer, &name("attn_norm"), embedding);
        writer = random.matrix(writer, &name("attn_q"), &[embedding, embedding]);
        writer = random.matrix(writer, &name("attn_k"), &[embedding, kv]);
        writer = random.matrix(writer, &name("attn_v"), &[embedding, kv]);
        writer = random.matrix(writer, &name("attn_output"), &[embedding, embedding]);
        writer = ones(writer, &name("ffn_norm"), embedding);
        writer = random.matrix(writer, &name("ffn_gate"), &[embedding, feed_forward]);
        writer = random.matrix(writer, &name("ffn_up"), &[embedding, feed_forward]);
        random.matrix(writer, &name("ffn_down"), &[feed_forward, embedding])
    }
}

/// A BERT encoder with random weights in its authors' three files: `model.safetensors`, `config.json`, `vocab.txt`.
#[derive(Clone, Debug)]
pub struct TinyBert {
    pub weights: Vec<u8>,
    pub config: Vec<u8>,
    pub vocabulary: Vec<u8>,
}

impl TinyBert {
    pub const WIDTH: u64 = 32;
    pub const POSITIONS: u64 = 64;

    pub fn new(seed: u64) -> Self {
        let letters = ('a'..='z').flat_map(|letter| [letter.to_string(), format!("##{letter}")]);
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
        let tokens: Vec<String> = special.into_iter().chain(letters).collect();
        let (width, inner, positions) = (Self::WIDTH, 48, Self::POSITIONS);
        let mut shapes = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![tokens.len() as u64, width]),
            ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, width]),
            ("embeddings.position_embeddings.weight".to_owned(), vec![positions, width]),
            ("pooler.dense.weight".to_owned(), vec![width, width]),
        ];
        for layer in 0..2 {
            let inside = ["query", "key", "value"].map(|part| format!("attention.self.{part}"));
            let dense =
                inside.into_iter().chain(["attention.output.dense".to_owned()]).map(|part| (part, width, width));
            let rest = [("intermediate.dense", inner, width), ("output.dense", width, inner)];
            let rest = rest.map(|(part, to, from)| (part.to_owned(), to, from));
            for (part, to, from) in dense.chain(rest) {
                shapes.push((format!("encoder.layer.{layer}.{part}.weight"), vec![to, from]));
                shapes.push((format!("encoder.layer.{layer}.{part}.bias"), vec![to]));
            }
            for part in ["attention.output", "output"] {
                shapes.push((format!("encoder.layer.{layer}.{part}.LayerNorm.weight"), vec![width]));
                shapes.push((format!("encoder.layer.{layer}.{part}.LayerNorm.bias"), vec![width]));
            }
        }
        shapes.push(("embeddings.LayerNorm.weight".to_owned(), vec![width]));
        shapes.push(("embeddings.LayerNorm.bias".to_owned(), vec![width]));
        let config = format!(
            r#"{{"model_type": "bert", "hidden_act": "gelu", "hidden_size": {width}, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": {inner}, "max_position_embeddings": {positions},
            "type_vocab_size": 2, "vocab_size": {}, "layer_norm_eps": 1e-12}}"#,
            tokens.len()
        );
        Self {
            weights: safetensors(&shapes, &mut Random(seed)),
            config: config.into_bytes(),
            vocabulary: (tokens.join("\n") + "\n").into_bytes(),
        }
    }

    /// The GGUF that the converter makes of it.
    ///
    /// # Panics
    /// When the converter refuses it.
    #[allow(clippy::expect_used, reason = "a test's helper")]
    pub fn to_gguf(&self) -> Vec<u8> {
        use crate::convert::{Header, LENGTH_BYTES, plan_bert};
        let size = self.weights.len() as u64;
        let length = *self.weights.first_chunk::<LENGTH_BYTES>().expect("eight bytes");
        let json = Header::json_bytes(length, size).expect("a length") as usize;
        let header = Header::parse(&self.weights[LENGTH_BYTES..LENGTH_BYTES + json], size).expect("a header");
        let plan = plan_bert(&header, &self.config, &self.vocabulary).expect("a plan");
        let mut file = Vec::new();
        let read = |at: u64, buffer: &mut [u8]| {
            let at = at as usize;
            buffer.copy_from_slice(&self.weights[at..at + buffer.len()]);
            Ok::<_, std::convert::Infallible>(())
        };
        let Ok(()) = plan.write(read, |part| {
            file.extend_from_slice(part);
            Ok(())
        });
        file
    }
}

/// The layout: tensors in the order given, all F32.
fn safetensors(shapes: &[(String, Vec<u64>)], random: &mut Random) -> Vec<u8> {
    let (mut entries, mut data) = (vec![r#""__metadata__": {"format": "pt"}"#.to_owned()], Vec::new());
    for (name, shape) in shapes {
        let start = data.len();
        let scale = 1.0 / (shape.last().copied().unwrap_or(1) as f32).sqrt();
        let is_norm = name.ends_with("LayerNorm.weight");
        for _ in 0..shape.iter().product::<u64>() {
            let value = if is_norm { 1.0 } else { random.unit() * scale };
            data.extend(value.to_le_bytes());
        }
        let end = data.len();
        entries.push(format!(r#""{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [{start}, {end}]}}"#));
    }
    let json = format!("{{{}}}", entries.join(", "));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &data].concat()
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

fn ones(writer: Writer, name: &str, length: u64) -> Writer {
    writer.tensor_f32(name, &[length], &vec![1.0; length as usize])
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn matrix(&mut self, writer: Writer, name: &str, dimensions: &[u64]) -> Writer {
        let count: u64 = dimensions.iter().product();
        let scale = 1.0 / (dimensions[0] as f32).sqrt();
        let values: Vec<f32> = (0..count).map(|_| self.unit() * scale).collect();
        writer.tensor_f32(name, dimensions, &values)
    }

    /// Uniform in -1..1.
    fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
