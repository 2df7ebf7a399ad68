"""What a Gemma 4's files call things (torch-free)."""

from __future__ import annotations

from app.models.gemma4.gguf import config_json
from app.models.gguf_names import LAYER_PARTS, MODEL_PARTS, SANDWICH_PARTS, GGUFNames
from app.models.names import DecoderNames, FamilyNames, StoredParts

_GATE_UP = StoredParts(("experts.{expert}.gate_proj.weight", "experts.{expert}.up_proj.weight"))

NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="model.",
        other_base="model.language_model.",
        mlp_norm="pre_feedforward_layernorm",
        stacks={
            "experts.gate_up_proj": _GATE_UP,
            "experts.down_proj": StoredParts(("experts.{expert}.down_proj.weight",)),
            "experts.{expert}.gate_up_proj.weight": _GATE_UP,
        },
        beside=("model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio."),
    ),
    gguf=GGUFNames(
        model={
            **MODEL_PARTS,
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
        },
        layer={
            **LAYER_PARTS,
            **SANDWICH_PARTS,
            "layer_output_scale.weight": "layer_scalar",
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "ffn_gate_up_exps": "experts.{expert}.gate_up_proj",
            "ffn_gate_exps": "experts.{expert}.gate_proj",
            "ffn_up_exps": "experts.{expert}.up_proj",
            "ffn_down_exps": "experts.{expert}.down_proj",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
        },
    ),
    gguf_config=config_json,
    gguf_end_tokens=("<turn|>",),
)
