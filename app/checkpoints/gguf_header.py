"""The header of a GGUF file: metadata, and where the tensors lie (torch-free).

The ``gguf`` package's own reader is not used here: it believes every count in the file (an array that claims 2**60
elements keeps it busy until memory ends) and takes two seconds over a vocabulary of 49,152. Types, block sizes and
dequantisation do come from the package.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGMLQuantizationType,
    GGUFValueType,
)

from app.checkpoints.gguf_split import parts_of, split_name
from app.checkpoints.header import TensorEntry, WeightError, check_extents

VERSIONS = (2, 3)
MAX_HEADER: Final = 64 << 20
"""Bytes of a header, at most; a vocabulary of 262,144 tokens with its merges and scores takes some 20 MB."""
MAX_FIELDS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 16
MAX_ELEMENTS: Final = 1 << 22
"""Elements of all arrays together, at most: as Python objects they take many times their bytes in the file."""
MAX_NAME: Final = 1 << 10
MAX_DIMS: Final = 4
MAX_ALIGNMENT: Final = 1 << 20

_SCALARS: dict[int, np.dtype[Any]] = {
    int(kind): np.dtype(dtype).newbyteorder("<")
    for kind, dtype in (
        (GGUFValueType.UINT8, np.uint8),
        (GGUFValueType.INT8, np.int8),
        (GGUFValueType.UINT16, np.uint16),
        (GGUFValueType.INT16, np.int16),
        (GGUFValueType.UINT32, np.uint32),
        (GGUFValueType.INT32, np.int32),
        (GGUFValueType.UINT64, np.uint64),
        (GGUFValueType.INT64, np.int64),
        (GGUFValueType.FLOAT32, np.float32),
        (GGUFValueType.FLOAT64, np.float64),
        (GGUFValueType.BOOL, np.bool_),
    )
}
_STRING: Final = int(GGUFValueType.STRING)
_ARRAY: Final = int(GGUFValueType.ARRAY)
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata and tensor list of a GGUF file, or of all files of a model that is split."""

    path: Path
    """The file, the first one of a model that is split."""
    metadata: dict[str, Any]
    """Keys as in the file; numbers, bools, strings and lists of those."""
    tensors: dict[str, TensorEntry]
    """GGUF name -> tensor; types by their GGML name."""
    elsewhere: dict[str, Path] = field(default_factory=dict)
    """Names of the tensors in other files of a model that is split -> the file."""

    def file_of(self, entry: TensorEntry, /) -> Path:
        """The file that holds a tensor."""
        return self.elsewhere.get(entry.name, self.path)

    @property
    def architecture(self) -> str:
        """``general.architecture``, or an empty string."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Reads metadata and tensor list of a GGUF model of version 2 or 3, little-endian.

    Args:
        path: its file, or any one of a model that is split; the others lie beside it.

    Raises:
        WeightError: a file is unreadable, truncated, malformed, missing or of another model.
    """
    header = read_gguf_part(path)
    count = _split_field(header, "count")
    if count in (0, 1):  # 0: never split
        return header
    number, name = _split_field(header, "no") + 1, split_name(path)
    if name is None or (name.number, name.count) != (number, count):
        raise WeightError(
            f"{path}: part {number} of {count} of a model, whose name has to end in -{number:05}-of-{count:05}.gguf"
        )
    return _joined([header if part == path else read_gguf_part(part) for part in parts_of(path)])


def _joined(parts: Sequence[GGUFHeader]) -> GGUFHeader:
    """The model of all its files, in order; the first has its metadata."""
    first = parts[0]
    tensors, files = dict[str, TensorEntry](), dict[str, Path]()
    for number, part in enumerate(parts):
        for key, expected in (
            ("count", len(parts)),
            ("no", number),
            ("tensors.count", _split_field(first, "tensors.count")),
        ):
            if (value := _split_field(part, key)) != expected:
                raise WeightError(
                    f"{part.path}: no part of the model of {first.path}: split.{key} = {value}, not {expected}"
                )
        for key in ("general.architecture", "general.name"):
            if key in part.metadata and part.metadata[key] != first.metadata.get(key):
                raise WeightError(f"{part.path}: no part of the model of {first.path}: {key} is another")
        for name, entry in part.tensors.items():
            if name in tensors:
                raise WeightError(f"{part.path}: tensor {name!r} is also in {files[name]}")
            tensors[name], files[name] = entry, part.path
        if len(tensors) > MAX_TENSORS:
            raise WeightError(f"{first.path}: its parts hold more tensors than the {MAX_TENSORS} that are read")
    if len(tensors) != _split_field(first, "tensors.count"):
        raise WeightError(
            f"{first.path}: split.tensors.count = {_split_field(first, 'tensors.count')}, but its "
            f"{len(parts)} parts hold {len(tensors)} tensors"
        )
    return GGUFHeader(first.path, first.metadata, tensors, files)


