"""What an LFM2's files call things (torch-free)."""

from __future__ import annotations

from typing import Any, Final

from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json, refuse_window
from app.models.gguf_names import EXPERT_PARTS, LAYER_PARTS, GGUFNames, GGUFTensor
from app.models.lfm2.config import WITH_EXPERTS
from app.models.names import DecoderNames, FamilyNames, StoredParts

_PROJECTIONS: Final = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_PUBLISHED: Final = {
    "self_attn.out_proj.weight": StoredParts(("self_attn.o_proj.weight",)),
    **{f"self_attn.{part}_layernorm.weight": StoredParts((f"self_attn.{part}_norm.weight",)) for part in "qk"},
    **{f"feed_forward.{w}.weight": StoredParts((f"mlp.{part}.weight",)) for w, part in _PROJECTIONS.items()},
    **{
        f"feed_forward.experts.{{expert}}.{w}.weight": StoredParts((f"mlp.experts.{{expert}}.{part}.weight",))
        for w, part in _PROJECTIONS.items()
    },
    "feed_forward.gate.weight": StoredParts(("mlp.gate.weight",)),
    "feed_forward.expert_bias": StoredParts(("mlp.gate.e_score_correction_bias",)),
}
"""What checkpoints call the parts of a layer."""
_IN_MEMORY: Final = {
    "feed_forward.experts.gate_up_proj": StoredParts(
        ("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight")
    ),
    "feed_forward.experts.down_proj": StoredParts(("mlp.experts.{expert}.down_proj.weight",)),
}
"""As transformers 5 has experts."""
_SIGMOID: Final = 2
"""``expert_gating_func`` of all models with experts."""


def _config(reader: GGUFReader) -> dict[str, Any]:
    refuse_window(reader)
    counts = reader.values("attention.head_count_kv")
    counts = counts if isinstance(counts, list) else [counts] * reader.integer("block_count")
    heads = {count for count in counts if count}
    if len(heads) != 1 or not all(isinstance(count, int) for count in counts):
        raise reader.error(f"{reader.header.architecture}.attention.head_count_kv = {counts!r} is not supported")
    sparse = bool(reader.integer("expert_count", 0))
    config = gated_decoder_json(
        reader, WITH_EXPERTS if sparse else "Lfm2ForCausalLM", experts=sparse, kv_heads=heads.pop()
    )
    config |= {
        "norm_eps": config["rms_norm_eps"],
        "conv_L_cache": reader.integer("shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in reader.header.tensors),
        "layer_types": ["full_attention" if count else "conv" for count in counts],
        "block_auto_adjust_ff_dim": False,  # the file's width is adjusted
    }
    return config | _experts(reader) if sparse else config


def _experts(reader: GGUFReader) -> dict[str, Any]:
    if (gating := reader.integer("expert_gating_func", _SIGMOID)) != _SIGMOID:
        raise reader.error(f"{reader.header.architecture}.expert_gating_func = {gating} is not supported")
    # llama.cpp divides by the sum whatever the file says; all published models do.
    experts = experts_json(reader, normalised=True, reads=frozenset({"expert_gating_func"}))
    return experts | {
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        "num_dense_layers": reader.integer("leading_dense_block_count", 0),
        "use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in reader.header.tensors),
    }


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="model.",
        other_base="model.language_model.",
        final_norm="model.embedding_norm",
        mixer_norm="operator_norm",
        mlp_norm="ffn_norm",
        stacks={**_PUBLISHED, **_IN_MEMORY},
        beside=("model.vision_tower.", "model.multi_modal_projector."),
    ),
    gguf=GGUFNames(
        model={
            "token_embd": "model.embed_tokens",
            "token_embd_norm": "model.embedding_norm",
            "output_norm": "model.embedding_norm",
            "output": "lm_head",
        },
        layer={
            **LAYER_PARTS,
            **EXPERT_PARTS,
            "attn_norm": "operator_norm",
            "ffn_norm": "ffn_norm",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            "shortconv.conv": "conv.conv",
            "shortconv.conv.weight": GGUFTensor("conv.conv.weight", middle=True),
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
        },
    ),
    gguf_config=_config,
)
