"""Specification of ``latent_write`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.types import LayerLatents


def latent_write_reference(
    latent_TW: Tensor,
    norm_C: Tensor,
    eps: float,
    q_THR: Tensor,
    positions_T: Tensor,
    rope_PR: Tensor,
    pages: LayerLatents,
    slot_mapping_T: Tensor,
    q_out_THR: Tensor,
    interleaved: bool,
) -> None:
    latent_TC, key_TR = torch.split(latent_TW.float(), [norm_C.numel(), q_THR.shape[2]], dim=-1)
    normed_TC = latent_TC * torch.rsqrt(latent_TC.square().mean(dim=-1, keepdim=True) + eps) * norm_C.float()
    angles_TR = rope_PR.index_select(0, positions_T)
    q_out_THR.copy_(_rotated(q_THR.float(), angles_TR.unsqueeze(1), interleaved))
    kept_TW = torch.cat((normed_TC, _rotated(key_TR, angles_TR, interleaved)), dim=-1)
    blocks_T, offsets_T = slot_mapping_T // pages.block_size, slot_mapping_T % pages.block_size
    pages.values[blocks_T, offsets_T] = kept_TW.to(pages.values.dtype)


def _rotated(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    cos, sin = angles.chunk(2, dim=-1)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
