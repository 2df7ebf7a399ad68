"""Loads a PEFT adapter into a slot of a model's adapters.

The file holds two matrices for each module that was trained, ``<module>.lora_A.weight`` [r, K] and ``.lora_B.weight``
[N, r]; modules are called as in the base's checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from app.checkpoints.adapter_config import AdapterConfig, AdapterConfigError
from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.checkpoints.safetensors import tensors
from app.checkpoints.safetensors_header import read_safetensors_header
from app.quant.adapters import AdapterError, AdapterRoom, adaptable, check_shapes, store
from app.quant.destination import Destination

__all__ = ["AdapterError", "greatest_rank", "load_adapter", "room_of"]

WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_NOT_SERVED = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_A": "adapters of embeddings",
    "lora_embedding_B": "adapters of embeddings",
    "lora_A.bias": "biases of adapters",
    "lora_B.bias": "biases of adapters",
}


class _Pair(NamedTuple):
    """The matrices of one module."""

    module: str
    destination: Destination
    down: StoredTensor
    up: StoredTensor


def greatest_rank(directory: Path) -> int:
    """The greatest rank of an adapter's matrices.

    Raises:
        AdapterError: its file cannot be read.
    """
    try:
        entries = read_safetensors_header(directory / WEIGHTS_NAME)
    except WeightError as error:
        raise AdapterError(str(error)) from None
    return max((entry.shape[0] for entry in entries if entry.name.endswith(_DOWN) and entry.shape), default=1)


def room_of(destinations: Mapping[str, Destination]) -> AdapterRoom | None:
    """The room for adapters of a model whose weights go to ``destinations``; None if it was made without."""
    return next((rows.layer.room for place in destinations.values() if (rows := adaptable(place)) is not None), None)


def load_adapter(
    directory: Path, destinations: Mapping[str, Destination], twins: Mapping[str, Sequence[str]], slot: int
) -> None:
    """Reads an adapter into a slot that no step reads meanwhile. All of it is checked before anything is kept.

    Args:
        destinations, twins: those of the model (:class:`app.models.base.Model`).

    Raises:
        AdapterError: the adapter does not fit the model, asks for what is not served, or cannot be read.
    """
    room = room_of(destinations)
    if room is None:
        raise AdapterError(f"{directory}: the model has no room for adapters")
    try:
        config = AdapterConfig.read(directory)
        pairs = _pairs(directory / WEIGHTS_NAME, destinations, twins)
        _check(pairs, config)
        room.clear(slot)
        with torch.no_grad():
            for pair in pairs:
                up_Nr = pair.up.read().float() * config.scale(pair.module)
                store(pair.destination, slot, pair.down.read().float(), up_Nr)
    except (AdapterConfigError, WeightError) as error:
        raise AdapterError(str(error)) from None


def _pairs(file: Path, destinations: Mapping[str, Destination], twins: Mapping[str, Sequence[str]]) -> list[_Pair]:
    """Each module's matrices, and the weight that they go beside."""
    others = {other: name for name, names in twins.items() for other in names}
    stored = {tensor.name: tensor for tensor in tensors(file)}
    pairs = []
    for name in stored:
        for part, what in _NOT_SERVED.items():
            if part in name:
                raise AdapterError(f"{file}: tensor {name!r}: {what} are not served")
        if not name.endswith((_DOWN, _UP)):
            raise AdapterError(f"{file}: tensor {name!r} is no matrix of an adapter")
        if name.endswith(_UP):
            if name.removesuffix(_UP) + _DOWN not in stored:
                raise AdapterError(f"{file}: tensor {name!r} has no {_DOWN[1:]} beside it")
            continue
        path = name.removesuffix(_DOWN)
        if path + _UP not in stored:
            raise AdapterError(f"{file}: tensor {name!r} has no {_UP[1:]} beside it")
        module = path.removeprefix(_PREFIX)
        weight = f"{module}.weight"
        destination = destinations.get(others.get(weight, weight) if weight not in destinations else weight)
        if destination is None:
            raise AdapterError(f"{file}: tensor {name!r}: the model has no module {module!r} that can be adapted")
        pairs.append(_Pair(module, destination, stored[name], stored[path + _UP]))
    if not pairs:
        raise AdapterError(f"{file}: there is no matrix in it")
    return pairs


def _check(pairs: Sequence[_Pair], config: AdapterConfig) -> None:
    """Checks shapes and ranks, and that no two modules are of the same rows."""
    taken: dict[tuple[int, int], str] = {}
    for pair in pairs:
        try:
            rows = check_shapes(pair.destination, pair.down.shape, pair.up.shape)
        except AdapterError as error:
            raise AdapterError(f"{pair.down.file}: module {pair.module!r}: {error}") from None
        if pair.down.shape[0] != config.rank(pair.module):
            raise AdapterError(
                f"{pair.down.file}: module {pair.module!r} has rank {pair.down.shape[0]}, its configuration says "
                f"{config.rank(pair.module)}"
            )
        other = taken.setdefault((id(rows.layer), rows.part), pair.module)
        if other != pair.module:
            raise AdapterError(f"{pair.down.file}: modules {other!r} and {pair.module!r} are the same")
