"""``/v1/models``."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class ModelProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a pull or a load has come."""

    phase: str
    done: int
    """Bytes, or steps of the phase."""
    total: int | None
    """All of them; null where that is not known."""


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

    state: str | UnsetType = UNSET
    """Where models come and go: `absent`, `pulling`, `loading`, `ready`, `idle`, `unloading` or `failed`."""
    reason: str | UnsetType = UNSET
    """Why the model is not ready, and how far it is."""
    progress: ModelProgress | UnsetType = UNSET
    """How far its files or its weights are."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Every name."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
