"""Tensors of a GGUF file under their Hugging Face names, dequantised to fp32.

Shape suffixes: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from app.models.checkpoint import TensorEntry, WeightError
from app.models.gguf_header import GGUFHeader
from app.quant.destination import Extent

ROPE_FACTORS = "rope_freqs.weight"
"""Not a weight: Llama 3's rotary scaling as a table; the config derived from the file says the same."""

_TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
_HEADS_OF_ROTATED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
_CHUNK_ELEMENTS = 1 << 18


def checkpoint_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name nobody knows stays as it is, to be reported as left over."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, part, kind = match["layer"], match["part"], match["kind"]
    stem = _TOP_LEVEL.get(part) if layer is None else _IN_LAYER.get(part)
    if stem is None:
        return name
    return f"{stem}.{kind}" if layer is None else f"model.layers.{layer}.{stem}.{kind}"


def read_tensor(header: GGUFHeader, entry: TensorEntry, extent: Extent | None = None) -> Tensor:
    """One tensor or an extent of it, [N, K] or [N], fp32; query and key rows in rotate-half order.

    Args:
        extent: whole heads, if it is rows of a query or key projection.

    Raises:
        WeightError: its type cannot be dequantised, or the file cannot be read.
    """
    tensor = _dequantize(header.path, entry, extent)
    match = _NAME.fullmatch(entry.name)
    if header.architecture != "llama" or match is None or match["part"] not in _HEADS_OF_ROTATED:
        return tensor
    return _unpermute(header, entry, tensor, _HEADS_OF_ROTATED[match["part"]])


def _dequantize(path: Path, entry: TensorEntry, extent: Extent | None) -> Tensor:
    """Works through row by row chunks, so that the temporaries stay in the processor's cache."""
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
    return torch.from_numpy(out).view(shape)


def _unpermute(header: GGUFHeader, entry: TensorEntry, tensor: Tensor, heads_key: str) -> Tensor:
    """Undoes the row order of architecture ``llama``, where the two halves of a rotated pair are neighbours."""
    heads = header.metadata.get(f"llama.{heads_key}", header.metadata.get("llama.attention.head_count"))
    if isinstance(heads, list) and len(set(heads)) == 1:  # one value a layer; the config made sure that they are equal
        heads = heads[0]
    rows = entry.shape[0]
    if not isinstance(heads, int) or heads <= 0 or rows % (2 * heads):
        raise WeightError(f"{header.path}: tensor {entry.name!r} has {rows} rows, which are not {heads!r} heads")
    head_dim = rows // heads
    pairs = tensor.view(tensor.shape[0] // head_dim, head_dim // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(tensor.shape)
