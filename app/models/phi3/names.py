"""What a Phi-3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, window_of
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    config = gated_decoder_json(reader, "Phi3ForCausalLM", partial=True)
    head_dim, context = config["head_dim"], config["max_position_embeddings"]
    original = reader.integer("rope.scaling.original_context_length", 0)
    return config | {
        "original_max_position_embeddings": original or context,
        "partial_rotary_factor": reader.integer("rope.dimension_count", head_dim) / head_dim,
        "sliding_window": window_of(reader),
    }


NAMES = FamilyNames(
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={**LAYER_PARTS, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    gguf_config=_config,
    gguf_end_tokens=("<|end|>",),
    gguf_tokens_before_space=("<unk>", "<s>", "<|endoftext|>"),
)
