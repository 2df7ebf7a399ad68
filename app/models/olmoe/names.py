"""What an OLMoE's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import EXPERT_STACKS, DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    return gated_decoder_json(reader, "OlmoeForCausalLM", experts=True) | experts_json(reader, normalised=False)


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=EXPERT_STACKS),
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, **EXPERT_PARTS}),
    gguf_config=_config,
)
