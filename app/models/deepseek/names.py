"""What a DeepSeek-V2's or -V3's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.deepseek.config import V3
from app.models.gguf_config import GGUFReader
from app.models.gguf_names import EXPERT_PARTS, MODEL_PARTS, SHARED_EXPERT_PARTS, GGUFNames
from app.models.latent_reading import LATENT_PAIR, LATENT_PARTS, latent_json
from app.models.names import EXPERT_STACKS, SHARED_EXPERTS, DecoderNames, FamilyNames

_SOFTMAX: Final = (0, 1)
_SIGMOID: Final = 2
"""``expert_gating_func`` of the third generation; the second's older files have none."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    gating = reader.integer("expert_gating_func", 0)
    if gating not in (*_SOFTMAX, _SIGMOID):
        raise reader.error(f"{reader.header.architecture}.expert_gating_func = {gating} is not supported")
    third = gating == _SIGMOID
    config = latent_json(reader, V3 if third else "DeepseekV2ForCausalLM")
    if not reader.integer("expert_count", 0):
        return config | {"first_k_dense_replace": config["num_hidden_layers"]}
    return config | _experts(reader, third=third)


def _experts(reader: GGUFReader, *, third: bool) -> dict[str, Any]:
    """Of a file that says nothing of groups all experts are one, as llama.cpp has it."""
    groups = reader.integer("expert_group_count", 0) or 1
    return {
        "first_k_dense_replace": reader.integer("leading_dense_block_count", 0),
        "n_routed_experts": reader.integer("expert_count"),
        "num_experts_per_tok": reader.integer("expert_used_count"),
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        "n_shared_experts": reader.integer("expert_shared_count", 0),
        "norm_topk_prob": reader.flag("expert_weights_norm", default=False),
        "routed_scaling_factor": reader.number("expert_weights_scale", 0.0) or 1.0,
        "n_group": groups,
        "topk_group": reader.integer("expert_group_used_count", 0) or groups,
        "topk_method": "noaux_tc" if third else "greedy" if groups == 1 else "group_limited_greedy",
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks={**EXPERT_STACKS, **SHARED_EXPERTS}, drafts_behind=True),
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={
            **LATENT_PARTS,
            **EXPERT_PARTS,
            **SHARED_EXPERT_PARTS,
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        },
        pairs=(LATENT_PAIR,),
    ),
    gguf_config=_config,
)
