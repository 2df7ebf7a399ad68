"""What an OLMo 2's and OLMo 3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, window_of
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, POST_NORM_PARTS, GGUFNames
from app.models.names import FamilyNames

_PERIOD = 4


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Files with a window are of an OLMo 3, whose layers that slide have a rope of their own."""
    window = window_of(reader)
    config = gated_decoder_json(reader, "Olmo3ForCausalLM" if window else "Olmo2ForCausalLM")
    if not window:
        return config
    theta = config.pop("rope_theta")
    full = {**(config.pop("rope_scaling") or {"rope_type": "default"}), "rope_theta": theta}
    sliding = {"rope_type": "default", "rope_theta": theta}
    return {
        **config,
        "sliding_window": window,
        "layer_types": _types(reader),
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
    }


def _types(reader: GGUFReader) -> list[str] | None:
    """For each layer whether it slides; a file that does not say so has the usual period."""
    pattern = reader.values("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return ["sliding_attention" if slides else "full_attention" for slides in pattern]
    if pattern not in (None, _PERIOD):
        raise reader.error(f"attention.sliding_window_pattern = {pattern!r} is not supported")
    return None


NAMES = FamilyNames(
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, **POST_NORM_PARTS}),
    gguf_config=_config,
)
