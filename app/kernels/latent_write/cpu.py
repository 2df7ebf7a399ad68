"""Binding of the native ``latent_write``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.native.program import dtype_code
from app.kernels.types import LayerLatents


def latent_write_cpu(
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
    tokens, heads, rotary = q_THR.shape
    call = Call(
        "latent_write",
        Dim.TOKENS,
        latent=latent_TW,
        norm=norm_C,
        q=q_THR,
        positions=positions_T,
        rope=rope_PR,
        pages=pages.values,
        slots=slot_mapping_T,
        q_out=q_out_THR,
        dtype=dtype_code(latent_TW),
        norm_dtype=dtype_code(norm_C),
        page_dtype=dtype_code(pages.values),
        rank=norm_C.numel(),
        rotary=rotary,
        heads=heads,
        q_token_stride=q_THR.stride(0),
        q_head_stride=q_THR.stride(1),
        out_token_stride=q_out_THR.stride(0),
        out_head_stride=q_out_THR.stride(1),
        interleaved=int(interleaved),
        eps=eps,
    )
    emit([call], tokens=tokens)
