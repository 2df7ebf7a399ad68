"""``qk_norm_rope_kv_write`` in Triton against fp64, and against the reference where bits are promised."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.qk_norm_rope_kv_write.preparation import Preparation
from app.kernels.qk_norm_rope_kv_write.reference import qk_norm_rope_kv_write_reference
from app.kernels.types import LayerKVCache
from tests.kernels.test_qk_norm_rope_kv_write import (
    POSITIONS,
    SLOTS,
    empty_cache,
    head64,
    read_slot,
    rope_table,
    table_or_none,
)
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, poisoned, randn, relative_error

pytestmark = pytest.mark.usefixtures("interpreted")

SHAPES = [
    (9, 3, 64, 64),
    (4, 2, 80, 80),
    (3, 1, 96, 96),
    (8, 2, 128, 128),
    (2, 1, 256, 256),
    (5, 5, 20, 12),
    (3, 3, 64, 0),
]
"""Heads, KV heads, width, and how much of it is rotated."""
PAGES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


def write(
    qkv: Tensor, cache: LayerKVCache, q_out: Tensor, rotary_dim: int, norms: tuple[Tensor, Tensor] | None
) -> None:
    q_norm, k_norm = norms or (None, None)
    qk_norm_rope_kv_write(
        qkv,
        torch.tensor(POSITIONS[: len(qkv)]),
        table_or_none(rotary_dim),
        cache,
        torch.tensor(SLOTS[: len(qkv)]),
        q_out,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
    )


# Every shape with and without norms, and every kind of pages so.
@pytest.mark.parametrize(
    ("shape", "cache_dtype", "normed"),
    [(shape, PAGES[(i + j) % len(PAGES)], bool(j)) for i, shape in enumerate(SHAPES) for j in range(2)],
)
def test_against_fp64(shape: tuple[int, int, int, int], cache_dtype: torch.dtype, normed: bool) -> None:
    heads, kv_heads, head_dim, rotary_dim = shape
    dtype = torch.float32 if cache_dtype is torch.int8 else cache_dtype
    qkv = randn(len(POSITIONS), (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    norms = (randn(head_dim, seed=1, dtype=dtype), randn(head_dim, seed=2, dtype=dtype)) if normed else None
    q_norm, k_norm = norms or (None, None)
    cache, q_out = empty_cache(kv_heads, head_dim, cache_dtype), poisoned(len(qkv), heads, head_dim, dtype=dtype)
    write(qkv, cache, q_out, rotary_dim, norms)
    tolerance = INT8_TOLERANCE if cache_dtype is torch.int8 else TOLERANCE[dtype]
    for token, (position, slot) in enumerate(zip(POSITIONS, SLOTS, strict=True)):
        parts = qkv[token].view(-1, head_dim)
        q = torch.stack([head64(h, position, rotary_dim, q_norm, 1e-5) for h in parts[:heads]])
        k = torch.stack([head64(h, position, rotary_dim, k_norm, 1e-5) for h in parts[heads : heads + kv_heads]])
        assert relative_error(q_out[token], q) <= TOLERANCE[dtype]
        assert relative_error(read_slot(cache, slot)[0], k) <= tolerance
        assert relative_error(read_slot(cache, slot)[1], parts[heads + kv_heads :]) <= tolerance


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.int8])
def test_writes_its_own_slots_only(cache_dtype: torch.dtype) -> None:
    cache = empty_cache(3, 64, cache_dtype)
    before = cache.values.clone()
    write(randn(6, 15 * 64), cache, poisoned(6, 9, 64), 64, None)
    for slot in set(range(64)) - set(SLOTS):
        entry = (slot // 16, slice(None), slice(None), slot % 16)
        assert torch.equal(cache.values[entry].nan_to_num(7), before[entry].nan_to_num(7))
        assert cache.scale is None or cache.scale[entry].isnan().all()


def test_int8_values_are_those_of_the_scale_as_stored() -> None:
    qkv = randn(6, 5 * 32) * torch.tensor([1.0, 1e-3, 300.0, 0.0, 1e-9, 7.0])[:, None]
    cache, expected = empty_cache(1, 32, torch.int8), empty_cache(1, 32, torch.int8)
    positions, slots = torch.zeros(6, dtype=torch.int64), torch.tensor(SLOTS)
    # At position 0 nothing is turned: the same fp32 values are quantised.
    qk_norm_rope_kv_write(qkv, positions, rope_table(32), cache, slots, poisoned(6, 3, 32))
    how = Preparation(rope_table(32), None, None, 1e-6, None)
    qk_norm_rope_kv_write_reference(qkv, positions, expected, slots, poisoned(6, 3, 32), how)
    assert expected.scale is not None
    assert cache.scale is not None
    for slot in SLOTS:
        entry = (slot // 16, slice(None), slice(None), slot % 16)
        assert torch.equal(cache.values[entry], expected.values[entry])
        assert torch.equal(cache.scale[entry], expected.scale[entry])


def test_tokens_do_not_see_each_other() -> None:
    qkv, norms = randn(6, 15 * 64), (randn(64, seed=1), randn(64, seed=2))
    whole, alone = poisoned(6, 9, 64), poisoned(1, 9, 64)
    write(qkv, empty_cache(3, 64, torch.float32), whole, 64, norms)
    write(qkv[:1], empty_cache(3, 64, torch.float32), alone, 64, norms)
    assert torch.equal(whole[:1], alone)


def test_a_nan_stays_visible_in_int8_pages() -> None:
    qkv = randn(1, 3 * 8)
    qkv[0, 17] = float("nan")  # of the value
    cache = empty_cache(1, 8, torch.int8)
    write(qkv, cache, poisoned(1, 1, 8), 8, None)
    assert not read_slot(cache, SLOTS[0])[1].isfinite().all()
    assert read_slot(cache, SLOTS[0])[0].isfinite().all()
