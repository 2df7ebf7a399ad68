"""What a Granite's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import MODEL_PARTS, PERMUTED_LAYER_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Without a scale of scores that is the usual one; without another factor it is 1."""
    refuse_window(reader)
    config = gated_decoder_json(reader, "GraniteForCausalLM")
    return {
        **config,
        "attention_multiplier": reader.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": reader.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": reader.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": reader.number("logit_scale", 0.0) or 1.0,
    }


NAMES = FamilyNames(gguf=GGUFNames(model=MODEL_PARTS, layer=PERMUTED_LAYER_PARTS), gguf_config=_config)
