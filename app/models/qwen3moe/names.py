"""What a Qwen3-MoE's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import EXPERT_STACKS, DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    # llama.cpp divides by the sum whatever the file says; all published models do.
    experts = experts_json(reader, normalised=True)
    return gated_decoder_json(reader, "Qwen3MoeForCausalLM", experts=True) | {
        **experts,
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=EXPERT_STACKS),
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, **EXPERT_PARTS}),
    gguf_config=_config,
)
