"""What a Gemma 3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, gated_decoder_json
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, SANDWICH_PARTS, GGUFNames, norms_less_one
from app.models.names import DecoderNames, FamilyNames

_PERIOD, _LOCAL_THETA = 6, 1e4
"""Period of the layers that see all positions, and rotary base of the others, where the file does not say."""
_LAYERS_27B: Final = 62
"""Layers of the 27B model, whose attention is scaled by ``hidden_size / num_attention_heads``; llama.cpp
knows the model by it."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    config = gated_decoder_json(reader, "Gemma3ForCausalLM")
    full = config.pop("rope_scaling") or {"rope_type": "default"}
    full["rope_theta"] = reader.number("rope.freq_base", 1e6)
    sliding = {"rope_type": "default", "rope_theta": reader.number("rope.freq_base_swa", _LOCAL_THETA)}
    num_layers, window = config["num_hidden_layers"], reader.integer("attention.sliding_window", 0)
    shared = config["hidden_size"] / config["num_attention_heads"]
    del config["hidden_act"], config["rope_theta"]
    return {
        **config,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shared if num_layers == _LAYERS_27B else config["head_dim"],
        "final_logit_softcapping": reader.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
        **(_windows(reader, window) if window else {"sliding_window": None, "sliding_window_pattern": 1}),
    }


def _windows(reader: GGUFReader, window: int) -> dict[str, Any]:
    """Fields of the windows, by the file's pattern: a period, or for each layer whether it slides."""
    pattern = reader.values("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        types = ["sliding_attention" if slides else "full_attention" for slides in pattern]
        return {"sliding_window": window, "layer_types": types}
    return {"sliding_window": window, "sliding_window_pattern": _PERIOD if pattern is None else pattern}


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="model.",
        other_base="language_model.model.",
        mlp_norm="pre_feedforward_layernorm",
        beside=("vision_tower.", "multi_modal_projector."),
    ),
    gguf=GGUFNames(model=norms_less_one(MODEL_PARTS), layer=norms_less_one({**LAYER_PARTS, **SANDWICH_PARTS})),
    gguf_config=_config,
    gguf_end_tokens=("<end_of_turn>",),
)
