"""The structs of ``abi.h``, which says what they mean, for ctypes."""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, ClassVar

import torch


class Dim(enum.IntEnum):
    """Which number of the step's header counts an op's rows."""

    TOKENS = 0
    ROWS = 1
    LOGITS = 2
    SAMPLES = 3


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu2": 4}
"""Name of an activation -> its TuiliActivation."""


class Step(ctypes.Structure):
    """A step's header."""

    _fields_: ClassVar[list[Any]] = [
        ("count", c_int32 * 4),
        ("max_seq_len", c_int32),
        ("max_query_len", c_int32),
        ("reserved", c_int32 * 10),
    ]


class Kind(ctypes.Structure):
    """An op's functions; Python reads the size of its arguments alone."""

    _fields_: ClassVar[list[Any]] = [
        ("name", ctypes.c_char_p),
        ("args_size", c_size_t),
        ("chunks", c_void_p),
        ("run", c_void_p),
        ("rows", c_void_p),
    ]


class Op(ctypes.Structure):
    """An entry of a program."""

    _fields_: ClassVar[list[Any]] = [
        ("kind", c_void_p),
        ("args", c_void_p),
        ("dim", c_int32),
        ("reserved", c_int32),
    ]


def _args(pointers: str, ints: str, floats: str = "") -> list[Any]:
    """Fields in the order of abi.h: pointers first, then ``ints`` and ``floats`` as they stand there."""
    fields: list[Any] = [(name, c_void_p) for name in pointers.split()]
    fields += [(name, c_int32) for name in ints.split()]
    return fields + [(name, c_float) for name in floats.split()]


class EmbedArgs(ctypes.Structure):
    """TuiliEmbedArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "token_ids table positions position_table out", "table_dtype out_dtype width first rows", "scale"
    )


class AddNormArgs(ctypes.Structure):
    """TuiliAddNormArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("x weight residual out out_scale", "dtype weight_dtype out_dtype width", "eps"),
        ("reserved", c_int32),
    ]


class NormAddNormArgs(ctypes.Structure):
    """TuiliNormAddNormArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("x x_weight residual weight factor out out_scale", "dtype weight_dtype out_dtype width", "eps"),
        ("reserved", c_int32),
    ]


class LayerNormArgs(ctypes.Structure):
    """TuiliLayerNormArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("x weight bias residual out out_scale", "dtype weight_dtype out_dtype width", "eps"),
        ("reserved", c_int32),
    ]


class QuantizeArgs(ctypes.Structure):
    """TuiliQuantizeArgs."""

    _fields_: ClassVar[list[Any]] = _args("x indices out scale", "dtype width")


class GatherArgs(ctypes.Structure):
    """TuiliGatherArgs."""

    _fields_: ClassVar[list[Any]] = _args("x indices out", "dtype out_dtype width reserved")


class LinearArgs(ctypes.Structure):
    """TuiliLinearArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "x x_scale weight w_scale bias residual low adapters ranks slots order first_block block_part out",
        "x_dtype out_dtype residual_dtype k n activation gate_up dim_of_rows"
        " parts rank low_bytes slot_words up_at up_scale_at",
    )


class BlockLinearArgs(ctypes.Structure):
    """TuiliBlockLinearArgs."""

    _fields_: ClassVar[list[Any]] = [*LinearArgs._fields_, ("panels", c_void_p), ("count", c_int64)]


class EmbedBlocksArgs(ctypes.Structure):
    """TuiliEmbedBlocksArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("token_ids weight panels out", "out_dtype width first rows", "scale"),
        ("reserved", c_int32),
    ]


class LoraArgs(ctypes.Structure):
    """TuiliLoraArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "x x_scale data ranks slots order low",
        "x_dtype k parts rank low_bytes slot_words down_scale_at reserved",
    )


class RouteArgs(ctypes.Structure):
    """TuiliRouteArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "logits bias factors experts weights",
        "logits_stride num_experts chosen scoring normalise plain groups chosen_groups group_best",
        "least_sum scale sum_offset",
    )


