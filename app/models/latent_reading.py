"""What families whose attention goes over latents share when they read a config or a GGUF file (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from app.layers.rope_scaling import YarnScaling
from app.models.config import ConfigError, LatentConfig, Rope
from app.models.config_fields import shown
from app.models.config_rope import read_rope
from app.models.gguf_config import GGUFReader, rope_scaling_json
from app.models.gguf_names import LAYER_PARTS, Floats, GGUFPair, GGUFTensor
from app.models.reading import DecoderFields, Positive

NORM_EPS: Final = 1e-6
"""Epsilon of the norms within attention, whatever the config says of the others."""


class LatentFields(DecoderFields, kw_only=True):
    """Those of a decoder whose attention goes over latents, with the defaults that transformers gives most."""

    q_lora_rank: Positive | None = 1536
    kv_lora_rank: Positive = 512
    qk_nope_head_dim: Positive = 128
    qk_rope_head_dim: Positive = 64
    v_head_dim: Positive | None = 128


def read_latent(
    config: Mapping[str, Any], fields: LatentFields, *, v_dim: int, interleaved: bool, output_scale: float = 1.0
) -> LatentConfig:
    """The attention of every layer.

    Args:
        v_dim: elements of a head's value.
        interleaved: whether rotated pairs are neighbours.
        output_scale: as of :class:`~app.layers.config.LatentConfig`.

    Raises:
        ConfigError: heads do not all have keys of their own, or rotary settings are malformed or not supported.
    """
    heads, kv_heads, rotary = fields.num_attention_heads, fields.num_key_value_heads, fields.qk_rope_head_dim
    if kv_heads not in (msgspec.UNSET, None, heads):
        raise ConfigError(f"num_key_value_heads = {kv_heads} is not num_attention_heads = {heads}")
    if rotary % 2:
        raise ConfigError(f"qk_rope_head_dim = {rotary} is odd; rotary embedding needs an even width")
    rope = read_rope(config, fields.max_position_embeddings, rotary)
    return LatentConfig(
        num_heads=heads,
        q_rank=fields.q_lora_rank,
        kv_rank=fields.kv_lora_rank,
        nope_dim=fields.qk_nope_head_dim,
        rope_dim=rotary,
        v_dim=v_dim,
        scale=(fields.qk_nope_head_dim + rotary) ** -0.5 * _temperature(config, rope),
        rope=rope,
        interleaved=interleaved,
        norm_eps=NORM_EPS,
        bias=bool(fields.attention_bias),
        output_scale=output_scale,
    )


def _temperature(config: Mapping[str, Any], rope: Rope) -> float:
    """Factor on the scores of a stretched context: the square of YaRN's (section 3.4) for ``mscale_all_dim``, of which
    cosines and sines carry none."""
    settings = config.get("rope_scaling") or config.get("rope_parameters") or {}
    mscale = settings.get("mscale_all_dim")
    if not mscale:
        return 1.0
    match rope.scaling:
        case YarnScaling(factor=factor):
            return (0.1 * mscale * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0
        case None if settings.get("rope_type", settings.get("type", "default")) == "default":
            return 1.0
        case _:
            raise ConfigError(f"mscale_all_dim = {shown(mscale)} is supported with rope_type 'yarn' alone")


def latent_json(reader: GGUFReader, architecture: str) -> dict[str, Any]:
    """``config.json`` of a decoder whose attention goes over latents, all but what its feed-forward parts are.

    Newer files say of keys and values what the latents' are, and of those of the heads in fields of their own.

    Raises:
        ConfigError: a field is missing, malformed or not supported.
    """
    rotary, rank = reader.integer("rope.dimension_count"), reader.integer("attention.kv_lora_rank")
    key = reader.integer("attention.key_length_mla", reader.integer("attention.key_length"))
    hidden, heads = reader.integer("embedding_length"), reader.integer("attention.head_count")
    if heads <= 0 or not 0 < rotary < key:
        raise reader.error(f"{rotary} rotated elements of a key of {key}, in {heads} heads")
    value = reader.integer("attention.value_length_mla", reader.integer("attention.value_length", hidden // heads))
    scaling = rope_scaling_json(reader, rotary, tenth=True)
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": reader.integer("feed_forward_length"),
        "num_hidden_layers": reader.integer("block_count") - reader.integer("nextn_predict_layers", 0),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": reader.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rotary,
        "qk_rope_head_dim": rotary,
        "v_head_dim": value,
        "hidden_act": "silu",
        "max_position_embeddings": reader.integer("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": reader.number("rope.freq_base", 10_000.0),
        "rope_scaling": scaling,
        "attention_bias": "blk.0.attn_kv_a_mqa.bias" in reader.header.tensors,
    }


LATENT_PARTS: Mapping[str, str | GGUFTensor] = {
    **{part: name for part, name in LAYER_PARTS.items() if part not in ("attn_k", "attn_v")},
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}
"""Names of the tensors of layers that attend to latents."""


def _pair_shape(keys: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(keys) != 3 or len(values) != 3 or (keys[0], keys[1]) != (values[0], values[2]):
        return None
    return keys[0] * (keys[2] + values[1]), keys[1]


def _joined(keys: Floats, values: Floats) -> Floats:
    """[H, C, N] and [H, V, C] as [H * (N + V), C]."""
    both = np.concatenate((keys.swapaxes(1, 2), values), axis=1)
    return both.reshape(-1, both.shape[2])


LATENT_PAIR: Final = GGUFPair("self_attn.kv_b_proj.weight", "attn_k_b.weight", "attn_v_b.weight", _pair_shape, _joined)
"""Pair of tensors of newer files: the heads' matrices apart, those of keys transposed."""
