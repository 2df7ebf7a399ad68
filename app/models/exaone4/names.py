"""What an EXAONE 4's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, POST_NORM_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    window = reader.integer("attention.sliding_window", 0)
    config = gated_decoder_json(reader, "Exaone4ForCausalLM") | {"sliding_window": window or None}
    pattern = reader.values("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return config | {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern]}
    return config | ({} if pattern is None else {"sliding_window_pattern": pattern})


NAMES = FamilyNames(
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, **POST_NORM_PARTS}),
    gguf_config=_config,
)
