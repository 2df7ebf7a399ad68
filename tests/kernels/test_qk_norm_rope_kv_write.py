from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from app.kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from app.kernels.types import LayerKVCache
from tests.kernels.util import INT8_TOLERANCE, TOLERANCE, poisoned, randn, relative_error

POSITIONS = [0, 1, 15, 16, 17, 499]
SLOTS = [3 * 16, 5, 31, 16, 2 * 16 + 15, 0]


def rope_table(rotary_dim: int, theta: float = 10000.0, length: int = 500) -> Tensor:
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    angles = torch.arange(length).double()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def head64(x: Tensor, position: int, rotary_dim: int, norm: Tensor | None, eps: float) -> Tensor:
    """One head in fp64."""
    x = x.double()
    if norm is not None:
        x = x / (x.pow(2).mean() + eps).sqrt() * norm.double()
    return rotated64(x, position, rotary_dim, rotary_dim // 2)


def rotated64(x: Tensor, position: int, rotary_dim: int, distance: int) -> Tensor:
    """One head in fp64, of which pairs of elements ``distance`` apart are turned."""
    pairs = rotary_dim // 2
    y, low, high = x.clone(), x[:pairs], x[distance : distance + pairs]
    angles = [position * 10000.0 ** (-2 * i / rotary_dim) for i in range(pairs)]
    cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=torch.float64) for f in (math.cos, math.sin))
    y[:pairs] = low * cos - high * sin
    y[distance : distance + pairs] = high * cos + low * sin
    return y


def table_or_none(rotary_dim: int) -> Tensor | None:
    """Of no width, no table."""
    return rope_table(rotary_dim) if rotary_dim else None


def empty_cache(kv_heads: int, head_dim: int, dtype: torch.dtype) -> LayerKVCache:
    scale = poisoned(4, 2, kv_heads, 16, dtype=torch.float16) if dtype is torch.int8 else None
    return LayerKVCache(poisoned(4, 2, kv_heads, 16, head_dim, dtype=dtype), scale)


def read_slot(cache: LayerKVCache, slot: int) -> Tensor:
    """[2, G, E] fp64."""
    values = cache.values[slot // 16, :, :, slot % 16].double()
    return values if cache.scale is None else values * cache.scale[slot // 16, :, :, slot % 16].double()[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim", "normed"),
    [
        (9, 3, 64, 64, False),
        (4, 4, 20, 12, False),
        (4, 1, 32, 32, True),
        (2, 2, 6, 6, True),
        (3, 1, 20, 0, False),
        (2, 2, 6, 0, True),
    ],
)
def test_against_fp64(
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    normed: bool,
) -> None:
    tokens = len(POSITIONS)
    qkv = randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    q_norm, k_norm = (randn(head_dim, seed=1), randn(head_dim, seed=2)) if normed else (None, None)
    cache, q_out = empty_cache(kv_heads, head_dim, cache_dtype), poisoned(tokens, heads, head_dim, dtype=dtype)
    qk_norm_rope_kv_write(
        qkv,
        torch.tensor(POSITIONS),
        table_or_none(rotary_dim),
        cache,
        torch.tensor(SLOTS),
        q_out,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
    )
    tolerance = INT8_TOLERANCE if cache_dtype is torch.int8 else max(TOLERANCE[cache_dtype], 1e-6)
    for token, (position, slot) in enumerate(zip(POSITIONS, SLOTS, strict=True)):
        parts = qkv[token].view(-1, head_dim)
        q = torch.stack([head64(h, position, rotary_dim, q_norm, 1e-5) for h in parts[:heads]])
        k = torch.stack([head64(h, position, rotary_dim, k_norm, 1e-5) for h in parts[heads : heads + kv_heads]])
        # The table is fp32: at position 499 its angles carry an error of 3e-8 radians each, not more.
        assert relative_error(q_out[token], q) < TOLERANCE[dtype]
        assert relative_error(read_slot(cache, slot)[0], k) < tolerance
        assert relative_error(read_slot(cache, slot)[1], parts[heads + kv_heads :]) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_writes_its_own_slots_only(dtype: torch.dtype) -> None:
    cache = empty_cache(3, 8, dtype)
    before = cache.values.clone()
    qkv, positions = randn(6, (9 + 6) * 8), torch.tensor(POSITIONS)
    qk_norm_rope_kv_write(qkv, positions, rope_table(8), cache, torch.tensor(SLOTS), poisoned(6, 9, 8))
    for slot in set(range(64)) - set(SLOTS):
        entry = (slot // 16, slice(None), slice(None), slot % 16)
        assert torch.equal(cache.values[entry].nan_to_num(7), before[entry].nan_to_num(7))
        assert cache.scale is None or cache.scale[entry].isnan().all()


def test_int8_pages_survive_zero_heads() -> None:
    cache = empty_cache(2, 8, torch.int8)
    slot = torch.tensor([5])
    qk_norm_rope_kv_write(torch.zeros(1, 48), torch.tensor([3]), rope_table(8), cache, slot, poisoned(1, 2, 8))
    assert read_slot(cache, 5).eq(0).all()


def test_agrees_with_transformers() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    positions = torch.arange(40)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    qkv = randn(40, 8 * 16)
    q, k = qkv[:, :64].view(1, 40, 4, 16).transpose(1, 2), qkv[:, 64:96].view(1, 40, 2, 16).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    cache, q_out = LayerKVCache(poisoned(3, 2, 2, 16, 16)), poisoned(40, 4, 16)
    qk_norm_rope_kv_write(qkv, positions, rope_table(16), cache, positions, q_out)
    assert torch.allclose(q_out, q[0].transpose(0, 1), atol=2e-5)
    written = cache.values[:, 0].transpose(1, 2).reshape(48, 2, 16)[:40]
    assert torch.allclose(written, k[0].transpose(0, 1), atol=2e-5)


def test_refuses_arguments_that_do_not_fit() -> None:
    cache, qkv, q_out = empty_cache(2, 8, torch.float32), randn(1, 48), poisoned(1, 2, 8)
    zero, rope = torch.tensor([0]), rope_table(8)
    with pytest.raises(ValueError, match=r"qkv has shape \[1, 47\]"):
        qk_norm_rope_kv_write(randn(1, 47), zero, rope, cache, zero, q_out)
    with pytest.raises(ValueError, match=r"positions is torch.int32"):
        qk_norm_rope_kv_write(qkv, zero.int(), rope, cache, zero, q_out)
    with pytest.raises(ValueError, match="rope has 10 columns, expected an even number up to 8"):
        qk_norm_rope_kv_write(qkv, zero, rope_table(10), cache, zero, q_out)
    with pytest.raises(ValueError, match="slot_mapping has shape"):
        qk_norm_rope_kv_write(qkv, zero, rope, cache, torch.tensor([0, 1]), q_out)
    with pytest.raises(ValueError, match="kv has shape"):
        qk_norm_rope_kv_write(qkv, zero, rope, empty_cache(2, 6, torch.float32), zero, q_out)
    with pytest.raises(ValueError, match=r"kv is torch.int8"):
        qk_norm_rope_kv_write(qkv, zero, rope, LayerKVCache(cache.values.to(torch.int8)), zero, q_out)
    with pytest.raises(ValueError, match="come together"):
        qk_norm_rope_kv_write(qkv, zero, rope, cache, zero, q_out, q_norm=torch.ones(8))
