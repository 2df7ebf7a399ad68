"""What a StarCoder2's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, window_of
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    config = gated_decoder_json(reader, "Starcoder2ForCausalLM", layer_norm=True)
    epsilon, bias = config.pop("layer_norm_eps"), config.pop("attention_bias")
    del config["mlp_bias"]
    return config | {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": epsilon,
        "use_bias": bias,
        "sliding_window": window_of(reader),
    }


NAMES = FamilyNames(
    gguf=GGUFNames(model=MODEL_PARTS, layer={**LAYER_PARTS, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    gguf_config=_config,
)
