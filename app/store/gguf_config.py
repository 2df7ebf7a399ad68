"""The Hugging Face style JSON files that a GGUF file's metadata amounts to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from app.models.checkpoint import TensorEntry
from app.models.gguf_header import GGUFHeader
from app.models.tied_head import equal_data
from app.store.errors import StoreError
from app.store.gguf_tokenizer import GGUFTokenizerError, special_token_id

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Original context and ramp of every Llama 3.1 and later; a GGUF file has only the table that follows from them."""

_LARGEST = float(np.finfo(np.float32).max)

_YARN_NEUTRAL = {"attn_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_log_multiplier": 0.0}
"""Settings of YaRN that are accepted only where they change nothing."""


def config_json(header: GGUFHeader) -> dict[str, Any]:
    """``config.json`` of a GGUF file.

    Raises:
        StoreError: unknown architecture, a field that is missing or malformed, or a feature that is not supported.
    """
    fields = _Fields(header)
    name = header.architecture
    if name not in _ARCHITECTURES:
        supported = ", ".join(_ARCHITECTURES)
        raise StoreError(f"{header.path}: architecture {name!r} is not supported; supported are {supported}")
    if header.metadata.get("split.count", 0) not in (0, 1):  # 0: never split
        raise StoreError(f"{header.path}: one of several files of a model; merge them with: llama-gguf-split --merge")
    if fields.integer("expert_count", 0):
        raise StoreError(f"{header.path}: mixture-of-experts models are not supported")
    heads = fields.integer("attention.head_count")
    hidden = fields.integer("embedding_length")
    if heads <= 0 or hidden <= 0:
        raise StoreError(f"{header.path}: {heads} attention heads for a width of {hidden}")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise StoreError(f"{header.path}: {name}.{key} differs from the head width {head_dim}: not supported")
    context = fields.integer("context_length")
    window = fields.integer("attention.sliding_window", 0)
    window = window if window < context else 0
    if window and name != "llama":
        raise StoreError(
            f"{header.path}: {name}.attention.sliding_window does not say which layers slide: not supported"
        )
    architecture = "MistralForCausalLM" if window else _ARCHITECTURES[name]
    tensors = header.tensors
    return {
        "architectures": [architecture],
        "vocab_size": _vocab_size(header),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": _ties_head(header),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "sliding_window": window or None,
        "rope_scaling": _rope_scaling(header, fields, head_dim),
    }


def _ties_head(header: GGUFHeader) -> bool:
    """Whether the file has no output head but the token embedding, or a copy of it."""
    embedding, head = header.tensors.get("token_embd.weight"), header.tensors.get("output.weight")
    if embedding is None or head is None:
        return head is None
    return equal_data(header.path, embedding, header.path, head)


def tokenizer_config_json(header: GGUFHeader) -> dict[str, Any]:
    """``tokenizer_config.json``: special tokens and the chat template.

    Raises:
        StoreError: a special token that is not in the vocabulary, or a template that is no text.
    """
    metadata = header.metadata
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise StoreError(f"{header.path}: tokenizer.chat_template is not a text")
    config: dict[str, Any] = {
        "bos_token": _token(header, "bos_token_id"),
        "eos_token": _token(header, "eos_token_id"),
        "pad_token": _token_beside_text(header, "padding_token_id"),
        "unk_token": _token_beside_text(header, "unknown_token_id"),
        "sep_token": _token_beside_text(header, "seperator_token_id"),
        "cls_token": _token_beside_text(header, "cls_token_id"),
        "mask_token": _token_beside_text(header, "mask_token_id"),
        # Silence is left to the tokenizer, which knows what it means for its kind.
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token"),
        "chat_template": template,
    }
    return {key: value for key, value in config.items() if value is not None}


def generation_config_json(header: GGUFHeader) -> dict[str, Any]:
    """``generation_config.json``: the tokens that end an answer, and sampling defaults if the file has any.

    Raises:
        StoreError: a token that is not in the vocabulary, or a default that is no number.
    """
    metadata = header.metadata
    ids = {_token_id(header, name) for name in _END_TOKENS}
    config: dict[str, Any] = {"eos_token_id": sorted(token_id for token_id in ids if token_id is not None)}
    for key, ours in _SAMPLING.items():
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise StoreError(f"{header.path}: {key} is not a finite number")
        config[ours] = value
    return config


