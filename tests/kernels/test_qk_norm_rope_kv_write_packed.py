"""The write into packed pages: the native kernels, on every instruction set of the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.kernels import dispatch
from app.kernels.dispatch import Mode
from app.kernels.native.library import NativeError, best_isa
from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import LayerKVCache
from tests.kernels.test_qk_norm_rope_kv_write import POSITIONS, SLOTS, empty_cache, read_slot, table_or_none
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error, unpacked

try:
    _ISAS = ["avx2", "avx512", "avx512_bf16"]
    ISAS = _ISAS[: _ISAS.index(best_isa()) + 1]
except NativeError:
    pytest.skip("no native kernels here", allow_module_level=True)

SHAPES = [(9, 3, 64, 64, False), (4, 4, 80, 20, False), (4, 1, 96, 96, True), (2, 2, 256, 64, True)]
SHAPES += [(4, 1, 256, 256, True), (12, 12, 64, 0, False), (2, 1, 48, 0, True)]


@pytest.fixture(autouse=True, params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    dispatch.configure(Mode.AUTO, 2, isa=request.param)
    yield request.param
    dispatch.configure(*before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "rotary_dim", "normed"), SHAPES)
def test_agrees_with_the_reference(
    dtype: torch.dtype, cache_dtype: torch.dtype, heads: int, kv_heads: int, width: int, rotary_dim: int, normed: bool
) -> None:
    tokens = len(POSITIONS)
    qkv = randn(tokens, (heads + 2 * kv_heads) * width, dtype=dtype)
    norms = (randn(width, seed=1), randn(width, seed=2)) if normed else (None, None)
    plain, pages = empty_cache(kv_heads, width, cache_dtype), empty_cache(kv_heads, width, cache_dtype)
    pages = LayerKVCache(pages.values, pages.scale, packed=True)
    queries = []
    for cache in (plain, pages):
        q_out = poisoned(tokens, heads, width, dtype=dtype)
        positions, slots = torch.tensor(POSITIONS), torch.tensor(SLOTS)
        rope = table_or_none(rotary_dim)
        qk_norm_rope_kv_write(qkv, positions, rope, cache, slots, q_out, q_norm=norms[0], k_norm=norms[1], eps=1e-5)
        queries.append(q_out)
    mine = unpacked(pages)
    assert relative_error(queries[1], queries[0]) < TOLERANCE[dtype]
    tolerance = 2e-3 if cache_dtype is torch.int8 else TOLERANCE[cache_dtype]
    for slot in SLOTS:
        for part in range(2):
            assert relative_error(read_slot(mine, slot)[part], read_slot(plain, slot)[part]) < tolerance
    for slot in set(range(64)) - set(SLOTS):
        entry = (slot // 16, slice(None), slice(None), slot % 16)
        assert torch.equal(mine.values[entry].nan_to_num(7), plain.values[entry].nan_to_num(7))
