"""Tiny models on disk, in the forms that the store and the loader read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 32, 4, 2, 64, 2
"""All rows are a multiple of 32, the block of the simple quantised types."""
SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = [*SPECIALS, *ALPHABET, "ab"]
Array = NDArray[Any]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": len(VOCAB),
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 1,
}


def shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape."""
    kv = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (len(VOCAB), HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        found |= {
            f"{prefix}input_layernorm.weight": (HIDDEN,),
            f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": (kv, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": (kv, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{prefix}mlp.up_proj.weight": (FFN, HIDDEN),
            f"{prefix}mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return found


def random_weights(seed: int = 0) -> dict[str, Array]:
    """Checkpoint name -> fp32 values."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE with one merge."""
    vocab = {token: token_id for token_id, token in enumerate(VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(path))


def write_directory(
    directory: Path, weights: Mapping[str, Array] | None = None, *, shards: int = 1, tokenizer: bool = True
) -> Path:
    """A Hugging Face style model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = random_weights() if weights is None else weights
    write_json(directory / "config.json", CONFIG)
    write_json(directory / "tokenizer_config.json", {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}})
    if tokenizer:
        write_tokenizer(directory / "tokenizer.json")
    if shards == 1:
        save_file(dict(weights), directory / "model.safetensors")
        return directory
    names = list(weights)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return directory


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def permute(values: Array, heads: int) -> Array:
    """Rows as llama.cpp's converter orders queries and keys: the two halves of each head become neighbours."""
    rows = values.shape[0]
    order = [
        head * (rows // heads) + half * (rows // heads // 2) + i
        for head in range(heads)
        for i in range(rows // heads // 2)
        for half in range(2)
    ]
    return values[order]


def metadata(arch: str = "llama") -> dict[str, Any]:
    """Metadata of a tiny model; ints become uint32, floats float32."""
    return {
        "general.name": "Tiny",
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": FFN,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCAB,
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(VOCAB) - len(SPECIALS)),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


def write_gguf(
    path: Path,
    weights: Mapping[str, Array] | None = None,
    *,
    arch: str = "llama",
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
    split: int = 0,
) -> Path:
    """A GGUF file.

    Args:
        weights: by checkpoint name; for arch ``llama`` queries and keys are permuted as llama.cpp does.
        types: quantised type by checkpoint name, or that of ``tensors``; fp32 otherwise.
        extra: metadata in place of or beside the usual; None removes.
        tensors: more tensors, by GGUF name.
        split: most tensors of a file; then there are several, whose names :func:`parts` gives.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in (metadata(arch) | dict(extra or {})).items():
        _add(writer, key, value)
    for name, values in (random_weights() if weights is None else weights).items():
        if arch == "llama" and ".q_proj." in name:
            values = permute(values, HEADS)
        if arch == "llama" and ".k_proj." in name:
            values = permute(values, KV_HEADS)
        _add_tensor(writer, gguf_name(name), values, (types or {}).get(name))
    for name, values in (tensors or {}).items():
        _add_tensor(writer, name, values, (types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parts(path: Path) -> list[Path]:
    """Files of a split model that was written as ``path``."""
    return sorted(path.parent.glob(f"{path.stem}-0*-of-0*.gguf"))


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, kind: gguf.GGMLQuantizationType | None) -> None:
    if kind is None:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case int() if key == "general.alignment":
            writer.add_custom_alignment(value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
