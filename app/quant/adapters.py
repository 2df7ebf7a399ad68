"""Room for the adapters of a model's linear layers, and the way of an adapter's tensors there.

An adapter's file names the modules of the checkpoint that it was trained beside. The way from such a name into a fused
layer is that of the checkpoint's own weight: rows are put apart, scaled and interleaved alike.

S slots, P parts of a fused layer, R greatest rank, r an adapter's rank, N / K output / input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.lora import LowRank, new_low_rank, store_low_rank
from app.kernels.types import Weight
from app.quant.destination import Adapted, Destination, Interleaved, Transposed


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """How many adapters a model has room for."""

    slots: int
    """S, adapters at once."""
    rank: int
    """R, greatest rank of any."""
    max_tokens: int
    """Tokens of the largest step."""


class AdapterRoom:
    """What the linear layers of one model share: which adapter each token of a step has, and a scratch.

    Args:
        dtype: of the adapters' matrices beside weights that are not packed.
    """

    def __init__(self, limits: AdapterLimits, dtype: torch.dtype, device: torch.device) -> None:
        self.limits = limits
        self.device = device
        self.dtype = dtype
        self.layers: list[LayerAdapters] = []
        self.token_slots = torch.full((limits.max_tokens,), -1, dtype=torch.int32, device=device)
        """[max_tokens] int32: the slot of each token's adapter, -1 for none. May be replaced before the first step."""
        self.token_order = torch.arange(limits.max_tokens, dtype=torch.int32, device=device)
        """[max_tokens] int32: a step's tokens sorted by slot. May be replaced likewise."""
        self.scratch = torch.empty(0, dtype=torch.float32, device=device)
        """What is between two kernels of a layer; grows with the layers that are made."""

    def new_layer(self, parts: Sequence[int], beside: Weight) -> LayerAdapters:
        """Room for the adapters of a layer.

        Args:
            parts: output features of each of its projections.
            beside: its weight.
        """
        layer = LayerAdapters(self, parts, beside)
        self.layers.append(layer)
        needed = self.limits.max_tokens * layer.weight.scratch_width
        if self.scratch.numel() < needed:
            self.scratch = torch.empty(needed, dtype=torch.float32, device=self.device)
        return layer

    def clear(self, slot: int) -> None:
        """Makes a slot's adapter one that adds nothing."""
        for layer in self.layers:
            layer.weight.ranks[slot] = 0


class LayerAdapters:
    """The adapters of one linear layer. Made by :meth:`AdapterRoom.new_layer`."""

    def __init__(self, room: AdapterRoom, parts: Sequence[int], beside: Weight) -> None:
        self.room = room
        limits = room.limits
        self.weight = new_low_rank(limits.slots, parts, limits.rank, beside, room.dtype)

    def of_tokens(self, tokens: int) -> LowRank:
        """The adapters of a step's first tokens."""
        room = self.room
        return LowRank(self.weight, room.token_slots[:tokens], room.token_order[:tokens], room.scratch)

    def store(self, slot: int, part: int, down_rK: Tensor, up_nr: Tensor) -> None:
        """Keeps an adapter's matrices of one projection; its scale is in ``up``."""
        store_low_rank(self.weight, slot, part, down_rK, up_nr)


class AdaptableRows(Adapted):
    """The rows of a projection whose layer has room for adapters.

    Args:
        part: number of the projection in its layer.
    """

    moves_rows = True

    def __init__(self, destination: Destination, layer: LayerAdapters, part: int) -> None:
        super().__init__(destination, destination.shape)
        self.layer, self.part = layer, part

    def adapt(self, source: Tensor) -> Tensor:
        """The rows as they are."""
        return source


class AdapterError(ValueError):
    """An adapter that cannot be served; one line that names what is wrong."""


def adaptable(destination: Destination) -> AdaptableRows | None:
    """Some rows of the layer that a checkpoint's weight goes to; None where adapters cannot be added to it."""
    match destination:
        case AdaptableRows():
            return destination
        case Interleaved():
            found = [adaptable(part) for part in destination.parts]
            return found[0] if None not in found else None
        case Adapted() if len(destination.shape) == 2:
            return adaptable(destination.destination)
    return None


def check_shapes(destination: Destination, down_shape: Sequence[int], up_shape: Sequence[int]) -> AdaptableRows:
    """Checks that an adapter's matrices fit a weight of the checkpoint.

    Raises:
        AdapterError: they do not, or adapters cannot be added to that weight.
    """
    rows = adaptable(destination)
    if rows is None:
        raise AdapterError("adapters of such a module are not served, of linear layers alone")
    n, k = destination.shape
    if _transposed(destination):
        n, k = k, n
    if len(down_shape) != 2 or len(up_shape) != 2 or down_shape[0] != up_shape[1]:
        raise AdapterError(f"its matrices {list(down_shape)} and {list(up_shape)} do not fit each other")
    if (up_shape[0], down_shape[1]) != (n, k):
        raise AdapterError(f"it is for a weight {[up_shape[0], down_shape[1]]}, the model's is {[n, k]}")
    most = rows.layer.room.limits.rank
    if not 1 <= down_shape[0] <= most:
        raise AdapterError(f"its rank is {down_shape[0]}, up to {most} is served; raise --max-adapter-rank")
    return rows


def store(destination: Destination, slot: int, down_rK: Tensor, up_Nr: Tensor) -> None:
    """Keeps an adapter's matrices beside the weight of a checkpoint that they were trained for.

    Args:
        destination: where the weight goes; :func:`check_shapes` has passed.
        up_Nr: with the adapter's scale.
    """
    match destination:
        case AdaptableRows():
            destination.layer.store(slot, destination.part, down_rK, up_Nr)
        case Interleaved():
            sizes = [part.shape[0] // destination.groups for part in destination.parts]
            rows = torch.split(up_Nr.reshape(destination.groups, sum(sizes), -1), sizes, dim=1)
            for part, of_part in zip(destination.parts, rows, strict=True):
                store(part, slot, down_rK, of_part.flatten(0, 1))
        case Transposed():  # an adapter's matrices never are
            store(destination.destination, slot, down_rK, up_Nr)
        case Adapted():
            store(destination.destination, slot, down_rK, destination.adapt(up_Nr))
        case _:
            raise TypeError(f"{type(destination).__name__} has no room for adapters")


def _transposed(destination: Destination) -> bool:
    return isinstance(destination, Transposed) or (
        isinstance(destination, Adapted) and _transposed(destination.destination)
    )
