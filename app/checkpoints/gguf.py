"""Tensors of a GGUF file under their Hugging Face names, dequantised to fp32.

Shape suffixes: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.gguf_header import GGUFHeader, is_later_part, read_gguf_header, read_gguf_part
from app.checkpoints.header import TensorEntry, WeightError
from app.models.architectures import find_gguf
from app.models.config_fields import ConfigError
from app.models.gguf_names import Floats, GGUFNames, GGUFPair, GGUFTensor
from app.quant.destination import Extent

_CHUNK_ELEMENTS = 1 << 18
_EXPERT = "{expert}"
_DRAFTING = "nextn_predict_layers"
_LAYER = re.compile(r"blk\.(\d+)\.")


def tensors(file: Path) -> Iterator[StoredTensor]:
    """See :class:`app.checkpoints.base.Tensors`; names are those of the family of the file's architecture.

    The first file of a model that is split lists the tensors of all, the others none: what they mean says the first.
    """
    if is_later_part(read_gguf_part(file)):
        return
    header = read_gguf_header(file)
    try:
        names = find_gguf(header.architecture).names.gguf
    except ConfigError as error:
        raise WeightError(f"{file}: {error}") from None
    if names is None:
        raise WeightError(f"{file}: architecture {header.architecture!r} has no names of GGUF tensors")
    layers = _num_layers(header)
    for entry in header.tensors.values():
        layer = _LAYER.match(entry.name)
        if entry.name not in names.unread and (layer is None or int(layer[1]) < layers):
            yield from _stored(header, entry, names)


def _pair(header: GGUFHeader, entry: TensorEntry, names: GGUFNames) -> tuple[GGUFPair, TensorEntry, TensorEntry] | None:
    """The two tensors of which an entry is one, both in the file."""
    layer = _LAYER.match(entry.name)
    if layer is not None:
        for pair in names.pairs:
            first, second = (header.tensors.get(layer[0] + name) for name in (pair.first, pair.second))
            if first is not None and second is not None and entry.name in (first.name, second.name):
                return pair, first, second
    return None


def _stored_pair(
    header: GGUFHeader, pair: GGUFPair, first: TensorEntry, second: TensorEntry, layer: str
) -> StoredTensor:
    shape = pair.shape(first.shape, second.shape)
    if shape is None:
        shapes = f"{first.name!r} {list(first.shape)} and {second.name!r} {list(second.shape)}"
        raise WeightError(f"{header.path}: tensors {shapes} do not go together")

    def read(extent: Extent | None = None) -> Tensor:
        parts = (_dequantize(header.file_of(entry), entry, None) for entry in (first, second))
        whole = torch.from_numpy(pair.join(*parts))
        return whole if extent is None else extent.of(whole)

    return StoredTensor(f"{layer}.{pair.name}", header.file_of(first), shape, first.nbytes + second.nbytes, read)


def _num_layers(header: GGUFHeader) -> float:
    """Number of the model's own layers; layers that draft tokens come behind them."""
    count, drafting = (header.metadata.get(f"{header.architecture}.{key}") for key in ("block_count", _DRAFTING))
    return count - drafting if isinstance(count, int) and isinstance(drafting, int) else math.inf


def _stored(header: GGUFHeader, entry: TensorEntry, names: GGUFNames) -> Iterator[StoredTensor]:
    """A tensor as the checkpoint's one, or as those of each expert in a stack; of two that are one, the first does."""
    pair = _pair(header, entry, names)
    if pair is not None:
        layer = _LAYER.match(entry.name)
        if layer is not None and entry is pair[1]:
            yield _stored_pair(header, *pair, f"{names.layers}.{layer[1]}")
        return
    name, tensor = names.of(entry.name)
    if _EXPERT not in name:
        yield _stored_as(name, header, entry, tensor)
        return
    nbytes = entry.nbytes // entry.shape[0]
    for expert in range(entry.shape[0]):
        part = replace(entry, shape=entry.shape[1:], offset=entry.offset + expert * nbytes, nbytes=nbytes)
        yield _stored_as(name.replace(_EXPERT, str(expert)), header, part, tensor)


def _stored_as(name: str, header: GGUFHeader, entry: TensorEntry, tensor: GGUFTensor | None) -> StoredTensor:
    shape = entry.shape
    if tensor is not None and tensor.transposed:
        shape = shape[::-1]
    if tensor is not None and tensor.middle:
        shape = (shape[0], 1, *shape[1:])
    if tensor is not None and tensor.row and len(shape) == 1:
        shape = (1, *shape)
    if tensor is not None and tensor.flat:
        shape = (math.prod(shape),)
    alone = GGML_QUANT_SIZES[GGMLQuantizationType[entry.dtype]][0] == 1
    packing = None if alone else entry.dtype
    read = partial(_read, header, entry, tensor)
    moved = tensor is None or (tensor.moves_rows and shape == entry.shape)
    blocks = partial(_read_blocks, header, entry, tensor) if moved and packing is not None and len(shape) == 2 else None
    return StoredTensor(name, header.file_of(entry), shape, entry.nbytes, read, packing, blocks)


