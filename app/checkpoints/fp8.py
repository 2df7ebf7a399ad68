"""Matrices in FP8 (E4M3) with scales beside them, as the one tensor that each is with its own.

The layouts are those of DeepSeek-V3's checkpoints, of transformers and of compressed-tensors: ``X_scale_inv`` or
``X_scale`` is what ``X`` is to be multiplied with. Scales of activations are left out: these are computed wider.

Shape suffixes: N rows (outputs), K columns (inputs); a stack of experts has one more dimension before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.models.quantization import Fp8Scales
from app.quant.destination import Extent

FP8: Final = "FP8"
"""Packing of such a tensor."""
SCALES: Final = ("_scale_inv", "_scale")
"""Ends of the names of scales."""

_CHUNK_ELEMENTS: Final = 1 << 16
"""Values that are widened at once: their temporaries stay in the processor's cache."""
_MAGNITUDE: Final = 0x7F << 7
_OF_ACTIVATIONS: Final = re.compile(r".*[._](activation_scale|(input|output|q|k|v|kv)_scale|input_scale_ub)")


def widened(tensors: Iterable[StoredTensor], scales: Fp8Scales | None) -> Iterator[StoredTensor]:
    """The same tensors, those in FP8 with their scales, which are listed no more.

    Args:
        scales: what the checkpoint's config says of them; None: it says nothing of FP8.

    Raises:
        WeightError: one in FP8 that has no scale, or one that does not fit.
    """
    listed = list(tensors)
    in_fp8 = {stored.name: stored for stored in listed if stored.packing == FP8}
    if scales is None:
        for stored in in_fp8.values():
            raise WeightError(
                f"{stored.file}: tensor {stored.name!r} is in FP8, of which config.json has no quantization_config"
            )
        yield from listed
        return
    ends = {name + end for name in in_fp8 for end in SCALES}
    found: dict[str, StoredTensor] = {}
    for stored in listed:
        if stored.name in ends:
            if stored.name in found:
                raise WeightError(f"{stored.file}: tensor {stored.name!r} is also in {found[stored.name].file}")
            found[stored.name] = stored
    for stored in listed:
        if stored.name in in_fp8:
            yield _scaled(stored, [found[name] for end in SCALES if (name := stored.name + end) in found], scales)
        elif stored.name not in found and not _OF_ACTIVATIONS.fullmatch(stored.name):
            yield stored


def _scaled(stored: StoredTensor, found: Sequence[StoredTensor], scales: Fp8Scales) -> StoredTensor:
    if len(found) != 1:
        what = "more than one scale" if found else f"no scale {stored.name + SCALES[0]!r}"
        raise WeightError(f"{stored.file}: tensor {stored.name!r} is in FP8 and has {what}")
    (scale,) = found
    steps = _steps(stored.shape, scale.shape, scales)
    if steps is None:
        kinds = [
            *(["all of it"] if scales.per_tensor else ()),
            *(["each row"] if scales.per_output else ()),
            *(["each block of {} x {}".format(*scales.blocks)] if scales.blocks else ()),
        ]
        raise WeightError(
            f"{scale.file}: tensor {scale.name!r} of shape {list(scale.shape)} is no scale of {' or '.join(kinds)} of "
            f"{stored.name!r}, whose shape is {list(stored.shape)}"
        )
    nbytes = stored.nbytes + scale.nbytes
    return StoredTensor(stored.name, stored.file, stored.shape, nbytes, partial(_read, stored, scale, steps), FP8)


def _steps(shape: tuple[int, ...], scale: tuple[int, ...], scales: Fp8Scales) -> tuple[int, ...] | None:
    """How far a scale of this shape reaches in each dimension; None: it is of no kind that there may be."""
    if len(shape) not in (2, 3) or 0 in shape:
        return None
    *stack, n, k = shape
    each = (1,) * len(stack)
    if scales.per_tensor:
        if scale in ((), (1,), (1, 1)):
            return (*stack, n, k)
        if stack and scale in ((*stack,), (*stack, 1), (*stack, 1, 1)):
            return (*each, n, k)
    if scales.per_output and scale in ((*stack, n), (*stack, n, 1)):
        return (*each, 1, k)
    if scales.blocks is not None:
        rows, columns = scales.blocks
        if scale == (*stack, -(-n // rows), -(-k // columns)):
            return (*each, rows, columns)
    return None


def _read(stored: StoredTensor, scale: StoredTensor, steps: tuple[int, ...], extent: Extent | None = None) -> Tensor:
    """The tensor or an extent of it, fp32."""
    values = _widened(stored.read(extent))
    grid = [-(-size // step) for size, step in zip(stored.shape, steps, strict=True)]
    first = [0] * len(grid)
    part = None
    if extent is not None and grid[extent.dim] > 1:
        step = steps[extent.dim]
        part = Extent(extent.dim, extent.start // step, -(-extent.stop // step))
        grid[extent.dim] = part.stop - part.start
        first[extent.dim] = extent.start - part.start * step
    # Of a stack no more is read than an expert's.
    factors = scale.read(part) if part is not None and part.dim < len(scale.shape) else scale.read()
    factors = _floating(scale, factors).view(grid)
    return _multiply(values, factors, steps[-2:], first[-2:])


def _widened(values: Tensor) -> Tensor:
    """FP8 in fp32, as ``values.float()`` and in less than half its time.

    Sign and the seven bits behind it, moved to those of an fp16, are the value times 2**-8, its exponent's bias being
    15 and not 7; subnormal ones too. NaN, all seven bits of which are set, is a number there.
    """
    out = torch.empty(values.shape)
    source, target = values.reshape(-1), out.view(-1)
    for start in range(0, source.numel(), _CHUNK_ELEMENTS):
        chunk = source[start : start + _CHUNK_ELEMENTS]
        bits = chunk.view(torch.int8).to(torch.int16).mul_(1 << 7).bitwise_and_(~(1 << 14))
        if int((bits & _MAGNITUDE).max()) == _MAGNITUDE:
            target[start : start + _CHUNK_ELEMENTS] = chunk.float()
        else:
            target[start : start + _CHUNK_ELEMENTS].copy_(bits.view(torch.float16)).mul_(256.0)
    return out


def _floating(scale: StoredTensor, factors: Tensor) -> Tensor:
    """Scales in fp32. Bytes are powers of two (E8M0)."""
    if factors.dtype == torch.uint8:
        factors = factors.view(torch.float8_e8m0fnu)
    factors = factors.float()
    if not bool(torch.isfinite(factors).all()) or bool((factors < 0).any()):
        raise WeightError(f"{scale.file}: tensor {scale.name!r} holds what is no scale: NaN, infinity or less than 0")
    return factors


def _multiply(values: Tensor, factors: Tensor, steps: Sequence[int], first: Sequence[int]) -> Tensor:
    """``values`` [..., N, K] times a factor a block, in place; nothing as large as they are is made.

    Args:
        factors: [..., blocks along N, blocks along K].
        steps: rows and columns of a block.
        first: of the first block, rows and columns that lie before the values.
    """
    n, k = values.shape[-2:]
    if factors.shape[-1] > 1:
        factors = factors.repeat_interleave(steps[1], -1)[..., first[1] : first[1] + k]
    if factors.shape[-2] == 1 or steps[0] == 1:
        return values.mul_(factors)
    start = 0
    for block in range(factors.shape[-2]):
        stop = min(n, (block + 1) * steps[0] - first[0])
        values[..., start:stop, :].mul_(factors[..., block : block + 1, :])
        start = stop
    return values
