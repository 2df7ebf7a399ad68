"""What a Llama's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, window_of
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames, GGUFTensor, unpermuted
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Files of architecture ``llama`` are Mistrals too: those with a window, over which all layers slide."""
    window = window_of(reader)
    config = gated_decoder_json(reader, "MistralForCausalLM" if window else "LlamaForCausalLM")
    return config | {"sliding_window": window}


NAMES = FamilyNames(
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={
            **LAYER_PARTS,
            "attn_q": GGUFTensor("self_attn.q_proj", unpermuted("attention.head_count")),
            "attn_k": GGUFTensor("self_attn.k_proj", unpermuted("attention.head_count_kv")),
        },
    ),
    gguf_config=_config,
)
