"""What a GLM-4's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    if reader.values("rope.dimension_sections"):
        raise reader.error("glm4.rope.dimension_sections, of a model that sees images, is not supported")
    config = gated_decoder_json(reader, "Glm4ForCausalLM", partial=True)
    head_dim = config["head_dim"]
    return config | {"partial_rotary_factor": reader.integer("rope.dimension_count", head_dim) / head_dim}


NAMES = FamilyNames(
    checkpoint=DecoderNames(mixer_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm"),
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={
            **LAYER_PARTS,
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    gguf_config=_config,
)
