"""A DeepSeek-V2's or -V3's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from app.models.config import ConfigError, ExpertsConfig, LayerConfig, MlpConfig, ModelConfig
from app.models.config_fields import refuse_number_changing, shown
from app.models.latent_reading import LatentFields, read_latent
from app.models.reading import (
    BESIDE_FIELDS,
    ROPE_FIELDS,
    SILU,
    Count,
    Positive,
    activation_of,
    context_of,
    no_windows,
    read_fields,
)
from app.models.reading_experts import check_experts, expert_count, read_groups, with_experts

V3: Final = "DeepseekV3ForCausalLM"
LEAST_SUM: Final = 1e-20
"""Least sum of a token's scores, by which V3 divides them: none are divided by 0."""
_IN_GROUPS: Final = "group_limited_greedy"
_SAID: Final[Mapping[bool, Mapping[str, tuple[Any, ...]]]] = {
    False: {
        "topk_method": ("greedy", _IN_GROUPS),
        "scoring_func": (None, "softmax"),
        "norm_topk_prob": (None, False),  # transformers never divides, the model's makers would
        "moe_layer_freq": (None, 1),
    },
    True: {"topk_method": (None, "noaux_tc"), "scoring_func": (None, "sigmoid"), "moe_layer_freq": (None, 1)},
}
"""Whether the model is a V3 -> what fields may say of its layers with experts."""


class _Fields(LatentFields, kw_only=True):
    """Those of the attention and of the experts, with transformers' defaults for a V2."""

    n_routed_experts: Count | None = None
    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same under its other names."""
    num_experts_per_tok: Positive | None = None
    n_shared_experts: Count | None = 2
    moe_intermediate_size: Positive = 1407
    first_k_dense_replace: Count | None = 0
    moe_layer_freq: int | None = 1
    n_group: Positive | None = None
    topk_group: Positive | None = None
    topk_method: str | None = "greedy"
    scoring_func: str | None = None
    norm_topk_prob: bool | None = False
    routed_scaling_factor: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] = 1.0
    rope_interleave: bool | None = True


class _ThirdFields(_Fields, kw_only=True):
    """Likewise for a V3."""

    num_experts_per_tok: Positive | None = 8
    n_shared_experts: Count | None = 1
    moe_intermediate_size: Positive = 2048
    first_k_dense_replace: Count | None = 3
    n_group: Positive | None = 8
    topk_group: Positive | None = 4
    topk_method: str | None = None
    norm_topk_prob: bool | None = True
    routed_scaling_factor: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)] = 2.5


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    third = architecture == V3
    kind = _ThirdFields if third else _Fields
    fields = read_fields(config, kind, model_types=("deepseek_v3" if third else "deepseek_v2",), experts=True)
    activation = activation_of(fields.hidden_act, "hidden_act", SILU)
    refuse_number_changing(config, FIELDS_READ, fields.qk_nope_head_dim + fields.qk_rope_head_dim)
    no_windows(fields, architecture)
    interleaved = fields.rope_interleave is not False
    if not third and not interleaved:
        raise ConfigError(f"rope_interleave = False is not supported of {architecture}")
    if fields.v_head_dim is None:
        raise ConfigError("v_head_dim = None is no width of a head")
    mixer = read_latent(config, fields, v_dim=fields.v_head_dim, interleaved=interleaved)
    mlp = MlpConfig(width=fields.intermediate_size, activation=activation, bias=bool(fields.mlp_bias and not third))
    model = ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        norm_eps=fields.rms_norm_eps,
        layers=(LayerConfig(mixer, mlp),) * fields.num_hidden_layers,
        context_length=context_of(fields.max_position_embeddings, mixer.rope),
        tie_word_embeddings=bool(fields.tie_word_embeddings),
    )
    first = fields.first_k_dense_replace
    if first is None:
        first = 3 if third else 0
    if first >= model.num_layers:
        return model
    return with_experts(model, _experts(architecture, fields, third=third), lambda layer: layer >= first)


def _experts(architecture: str, fields: _Fields, *, third: bool) -> ExpertsConfig:
    for name, accepted in _SAID[third].items():
        if (value := getattr(fields, name)) not in accepted:
            raise ConfigError(f"{name} = {shown(value)} is not supported of {architecture} with experts")
    if fields.mlp_bias and not third:
        raise ConfigError(f"mlp_bias = True is not supported of {architecture} with experts")
    if fields.num_experts_per_tok is None:
        raise ConfigError("num_experts_per_tok = None is no number of experts")
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    experts = ExpertsConfig(
        count=expert_count({name: getattr(fields, name) for name in names}, silent=256 if third else 64),
        chosen=fields.num_experts_per_tok,
        width=fields.moe_intermediate_size,
        scoring="sigmoid" if third else "softmax",
        normalise=bool(fields.norm_topk_prob),
        least_sum=LEAST_SUM if third and fields.norm_topk_prob else 0.0,
        scale=fields.routed_scaling_factor,
        correction=third,
        shared_width=fields.moe_intermediate_size * (fields.n_shared_experts or 0) or None,
    )
    check_experts(experts, count="n_routed_experts")
    if not third and fields.topk_method != _IN_GROUPS:
        return experts
    groups = read_groups(fields.n_group, fields.topk_group, experts, best=2 if third else 1)
    return msgspec.structs.replace(experts, groups=groups)
