"""Fields of a ``config.json`` that nothing here reads although they could change a model's numbers (torch-free).

A config says more than its family's model reads: where it came from, how it was trained, what another library wants.
Such fields pass. But some say that the weights belong to another computation (a factor on the embeddings, a cap on the
logits, attention to both sides): they pass only at values that change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A ``config.json`` that cannot be served; one line naming the field and its value."""


MOE_FIELDS: Final = ("num_local_experts", "num_experts", "n_routed_experts")
_UNUSED: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
_FACTOR: Final[tuple[Any, ...]] = (None, 1)

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(MOE_FIELDS, _UNUSED),
    # layers that are not alike, or not this family's
    "per_layer_config": _UNUSED,
    "is_encoder_decoder": _UNUSED,
    "add_cross_attention": _UNUSED,
    "pruned_heads": _UNUSED,
    "use_parallel_residual": _UNUSED,
    "parallel_attn": _UNUSED,
    "kv_lora_rank": _UNUSED,
    "q_lora_rank": _UNUSED,
    # attention
    "is_causal": (None, True),
    "use_bidirectional_attention": _UNUSED,
    "attention_chunk_size": _UNUSED,
    "sliding_window_pattern": _UNUSED,
    "attn_temperature_tuning": _UNUSED,
    "attention_value_scale": _FACTOR,
    "clip_qkv": _UNUSED,
    "scale_attn_by_inverse_layer_idx": _UNUSED,
    "scale_attn_weights": (None, True),
    "alibi": _UNUSED,
    "use_alibi": _UNUSED,
    "attention_sinks": _UNUSED,
    # positions
    "rotary_pct": _FACTOR,
    "rope_interleave": _UNUSED,
    "rope_interleaved": _UNUSED,
    "rope_local_base_freq": (None,),
    "rope_percent": _FACTOR,
    "no_rope_layer_interval": _UNUSED,
    # factors and caps
    "scale_emb": _FACTOR,
    "scale_embedding": _UNUSED,
    "rescale_embeddings": _UNUSED,
    "embedding_scale": _FACTOR,
    "normalize_embedding": _UNUSED,
    "scale_depth": (None,),
    "dim_model_base": (None,),
    "logit_scale": _FACTOR,
    "logits_scaling": _FACTOR,
    "residual_scale": _FACTOR,
    "mup_enabled": _UNUSED,
    # norms
    "qk_layernorm": _UNUSED,
    "use_qk_norm": _UNUSED,
    "use_post_norm": _UNUSED,
    "use_sandwich_norm": _UNUSED,
    "apply_residual_connection_post_layernorm": _UNUSED,
}
"""Field -> the values under which it changes nothing."""

_FACTORS: Final = re.compile(r"\w+_multipliers?")
_CAPS: Final = re.compile(r"\w+_(softcap|softcapping|soft_cap|logit_cap)")


def convert(value: Mapping[str, Any], kind: type[_T], where: str = "") -> _T:
    """A part of the config as a ``kind``.

    Args:
        where: name of the part, for the error.

    Raises:
        ConfigError: a field is missing or malformed.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise ConfigError(f"{prefix}{error}") from None


def refuse_number_changing(config: Mapping[str, Any], reads: frozenset[str], head_dim: int) -> None:
    """Checks that no field outside ``reads`` changes the model's numbers.

    Raises:
        ConfigError: one does; its name and value.
    """
    for field, value in config.items():
        if field not in reads and not is_neutral(field, value, head_dim):
            raise ConfigError(f"{field} = {shown(value)} is not supported: it changes what a model computes")


def is_neutral(field: str, value: object, head_dim: int) -> bool:
    """Whether a field that nothing reads changes no number at this value."""
    match field:
        case "no_rope_layers":  # for each layer whether it rotates
            return not value or (isinstance(value, list) and all(value))
        case "query_pre_attn_scalar":
            return value in (None, head_dim)
        case "position_embedding_type":
            return value in (None, "rope", "rotary", "absolute")  # the last was every config's default once
    if _FACTORS.fullmatch(field):
        return value in _FACTOR
    if _CAPS.fullmatch(field):
        return value in _UNUSED
    return field not in NEUTRAL or value in NEUTRAL[field]


def shown(value: object) -> str:
    """A value as text for an error of one line, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
