"""Queries alone, normed values, values that are the keys, and pairs far apart: Gemma 4's, in every form."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import LayerKVCache
from tests.kernels.delta import IMPLEMENTATIONS, cases, native_isas, running
from tests.kernels.test_qk_norm_rope_kv_write import POSITIONS, SLOTS, empty_cache, read_slot, rope_table, rotated64
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, poisoned, randn, relative_error, unpacked

EPS = 1e-5
SHAPES = [(4, 2, 64, 16, 32), (2, 1, 256, 64, 128), (3, 3, 80, 80, 40), (2, 1, 48, 20, 16)]
"""Heads, KV heads, width, how much of it is rotated, and how far apart pairs are."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def normed64(head: Tensor, weight: Tensor | None) -> Tensor:
    wide = head.double()
    wide = wide / (wide.square().mean() + EPS).sqrt()
    return wide if weight is None else wide * weight.double()


Formats = tuple[torch.dtype, torch.dtype, bool]
FORMATS: list[Formats] = [
    (torch.float32, torch.bfloat16, False),
    (torch.float32, torch.int8, True),
    (torch.bfloat16, torch.bfloat16, True),
    (torch.bfloat16, torch.int8, False),
]
"""Of activations and of pages, and whether keys are values too: every pair of these."""


@cases(
    "shape, formats",
    itertools.product(SHAPES, FORMATS),
    [(shape, FORMATS[(i + j) % 4]) for i, shape in enumerate(SHAPES) for j in range(2)],
)
def test_against_fp64(implementation: str, shape: tuple[int, ...], formats: Formats) -> None:
    (heads, kv_heads, head_dim, rotary_dim, distance), (dtype, pages, key_is_value) = shape, formats
    count = heads + (1 if key_is_value else 2) * kv_heads
    qkv = 3 * randn(len(POSITIONS), count * head_dim, dtype=dtype)
    norms = randn(head_dim, seed=1), randn(head_dim, seed=2)
    cache, packed = empty_cache(kv_heads, head_dim, pages), implementation in native_isas()
    cache = LayerKVCache(cache.values, cache.scale, packed=packed)
    queries = poisoned(len(qkv), heads, head_dim, dtype=dtype)
    qk_norm_rope_kv_write(
        qkv,
        torch.tensor(POSITIONS),
        rope_table(rotary_dim),
        cache,
        torch.tensor(SLOTS),
        queries,
        q_norm=norms[0],
        k_norm=norms[1],
        eps=EPS,
        pair_distance=distance,
        value_norm=True,
    )
    written = unpacked(cache) if packed else cache
    tolerance = INT8_TOLERANCE if pages is torch.int8 else TOLERANCE[pages]
    for token, (position, slot) in enumerate(zip(POSITIONS, SLOTS, strict=True)):
        parts = qkv[token].view(-1, head_dim)
        for head in range(heads):
            expected = rotated64(normed64(parts[head], norms[0]), position, rotary_dim, distance)
            assert relative_error(queries[token, head], expected) < TOLERANCE[dtype]
        for head in range(kv_heads):
            key = rotated64(normed64(parts[heads + head], norms[1]), position, rotary_dim, distance)
            value = normed64(parts[heads + head + (0 if key_is_value else kv_heads)], None)
            assert relative_error(read_slot(written, slot)[0, head], key) < tolerance
            assert relative_error(read_slot(written, slot)[1, head], value) < tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("normed", [False, True])
def test_queries_alone_are_those_beside_keys(implementation: str, shape: tuple[int, ...], normed: bool) -> None:
    heads, kv_heads, head_dim, rotary_dim, distance = shape
    qkv, positions = randn(len(POSITIONS), (heads + 2 * kv_heads) * head_dim), torch.tensor(POSITIONS)
    norm = randn(head_dim, seed=1) if normed else None
    cache = empty_cache(kv_heads, head_dim, torch.bfloat16)
    cache = LayerKVCache(cache.values, packed=implementation in native_isas())
    beside, alone = (poisoned(len(qkv), heads, head_dim) for _ in range(2))
    rope, slots = rope_table(rotary_dim), torch.tensor(SLOTS)
    write = functools.partial(qk_norm_rope_kv_write, eps=EPS, pair_distance=distance)
    write(qkv, positions, rope, cache, slots, beside, q_norm=norm, k_norm=norm)
    only = qkv[:, : heads * head_dim].contiguous()
    write(only, positions, rope, None, slots, alone, q_norm=norm)
    assert torch.equal(alone, beside)


def test_refuses_arguments_that_do_not_fit() -> None:
    positions, slots, out = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), poisoned(1, 2, 8)
    cache, norm = empty_cache(1, 8, torch.float32), torch.ones(8)
    with pytest.raises(ValueError, match="2 pairs of elements 7 apart are not in 8"):
        qk_norm_rope_kv_write(randn(1, 32), positions, rope_table(4), cache, slots, out, pair_distance=7)
    with pytest.raises(ValueError, match=r"qkv has shape \[1, 32\], expected \[1, 16\]"):
        qk_norm_rope_kv_write(randn(1, 32), positions, rope_table(4), None, slots, out)
    with pytest.raises(ValueError, match="q_norm and k_norm come together"):
        qk_norm_rope_kv_write(randn(1, 32), positions, rope_table(4), cache, slots, out, q_norm=norm)
    with pytest.raises(ValueError, match="a norm over all heads"):
        qk_norm_rope_kv_write(randn(1, 16), positions, rope_table(4), None, slots, out, q_norm=torch.ones(16))