class _Fields:
    """The architecture's own metadata, typed."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._uniform(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._uniform(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:
            raise self._wrong(key, value)
        # Stored as fp32: the shortest decimal that gives it back is what the model's makers wrote.
        return float(str(np.float32(value)))

    def text(self, key: str) -> str | None:
        value = self._uniform(key, None, required=False)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def _uniform(self, key: str, default: Any, *, required: bool = True) -> Any:
        """A value, or the one value that an array repeats for every layer."""
        name = f"{self._header.architecture}.{key}"
        value = self._header.metadata.get(name, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise StoreError(f"{self._header.path}: {name} differs from layer to layer: not supported")
            value = value[0]
        if value is None and required:
            raise StoreError(f"{self._header.path}: the metadata has no {name}")
        return value

    def _wrong(self, key: str, value: object) -> StoreError:
        return StoreError(f"{self._header.path}: {self._header.architecture}.{key} = {value!r} is of the wrong type")


def _vocab_size(header: GGUFHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise StoreError(f"{header.path}: tensor 'token_embd.weight' is missing")
    return embedding.shape[0]


def _rope_scaling(header: GGUFHeader, fields: _Fields, head_dim: int) -> dict[str, Any] | None:
    factors = header.tensors.get("rope_freqs.weight")
    if factors is not None:
        return _llama3_scaling(header.path, factors, fields.number("rope.freq_base", 10_000.0), head_dim)
    kind = fields.text("rope.scaling.type")
    # Files from before rope.scaling.* say it with rope.scale_linear.
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    match kind:
        case "linear" | None:
            return {"rope_type": "linear", "factor": factor}
        case "yarn":
            return _yarn_scaling(header, fields, factor)
        case _:
            raise StoreError(
                f"{header.path}: rope.scaling.type = {kind!r} is not supported; supported are none, linear, yarn"
            )


def _yarn_scaling(header: GGUFHeader, fields: _Fields, factor: float) -> dict[str, Any]:
    prefix = f"{header.architecture}.rope.scaling"
    for key, neutral in _YARN_NEUTRAL.items():
        if fields.number(f"rope.scaling.{key}", neutral) != neutral:
            raise StoreError(f"{header.path}: {prefix}.{key} is not supported")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _llama3_scaling(path: Path, factors: TensorEntry, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's parameters, recovered from the table of what each frequency is divided by."""
    if factors.dtype != "F32" or factors.shape != (head_dim // 2,):
        raise StoreError(f"{path}: tensor 'rope_freqs.weight' is {factors.dtype} {factors.shape}, not a rotary table")
    table = np.fromfile(path, dtype="<f4", count=head_dim // 2, offset=factors.offset)
    factor = float(table.max())
    with np.errstate(all="ignore"):  # what a damaged table or base gives does not compare equal
        same = np.allclose(table, _llama3_table(theta, head_dim, factor), rtol=1e-4, atol=0.0)
    if not same or factor <= 1.0:
        raise StoreError(f"{path}: tensor 'rope_freqs.weight' is not Llama 3's rotary scaling: not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }


def _llama3_table(theta: float, head_dim: int, factor: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    table: np.ndarray[Any, np.dtype[np.float64]] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return table


def _token_id(header: GGUFHeader, name: str) -> int | None:
    try:
        return special_token_id(header.metadata.get(f"tokenizer.ggml.{name}"), name, len(_tokens(header.metadata)))
    except GGUFTokenizerError as e:
        raise StoreError(f"{header.path}: {e}") from None


def _token(header: GGUFHeader, name: str) -> str | None:
    token_id = _token_id(header, name)
    return None if token_id is None else str(_tokens(header.metadata)[token_id])


def _token_beside_text(header: GGUFHeader, name: str) -> str | None:
    """The token, unless it is of the kind that text is made of.

    A named token is a control token to a tokenizer, which leaves it out of answers. Files whose makers knew of none
    name token 0, a ``!`` in many a vocabulary.
    """
    token_id = _token_id(header, name)
    types = header.metadata.get("tokenizer.ggml.token_type")
    if token_id is not None and isinstance(types, list) and types[token_id : token_id + 1] == [TokenType.NORMAL]:
        return None
    return _token(header, name)


def _tokens(metadata: Mapping[str, Any]) -> list[Any]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return tokens if isinstance(tokens, list) else []
