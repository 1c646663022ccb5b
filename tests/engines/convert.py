"""Makes a Hugging Face model directory of a llama-architecture GGUF with a byte-level BPE vocabulary, for engines that
read nothing else.

    python convert.py MODEL.gguf DIRECTORY

Weights are dequantised to bfloat16, so that both engines compute the same model up to rounding. Needs gguf, torch and
safetensors (the environment of vLLM has the last two).
"""

import json
import pathlib
import sys

import gguf
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL, USER_DEFINED = 3, 4


def field(reader, name, default=None):
    found = reader.fields.get(name)
    return default if found is None else found.contents()


def unpermuted(weight, heads):
    """GGUF keeps the two halves of each head's rotary pairs interleaved, Hugging Face one after the other."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def weights(reader, heads, kv_heads):
    out = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if tensor.name in OUTSIDE:
            out[OUTSIDE[tensor.name]] = values.bfloat16()
            continue
        _, layer, name, kind = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):
            values = unpermuted(values, heads if name == "attn_q" else kv_heads)
        out[f"model.layers.{layer}.{NAMES[name]}.{kind}"] = values.contiguous().bfloat16()
    return out


def config(reader):
    def llama(name, default=None):
        return field(reader, f"llama.{name}", default)

    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
        "hidden_size": llama("embedding_length"), "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"), "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"), "max_position_embeddings": llama("context_length"),
        "rms_norm_eps": llama("attention.layer_norm_rms_epsilon"), "rope_theta": llama("rope.freq_base"),
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")), "torch_dtype": "bfloat16",
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }


def tokenizer(reader):
    """`tokenizer.json` of the `tokenizers` package; of the pre-tokenizers only the default model's is known here."""
    if (kind := field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise SystemExit(f"no rule for the pre-tokenizer {kind}")
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    special = [id for id, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": id, "content": tokens[id], **added} for id in special],
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: id for id, token in enumerate(tokens)}, "merges": field(reader, "tokenizer.ggml.merges"),
        },
    }


def tokenizer_config(reader):
    tokens = field(reader, "tokenizer.ggml.tokens")

    def text(name):
        return tokens[field(reader, f"tokenizer.ggml.{name}_token_id")]

    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": text("bos"), "eos_token": text("eos"),
        "model_max_length": field(reader, "llama.context_length"), "clean_up_tokenization_spaces": False,
        "chat_template": field(reader, "tokenizer.chat_template"),
    }


def convert(source, target):
    target.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(source)
    setup = config(reader)
    tensors = weights(reader, setup["num_attention_heads"], setup["num_key_value_heads"])
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    parts = {"config": setup, "tokenizer": tokenizer(reader), "tokenizer_config": tokenizer_config(reader)}
    for name, part in parts.items():
        (target / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False))


if __name__ == "__main__":
    convert(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
