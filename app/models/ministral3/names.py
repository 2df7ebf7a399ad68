"""What a Ministral 3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, window_of
from app.models.gguf_names import MODEL_PARTS, PERMUTED_LAYER_PARTS, GGUFNames
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Files of architecture ``mistral3`` without a temperature are of a Mistral that sees images, its text part."""
    config = gated_decoder_json(reader, "Ministral3ForCausalLM", all_dim=True)
    scaling = config.pop("rope_scaling") or {"rope_type": "default"}
    beta = reader.number("attention.temperature_scale", 0.0)
    rope = {**scaling, "rope_theta": config.pop("rope_theta"), "llama_4_scaling_beta": beta or None}
    return {**config, "rope_parameters": rope, "sliding_window": window_of(reader)}


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="model.",
        other_base="language_model.model.",
        other_head="language_model.lm_head",
        beside=("vision_tower.", "multi_modal_projector."),
    ),
    gguf=GGUFNames(model=MODEL_PARTS, layer=PERMUTED_LAYER_PARTS),
    gguf_config=_config,
)
