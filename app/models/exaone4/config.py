"""An EXAONE 4's ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from app.models.config import ConfigError, ModelConfig
from app.models.config_fields import shown
from app.models.reading import (
    BESIDE_FIELDS,
    QK_NORM_FIELDS,
    ROPE_FIELDS,
    DecoderFields,
    Epsilon,
    gated_decoder,
    head_dim_of,
    kv_heads_of,
    read_fields,
    windows_of_types,
    with_layers,
)

_FULL, _SLIDING = "full_attention", "sliding_attention"


class _Fields(DecoderFields, kw_only=True):
    rms_norm_eps: Epsilon = 1e-5
    sliding_window_pattern: Any = 4
    """Every so manieth layer sees all positions; where ``layer_types`` says so, published configs have letters here."""


FIELDS_READ: Final = frozenset(_Fields.__struct_fields__) | BESIDE_FIELDS | ROPE_FIELDS | QK_NORM_FIELDS


def read(architecture: str, config: Mapping[str, Any]) -> ModelConfig:
    """See :class:`app.models.architecture.ReadConfig`."""
    fields = read_fields(config, _Fields, model_types=("exaone4",))
    window = 4096 if fields.sliding_window is msgspec.UNSET else fields.sliding_window
    windows = _windows(fields, window)
    model = gated_decoder(
        architecture,
        config,
        fields,
        windows=windows,
        head_dim=head_dim_of(fields),
        num_kv_heads=kv_heads_of(fields, silent=32),
        qk_norm=True,
        reads=FIELDS_READ,
    )
    # Beside layers that slide, those that see all positions do not rotate.
    unrotated = [window is not None and of_layer is None for of_layer in windows]
    return with_layers(model, [{"rope": None} if still else {} for still in unrotated])


def _windows(fields: _Fields, window: int | None) -> Sequence[int | None]:
    if fields.layer_types is not None:
        return windows_of_types(fields.layer_types, window, fields.num_hidden_layers)
    if window is None:
        return (None,) * fields.num_hidden_layers
    period = fields.sliding_window_pattern
    if not isinstance(period, int) or isinstance(period, bool) or period < 1:
        raise ConfigError(f"sliding_window_pattern = {shown(period)} without layer_types is not supported")
    types = [_SLIDING if (index + 1) % period else _FULL for index in range(fields.num_hidden_layers)]
    return windows_of_types(types, window, fields.num_hidden_layers)
