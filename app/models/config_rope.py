"""Rotary settings of a ``config.json``, in both spellings (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.layers.config import Rope
from app.layers.rope_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling
from app.models.config_fields import ConfigError, convert, shown

_DEFAULT_ROPE_THETA = 10_000.0
_MAX_ROPE_THETA = 1e30

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "alpha": (None,),
    "attn_factor": (None, 1),
    "extrapolation_factor": (None, 1),
    "llama_4_scaling_beta": (None, 0),
    "long_factor": (None,),
    "long_mscale": (None,),
    "mrope_interleaved": (None, False),
    "mrope_section": (None,),
    "short_factor": (None,),
    "short_mscale": (None,),
}
"""Fields of other families' rotary settings -> the values under which they change nothing."""


def read_rope(
    config: Mapping[str, Any],
    max_position_embeddings: int,
    head_dim: int,
    *,
    partial: float | None = None,
    implied: frozenset[str] = frozenset(),
    silent_theta: float = _DEFAULT_ROPE_THETA,
) -> Rope:
    """Rotary settings out of ``rope_scaling`` or ``rope_parameters``; what they leave out stands beside them.

    Args:
        partial: share of a head that is rotated when the config is silent, of a family that rotates a part of each;
            None: the family rotates whole heads.
        implied: fields that, of this family, change nothing.
        silent_theta: the base when the config is silent.

    Raises:
        ConfigError: they are malformed or not supported.
    """
    # An older field of the two wins, as in transformers.
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(field) or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{field} = {rope!r} is not an object")
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(f"{field} = {sorted(rope)!r}: rotary settings by layer type are not supported")
    rope = {key: value for key, value in rope.items() if key not in implied}
    return rope_of(rope, field, config, max_position_embeddings, head_dim, partial=partial, silent_theta=silent_theta)


def rope_of(
    rope: Mapping[str, Any],
    field: str,
    config: Mapping[str, Any],
    max_position_embeddings: int,
    head_dim: int,
    *,
    partial: float | None = None,
    silent_theta: float = _DEFAULT_ROPE_THETA,
) -> Rope:
    """One object of rotary settings, e.g. those of one type of layers.

    Args:
        rope: the object.
        field: where it stands, for errors.
        config: the ``config.json``, for what the object leaves out.
        partial: as of :func:`read_rope`, likewise ``silent_theta``.

    Raises:
        ConfigError: it is malformed or not supported.
    """
    theta = rope.get("rope_theta") or config.get("rope_theta") or silent_theta
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 0 < theta <= _MAX_ROPE_THETA:
        raise ConfigError(f"rope_theta = {theta!r} is not a positive number, at most {_MAX_ROPE_THETA:g}")
    width = _rotated_width(rope.get("partial_rotary_factor", config.get("partial_rotary_factor")), head_dim, partial)
    scaling = _scaling(rope, field, config, max_position_embeddings)
    if isinstance(scaling, LongRopeScaling):
        _check_factors(scaling, field, width)
    _refuse_number_changing(rope, field, frozenset(() if scaling is None else scaling.__struct_fields__))
    return Rope(theta=float(theta), width=width, scaling=scaling)


def rope_of_type(
    config: Mapping[str, Any],
    kind: str,
    max_position_embeddings: int,
    head_dim: int,
    *,
    scaled: str,
    silent_theta: float,
) -> Rope:
    """Rotary settings of one type of layers, out of a ``rope_parameters`` with an object a type.

    Args:
        kind: type of the layers.
        scaled: type whose layers an older ``rope_scaling`` and ``rope_theta`` are of.
        silent_theta: the base when the config is silent.

    Raises:
        ConfigError: they are malformed or not supported.
    """
    by_type, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not isinstance(by_type, dict) or not all(isinstance(value, dict | None) for value in by_type.values()):
        raise ConfigError(f"rope_parameters = {shown(by_type)} has no object for each type of layers")
    if not isinstance(older, dict) or any(isinstance(value, dict) for value in older.values()):
        raise ConfigError(f"rope_scaling = {shown(older)} is not an object of rotary settings")
    rope, beside = dict(by_type.get(kind) or {}), {**config, "rope_theta": None}
    if kind == scaled:
        rope |= older
        beside = dict(config)
    field = f"rope_parameters.{kind}"
    return rope_of(rope, field, beside, max_position_embeddings, head_dim, silent_theta=silent_theta)


def _rotated_width(share: object, head_dim: int, silent: float | None) -> int:
    """Elements of a head that are rotated."""
    if silent is None:
        if share not in (None, 1.0):
            raise ConfigError(f"partial_rotary_factor = {share!r} is not supported")
        return head_dim
    share = silent if share is None else share
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise ConfigError(f"partial_rotary_factor = {share!r} is not a share of a head")
    width = int(head_dim * share)
    if width % 2 or not width:
        raise ConfigError(
            f"partial_rotary_factor = {share!r} rotates {width} of {head_dim} elements, an even number is needed"
        )
    return width


def _scaling(
    rope: Mapping[str, Any], field: str, config: Mapping[str, Any], max_position_embeddings: int
) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    given = {key: value for key, value in rope.items() if value is not None}
    original = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    given["original_max_position_embeddings"] = original or max_position_embeddings
    match kind:
        case "default" | "dynamic":
            # Dynamic NTK only changes the base beyond max_position_embeddings, and no sequence goes there.
            return None
        case "linear":
            return convert(given, LinearScaling, field)
        case "llama3":
            return convert(given, Llama3Scaling, field)
        case "yarn":
            if "factor" not in given and isinstance(original, int) and original > 0:
                given["factor"] = max_position_embeddings / original
            return convert(given, YarnScaling, field)
        case "longrope":
            if "factor" not in given and isinstance(original, int) and original > 0:
                given["factor"] = max_position_embeddings / original
            return convert(given, LongRopeScaling, field)
        case _:
            raise ConfigError(
                f"{field}.rope_type = {kind!r} is not supported; supported are default, linear, dynamic, llama3, "
                "longrope, yarn"
            )


def _check_factors(scaling: LongRopeScaling, field: str, width: int) -> None:
    for name in ("short_factor", "long_factor"):
        count = len(getattr(scaling, name))
        if count != width // 2:
            raise ConfigError(f"{field}.{name} has {count} entries, {width // 2} frequencies need one each")


def _refuse_number_changing(rope: Mapping[str, Any], field: str, reads: frozenset[str]) -> None:
    for key, value in rope.items():
        if key not in reads and value not in NEUTRAL.get(key, (value,)):
            raise ConfigError(f"{field}.{key} = {shown(value)} is not supported")
