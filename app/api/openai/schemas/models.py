"""``/v1/models``."""

from __future__ import annotations

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A name under which the model is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """The first of the model's served names."""
    parent: str | None = None
    """The model beside which this adapter is served; null: it is no adapter."""
    max_model_len: int | None
    """Most tokens of prompt and answer together; null until the engine has loaded."""
    default_sampling: dict[str, float]
    """How answers are sampled where a request does not say: as the model recommends, or else the server's setting."""
    via: str | None = None
    """The library that computes the model, slowly: `transformers`; null: the server itself does, or loads yet."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Every name."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
