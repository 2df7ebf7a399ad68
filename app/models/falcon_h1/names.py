"""What a Falcon-H1's files call things (torch-free).

GGUF files hold weights that their factors are multiplied into already.
"""

from __future__ import annotations

from typing import Any

from app.models.gguf_config import GGUFReader, gated_decoder_json, refuse_window
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, GGUFNames
from app.models.mamba_reading import MAMBA_PARTS, mamba_json
from app.models.names import DecoderNames, FamilyNames


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    mamba, tensors = mamba_json(reader, 0), reader.header.tensors
    return gated_decoder_json(reader, "FalconH1ForCausalLM") | {
        **mamba,
        "mamba_d_ssm": mamba["mamba_n_heads"] * mamba["mamba_d_head"],
        "mamba_rms_norm": "blk.0.ssm_norm.weight" in tensors,
        "mamba_norm_before_gate": False,
        "projectors_bias": "blk.0.ssm_out.bias" in tensors,
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        final_norm="model.final_layernorm",
        mixers={"attention": "self_attn", "mamba": "mamba"},
        mlp_norm="pre_ff_layernorm",
        mlp="feed_forward",
    ),
    gguf=GGUFNames(
        model={**MODEL_PARTS, "output_norm": "model.final_layernorm"},
        layer={
            **LAYER_PARTS,
            **MAMBA_PARTS,
            **{f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")},
            # Files have no ".weight" at its end.
            "ffn_norm": "pre_ff_layernorm.weight",
            "ffn_norm.weight": "pre_ff_layernorm.weight",
        },
    ),
    gguf_config=_config,
)
