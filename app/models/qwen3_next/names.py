"""What a Qwen3-Next's or Qwen3.5's files call things (torch-free).

GGUF files are those of Qwen3.5s, dense or with experts, and of Qwen3-Nexts, whose projections they keep as Qwen3.5s do.
Value heads of Qwen3.5s come there in turns, the first of every key head, then the second …; checkpoints have those of a
key head side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.models.config_fields import ConfigError
from app.models.gguf_config import GGUFReader, experts_json, gated_decoder_json
from app.models.gguf_names import (
    EXPERT_PARTS,
    LAYER_PARTS,
    MODEL_PARTS,
    SHARED_EXPERT_PARTS,
    Floats,
    GGUFNames,
    GGUFTensor,
    Header,
    TensorInfo,
    Undo,
    less_one,
)
from app.models.names import EXPERT_STACKS, DecoderNames, FamilyNames, StoredParts

_NEXT = "qwen3next"
"""The architecture whose files have value heads as checkpoints do."""
_HEADS = {
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "linear_key_head_dim": "ssm.state_size",
}


def _config(reader: GGUFReader) -> dict[str, Any]:
    if reader.integer("expert_count", 0):
        config = _with_experts(reader)
    else:
        config = gated_decoder_json(reader, "Qwen3_5ForCausalLM", partial=True)
    config |= {name: reader.integer(key) for name, key in _HEADS.items()}
    head_dim, heads = config["head_dim"], config["linear_num_value_heads"]
    inner = reader.integer("ssm.inner_size")
    if heads <= 0 or inner % heads:
        raise reader.error(f"{heads} value heads in ssm.inner_size = {inner}")
    return config | {
        "linear_value_head_dim": inner // heads,
        "num_hidden_layers": config["num_hidden_layers"] - reader.integer("nextn_predict_layers", 0),
        "full_attention_interval": reader.integer("full_attention_interval", 4),
        "partial_rotary_factor": reader.integer("rope.dimension_count", head_dim // 4) / head_dim,
        "attention_bias": any(name.endswith("attn_q.bias") for name in reader.header.tensors),
    }


def _with_experts(reader: GGUFReader) -> dict[str, Any]:
    """A Qwen3-Next's and a Qwen3.5's are the same."""
    experts = experts_json(reader, normalised=None)
    widths = {
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": reader.integer("expert_shared_feed_forward_length"),
    }
    return gated_decoder_json(reader, "Qwen3_5MoeForCausalLM", partial=True, experts=True) | experts | widths


def _in_groups(*, axis: int = 0, behind_keys: bool = False) -> Undo:
    """Puts the value heads of each key head side by side, which come in turns in the file.

    Args:
        axis: the axis of the value heads.
        behind_keys: queries and keys come before them, in the checkpoint's order.
    """

    def undo(header: Header, entry: TensorInfo, values: Floats) -> Floats:
        if header.architecture == _NEXT:
            return values
        reader = GGUFReader(header)
        groups, heads = reader.integer("ssm.group_count"), reader.integer("ssm.time_step_rank")
        first = 2 * groups * reader.integer("ssm.state_size") if behind_keys else 0
        size = values.shape[axis] - first
        if not 0 < groups <= heads or heads % groups or size <= 0 or size % heads:
            raise ConfigError(f"{header.path}: tensor {entry.name!r} is not {heads} value heads of {groups} key heads")
        keys, in_turns = np.split(values, [first], axis)
        before, after = values.shape[:axis], values.shape[axis + 1 :]
        grouped = in_turns.reshape(*before, heads // groups, groups, size // heads, *after).swapaxes(axis, axis + 1)
        return np.concatenate((keys, grouped.reshape(*before, size, *after)), axis)

    return undo


def _log_decay(header: Header, entry: TensorInfo, values: Floats) -> Floats:
    """Makes ``A_log`` of ``-exp(A_log)``: checkpoints hold the former."""
    with np.errstate(all="ignore"):  # of a damaged file
        return _in_groups()(header, entry, np.log(-values))


def _rates_apart(header: Header, entry: TensorInfo, values: Floats) -> Floats:
    """For ``b`` and ``a`` of each key head's value heads in turn: all of ``b``, then all of ``a``."""
    groups = GGUFReader(header).integer("ssm.group_count")
    if groups <= 0 or values.shape[0] % (2 * groups):
        raise ConfigError(f"{header.path}: tensor {entry.name!r} is not of {groups} key heads")
    return values.reshape(groups, 2, -1, values.shape[1]).swapaxes(0, 1).reshape(values.shape)


def _value_heads(name: str, *, axis: int = 0, behind_keys: bool = False, middle: bool = False) -> GGUFTensor:
    undo = _in_groups(axis=axis, behind_keys=behind_keys)
    return GGUFTensor(f"linear_attn.{name}", undo, whole=True, middle=middle)


NAMES = FamilyNames(
    checkpoint=DecoderNames(
        base="model.",
        other_base="model.language_model.",
        beside=("mtp.", "model.visual."),
        stacks={
            **EXPERT_STACKS,
            # Of GGUF files alone.
            "linear_attn.in_proj_b_a.weight": StoredParts(
                ("linear_attn.in_proj_b.weight", "linear_attn.in_proj_a.weight")
            ),
        },
    ),
    gguf=GGUFNames(
        model={**MODEL_PARTS, "output_norm": GGUFTensor("model.norm", less_one)},
        layer={
            **LAYER_PARTS,
            **EXPERT_PARTS,
            **SHARED_EXPERT_PARTS,
            "attn_norm": GGUFTensor("input_layernorm", less_one),
            "attn_q_norm": GGUFTensor("self_attn.q_norm", less_one),
            "attn_k_norm": GGUFTensor("self_attn.k_norm", less_one),
            "post_attention_norm": GGUFTensor("post_attention_layernorm", less_one),
            "attn_qkv": _value_heads("in_proj_qkv", behind_keys=True),
            "attn_gate": _value_heads("in_proj_z"),
            "ssm_beta": _value_heads("in_proj_b"),
            "ssm_alpha": _value_heads("in_proj_a"),
            "ssm_ba": GGUFTensor("linear_attn.in_proj_b_a", _rates_apart, whole=True),
            "ssm_conv1d": _value_heads("conv1d", behind_keys=True, middle=True),
            "ssm_dt.bias": _value_heads("dt_bias"),
            "ssm_a": GGUFTensor("linear_attn.A_log", _log_decay, whole=True),
            "ssm_norm": "linear_attn.norm",
            "ssm_out": _value_heads("out_proj", axis=1),
        },
    ),
    gguf_config=_config,
)
