"""What a MiniCPM3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader
from app.models.gguf_names import MODEL_PARTS, GGUFNames
from app.models.latent_reading import LATENT_PARTS, latent_json
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    # Files do not say the three factors: llama.cpp has those of the 4B, which are transformers' defaults.
    return latent_json(reader, "MiniCPM3ForCausalLM")


NAMES = FamilyNames(
    checkpoint=DecoderNames(), gguf=GGUFNames(model=MODEL_PARTS, layer=LATENT_PARTS), gguf_config=_config
)
