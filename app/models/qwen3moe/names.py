"""What a Qwen3-MoE's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import EXPERT_STACKS, DecoderNames, FamilyNames

_NEUTRAL: Final = {
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_group_count": 1,
    "expert_group_used_count": 1,
}
"""Settings of other families, that change nothing at these values: a softmax, no shared expert, no groups."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    architecture = reader.header.architecture
    for key, neutral in _NEUTRAL.items():
        if reader.integer(key, neutral) not in (0, neutral):
            raise reader.error(f"{architecture}.{key} = {reader.values(key)!r} is not supported")
    if reader.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise reader.error(f"{architecture}.expert_weights_scale is not supported")
    return gated_decoder_json(reader, "Qwen3MoeForCausalLM", experts=True) | {
        "num_experts": reader.integer("expert_count"),
        "num_experts_per_tok": reader.integer("expert_used_count"),
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        # llama.cpp divides by the sum whatever the file says; all published models do.
        "norm_topk_prob": reader.values("expert_weights_norm") is not False,
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=EXPERT_STACKS),
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, **EXPERT_PARTS}),
    gguf_config=_config,
)
