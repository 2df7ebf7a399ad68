"""What a SmolLM3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import MODEL_PARTS, PERMUTED_LAYER_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Files do not say which layers rotate: all but every fourth."""
    refuse_window(reader)
    return gated_decoder_json(reader, "SmolLM3ForCausalLM")


NAMES = FamilyNames(gguf=GGUFNames(model=MODEL_PARTS, layer=PERMUTED_LAYER_PARTS), gguf_config=_config)
