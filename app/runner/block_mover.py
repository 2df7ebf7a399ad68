"""Copies whole blocks out of the pages of a KV cache group and back, for the tiers of the prefix cache.

A record is a block's bytes of all tensors of all layers of its group, one behind the other. On a GPU nothing waits:
records are gathered and scattered in the order of the steps, and cross by pinned memory on a stream of their own. That
side has not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.info import KVCacheSpec
from app.kernels.pages import Pages
from app.runner.device import runs_ahead
from app.runner.staging import Fetched, Returns, to_device


class BlockMover:
    """Records of the blocks of all groups.

    Args:
        pages: pages of each mixer, as :func:`app.runner.kv_cache.allocate_kv_cache` made them.
    """

    def __init__(self, spec: KVCacheSpec, pages: Sequence[Pages], device: torch.device) -> None:
        self._device = device
        self._groups: list[_Host | _Device] = []
        returns = Returns(device)
        for group in spec.groups:
            tensors = [_as_bytes(part, group.num_blocks) for layer in group.layers for part in _tensors(pages[layer])]
            self._groups.append(_Host(tensors) if device.type == "cpu" else _Device(tensors, device, returns))
        self.layout = repr([(group.kind, group.window, _layout(pages, group.layers)) for group in spec.groups])
        """What records are made of: kind of each group, and of each of its layers the dtypes and shapes of a block."""

    def read(self, group: int, block_ids: Sequence[int]) -> Records:
        """Begins to copy blocks as they are after all that has been launched."""
        return self._groups[group].read(np.asarray(block_ids, dtype=np.int64))

    def write(self, group: int, block_ids: Sequence[int], records: Sequence[bytes]) -> None:
        """Fills blocks, before whatever is launched next reads them."""
        matrix = np.frombuffer(b"".join(records), dtype=np.uint8).reshape(len(block_ids), -1)
        self._groups[group].write(np.asarray(block_ids, dtype=np.int64), matrix)


class Records:
    """Copies on their way to the host.

    Args:
        fetched: one array [blocks, bytes].
    """

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = fetched

    def ready(self) -> bool:
        """Whether they are there."""
        return self._fetched.ready()

    def take(self) -> list[bytes]:
        """A record for each block; waits for them."""
        (matrix,) = self._fetched.arrays()
        return [row.tobytes() for row in matrix]


class _Host:
    """Pages of a group in the host's memory: numpy's copies, as torch's calls are slow to begin.

    Args:
        tensors: [num_blocks, bytes of a block], uint8, of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._arrays: list[NDArray[np.uint8]] = [tensor.numpy() for tensor in tensors]

    def read(self, block_ids: NDArray[np.int64]) -> Records:
        return Records(_There(np.concatenate([np.take(array, block_ids, axis=0) for array in self._arrays], axis=1)))

    def write(self, block_ids: NDArray[np.int64], matrix: NDArray[np.uint8]) -> None:
        begin = 0
        for array in self._arrays:
            end = begin + array.shape[1]
            array[block_ids] = matrix[:, begin:end]
            begin = end


class _There:
    """Values that are on the host; see :class:`~app.runner.staging.Fetched`."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._array = array

    def ready(self) -> bool:
        return True

    def arrays(self) -> list[NDArray[np.uint8]]:
        return [self._array]


class _Device:
    """Pages of a group in a GPU's memory.

    Args:
        tensors: as of :class:`_Host`.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, returns: Returns) -> None:
        self._tensors, self._device, self._returns = tensors, device, returns
        self._side = torch.cuda.Stream(device) if runs_ahead(device) else None  # type: ignore[no-untyped-call]

    def read(self, block_ids: NDArray[np.int64]) -> Records:
        ids = to_device(block_ids, self._device)
        gathered = torch.cat([tensor.index_select(0, ids) for tensor in self._tensors], dim=1)
        return Records(self._returns.fetch(gathered))

    def write(self, block_ids: NDArray[np.int64], matrix: NDArray[np.uint8]) -> None:
        ids, records = to_device(block_ids, self._device), self._upload(torch.from_numpy(matrix.copy()))
        begin = 0
        for tensor in self._tensors:
            end = begin + tensor.shape[1]
            tensor.index_copy_(0, ids, records[:, begin:end])
            begin = end

    def _upload(self, records: Tensor) -> Tensor:
        """The records on the device, whose steps wait for them; the host does not."""
        if self._side is None:
            return records.to(self._device)
        steps = torch.cuda.current_stream()
        with torch.cuda.stream(self._side):
            # torch keeps pinned memory for the next to ask once the device is through with it.
            on_device = records.pin_memory().to(self._device, non_blocking=True)
        steps.wait_stream(self._side)
        on_device.record_stream(steps)
        return on_device


def _tensors(pages: Pages) -> list[Tensor]:
    values = (getattr(pages, field.name) for field in fields(pages))
    return [value for value in values if isinstance(value, Tensor) and value.numel()]


def _as_bytes(tensor: Tensor, num_blocks: int) -> Tensor:
    """The memory of the first blocks of [num_blocks, ...], as [num_blocks, bytes of a block] uint8."""
    return tensor[:num_blocks].view(num_blocks, -1).view(torch.uint8)


def _layout(pages: Sequence[Pages], layers: Sequence[int]) -> list[tuple[object, ...]]:
    return [
        (
            layer,
            getattr(pages[layer], "packed", False),
            [(str(tensor.dtype), tuple(tensor.shape[1:])) for tensor in _tensors(pages[layer])],
        )
        for layer in layers
    ]
