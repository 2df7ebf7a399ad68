"""Specification of ``selective_scan`` in plain torch, token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.state_rows import state_rows
from app.kernels.types import AttentionMetadata, LayerState


def selective_scan_reference(
    xbc_TC: Tensor,
    dt_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    d_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
    dt_limit: tuple[float, float],
) -> None:
    tokens, channels = xbc_TC.shape
    _, heads, k_dim, v_dim = state.recurrent.shape
    of_groups = (channels - heads * v_dim) // 2
    x, b, c = torch.split(xbc_TC.float(), [heads * v_dim, of_groups, of_groups], dim=1)
    shared = heads * k_dim // of_groups
    x_THV = x.view(tokens, heads, v_dim)
    b_THK, c_THK = (part.view(tokens, -1, k_dim).repeat_interleave(shared, dim=1) for part in (b, c))
    step_TH = F.softplus(dt_TH.float() + dt_bias_H).clamp(*dt_limit)
    decay_TH11 = (-a_log_H.exp() * step_TH).exp()[..., None, None]
    added_THV = x_THV * step_TH.unsqueeze(2)
    out_THV = out_TN.view(tokens, heads, v_dim)
    for row in state_rows(meta, state.block_size):
        shape = state.recurrent.shape[1:]
        s_HKV = torch.zeros(shape, device=xbc_TC.device) if row.source is None else state.recurrent[row.source].clone()
        kept = dict(row.kept)
        for count, token in enumerate(range(row.tokens.start, row.tokens.stop), 1):
            s_HKV.mul_(decay_TH11[token]).add_(b_THK[token].unsqueeze(2) * added_THV[token].unsqueeze(1))
            y_HV = torch.einsum("hkv,hk->hv", s_HKV, c_THK[token])
            out_THV[token].copy_(y_HV + d_H.unsqueeze(1) * x_THV[token])
            if count in kept:
                state.recurrent[kept[count]].copy_(s_HKV)
