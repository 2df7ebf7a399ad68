"""Cheap argument checks of the public kernels: what a native kernel would turn into a stray memory access."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import Act, AttentionMetadata, LayerKVCache, LayerLatents, num_groups

FLOATING = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """Checks that ``tensor`` is contiguous, has ``shape`` and one of ``dtypes``.

    Raises:
        ValueError: it has not; the message names the op and the argument.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} is not contiguous")


def check_columns(op: str, name: str, tensor: Tensor, shape: tuple[int, int], *dtypes: torch.dtype) -> None:
    """Checks that ``tensor`` has ``shape`` and one of ``dtypes``, and that its rows are contiguous: they may be columns
    of a wider tensor.

    Raises:
        ValueError: it has not; the message names the op and the argument.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{op}: the rows of {name} are not contiguous")


def check_rows(op: str, meta: AttentionMetadata, block_size: int) -> None:
    """Checks that the metadata of a step's rows fit each other, and that block tables hold the longest sequence.

    Raises:
        ValueError: they do not.
    """
    rows = meta.seq_lens.numel()
    check_tensor(op, "meta.seq_lens", meta.seq_lens, (rows,), torch.int32)
    check_tensor(op, "meta.query_start_loc", meta.query_start_loc, (rows + 1,), torch.int32)
    check_tensor(op, "meta.block_tables", meta.block_tables, (rows, meta.block_tables.shape[-1]), torch.int32)
    if meta.block_tables.shape[1] * block_size < meta.max_seq_len:
        raise ValueError(f"{op}: meta.block_tables is too narrow for {meta.max_seq_len} tokens")


def check_heads(op: str, name: str, tensor: Tensor, shape: tuple[int, int, int], *dtypes: torch.dtype) -> None:
    """Checks that ``tensor`` [T, H, E] has ``shape`` and one of ``dtypes``, and that its vectors are contiguous: they
    may be parts of wider heads.

    Raises:
        ValueError: it has not; the message names the op and the argument.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if shape[2] > 1 and tensor.stride(2) != 1:
        raise ValueError(f"{op}: the vectors of {name} are not contiguous")


def check_latents(op: str, pages: LayerLatents, width: int) -> None:
    """Checks that ``pages`` are [num_blocks, B, ``width``], floating.

    Raises:
        ValueError: they are not.
    """
    if pages.values.dim() != 3:
        raise ValueError(f"{op}: pages have shape {list(pages.values.shape)}, expected [num_blocks, B, C + R]")
    check_tensor(op, "pages", pages.values, (*pages.values.shape[:2], width), *FLOATING)


def check_act(op: str, name: str, act: Act, shape: tuple[int, int]) -> None:
    """Checks that ``act`` is [T, K] ``shape``: floating without a scale, or int8 with fp32 scales
    [T, groups of K] or [T, 1].

    Raises:
        ValueError: it is not.
    """
    if act.scale is None:
        check_tensor(op, name, act.values, shape, *FLOATING)
    else:
        check_tensor(op, name, act.values, shape, torch.int8)
        scales = 1 if act.scale.shape[-1] == 1 else num_groups(shape[1])
        check_tensor(op, f"{name}.scale", act.scale, (shape[0], scales), torch.float32)


def check_token_scale(op: str, act: Act) -> None:
    """Checks that ``act`` is floating, or int8 with one scale a token.

    Raises:
        ValueError: it has a scale a group.
    """
    if act.scale is not None and act.scale.shape[1] != 1:
        raise ValueError(f"{op}: Triton quantises by tokens, not by groups of {act.scale.shape[1]}")


def scaled_by_groups(act: Act) -> bool:
    """Whether ``act`` is floating, or int8 as native kernels write it: with a scale a group."""
    return act.scale is None or act.scale.shape[1] == num_groups(act.values.shape[1])


def check_group_scale(op: str, act: Act) -> None:
    """Checks that ``act`` is floating, or int8 with a scale a group.

    Raises:
        ValueError: it has one scale a token, past which a native kernel would write.
    """
    if not scaled_by_groups(act):
        raise ValueError(f"{op}: native kernels quantise by groups, not by tokens")


def check_kv_cache(op: str, kv: LayerKVCache, head_dim: int) -> None:
    """Checks that ``kv`` holds pages [num_blocks, 2, G, B, E] of heads of ``head_dim`` elements.

    Raises:
        ValueError: it does not.
    """
    if kv.values.dim() != 5:
        raise ValueError(f"{op}: kv has shape {list(kv.values.shape)}, expected [num_blocks, 2, G, B, E]")
    blocks, _, kv_heads, block_size, _ = kv.values.shape
    shape = (blocks, 2, kv_heads, block_size, head_dim)
    if kv.scale is None:
        check_tensor(op, "kv", kv.values, shape, *FLOATING)
    else:
        check_tensor(op, "kv", kv.values, shape, torch.int8)
        check_tensor(op, "kv.scale", kv.scale, shape[:4], torch.float16)
