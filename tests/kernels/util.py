"""What kernel tests share: poisoned buffers, errors against fp64, paged caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.int8 import quantize_groups
from app.kernels.types import ACT_GROUP, Act, AttentionMetadata, LayerKVCache, LinearWeight, num_groups

# Relative norm of the error against fp64 on the same (dequantised) inputs.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
INT8_TOLERANCE = 2e-2


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=rng(seed)).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A buffer whose stale contents would show: NaN, or an absurd integer."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 99, dtype=dtype)


def poisoned_act(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> Act:
    if dtype is torch.int8:
        return Act(poisoned(tokens, width, dtype=dtype), poisoned(tokens, num_groups(width)))
    return Act(poisoned(tokens, width, dtype=dtype))


def quantized(x: Tensor) -> Act:
    """An int8 activation."""
    return Act(*quantize_groups(x))


def steps(act: Act) -> Tensor:
    """[T, K] fp64: the step between neighbouring int8 values of each element."""
    assert act.scale is not None
    width = act.values.shape[1]
    if act.scale.shape[1] == 1:
        return act.scale.double().expand(-1, width)
    return act.scale.double().repeat_interleave(ACT_GROUP, dim=1)[:, :width]


def dequantize(act: Act) -> Tensor:
    """An activation in fp64."""
    values = act.values.double()
    return values if act.scale is None else values * steps(act)


def plain_weight(weight: LinearWeight) -> Tensor:
    """A weight in fp64."""
    values = weight.values.double()
    return values if weight.scale is None else values * weight.scale.double()[:, None]


def activated64(y: Tensor, activation: Activation) -> Tensor:
    """A layer's outputs under its activation, in fp64."""
    y, up = y.double().chunk(2, dim=-1) if activation.gated else (y.double(), None)
    match activation.function:
        case "silu":
            y = y / (1 + (-y).exp())
        case "gelu":
            y = y * torch.special.erfc(-y / math.sqrt(2)) / 2
        case "gelu_tanh":
            y = y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh()) / 2
        case "relu2":
            y = y.clamp(min=0) ** 2
    return y if up is None else y * up


def linear64(
    x: Act, weight: LinearWeight, residual: Tensor | None = None, *, activation: Activation = Activation.NONE
) -> Tensor:
    """A linear layer in fp64."""
    y = dequantize(x) @ plain_weight(weight).t()
    if weight.bias is not None:
        y = y + weight.bias.double()
    y = activated64(y, activation)
    return y if residual is None else y + residual.double()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||; NaN in ``actual`` gives NaN, which no comparison lets pass."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@dataclass
class Pages:
    """Sequences in a paged cache, and the same keys and values in plain sight (fp64, [len, G, E])."""

    kv: LayerKVCache
    block_tables: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def seq_lens(self) -> list[int]:
        return [len(keys) for keys in self.keys]

    def metadata(self, query_lens: list[int]) -> AttentionMetadata:
        """The last ``query_lens[r]`` tokens of each sequence as the step's queries."""
        starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
        return AttentionMetadata(
            query_start_loc=starts,
            seq_lens=torch.tensor(self.seq_lens, dtype=torch.int32),
            block_tables=self.block_tables,
            slot_mapping=torch.zeros(sum(query_lens), dtype=torch.int64),
            max_query_len=max(query_lens),
            max_seq_len=max(self.seq_lens),
        )


def make_pages(
    seq_lens: list[int],
    *,
    kv_heads: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    permutation_seed: int = 0,
) -> Pages:
    """Random sequences in scattered blocks.

    Whatever must not be read is poisoned: page entries past a sequence's end, blocks of nobody, and table entries
    past a row's last block (a wild block number).
    """
    counts = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(counts) + 3
    order = torch.randperm(num_blocks, generator=rng(permutation_seed)).tolist()
    values = poisoned(num_blocks, 2, kv_heads, block_size, head_dim, dtype=dtype)
    scale = poisoned(num_blocks, 2, kv_heads, block_size, dtype=torch.float16) if dtype is torch.int8 else None
    tables = torch.full((len(seq_lens), max(counts, default=0) + 2), 2**30, dtype=torch.int32)
    pages = Pages(LayerKVCache(values, scale), tables, [], [])
    for row, (length, count) in enumerate(zip(seq_lens, counts, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks, dtype=torch.int32)
        kv = randn(length, 2, kv_heads, head_dim, seed=seed * 1000 + row)
        plain = _fill(pages.kv, blocks, kv)
        pages.keys.append(plain[:, 0])
        pages.values.append(plain[:, 1])
    return pages


def _fill(cache: LayerKVCache, blocks: list[int], kv: Tensor) -> Tensor:
    """Writes [len, 2, G, E] token by token; returns it in fp64, as the pages hold it."""
    plain = torch.empty(kv.shape, dtype=torch.float64)
    for position, token in enumerate(kv):
        block, offset = blocks[position // cache.block_size], position % cache.block_size
        if cache.scale is None:
            cache.values[block, :, :, offset] = token.to(cache.values.dtype)
            plain[position] = cache.values[block, :, :, offset].double()
            continue
        scale = (token.abs().amax(-1) / 127).half()
        cache.scale[block, :, :, offset] = scale
        cache.values[block, :, :, offset] = (token / scale[..., None].float()).round().clamp(-127, 127).to(torch.int8)
        plain[position] = cache.values[block, :, :, offset].double() * scale[..., None].double()
    return plain


def packed(kv: LayerKVCache) -> LayerKVCache:
    """The same pages in the layout of the native kernels."""
    blocks, _, kv_heads, size, width = kv.values.shape
    values = torch.empty_like(kv.values)
    keys = kv.values[:, 0].reshape(blocks, kv_heads, size, width // 2, 2).transpose(2, 3)
    pairs = kv.values[:, 1].reshape(blocks, kv_heads, size // 2, 2, width).transpose(3, 4)
    values[:, 0] = keys.reshape(blocks, kv_heads, size, width)
    values[:, 1] = pairs.reshape(blocks, kv_heads, size, width)
    return LayerKVCache(values, kv.scale, packed=True)


def unpacked(kv: LayerKVCache) -> LayerKVCache:
    """Plain pages of packed ones."""
    blocks, _, kv_heads, size, width = kv.values.shape
    values = torch.empty_like(kv.values)
    keys = kv.values[:, 0].reshape(blocks, kv_heads, width // 2, size, 2).transpose(2, 3)
    pairs = kv.values[:, 1].reshape(blocks, kv_heads, size // 2, width, 2).transpose(3, 4)
    values[:, 0] = keys.reshape(blocks, kv_heads, size, width)
    values[:, 1] = pairs.reshape(blocks, kv_heads, size, width)
    return LayerKVCache(values, kv.scale)
