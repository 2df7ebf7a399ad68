"""What a Cohere's files call things (torch-free)."""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.names import FamilyNames

_ARCHITECTURES = {"command-r": "CohereForCausalLM", "cohere2": "Cohere2ForCausalLM"}


def _config(reader: GGUFReader) -> dict[str, Any]:
    architecture = reader.header.architecture
    config = gated_decoder_json(reader, _ARCHITECTURES[architecture], layer_norm=True)
    del config["mlp_bias"]
    if architecture == "cohere2":
        # Which layers slide is what llama.cpp has in its code: all but every fourth.
        config["sliding_window"] = reader.integer("attention.sliding_window")
    return config | {
        "logit_scale": reader.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in reader.header.tensors,
    }


NAMES = FamilyNames(gguf=GGUFNames(model=MODEL_PARTS, layer=LAYER_PARTS), gguf_config=_config)