class GroupSlotsArgs(ctypes.Structure):
    """TuiliGroupSlotsArgs."""

    _fields_: ClassVar[list[Any]] = _args("experts slots offsets", "num_experts chosen")


class ExpertsGateUpArgs(ctypes.Structure):
    """TuiliExpertsGateUpArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "x x_scale weight w_scale bias slots offsets hidden hidden_groups",
        "dtype num_experts chosen k n activation",
        "alpha limit",
    )


class ExpertsDownArgs(ctypes.Structure):
    """TuiliExpertsDownArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "hidden hidden_groups weight w_scale bias slots offsets route_weights residual residual_gate out",
        "dtype out_dtype residual_dtype num_experts chosen k n gate_stride",
    )


class RopeKvArgs(ctypes.Structure):
    """TuiliRopeKvArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args(
            "qkv positions rope kv kv_scale slots q_out q_norm k_norm q_scale",
            "dtype norm_dtype kv_dtype h g e rotary_dim block_size",
            "eps",
        ),
        *_args("", "whole_norm pair_distance value_norm key_is_value reserved"),
    ]


class AttentionArgs(ctypes.Structure):
    """TuiliAttentionArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args(
            "q kv kv_scale query_start_loc seq_lens block_tables sinks out",
            "dtype out_dtype kv_dtype h g e block_size block_table_stride sliding_window",
            "scale softcap",
        ),
        ("reserved", c_int32),
    ]


class SampleArgs(ctypes.Structure):
    """TuiliSampleArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "logits rows slots temperature seeds positions sample_indices top_k top_p min_p repetition presence frequency "
        "prompt_mask output_counts min_tokens_active stop_mask logit_bias token_mask out failed workspace",
        "vocab_size reserved",
    )


class RecordArgs(ctypes.Structure):
    """TuiliRecordArgs."""

    _fields_: ClassVar[list[Any]] = _args("token_ids slots last_token output_counts", "vocab_size reserved")


class ExpandRowsArgs(ctypes.Structure):
    """TuiliExpandRowsArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "slots carried table_lens new_block_loc logit_start_loc feed query_start_loc seq_lens last_token tables "
        "token_ids positions logit_indices block_tables slot_mapping",
        "table_width block_size",
    )


class LogprobsArgs(ctypes.Structure):
    """TuiliLogprobsArgs."""

    _fields_: ClassVar[list[Any]] = _args("logits rows token_ids logprob rank top_ids top_logprobs", "vocab_size k")


class CausalConvArgs(ctypes.Structure):
    """TuiliCausalConvArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "x weight query_start_loc seq_lens block_tables state out bias",
        "dtype channels taps x_stride block_size block_table_stride",
    )


class GatedConvArgs(ctypes.Structure):
    """TuiliGatedConvArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "projected weight bias query_start_loc seq_lens block_tables state out out_scale",
        "dtype out_dtype channels taps block_size block_table_stride",
    )


class GatedDeltaArgs(ctypes.Structure):
    """TuiliGatedDeltaArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "qkv b a a_log dt_bias query_start_loc seq_lens block_tables state out",
        "dtype k_heads v_heads k_dim v_dim gate_stride block_size block_table_stride",
    )


class SelectiveScanArgs(ctypes.Structure):
    """TuiliSelectiveScanArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "xbc dt a_log dt_bias d query_start_loc seq_lens block_tables state out",
        "dtype groups heads k_dim v_dim dt_stride block_size block_table_stride",
        "least_step greatest_step",
    )


class SiluGateArgs(ctypes.Structure):
    """TuiliSiluGateArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("x gate weight out out_scale", "dtype weight_dtype out_dtype groups width gate_stride", "eps"),
        ("reserved", c_int32),
    ]


class GatedNormArgs(ctypes.Structure):
    """TuiliGatedNormArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("x weight gate out out_scale", "dtype weight_dtype out_dtype heads width gate_stride", "eps"),
        ("reserved", c_int32),
    ]


