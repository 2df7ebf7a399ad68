"""Specification of ``gated_delta`` in plain torch, token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.state_rows import state_rows
from app.kernels.types import AttentionMetadata, LayerState

_EPS = 1e-6


def gated_delta_reference(
    qkv_TC: Tensor,
    b_TH: Tensor,
    a_TH: Tensor,
    a_log_H: Tensor,
    dt_bias_H: Tensor,
    state: LayerState,
    meta: AttentionMetadata,
    out_TN: Tensor,
) -> None:
    tokens, channels = qkv_TC.shape
    _, heads, k_dim, v_dim = state.recurrent.shape
    keys = (channels - heads * v_dim) // 2
    q, k, v = torch.split(qkv_TC.float(), [keys, keys, heads * v_dim], dim=1)
    shared = heads * k_dim // keys
    q_THK = _normalised(q.view(tokens, -1, k_dim)).mul(k_dim**-0.5).repeat_interleave(shared, dim=1)
    k_THK = _normalised(k.view(tokens, -1, k_dim)).repeat_interleave(shared, dim=1)
    v_THV = v.view(tokens, heads, v_dim)
    beta_TH1 = b_TH.float().sigmoid().unsqueeze(2)
    decay_TH11 = (-a_log_H.exp() * F.softplus(a_TH.float() + dt_bias_H)).exp()[..., None, None]
    out_THV = out_TN.view(tokens, heads, v_dim)
    for row in state_rows(meta, state.block_size):
        shape = state.recurrent.shape[1:]
        s_HKV = torch.zeros(shape, device=qkv_TC.device) if row.source is None else state.recurrent[row.source].clone()
        kept = dict(row.kept)
        for count, token in enumerate(range(row.tokens.start, row.tokens.stop), 1):
            s_HKV.mul_(decay_TH11[token])
            answer_HV = torch.einsum("hkv,hk->hv", s_HKV, k_THK[token])
            delta_HV = (v_THV[token] - answer_HV) * beta_TH1[token]
            s_HKV.add_(k_THK[token].unsqueeze(2) * delta_HV.unsqueeze(1))
            out_THV[token].copy_(torch.einsum("hkv,hk->hv", s_HKV, q_THK[token]))
            if count in kept:
                state.recurrent[kept[count]].copy_(s_HKV)


def _normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + _EPS)