def _split_field(header: GGUFHeader, key: str) -> int:
    value = header.metadata.get(f"split.{key}", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WeightError(f"{header.path}: bad header: split.{key} = {value!r} is no number")
    return value


def is_later_part(header: GGUFHeader) -> bool:
    """Whether a file is one behind the first of a model that is split.

    Raises:
        WeightError: malformed metadata.
    """
    return _split_field(header, "count") > 1 and _split_field(header, "no") > 0


def read_gguf_part(path: Path) -> GGUFHeader:
    """As :func:`read_gguf_header` of one file, whatever model it is a part of."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise WeightError(f"{path}: truncated: {size} bytes hold no GGUF header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(path, _Cursor(path, data, min(size, MAX_HEADER)), size)
    except OSError as e:
        raise WeightError(f"{path}: {e.strerror or e}") from None


def _read(path: Path, cursor: _Cursor, file_size: int) -> GGUFHeader:
    if cursor.integer("<I") != GGUF_MAGIC:
        raise WeightError(f"{path}: not a GGUF file")
    version = cursor.integer("<I")
    if version not in VERSIONS:
        raise WeightError(f"{path}: GGUF version {version} is not supported, only {VERSIONS} little-endian")
    num_tensors = cursor.count("tensors", MAX_TENSORS)
    num_fields = cursor.count("metadata fields", MAX_FIELDS)
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.string(MAX_NAME)
        if key in metadata:
            raise WeightError(f"{path}: bad header: metadata field {key!r} stands twice")
        metadata[key] = cursor.value(cursor.integer("<I"))
    raw = [_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise WeightError(f"{path}: bad header: general.alignment = {alignment!r} is not a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for name, dims, kind, offset in raw:
        if name in tensors:
            raise WeightError(f"{path}: bad header: tensor {name!r} stands twice")
        if offset % alignment:
            raise WeightError(f"{path}: bad header: tensor {name!r} at offset {offset} is not aligned to {alignment}")
        tensors[name] = _entry(path, name, dims, kind, data_start + offset)
    check_extents(path, tensors.values(), data_start, file_size)
    return GGUFHeader(path, metadata, tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(MAX_NAME)
    num_dims = cursor.integer("<I")
    if not 1 <= num_dims <= MAX_DIMS:
        raise WeightError(f"{cursor.path}: bad header: tensor {name!r} has {num_dims} dimensions")
    dims = tuple(cursor.integer("<Q") for _ in range(num_dims))
    return name, dims[::-1], cursor.integer("<I"), cursor.integer("<Q")


def _entry(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorEntry:
    try:
        ggml_type = GGMLQuantizationType(kind)
        block_elements, block_bytes = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        raise WeightError(f"{path}: tensor {name!r} has the unknown type {kind}") from None
    if not all(shape) or shape[-1] % block_elements:
        raise WeightError(
            f"{path}: bad header: tensor {name!r} of shape {shape} cannot be {ggml_type.name}, "
            f"whose blocks hold {block_elements}"
        )
    return TensorEntry(name, ggml_type.name, shape, offset, math.prod(shape) // block_elements * block_bytes)


class _Cursor:
    """Reads a header's values one after the other, never past ``end``."""

    def __init__(self, path: Path, data: mmap.mmap, end: int) -> None:
        self.path = path
        self.position = 0
        self._data = data
        self._end = end
        self._elements_left = MAX_ELEMENTS

    def integer(self, fmt: str) -> int:
        (value,) = struct.unpack_from(fmt, self._data, self._advance(struct.calcsize(fmt)))
        return int(value)

    def count(self, what: str, limit: int) -> int:
        value = self.integer("<Q")
        if value > limit:
            raise WeightError(f"{self.path}: bad header: {value} {what}, at most {limit} are read")
        return value

    def string(self, limit: int = MAX_HEADER) -> str:
        length = self.count("bytes in a string", limit)
        start = self._advance(length)
        return self._decode(start, start + length)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        item_kind = self.integer("<I")
        length = self.count("elements in an array", self._elements_left)
        self._elements_left -= length
        return self._strings(length) if item_kind == _STRING else self._scalars(item_kind, length)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise WeightError(f"{self.path}: bad header: metadata of type {kind} is not supported")
        start = self._advance(count * dtype.itemsize)
        values: list[Any] = np.frombuffer(self._data[start : self.position], dtype=dtype).tolist()
        return values

    def _strings(self, count: int) -> list[str]:
        # Vocabularies and merges: the loop that reading a header takes its time over.
        strings = []
        for _ in range(count):
            (length,) = _U64.unpack_from(self._data, self._advance(8))
            start = self._advance(length)
            strings.append(self._decode(start, start + length))
        return strings

    def _decode(self, start: int, stop: int) -> str:
        try:
            return self._data[start:stop].decode()
        except UnicodeDecodeError:
            raise WeightError(f"{self.path}: bad header: the string at byte {start} is not UTF-8") from None

    def _advance(self, length: int) -> int:
        start = self.position
        if length > self._end - start:
            raise WeightError(
                f"{self.path}: truncated or bad header: byte {start + length} is needed, "
                f"the file or the longest header that is read ends at byte {self._end}"
            )
        self.position = start + length
        return start
