"""Specification of ``head_norm_add`` in plain torch."""

from __future__ import annotations

from torch import Tensor


def head_norm_add_reference(
    x_TN: Tensor, weight_E: Tensor, addend_TN: Tensor, out_TN: Tensor, eps: float, scale: float
) -> None:
    tokens, width = x_TN.shape[0], weight_E.numel()
    x_THE = x_TN.float().view(tokens, x_TN.shape[1] // width, width)
    inverse_rms_TH1 = x_THE.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
    normed_TN = (x_THE * inverse_rms_TH1 * weight_E.float()).flatten(1)
    out_TN.copy_((normed_TN + addend_TN.float()) * scale)
