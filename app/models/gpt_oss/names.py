"""What a gpt-oss' files call things (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.models.gguf_config import GGUFReader, gated_decoder_json
from app.models.gguf_names import EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import DecoderNames, FamilyNames, StoredParts

_THETA, _WINDOW = 150_000.0, 128
"""Rotary base and window of both published models: files need not say."""
_SOFTMAX_CHOSEN: Final = 3
"""llama.cpp's number for a softmax over the chosen experts."""


def _stacks() -> Mapping[str, StoredParts]:
    """Experts as published: rows of gate and up in turns, in MXFP4 or, transposed, as they are; and the router."""
    stacks = {f"mlp.router.{kind}": StoredParts((f"mlp.gate.{kind}",)) for kind in ("weight", "bias")}
    for name, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        prefix, turns = f"mlp.experts.{name}", len(parts) > 1
        weights = tuple(f"mlp.experts.{{expert}}.{part}.weight" for part in parts)
        biases = tuple(f"mlp.experts.{{expert}}.{part}.bias" for part in parts)
        stacks[prefix] = StoredParts(weights, interleaved=turns, transposed=True)
        stacks[f"{prefix}_bias"] = StoredParts(biases, dims=2, interleaved=turns)
        for half, dims in (("_blocks", 4), ("_scales", 3)):
            stacks[prefix + half] = StoredParts(tuple(w + half for w in weights), dims=dims, interleaved=turns)
    return stacks


def _config(reader: GGUFReader) -> dict[str, Any]:
    gating = reader.integer("expert_gating_func", _SOFTMAX_CHOSEN)
    if gating not in (0, _SOFTMAX_CHOSEN):
        raise reader.error(f"{reader.header.architecture}.expert_gating_func = {gating} is not supported")
    config = gated_decoder_json(reader, "GptOssForCausalLM", experts=True)
    if config["rope_scaling"] is not None:
        config["rope_scaling"]["truncate"] = False  # as the model was trained; files have no word for it
    for field in ("hidden_act", "mlp_bias"):
        del config[field]
    return config | {
        "rope_theta": reader.number("rope.freq_base", _THETA),
        "rope_parameters": {"rope_type": "default"},  # where no scaling goes before it
        "sliding_window": reader.integer("attention.sliding_window", _WINDOW),
        "num_local_experts": reader.integer("expert_count"),
        "num_experts_per_tok": reader.integer("expert_used_count"),
        "intermediate_size": reader.integer("expert_feed_forward_length"),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=_stacks()),
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={
            **LAYER_PARTS,
            **EXPERT_PARTS,
            "attn_sinks.weight": "self_attn.sinks",
            "post_attention_norm": "post_attention_layernorm",
        },
    ),
    gguf_config=_config,
    gguf_end_tokens=("<|return|>", "<|call|>"),
)
