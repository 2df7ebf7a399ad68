"""The header of a safetensors file: names and places of its tensors (torch-free)."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Annotated, Any

import msgspec

from app.checkpoints.header import TensorEntry, WeightError, check_extents

MAX_HEADER = 100 << 20
"""Bytes of a header, at most; the limit of the format's own library."""
MAX_DIMS = 8
MAX_VALUES = 1 << 22
"""Values in a header, at most, counted by brackets and commas: as Python objects they take many times their bytes."""

_DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


class _SafetensorsEntry(msgspec.Struct):
    dtype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=MAX_DIMS)]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


def read_safetensors_header(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a ``.safetensors`` file, in the header's order.

    Raises:
        WeightError: unreadable, truncated or malformed.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise WeightError(f"{path}: truncated: {size} bytes hold no safetensors header")
            (header_size,) = struct.unpack("<Q", prefix)
            if header_size > MAX_HEADER:
                raise WeightError(f"{path}: bad header: {header_size} bytes long, at most {MAX_HEADER} are read")
            if 8 + header_size > size:
                raise WeightError(
                    f"{path}: truncated: the header ends at byte {8 + header_size}, the file at byte {size}"
                )
            header = file.read(header_size)
    except OSError as e:
        raise WeightError(f"{path}: {e.strerror or e}") from None
    fields = _parse_header(path, header)
    fields.pop("__metadata__", None)
    data_start = 8 + header_size
    entries = tuple(_safetensors_entry(path, name, raw, data_start) for name, raw in fields.items())
    check_extents(path, entries, data_start, size)
    return entries


def _parse_header(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a name stands twice")
        return fields

    if sum(map(header.count, (b"{", b"[", b","))) > MAX_VALUES:
        raise WeightError(f"{path}: bad header: more values than the {MAX_VALUES} that are read")
    try:
        fields = json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise WeightError(f"{path}: bad header: {e}") from None
    if not isinstance(fields, dict):
        raise WeightError(f"{path}: bad header: not a JSON object")
    return fields


def _safetensors_entry(path: Path, name: str, raw: object, data_start: int) -> TensorEntry:
    try:
        entry = msgspec.convert(raw, _SafetensorsEntry)
    except msgspec.ValidationError as e:
        raise WeightError(f"{path}: bad header: tensor {name!r}: {e}") from None
    bits = _DTYPE_BITS.get(entry.dtype)
    if bits is None:
        raise WeightError(f"{path}: tensor {name!r} has the unknown type {entry.dtype!r}")
    begin, end = entry.data_offsets
    nbytes = math.prod(entry.shape) * bits // 8
    if end - begin != nbytes:
        raise WeightError(
            f"{path}: bad header: tensor {name!r} is {entry.dtype} {entry.shape}, {nbytes} bytes, "
            f"but has bytes {begin} to {end}"
        )
    return TensorEntry(name, entry.dtype, tuple(entry.shape), data_start + begin, nbytes)
