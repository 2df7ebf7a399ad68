"""What a Gemma 2's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, gated_decoder_json
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, SANDWICH_PARTS, GGUFNames, norms_less_one
from app.models.names import DecoderNames, FamilyNames

_LAYERS_27B: Final = 46
"""By which llama.cpp knows the one whose attention is scaled by the width a head has of the stream's."""
_WINDOW, _SCORE_CAP, _LOGIT_CAP = 4096, 50.0, 30.0
"""Window and caps of every published model: files need not say."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    config = gated_decoder_json(reader, "Gemma2ForCausalLM")
    shared = config["hidden_size"] / config["num_attention_heads"]
    del config["hidden_act"]
    return {
        **config,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shared if config["num_hidden_layers"] == _LAYERS_27B else config["head_dim"],
        "sliding_window": reader.integer("attention.sliding_window", _WINDOW),
        "attn_logit_softcapping": reader.number("attn_logit_softcapping", _SCORE_CAP),
        "final_logit_softcapping": reader.number("final_logit_softcapping", _LOGIT_CAP),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(mlp_norm="pre_feedforward_layernorm"),
    gguf=GGUFNames(model=norms_less_one(MODEL_PARTS), layer=norms_less_one({**LAYER_PARTS, **SANDWICH_PARTS})),
    gguf_config=_config,
    gguf_end_tokens=("<end_of_turn>",),
)
