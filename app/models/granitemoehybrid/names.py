"""What a Granite 4's files call things (torch-free).

GGUF files of those whose layers all have attention are files of architectures ``granite`` and ``granitemoe``.
"""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, MODEL_PARTS, PERMUTED_LAYER_PARTS, SHARED_EXPERT_PARTS, GGUFNames
from app.models.mamba_reading import MAMBA_PARTS, mamba_json
from app.models.names import DecoderNames, FamilyNames, StoredParts

_GATE_UP: Final = StoredParts(("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight"))
_DOWN: Final = StoredParts(("mlp.experts.{expert}.down_proj.weight",))
_ROUTER: Final = StoredParts(("mlp.gate.weight",))
_SHARED_GATE_UP: Final = ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight")
_STACKS: Final = {
    "block_sparse_moe.input_linear.weight": _GATE_UP,
    "block_sparse_moe.output_linear.weight": _DOWN,
    "block_sparse_moe.router.layer.weight": _ROUTER,
    "shared_mlp.input_linear.weight": StoredParts(_SHARED_GATE_UP),
    "shared_mlp.output_linear.weight": StoredParts(("mlp.shared_expert.down_proj.weight",)),
    # As transformers 5 has them in memory.
    "block_sparse_moe.experts.gate_up_proj": _GATE_UP,
    "block_sparse_moe.experts.down_proj": _DOWN,
    "block_sparse_moe.router.weight": _ROUTER,
}
"""What checkpoints call the parts of a layer's feed-forward part; one that is dense is a shared expert alone."""
_DENSE: Final = {f"ffn_{part}": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}


def _config(reader: GGUFReader) -> dict[str, Any]:
    """Without a scale of scores that is the usual one; without another factor it is 1."""
    refuse_window(reader)
    kv_heads = reader.values("attention.head_count_kv")
    if not isinstance(kv_heads, list) or not all(isinstance(count, int) for count in kv_heads):
        raise reader.error("granitehybrid.attention.head_count_kv does not say which layers have attention")
    types = ["attention" if count else "mamba" for count in kv_heads]
    if set(types) != {"attention", "mamba"} or len(set(kv_heads)) != 2:
        raise reader.error("granitehybrid.attention.head_count_kv is not 0 or one other number: not supported")
    config = gated_decoder_json(reader, "GraniteMoeHybridForCausalLM", experts=True, kv_heads=max(kv_heads))
    count = reader.integer("expert_count", 0)
    experts = experts_json(reader, normalised=None) if count else {"num_experts_per_tok": 1}
    return config | {
        **mamba_json(reader, types.index("mamba")),
        "layer_types": types,
        "position_embedding_type": "rope" if reader.flag("rope.scaling.finetuned", default=False) else "nope",
        "attention_bias": any(name.endswith("attn_q.bias") for name in reader.header.tensors),
        "num_local_experts": count,
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "shared_intermediate_size": reader.integer("expert_shared_feed_forward_length", config["intermediate_size"]),
        "attention_multiplier": reader.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": reader.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": reader.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": reader.number("logit_scale", 0.0) or 1.0,
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(stacks=_STACKS, mixers={"attention": "self_attn", "mamba": "mamba"}),
    gguf=GGUFNames(
        model=MODEL_PARTS,
        layer={**PERMUTED_LAYER_PARTS, **EXPERT_PARTS, **SHARED_EXPERT_PARTS, **_DENSE, **MAMBA_PARTS},
    ),
    gguf_config=_config,
)
