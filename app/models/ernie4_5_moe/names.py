"""What an ERNIE 4.5 MoE's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import (
    EXPERT_PARTS,
    LAYER_PARTS,
    MODEL_PARTS,
    SHARED_EXPERT_PARTS,
    GGUFNames,
    GGUFTensor,
)
from app.models.names import EXPERT_STACKS, SHARED_EXPERTS, DecoderNames, FamilyNames, StoredParts

_IN_MEMORY: Final = {
    "mlp.gate.moe_statics.e_score_correction_bias": StoredParts(("mlp.moe_statics.e_score_correction_bias",)),
}
"""As transformers 5 has it."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    experts = experts_json(reader, normalised=None, reads=frozenset({"expert_shared_count"}))
    return gated_decoder_json(reader, "Ernie4_5_MoeForCausalLM", experts=True) | {
        "moe_num_experts": experts["num_experts"],
        "moe_k": experts["num_experts_per_tok"],
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        "moe_num_shared_experts": reader.integer("expert_shared_count", 0),
        "moe_layer_start_index": reader.integer("leading_dense_block_count", 0),
        "moe_layer_interval": reader.integer("interleave_moe_layer_step", 1),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks={**EXPERT_STACKS, **SHARED_EXPERTS, **_IN_MEMORY}, beside=("model.mtp_",)),
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={
            **LAYER_PARTS,
            **EXPERT_PARTS,
            **SHARED_EXPERT_PARTS,
            "exp_probs_b.bias": GGUFTensor("mlp.moe_statics.e_score_correction_bias", row=True),
        },
    ),
    gguf_config=_config,
)
