"""What a Granite-MoE's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, MODEL_PARTS, PERMUTED_LAYER_PARTS, SHARED_EXPERT_PARTS, GGUFNames
from app.models.names import DecoderNames, FamilyNames, StoredParts

_GATE_UP: Final = StoredParts(("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"))
_DOWN: Final = StoredParts(("mlp.experts.{expert}.down_proj.weight",))
_ROUTER: Final = StoredParts(("mlp.gate.weight",))
_STACKS: Final = {
    "block_sparse_moe.input_linear.weight": _GATE_UP,
    "block_sparse_moe.output_linear.weight": _DOWN,
    "block_sparse_moe.router.layer.weight": _ROUTER,
    "shared_mlp.input_linear.weight": StoredParts(
        ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight")
    ),
    "shared_mlp.output_linear.weight": StoredParts(("mlp.shared_expert.down_proj.weight",)),
    # As transformers 5 has them in memory.
    "block_sparse_moe.experts.gate_up_proj": _GATE_UP,
    "block_sparse_moe.experts.down_proj": _DOWN,
    "block_sparse_moe.router.weight": _ROUTER,
}
"""What checkpoints call the parts of a mixture of experts."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Without a scale of scores that is the usual one; without another factor it is 1."""
    refuse_window(reader)
    shared = reader.integer("expert_shared_feed_forward_length", 0)
    architecture = "GraniteMoeSharedForCausalLM" if shared else "GraniteMoeForCausalLM"
    config = gated_decoder_json(reader, architecture, experts=True)
    experts = experts_json(reader, normalised=None)
    return config | {
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "shared_intermediate_size": shared,
        "attention_multiplier": reader.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": reader.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": reader.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": reader.number("logit_scale", 0.0) or 1.0,
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=_STACKS),
    gguf=GGUFNames(model=MODEL_PARTS, layer={**PERMUTED_LAYER_PARTS, **EXPERT_PARTS, **SHARED_EXPERT_PARTS}),
    gguf_config=_config,
)
