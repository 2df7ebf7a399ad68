"""A norm over all heads of queries and all of keys, and factors on queries by position, in every form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import LayerKVCache
from tests.kernels.delta import IMPLEMENTATIONS, cases, native_isas, running
from tests.kernels.test_qk_norm_rope_kv_write import POSITIONS, SLOTS, empty_cache, head64, read_slot, table_or_none
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, poisoned, randn, relative_error, unpacked

EPS = 1e-5
SCALES = 1 + torch.arange(500.0) / 100
SHAPES = [(9, 3, 64, 64), (4, 2, 80, 20), (2, 2, 256, 256), (17, 1, 64, 0), (1, 1, 128, 128)]
"""Heads, KV heads, width, and how much of it is rotated."""


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


class Written:
    """Queries, and keys and values by slot, of tokens of those positions."""

    def __init__(
        self,
        implementation: str,
        qkv: Tensor,
        shape: tuple[int, int, int, int],
        norms: tuple[Tensor, Tensor] | None = None,
        scales: Tensor | None = None,
        pages: torch.dtype = torch.bfloat16,
    ) -> None:
        heads, kv_heads, head_dim, rotary_dim = shape
        cache, packed = empty_cache(kv_heads, head_dim, pages), implementation in native_isas()
        cache = LayerKVCache(cache.values, cache.scale, packed=packed)
        self.queries = poisoned(len(qkv), heads, head_dim, dtype=qkv.dtype)
        q_norm, k_norm = norms or (None, None)
        qk_norm_rope_kv_write(
            qkv,
            torch.tensor(POSITIONS[: len(qkv)]),
            table_or_none(rotary_dim),
            cache,
            torch.tensor(SLOTS[: len(qkv)]),
            self.queries,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=EPS,
            q_scale_P=scales,
        )
        self.cache = unpacked(cache) if packed else cache


def whole64(heads: Tensor, weight: Tensor, position: int, rotary_dim: int) -> Tensor:
    """Heads [N, E] normed as one vector, then rotated."""
    flat = heads.double().flatten()
    normed = flat / (flat.square().mean() + EPS).sqrt() * weight.double()
    return torch.stack([head64(head, position, rotary_dim, None, EPS) for head in normed.view_as(heads)])


@cases(
    "dtype, pages, shape",
    itertools.product([torch.float32, torch.bfloat16], [torch.bfloat16, torch.int8], SHAPES),
    [
        (torch.bfloat16, torch.int8, SHAPES[0]),
        (torch.float32, torch.bfloat16, SHAPES[1]),
        (torch.bfloat16, torch.bfloat16, SHAPES[2]),
        (torch.float32, torch.int8, SHAPES[3]),
        (torch.bfloat16, torch.bfloat16, SHAPES[4]),
    ],
)
def test_a_norm_over_all_heads_against_fp64(
    implementation: str, dtype: torch.dtype, pages: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    heads, kv_heads, head_dim, rotary_dim = shape
    qkv = randn(len(POSITIONS), (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    qkv[:, :head_dim] *= 7  # a head's own mean square is not that of all
    qkv[:, heads * head_dim :][:, :head_dim] *= 5
    norms = randn(heads * head_dim, seed=1), randn(kv_heads * head_dim, seed=2)
    written = Written(implementation, qkv, shape, norms, pages=pages)
    tolerance = INT8_TOLERANCE if pages is torch.int8 else TOLERANCE[pages]
    for token, (position, slot) in enumerate(zip(POSITIONS, SLOTS, strict=True)):
        parts = qkv[token].view(-1, head_dim)
        q = whole64(parts[:heads], norms[0], position, rotary_dim)
        k = whole64(parts[heads : heads + kv_heads], norms[1], position, rotary_dim)
        assert relative_error(written.queries[token], q) < TOLERANCE[dtype]
        assert relative_error(read_slot(written.cache, slot)[0], k) < tolerance
        assert relative_error(read_slot(written.cache, slot)[1], parts[heads + kv_heads :]) < tolerance


@pytest.mark.parametrize("shape", [(9, 3, 64, 64), (4, 2, 80, 0)])
@pytest.mark.parametrize("normed", [False, True])
def test_queries_have_the_factor_of_their_position(
    implementation: str, shape: tuple[int, int, int, int], normed: bool
) -> None:
    heads, kv_heads, head_dim, _ = shape
    qkv = randn(len(POSITIONS), (heads + 2 * kv_heads) * head_dim)
    norms = (randn(head_dim, seed=1), randn(head_dim, seed=2)) if normed else None
    plain = Written(implementation, qkv, shape, norms)
    scaled = Written(implementation, qkv, shape, norms, SCALES)
    expected = plain.queries * SCALES[POSITIONS][:, None, None]
    torch.testing.assert_close(scaled.queries, expected, rtol=1e-6, atol=0)
    assert torch.equal(scaled.cache.values.nan_to_num(7), plain.cache.values.nan_to_num(7))


def test_tokens_do_not_see_each_other(implementation: str) -> None:
    shape, norms = SHAPES[0], (randn(9 * 64, seed=1), randn(3 * 64, seed=2))
    qkv = randn(6, 15 * 64)
    whole = Written(implementation, qkv, shape, norms, SCALES)
    alone = Written(implementation, qkv[:1], shape, norms, SCALES)
    assert torch.equal(whole.queries[:1], alone.queries)


def test_refuses_arguments_that_do_not_fit() -> None:
    qkv, shape = randn(1, 4 * 8), (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"k_norm has shape \[8\], expected \[16\]"):
        Written("reference", randn(1, 48), (2, 2, 8, 8), (torch.ones(16), torch.ones(8)))
    with pytest.raises(ValueError, match=r"q_norm has shape \[9\], expected \[16\]"):
        Written("reference", qkv, shape, (torch.ones(9), torch.ones(8)))
    with pytest.raises(ValueError, match=r"q_scale is torch\.float64"):
        Written("reference", qkv, shape, scales=SCALES.double())
