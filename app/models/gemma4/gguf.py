"""A Gemma 4's GGUF metadata as the ``config.json`` of a checkpoint (torch-free)."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.models.gguf_config import GGUFReader, experts_json
from app.models.gguf_names import ROPE_FACTORS

_UNTURNED = 1e30
"""What the file divides the frequencies of pairs by that are not rotated."""


def config_json(reader: GGUFReader) -> dict[str, Any]:
    """See :attr:`app.models.names.FamilyNames.gguf_config`."""
    tensors, count = reader.header.tensors, reader.integer("block_count")
    slides = reader.values("attention.sliding_window_pattern")
    if not isinstance(slides, list) or len(slides) != count or not all(isinstance(value, bool) for value in slides):
        raise reader.error(f"gemma4.attention.sliding_window_pattern is not {count} times true or false")
    full = [index for index, sliding in enumerate(slides) if not sliding]
    width, wide = reader.integer("attention.key_length_swa"), reader.integer("attention.key_length")
    for suffix, head_dim in (("", wide), ("_swa", width)):
        for key in (f"attention.value_length{suffix}", f"rope.dimension_count{suffix}"):
            if reader.integer(key, head_dim) != head_dim:
                raise reader.error(f"gemma4.{key} differs from the head width {head_dim}: not supported")
    heads, global_heads = _by_kind(reader, "attention.head_count_kv", slides)
    shared = reader.integer("attention.shared_kv_layers", 0)
    inner, shared_inner = _by_kind(reader, "feed_forward_length", [i < count - shared for i in range(count)])
    if shared_inner not in (inner, 2 * inner):
        raise reader.error(f"gemma4.feed_forward_length = {inner} and {shared_inner} are not supported")
    table = tensors.get("per_layer_token_embd.weight")
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "hidden_size": reader.integer("embedding_length"),
        "intermediate_size": inner,
        "use_double_wide_mlp": shared_inner == 2 * inner,
        "num_hidden_layers": count,
        "num_attention_heads": reader.integer("attention.head_count"),
        "per_layer_config": {str(i): {"head_dim": wide, "num_key_value_heads": global_heads} for i in full},
        "num_key_value_heads": heads,
        "head_dim": width,
        "attention_k_eq_v": bool(full) and f"blk.{full[0]}.attn_v.weight" not in tensors,
        "max_position_embeddings": reader.integer("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "sliding_window": reader.integer("attention.sliding_window"),
        "layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in slides],
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": _turned_share(reader, wide),
                "rope_theta": reader.number("rope.freq_base", 1e6),
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": reader.number("rope.freq_base_swa", 1e4)},
        },
        "final_logit_softcapping": reader.number("final_logit_softcapping", 0.0) or None,
        "hidden_size_per_layer_input": reader.integer("embedding_length_per_layer_input", 0),
        **({} if table is None else {"vocab_size_per_layer_input": table.shape[0]}),
        "num_kv_shared_layers": shared,
        **_experts(reader),
    }


def _experts(reader: GGUFReader) -> dict[str, Any]:
    if not reader.integer("expert_count", 0):
        return {}
    config = experts_json(reader, normalised=None)
    return {
        "enable_moe_block": True,
        "num_experts": config["num_experts"],
        "top_k_experts": config["num_experts_per_tok"],
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
    }


def _by_kind(reader: GGUFReader, key: str, first: list[bool]) -> tuple[int, int]:
    """The value of layers of a first kind and that of the others, which an array may tell apart."""
    values = reader.values(key)
    if not isinstance(values, list) or len(values) != len(first):
        value = reader.integer(key)
        return value, value
    kinds = [
        {value for value, is_first in zip(values, first, strict=True) if is_first is kind} for kind in (True, False)
    ]
    if any(len(kind) > 1 or not all(type(value) is int for value in kind) for kind in kinds):
        raise reader.error(f"gemma4.{key} differs among layers of one kind: not supported")
    one, other = (next(iter(kind), None) for kind in kinds)
    return one or other or 0, other or one or 0


def _turned_share(reader: GGUFReader, head_dim: int) -> float:
    """Share of a wide head that is rotated, of the table of what each frequency is divided by."""
    factors, pairs = reader.header.tensors.get(ROPE_FACTORS), head_dim // 2
    if factors is None:
        return 1.0
    if factors.dtype != "F32" or factors.shape != (pairs,):
        raise reader.error(f"tensor {ROPE_FACTORS!r} is {factors.dtype} {factors.shape}, not a rotary table")
    table = np.fromfile(reader.header.path, dtype="<f4", count=pairs, offset=factors.offset)
    turned = int((table == 1).sum())
    if not turned or not (table[:turned] == 1).all() or not (table[turned:] >= np.float32(_UNTURNED)).all():
        raise reader.error(f"tensor {ROPE_FACTORS!r} is not a rotation of a part of each head: not supported")
    return turned / pairs
