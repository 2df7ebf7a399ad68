"""Tensors of a safetensors file; int8 ones with a scale for each row, or for each column, are widened.

Those in FP8 are read as they are: :mod:`app.checkpoints.fp8` finds their scales, which may be in another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.fp8 import FP8, SCALES
from app.checkpoints.header import WeightError
from app.checkpoints.mxfp4 import HALVES
from app.checkpoints.safetensors_header import read_safetensors_header
from app.quant.destination import Extent

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_FP8: Final = "F8_E4M3"
_BYTES: Final = {"U8": (*HALVES, *SCALES), "F8_E8M0": SCALES}
"""Types of tensors that mean something beside another: ends of their names."""


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
        if entry.dtype in _FLOATS or entry.dtype == _FP8 or name.endswith(_BYTES.get(entry.dtype, ())):
            return get(name, extent)
        if entry.dtype != "I8" or scale is None:
            raise WeightError(f"{file}: tensor {name!r} has type {entry.dtype} and no scale; it cannot be read")
        dim = _scaled_dim(entry.shape, scale.shape)
        if scale.dtype not in _FLOATS or dim is None:
            raise WeightError(f"{file}: tensor {scale.name!r} is no scale for each row, or each column, of {name!r}")
        # Quantised again, whole rows (or columns) give the same int8 values: the largest of each is 127 times its
        # scale. An extent across them may not hold that one.
        part = extent if extent is not None and extent.dim == dim else None
        scales = get(scale.name, part).float()
        return get(name, extent).float() * (scales.view(-1, 1) if dim == 0 else scales)

    for entry in entries.values():
        if entry.name not in scales:
            packing = FP8 if entry.dtype == _FP8 else None
            yield StoredTensor(entry.name, file, entry.shape, entry.nbytes, partial(read, entry.name), packing)


def _scaled_dim(shape: tuple[int, ...], scale: tuple[int, ...]) -> int | None:
    """The dimension of an int8 tensor of which each index has a scale: 0, or 1 of a matrix; None of other scales."""
    if scale in (shape[:1], (*shape[:1], 1)):
        return 0
    return 1 if len(shape) == 2 and scale == (1, shape[1]) else None
