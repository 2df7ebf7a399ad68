"""A Falcon-H1's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models import reading
from app.models.config import AttentionConfig, ConfigError, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing
from app.models.config_rope import read_rope
from app.models.mamba_reading import MambaFields, read_mamba
from app.models.reading import (
    SILU,
    Epsilon,
    Positive,
    activation_of,
    context_of,
    head_dim_of,
    kv_heads_of,
    no_windows,
    read_fields,
)

_Factor = Annotated[float, msgspec.Meta(gt=0, lt=1e6)]


class _Fields(MambaFields, kw_only=True):
    """Fields of a decoder and its mixers, with transformers' defaults."""

    rms_norm_eps: Epsilon = 1e-5
    mamba_d_ssm: Positive | None = 1024
    """Columns of all heads; null: ``mamba_expand`` times ``hidden_size``."""
    mamba_rms_norm: bool = False
    mamba_norm_before_gate: bool = True
    projectors_bias: bool = False
    """Whether the projection behind the scan has a bias."""
    embedding_multiplier: _Factor = 1.0
    lm_head_multiplier: _Factor = 1.0
    attention_in_multiplier: _Factor = 1.0
    attention_out_multiplier: _Factor = 1.0
    key_multiplier: _Factor = 1.0
    ssm_in_multiplier: _Factor = 1.0
    ssm_out_multiplier: _Factor = 1.0
    ssm_multipliers: tuple[_Factor, _Factor, _Factor, _Factor, _Factor] | None = None
    """Factors on the gate, the scan's input, B, C and the steps."""
    mlp_multipliers: tuple[_Factor, _Factor] | None = None
    """Factors on the gate and on the result."""


FIELDS_READ: Final = reading.FIELDS_READ | frozenset(_Fields.__struct_fields__)


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`.

    A factor on the inputs of a product without a bias is one on its outputs; of queries and keys it becomes one on
    their scores, of values one on what attention adds.
    """
    fields = read_fields(config, _Fields, model_types=("falcon_h1",))
    no_windows(msgspec.structs.replace(fields, layer_types=None), architecture)
    activation, head_dim = activation_of(fields.hidden_act, "hidden_act", SILU), head_dim_of(fields)
    refuse_number_changing(config, FIELDS_READ, head_dim)
    rope = read_rope(config, fields.max_position_embeddings, head_dim)
    bias = bool(fields.attention_bias)
    _check(fields, bias)
    before = fields.attention_in_multiplier
    attention = AttentionConfig(
        num_heads=fields.num_attention_heads,
        num_kv_heads=kv_heads_of(fields, silent=8),
        head_dim=head_dim,
        scale=head_dim**-0.5 * before * before * fields.key_multiplier,
        rope=rope,
        qkv_bias=bias,
        o_bias=bias,
        output_scale=before * fields.attention_out_multiplier,
    )
    gate, x, b, c, steps = (fields.ssm_in_multiplier * factor for factor in fields.ssm_multipliers or (1.0,) * 5)
    mamba = read_mamba(
        fields,
        fields.mamba_d_ssm or fields.mamba_expand * fields.hidden_size,
        out_bias=fields.projectors_bias,
        norm=fields.mamba_rms_norm,
        input_scales=(gate, x, b, c, steps),
        output_scale=fields.ssm_out_multiplier,
    )
    of_gate, of_result = fields.mlp_multipliers or (1.0, 1.0)
    mlp = MlpConfig(
        width=fields.intermediate_size,
        activation=activation,
        bias=bool(fields.mlp_bias),
        gate_scale=of_gate,
        output_scale=of_result,
    )
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=(LayerConfig(attention, mlp, beside=mamba),) * fields.num_hidden_layers,
        context_length=context_of(fields.max_position_embeddings, rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
        embedding_scale=fields.embedding_multiplier,
        logit_scale=fields.lm_head_multiplier,
    )


def _check(fields: _Fields, bias: bool) -> None:
    """
    Raises:
        ConfigError: a factor on inputs is none on outputs, or the scan's result is normed ahead of its gate.
    """
    if bias and fields.attention_in_multiplier != 1.0:
        raise ConfigError(
            f"attention_in_multiplier = {fields.attention_in_multiplier} with attention_bias is not supported"
        )
    if fields.mamba_proj_bias and fields.ssm_in_multiplier != 1.0:
        raise ConfigError(f"ssm_in_multiplier = {fields.ssm_in_multiplier} with mamba_proj_bias is not supported")
    if fields.mamba_rms_norm and fields.mamba_norm_before_gate:
        raise ConfigError("mamba_norm_before_gate = True is not supported with mamba_rms_norm")
