//! Tiny random models that tests write themselves.

mod tiny;

pub use tiny::{Architecture, TinyModel};

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

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
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
