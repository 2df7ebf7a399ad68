"""What a Llama's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, window_of
from app.models.gguf_names import EXPERT_PARTS, MODEL_PARTS, PERMUTED_LAYER_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Files of architecture ``llama`` are Mistrals too: those with a window, over which all layers slide; and Mixtrals:
    those with experts."""
    window = window_of(reader)
    if reader.integer("expert_count", 0):
        config = gated_decoder_json(reader, "MixtralForCausalLM", experts=True) | experts_json(reader, normalised=None)
    else:
        config = gated_decoder_json(reader, "MistralForCausalLM" if window else "LlamaForCausalLM")
    return config | {"sliding_window": window}


NAMES = FamilyNames(
    gguf=GGUFNames(model=MODEL_PARTS, layer={**PERMUTED_LAYER_PARTS, **EXPERT_PARTS}),
    gguf_config=_config,
)