def _read(header: GGUFHeader, entry: TensorEntry, tensor: GGUFTensor | None, extent: Extent | None = None) -> Tensor:
    """One tensor or an extent of it, fp32, in the checkpoint's form.

    Args:
        extent: part of the checkpoint's tensor; whole heads, if it is rows of a projection whose rotated pairs are
            neighbours in the file.

    Raises:
        WeightError: its type cannot be dequantised, or the file cannot be read.
    """
    if tensor is not None and (tensor.whole or tensor.middle or tensor.row or tensor.flat) and extent is not None:
        return extent.of(_read(header, entry, tensor))
    turned = tensor is not None and tensor.transposed and len(entry.shape) == 2
    if turned and extent is not None:
        extent = extent._replace(dim=1 - extent.dim)
    values = _dequantize(header.file_of(entry), entry, extent)
    if tensor is not None and tensor.undo is not None:
        try:
            values = tensor.undo(header, entry, values)
        except ConfigError as error:
            raise WeightError(str(error)) from None
    read = torch.from_numpy(values)
    if tensor is not None and tensor.middle:
        read = read.unsqueeze(1)
    if tensor is not None and tensor.row and read.dim() == 1:
        read = read.unsqueeze(0)
    if tensor is not None and tensor.flat:
        read = read.flatten()
    return read.t() if turned else read


def _read_blocks(header: GGUFHeader, entry: TensorEntry, tensor: GGUFTensor | None) -> Tensor:
    """The rows of a tensor [N, bytes of a row] uint8 in the file's blocks, in the checkpoint's order.

    Raises:
        WeightError: the file cannot be read.
    """
    path, rows = header.file_of(entry), entry.shape[0]
    try:
        data: Any = np.fromfile(path, dtype=np.uint8, count=entry.nbytes, offset=entry.offset).reshape(rows, -1)
    except (OSError, ValueError) as e:
        raise WeightError(f"{path}: tensor {entry.name!r}: {e}") from None
    if tensor is not None and tensor.undo is not None:
        try:
            data = tensor.undo(header, entry, data)
        except ConfigError as error:
            raise WeightError(str(error)) from None
    return torch.from_numpy(np.ascontiguousarray(data))


def _dequantize(path: Path, entry: TensorEntry, extent: Extent | None) -> Floats:
    """A tensor of the file, or an extent of it, in fp32.

    Goes by chunks of rows, so that the temporaries stay in the processor's cache.
    """
    ggml_type = GGMLQuantizationType[entry.dtype]
    all_columns = entry.shape[-1]
    all_rows = torch.Size(entry.shape[:-1]).numel()
    first, rows, column, columns = 0, all_rows, 0, all_columns
    shape = list(entry.shape)
    if extent is not None:
        shape[extent.dim] = extent.stop - extent.start
        if extent.dim == len(shape) - 1:
            column, columns = extent.start, shape[extent.dim]
        else:
            first, rows = extent.start, shape[extent.dim]
    # Blocks of neighbours are quantised together: whole blocks are read.
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    first_block, last_block = column // block, -(-(column + columns) // block)
    wanted = slice(column - first_block * block, column - first_block * block + columns)
    row_bytes = entry.nbytes // all_rows
    step = max(1, _CHUNK_ELEMENTS // all_columns)
    out = np.empty((rows, columns), dtype=np.float32)
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=entry.offset, shape=(all_rows, row_bytes))
        part = data[first : first + rows, first_block * block_bytes : last_block * block_bytes]
        # A damaged file may hold any bits, NaN scales among them: a matter of the weights' values, not of reading them.
        with np.errstate(all="ignore"):
            for start in range(0, rows, step):
                chunk = np.ascontiguousarray(part[start : start + step])
                out[start : start + step] = dequantize(chunk, ggml_type)[:, wanted]
    except NotImplementedError:
        raise WeightError(
            f"{path}: tensor {entry.name!r} has type {entry.dtype}, which cannot be dequantised"
        ) from None
    except (OSError, ValueError) as e:
        raise WeightError(f"{path}: tensor {entry.name!r}: {e}") from None
    return out.reshape(shape)
