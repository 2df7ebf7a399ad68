"""Specification of ``qk_norm_rope_kv_write`` in plain torch.

A qkv row holds heads of three kinds; [T, N, E] below is N heads of E elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.int8 import quantize
from app.kernels.types import LayerKVCache


def qk_norm_rope_kv_write_reference(
    qkv: Tensor,
    positions_T: Tensor,
    rope_PE: Tensor | None,
    kv: LayerKVCache,
    slot_mapping_T: Tensor,
    q_out: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    tokens, heads, head_dim = q_out.shape
    kv_heads = kv.values.shape[2]
    qkv_TNE = qkv.view(tokens, heads + 2 * kv_heads, head_dim)
    qk_TNE = qkv_TNE[:, : heads + kv_heads].float()
    if q_norm is not None and k_norm is not None:
        qk_TNE = qk_TNE * torch.rsqrt(qk_TNE.square().mean(dim=-1, keepdim=True) + eps)
        qk_TNE[:, :heads].mul_(q_norm.float())
        qk_TNE[:, heads:].mul_(k_norm.float())
    if rope_PE is not None:
        qk_TNE = _rotate(qk_TNE, rope_PE.index_select(0, positions_T))
    q_out.copy_(qk_TNE[:, :heads])
    kv_T2GE = torch.stack((qk_TNE[:, heads:], qkv_TNE[:, heads + kv_heads :].float()), dim=1)
    _write_pages(kv_T2GE, kv, slot_mapping_T)


def _rotate(x_TNE: Tensor, rope_TE: Tensor) -> Tensor:
    """Rotates element pairs (i, i + rotary_dim / 2) of each head; elements past ``rotary_dim`` stay as they are."""
    rotary_dim = rope_TE.shape[-1]
    cos, sin = rope_TE.unsqueeze(1).chunk(2, dim=-1)
    x1, x2 = x_TNE[..., :rotary_dim].chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, x_TNE[..., rotary_dim:]), dim=-1)


def _write_pages(kv_T2GE: Tensor, kv: LayerKVCache, slot_mapping_T: Tensor) -> None:
    blocks_T = slot_mapping_T // kv.block_size
    offsets_T = slot_mapping_T % kv.block_size
    if kv.scale is None:
        kv.values[blocks_T, :, :, offsets_T] = kv_T2GE.to(kv.values.dtype)
        return
    values, scale = quantize(kv_T2GE, kv.scale.dtype)
    kv.values[blocks_T, :, :, offsets_T] = values
    kv.scale[blocks_T, :, :, offsets_T] = scale
