"""Specification of ``qk_norm_rope_kv_write`` in plain torch.

A qkv row holds heads of three kinds; [T, N, E] below is N heads of E elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.int8 import quantize
from app.kernels.qk_norm_rope_kv_write.preparation import Preparation
from app.kernels.types import LayerKVCache


def qk_norm_rope_kv_write_reference(
    qkv: Tensor,
    positions_T: Tensor,
    kv: LayerKVCache | None,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    how: Preparation,
) -> None:
    tokens, heads, head_dim = q_out.shape
    kv_heads = 0 if kv is None else kv.values.shape[2]
    qkv_TNE = qkv.view(tokens, heads + (1 if how.key_is_value else 2) * kv_heads, head_dim)
    qk_TNE = qkv_TNE[:, : heads + kv_heads].float()
    if how.q_norm is not None:
        parts = [(qk_TNE[:, :heads], how.q_norm)]
        if how.k_norm is not None:
            parts.append((qk_TNE[:, heads:], how.k_norm))
        qk_TNE = torch.cat([_norm(part, weight, how.eps) for part, weight in parts], dim=1)
    if how.rope is not None:
        qk_TNE = _rotate(qk_TNE, how.rope.index_select(0, positions_T), how.distance)
    q_THE = qk_TNE[:, :heads]
    q_out.copy_(q_THE if how.q_scale is None else q_THE * how.q_scale[positions_T, None, None])
    if kv is None:
        return
    v_TGE = qkv_TNE[:, -kv_heads:].float()
    if how.value_norm:
        v_TGE = v_TGE * torch.rsqrt(v_TGE.square().mean(dim=-1, keepdim=True) + how.eps)
    _write_pages(torch.stack((qk_TNE[:, heads:], v_TGE), dim=1), kv, slot_mapping_T)


def _norm(x_TNE: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norms each head, or all of them as one vector where the weight is as long."""
    rows = x_TNE if weight.numel() == x_TNE.shape[-1] else x_TNE.flatten(1)
    normed = rows * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps) * weight.float()
    return normed.view_as(x_TNE)


def _rotate(x_TNE: Tensor, rope_TE: Tensor, distance: int) -> Tensor:
    """Rotates element pairs (i, i + distance) of each head, i below rotary_dim / 2; others stay as they are."""
    half = rope_TE.shape[-1] // 2
    cos, sin = rope_TE.unsqueeze(1).chunk(2, dim=-1)
    x1, x2 = x_TNE[..., :half], x_TNE[..., distance : distance + half]
    between, behind = x_TNE[..., half:distance], x_TNE[..., distance + half :]
    return torch.cat((x1 * cos - x2 * sin, between, x2 * cos + x1 * sin, behind), dim=-1)


def _write_pages(kv_T2GE: Tensor, kv: LayerKVCache, slot_mapping_T: Tensor) -> None:
    blocks_T = slot_mapping_T // kv.block_size
    offsets_T = slot_mapping_T % kv.block_size
    if kv.scale is None:
        kv.values[blocks_T, :, :, offsets_T] = kv_T2GE.to(kv.values.dtype)
        return
    values, scale = quantize(kv_T2GE, kv.scale.dtype)
    kv.values[blocks_T, :, :, offsets_T] = values
    kv.scale[blocks_T, :, :, offsets_T] = scale
