"""What a dense ERNIE 4.5's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    config = gated_decoder_json(reader, "Ernie4_5ForCausalLM")
    return config | {"use_bias": config["attention_bias"]}


NAMES = FamilyNames(gguf=GGUFNames(model=MODEL_PARTS, layer=LAYER_PARTS), gguf_config=_config)
