"""Tensors of a safetensors file; int8 ones with a scale for each row are widened."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.checkpoints.safetensors_header import read_safetensors_header
from app.quant.destination import Extent

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


def tensors(file: Path) -> Iterator[StoredTensor]:
    """See :class:`app.checkpoints.base.Tensors`."""
    entries = {entry.name: entry for entry in read_safetensors_header(file)}
    scales = {f"{name}_scale" for name, entry in entries.items() if entry.dtype == "I8"}
    try:
        handle = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as e:
        raise WeightError(f"{file}: {e}") from None

    def get(name: str, extent: Extent | None) -> Tensor:
        try:
            if extent is None:
                tensor: Tensor = handle.get_tensor(name)  # type: ignore[no-untyped-call]
            else:
                part = slice(extent.start, extent.stop)
                stored = handle.get_slice(name)  # type: ignore[no-untyped-call]
                tensor = stored[part] if extent.dim == 0 else stored[:, part]
        except (SafetensorError, OSError) as e:
            raise WeightError(f"{file}: tensor {name!r}: {e}") from None
        return tensor

    def read(name: str, extent: Extent | None = None) -> Tensor:
        entry, scale = entries[name], entries.get(f"{name}_scale")
        if entry.dtype in _FLOATS:
            return get(name, extent)
        if entry.dtype != "I8" or scale is None:
            raise WeightError(f"{file}: tensor {name!r} has type {entry.dtype} and no scale; it cannot be read")
        if scale.dtype not in _FLOATS or scale.shape not in (entry.shape[:1], (*entry.shape[:1], 1)):
            raise WeightError(f"{file}: tensor {scale.name!r} is no scale for each row of {name!r}")
        # Quantised again, whole rows give the same int8 values: the largest of each is 127 times its scale. An extent
        # of their columns may not hold that one.
        rows = extent if extent is not None and extent.dim == 0 else None
        return get(name, extent).float() * get(scale.name, rows).float().view(-1, 1)

    for entry in entries.values():
        if entry.name not in scales:
            yield StoredTensor(entry.name, file, entry.shape, entry.nbytes, partial(read, entry.name))