class SigmoidMulArgs(ctypes.Structure):
    """TuiliSigmoidMulArgs."""

    _fields_: ClassVar[list[Any]] = _args("x gate out out_scale", "dtype out_dtype width gate_stride")


class GeluMulArgs(ctypes.Structure):
    """TuiliGeluMulArgs."""

    _fields_: ClassVar[list[Any]] = _args("gate x out out_scale", "dtype out_dtype width x_stride")


class HeadNormAddArgs(ctypes.Structure):
    """TuiliHeadNormAddArgs."""

    _fields_: ClassVar[list[Any]] = _args("x weight addend out", "dtype weight_dtype heads width", "eps scale")


class ScaleLogitsArgs(ctypes.Structure):
    """TuiliScaleLogitsArgs."""

    _fields_: ClassVar[list[Any]] = [*_args("logits", "width", "scale softcap"), ("reserved", c_int32)]


class PackedAttentionArgs(ctypes.Structure):
    """TuiliPackedAttentionArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args("qkv cu_seqlens out", "dtype out_dtype h g e window", "scale"),
        ("reserved", c_int32),
    ]


class PoolArgs(ctypes.Structure):
    """TuiliPoolArgs."""

    _fields_: ClassVar[list[Any]] = _args("hidden cu_seqlens modes out", "dtype width")


class LatentWriteArgs(ctypes.Structure):
    """TuiliLatentWriteArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "latent norm q positions rope pages slots q_out",
        "dtype norm_dtype page_dtype rank rotary heads q_token_stride q_head_stride out_token_stride out_head_stride "
        "interleaved",
        "eps",
    )


class HeadLinearArgs(ctypes.Structure):
    """TuiliHeadLinearArgs."""

    _fields_: ClassVar[list[Any]] = _args(
        "x weight out",
        "x_dtype weight_dtype out_dtype heads k n x_token_stride x_head_stride out_token_stride out_head_stride",
    )


class LatentAttentionArgs(ctypes.Structure):
    """TuiliLatentAttentionArgs."""

    _fields_: ClassVar[list[Any]] = [
        *_args(
            "q pages query_start_loc seq_lens block_tables out",
            "dtype page_dtype out_dtype heads width rank block_size block_table_stride",
            "scale",
        ),
        ("reserved", c_int32),
    ]


ARGS: dict[str, type[ctypes.Structure]] = {
    "embed": EmbedArgs,
    "add_norm": AddNormArgs,
    "norm_add_norm": NormAddNormArgs,
    "layer_norm": LayerNormArgs,
    "quantize": QuantizeArgs,
    "gather": GatherArgs,
    "linear": LinearArgs,
    "block_linear": BlockLinearArgs,
    "embed_blocks": EmbedBlocksArgs,
    "lora": LoraArgs,
    "route": RouteArgs,
    "group_slots": GroupSlotsArgs,
    "experts_gate_up": ExpertsGateUpArgs,
    "experts_down": ExpertsDownArgs,
    "rope_kv": RopeKvArgs,
    "attention": AttentionArgs,
    "sample": SampleArgs,
    "record": RecordArgs,
    "expand_rows": ExpandRowsArgs,
    "logprobs": LogprobsArgs,
    "causal_conv": CausalConvArgs,
    "gated_conv": GatedConvArgs,
    "gated_delta": GatedDeltaArgs,
    "selective_scan": SelectiveScanArgs,
    "silu_gate": SiluGateArgs,
    "gated_norm": GatedNormArgs,
    "sigmoid_mul": SigmoidMulArgs,
    "gelu_mul": GeluMulArgs,
    "head_norm_add": HeadNormAddArgs,
    "scale_logits": ScaleLogitsArgs,
    "packed_attention": PackedAttentionArgs,
    "pool": PoolArgs,
    "latent_write": LatentWriteArgs,
    "head_linear": HeadLinearArgs,
    "latent_attention": LatentAttentionArgs,
}
